import copy
from importlib import import_module

import pytest
import torch
import transformers

import qkit
from qkit.model.surgery import clone
from qkit.nn.layers import quantized_layers
from qkit.train.own_text import own_text
from qkit.train.tune import _Tunable, _unfolded
from tiny import t5

SCHEMES = [qkit.RTN(2, 12), qkit.RTN(3, 4, include_zero=False), qkit.RTN(3, symmetric=True)]


@pytest.fixture
def ids():
    return torch.randint(2, 97, (6, 24), generator=torch.Generator().manual_seed(1))


def spread(original, model, ids):
    return qkit.kl_divergence(original, model, None, ids)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_lowers_the_divergence_and_keeps_the_bytes(make_model, ids, scheme, codes):
    original = make_model("qwen2", intermediate_size=96)
    model = clone(original)
    qkit.quantize(model, scheme)
    before = {name: layer.qtensor for name, layer in quantized_layers(model).items()}
    loss, size = spread(original, model, ids), qkit.memory_bytes(model)
    untouched = {name: p.clone() for name, p in original.named_parameters()}
    report = qkit.tune(model, original, calibration=ids, codes=codes, epochs=12, learning_rate=5e-3, code_rate=1e-2)
    assert spread(original, model, ids) < 0.8 * loss
    assert report.losses[-1] < report.losses[0] and report.parameters > 0
    assert qkit.memory_bytes(model) == size
    changed = 0
    for name, layer in quantized_layers(model).items():
        q, old = layer.qtensor, before[name]
        changed += int((q.codes() != old.codes()).sum())
        assert q.codes().max() < 2**q.bits and q.scales.dtype == old.scales.dtype and q.nbytes == old.nbytes
        assert torch.equal(q.zeros(), old.zeros()) and not torch.equal(q.scales, old.scales)
        assert q.offsets is old.offsets is None or torch.equal(q.offsets, old.offsets)
    weights = sum(old.shape[0] * old.shape[1] for old in before.values())
    assert report.changed == changed and (
        report.codes == weights and changed > 0 if codes else report.codes == changed == 0
    )
    for name, parameter in original.named_parameters():
        assert torch.equal(parameter, untouched[name]), name  # the original shares tensors with its clone


def test_tied_embeddings_stay_tied_and_frozen(make_model, ids):
    original = make_model("gpt2")
    model = clone(original)
    qkit.quantize(model, qkit.RTN(3))
    qkit.tune(model, original, calibration=ids, epochs=1)
    assert model.lm_head.weight is model.transformer.wte.weight is original.transformer.wte.weight
    assert all(parameter.grad is None for one in (model, original) for parameter in one.parameters())


def test_tied_gains_stay_tied(llama, ids):
    first, second = (layer.input_layernorm for layer in llama.model.layers)
    second.weight = first.weight
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.RTN(3))
    qkit.tune(llama, original, calibration=ids, epochs=1)
    assert second.weight is first.weight and not torch.equal(
        first.weight, original.model.layers[0].input_layernorm.weight
    )


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad])
def test_it_learns_wherever_it_is_called(llama, ids, outside):
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.RTN(3))
    with outside():
        report = qkit.tune(llama, original, calibration=ids, epochs=2)
    assert report.losses[1] < report.losses[0]


def test_a_model_that_multiplies_with_the_weights_of_its_layers_itself(ids):
    config = transformers.MambaConfig(vocab_size=97, hidden_size=48, num_hidden_layers=2, state_size=8)
    original = transformers.MambaForCausalLM(config).eval()
    model = clone(original)
    qkit.quantize(model, qkit.RTN(3))
    report = qkit.tune(model, original, calibration=ids, epochs=2)
    assert report.losses[1] < report.losses[0] and isinstance(model.backbone.layers[0].mixer.x_proj, qkit.QLinear)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs=0 is no number of passes"),
        ({"epochs": 1.5}, r"epochs=1\.5 is no number of passes"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is no rate"),
        ({"code_rate": -1.0}, r"code_rate=-1\.0 is no rate"),
        (
            {"learning_rate": 1e9, "epochs": 1},
            r"has learned NaN or infinity; use smaller learning rates than 1e\+09 and",
        ),
    ],
)
def test_rates_that_cannot_be_are_refused_and_what_they_make_is_not_kept(llama, ids, options, match):
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.RTN(3))
    state = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        qkit.tune(llama, original, calibration=ids, **options)
    assert all(torch.equal(tensor, state[name]) for name, tensor in llama.state_dict().items())


