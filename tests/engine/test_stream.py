"""Whole models through every scheme: what each layer was solved on, what comes out, and what is left as it was."""

import copy
import gc
import warnings
from collections import deque
from importlib import import_module

import pytest
import torch
from torch import nn

from grids import thinned
from qkit import AWQ, FP4, GPTQ, NF4, RTN, W8A8, LLMInt8, SmoothQuant, error_statistics, load, quantize, save
from qkit.engine.stream import solve_blocks
from qkit.methods.awq import awq_round
from qkit.methods.codebook import codebook_quantize
from qkit.methods.gptq import gptq
from qkit.methods.int8 import int8_rows
from qkit.methods.rtn import rtn
from qkit.methods.statistics import InputStatistics
from qkit.model.surgery import find_targets, weight_of
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.layers import quantized_layers
from qkit.nn.qlinear import QLinear

WEIGHT_ONLY = [RTN(4, 4), NF4(32), FP4(64, False), GPTQ(4, 4), GPTQ.paper(3, None), AWQ(3, 4)]
WEIGHT_ONLY += [AWQ(4, 4, rounding=GPTQ(4, 4))]
GPTQ8 = GPTQ(8, None, symmetric=True)
INTEGER = [LLMInt8(0.5), W8A8(), W8A8("per-tensor"), W8A8("per-tensor", "percentile"), W8A8("per-tensor", "mse")]
INTEGER += [SmoothQuant(), SmoothQuant(None), SmoothQuant(0.8, "per-tensor", "mse"), SmoothQuant(0.5, rounding=GPTQ8)]
named = {"ids": lambda scheme: scheme.name}


@pytest.fixture
def tokens():
    """384 of them, more than a layer of the tiny models has inputs (Bloom's 192)."""
    return torch.randint(0, 97, (8, 48), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def linears(model):
    return {target.name for target in find_targets(model)[0]}


def snapshot(model):
    modules = dict(model.named_modules(remove_duplicate=False))
    state = model.state_dict(keep_vars=True)
    return modules, state, {name: tensor.detach().clone() for name, tensor in state.items()}


def assert_untouched(model, before):
    modules, state, values = before
    now, tensors = dict(model.named_modules(remove_duplicate=False)), model.state_dict(keep_vars=True)
    assert now.keys() == modules.keys() and all(now[name] is module for name, module in modules.items())
    assert tensors.keys() == state.keys()
    for name, tensor in tensors.items():
        assert tensor is state[name] and torch.equal(tensor.nan_to_num(), values[name].nan_to_num()), name
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in now.values())


@torch.no_grad()
def heard(model, ids, names):
    """The inputs [tokens, in] of each layer in one run of the model."""
    found = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, n=name: found.update({n: args[0]}))
        for name in names
    ]
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: x.flatten(0, -2) for name, x in found.items()}


# --- what comes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", WEIGHT_ONLY, **named)
def test_a_weight_only_scheme_is_the_float_model_with_its_dequantized_weights(
    make_model, any_kind, scheme, tokens, ids, logits
):
    model, plain = make_model(any_kind), make_model(any_kind)
    names = linears(model)
    report = quantize(model, scheme, calibration=tokens)
    report.scaling.apply(plain)
    layers = quantized_layers(model)
    assert layers.keys() == names == {row.name for row in report.layers}
    for row in report.layers:
        weight, q = weight_of(plain.get_submodule(row.name)), layers[row.name].qtensor
        assert row.error == error_statistics(weight.detach(), q.dequantize())
        assert row.scheme == scheme.name
        assert row.tokens == (tokens.numel() if scheme.calibrated else None)
        inner = getattr(scheme, "rounding", None) or scheme
        assert row.notes == ({"damp": inner.damp, "damped_more": False} if scheme.sequential else {})
        with torch.no_grad():
            weight.copy_(q.dequantize())
    found, expected = logits(model.double(), ids), logits(plain.double(), ids)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("scheme", INTEGER, **named)
