import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import qkit
from damage import flip, refused, truncate
from qkit import load


def test_a_folder_that_transformers_wrote_is_loaded(model, tmp_path, ids, logits):
    model.save_pretrained(tmp_path)
    loaded, tokenizer = load(tmp_path)
    assert tokenizer is None
    assert not loaded.training
    assert torch.equal(logits(loaded, ids), logits(model, ids))


# ---- refused: what is no model


class Payload:
    """Unpickling it writes a file: the sign that something was unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_is_never_loaded(llama, tmp_path, name):
    folder, mark = tmp_path / "folder", tmp_path / "unpickled"
    llama.config.save_pretrained(folder)
    (folder / name).write_bytes(pickle.dumps({"lm_head.weight": Payload(mark)}))
    with pytest.raises(ValueError, match=r"folder.*safetensors"):
        load(folder)
    assert not mark.exists()


def test_genuine_weights_in_a_pickle_are_not_loaded_either(llama, tmp_path):
    llama.config.save_pretrained(tmp_path)
    torch.save(llama.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="qkit reads safetensors only"):
        load(tmp_path)


def test_a_truncated_model_of_transformers_is_refused(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    truncate(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors|truncated|altered"):
        load(tmp_path)


def test_a_broken_config_of_transformers_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config"):
        load(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    refused(
        tmp_path, r"holds neither qkit\.json nor config\.json; give a folder that qkit\.save or save_pretrained wrote"
    )


@pytest.mark.parametrize("name", ["./none", "/none/such", "~/none-such", "a/b/c", "a\\b"])
def test_a_path_that_does_not_exist_is_refused(name):
    refused(name, r"folder .* does not exist; give a folder that qkit\.save or save_pretrained wrote")


def test_a_misspelt_name_is_refused_with_the_right_one():
    refused("bookworm-15m", "model 'bookworm-15m' is not embedded, but 'bookworm-14m' is; correct the name")


@pytest.mark.parametrize("name", ["gpt5", "nobody/nothing"])
def test_an_unknown_name_is_refused_with_what_is_embedded(name):
    refused(
        name,
        rf"model '{name}' is not embedded \(bookworm-14m\), is no folder here, .*; check the spelling, or the network",
    )


# ---- the embedded model


def test_the_embedded_model_is_float32_in_eval_mode_and_tied(embedded):
    model, tokenizer = embedded
    assert isinstance(model, PreTrainedModel)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(parameter.numel() for parameter in model.parameters()) == 14_162_304
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 4096)


@pytest.mark.parametrize("damage", [flip, truncate])
def test_an_altered_embedded_model_is_refused(tmp_path, monkeypatch, damage):
    shutil.copytree(qkit.text.resources.folder("data") / "bookworm-14m", tmp_path / "bookworm-14m")
    damage(tmp_path / "bookworm-14m" / "model.safetensors")
    monkeypatch.setattr("qkit.text.resources.folder", lambda name: tmp_path)
    refused(
        "bookworm-14m", r"model\.safetensors has sha256 .*, expected 87817cfded41\.\.\.: it was altered; copy it again"
    )