def test_another_original_is_refused(make_model, llama, ids):
    qkit.quantize(llama, qkit.RTN(3))
    with pytest.raises(ValueError, match=r"token id \d+ is not in the vocabulary of LlamaForCausalLM, 0 to 49"):
        qkit.tune(llama, make_model("llama", vocab_size=50), calibration=ids)
    with pytest.raises(ValueError, match=r"q_proj is \(48, 96\) in the original and \(48, 48\) in the model"):
        qkit.tune(llama, make_model("llama", hidden_size=96), calibration=ids)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration cannot be asked for the next token: an encoder"):
        qkit.tune(llama, t5(), calibration=ids)


def test_what_was_made_in_inference_mode_cannot_learn(make_model, ids):
    original, model = make_model("llama"), make_model("llama")
    with torch.inference_mode():
        qkit.quantize(model, qkit.RTN(3))
        with pytest.raises(ValueError, match=r"nothing can learn; call tune outside"):
            qkit.tune(model, original, calibration=ids)
    with pytest.raises(ValueError, match=r"was made inside torch\.inference_mode"):
        qkit.tune(model, original, calibration=ids)


def test_an_interrupt_leaves_the_model_as_it_was(llama, ids, monkeypatch):
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.RTN(3))
    state = {name: tensor.clone() for name, tensor in llama.state_dict().items()}

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        qkit.tune(llama, original, calibration=ids)
    assert all(torch.equal(tensor, state[name]) for name, tensor in llama.state_dict().items())


def test_what_has_no_scales_to_tune_is_refused(llama, ids):
    with pytest.raises(ValueError, match="no weight-only quantized layer"):
        qkit.tune(llama, copy.deepcopy(llama), calibration=ids)
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.NF4())
    with pytest.raises(ValueError, match="codebooks and INT8"):
        qkit.tune(llama, original, calibration=ids)


def test_a_loss_that_is_not_finite_is_refused(llama, ids):
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.RTN(4))
    llama.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="the loss became nan"):
        qkit.tune(llama, original, calibration=ids)


def test_learned_codes_are_worth_more_than_learned_scales(make_model, ids):
    original = make_model("llama", intermediate_size=96)
    model, other = clone(original), clone(original)
    for one in (model, other):
        qkit.quantize(one, qkit.RTN(2, 12))
    qkit.tune(model, original, calibration=ids, epochs=12, code_rate=1e-2)
    qkit.tune(other, original, calibration=ids, epochs=12, codes=False)
    assert spread(original, model, ids) < spread(original, other, ids)


def test_at_a_rate_of_zero_every_code_stays(llama, ids):
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.GPTQ(3, 4), calibration=ids)
    before = {name: layer.packed for name, layer in quantized_layers(llama).items()}
    report = qkit.tune(llama, original, calibration=ids, epochs=1, code_rate=0.0)
    assert report.changed == 0 and "0.0% of" in repr(report)
    assert all(torch.equal(layer.packed, before[name]) for name, layer in quantized_layers(llama).items())


@pytest.mark.parametrize("shape, group_size", [((5, 21), 7), ((1, 12), 3), ((1, 9), None), ((4, 10), "tensor")])
@pytest.mark.parametrize("settings", [{}, {"symmetric": True}, {"include_zero": False}])
def test_what_is_stored_is_what_was_trained(shape, group_size, settings):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(shape, generator=generator)
    if settings.get("include_zero", True) or group_size != "tensor":
        q = qkit.quantize_tensor(weight, qkit.RTN(3, group_size, **settings))
    else:
        q = qkit.quantize_tensor(weight, qkit.RTN(3, None, **settings))
    tunable = _Tunable(qkit.QLinear(q), True, weight)
    assert torch.equal(tunable.learned().packed, q.packed) and torch.equal(tunable.learned().scales, q.scales)
    with torch.no_grad():
        tunable.t.add_(torch.randn(tunable.t.shape, generator=generator), alpha=0.1)
        tunable.u.add_(torch.randn(tunable.u.shape, generator=generator), alpha=3)  # some far outside 0 .. 7
    x = torch.randn(3, shape[1], generator=generator)
    learned = tunable.learned()
    codes = learned.codes().float()
    assert learned.nbytes == q.nbytes and tunable.changed() == int((codes != q.codes()).sum()) > 0
    assert torch.equal(codes, tunable.u.detach().reshape(shape).round().clamp(0, 7))
    assert torch.equal(tunable(x), qkit.linear(x, learned, backend="torch"))


