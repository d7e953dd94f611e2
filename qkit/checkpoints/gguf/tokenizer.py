"""The tokenizer in a GGUF file: tokens and merges, from which transformers' is built again, and back.

Two kinds, by `tokenizer.ggml.model`:

    gpt2    byte-level BPE. Tokens, merges, and by `tokenizer.ggml.pre` the *name* of how a text is cut beforehand: llama.cpp
            has the expressions in its code, and the file does not say them. Four names are known here, by the same
            expressions in the words of `tokenizers`.
    llama   SentencePiece's BPE: tokens with scores. The pair whose token has the best score is merged first, so sorting all
            pairs by score gives the merges that `tokenizers` wants. A byte that no token has is spelled <0x0A>.

Anything else is refused by its name; a file without a tokenizer has none.
"""

import json
from typing import Any

from qkit.checkpoints.files import line_of
from qkit.checkpoints.gguf.architecture import Facts
from qkit.checkpoints.gguf.container import Container

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of tokens
SPACE = "▁"  # how SentencePiece writes a space
NO_TOKENIZER = ("none", "no_vocab")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _cut(numbers: str) -> dict[str, Any]:
    pattern = {"Regex": _CONTRACTIONS + numbers + _REST}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _bytes(False)]}


# How a text is cut before merges: llama.cpp's name, and what it means as `tokenizers` writes it
PRE: dict[str, dict[str, Any]] = {
    "gpt-2": {"normalizer": None, "pre_tokenizer": _bytes(True), "ignore_merges": False},
    "smollm": {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
        },
        "ignore_merges": False,
    },
    "llama-bpe": {"normalizer": None, "pre_tokenizer": _cut(r"\p{N}{1,3}"), "ignore_merges": True},
    "qwen2": {"normalizer": {"type": "NFC"}, "pre_tokenizer": _cut(r"\p{N}"), "ignore_merges": False},
}
STARTS = ("llama-bpe",)  # of these, texts begin with BOS where the file does not say
SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_from(container: Container, vocabulary: int) -> Any:
    """The tokenizer of a file for a model of `vocabulary` tokens; None where it has none.

    Raises:
        ValueError: another kind, another way to cut texts, or entries that do not belong together.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    facts = Facts(container)
    kind = facts.get("tokenizer.ggml.model", str, "none")
    if kind in NO_TOKENIZER:
        return None
    if kind not in ("gpt2", "llama"):
        raise ValueError(
            f"{facts.path} has tokenizer.ggml.model={kind!r}, qkit reads gpt2 (byte-level BPE) and llama (SentencePiece); use "
            f"llama.cpp, or the folder of the model with transformers"
        )
    tokens = _texts(facts, "tokenizer.ggml.tokens")
    if len(tokens) != vocabulary or len(set(tokens)) != len(tokens):
        what = f"{len(tokens)} tokens" if len(tokens) != vocabulary else "a token twice"
        raise ValueError(
            f"{facts.path} has {what} in tokenizer.ggml.tokens, the model knows {vocabulary}; copy it again"
        )
    types = facts.get("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise ValueError(f"{facts.path} has {len(types)} types of {len(tokens)} tokens; it was altered: copy it again")
    described = _byte_level(facts, tokens) if kind == "gpt2" else _sentence_piece(facts, tokens, types)
    words = described["model"]["vocab"]
    for token, type_ in zip(tokens, types, strict=True):
        if type_ == UNUSED:  # what a converter fills an embedding up with that has more rows than there are tokens
            del words[token]
    known = {ours: facts.get(f"tokenizer.ggml.{theirs}_token_id", int, None) for theirs, ours in SPECIAL.items()}
    special = {name: tokens[i] for name, i in known.items() if i is not None and 0 <= i < len(tokens)}
    described["added_tokens"] = [
        _added(i, token, type_ == CONTROL)
        for i, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ in (CONTROL, USER_DEFINED) or (kind == "llama" and type_ == UNKNOWN)
    ]
    starts = facts.get("tokenizer.ggml.add_bos_token", bool, kind == "llama" or described.pop("starts", False))
    described.pop("starts", None)
    ends = facts.get("tokenizer.ggml.add_eos_token", bool, False)
    described["post_processor"] = _template(
        tokens, known["bos_token"] if starts else None, known["eos_token"] if ends else None
    )
    template = facts.get("tokenizer.chat_template", str, None)
    try:
        backend = Tokenizer.from_str(json.dumps(described))
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            model_max_length=facts.count(f"{facts.metadata['general.architecture']}.context_length"),
            **special,
            **({} if template is None else {"chat_template": template}),
        )
    except Exception as error:  # tokenizers raises no kind of its own
        raise ValueError(
            f"the tokenizer of {facts.path} cannot be built ({line_of(error, 0)}); it was altered: copy the file again"
        ) from error


def _texts(facts: Facts, key: str) -> list[str]:
    texts = facts.get(key, list)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{facts.path} has numbers among {key}; it was altered: copy it again")
    return texts


def _byte_level(facts: Facts, tokens: list[str]) -> dict[str, Any]:
    pre = facts.get("tokenizer.ggml.pre", str, "default")
    if pre not in PRE:
        raise ValueError(
            f"{facts.path} has tokenizer.ggml.pre={pre!r}, qkit knows how {', '.join(PRE)} cut a text; use llama.cpp, or the "
            f"folder of the model with transformers"
        )
    merges = [tuple(merge.split(" ")) for merge in _texts(facts, "tokenizer.ggml.merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{facts.path} has a merge that is no pair; it was altered: copy it again")
    return {
        "version": "1.0",
        "normalizer": PRE[pre]["normalizer"],
        "pre_tokenizer": PRE[pre]["pre_tokenizer"],
        "decoder": {**_bytes(True), "add_prefix_space": True},
        "model": _bpe(tokens, merges, ignore_merges=PRE[pre]["ignore_merges"]),
        "starts": pre in STARTS,
    }


def _sentence_piece(facts: Facts, tokens: list[str], types: list[int]) -> dict[str, Any]:
    scores = facts.get("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens) or not all(isinstance(score, float) for score in scores):
        raise ValueError(
            f"{facts.path} has {len(scores)} scores of {len(tokens)} tokens; it was altered: copy it again"
        )
    unknown = facts.get("tokenizer.ggml.unknown_token_id", int, None)
    prefix = facts.get("tokenizer.ggml.add_space_prefix", bool, True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizers = [{"type": "Prepend", "prepend": SPACE}] * prefix + [spaces]
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix),
    ]
    usable = [type_ not in (CONTROL, UNKNOWN, UNUSED, BYTE) for type_ in types]
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            tokens,
            merges_of(tokens, scores, usable),
            unk_token=tokens[unknown] if unknown is not None and 0 <= unknown < len(tokens) else None,
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def merges_of(tokens: list[str], scores: list[float], usable: list[bool]) -> list[tuple[str, str]]:
    """Every pair of tokens that is a token, the one of the best score first: SentencePiece's order as a list of merges."""
    number = {token: i for i, token in enumerate(tokens) if usable[i]}
    pairs = [
        (-scores[i], i, cut)
        for token, i in number.items()
        for cut in range(1, len(token))
        if token[:cut] in number and token[cut:] in number
    ]
    return [(tokens[i][:cut], tokens[i][cut:]) for _, i, cut in sorted(pairs)]