def test_an_integer_scheme_has_int8_weights_and_nearly_the_logits_of_the_original(
    make_model, any_kind, scheme, tokens, ids, logits
):
    model, plain = make_model(any_kind), make_model(any_kind)
    report = quantize(model, scheme, calibration=tokens)
    report.scaling.apply(plain)
    layers = quantized_layers(model)
    assert layers.keys() == linears(plain)
    for row in report.layers:
        layer, weight = layers[row.name], weight_of(plain.get_submodule(row.name))
        assert type(layer) is Int8Linear
        assert ("outlier_columns" in row.notes) is isinstance(scheme, LLMInt8)
        assert layer.activations.granularity == getattr(scheme, "activations", "per-token")
        assert layer.threshold == getattr(scheme, "threshold", 0)
        if not scheme.sequential:
            assert torch.equal(layer.packed, int8_rows(weight).packed)
        counted = scheme.calibrated or isinstance(scheme, LLMInt8)
        assert row.tokens == (tokens.numel() if counted else None)
    found, expected = logits(model, ids), logits(plain, ids)
    assert found.isfinite().all()
    assert (found - expected).square().mean().sqrt() < 0.2 * expected.std()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("scheme", [*WEIGHT_ONLY, *INTEGER], **named)
def test_every_scheme_is_saved_and_loaded_bit_for_bit(make_model, kind, scheme, tokens, ids, logits, tmp_path):
    model = make_model(kind)
    quantize(model, scheme, calibration=tokens)
    save(model, tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")[0], ids), logits(model, ids))


@pytest.mark.parametrize("scheme", [GPTQ(3, 4), AWQ(3, 4), SmoothQuant(None, "per-tensor")], **named)
def test_the_same_call_gives_the_same_bits(make_model, scheme, tokens):
    models = make_model("llama"), make_model("llama")
    for model in models:
        quantize(model, scheme, calibration=tokens)
    a, b = (model.state_dict() for model in models)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scheme", [GPTQ(4, 4), AWQ(4, 4), SmoothQuant(0.5, "per-tensor"), LLMInt8()], **named)
def test_models_of_other_dtypes(make_model, dtype, scheme, tokens, ids, logits):
    model = make_model("llama").to(dtype)
    plain = copy.deepcopy(model)
    quantize(model, scheme, calibration=tokens)
    found, expected = logits(model, ids), logits(plain, ids)
    assert found.dtype == dtype and {p.dtype for p in model.parameters()} == {dtype}
    assert (found - expected).float().square().mean().sqrt() < 0.5 * expected.float().std()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept_and_dropout_is_off_while_calibrating(make_model, training, tokens):
    model = make_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).train(training)
    quiet = make_model("gpt2")
    quantize(model, GPTQ(4, 4), calibration=tokens)
    quantize(quiet, GPTQ(4, 4), calibration=tokens)
    assert {module.training for module in model.modules()} == {training}
    a, b = model.state_dict(), quiet.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_requires_grad_is_kept(make_model, tokens):
    model = make_model("llama").requires_grad_(False)
    model.model.norm.requires_grad_(True)
    quantize(model, AWQ(4, 4), calibration=tokens)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["model.norm.weight"]


# --- what each layer was solved on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [GPTQ(3, 4), GPTQ.paper(3, None)], **named)
def test_gptq_solves_each_layer_on_the_inputs_it_will_have(make_model, any_kind, scheme, tokens):
    """Those that the finished quantized model gives it; and it is compared with those that the original gives."""
    model, original = make_model(any_kind), make_model(any_kind)
    names = linears(original)
    quantize(model, scheme, calibration=tokens)
    now, before = heard(model, tokens, names), heard(original, tokens, names)
    for name, layer in quantized_layers(model).items():
        x = now[name]
        statistics = InputStatistics.empty(x.shape[1], wants=frozenset({"square", "drift"}))
        statistics.add(x, before[name] if scheme.match_original else None)
        expected = gptq(weight_of(original.get_submodule(name)), statistics, scheme).q
        assert torch.equal(layer.packed, expected.packed), name
        assert torch.equal(layer.scales, expected.scales), name


def test_static_scales_are_the_largest_inputs_of_a_block_in_float_behind_quantized_ones(make_model, any_kind, tokens):
    model, original = make_model(any_kind), make_model(any_kind)
    names = linears(original)
    quantize(model, W8A8("per-tensor"), calibration=tokens)
    blocks = sorted({name.split(".")[i] for name in names for i in range(4) if name.split(".")[i].isdigit()})
    for number in blocks:
        half = make_model(any_kind)  # quantized up to this block
        for name, layer in quantized_layers(model).items():
            if f".{number}." > next(f".{part}." for part in name.split(".") if part.isdigit()):
                half.set_submodule(name, layer)
        mine = [name for name in names if f".{number}." in name]
        for name, x in heard(half, tokens, mine).items():
            assert model.get_submodule(name).input_scale == x.abs().max() / 127, name


