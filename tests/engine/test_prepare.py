"""One front door: whoever takes a model, a plan and a text says no in the same words, and has done nothing yet."""

import pytest
import torch
from torch import nn

import qkit
from qkit.model.surgery import clone
from qkit.nn.layers import quantized_layers

IDS = torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(0))
AWQ = qkit.AWQ(4, 4)
DOORS = {
    "quantize": lambda model, ids, scheme=AWQ: qkit.quantize(model, scheme, calibration=ids),
    "sensitivity": lambda model, ids, scheme=AWQ: qkit.sensitivity(model, [scheme], calibration=ids),
    "search_scales": lambda model, ids, scheme=AWQ: qkit.search_scales(model, scheme, calibration=ids),
    "compare": lambda model, ids, scheme=AWQ: qkit.compare(model, [scheme], IDS, calibration=ids),
}
TEXT_DOORS = {
    **DOORS,
    "tune": lambda model, ids: qkit.tune(*tuned(model), calibration=ids, epochs=1),
}


def tuned(model):
    copy = clone(model)
    qkit.quantize(copy, qkit.RTN(4))
    return copy, model


def said_by(doors, *args):
    """What each door says, and of which kind."""
    said = {}
    for name, door in doors.items():
        with pytest.raises((ValueError, TypeError)) as caught:
            door(*args)
        said[name] = f"{caught.type.__name__}: {caught.value}"
    return said


def test_a_broken_weight_is_named_in_the_same_words(llama):
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[2, 3] = torch.nan
    said = said_by(DOORS, llama, IDS)
    assert len(set(said.values())) == 1, said
    assert said["quantize"].startswith("ValueError: model.layers.1.mlp.up_proj holds 1 NaN")


@pytest.mark.parametrize(
    "ids",
    [
        IDS + 97,
        torch.where(IDS > 90, -100, IDS),
        IDS.float(),
        IDS[0],
        IDS.bool(),
        torch.zeros(2, 100, dtype=torch.int64),
        IDS.numpy(),
        [IDS[0], IDS[1]],
        [[1, 2, 3], [4, 5]],
        [{"input_ids": [1, 2, 3]}],
        {"input_ids": IDS},
        "a text without a tokenizer " * 9,
        "",
        [],
        ["", " "],
        7,
    ],
    ids=lambda ids: f"{type(ids).__name__} {str(getattr(ids, 'dtype', ids))[:24]}",
)
def test_a_calibration_that_cannot_be_read_is_refused_in_the_same_words(llama, ids):
    said = said_by(TEXT_DOORS, llama, ids)
    assert len(set(said.values())) == 1, said
    assert "; " in said["quantize"] and not quantized_layers(llama)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_ids_of_any_whole_dtype_are_the_same_ids(llama, dtype):
    expected, found = clone(llama), clone(llama)
    qkit.quantize(expected, qkit.GPTQ(4, 4), calibration=IDS)
    qkit.quantize(found, qkit.GPTQ(4, 4), calibration=IDS.to(dtype))
    state = expected.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("scheme", [None, "w4g128", 4, qkit.RTN, {"*": 4}])
def test_what_is_no_scheme_is_refused_by_all(llama, scheme):
    for name, message in said_by(DOORS, llama, IDS, scheme).items():
        assert message.startswith("TypeError: scheme=") and "is not a scheme" in message, name


def test_groups_that_do_not_divide_a_row_are_refused_by_all(llama):
    said = said_by(DOORS, llama, IDS, qkit.AWQ(4, 7))
    assert len(set(said.values())) == 1 and "group_size=7 does not divide in_features=48" in said["quantize"]


def test_a_model_that_is_none_is_refused_by_all():
    said = said_by(DOORS, {"weight": torch.ones(2, 2)}, IDS)
    assert len(set(said.values())) == 1 and said["quantize"].startswith("TypeError: model is a dict")


def test_an_architecture_that_calibration_cannot_walk_is_refused_by_all():
    said = said_by(DOORS, nn.Sequential(nn.Linear(8, 8)), IDS)
    assert len(set(said.values())) == 1 and "unknown architecture" in said["quantize"]


@pytest.mark.parametrize("door", TEXT_DOORS)
def test_dropout_is_off_inside_and_every_module_has_its_mode_afterwards(make_model, door):
    changes = {"attn_pdrop": 0.9, "resid_pdrop": 0.9, "embd_pdrop": 0.9}
    results = []
    for training in (False, True):
        torch.manual_seed(0)
        model = make_model("gpt2", **changes).train(training)
        model.transformer.h[0].mlp.eval()
        modes = [module.training for module in model.modules()]
        result = TEXT_DOORS[door](model, IDS)
        assert [module.training for module in model.modules()] == modes
        results.append(plain(result))
    assert results[0] == results[1]


def plain(result):
    """Its numbers, without what a clock says."""
    if isinstance(result, qkit.Scaling):
        return [(one.scale.tolist(), one.losses) for one in result]
    if isinstance(result, qkit.QuantizationReport):
        return result.to_dict()["layers"]
    if isinstance(result, qkit.Comparison):
        return [(row.name, row.perplexity, row.kl) for row in result.rows]
    return repr(result) if not hasattr(result, "to_dict") else result.to_dict()


