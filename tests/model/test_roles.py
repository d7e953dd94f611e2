"""Heads stay by the rule of the trade; adapters, and weights that others read, stay whatever the globs say."""

import copy

import pytest
import torch
import transformers as T
from torch import nn

from qkit import GPTQ, RTN, QLinear, quantize
from qkit.methods.awq import AWQ
from qkit.model.roles import HEAD, output_heads
from qkit.model.surgery import clone, find_targets
from tiny import SIZES, vit

C = {"vocab_size": 97, **SIZES}


def heads(model):
    return [name for name, why in find_targets(model)[1] if why == HEAD]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: T.LlamaForCausalLM(T.LlamaConfig(**C)), ["lm_head"]),
        (lambda: T.LlamaForSequenceClassification(T.LlamaConfig(**C)), ["score"]),
        (lambda: T.LlamaForTokenClassification(T.LlamaConfig(**C)), ["score"]),
        (lambda: T.LlamaForQuestionAnswering(T.LlamaConfig(**C)), ["qa_outputs"]),
        (lambda: T.BertForSequenceClassification(T.BertConfig(**C)), ["classifier"]),
        (lambda: T.BertForQuestionAnswering(T.BertConfig(**C)), ["qa_outputs"]),
        (
            lambda: T.BertForMaskedLM(T.BertConfig(**C)),
            ["cls.predictions.transform.dense", "cls.predictions.decoder"],
        ),
        (
            lambda: T.RobertaForSequenceClassification(T.RobertaConfig(**C)),
            ["classifier.dense", "classifier.out_proj"],
        ),
        (lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**C)), None),
        (vit, ["classifier"]),
        (lambda: T.LlamaModel(T.LlamaConfig(**C)), []),
    ],
)
def test_heads_of_transformers(make, expected):
    model = make()
    assert heads(model) == (
        ["embed_out"] if hasattr(model, "embed_out") else ["lm_head"] if expected is None else expected
    )
    assert not any("layer" in name for name in heads(model))


def test_heads_of_other_models_are_known_by_name():
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("body", "lm_head", "score", "classifier", "qa_outputs")})
    assert heads(model) == ["lm_head", "score", "classifier", "qa_outputs"]
    assert [target.name for target in find_targets(model, include="*")[0]] == list(model)


def test_a_model_of_its_own_beside_the_base_model_is_no_head(make_model):
    model = make_model("llama")
    model.draft = make_model("llama", num_hidden_layers=1)
    assert heads(model) == ["lm_head", "draft.lm_head"]
    assert model.draft.model.layers[0].mlp.up_proj not in output_heads(model)


def test_a_projection_that_attention_reads_without_calling_it_stays():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(48, 4, 64, batch_first=True), 2, enable_nested_tensor=False
    )
    targets, skipped = find_targets(model, include="*")
    assert [target.name for target in targets] == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    assert dict(skipped)["layers.1.self_attn.out_proj"].startswith("its weight is read by MultiheadAttention")


class Listed(nn.Module):
    """It calls its layers by lists of its own."""

    def __init__(self, keep):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.order = keep(self.a, self.b)

    def forward(self, x):
        parts = self.order.values() if isinstance(self.order, dict) else self.order
        for part in parts:
            x = part(x)
        return self.c(x)


@pytest.mark.parametrize("keep", [lambda *m: list(m), lambda *m: m, lambda *m: dict(enumerate(m))])
@pytest.mark.parametrize("include", [None, "*"])
def test_layers_that_are_called_from_elsewhere_than_the_tree_stay(keep, include):
    torch.manual_seed(0)
    model, x = Listed(keep), torch.randn(3, 8)
    report = quantize(model, RTN(2), include=include)
    assert [layer.name for layer in report.layers] == ["c"]
    assert dict(report.skipped)["a"].startswith("Listed holds it outside its modules as well")
    q = model.c.qtensor.dequantize()
    torch.testing.assert_close(model(x) - model.c.bias, (q @ model.b(model.a(x)).T).T)


