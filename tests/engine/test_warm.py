import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qkit
from processes import run_python
from qkit.engine import warm

COUNTED = """
import importlib, pkgutil, sys
import warnings
import torch, conftest, qkit, qkit_kernels.numba
from qkit.engine.warm import warm_up
from qkit.model.surgery import clone
from schemes import every_scheme

warnings.simplefilter("ignore")

def compiled():
    modules = [importlib.import_module(f"qkit_kernels.numba.{m.name}") for m in pkgutil.iter_modules(qkit_kernels.numba.__path__)]
    found = {id(v): v for module in modules for v in vars(module).values() if hasattr(v, "signatures")}
    return {(v.__module__, v.__name__, str(s)) for v in found.values() for s in v.signatures}

torch.set_num_threads(2)
wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 1}
models = conftest.build("llama"), conftest.build("llama", **wide)
ids = torch.randint(0, 97, (8, 32), generator=torch.Generator().manual_seed(0))
for scheme in every_scheme():
    warm_up(scheme)
    before = compiled()
    assert before
    for model in map(clone, models):
        qkit.quantize(model, scheme, calibration=ids, progress=False)
        for tokens in (ids[:1, :1], ids):
            model(input_ids=tokens)
    assert compiled() == before, (scheme.name, compiled() - before)
print("nothing was compiled behind the clock")
"""


@pytest.mark.exhaustive
def test_what_is_warm_compiles_no_more():
    """In a process of its own: here other tests have compiled already."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", COUNTED],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "nothing was compiled" in done.stdout, done.stderr[-3000:]


IN_BFLOAT16 = """
import torch, conftest, qkit
from qkit.backends.numba.compiled import counting
from qkit.engine.warm import warm_model

model = conftest.build("llama", hidden_size=256, intermediate_size=512, head_dim=64, num_hidden_layers=1).bfloat16()
ids = torch.randint(0, 97, (8, 32), generator=torch.Generator().manual_seed(0))
qkit.quantize(model, qkit.RTN(4, 64), progress=False)
warmth = warm_model(model)
assert warmth.compiled and not warmth.found, warmth
with counting() as count:
    for tokens in (ids[:1, :1], ids[:1, :4], ids):
        model(input_ids=tokens)
assert (count.compiled, count.found) == (0, 0), vars(count)
"""


@pytest.mark.exhaustive
def test_the_kernels_of_a_quantized_model_are_those_of_its_own_dtype(tmp_path):
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, *sys.path])
    said = run_python("-c", IN_BFLOAT16, cache=tmp_path, PYTHONPATH=path)
    assert not said, said


def test_each_kind_of_layer_of_a_quantized_model_is_called_once_and_stays(make_model, monkeypatch):
    model, called = make_model("llama").bfloat16(), []
    qkit.quantize(model, {"*.q_proj": qkit.RTN(4, 16), "*": qkit.RTN(8, None)}, progress=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(warm, "_call", lambda layer, x: called.append((repr(layer.qtensor), x.shape[1], x.dtype)))
    warmth = warm.warm_model(model)
    kinds = {
        (repr(layer.qtensor), layer.in_features, torch.bfloat16) for layer in warm.quantized_layers(model).values()
    }
    assert set(called) == kinds and len(called) == len(kinds) > 2
    assert warmth.to_dict().keys() == {"seconds", "compiled", "found"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_warmed_up_is_said(make_model, monkeypatch):
    with pytest.raises(ValueError, match="no layer of this model is quantized; name the schemes"):
        warm.warm_model(make_model("llama"))
    monkeypatch.setattr(warm, "missing", lambda module: "No module named 'numba'")
    with pytest.raises(ValueError, match=r"compiled by Numba, which cannot be used \(No module named 'numba'\)"):
        warm.warm_model(make_model("llama"), [qkit.RTN(8)])