def test_awq_clips_on_the_inputs_of_the_scaled_block(make_model, any_kind, tokens):
    model, original = make_model(any_kind), make_model(any_kind)
    names = sorted(name for name in linears(original) if ".0." in name)
    scheme = AWQ(3, 4)
    report = quantize(model, scheme, calibration=tokens, include=names)
    report.scaling.apply(original)
    for name, x in heard(original, tokens, names).items():
        statistics = InputStatistics.empty(x.shape[1], wants=frozenset({"square"}))
        statistics.add(x)
        expected = awq_round(weight_of(original.get_submodule(name)), statistics, scheme)
        codes = model.get_submodule(name).qtensor.codes()
        # The statistics of the scaled inputs are computed from those of the inputs: other roundings
        assert (codes != expected.codes()).float().mean() < 0.01, name


def test_llm_int8_counts_the_columns_with_an_outlier(make_model, tokens):
    model, original = make_model("llama"), make_model("llama")
    report = quantize(model, LLMInt8(1.5), calibration=tokens)
    found = {row.name: row.outlier_columns for row in report.layers}
    mine = [name for name in found if ".0." in name]
    for name, x in heard(original, tokens, mine).items():
        assert found[name] == int((x.abs() >= 1.5).any(0).sum())
    assert len(set(found.values())) > 3


def test_layers_outside_the_blocks_are_solved_by_their_weights(make_model, tokens):
    model, original = make_model("llama"), make_model("llama")
    report = quantize(model, GPTQ(4, 4), calibration=tokens, include=["lm_head", "*.down_proj"])
    head = next(row for row in report.layers if row.name == "lm_head")
    assert head.tokens == 0
    assert "lm_head was never reached by calibration: it is rounded to nearest" in report.warnings
    expected = gptq(original.lm_head.weight, None, GPTQ(4, 4)).q
    assert torch.equal(model.lm_head.packed, expected.packed)


# --- several schemes in one model ---------------------------------------------------------------------------------------


def test_the_first_glob_decides(make_model, tokens, ids, logits):
    model, original = make_model("llama"), make_model("llama")
    plan = {"*.1.mlp.down_proj": LLMInt8(), "*.mlp.*": RTN(8), "*.o_proj": NF4(32), "*": GPTQ(4, 4)}
    report = quantize(model, plan, calibration=tokens)
    for row in report.layers:
        layer = model.get_submodule(row.name)
        weight = weight_of(original.get_submodule(row.name))
        if row.name == "model.layers.1.mlp.down_proj":
            assert type(layer) is Int8Linear and row.scheme == "LLM.int8"
        elif ".mlp." in row.name:
            assert row.scheme == "RTN W8 per channel" and torch.equal(layer.packed, rtn(weight, RTN(8)).packed)
        elif "o_proj" in row.name:
            assert row.scheme == NF4(32).name and torch.equal(layer.packed, codebook_quantize(weight, NF4(32)).packed)
        else:
            assert row.scheme == "GPTQ W4 g4" and row.damp == 0.05
    assert report.scheme["layers"]["*"] == GPTQ(4, 4).to_dict()
    assert logits(model, ids).isfinite().all()


def test_what_one_scheme_leaves_to_the_next_is_what_gptq_is_solved_on(make_model, tokens):
    """Layers that round by their weights alone are in place before GPTQ listens to the others of their block."""
    model, original = make_model("llama"), make_model("llama")
    plan = {"*.v_proj": RTN(2, 4), "*": GPTQ.paper(4, 4)}
    quantize(model, plan, calibration=tokens)
    name = "model.layers.0.self_attn.o_proj"
    statistics = InputStatistics.empty(48, wants=frozenset({"square"}))
    statistics.add(heard(model, tokens, [name])[name])
    expected = gptq(original.get_submodule(name).weight, statistics, GPTQ.paper(4, 4)).q
    assert torch.equal(model.get_submodule(name).packed, expected.packed)