def test_the_model_that_comes_back_is_the_copy_that_was_trained(llama, ids, monkeypatch):
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.RTN(3))
    trained = []

    def shaken(copy, _original, rates, *_rest):
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for rate in rates:
                for parameter in rate["params"]:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        trained.append(copy)
        return [0.0]

    monkeypatch.setattr(import_module("qkit.train.tune"), "_descend", shaken)  # `qkit.tune` is the function
    qkit.tune(llama, original, calibration=ids)
    with torch.no_grad():
        expected = trained[0](input_ids=ids).logits
        torch.testing.assert_close(llama(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_goes_through_the_rounding_and_empty_groups_stay():
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(4))
    weight[0, :4] = 0
    tunable = _Tunable(qkit.QLinear(qkit.quantize_tensor(weight, qkit.RTN(3, 4))), True, weight)
    tunable(torch.ones(1, 12)).sum().backward()
    torch.testing.assert_close(tunable.u.grad[1], tunable.scales()[1, :, None].detach().expand(3, 4))
    assert not tunable.u.grad[0, 0].any() and tunable.u.grad[0, 1:].all()
    with torch.no_grad():
        tunable.u.add_(5)
    assert not tunable.learned().dequantize()[0, :4].any()  # a step of such a group would be 1.0


def test_latent_codes_start_where_the_weight_was_even_if_it_was_folded():
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(64, 96, generator=generator)
    folded = weight * (0.5 + torch.rand(96, generator=generator)) * (0.5 + torch.rand(64, 1, generator=generator))
    weight[:, 3] = folded[:, 3] = 0
    q = qkit.quantize_tensor(folded, qkit.RTN(4, 32))
    distance = (_unfolded(weight, q.dequantize()) - folded).norm() / (weight - folded).norm()
    assert distance < 0.1
    plain = qkit.quantize_tensor(weight, qkit.RTN(4, 32))
    assert _unfolded(weight, plain.dequantize()) is weight
    inside = _Tunable(qkit.QLinear(q), True, weight)
    assert ((inside.u - inside.start).abs() < 0.49).float().mean() > 0.9
    middle = _Tunable(qkit.QLinear(q), True, None)
    assert torch.equal(middle.u, middle.start)


def test_a_layer_with_two_names_stays_one(llama, ids):
    llama.model.layers[1].mlp = llama.model.layers[0].mlp
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.RTN(3))
    size = qkit.memory_bytes(llama)
    qkit.tune(llama, original, calibration=ids, epochs=1)
    assert llama.model.layers[1].mlp.up_proj is llama.model.layers[0].mlp.up_proj
    assert qkit.memory_bytes(llama) == size


class Tokenizer:
    bos_token_id = eos_token_id = 0


def test_own_text_is_what_the_model_would_say(llama):
    ids = own_text(llama, Tokenizer(), 5, seed=1)
    assert ids.shape == (5, 64) and ids.dtype == torch.int64 and not ids[:, 0].any()  # this model's context is 64
    assert torch.equal(ids, own_text(llama, Tokenizer(), 5, seed=1))
    assert not torch.equal(ids, own_text(llama, Tokenizer(), 5, seed=2))
    with torch.no_grad():
        log_p = llama(input_ids=ids).logits.log_softmax(-1)
    said = -log_p[:, :-1].gather(-1, ids[:, 1:, None]).mean()
    entropy = -(log_p.exp() * log_p).sum(-1)[:, :-1].mean()
    assert abs(said - entropy) < 0.35  # on average a draw is as surprising as the entropy says


def test_a_model_that_cannot_write_is_refused(llama):
    with pytest.raises(ValueError, match="at least 1"):
        own_text(llama, Tokenizer(), 0)
    llama.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        own_text(llama, Tokenizer(), 1)


WRITER = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (t5, "T5ForConditionalGeneration cannot write: an encoder has to read before it"),
        (
            lambda: transformers.LlamaModel(transformers.LlamaConfig(**WRITER)),
            "LlamaModel does not predict tokens from",
        ),
        (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**WRITER)), "BertForMaskedLM does not predict"),
        (lambda: torch.nn.Linear(3, 3), "Linear does not predict tokens from a cache of keys and values"),
    ],
)
def test_what_cannot_write_is_refused(word_tokenizer, make, match):
    with pytest.raises(ValueError, match=match):
        own_text(make(), word_tokenizer(bos_token="w00"), 1)


def test_a_tokenizer_of_another_model_cannot_begin(make_model, word_tokenizer):
    with pytest.raises(ValueError, match="token id 9 is not in the vocabulary of LlamaForCausalLM, 0 to 4"):
        own_text(make_model("llama", vocab_size=5), word_tokenizer(bos_token="w09"), 1)
