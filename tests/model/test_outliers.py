"""Planted outliers: seen in the activations, not in the function; and all of them or none."""

import pytest
import torch

from qkit import RTN, quantize
from qkit.model import outliers
from qkit.model.folding import model_folds
from qkit.model.outliers import Planted, plant_outliers
from qkit.model.surgery import clone

NORMS = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral"), ("input_layernorm", "post_attention_layernorm")),
    "opt": ("self_attn_layer_norm", "final_layer_norm"),
    "gpt2": ("ln_1", "ln_2"),
    "neox": ("input_layernorm", "post_attention_layernorm"),
    "bloom": ("input_layernorm", "post_attention_layernorm"),
    "phi": ("input_layernorm",),
}


def outputs(model, names, ids):
    """What each norm puts out, float32 [sequences, length, width], and the logits."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: seen.setdefault(name, out))
        for name in names
    ]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return seen, logits


@pytest.mark.parametrize("factor", [64.0, 2.0, 0.125])
def test_the_function_stays_and_the_activations_have_outliers(make_model, any_kind, ids, factor):
    model = make_model(any_kind)
    untouched = clone(model)
    planted = plant_outliers(model, [17, 3, 17], factor)
    before, expected = outputs(untouched, planted.norms, ids)
    after, logits = outputs(model, planted.norms, ids)
    assert (logits - expected).abs().max() < 2e-6 * expected.abs().max()
    multiplied = torch.ones(48).index_fill(0, torch.tensor([3, 17]), factor)
    for name in planted.norms:
        absmax = before[name].abs().flatten(0, -2).amax(0) * multiplied
        torch.testing.assert_close(after[name].abs().flatten(0, -2).amax(0), absmax, rtol=1e-4, atol=1e-4)


def test_with_a_power_of_two_no_parameter_is_rounded(make_model, any_kind):
    model = make_model(any_kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    planted = plant_outliers(model, [5], 2.0**6)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    gains = {f"{name}.{p}" for name in planted.norms for p in ("weight", "bias") if f"{name}.{p}" in before}
    assert changed == gains | {f"{name}.weight" for name in planted.layers}
    plant_outliers(model, [5], 2.0**-6)  # and out again
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_record_names_norms_and_layers(make_model, any_kind):
    model = make_model(any_kind)
    expected = model_folds(model, torch.arange(16).reshape(2, 8))
    planted = plant_outliers(model, (4, 1))
    assert planted.channels == (1, 4) and planted.factor == 64.0
    assert planted.norms == tuple(f"{name}.{norm}" for name in expected for norm in NORMS[any_kind])
    layers = [
        f"{name}.{layer}"
        for name, (folds, _) in expected.items()
        for f in folds
        if f.producer in NORMS[any_kind]
        for layer in f.consumers
    ]
    assert planted.layers == tuple(layers)
    with pytest.raises(AttributeError):
        planted.factor = 1.0


def test_the_record_of_one_model_in_full(make_model):
    assert plant_outliers(make_model("gpt2", n_layer=1), [0], 4) == Planted(
        (0,),
        4.0,
        ("transformer.h.0.ln_1", "transformer.h.0.ln_2"),
        ("transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"),
    )


def test_the_embedded_model(embedded):
    model = clone(embedded[0])
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        planted = plant_outliers(model, [3, 100])
        assert (model(input_ids=ids).logits - before).abs().max() <= 1e-6 * before.abs().max()
    assert len(planted.norms) == 2 * model.config.num_hidden_layers


@pytest.mark.parametrize(
    ("channels", "factor", "error", "message"),
    [
        ([48], 64.0, ValueError, r"channel 48 does not exist; .* have channels 0 to 47"),
        ([3, -1], 64.0, ValueError, r"channel -1 does not exist; .* have channels 0 to 47"),
        ([], 64.0, ValueError, r"there are no channels to plant; .* 0 to 47"),
        ([1.0], 64.0, TypeError, r"channel 1\.0 is a float; channels are ints"),
        ([True], 64.0, TypeError, r"channel True is a bool"),
        ([3], 0.0, ValueError, r"factor=0\.0 must be finite and greater than 0"),
        ([3], -2.0, ValueError, r"factor=-2\.0 must be finite"),
        ([3], float("nan"), ValueError, r"factor=nan must be finite"),
        ([3], float("inf"), ValueError, r"factor=inf must be finite"),
    ],
)
def test_bad_arguments_are_refused_and_the_model_stays(make_model, channels, factor, error, message):
    model = make_model("llama")
    before = dict(model.named_parameters())
    with pytest.raises(error, match=message):
        plant_outliers(model, channels, factor)
    assert all(p is before[name] for name, p in model.named_parameters())


def test_a_model_without_data_is_refused(make_model):
    model = make_model("llama")
    model.model.layers[1].input_layernorm.to("meta")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.input_layernorm\.weight has no data \(device meta\)"):
        plant_outliers(model, [3])


def test_a_quantized_model_is_refused(make_model):
    model = make_model("llama")
    quantize(model, RTN(bits=4), include="*.down_proj")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj is quantized already; plant .* in float"):
        plant_outliers(model, [3])


def test_a_model_whose_norms_cannot_take_a_factor_is_refused_with_the_reason(make_model):
    with pytest.raises(ValueError, match=r"no norm that feeds linear layers .*k_proj: its input comes from no norm"):
        plant_outliers(make_model("opt", do_layer_norm_before=False, num_hidden_layers=1), [3])


def test_a_failure_half_way_leaves_the_model_as_it_was(make_model, monkeypatch):
    model = make_model("gpt2")
    before = dict(model.named_parameters())
    count, real = [], outliers.fold

    def fails_at_the_third(*args):
        count.append(args)
        if len(count) == 3:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(outliers, "fold", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        plant_outliers(model, [3])
    assert len(count) == 3
    assert all(p is before[name] for name, p in model.named_parameters())


def test_a_factor_too_large_for_half_precision_is_refused(make_model):
    model = make_model("llama").half()
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"input_layernorm\.weight would leave the range of torch\.float16"):
        plant_outliers(model, [3], 2.0**17)
    assert all(p is before[name] for name, p in model.named_parameters())


def test_nothing_is_planted_into_a_norm_that_is_elsewhere_too(make_model, ids, logits):
    model = make_model("llama")
    model.model.layers[1].input_layernorm = model.model.layers[0].input_layernorm
    model.model.norm = model.model.layers[0].post_attention_layernorm
    before = logits(model, ids)
    assert plant_outliers(model, [3, 17]).norms == ("model.layers.1.post_attention_layernorm",)
    assert (logits(model, ids) - before).abs().max() < 2e-6 * before.abs().max()
    model.model.layers[1].post_attention_layernorm = model.model.layers[0].post_attention_layernorm
    with pytest.raises(ValueError, match=r"no norm that feeds linear layers .*input_layernorm is shared with model"):
        plant_outliers(model, [3])
