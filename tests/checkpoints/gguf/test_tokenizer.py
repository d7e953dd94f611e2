"""Tokenizers through the entries of a GGUF file: the same ids for every text, both ways; what does not fit is refused."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qkit.checkpoints.gguf.tokenizer import PRE, entries_of, merges_of, tokenizer_from

TEXTS = (
    "It was the best of times, it was the worst of times; 12345 and 3.14 of them.",
    "  two  spaces\n\n\tand lines\r\n",
    "don't DON'T we'll naïve café Ünïcödé 漢字 🙂 <s> </s> after",
    "def f(x):\n    return x['a'] != 0  # comment",
    "",
)


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


def byte_level(pre: str) -> PreTrainedTokenizerFast:
    """A small byte-level BPE that cuts texts in one of the known ways."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [*TEXTS * 3],
        trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    described = json.loads(backend.to_str())
    described |= {key: PRE[pre][key] for key in ("normalizer", "pre_tokenizer")}
    described["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    described["model"]["ignore_merges"] = PRE[pre]["ignore_merges"]
    backend = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


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


def sentence_piece(prefix: bool) -> PreTrainedTokenizerFast:
    """A small BPE as SentencePiece has it: spaces written as a letter, bytes spelled out, every pair that is a token merged."""
    words = ["▁", *sorted({*"".join(TEXTS[:2]).replace(" ", "").replace("\n", "").replace("\t", "").replace("\r", "")})]
    longer = [
        "th",
        "▁th",
        "the",
        "▁the",
        "at",
        "▁w",
        "as",
        "▁was",
        "▁wa",
        "st",
        "▁o",
        "▁of",
        "of",
        "ime",
        "im",
        "▁t",
        "12",
        "was",
    ]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], *words, *longer]
    scores = [0.0] * (259 + len(words)) + [-float(i) for i in range(len(longer))]
    usable = [False] * 259 + [True] * (len(words) + len(longer))
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges_of(tokens, scores, usable),
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    steps = [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(steps)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * prefix)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


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
