import pytest
import torch

from qkit import AWQ, GPTQ, RTN, quantize
from qkit.engine.plan import assign, check_plan, plan_name, plan_to_dict
from qkit.model.surgery import find_targets

DOWN, ALL = RTN(8), GPTQ(4, 4)


@pytest.fixture
def targets(llama):
    return find_targets(llama)[0]


def test_one_scheme_is_for_all(targets):
    assert assign(DOWN, targets) == ({target.name: DOWN for target in targets}, [])


def test_the_first_glob_that_matches_decides(targets):
    schemes, skipped = assign({"*.down_proj": DOWN, "model.layers.1.*": RTN(2), "*": ALL}, targets)
    assert not skipped and list(schemes) == [target.name for target in targets]
    for name, scheme in schemes.items():
        assert scheme == (DOWN if "down_proj" in name else RTN(2) if ".1." in name else ALL)


def test_layers_that_no_glob_matches_stay_and_are_named(targets, llama):
    schemes, skipped = assign({"*.mlp.*": DOWN}, targets)
    assert len(schemes) == 6 and len(skipped) == 8
    assert set(skipped) == {(t.name, "no glob of the schemes matches it") for t in targets if ".mlp." not in t.name}
    report = quantize(llama, {"*.mlp.*": DOWN})
    assert set(skipped) <= set(report.skipped) and len(report.layers) == 6


def test_globs_are_about_case_and_full_names(targets):
    with pytest.raises(
        ValueError, match=r"scheme for 'down_proj' is used nowhere: it matches no layer \(layers: model"
    ):
        assign({"down_proj": DOWN, "*": ALL}, targets)
    with pytest.raises(ValueError, match=r"'\*\.DOWN_proj' is used nowhere"):
        assign({"*.DOWN_proj": DOWN, "*": ALL}, targets)


def test_a_glob_behind_one_that_takes_all_is_refused(targets):
    with pytest.raises(ValueError, match=r"'\*\.down_proj' is used nowhere: globs before it take all .* put it first"):
        assign({"*": ALL, "*.down_proj": DOWN}, targets)


@pytest.mark.parametrize("plan", [None, "int4", {"*": "int4"}, {"*": None, "a": RTN(4)}, [RTN(4)]])
def test_what_is_no_scheme_is_refused(plan):
    with pytest.raises(TypeError, match=r"is not a scheme; give one such as qkit\.RTN\(.* or several by layer"):
        check_plan(plan)


def test_an_empty_mapping_is_refused(llama):
    with pytest.raises(ValueError, match=r"mapping of schemes is empty; give at least \{'\*': scheme\}"):
        quantize(llama, {})


def test_names_and_records():
    plan = {"*.down_proj": DOWN, "*": AWQ(3, 64)}
    assert (plan_name(DOWN), plan_to_dict(DOWN)) == (DOWN.name, DOWN.to_dict())
    assert plan_name(plan) == "*.down_proj: RTN W8 per channel, *: AWQ W3 g64"
    layers = {"*.down_proj": DOWN.to_dict(), "*": AWQ(3, 64).to_dict()}
    assert plan_to_dict(plan) == {"scheme": "by layer", "layers": layers}


def test_data_are_asked_for_when_one_of_several_needs_them(llama):
    with pytest.raises(ValueError, match="GPTQ W4 g4 learns from data and was given none"):
        quantize(llama, {"*.down_proj": DOWN, "*": ALL})
    with pytest.raises(ValueError, match=r"'\*\.fc1' is used nowhere"):
        quantize(llama, {"*.fc1": DOWN, "*": ALL}, calibration=torch.zeros(2, 8, dtype=torch.long))


def test_include_and_exclude_come_before_the_globs(llama):
    report = quantize(llama, {"*.down_proj": RTN(4), "*": RTN(8)}, exclude="*.q_proj")
    assert len(report.layers) == 12
    assert ("model.layers.0.self_attn.q_proj", "excluded") in report.skipped