def test_layers_that_are_compiled_by_themselves_stay():
    torch.manual_seed(0)
    model = nn.Sequential(torch.compile(nn.Linear(8, 8), backend="eager"), nn.Linear(8, 8))
    report = quantize(model, RTN(4))
    assert [layer.name for layer in report.layers] == ["1"]
    assert dict(report.skipped)["0._orig_mod"] == (
        "torch.compile holds on to it; quantize the layer first, then compile it"
    )


def test_weights_that_the_model_itself_writes_into_stay(ids, logits):
    torch.manual_seed(0)
    config = T.RwkvConfig(vocab_size=97, hidden_size=48, num_hidden_layers=7, attention_hidden_size=48)
    model = T.RwkvForCausalLM(config).eval()
    quantized = clone(model)
    report = quantize(quantized, RTN(8), include="*blocks*")  # before it has rescaled anything
    why = dict(report.skipped)
    assert (
        "written into" in why["rwkv.blocks.6.attention.output"]
        and "written into" in why["rwkv.blocks.0.feed_forward.value"]
    )
    assert len(report.layers) == 7 * 5
    quantized = copy.deepcopy(quantized)  # what is rescaled in place must not be that of the original
    before = logits(model, ids)
    assert (logits(quantized, ids) - before).norm() < 0.05 * before.norm()


class Adapted(nn.Module):
    """A layer with a branch beside it, as PEFT makes one."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 8, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(8, base_layer.out_features, bias=False)})
        base_layer.requires_grad_(False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    def merge(self):
        self.base_layer.weight.data += self.lora_B["default"].weight @ self.lora_A["default"].weight

    def unmerge(self):
        self.base_layer.weight.data -= self.lora_B["default"].weight @ self.lora_A["default"].weight


def adapted(make_model):
    model = make_model("llama")
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name)))
    return model


@pytest.mark.filterwarnings("ignore:40 calibration tokens")
@pytest.mark.parametrize("scheme", [RTN(4), GPTQ(4, None), AWQ(4, None)])
@pytest.mark.parametrize("include", [None, "*layers*"])
def test_adapters_stay_and_learn_and_what_they_are_added_to_is_quantized(make_model, ids, scheme, include):
    model = adapted(make_model)
    loras = {name: p for name, p in model.named_parameters() if "lora_" in name}
    before = {name: p.detach().clone() for name, p in loras.items()}
    report = quantize(model, scheme, calibration=ids, include=include)
    names = {layer.name for layer in report.layers}
    assert not any("lora" in name for name in names) and "model.layers.0.self_attn.q_proj.base_layer" in names
    why = dict(report.skipped)["model.layers.1.self_attn.v_proj.lora_B.default"]
    assert why == "adapter: it learns, the layer it is added to stays still"
    after = dict(model.named_parameters())
    assert all(after[name] is p and p.requires_grad and torch.equal(p, before[name]) for name, p in loras.items())
    assert isinstance(model.model.layers[0].self_attn.q_proj.base_layer, QLinear)


def test_globs_that_name_adapters_only_leave_nothing(make_model):
    with pytest.raises(ValueError, match=r"no Linear .* left to quantize \(.* all left out; of 4 of them: adapter"):
        find_targets(adapted(make_model), include="*lora_A*")


def test_an_adapter_cannot_be_merged_into_codes(make_model, ids, logits):
    model = adapted(make_model)
    quantize(model, RTN(8))
    before, layer = logits(model, ids), model.model.layers[0].self_attn.q_proj
    for change in (layer.merge, layer.unmerge):
        with pytest.raises(
            ValueError, match=r"^model\.layers\.0\.self_attn\.q_proj\.base_layer is quantized .*; merge"
        ):
            change()
    assert torch.equal(logits(model, ids), before)


@pytest.mark.filterwarnings("ignore:40 calibration tokens")
@pytest.mark.parametrize("scheme", [RTN(4), GPTQ(4, None), AWQ(4, None)])
def test_adapters_of_peft(make_model, ids, logits, scheme):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(make_model("llama"), config).eval()
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    report = quantize(model, scheme, calibration=ids)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable
    assert len(report.layers) == 14 and not any("lora" in layer.name or "head" in layer.name for layer in report.layers)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"base_layer is quantized and an adapter cannot be added to its codes"):
            merge()