def test_layers_that_share_an_input_and_have_different_schemes_are_not_scaled_and_named(
    make_model, tokens, ids, logits
):
    model, plain = make_model("llama"), make_model("llama")
    report = quantize(model, {"*.gate_proj": RTN(4, 4), "*": AWQ(4, 4)}, calibration=tokens)
    scaled = {f"{one.block}.{name}" for one in report.scaling for name in one.fold.consumers}
    assert not any("gate_proj" in name or "up_proj" in name for name in scaled)
    assert {name for name in scaled if ".0." in name} == {
        f"model.layers.0.{leaf}"
        for leaf in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    }
    for i in (0, 1):
        assert any(note.startswith(f"model.layers.{i}.mlp.up_proj could not be scaled: ") for note in report.warnings)
    assert not any("gate_proj" in note for note in report.warnings)
    report.scaling.apply(plain)
    with torch.no_grad():
        for name, layer in quantized_layers(model).items():
            weight_of(plain.get_submodule(name)).copy_(layer.qtensor.dequantize())
    assert torch.equal(logits(model, ids), logits(plain, ids))


def test_awq_and_smoothquant_in_one_model(make_model, tokens, ids, logits):
    model, plain = make_model("llama"), make_model("llama")
    report = quantize(model, {"*.mlp.*": SmoothQuant(0.5), "*": AWQ(8, 4)}, calibration=tokens)
    assert type(model.model.layers[0].mlp.up_proj) is Int8Linear
    assert type(model.model.layers[0].self_attn.q_proj) is QLinear
    assert len(report.scaling) == 8 and not report.warnings
    found, expected = logits(model, ids), logits(plain, ids)
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()


@pytest.mark.parametrize(
    ("scheme", "alone"),
    [(AWQ(3, 4, rounding=GPTQ(3, 4)), GPTQ(3, 4)), (SmoothQuant(0.5, rounding=GPTQ8), GPTQ8)],
    ids=["AWQ", "SmoothQuant"],
)
def test_what_scales_hands_its_scaled_weights_and_inputs_to_gptq(make_model, scheme, alone, tokens):
    """The first layers of the first block: their inputs in the finished model are scaled, and nothing before is rounded."""
    model, original = make_model("llama"), make_model("llama")
    report = quantize(model, scheme, calibration=tokens)
    report.scaling.apply(original)
    name = "model.layers.0.self_attn.q_proj"
    x = heard(original, tokens, [name])[name]
    statistics = InputStatistics.empty(48, wants=frozenset({"square", "drift"}))
    statistics.add(x, x)
    solved = alone.round(original.get_submodule(name).weight, statistics)
    expected, damp = solved.q, solved.notes["damp"]
    assert torch.equal(model.get_submodule(name).packed, expected.packed)
    assert report.layers[0].damp == damp == 0.05


# --- nothing is half done -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("scheme", [GPTQ(4, 4), AWQ(4, 4), SmoothQuant(0.5, "per-tensor")], **named)
def test_what_breaks_off_in_the_second_block_leaves_the_model_as_it_was(
    make_model, kind, scheme, error, tokens, monkeypatch
):
    model = make_model(kind).train()
    stream, calls = import_module("qkit.engine.stream"), []
    solve_layer = stream.solve_layer

    def interrupted(weight, bias, scheme, inputs, name):
        calls.append(name)
        if ".1." in name and sum(".1." in call for call in calls) == 3:
            raise error("enough")
        return solve_layer(weight, bias, scheme, inputs, name)

    monkeypatch.setattr(stream, "solve_layer", interrupted)
    before = snapshot(model)
    expected = {KeyboardInterrupt: "enough"}.get(
        error, r"memory ran out .*\(enough\); the model is as it was: give fewer"
    )
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else MemoryError, match=expected):
        quantize(model, scheme, calibration=tokens)
    assert_untouched(model, before)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "scheme", [GPTQ(4, 4), AWQ(4, 4), SmoothQuant(), SmoothQuant(None), W8A8("per-tensor"), LLMInt8()], **named
)
def test_a_nan_in_the_activations_is_refused_naming_the_layer(make_model, kind, scheme, tokens):
    model = make_model(kind)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokens[5, 7], 3] = float("nan")
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"the calibration statistics of \S+\.0\.\S+ \(sums .*\) holds \d+ NaN .* exclude="
    ):
        quantize(model, scheme, calibration=tokens)
    assert_untouched(model, before)


@pytest.mark.parametrize("scheme", [GPTQ(4), AWQ(4), AWQ(4, 16, rounding=GPTQ(4, 16))], **named)
def test_a_group_size_that_one_layer_refuses_is_refused_before_anything_runs(make_model, kind, scheme, tokens):
    model = make_model(kind)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"group_size=(128|16) does not divide in_features=\d+ of \S+; use a divisor \(.*\d"
    ):
        quantize(model, scheme, calibration=tokens)
    assert_untouched(model, before)


