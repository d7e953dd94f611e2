import copy
import hashlib
import math
from importlib import import_module

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from qkit import RTN, kl_divergence, perplexity, quantize, texts
from qkit.study.evaluate import evaluate
from tiny import TEXT, llava, t5, vit

HELD_OUT = "1cab46d64f7d6995"  # sha256 of python-docs-heldout in CPython 3.11.7


def log_probabilities(model, ids: torch.Tensor) -> np.ndarray:
    """log p of every next token, by a softmax in float64."""
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def negative_log_likelihoods(model, ids: torch.Tensor) -> np.ndarray:
    return -np.take_along_axis(log_probabilities(model, ids), ids[:, 1:, None].numpy(), -1)


def noisy(model, amount=0.05):
    torch.manual_seed(3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=amount)
    return other


def float32_slack(*log_p: np.ndarray) -> float:
    """What a log softmax in float32 may err by: the logits' maximum, the sum and its logarithm, 4 roundings, twice over."""
    return 8 * 2**-24 * max(np.abs(one).max() for one in log_p)


def test_perplexity_is_exp_of_the_mean_nll_of_all_tokens(model, ids):
    nll = negative_log_likelihoods(model, ids)
    slack = float32_slack(log_probabilities(model, ids))
    assert perplexity(model, None, ids) == pytest.approx(math.exp(nll.mean()), rel=slack)


def test_perplexity_of_uniform_logits_is_the_size_of_the_vocabulary(llama, ids):
    torch.nn.init.zeros_(llama.lm_head.weight)
    assert perplexity(llama, None, ids) == pytest.approx(97, rel=8 * 2**-24 * math.log(97))


def test_perplexity_does_not_depend_on_the_batches(llama, monkeypatch):
    ids = torch.randint(0, 97, (5, 20), generator=torch.Generator().manual_seed(1))
    together = perplexity(llama, None, ids)
    monkeypatch.setattr("qkit.study.evaluate.LOGITS_AT_ONCE", 2 * 97 * 20)
    # Batches of 2, 2 and 1 go through other float32 sums: a few hundred roundings of logits below 10.
    assert perplexity(llama, None, ids) == pytest.approx(together, rel=1e-4)


def test_kl_of_a_model_to_itself_is_exactly_zero(model, ids):
    assert kl_divergence(model, model, None, ids) == 0
    assert kl_divergence(model, copy.deepcopy(model), None, ids) == 0


def test_kl_is_that_of_float64(model, ids):
    other = noisy(model)
    p, q = log_probabilities(model, ids), log_probabilities(other, ids)
    expected = (np.exp(p) * (p - q)).sum(-1).mean()
    found = kl_divergence(model, other, None, ids)
    assert expected > 1e-3
    assert found == pytest.approx(expected, abs=3 * float32_slack(p, q))  # errors of log p, of log q, and of p


def test_kl_is_from_the_original_to_the_model_and_not_back(llama, ids):
    other = noisy(llama, 0.2)
    p, q = log_probabilities(llama, ids), log_probabilities(other, ids)
    back = (np.exp(q) * (q - p)).sum(-1).mean()
    assert abs(kl_divergence(llama, other, None, ids) - back) > 100 * float32_slack(p, q)


def test_models_side_by_side_give_what_each_gives_alone(llama, ids):
    other = noisy(llama)
    found = evaluate({"one": llama, "other": other}, None, ids)
    assert list(found) == ["one", "other"]
    assert found["one"].perplexity == perplexity(llama, None, ids)
    assert found["other"].perplexity == perplexity(other, None, ids)
    assert found["one"].kl == 0
    assert found["other"].kl == kl_divergence(llama, other, None, ids)
    assert found["one"].tokens == found["other"].tokens == 2 * 19