def _bpe(tokens: list[str], merges: list[tuple[str, ...]] | list[tuple[str, str]], **settings: Any) -> dict[str, Any]:
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return {**plain, **settings, "vocab": vocabulary, "merges": [list(merge) for merge in merges]}


def _added(i: int, token: str, special: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": token, **plain, "special": special}


def _template(tokens: list[str], begin: int | None, end: int | None) -> dict[str, Any] | None:
    """What is put before and behind a text."""
    used = [i for i in (begin, end) if i is not None and 0 <= i < len(tokens)]
    if not used:
        return None

    def token(i: int, part: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": tokens[i], "type_id": part}}

    def around(name: str, part: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": part}}
        return [*([token(begin, part)] if begin in used else []), text, *([token(end, part)] if end in used else [])]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in used},
    }


def entries_of(tokenizer: Any, vocabulary: int) -> dict[str, Any]:
    """The entries that say a tokenizer of transformers, for a model of `vocabulary` tokens, by their names in the file.

    Raises:
        ValueError: llama.cpp has no such tokenizer, or it has more tokens than the model.
        TypeError: it is none of transformers' fast ones.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}; give a fast one of transformers: model, tokenizer = qkit.load(name)"
        )
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise ValueError(
            f"the tokenizer is a {model['type']}, qkit writes BPE into GGUF; leave format out for qkit's own"
        )
    tokens, types = _tokens(described, vocabulary)
    entries = (
        _sentence_piece_entries(described, tokens, types) if model["byte_fallback"] else _byte_level_entries(described)
    )
    special = {
        f"tokenizer.ggml.{theirs}_token_id": getattr(tokenizer, f"{ours}_id", None) for theirs, ours in SPECIAL.items()
    }
    around = tokenizer("a").input_ids
    begins = tokenizer.bos_token_id is not None and around[:1] == [tokenizer.bos_token_id]
    ends = tokenizer.eos_token_id is not None and around[-1:] == [tokenizer.eos_token_id]
    template = getattr(tokenizer, "chat_template", None)
    return {
        **entries,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **{key: number for key, number in special.items() if number is not None},
        "tokenizer.ggml.add_bos_token": begins,
        "tokenizer.ggml.add_eos_token": ends,
        **({"tokenizer.chat_template": template} if isinstance(template, str) else {}),
    }


def _tokens(described: dict[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """Tokens by number, and their types; numbers that no token has are filled up, as llama.cpp's converter does."""
    numbered = {i: token for token, i in described["model"]["vocab"].items()}
    added = {token["id"]: token for token in described["added_tokens"]}
    numbered.update({i: token["content"] for i, token in added.items()})
    if max(numbered) >= vocabulary:
        raise ValueError(
            f"the tokenizer has a token {max(numbered)} ({numbered[max(numbered)]!r}), the model knows {vocabulary}; "
            f"give the tokenizer of this model"
        )
    tokens = [numbered.get(i, f"[PAD{i}]") for i in range(vocabulary)]
    unknown, falls_back = described["model"]["unk_token"], described["model"]["byte_fallback"]

    def type_of(i: int, token: str) -> int:
        if i not in numbered:
            return UNUSED
        if falls_back and token == unknown:
            return UNKNOWN
        if i in added:
            return CONTROL if added[i]["special"] else USER_DEFINED
        return BYTE if falls_back and is_byte(token) else NORMAL

    return tokens, [type_of(i, token) for i, token in enumerate(tokens)]


def is_byte(token: str) -> bool:
    """Whether a token is how SentencePiece spells a byte, <0x0A>."""
    return len(token) == 6 and token in {f"<0x{i:02X}>" for i in range(256)}


def _byte_level_entries(described: dict[str, Any]) -> dict[str, Any]:
    cut = {
        "normalizer": described["normalizer"],
        "pre_tokenizer": described["pre_tokenizer"],
        "ignore_merges": described["model"]["ignore_merges"],
    }
    pre = next((name for name, known in PRE.items() if _plain(known) == _plain(cut)), None)
    if pre is None:
        raise ValueError(
            f"the tokenizer cuts a text in a way of its own ({json.dumps(cut['pre_tokenizer']):.120}), llama.cpp knows ways by "
            f"name, and qkit {', '.join(PRE)}; leave format out for qkit's own"
        )
    merges = [" ".join(pair) for pair in described["model"]["merges"]]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges}