@pytest.mark.parametrize("scheme", [GPTQ(4, 4), AWQ(4, 4), SmoothQuant(), W8A8("per-tensor")], **named)
def test_missing_calibration_is_refused(make_model, scheme):
    model = make_model("llama")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"learns from data and was given none; give calibration=qkit\.texts\("):
        quantize(model, scheme)
    assert_untouched(model, before)


def test_a_quantized_model_is_refused(make_model, tokens):
    model = make_model("llama")
    quantize(model, GPTQ(4, 4), calibration=tokens)
    with pytest.raises(ValueError, match="its 14 linear layers are quantized already"):
        quantize(model, AWQ(4, 4), calibration=tokens)


def test_the_rest_of_a_partly_quantized_model_is_quantized(make_model, tokens, ids, logits):
    model = make_model("llama")
    quantize(model, RTN(8), include="*.mlp.*")
    quantize(model, GPTQ(4, 4), calibration=tokens)
    assert len(quantized_layers(model)) == 14
    assert logits(model, ids).isfinite().all()


def test_an_unknown_architecture_is_refused_saying_what_was_looked_for():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"unknown architecture: .* a ModuleList of blocks .* found 0 \(Linear\)"):
        quantize(model, GPTQ(4, 4), calibration=torch.zeros(2, 4, dtype=torch.long))
    assert_untouched(model, before)
    quantize(model, W8A8())