def test_passages_hold_what_each_is_worth_alone(llama, word_tokenizer):
    tokenizer, other = word_tokenizer(bos_token="w00"), noisy(llama)
    texts = [" ".join(f"w{(7 * i + start) % 90 + 3:02}" for i in range(63 * (1 + start % 2) + 5)) for start in range(3)]
    found = evaluate({"one": llama, "other": other}, tokenizer, texts)
    assert [passage.tokens for passage in found["other"].passages] == [63, 126, 63]
    for passage, alone in zip(found["other"].passages, texts, strict=True):
        expected = evaluate({"one": llama, "other": other}, tokenizer, alone)["other"]
        assert math.exp(passage.nll) == pytest.approx(expected.perplexity, rel=1e-4)
        assert passage.kl == pytest.approx(expected.kl, rel=1e-3)
    difference = found["other"].difference(found["one"])
    assert difference.mean == pytest.approx(found["other"].kl) and found["one"].difference(found["one"]).is_tie
    with pytest.raises(ValueError, match="measure='bits' is not one of kl, nll"):
        found["other"].difference(found["one"], "bits")
    with pytest.raises(ValueError, match="the two were evaluated on different passages; evaluate both on one text"):
        found["other"].difference(evaluate({"one": llama}, tokenizer, texts[0])["one"])


def test_a_text_is_read_in_chunks_that_fit_a_tiny_context(model, word_tokenizer):
    tokenizer = word_tokenizer(eos_token="w01")
    numbers = [(7 * i) % 90 + 3 for i in range(200)]
    text = " ".join(f"w{i:02}" for i in numbers)
    ids = torch.tensor([[1, *numbers[start : start + 63]] for start in (0, 63, 126)])
    assert perplexity(model, tokenizer, text) == perplexity(model, None, ids)
    assert perplexity(model, tokenizer, text, max_chunks=2) == perplexity(model, None, ids[:2])


def test_the_shortest_context_sets_the_chunks(make_model, word_tokenizer):
    short, long = make_model("llama", max_position_embeddings=32), make_model("llama")
    text = " ".join(["w05"] * 100)
    found = evaluate({"long": long, "short": short}, word_tokenizer(bos_token="w00"), text)
    assert found["short"].tokens == found["long"].tokens == 3 * 31


def test_a_text_shorter_than_a_chunk_is_refused(llama, word_tokenizer):
    with pytest.raises(ValueError, match="the text has 3 tokens, one chunk takes 63; give a longer text"):
        perplexity(llama, word_tokenizer(bos_token="w00"), "w03 w04 w05")


def test_sequences_of_one_token_predict_nothing_and_are_refused(llama):
    with pytest.raises(ValueError, match="token"):
        perplexity(llama, None, torch.zeros(2, 1, dtype=torch.long))


def test_nan_logits_are_an_error_that_names_the_model(llama, ids):
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match="model 'RTN W2' puts out NaN or infinite logits; check its weights"):
        evaluate({"FP32": llama, "RTN W2": broken}, None, ids)
    with pytest.raises(ValueError, match="model 'LlamaForCausalLM' puts out NaN or infinite logits; check its weights"):
        perplexity(broken, None, ids)


def test_logits_whose_sum_leaves_float32_are_finite_still(llama, ids, monkeypatch):
    """Their sum is looked at first, because it is quick."""
    from qkit.study import evaluate as module

    expected = module.log_probabilities(llama, ids, "llama")
    logits = llama(input_ids=ids[:, :-1]).logits.detach() + 1e37
    shifted = type("Output", (), {"logits": logits})
    monkeypatch.setattr(module, "read", lambda *_: shifted)
    assert logits.isfinite().all() and not logits.sum().isfinite()
    assert module.log_probabilities(llama, ids, "llama").shape == expected.shape


def test_a_ruined_model_has_an_infinite_perplexity_and_no_traceback(llama, ids):
    with torch.no_grad():
        llama.lm_head.weight *= 1e6
    assert perplexity(llama, None, ids) == math.inf


def test_dropout_is_off_while_measuring(make_model, ids):
    model = make_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    expected = perplexity(model, None, ids)
    assert perplexity(model.train(), None, ids) == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_every_module_is_restored(llama, ids, training):
    llama.train(training)
    llama.model.layers[0].train(not training)
    before = [module.training for module in llama.modules()]
    perplexity(llama, None, ids)
    assert [module.training for module in llama.modules()] == before


def test_the_mode_is_restored_after_an_error(llama, ids):
    with torch.no_grad():
        llama.lm_head.weight[:] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        perplexity(llama.train(), None, ids)
    assert all(module.training for module in llama.modules())


