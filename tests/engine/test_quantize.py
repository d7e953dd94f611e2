import copy
from importlib import import_module

import pytest
import torch
from torch import nn

from qkit import RTN, QLinear, error_statistics, linear, quantize, quantize_tensor
from qkit.model.surgery import weight_of
from qkit.nn.layers import quantized_layers

GATED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED = tuple(f"model.layers.{{}}.{leaf}" for leaf in (*GATED, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
OPT = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2")
DECODER = {
    "llama": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "gpt2": tuple(f"transformer.h.{{}}.{leaf}" for leaf in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    "opt": tuple(f"model.decoder.layers.{{}}.{leaf}" for leaf in OPT),
}
LEFT = {
    "llama": {"lm_head", "model.embed_tokens", "model.norm", "model.layers.1.input_layernorm"},
    "qwen2": {"lm_head", "model.embed_tokens", "model.norm", "model.layers.1.post_attention_layernorm"},
    "qwen3": {"lm_head", "model.embed_tokens", "model.norm", "model.layers.0.self_attn.q_norm"},
    "gpt2": {"lm_head", "transformer.wte", "transformer.wpe", "transformer.ln_f", "transformer.h.1.ln_2"},
    "opt": {"lm_head", "model.decoder.embed_tokens", "model.decoder.embed_positions", "model.decoder.final_layer_norm"},
}


def decoder_layers(kind):
    return {template.format(i) for i in (0, 1) for template in DECODER[kind]}


def snapshot(model):
    """Which module stands where, which tensor object, and what is in it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    state = model.state_dict(keep_vars=True)
    return modules, state, {name: tensor.detach().clone() for name, tensor in state.items()}


def assert_untouched(model, before):
    modules, state, values = before
    now = dict(model.named_modules(remove_duplicate=False))
    assert now.keys() == modules.keys()
    assert all(now[name] is module for name, module in modules.items())
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is state[name], name
        assert torch.equal(tensor.nan_to_num(), values[name].nan_to_num()), name


def test_every_decoder_layer_is_swapped_and_nothing_else(kind, model):
    report = quantize(model, RTN(4, 4))
    assert set(quantized_layers(model)) == decoder_layers(kind)
    assert {layer.name for layer in report.layers} == decoder_layers(kind)
    assert not any(weight_of(module) is not None for name, module in model.named_modules() if name != "lm_head")


def test_what_stays_is_named_with_a_reason(kind, model):
    report = quantize(model, RTN(4))
    skipped = dict(report.skipped)
    assert LEFT[kind] <= set(skipped)
    assert skipped["lm_head"] == "output head (rule of the trade)"
    with_parameters = {
        name
        for name, module in model.named_modules()
        if [*module.parameters(recurse=False)] and type(module) is not QLinear
    }
    assert with_parameters <= set(skipped)


@pytest.mark.parametrize("scheme", [RTN(4), RTN(3, 4), RTN(8, symmetric=True), RTN(4, 4, include_zero=False)], ids=repr)
def test_logits_are_those_of_a_float_model_with_the_dequantized_weights(model, scheme, ids, logits, reference_rtn):
    plain = copy.deepcopy(model)
    quantize(model, scheme)
    with torch.no_grad():
        for name, layer in quantized_layers(model).items():
            weight = weight_of(plain.get_submodule(name))
            if scheme.include_zero:
                weight.copy_(torch.from_numpy(reference_rtn(weight, scheme.bits, scheme.group_size, scheme.symmetric)))
            else:
                weight.copy_(layer.qtensor.dequantize())
    # In float64, where quantized layers are plain products: kernels and Conv1D sum in other orders, and 200 roundings of
    # 2^-53 a product, with four digits for what a few layers make of them, are under 1e-9. float32 would hide a wrong code.
    found, expected = logits(model.double(), ids), logits(plain.double(), ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def test_the_quantized_model_generates(model, ids):
    quantize(model, RTN(8))
    tokens = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert tokens.shape == (2, 25)


def test_the_report_counts_bytes_and_errors_of_each_layer(kind, model):
    plain = copy.deepcopy(model)
    report = quantize(model, RTN(3, 4))
    layers = quantized_layers(model)
    for row in report.layers:
        weight, q = weight_of(plain.get_submodule(row.name)), layers[row.name].qtensor
        assert row.kind == ("Conv1D" if kind == "gpt2" else "Linear")
        assert row.shape == tuple(weight.shape) == q.shape
        assert row.error == error_statistics(weight.detach(), q.dequantize())
        assert (row.nbytes, row.bits_per_weight) == (q.nbytes, q.bits_per_weight)
        assert row.scheme == "RTN W3 g4"
    weights = sum(weight_of(plain.get_submodule(name)).numel() for name in layers)
    assert report.bits_per_weight == 8 * sum(layer.qtensor.nbytes for layer in layers.values()) / weights
    assert report.scheme == RTN(3, 4).to_dict()


def test_biases_are_the_parameters_that_were_there():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    bias = model[0].bias
    quantize(model, RTN(4))
    assert model[0].bias is bias
    assert model[2].bias is None


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_kept(llama, training):
    quantize(llama.train(training), RTN(4))
    assert {module.training for module in llama.modules()} == {training}


def test_include_picks_layers(llama):
    report = quantize(llama, RTN(4), include=["*.mlp.down_proj", "model.layers.1.*"])
    assert set(quantized_layers(llama)) == {"model.layers.0.mlp.down_proj"} | {
        name for name in decoder_layers("llama") if "layers.1" in name
    }
    assert dict(report.skipped)["lm_head"] == "not included"


def test_exclude_leaves_layers(llama):
    report = quantize(llama, RTN(4), exclude="*down_proj")
    assert set(quantized_layers(llama)) == {name for name in decoder_layers("llama") if "down_proj" not in name}
    assert dict(report.skipped)["model.layers.0.mlp.down_proj"] == "excluded"


@pytest.mark.parametrize("tie", [True, False])
def test_including_everything_quantizes_the_head_and_leaves_the_embedding(make_model, tie, ids, logits):
    model = make_model("llama", tie=tie)
    embedding = model.model.embed_tokens.weight
    before = embedding.detach().clone()
    quantize(model, RTN(8), include="*")
    assert isinstance(model.lm_head, QLinear)
    assert model.model.embed_tokens.weight is embedding
    assert torch.equal(embedding, before)
    assert logits(model, ids).isfinite().all()


def test_a_model_without_transformers_is_quantized_too():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    assert len(quantize(model, RTN(4)).layers) == 2
    assert model(torch.ones(1, 8)).shape == (1, 4)


def test_a_layer_under_two_names_is_quantized_once_and_stays_one():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Linear(8, 8), "c": shared})
    report = quantize(model, RTN(4))
    assert model["a"] is model["c"] is not model["b"]
    assert [layer.name for layer in report.layers] == ["a", "b"]


def test_half_precision_models_are_quantized_by_their_own_numbers(make_model, ids, logits):
    model = make_model("llama").bfloat16()
    weight = model.model.layers[0].mlp.up_proj.weight.float()
    quantize(model, RTN(4))
    expected = quantize_tensor(weight, bits=4)
    assert torch.equal(model.model.layers[0].mlp.up_proj.packed, expected.packed)
    assert logits(model, ids).dtype == torch.bfloat16


def test_a_nan_in_the_last_layer_leaves_the_model_as_it_was(kind, model):
    last = sorted(decoder_layers(kind))[-1]
    with torch.no_grad():
        weight_of(model.get_submodule(last))[0, 0] = float("nan")
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"{last} holds 1 NaN and 0 infinite values of .* exclude="):
        quantize(model, RTN(4))
    assert_untouched(model, before)


def test_a_group_size_that_one_layer_refuses_leaves_the_model_as_it_was(kind, model):
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"group_size=16 does not divide in_features=100 of .*(down_proj|c_proj|fc2); use"
    ):
        quantize(model, RTN(4, 16))
    assert_untouched(model, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_at_the_third_layer_leaves_the_model_as_it_was(model, monkeypatch, error):
    calls = []
    driver = import_module("qkit.engine.quantize")  # the name qkit.quantize is that of the function
    solve_layer = driver.solve_layer

    def interrupted(weight, bias, scheme, inputs, name):
        calls.append(name)
        if len(calls) == 3:
            raise error
        return solve_layer(weight, bias, scheme, inputs, name)

    monkeypatch.setattr(driver, "solve_layer", interrupted)
    before = snapshot(model)
    with pytest.raises(error):
        quantize(model, RTN(4))
    assert len(calls) == 3
    assert_untouched(model, before)


@pytest.mark.parametrize("scheme", ["int4", None, 4, {"bits": 4}])
def test_what_is_no_scheme_is_a_type_error_and_leaves_the_model_as_it_was(llama, scheme):
    before = snapshot(llama)
    with pytest.raises(TypeError, match=r"scheme=.* is not a scheme; give one such as qkit\.RTN"):
        quantize(llama, scheme)
    assert_untouched(llama, before)


def test_a_glob_that_matches_nothing_leaves_the_model_as_it_was(llama):
    before = snapshot(llama)
    with pytest.raises(ValueError, match=r"exclude='lmhead' matches none of the 15 .* try '\*lmhead\*'"):
        quantize(llama, RTN(4), exclude="lmhead")
    assert_untouched(llama, before)


def test_a_quantized_model_is_not_quantized_again(model):
    quantize(model, RTN(8))
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"layer left to quantize \(its \d+ linear layers are quantized already\); give a model"
    ):
        quantize(model, RTN(4))
    assert_untouched(model, before)


def test_a_model_with_no_linear_is_refused():
    with pytest.raises(
        ValueError, match=r"Sequential has no Linear or Conv1D layer left to quantize \(it has 0, none at all"
    ):
        quantize(nn.Sequential(nn.Embedding(4, 4), nn.LayerNorm(4)), RTN(4))


def test_a_bare_linear_is_refused_with_the_way_to_do_it():
    with pytest.raises(ValueError, match=r"Linear.*quantize_tensor|Linear.*Sequential"):
        quantize(nn.Linear(8, 8), RTN(4))


def test_progress_is_shown_when_asked_for(llama, capfd):
    quantize(llama, RTN(4), progress=True)
    assert "RTN W4 per channel: 100%" in capfd.readouterr().err


def test_progress_is_silent_when_not_asked_for(llama, capfd):
    quantize(llama, RTN(4), progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: quantize("bookworm-14m", RTN(4)), r"model is a str; give a module: model, tokenizer = qkit\.load"),
        (lambda: quantize_tensor([[1.0]], bits=4), r"the weight is a list; give a torch tensor"),
        (lambda: linear(torch.randn(2, 4), torch.randn(3, 4)), r"is a Tensor, linear takes a QTensor; make one with"),
    ],
)
def test_what_is_of_another_kind_is_a_type_error(call, match):
    with pytest.raises(TypeError, match=match):
        call()