class Odd(nn.Module):
    """Blocks with a layer that is called twice, and one that is never called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(OddBlock() for _ in range(2))

    def forward(self, input_ids, use_cache=False):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return x


class OddBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.twice, self.never, self.once = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, hidden):
        return hidden + self.once(torch.tanh(self.twice(torch.tanh(self.twice(self.norm(hidden))))))


@pytest.mark.parametrize("scheme", [GPTQ(4, 8), AWQ(4, 8), W8A8("per-tensor"), SmoothQuant(0.5, "per-tensor")], **named)
def test_a_layer_that_is_never_called_is_rounded_and_named(scheme):
    model, original = Odd(), Odd()
    ids = torch.randint(0, 50, (4, 20), generator=torch.Generator().manual_seed(0))
    report = quantize(model, scheme, calibration=ids)
    tokens = {row.name.split(".", 1)[1]: row.tokens for row in report.layers}
    assert tokens == {f"{i}.{name}": n for i in (0, 1) for name, n in (("twice", 160), ("never", 0), ("once", 80))}
    for i in (0, 1):
        note = f"blocks.{i}.never was never reached by calibration: it is rounded to nearest"
        assert note in report.warnings
        expected = scheme.round(original.blocks[i].never.weight).q
        assert torch.equal(model.blocks[i].never.packed, expected.packed)
    assert model(ids).isfinite().all()


def test_too_few_tokens_are_warned_of_with_both_numbers(make_model):
    with pytest.warns(
        UserWarning, match=r"40 calibration tokens are fewer than the 100 inputs of \S+down_proj .* 13 more"
    ):
        report = quantize(make_model("llama"), GPTQ(4, 4), calibration=torch.arange(40).reshape(2, 20))
    assert sum("40 calibration tokens are fewer" in note for note in report.warnings) == 1


def test_more_damping_than_asked_for_is_reported(make_model):
    with pytest.warns(UserWarning, match="fewer"):
        report = quantize(
            make_model("llama"), GPTQ(4, 4, damp=0.0, shrink=0.0), calibration=torch.arange(20).reshape(2, 10)
        )
    assert all(row.damped_more and row.damp > 0 for row in report.layers)
    assert sum(note.startswith("the Hessian of ") for note in report.warnings) == 14
    assert "the Hessian of model.layers.0.mlp.down_proj had to be damped by " in " ".join(report.warnings)


# --- memory -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [GPTQ(4, 4), AWQ(4, 4), SmoothQuant(0.5, "per-tensor")], **named)
def test_memory_does_not_grow_with_depth(make_model, scheme, tokens, monkeypatch):
    """Live tensors that are not the model's, counted once in every block; its results are forgotten."""
    stream = import_module("qkit.engine.stream")
    solve_layer, seen = stream.solve_layer, []

    def counting(*args):
        if not args[-1].endswith("down_proj"):
            return solve_layer(*args)
        gc.collect()
        own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        live = {}
        for thing in gc.get_objects():
            if type(thing) in (torch.Tensor, nn.Parameter) and thing.untyped_storage().data_ptr() not in own:
                live[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        seen.append(sum(live.values()))
        return solve_layer(*args)

    monkeypatch.setattr(stream, "solve_layer", counting)
    peaks = []
    gc.collect()
    gc.freeze()  # what lives already is neither collected nor counted: this is what makes counting cheap
    try:
        for depth in (4, 10):
            model = make_model("llama", num_hidden_layers=depth)
            seen.clear()
            deque(solve_blocks(model, dict.fromkeys(linears(model), scheme), tokens), maxlen=0)  # no block is kept
            assert len(seen) == depth
            peaks.append(max(seen))
    finally:
        gc.unfreeze()
    assert peaks[1] - peaks[0] < 6 * 4096  # of six more blocks; the codes and scales of one alone are 27 kB
    assert peaks[0] > 2 * tokens.numel() * 48 * 4  # the two streams at least: the count does see them


# --- one module under several names -------------------------------------------------------------------------------------


def share_mlp(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp


def share_a_layer(model):
    model.model.layers[1].self_attn.o_proj = model.model.layers[0].self_attn.o_proj


def share_within(model):
    model.model.layers[0].mlp.up_proj = model.model.layers[0].mlp.gate_proj


def share_outside(model):
    model.twin = model.model.layers[1].mlp.down_proj


SHARED = {
    share_mlp: ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"),
    share_a_layer: ("model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"),
    share_within: ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"),
    share_outside: ("model.layers.1.mlp.down_proj", "twin"),
}


@pytest.mark.parametrize("share", SHARED, ids=lambda share: share.__name__)
@pytest.mark.parametrize(
    "scheme", [RTN(4, 4), GPTQ(4, 4), AWQ(4, 4), W8A8("per-tensor"), SmoothQuant(rounding=GPTQ(8, None, True))], **named
)
def test_a_module_of_two_names_is_solved_once_and_reported_as_it_is(
    make_model, share, scheme, tokens, ids, logits, tmp_path
):
    model, again = make_model("llama"), make_model("llama")
    for one in (model, again):
        share(one)
    expected = logits(model, ids)
    every = {"include": ["*_proj", "twin"]} if share is share_outside else {}  # at the top it would be taken for a head
    report = quantize(model, scheme, calibration=tokens, resume=tmp_path, **every)
    first, second = SHARED[share]
    assert model.get_submodule(first) is model.get_submodule(second)
    rows = {row.name: row for row in report.layers}
    assert (first in rows) != (second in rows)
    if not scheme.scales:  # scales change the weight, and the report is about the scaled one
        row = rows.get(first) or rows[second]
        weight = weight_of(again.get_submodule(first))
        assert row.error == error_statistics(weight.detach(), model.get_submodule(first).weight)
    found = logits(model, ids)
    assert (found - expected).norm() < 0.3 * expected.norm()
    resumed = make_model("llama")
    share(resumed)
    quantize(resumed, scheme, calibration=tokens, resume=tmp_path, **every)
    assert torch.equal(logits(resumed, ids), found)


def compile_parts(model, parts):
    """Every module of these names is compiled by itself; their layers have hooks that compiled code does not call."""
    for name in [name for name, _ in model.named_modules() if name.rpartition(".")[2] in parts]:
        model.set_submodule(name, torch.compile(model.get_submodule(name), backend="eager"))


@pytest.mark.parametrize(
    "scheme", thinned([GPTQ(4, 4), AWQ(4, 4), SmoothQuant(), W8A8("per-tensor")], [AWQ(4, 4)]), **named
)
@pytest.mark.parametrize("parts", [("0", "1"), ("self_attn", "mlp")], ids=["blocks", "parts of blocks"])
def test_a_model_of_compiled_parts_is_quantized_as_if_they_were_not(make_model, tokens, logits, scheme, parts):
    torch.compiler.reset()
    plain, model = make_model("llama"), make_model("llama")
    compile_parts(model, parts)
    logits(model, tokens)
    quantize(plain, scheme, calibration=tokens)
    report = quantize(model, scheme, calibration=tokens)
    assert {layer.tokens for layer in report.layers} == {tokens.numel()}
    assert torch.equal(logits(model, tokens), logits(plain, tokens))
