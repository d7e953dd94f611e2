"""Folds are found by wiring alone; each must keep the function, and every wrong one must be refused with a reason."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qkit import AWQ, RTN, W8A8, SmoothQuant, quantize
from qkit.model.blocks import capture
from qkit.model.folding import Fold, find_folds, fold, model_folds
from qkit.model.surgery import clone, weight_of
from tiny import falcon

LLAMA = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.v_proj": ("self_attn.o_proj",),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}
EXPECTED = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral"), LLAMA),
    "opt": {
        "self_attn_layer_norm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.v_proj": ("self_attn.out_proj",),
        "final_layer_norm": ("fc1",),
        "fc1": ("fc2",),
    },
    "gpt2": {"ln_1": ("attn.c_attn",), "attn.c_attn": ("attn.c_proj",), "ln_2": ("mlp.c_fc",)},
    "neox": {
        "input_layernorm": ("attention.query_key_value",),
        "attention.query_key_value": ("attention.dense",),
        "post_attention_layernorm": ("mlp.dense_h_to_4h",),
    },
    "bloom": {
        "input_layernorm": ("self_attention.query_key_value",),
        "self_attention.query_key_value": ("self_attention.dense",),
        "post_attention_layernorm": ("mlp.dense_h_to_4h",),
    },
    "phi": {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"),
        "self_attn.v_proj": ("self_attn.dense",),
    },
}
STUCK = {  # the layer after a GELU, and what feeds it
    "gpt2": ("mlp.c_proj", "mlp.c_fc"),
    "neox": ("mlp.dense_4h_to_h", "mlp.dense_h_to_4h"),
    "bloom": ("mlp.dense_4h_to_h", "mlp.dense_h_to_4h"),
    "phi": ("mlp.fc2", "mlp.fc1"),
}
IDS = torch.arange(16).reshape(2, 8)


def wiring(folds):
    return {f.producer: f.consumers for f in folds}


def first(model):
    """The folds and the reasons of the first block."""
    return next(iter(model_folds(model, IDS).values()))


def random_scale(width, seed=0):
    return torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3.9 + 0.1


def difference(model, folds, ids):
    """By how much folding random scales changes the logits, relative to the largest."""
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for name, found in folds.items():
            for seed, f in enumerate(found):
                fold(model.get_submodule(name), f, random_scale(f.width, seed))
        return ((model(input_ids=ids).logits - before).abs().max() / before.abs().max()).item()


def folds_of(model):
    return {name: found for name, (found, _) in model_folds(model, IDS).items()}


def test_every_architecture_has_exactly_its_folds(make_model, any_kind):
    model = make_model(any_kind)
    for name, (folds, reasons) in model_folds(model, IDS).items():
        assert wiring(folds) == EXPECTED[any_kind]
        assert list(wiring(folds)) == list(EXPECTED[any_kind])  # in the order of execution
        linears = {n for n, m in model.get_submodule(name).named_modules() if weight_of(m) is not None}
        consumers = [n for f in folds for n in f.consumers]
        assert len(consumers) == len(set(consumers))
        assert set(consumers) | set(reasons) == linears and not set(consumers) & set(reasons)


def test_the_layer_after_a_gelu_is_refused_with_the_reason(make_model, any_kind):
    _, reasons = first(make_model(any_kind))
    if any_kind not in STUCK:
        assert reasons == {}
        return
    layer, feeder = STUCK[any_kind]
    why = f"its input comes from {feeder} through an operation that does not commute with scaling"
    assert reasons == {layer: why}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_folding_keeps_the_function(make_model, any_kind, ids, dtype, bound):
    model = make_model(any_kind)
    folds = folds_of(model)
    assert difference(model.to(dtype), folds, ids) < bound


def test_each_fold_alone_keeps_the_function_and_moves_the_scale(make_model, any_kind, ids):
    model = make_model(any_kind).double()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        for name, folds in folds_of(model).items():
            for f in folds:
                copied = clone(model)
                block, seen = copied.get_submodule(name), []
                layer = block.get_submodule(f.consumers[-1])
                layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                copied(input_ids=ids)
                scale = random_scale(f.width)
                fold(block, f, scale)
                assert (copied(input_ids=ids).logits - logits).abs().max() < 1e-12 * logits.abs().max()
                torch.testing.assert_close(seen[1] * scale[f.index], seen[0], rtol=1e-9, atol=1e-12)


def test_a_wrong_index_or_a_missing_consumer_would_be_seen(make_model, ids):
    """The tests above can fail: they measure what they claim to measure."""
    for wrong in (
        lambda f: Fold(f.producer, f.consumers[:1], f.index, f.rows),
        lambda f: Fold(f.producer, f.consumers, f.index.flip(0), f.rows),
        lambda f: Fold(f.producer, f.consumers, f.index, f.rows.flip(0)),
    ):
        model = make_model("llama").double()
        name, folds = next(iter(folds_of(model).items()))
        assert difference(model, {name: [wrong(folds[0])]}, ids) > 1e-3


def test_index_and_rows_are_int64_on_the_cpu(make_model, any_kind):
    model = make_model(any_kind)
    for name, folds in folds_of(model).items():
        for f in folds:
            layer = weight_of(model.get_submodule(name).get_submodule(f.consumers[0]))
            assert f.index.dtype == f.rows.dtype == torch.int64
            assert f.index.shape == (layer.shape[1],) and f.width == len(f.rows)


def test_norms_and_gates_have_the_identity_as_index(make_model):
    for f in first(make_model("llama"))[0]:
        if f.producer != "self_attn.v_proj":
            assert torch.equal(f.index, torch.arange(f.width)) and torch.equal(f.rows, f.index)


@pytest.mark.parametrize(("heads", "groups", "size"), [(4, 2, 12), (4, 1, 8), (6, 3, 8), (1, 1, 48), (4, 4, 12)])
def test_a_value_channel_goes_to_every_head_of_its_group(make_model, heads, groups, size, ids):
    changes = {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": size}
    model = make_model("llama", **changes)
    f = next(f for f in first(model)[0] if f.producer == "self_attn.v_proj")
    expected = torch.arange(groups * size).reshape(groups, 1, size).expand(-1, heads // groups, -1).flatten()
    assert torch.equal(f.index, expected)
    assert difference(model.double(), folds_of(model), ids) < 1e-12


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("gpt2", torch.arange(96, 144)),  # [q | k | v]
        ("neox", torch.arange(144).view(4, 3, 12)[:, 2].flatten()),  # head by head
        ("bloom", torch.arange(144).view(4, 3, 12)[:, 2].flatten()),
    ],
)
def test_of_a_fused_qkv_only_the_values_are_scaled(make_model, kind, rows):
    model = make_model(kind)
    folds, _ = first(model)
    f = folds[1]
    assert torch.equal(f.rows, rows) and torch.equal(f.index, torch.arange(48))
    block = next(iter(model_folds(model, IDS)))
    module = model.get_submodule(block).get_submodule(f.producer)
    before, bias = weight_of(module).clone(), module.bias.clone()
    fold(model.get_submodule(block), f, torch.full((48,), 2.0))
    factor = torch.ones(144).index_fill(0, rows, 0.5)
    assert torch.equal(weight_of(module), before * factor[:, None]) and torch.equal(module.bias, bias * factor)


def test_a_fused_qkv_with_fewer_values_and_a_fused_gate(ids):
    import transformers

    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=97, hidden_size=48, intermediate_size=100, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = transformers.Phi3ForCausalLM(config).eval().double()
    folds, reasons = first(model)
    assert reasons == {} and len(folds) == 4
    assert torch.equal(folds[1].rows, torch.arange(72, 96)) and torch.equal(folds[3].rows, torch.arange(100, 200))
    assert difference(model, folds_of(model), ids) < 1e-12


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("qwen2", {"num_key_value_heads": 4}),
        ("opt", {"enable_bias": False}),
        ("opt", {"num_attention_heads": 1}),
        ("gpt2", {"n_head": 1}),
        ("neox", {"num_attention_heads": 1}),
        ("bloom", {"n_head": 1}),
        ("mistral", {"sliding_window": 3}),
        ("llama", {"attn_implementation": "eager"}),
        ("opt", {"attn_implementation": "eager"}),
        ("gpt2", {"attn_implementation": "eager"}),
        ("bloom", {"slow_but_exact": True}),
    ],
)
def test_variants_fold_as_their_kind(make_model, kind, changes, ids):
    model = make_model(kind, **changes)
    assert wiring(first(model)[0]) == EXPECTED[kind]
    assert difference(model.double(), folds_of(model), ids) < 1e-12


@pytest.mark.parametrize(
    ("kind", "changes", "producers", "layer", "why"),
    [
        (  # the residual starts after the norm
            "opt", {"do_layer_norm_before": False}, ["self_attn.v_proj", "fc1"], "fc1",
            "the output of self_attn_layer_norm also reaches final_layer_norm",
        ),
        (
            "bloom", {"apply_residual_connection_post_layernorm": True}, ["self_attention.query_key_value"],
            "self_attention.query_key_value",
            "the output of input_layernorm also reaches post_attention_layernorm",
        ),
        (
            "opt", {"activation_function": "gelu"},
            ["self_attn_layer_norm", "self_attn.v_proj", "final_layer_norm"], "fc2",
            "its input comes from fc1 through an operation that does not commute with scaling",
        ),
        (
            "phi", {"qk_layernorm": True}, ["input_layernorm", "self_attn.v_proj"], "mlp.fc2",
            "its input comes from mlp.fc1 through an operation that does not commute with scaling",
        ),
        (  # x^2 is not x
            "gpt2", {"activation_function": "relu2"}, ["ln_1", "attn.c_attn", "ln_2"], "mlp.c_proj",
            "its input comes from mlp.c_fc through an operation that does not commute with scaling",
        ),
        (  # equals ReLU for all but large numbers
            "gpt2", {"activation_function": "relu6"}, ["ln_1", "attn.c_attn", "ln_2"], "mlp.c_proj",
            "its input comes from mlp.c_fc through an operation that does not commute with scaling",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_folded_says_why(make_model, kind, changes, producers, layer, why, ids):
    model = make_model(kind, **changes)
    folds, reasons = first(model)
    assert list(wiring(folds)) == producers and reasons[layer] == why
    assert difference(model.double(), folds_of(model), ids) < 1e-12


def test_gated_relu_folds_and_gpt2_with_relu_too(make_model, ids):
    for kind, changes in (("gpt2", {"activation_function": "relu"}), ("llama", {"hidden_act": "relu"})):
        model = make_model(kind, **changes)
        folds, reasons = first(model)
        assert reasons == {} and len(folds) == 4
        assert difference(model.double(), folds_of(model), ids) < 1e-12


def test_gains_that_are_not_the_weight_are_refused(ids):
    import transformers

    config = transformers.GemmaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=100, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12,
    )  # fmt: skip
    model = transformers.GemmaForCausalLM(config).eval()
    folds, reasons = first(model)
    assert list(wiring(folds)) == ["self_attn.v_proj", "mlp.up_proj"]
    assert (
        reasons["mlp.up_proj"] == "multiplying the parameters of post_attention_layernorm does not multiply its output"
    )
    assert difference(model.double(), folds_of(model), ids) < 1e-12


def test_zeros_in_the_weights_hide_nothing(make_model, any_kind, ids):
    model = make_model(any_kind)
    expected = folds_of(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name and "wte" not in name:
                parameter[::3] = 0
                parameter[:, ::3] = 0
            elif parameter.dim() == 1:
                parameter[::2] = 0
    for name, folds in folds_of(model).items():
        for f, e in zip(folds, expected[name], strict=True):
            assert (f.producer, f.consumers) == (e.producer, e.consumers)
            assert torch.equal(f.index, e.index) and torch.equal(f.rows, e.rows)


class Toy(nn.Module):
    """A block made of what is given: `wire` computes the output from the modules and x."""

    def __init__(self, wire, **modules):
        super().__init__()
        self.wire = wire
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.wire(self, x)


def ask(toy, x=None):
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1)) if x is None else x
    return find_folds(toy, lambda block: block(x))


def lin(outputs=8):
    return nn.Linear(8, outputs)


def test_conv1d_and_linear_fold_alike():
    folds, _ = ask(Toy(lambda m, x: m.b(torch.relu(m.a(x))), a=Conv1D(5, 8), b=Conv1D(8, 5)))
    assert wiring(folds) == {"a": ("b",)}
    folds, _ = ask(Toy(lambda m, x: m.b(torch.relu(m.a(x))), a=Conv1D(8, 8), b=nn.Linear(8, 8)))
    assert wiring(folds) == {"a": ("b",)}


def test_a_permutation_on_the_way_is_found():
    order = torch.tensor([3, 1, 0, 2, 7, 6, 4, 5])
    toy = Toy(lambda m, x: m.b(m.norm(x)[..., order]), norm=nn.LayerNorm(8), b=lin())
    (f,), _ = ask(toy)
    assert torch.equal(f.index, order)


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (
            lambda m, x: m.b(m.norm(x)) + m.norm(x),
            "also reaches something other than linear layers",
        ),  # two calls, one leaves
        (
            lambda m, x: m.b(y := m.norm(x)) + y.mean(-1, keepdim=True),
            "also reaches something other than linear layers",
        ),
        (lambda m, x: m.b(y := m.norm(x)) + m.c(m.other(y)), "the output of norm also reaches other"),
        (lambda m, x: m.b(y := m.norm(x)) + m.c(torch.tanh(y)), "the output of norm also reaches c"),
        (
            lambda m, x: m.b(y := m.norm(x)) + m.c(y.flip(-1)),
            "b, c take the output channels of norm in different orders",
        ),
        (lambda m, x: m.b(m.norm(x)) + m.b(x), "its input comes from norm through an operation that does not commute"),
        (lambda m, x: m.b(m.norm(x) + x), "its input comes from norm through an operation that does not commute"),
        (
            lambda m, x: m.b(m.norm(x) * m.norm(x)),
            "its input comes from norm through an operation that does not commute",
        ),
        *(
            (wire, "its input comes from norm through an operation that does not commute")
            for wire in (
                lambda m, x: m.b(m.norm(x).clamp(-40, 40)),  # seen by large numbers only
                lambda m, x: m.b(torch.nn.functional.elu(m.norm(x))),  # by negative ones
                lambda m, x: m.b(torch.sinh(m.norm(x) * 1e-5)),  # in float64
                lambda m, x: m.b(m.norm(x) * (torch.arange(8) > 2)),  # channels that are always 0 belong to nobody
            )
        ),
        (
            lambda m, x: m.b(m.norm(x).clamp(-4, 4)),
            "its input comes from norm through an operation that does not commute",
        ),
        (
            lambda m, x: m.b(torch.cat([m.norm(x)[..., :4], x[..., 4:]], -1)),
            "its input comes from norm through an operation that does not commute",
        ),
        (lambda m, x: m.b(x), "its input comes from no norm with a gain and from no linear layer of the block"),
    ],
)
def test_a_fold_that_would_change_the_function_is_refused(wire, why):
    modules = {"norm": nn.LayerNorm(8), "other": nn.LayerNorm(8), "b": lin(), "c": lin()}
    toy = Toy(wire, **{name: modules[name] for name in wire.__code__.co_names if name in modules})
    folds, reasons = ask(toy)
    assert "norm" not in wiring(folds)
    assert why in reasons["b"]


def test_a_linear_layer_takes_one_fold_and_the_other_is_explained():
    toy = Toy(lambda m, x: m.c(m.a(x) * (y := m.b(x))) + m.d(y), a=lin(), b=lin(), c=lin(), d=lin())
    folds, reasons = ask(toy)
    assert wiring(folds) == {"a": ("c",)}
    assert reasons["d"] == "b also feeds c, which is scaled with another producer"


def test_nothing_is_folded_where_the_sample_does_not_reach():
    toy = Toy(lambda m, x: m.b(m.norm(x)), norm=nn.LayerNorm(8), b=lin(), expert=lin())
    folds, reasons = ask(toy)
    assert folds == [] and set(reasons) == {"b", "expert"}
    assert reasons["b"] == "the sample did not reach expert, so what feeds it is unknown"


def test_a_module_called_twice_folds_if_both_calls_do():
    folds, _ = ask(Toy(lambda m, x: m.b(m.norm(x)) + m.b(m.norm(2 * x)), norm=nn.LayerNorm(8), b=lin()))
    assert wiring(folds) == {"norm": ("b",)}
    folds, _ = ask(Toy(lambda m, x: m.b(m.norm(x) - m.norm(2 * x)), norm=nn.LayerNorm(8), b=lin()))
    assert wiring(folds) == {"norm": ("b",)}


def test_layers_that_work_in_place_do_not_spoil_the_probe():
    folds, _ = ask(Toy(lambda m, x: m.b(m.a(x).relu_()).add_(x), a=lin(), b=lin()))
    assert wiring(folds) == {"a": ("b",)}
    folds, _ = ask(Toy(lambda m, x: m.b(y := m.a(x)) + y.zero_(), a=lin(), b=lin()))
    assert wiring(folds) == {"a": ("b",)}


def test_a_norm_without_gain_and_one_within_qkit_layers(make_model):
    folds, reasons = ask(Toy(lambda m, x: m.b(m.norm(x)), norm=nn.LayerNorm(8, elementwise_affine=False), b=lin()))
    assert folds == [] and "no norm with a gain" in reasons["b"]
    model = make_model("llama")
    quantize(model, RTN(bits=8), include="*.q_proj")
    folds, reasons = first(model)
    assert list(wiring(folds)) == ["self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"]
    assert reasons["self_attn.k_proj"] == "the output of input_layernorm also reaches self_attn.o_proj"  # by q_proj


def test_dropout_is_off_in_the_probe_and_as_it_was_in_the_block():
    toy = Toy(lambda m, x: m.b(m.drop(m.norm(x))), norm=nn.LayerNorm(8), drop=nn.Dropout(0.5), b=lin()).train()
    assert wiring(ask(toy)[0]) == {"norm": ("b",)} and toy.training and toy.drop.training


def test_without_float64_the_probe_uses_float32(make_model):
    def refuse(x):
        if x.dtype == torch.float64:
            raise TypeError("no float64 here")
        return x

    toy = Toy(lambda m, x: m.c(torch.relu(m.b(refuse(m.norm(x))))), norm=nn.LayerNorm(8), b=lin(), c=lin())
    assert wiring(ask(toy)[0]) == {"norm": ("b",), "b": ("c",)}
    block, (hidden,) = (found := capture(make_model("llama"), [IDS]))[0][0], found[1]

    def run(module):
        module.register_forward_pre_hook(lambda _, args: (refuse(args[0]),))
        return block.run(hidden, 0, module)

    folds, _ = find_folds(block.module, run)
    assert wiring(folds) == LLAMA and list(wiring(folds)) == list(LLAMA)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_blocks_fold(make_model, any_kind, dtype):
    assert wiring(first(make_model(any_kind).to(dtype))[0]) == EXPECTED[any_kind]


def test_one_token_is_too_few(make_model):
    with pytest.raises(ValueError, match=r"has 1 token in a row.*give two or more"):
        model_folds(make_model("gpt2"), IDS[:, :1])


def test_finding_folds_changes_nothing(make_model, any_kind, ids, logits):
    model = make_model(any_kind)
    before, state = logits(model, ids), copy.deepcopy(model.state_dict())
    parameters, generator = list(model.parameters()), torch.get_rng_state()
    folds_of(model)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model, ids), before) and torch.equal(torch.get_rng_state(), generator)
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in model.modules())


def test_folding_replaces_parameters_and_leaves_the_original_of_a_clone_alone(make_model, any_kind, ids, logits):
    model = make_model(any_kind)
    before, copied = logits(model, ids), clone(model)
    for name, folds in folds_of(model).items():
        for f in folds:
            own = copied.get_submodule(name).get_submodule(f.producer)
            own.weight.requires_grad_(False)
            fold(copied.get_submodule(name), f, random_scale(f.width))
            assert not own.weight.requires_grad
            assert copied.get_submodule(name).get_submodule(f.consumers[0]).weight.requires_grad
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_keep_their_dtype_and_powers_of_two_are_exact(dtype):
    toy = Toy(lambda m, x: m.b(m.norm(x)), norm=nn.LayerNorm(8), b=lin()).to(dtype)
    (f,), _ = ask(toy, torch.randn(1, 4, 8, dtype=dtype))
    gain, weight, bias = (toy.norm.weight.clone(), toy.b.weight.clone(), toy.b.bias.clone())
    fold(toy, f, torch.full((8,), 4.0))
    assert toy.norm.weight.dtype == toy.b.weight.dtype == dtype
    assert torch.equal(toy.norm.weight, gain / 4) and torch.equal(toy.b.weight, weight * 4)
    assert torch.equal(toy.b.bias, bias)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (
            [1, 1, 0, 1, 1, 1, 1, 1],
            r"the scale for norm is 0\.0 at channel 2; scales must be finite and greater than 0",
        ),
        ([1, -1, 1, 1, 1, 1, 1, 1], r"the scale for norm is -1\.0 at channel 1"),
        ([1, 1, 1, 1, 1, 1, 1, float("inf")], "the scale for norm is inf at channel 7"),
        ([float("nan"), 1, 1, 1, 1, 1, 1, 1], "the scale for norm is nan at channel 0"),
        ([1, 1, 1], r"the scale for norm has shape \[3\]; it needs one number per channel of its output: shape \[8\]"),
        ([1e6] * 8, r"b\.weight would leave the range of torch\.float16 when norm is divided by 1e\+06 to 1e\+06"),
        ([1e-6] * 8, r"norm\.weight would leave the range of torch\.float16"),
    ],
)
def test_bad_scales_are_refused_and_nothing_changes(scale, message):
    toy = Toy(lambda m, x: m.b(m.norm(x)), norm=nn.LayerNorm(8), b=lin()).half()
    (f,), _ = ask(toy)
    before = dict(toy.named_parameters())
    with pytest.raises(ValueError, match=message):
        fold(toy, f, torch.tensor(scale, dtype=torch.float32))
    assert all(value is before[name] for name, value in toy.named_parameters())


def share_mlp(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp


def share_norm(model):
    model.model.layers[1].input_layernorm = model.model.layers[0].input_layernorm


def norm_elsewhere(model):
    model.model.norm = model.model.layers[1].post_attention_layernorm


def norm_twice_in_a_block(model):
    for layer in model.model.layers:
        layer.post_attention_layernorm = layer.input_layernorm


def share_parameter(model):
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight


def share_memory(model):
    memory = model.model.layers[0].self_attn.v_proj.weight.data
    model.model.layers[1].self_attn.v_proj.weight = nn.Parameter(memory)


SHARING = {
    share_mlp: {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    share_norm: {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    norm_elsewhere: {"mlp.gate_proj", "mlp.up_proj"},
    norm_twice_in_a_block: {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"},
    share_parameter: {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    share_memory: {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
}


@pytest.mark.parametrize("share", SHARING)
def test_nothing_is_folded_into_what_is_elsewhere_too(make_model, ids, share):
    model = make_model("llama")
    share(model)
    folds = folds_of(model)
    for folded, reasons in model_folds(model, IDS).values():
        left = SHARING[share] if share is not norm_elsewhere or reasons else set()
        assert set(reasons) == left and all("is shared with model." in why for why in reasons.values())
        assert not left & {name for f in folded for name in f.consumers}
    assert difference(model.double(), folds, ids) < 1e-12


@pytest.mark.filterwarnings("ignore:320 calibration tokens")
@pytest.mark.parametrize("share", SHARING)
@pytest.mark.parametrize(("scheme", "plain"), [(AWQ(8, None), RTN(8)), (SmoothQuant(), W8A8())])
def test_a_scheme_that_scales_keeps_the_function_of_a_model_that_shares(make_model, logits, share, scheme, plain):
    ids = torch.randint(0, 97, (8, 40), generator=torch.Generator().manual_seed(1))
    model = make_model("llama")
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.05, 4, generator=torch.Generator().manual_seed(len(name)))
    share(model)
    before, unscaled = logits(model, ids), clone(model)
    quantize(unscaled, plain)
    report = quantize(model, scheme, calibration=ids)
    assert (logits(model, ids) - before).norm() < 1.3 * (logits(unscaled, ids) - before).norm() < 0.1 * before.norm()
    assert any("is shared with" in warning for warning in report.warnings)


def test_falcon_folds_though_its_layers_are_of_a_subclass(ids):
    for changes in ({"alibi": False, "bias": True, "new_decoder_architecture": False}, {"parallel_attn": False}):
        model = falcon(**changes)
        folds, _ = first(model)
        assert {"self_attention.query_key_value", "mlp.dense_h_to_4h"} <= {n for f in folds for n in f.consumers}
        assert difference(model.double(), folds_of(model), ids) < 1e-12


def test_a_patched_block_is_probed_by_itself(make_model, ids):
    model = make_model("llama")
    for layer in (*model.model.layers, model.model.layers[0].mlp):

        def patch(module, original):
            module.forward = lambda *args, **kwargs: original(*args, **kwargs)

        patch(layer, layer.forward)
    assert wiring(first(model)[0]) == LLAMA
    assert difference(model.double(), folds_of(model), ids) < 1e-12
