"""Small tokenizers of the two kinds that GGUF files hold, and texts that show where they differ."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qkit.checkpoints.gguf.tokenizer import PRE, merges_of

TEXTS = (
    "It was the best of times, it was the worst of times; 12345 and 3.14 of them.",
    "  two  spaces\n\n\tand lines\r\n",
    "don't DON'T we'll naïve café Ünïcödé 漢字 🙂 <s> </s> after",
    "def f(x):\n    return x['a'] != 0  # comment",
    "",
)


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
