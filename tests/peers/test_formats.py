"""Folders that qkit writes, loaded by the libraries whose formats they are; and what those write, loaded by qkit."""

import pytest
import torch

import qkit
from qkit.nn.layers import quantized_layers

pytestmark = pytest.mark.peers

SIZES = {
    "llama": {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32},
    "opt": {"hidden_size": 128, "ffn_dim": 192, "word_embed_proj_dim": 128},
}
LAST = {"llama": "*.1.mlp.down_proj", "opt": "*.fc2"}  # layers that stay floats
# In all layers blocks of 64 are parts of rows: bitsandbytes' CPU kernels want that
ROWS = [
    *(("gptq", qkit.RTN(bits, 32, symmetric=symmetric)) for bits in (2, 3, 4, 8) for symmetric in (True, False)),
    ("gptq", qkit.RTN(4, symmetric=True)),
    ("gptq", qkit.RTN(4, "tensor", symmetric=True)),
    ("awq", qkit.RTN(4, 32)),
    ("awq", qkit.RTN(4, 64, symmetric=True)),
    ("awq", qkit.RTN(4)),
    ("bitsandbytes", qkit.NF4()),
    ("bitsandbytes", qkit.NF4(double_quant=False)),
    ("bitsandbytes", qkit.FP4(double_quant=False)),
    ("bitsandbytes", qkit.FP4()),
    ("bitsandbytes", qkit.LLMInt8()),
    *(("compressed-tensors", qkit.RTN(bits, 32, symmetric=True)) for bits in (3, 4, 8)),
    ("compressed-tensors", qkit.RTN(8, symmetric=True)),
    ("compressed-tensors", {"*.0.*": qkit.RTN(8, symmetric=True), "*": qkit.RTN(4, 32, symmetric=True)}),
    ("compressed-tensors", qkit.W8A8()),
    ("compressed-tensors", qkit.W8A8("per-tensor")),
]
NEEDS = {
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed_tensors",
    "bitsandbytes": "bitsandbytes",
}


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("left", [None, "last"])
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(("form", "scheme"), ROWS, ids=str)
def test_the_library_loads_what_qkit_wrote(form, scheme, kind, left, make_model, ids, logits, tmp_path):
    pytest.importorskip(NEEDS[form], reason="the judges are installed apart: make test-judges")
    from judges import judge, weights

    model = make_model(kind, **SIZES[kind])
    qkit.quantize(
        model, scheme, exclude=left and LAST[kind], calibration=ids if scheme == qkit.W8A8("per-tensor") else None
    )
    report = qkit.save(model, tmp_path / "out", format=form)
    theirs = judge(report.path)
    mine, found = quantized_layers(model), weights(theirs)
    assert found.keys() == mine.keys()
    for name, weight in found.items():
        expected = mine[name].weight.to(weight.dtype)  # GPTQModel's are rounded to float16
        if isinstance(scheme, qkit.LLMInt8):
            assert torch.allclose(weight, expected, rtol=2**-22, atol=0), name
        else:
            assert torch.equal(weight, expected), name
    error = relative(logits(theirs, ids), logits(model, ids))
    bound = {"gptq": 2e-3, "awq": 2e-3, "bitsandbytes": 1e-5, "compressed-tensors": 1e-5}[form]
    if isinstance(
        scheme, (qkit.LLMInt8, qkit.W8A8)
    ):  # inputs are rounded: a bit of difference there is a step further on
        bound = 0.06
    assert error < bound, error


def test_w8a8_differs_by_what_127_and_a_half_is_to_127(make_model, ids, tmp_path):
    """One layer, the same inputs: with compressed-tensors' own scale of a token our arithmetic gives its output."""
    pytest.importorskip("compressed_tensors", reason="the judges are installed apart: make test-judges")
    from judges import judge

    model = make_model("llama", **SIZES["llama"])
    qkit.quantize(model, qkit.W8A8())
    theirs = judge(qkit.save(model, tmp_path, format="compressed-tensors").path)
    name = "model.layers.0.mlp.down_proj"
    layer, other = model.get_submodule(name), theirs.get_submodule(name)
    x = torch.randn(1, 16, layer.in_features, generator=torch.Generator().manual_seed(0))
    output, weight = other(x).detach(), layer.weight

    def rounded(reach, low):
        scale = x.abs().amax(-1, keepdim=True) / reach
        return ((x / scale).round().clamp(low, 127) * scale) @ weight.T

    assert relative(rounded(127.5, -128), output) < 1e-6
    assert relative(rounded(127, -127), layer(x)) < 1e-6
    assert 1e-3 < relative(layer(x), output) < 2e-2


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_qkit_loads_what_bitsandbytes_wrote(kind, double, make_model, ids, logits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the judges are installed apart: make test-judges")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from judges import judge, weights

    make_model("llama", **SIZES["llama"]).save_pretrained(tmp_path / "floats")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": double}
    config = BitsAndBytesConfig(**({"load_in_8bit": True} if kind == "int8" else four))
    options = {"quantization_config": config, "dtype": torch.float32, "device_map": "cpu"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "floats", **options).save_pretrained(tmp_path / "theirs")
    model, _ = qkit.load(tmp_path / "theirs")
    theirs = judge(tmp_path / "theirs")
    for name, weight in weights(theirs).items():
        same = torch.allclose(weight, model.get_submodule(name).weight, rtol=2**-22, atol=0)
        assert same if kind == "int8" else torch.equal(weight, model.get_submodule(name).weight), name
    assert relative(logits(theirs, ids), logits(model, ids)) < (0.06 if kind == "int8" else 1e-5)
