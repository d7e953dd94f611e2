"""The embedded model in every format of transformers' friends, loaded by the library whose format it is: same weights, same
text, and how far the logits are apart. What README and lesson 10 say of them is written from here (make judges).
"""

import pytest
import torch

import qkit
from qkit.bench.judged import READ_BY_US, READS_OURS
from qkit.model.surgery import clone
from qkit.nn.layers import quantized_layers
from verdicts import PROMPT, compared, greedy

pytestmark = pytest.mark.peers

JUDGES = {  # format: (judge, its module)
    "gptq": ("GPTQModel", "gptqmodel"),
    "awq": ("GPTQModel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed-tensors", "compressed_tensors"),
}
ROWS = [
    *(("gptq", qkit.RTN(bits, 128, symmetric=True)) for bits in (2, 3, 4, 8)),
    ("gptq", qkit.RTN(4, 128)),
    ("awq", qkit.RTN(4, 128)),
    ("awq", qkit.RTN(4, 32, symmetric=True)),
    *(("bitsandbytes", scheme) for scheme in (qkit.NF4(), qkit.NF4(double_quant=False), qkit.FP4(), qkit.LLMInt8())),
    *(("compressed-tensors", qkit.RTN(bits, 128, symmetric=True)) for bits in (3, 4, 8)),
    ("compressed-tensors", qkit.W8A8()),
    ("compressed-tensors", qkit.W8A8("per-tensor")),
]
EXACT = {"gptq": 2e-3, "awq": 2e-3, "bitsandbytes": 1e-5, "compressed-tensors": 1e-5}  # GPTQModel's ŵ are float16
ROUNDED = 0.06  # inputs are rounded too: a bit of difference there is a step further on


def near(weight, other):
    """The same but for the last bit or two."""
    return torch.allclose(weight, other, rtol=2**-22, atol=0)


@pytest.mark.parametrize(("form", "scheme"), ROWS, ids=lambda value: getattr(value, "name", value))
def test_its_library_computes_what_we_do(form, scheme, embedded, verdict, tmp_path):
    name, module = JUDGES[form]
    pytest.importorskip(module, reason="the judges are installed apart: make test-judges")
    from judges import judge, weights

    original, tokenizer = embedded
    model, ids = clone(original), tokenizer(PROMPT, return_tensors="pt").input_ids
    text = qkit.texts("python-docs") if scheme == qkit.W8A8("per-tensor") else None
    qkit.quantize(model, scheme, calibration=text, tokenizer=tokenizer, max_chunks=4)
    theirs = judge(qkit.save(model, tmp_path / "out", tokenizer, format=form).path)
    mine, found = quantized_layers(model), weights(theirs)
    assert found.keys() == mine.keys()
    equal = all(torch.equal(weight, mine[layer].weight.to(weight.dtype)) for layer, weight in found.items())
    # of LLM.int8's absmax / 127 the last bit is rounded twice
    assert equal or (scheme == qkit.LLMInt8() and all(near(found[layer], mine[layer].weight) for layer in found))
    measured = compared(model, ids, greedy(lambda ids: theirs(input_ids=ids).logits, ids), original)
    exact = scheme not in (qkit.LLMInt8(), qkit.W8A8(), qkit.W8A8("per-tensor"))
    assert measured["error"] < (EXACT[form] if exact else ROUNDED), measured
    assert measured["same_text"] or not exact
    dtype = str(next(iter(found.values())).dtype).removeprefix("torch.")
    verdict(form, scheme.name, name, READS_OURS, "bookworm-14m", **measured, weights_equal=equal, weights_dtype=dtype)


@pytest.mark.parametrize("kind", ["NF4", "NF4 dq", "FP4", "LLM.int8"])
def test_we_compute_what_bitsandbytes_wrote(kind, embedded, verdict, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the judges are installed apart: make test-judges")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from judges import judge, weights

    original, tokenizer = embedded
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    original.save_pretrained(tmp_path / "floats")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": kind[:3].lower(), "bnb_4bit_use_double_quant": "dq" in kind}
    config = BitsAndBytesConfig(**({"load_in_8bit": True} if kind == "LLM.int8" else four))
    options = {"quantization_config": config, "dtype": torch.float32, "device_map": "cpu"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "floats", **options).save_pretrained(tmp_path / "theirs")
    model, _ = qkit.load(tmp_path / "theirs")
    theirs = judge(tmp_path / "theirs")
    found = weights(theirs)
    equal = all(torch.equal(weight, model.get_submodule(name).weight) for name, weight in found.items())
    assert all(near(weight, model.get_submodule(name).weight) for name, weight in found.items())
    measured = compared(model, ids, greedy(lambda ids: theirs(input_ids=ids).logits, ids), original)
    exact = kind != "LLM.int8"
    assert (equal and measured["same_text"]) or not exact
    assert measured["error"] < (1e-5 if exact else ROUNDED), measured
    measured |= {"weights_equal": equal, "weights_dtype": "float32"}
    verdict("bitsandbytes", kind, "bitsandbytes", READ_BY_US, "bookworm-14m", **measured)


@pytest.mark.parametrize("kind", ["W4 g128", "W4 g128 act-order", "W3 g128 asymmetric v2"])
def test_we_compute_what_gptqmodel_wrote(kind, embedded, verdict, tmp_path, monkeypatch):
    """It quantizes the model here, on little text: what it writes is asked for, and not how good it is.

    Its AWQ takes many minutes on a CPU; a small folder of that is in test_goldens.py.
    """
    pytest.importorskip("gptqmodel", reason="the judges are installed apart: make test-judges")
    from gptqmodel import GPTQModel, QuantizeConfig

    from judges import judge, weights

    monkeypatch.chdir(tmp_path)  # it leaves logs where it runs
    original, tokenizer = embedded
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    original.save_pretrained(tmp_path / "floats")
    tokenizer.save_pretrained(tmp_path / "floats")
    text = qkit.texts("python-docs")
    sizes = {"bits": 3 if "W3" in kind else 4, "group_size": 128, "format": "gptq_v2" if "v2" in kind else "gptq"}
    order = {"desc_act": "act-order" in kind, "act_group_aware": False, "sym": "asymmetric" not in kind}
    config = QuantizeConfig(**sizes, **order, device="cpu")
    made = GPTQModel.load(str(tmp_path / "floats"), config)
    made.quantize([text[start : start + 1200] for start in range(0, 12 * 1200, 1200)], batch_size=4)
    made.save(str(tmp_path / "theirs"))
    model, _ = qkit.load(tmp_path / "theirs")
    theirs = judge(tmp_path / "theirs")
    found = weights(theirs)
    assert len(found) == 56 == len(quantized_layers(model))
    equal = all(
        torch.equal(weight, model.get_submodule(name).weight.to(weight.dtype)) for name, weight in found.items()
    )
    measured = compared(model, ids, greedy(lambda ids: theirs(input_ids=ids).logits, ids), original)
    assert equal and measured["same_text"] and measured["error"] < EXACT["gptq"], measured
    assert measured["kl_original"] < 2, measured  # and it is bookworm yet
    measured |= {"weights_equal": equal, "weights_dtype": "float16"}
    verdict("gptq", kind, "GPTQModel", READ_BY_US, "bookworm-14m", **measured)