def test_half_precision_is_measured_in_float32(llama, ids):
    half = llama.bfloat16()
    nll = negative_log_likelihoods(half, ids)
    slack = float32_slack(log_probabilities(half, ids))
    assert perplexity(half, None, ids) == pytest.approx(math.exp(nll.mean()), rel=slack)


# ---- the embedded model


@pytest.fixture(scope="module")
def held_out() -> str:
    return texts("python-docs-heldout")


@pytest.fixture
def known_text(held_out):
    if hashlib.sha256(held_out.encode()).hexdigest()[:16] != HELD_OUT:
        pytest.skip("this Python ships other documentation than CPython 3.11.7")
    return held_out


@pytest.mark.parametrize("scheme", [None, RTN(8), RTN(4, 128), RTN(3, 128, symmetric=True), RTN(4, "tensor")], ids=repr)
def test_perplexity_of_the_embedded_model_equals_an_independent_computation(embedded, held_out, scheme, reference_rtn):
    model, tokenizer = copy.deepcopy(embedded[0]), embedded[1]
    plain = copy.deepcopy(model)
    if scheme is not None:
        quantize(model, scheme)
        for name, layer in plain.named_modules():
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                weight = reference_rtn(layer.weight.detach(), scheme.bits, scheme.group_size, scheme.symmetric)
                layer.weight.data = torch.from_numpy(weight)
    tokens = tokenizer.backend_tokenizer.encode(held_out, add_special_tokens=False).ids
    losses = [negative_log_likelihoods(plain, torch.tensor([[0, *tokens[start : start + 511]]])) for start in (0, 511)]
    assert perplexity(model, tokenizer, held_out, max_chunks=2) == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


def test_the_embedded_model_in_float32_has_a_perplexity_of_6_4347(embedded, known_text):
    assert perplexity(*embedded, known_text) == pytest.approx(6.4347, abs=5e-5)


@pytest.mark.exhaustive
def test_the_embedded_model_in_4_bits_has_a_perplexity_of_9_2(embedded, known_text):
    model = copy.deepcopy(embedded[0])
    quantize(model, RTN(4, 128))
    assert 9.1 < perplexity(model, embedded[1], known_text) < 9.3


def test_batches_are_bounded_by_the_vocabulary_that_the_model_really_has(monkeypatch):
    monkeypatch.setattr(import_module("qkit.study.evaluate"), "LOGITS_AT_ONCE", 97 * 16 * 5)
    model, seen = llava(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    perplexity(model, None, torch.randint(0, 96, (12, 16)))
    assert seen == [5, 5, 2]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (t5, r"model 'T5For.*' cannot be asked for the next token: an encoder has to read before it; give a decoder"),
        (vit, "cannot be asked for the next token: it reads pixel_values"),
        (lambda: llava().model, "puts out no logits for every token; give a model with a language head"),
        (lambda: LlamaForSequenceClassification(LlamaConfig(**TEXT, pad_token_id=0)), "no logits for every token"),
    ],
)
def test_a_model_that_predicts_no_tokens_is_refused(make, why):
    with pytest.raises(ValueError, match=why):
        perplexity(make().eval(), None, torch.arange(2, 12).reshape(2, 5))


def test_ids_beyond_the_vocabulary_are_refused(llama):
    with pytest.raises(ValueError, match=r"token id 97 is not in the vocabulary of LlamaForCausalLM, 0 to 96"):
        perplexity(llama, None, torch.full((2, 5), 97))


def test_models_of_different_vocabularies_have_no_divergence(make_model, llama, ids):
    with pytest.raises(ValueError, match=r"model 'model' gives probabilities to 50 tokens, 'original' to 97; their"):
        kl_divergence(llama, make_model("llama", vocab_size=50), None, ids.clamp(max=40))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("bookworm-14m", r"model is a str; give a module: model, tokenizer = qkit\.load"),
        (None, "model is a NoneType"),
        (torch.nn.Sequential(torch.nn.Linear(3, 3)), "Sequential takes no input_ids; give a model of transformers"),
    ],
)
def test_what_is_no_model_of_text_is_a_type_error(llama, ids, model, match):
    with pytest.raises(TypeError, match=match):
        perplexity(model, None, ids)
    with pytest.raises(TypeError, match=match):
        kl_divergence(llama, model, None, ids)
