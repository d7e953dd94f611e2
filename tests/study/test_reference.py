"""What the original said of a text, remembered: the figures are those of `evaluate` beside it, and they stay."""

import copy

import pytest
import torch

import qkit
from qkit.study.evaluate import evaluate
from qkit.study.reference import Reference


def noisy(model, amount=0.05, seed=3):
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=amount)
    return other


def models(model):
    return {"original": model, "near": noisy(model, 0.01), "far": noisy(model, 0.2)}


@pytest.mark.parametrize("at_once", [2**24, 2 * 97 * 20])
def test_the_figures_are_those_of_evaluate_to_the_last_bit(any_kind, make_model, monkeypatch, at_once):
    monkeypatch.setattr("qkit.study.evaluate.LOGITS_AT_ONCE", at_once)
    model = make_model(any_kind)
    ids = torch.randint(2, 97, (5, 20), generator=torch.Generator().manual_seed(1))
    some = models(model)
    together, reference = evaluate(some, None, ids), Reference.of(model, None, ids)
    assert reference.evaluation == together["original"]
    assert reference.evaluate(some) == together  # the original beside itself: no divergence at all
    assert reference.evaluate({"far": some["far"]})["far"] == together["far"]  # however often, and in whatever company


def test_passages_and_their_differences_are_the_same(llama, word_tokenizer):
    tokenizer, some = word_tokenizer(bos_token="w00"), models(llama)
    texts = [" ".join(f"w{(7 * i + start) % 90 + 3:02}" for i in range(63 * (1 + start % 2) + 5)) for start in range(3)]
    together, reference = evaluate(some, tokenizer, texts), Reference.of(llama, tokenizer, texts)
    assert reference.evaluate(some) == together
    assert Reference.of(llama, tokenizer, texts, 2).evaluate(some) == evaluate(some, tokenizer, texts, 2)
    apart = {name: reference.evaluate({name: model})[name] for name, model in some.items()}
    assert apart["far"].difference(apart["near"]) == together["far"].difference(together["near"])


def test_it_is_of_what_the_model_was_and_of_what_the_ids_were(llama, ids):
    other = noisy(llama)
    kept, given = evaluate({"original": llama, "other": other}, None, ids), ids.clone()
    reference = Reference.of(llama, None, given)
    before = copy.deepcopy(llama)
    given.fill_(5)
    qkit.quantize(llama, qkit.RTN(2))  # in place
    assert reference.evaluate({"other": other})["other"] == kept["other"]
    with torch.no_grad():
        llama.lm_head.weight.zero_()
    assert reference.evaluate({"other": other, "before": before})["before"].kl == 0


def test_dropout_is_off_and_modes_are_restored(make_model, ids):
    model = make_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    expected = evaluate({"model": model}, None, ids)["model"]
    reference = Reference.of(model.train(), None, ids)
    assert reference.evaluation == expected and model.training
    assert reference.evaluate({"same": model})["same"] == expected and all(m.training for m in model.modules())


def test_it_takes_four_bytes_a_word_of_the_vocabulary_and_says_so(llama, ids):
    reference = Reference.of(llama, None, ids)
    assert reference.nbytes == 4 * 2 * 19 * 97
    assert repr(reference).startswith("Reference(perplexity ") and "on 38 tokens, 0 MB" in repr(reference)


def test_more_than_the_limit_is_not_begun(llama, ids, monkeypatch):
    need, calls = 4 * 2 * 19 * 97, []
    monkeypatch.setattr("qkit.study.evaluate.LOGITS_AT_ONCE", 97 * 20)
    llama.register_forward_pre_hook(lambda *_: calls.append(1))
    sentence = (
        r"of 38 tokens, each of 97, takes 14,744 bytes and limit is 14,743; give a shorter text, max_chunks or a larger"
    )
    with pytest.raises(ValueError, match=sentence):
        Reference.of(llama, None, ids, limit=need - 1)
    assert len(calls) == 1  # the first batch says how many numbers there are
    assert Reference.of(llama, None, ids, limit=need).nbytes == need
    monkeypatch.setattr("qkit.study.reference.LIMIT", 0)  # what stands in the signature
    assert Reference.of(llama, None, ids, limit=None).nbytes == need


def test_what_cannot_be_held_against_it_is_refused(make_model, llama, ids):
    reference = Reference.of(llama, None, ids.clamp(max=40))
    with pytest.raises(ValueError, match="model 'small' gives probabilities to 50 tokens, 'original' to 97; their"):
        reference.evaluate({"small": make_model("llama", vocab_size=50)})
    with pytest.raises(ValueError, match="not fit the context"):
        reference.evaluate({"short": make_model("llama", max_position_embeddings=8)})
    with pytest.raises(TypeError, match="model is a str"):
        reference.evaluate({"name": "bookworm-14m"})
    with pytest.raises(TypeError, match="model is a str"):
        Reference.of("bookworm-14m", None, ids)
    broken = noisy(llama)
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = float("inf")
    with pytest.raises(ValueError, match="model 'broken' puts out NaN or infinite logits"):
        reference.evaluate({"broken": broken})
    with pytest.raises(ValueError, match="model 'original' puts out NaN or infinite logits"):
        Reference.of(broken, None, ids)
