import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qkit import RTN, QLinear, quantize, quantize_tensor
from qkit.model.surgery import as_list, clone, find_targets, swap, weight_of


class Scaled(nn.Linear):
    """A Linear that does something of its own."""


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.first = nn.Linear(8, 6)
        self.second = Conv1D(4, 6)
        self.own = Scaled(4, 4)
        self.norm = nn.LayerNorm(4)
        self.convolution = nn.Conv1d(4, 4, 3)


def test_a_linear_and_a_conv1d_are_seen_as_out_by_in():
    assert weight_of(nn.Linear(8, 6)).shape == (6, 8)
    conv = Conv1D(4, 6)  # (outputs, inputs), stored [in, out]
    assert weight_of(conv).shape == (4, 6)
    assert torch.equal(weight_of(conv), conv.weight.T)


@pytest.mark.parametrize("module", [Scaled(4, 4), nn.Embedding(4, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1)])
def test_other_modules_have_no_weight_to_quantize(module):
    assert weight_of(module) is None


@pytest.mark.parametrize(("globs", "expected"), [(None, []), ("*", ["*"]), (("a", "b"), ["a", "b"]), ([], [])])
def test_globs_become_a_list(globs, expected):
    assert as_list(globs) == expected


def test_targets_come_in_the_order_of_the_model():
    targets, _ = find_targets(Mixed())
    assert [(target.name, target.kind) for target in targets] == [("first", "Linear"), ("second", "Conv1D")]


def test_what_stays_is_named_with_its_reason():
    _, skipped = find_targets(Mixed(), exclude="second")
    assert dict(skipped) == {
        "second": "excluded",
        "embedding": "embedding (rule of the trade)",
        "own": "Scaled: its parameters are not those of a Linear or Conv1D",
        "norm": "norm or vector",
        "convolution": "Conv1d: its parameters are not those of a Linear or Conv1D",
    }


def test_include_replaces_the_rule_and_names_the_rest():
    targets, skipped = find_targets(Mixed(), include="fir*")
    assert [target.name for target in targets] == ["first"]
    assert ("second", "not included") in skipped


def test_exclude_wins_over_include():
    targets, skipped = find_targets(Mixed(), include="*", exclude=["second"])
    assert [target.name for target in targets] == ["first"]
    assert ("second", "excluded") in skipped


@pytest.mark.parametrize("role", ["include", "exclude"])
@pytest.mark.parametrize("glob", ["frist", "FIRST", "embedding", ""])
def test_a_glob_that_matches_no_layer_is_refused(role, glob):
    with pytest.raises(
        ValueError, match=rf"{role}='{glob}' matches none of the 2 .*first, second.*globs match full names"
    ):
        find_targets(Mixed(), **{role: ["first", glob]})


def test_excluding_everything_is_refused():
    with pytest.raises(
        ValueError, match=r"Mixed has no Linear or Conv1D layer left to quantize .*it has 2, all left out"
    ):
        find_targets(Mixed(), exclude="*")


def test_swapping_puts_the_new_module_under_the_full_name():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    new = nn.Identity()
    swap(model, {"0.0": new})
    assert model[0][0] is new


def test_a_clone_has_new_modules_and_the_same_tensors(model):
    copy = clone(model)
    for (name, one), (_, other) in zip(model.named_modules(), copy.named_modules(), strict=True):
        assert one is not other, name
    for one, other in zip(
        model.state_dict(keep_vars=True).values(), copy.state_dict(keep_vars=True).values(), strict=True
    ):
        assert one is other
    assert (copy.lm_head.weight is copy.get_input_embeddings().weight) == (
        model.lm_head.weight is model.get_input_embeddings().weight
    )


def test_quantizing_a_clone_leaves_the_original(model, ids, logits):
    before = logits(model, ids)
    quantize(clone(model), RTN(2))
    assert torch.equal(logits(model, ids), before)


def test_a_clone_of_a_quantized_model_shares_its_codes():
    model = nn.Sequential(QLinear(quantize_tensor(torch.randn(4, 8), bits=4)))
    assert clone(model)[0].packed is model[0].packed