def _plain(cut: Any) -> Any:
    """Without what moves offsets and no token, and where an option that is off may be left out."""
    if isinstance(cut, dict):
        return {key: _plain(value) for key, value in cut.items() if key != "trim_offsets"}
    return [_plain(part) for part in cut] if isinstance(cut, list) else cut


def _sentence_piece_entries(described: dict[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    merges = [(first, second) for first, second in described["model"]["merges"]]
    place: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        place.setdefault("".join(pair), rank)
    # llama.cpp merges first what has the best score as a whole: so a token that is made early gets a high one
    scores = [-float(place.get(token, len(merges))) for token in tokens]
    usable = [type_ in (NORMAL, USER_DEFINED) for type_ in types]
    made = [place["".join(pair)] for pair in merges]
    if made != sorted(made) or set(merges) != set(merges_of(tokens, scores, usable)):
        raise ValueError(
            "the tokenizer's merges are not in the order of any scores, which is all that llama.cpp keeps of them; "
            "leave format out for qkit's own"
        )
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": _prefix(described),
    }


def _prefix(described: dict[str, Any]) -> bool:
    """Whether a space is put before a text."""
    normalizer, pre = described["normalizer"] or {}, described["pre_tokenizer"]
    steps = [step["type"] for step in normalizer.get("normalizers", [normalizer] if normalizer else [])]
    if pre is None and steps in (["Prepend", "Replace"], ["Replace"]):
        return steps[0] == "Prepend"
    if not steps and pre is not None and pre["type"] == "Metaspace" and pre.get("split") is False:
        return pre["prepend_scheme"] != "never"
    raise ValueError(
        f"the tokenizer prepares a text by {steps} and {pre and pre['type']}, llama.cpp only writes spaces as {SPACE}; "
        f"leave format out for qkit's own"
    )
