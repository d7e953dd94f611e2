"""Our GGUF files in llama.cpp itself: it generates our text (make test-peers).

Of a file in F16 both compute the same to the last few bits, and greedy text is the same, token for token. With codes llama.cpp
rounds what goes into a layer to 8 bits in blocks of 32 and qkit does not: close calls fall otherwise, and from there on the
texts differ. So each of its tokens must be one that we too would have taken, or nearly: given its text so far, our most
likely token is not more than `CLOSE` nats ahead of it. And with activations rounded as it does, we write its very text.
"""

import pytest
import torch

import qkit
from llamacpp import CLOSE, behind, heard, llama_cpp, ours, rounded, written
from qkit.bench.judged import READ_BY_US, READS_OURS
from qkit.checkpoints.gguf.read import load_gguf
from qkit.checkpoints.gguf.tokenizer import PRE
from qkit.nn.layers import quantized_layers
from small_tokenizers import TEXTS, byte_level, sentence_piece
from verdicts import PROMPT, TOKENS, compared

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install qkit[peers]")

pytestmark = pytest.mark.peers
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 340}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture
def book(embedded):
    """A copy of bookworm's modules, and its tokenizer."""
    from qkit.model.surgery import clone

    return clone(embedded[0]), embedded[1]


def heard_beside(path, model, tokenizer, original=None):
    """What is measured of one file: llama.cpp's probabilities beside those of `model`."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    return compared(model, ids, heard(llama_cpp(path), ids, model.config.vocab_size, TOKENS), original)


def test_floats_generate_the_same_text(book, verdict, tmp_path):
    model, tokenizer = book
    path = qkit.save(model, tmp_path / "model.gguf", tokenizer, format="gguf").path
    assert written(llama_cpp(path), PROMPT)[0] == ours(model, tokenizer, PROMPT)
    measured = heard_beside(path, model, tokenizer, model)
    assert measured["same_text"] and measured["error"] < 1e-3 and measured["kl"] < 1e-6, measured
    verdict("gguf", "F16", "llama.cpp", READS_OURS, "bookworm-14m", **measured)


@pytest.mark.parametrize(
    ("scheme", "same"),
    [
        (qkit.RTN(4, 32, symmetric=True), True),
        (qkit.RTN(4, 32), True),
        (qkit.RTN(4, 32, include_zero=False), True),
        (qkit.RTN(4, 128, symmetric=True), True),
        (qkit.RTN(8, symmetric=True), False),  # one call in forty is closer than the order of a sum
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_codes_generate_our_text(book, embedded, verdict, tmp_path, scheme, same):
    model, tokenizer = book
    qkit.quantize(model, scheme)
    path = qkit.save(model, tmp_path / "model.gguf", tokenizer, format="gguf").path
    theirs, _ = written(llama_cpp(path), PROMPT)
    gaps = behind(model, tokenizer, PROMPT, theirs)
    assert len(gaps) >= 30 and gaps.max() < CLOSE
    again, _ = load_gguf(path)
    for layer in quantized_layers(again).values():
        layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    assert not same or ours(again, tokenizer, PROMPT) == theirs
    floats, _ = load_gguf(path, floats=True)  # the numbers of the codes, in F16 and without rounded activations
    as_floats = qkit.save(floats, tmp_path / "floats.gguf", tokenizer, format="gguf").path
    assert written(llama_cpp(as_floats), PROMPT)[0] == ours(floats, tokenizer, PROMPT)
    measured = heard_beside(path, model, tokenizer, embedded[0])
    assert measured["error"] < 0.03 and measured["kl"] < 2e-3, measured  # its activations have 8 bits
    verdict("gguf", scheme.name, "llama.cpp", READS_OURS, "bookworm-14m", **measured)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 8192}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_every_architecture_computes_there_what_it_does_here(kind, changes, make_model, tmp_path):
    """Rows of q and k, biases, frequencies, norms: were one in the wrong place, a random model would say other things."""
    changes, tokenizer = dict(changes), byte_level("gpt-2")
    model = make_model(kind, changes.pop("tie_word_embeddings", None), **SIZES, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 3 if parameter.dim() > 1 else parameter).half())  # more to choose between
    path = qkit.save(model, tmp_path / "model.gguf", tokenizer, format="gguf").path
    assert written(llama_cpp(path), TEXTS[0], 24)[0] == ours(model, tokenizer, TEXTS[0], 24)


@pytest.mark.parametrize(
    ("make", "way"), [*((byte_level, pre) for pre in PRE), (sentence_piece, True), (sentence_piece, False)]
)
def test_texts_are_cut_as_here(make, way, make_model, tmp_path):
    tokenizer = make(way)
    model = make_model("llama", **{**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 512})
    server = llama_cpp(qkit.save(model, tmp_path / "model.gguf", tokenizer, format="gguf").path)
    for text in TEXTS[:-1]:
        for end in (len(text), len(text) // 2, len(text) // 3):
            assert written(server, text[:end], 1)[1] == len(tokenizer(text[:end]).input_ids), text[:end]


def test_smollm2_is_read_as_llama_cpp_reads_it(verdict, tmp_path):
    from qkit.checkpoints.packaged import packaged_file

    try:
        path = packaged_file("smollm2-135m")
    except ImportError as error:
        pytest.skip(str(error))
    model, tokenizer = load_gguf(path)
    prompt = "The capital of France is"
    theirs, _ = written(llama_cpp(path), prompt, 24)
    floats = qkit.save(load_gguf(path, floats=True)[0], tmp_path / "floats.gguf", tokenizer, format="gguf").path
    assert written(llama_cpp(floats), prompt, 24)[0] == ours(model, tokenizer, prompt, 24)
    for layer in [*quantized_layers(model).values(), model.lm_head]:  # its head is in codes of 8 bits there
        layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    assert ours(model, tokenizer, prompt, 24) == theirs and theirs.startswith(" Paris.")
    measured = heard_beside(path, load_gguf(path)[0], tokenizer)
    assert measured["error"] < 0.05 and measured["kl"] < 0.02, measured
    verdict("gguf", "Q4_1, head Q8_0", "llama.cpp", READ_BY_US, "smollm2-135m", **measured)
