import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.pytorch_utils import Conv1D

from qkit import GPTQ, RTN, QLinear, quantize, quantize_tensor
from qkit.model.surgery import (
    as_list,
    clone,
    find_targets,
    largest_left,
    select_layers,
    set_parameter,
    swap,
    weight_of,
    weight_share,
)
from tiny import mixtral


class Scaled(nn.Linear):
    """A Linear that does something of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


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
        "own": "Scaled, a subclass of Linear: it computes something else than x Wᵀ + b",
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
        ValueError, match=rf"{role}='{glob}' matches none of the 3 .*first, second.*globs match full names"
    ):
        find_targets(Mixed(), **{role: ["first", glob]})


def test_excluding_everything_is_refused():
    with pytest.raises(
        ValueError, match=r"Mixed has no Linear or Conv1D layer left to quantize .*it has 3, all left out"
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


@pytest.mark.parametrize("scheme", [RTN(8), GPTQ(4, None)])
def test_layers_without_data_are_refused_by_name(make_model, ids, scheme):
    model = make_model("llama")
    model.model.layers[1].mlp.to("meta")
    with pytest.raises(
        ValueError, match=r"^model\.layers\.1\.mlp\.gate_proj has no data \(device meta\): load the model"
    ):
        quantize(model, scheme, calibration=ids)
    assert len(select_layers(model)[0]) == 14  # who wants names and shapes only
    assert len(find_targets(model, exclude="*.1.mlp.*")[0]) == 11


def test_a_parameter_can_be_set_by_its_full_name(make_model):
    model = make_model("llama", tie=True)
    new = nn.Parameter(torch.zeros(97, 48))
    set_parameter(model, "lm_head.weight", new)
    assert model.lm_head.weight is new and model.model.embed_tokens.weight is not new
    bare = nn.Linear(2, 2)
    set_parameter(bare, "bias", new)
    assert bare.bias is new


def test_why_nothing_is_left_is_told():
    with pytest.raises(
        ValueError, match=r"\(it has 1, all left out; of 1 of them: Scaled, a subclass of Linear: it comp"
    ):
        find_targets(nn.ModuleDict({"a": Scaled(4, 4)}))
    with pytest.raises(ValueError, match=r"\(it has 0, none at all\)"):
        find_targets(nn.ModuleDict({"a": nn.Embedding(4, 4)}))


def test_the_share_counts_every_parameter_once(model):
    targets, _ = find_targets(model)
    whole = {id(p): p.numel() for p in model.parameters()}
    share = sum(target.weight.numel() for target in targets) / sum(whole.values())
    assert weight_share(model, targets) == pytest.approx(share)
    largest, size = largest_left(model, targets)
    assert largest == "Embedding" and 0 < size < 1 - share + 1e-9
    quantize(model, RTN(4))
    assert weight_share(model, []) == pytest.approx(share)


def test_of_fused_experts_the_report_can_say_that_most_is_left():
    model = mixtral()
    targets, skipped = find_targets(model)
    assert weight_share(model, targets) < 0.3
    assert largest_left(model, targets)[0] == "MixtralExperts"
    assert dict(skipped)["model.layers.0.mlp.experts"].startswith("MixtralExperts: its parameters are not those of")


def test_the_share_of_a_layer_under_two_names_and_of_a_tied_one():
    layer = nn.Linear(4, 4, bias=False)
    model = nn.ModuleDict({"a": layer, "b": layer})
    assert weight_share(model, find_targets(model)[0]) == 1.0 and largest_left(model, find_targets(model)[0]) is None
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 4), "head": layer})
    model["embedding"].weight = layer.weight  # the head is quantized, the embedding stays
    assert weight_share(model, find_targets(model)[0]) == 0.5
    assert largest_left(model, find_targets(model)[0]) == ("Embedding", 0.5)


TIED = {"opt": "lm_head.weight", "gpt2": "lm_head.weight", "qwen2": "lm_head.weight", "bloom": "lm_head.weight"}


@pytest.mark.parametrize("kind", TIED)
def test_a_tied_head_that_is_quantized_stays_quantized(make_model, ids, logits, kind):
    model = make_model(kind)
    quantize(model, RTN(8), include="*")
    before, names = logits(model, ids), [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for recompute in (False, True):
        model.tie_weights(recompute_mapping=recompute)
        assert [name for name, _ in model.named_parameters(remove_duplicate=False)] == names
        assert isinstance(model.lm_head, QLinear)
        assert torch.equal(logits(model, ids), before)
    assert make_model(kind).get_expanded_tied_weights_keys() == type(model)._tied_weights_keys  # of the class as it was
    other = clone(model)
    other.tie_weights()
    assert torch.equal(logits(other, ids), before)


def test_what_the_new_layer_has_stays_tied():
    config = BertConfig(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    model = BertForMaskedLM(config)
    quantize(model, RTN(8), include="*")
    decoder = model.cls.predictions.decoder
    assert "cls.predictions.decoder.bias" in model.get_expanded_tied_weights_keys()
    assert "cls.predictions.decoder.weight" not in model.get_expanded_tied_weights_keys(all_submodels=True)
    model.cls.predictions.bias = nn.Parameter(torch.ones(97))
    model.tie_weights()
    assert decoder.bias is model.cls.predictions.bias and isinstance(model.cls.predictions.decoder, QLinear)


@pytest.mark.parametrize("tie", [False, True])
def test_a_quantized_head_cannot_be_resized_and_the_model_stays(make_model, ids, logits, tie):
    model = make_model("llama", tie=tie)
    quantize(model, RTN(8), include="*")
    before = logits(model, ids)
    for resize in (model.resize_token_embeddings, clone(model).resize_token_embeddings):
        with pytest.raises(ValueError, match=r"head of this LlamaForCausalLM is quantized .*; resize the vocabulary"):
            resize(120)
    assert torch.equal(logits(model, ids), before) and model.get_input_embeddings().num_embeddings == 97


def test_a_model_whose_head_stays_can_be_resized(make_model, ids):
    model = make_model("llama")
    quantize(model, RTN(8))
    model.resize_token_embeddings(120, mean_resizing=False)
    assert model(input_ids=ids).logits.shape[-1] == 120


def test_hooks_stay_where_they_were_put(make_model, ids):
    model, heard = make_model("llama"), []
    before = model.model.layers[0].mlp.up_proj
    handles = [
        before.register_forward_pre_hook(lambda module, args, kwargs: heard.append(module), with_kwargs=True),
        before.register_forward_hook(lambda module, args, output: heard.append(module)),
    ]
    quantize(model, RTN(8))
    model(input_ids=ids)
    layer = model.model.layers[0].mlp.up_proj
    assert layer is not before and heard == [layer, layer]
    for handle in handles:
        handle.remove()
    model(input_ids=ids)
    assert len(heard) == 2


def test_a_hook_that_changes_what_goes_in_does_so_afterwards():
    model = nn.ModuleDict({"a": nn.Linear(8, 8)})
    model["a"].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    before = model["a"](x)
    quantize(model, RTN(8))
    assert isinstance(model["a"], QLinear) and torch.allclose(model["a"](x), before, atol=0.05)