@pytest.mark.parametrize("scheme", [qkit.RTN(4), qkit.GPTQ(4, 4), qkit.NF4(32), qkit.W8A8("per-tensor")])
def test_a_search_for_scales_needs_a_scheme_that_folds_some(llama, scheme):
    with pytest.raises(
        ValueError, match=r"folds no scales, so there is nothing to search; use one of: AWQ, SmoothQuant"
    ):
        qkit.search_scales(llama, scheme, calibration=IDS)


def test_sensitivity_tries_single_schemes_and_says_so(llama):
    with pytest.raises(TypeError, match=r"sensitivity tries each scheme on each layer.* no plan by layers"):
        qkit.sensitivity(llama, [{"*": qkit.RTN(4)}], calibration=IDS)
    with pytest.raises(ValueError, match="there are no schemes to try"):
        qkit.sensitivity(llama, [], calibration=IDS)


def test_a_scheme_that_nobody_knows_is_no_int8(llama):
    """It must say how it rounds, or it cannot be made: nothing falls back to another method."""

    class Unknown(qkit.RTN):
        """Rounds as it says, not as somebody guesses."""

        def round(self, weight, inputs=None, name="the weight"):
            raise ValueError(f"{name} is rounded by nobody; this is a test")

    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj is rounded by nobody"):
        qkit.quantize(llama, Unknown(4))
    assert not quantized_layers(llama)


def test_a_mixed_plan_is_called_by_all_its_schemes(llama):
    report = qkit.quantize(llama, {"*.down_proj": qkit.RTN(8), "*": qkit.NF4(32)})
    assert repr(report).startswith("QuantizationReport(NF4 b32 dq + RTN W8 per channel: 14 layers")


@pytest.mark.parametrize("max_chunks", [0, -1])
def test_no_chunks_are_no_calibration(llama, word_tokenizer, max_chunks):
    text = " ".join(f"w{i % 97:02}" for i in range(300))
    with pytest.raises(ValueError, match=f"max_chunks={max_chunks} leaves nothing to read"):
        qkit.quantize(
            llama, qkit.GPTQ(4, 4), calibration=text, tokenizer=word_tokenizer(bos_token="w00"), max_chunks=max_chunks
        )


def test_the_share_of_all_weights_stands_in_every_report(llama):
    whole = sum(p.numel() for p in llama.parameters())
    with pytest.warns(UserWarning, match=r"only \d+% of all weights are quantized; the most that is left, \d+%, is in"):
        report = qkit.quantize(llama, qkit.RTN(4), exclude="*.mlp.*")
    share = sum(a * b for a, b in (row.shape for row in report.layers)) / whole
    assert report.share == pytest.approx(share) and report.to_dict()["share"] == report.share
    assert (
        f"{share:.0%} of all weights quantized" in repr(report)
        and f"{share:.0%} of all weights" in report._repr_html_()
    )
    assert any("of all weights are quantized" in warning for warning in report.warnings)


@pytest.mark.parametrize("globs", [5, b"*", ["*", 5]])
@pytest.mark.parametrize("role", ["include", "exclude"])
def test_what_are_no_globs_is_a_type_error(llama, role, globs):
    for door in (
        lambda: qkit.quantize(llama, AWQ, calibration=IDS, **{role: globs}),
        lambda: qkit.sensitivity(llama, [AWQ], calibration=IDS, **{role: globs}),
        lambda: qkit.search_scales(llama, AWQ, calibration=IDS, **{role: globs}),
    ):
        with pytest.raises(TypeError, match="is neither a glob nor a list of globs on layer names; give"):
            door()


def test_to_include_nothing_is_not_to_include_by_the_rule(llama):
    with pytest.raises(ValueError, match=r"include=\[\] names no layer; leave it out for the rule"):
        qkit.quantize(llama, qkit.RTN(4), include=[])
    assert not quantized_layers(llama)


def test_a_key_of_a_plan_that_is_no_glob_is_a_type_error(llama):
    with pytest.raises(TypeError, match="5 is no glob on layer names; give schemes by globs"):
        qkit.quantize(llama, {"*.q_proj": qkit.RTN(4), 5: qkit.RTN(8)})


@pytest.mark.parametrize(
    "door", [lambda m, s: qkit.compare(m, s, IDS), lambda m, s: qkit.sensitivity(m, s, calibration=IDS)]
)
def test_one_scheme_where_several_are_asked_for_is_a_type_error(llama, door):
    with pytest.raises(
        TypeError, match=r"schemes is RTN W4 per channel alone; give a list of schemes, \[scheme, \.\.\.\]"
    ):
        door(llama, qkit.RTN(4))


def test_a_search_that_finds_no_scale_says_why(llama):
    with pytest.raises(
        ValueError, match=r"no layer of LlamaForCausalLM can be scaled: model\.layers\.0\.self_attn\.q_proj"
    ):
        qkit.search_scales(llama, AWQ, calibration=IDS, include="*.q_proj")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_bias_is_named_in_the_same_words(make_model, bad):
    model = make_model("qwen2")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.bias[2] = bad
    said = said_by(DOORS, model, IDS)
    assert len(set(said.values())) == 1, said
    assert said["quantize"].startswith("ValueError: the bias of model.layers.1.self_attn.k_proj holds")
