import os
import subprocess
import sys
from pathlib import Path

import pytest

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
