"""Tokenizers through the entries of a GGUF file: the same ids for every text, both ways; what does not fit is refused."""

import pytest
from tokenizers import pre_tokenizers

from qkit.checkpoints.gguf.tokenizer import PRE, entries_of, merges_of, tokenizer_from
from small_tokenizers import TEXTS, byte_level, sentence_piece


class File:
    """What `tokenizer_from` asks of a container."""

    path = "model.gguf"
    tensors: dict = {}  # noqa: RUF012

    def __init__(self, entries: dict) -> None:
        self.metadata = {"general.architecture": "llama", "llama.context_length": 64, **entries}


def same(first, second) -> None:
    for text in TEXTS:
        ids = first(text).input_ids
        assert second(text).input_ids == ids, text
        assert second.decode(ids) == first.decode(ids)
        assert second(text, add_special_tokens=False).input_ids == first(text, add_special_tokens=False).input_ids
    assert second.bos_token_id == first.bos_token_id and second.eos_token_id == first.eos_token_id


@pytest.mark.parametrize("pre", PRE)
def test_byte_level_tokenizers_come_back(pre):
    tokenizer = byte_level(pre)
    entries = entries_of(tokenizer, 340)
    assert entries["tokenizer.ggml.pre"] == pre and len(entries["tokenizer.ggml.tokens"]) == 340
    assert entries["tokenizer.ggml.tokens"][-1] == "[PAD339]" and entries["tokenizer.ggml.token_type"][-1] == 5
    again = tokenizer_from(File(entries), 340)
    same(tokenizer, again)
    assert entries_of(again, 340) == entries


def test_the_tokenizer_of_bookworm_comes_back(tokenizer):
    entries = entries_of(tokenizer, 4096)
    assert entries["tokenizer.ggml.pre"] == "gpt-2" and entries["tokenizer.ggml.add_bos_token"]
    same(tokenizer, tokenizer_from(File(entries), 4096))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_tokenizers_come_back(prefix):
    tokenizer = sentence_piece(prefix)
    entries = entries_of(tokenizer, len(tokenizer))
    assert entries["tokenizer.ggml.model"] == "llama" and entries["tokenizer.ggml.add_space_prefix"] is prefix
    again = tokenizer_from(File(entries), len(tokenizer))
    same(tokenizer, again)
    assert entries_of(again, len(tokenizer)) == entries


def test_merges_are_in_the_order_of_scores():
    tokens, scores = ["a", "b", "ab", "abab", "ba"], [0.0, 0.0, -3.0, -1.0, -2.0]
    merges = merges_of(tokens, scores, [True] * 5)
    assert merges == [("ab", "ab"), ("b", "a"), ("a", "b")]


def test_what_llama_cpp_has_no_name_for_is_refused(tokenizer, word_tokenizer):
    with pytest.raises(ValueError, match="the tokenizer is a WordLevel, qkit writes BPE"):
        entries_of(word_tokenizer(), 97)
    with pytest.raises(ValueError, match=r"has a token 4095 .* the model knows 97"):
        entries_of(tokenizer, 97)
    other = byte_level("gpt-2")
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match="cuts a text in a way of its own"):
        entries_of(other, 400)
    with pytest.raises(TypeError, match="give a fast one of transformers"):
        entries_of(object(), 97)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "tokenizer.ggml.pre='deepseek-llm', qkit knows how gpt-2, smollm"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre='default'"),
        ({"tokenizer.ggml.tokens": ["a"] * 340}, "a token twice"),
        ({"tokenizer.ggml.tokens": ["a"]}, "1 tokens"),
        ({"tokenizer.ggml.tokens": [1] * 340}, "numbers among tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "1 types of 340 tokens"),
        ({"tokenizer.ggml.merges": ["abc"]}, "a merge that is no pair"),
        ({"tokenizer.ggml.merges": ["qqq zzz"]}, "cannot be built"),
        ({"tokenizer.ggml.model": "llama"}, "lacks tokenizer.ggml.scores"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0]}, "1 scores of 340 tokens"),
    ],
)
def test_entries_that_do_not_belong_together_are_refused(change, why):
    entries = {**entries_of(byte_level("gpt-2"), 340), **change}
    with pytest.raises(ValueError, match=why) as caught:
        tokenizer_from(File({key: value for key, value in entries.items() if value is not None}), 340)
    assert "\n" not in str(caught.value)
