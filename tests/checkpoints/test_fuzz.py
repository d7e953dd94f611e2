"""Mutants of everything that qkit writes: the very same comes back, or one sentence; nothing crashes, nothing is unpickled."""

import io
import json
import pickle
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from damage import edit_manifest
from mutate import mutate, mutate_json
from qkit import AWQ, GPTQ, RTN, load, quantize, save
from qkit.checkpoints.tensors import bytes_of

SAVED = Path(__file__).parent / "saved"
MUTANTS = 120  # of each kind; thousands were tried once
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "head_dim": 8}


def never(*_, **__):
    raise AssertionError("something was unpickled")


@pytest.fixture
def folder(make_model, word_tokenizer, tmp_path):
    """A quantized model with a tokenizer."""
    model = make_model("llama", **SIZES)
    quantize(model, RTN(4, 4))
    return save(model, tmp_path / "saved", tokenizer=word_tokenizer(bos_token="w03"))


def signature(folder: Path) -> tuple:
    """All that `load` gives: classes, settings, tensors, both configs, the tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        for place, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
            patch.setattr(place, name, never)
        model, tokenizer = load(folder)
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    words = tokenizer and (tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map, len(tokenizer))
    return (
        repr(model),
        {name: (t.dtype, t.shape, bytes_of(t)) for name, t in tensors.items()},
        model.config.to_dict(),
        model.config._attn_implementation,
        model.generation_config.to_dict(),
        str(words),
    )


def outcome(folder: Path, expected: tuple | None) -> str:
    """What came of a mutant; None as expected: another model may come of it, no raw error."""
    try:
        found = signature(folder)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
        return "refused"
    assert expected is None or found == expected
    return "the same" if expected else "loaded"


def run(folder: Path, expected: tuple | None, seed: int, mutants: int, sign: bool = False) -> Counter:
    """Mutate one file after the other, look, and mend it again."""
    choose, counts = random.Random(seed), Counter()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(mutants):
        path = folder / "qkit.json" if sign else choose.choice(paths)
        raw = path.read_bytes()
        if sign:
            edit_manifest(folder, lambda manifest: _become(manifest, mutate_json({**manifest, "sha256": ""}, choose)))
        else:
            path.write_bytes(mutate(raw, choose))
        try:
            counts[path.suffix, outcome(folder, expected)] += 1
        except BaseException:
            shutil.copytree(folder, folder.with_name(f"failed-{seed}"), dirs_exist_ok=True)
            raise
        path.write_bytes(raw)
    return counts


def _become(manifest: dict, other: dict) -> None:
    manifest.clear()
    manifest.update(other)


def test_mutants_of_a_saved_folder(folder):
    """Of every file of it; config.json is not read."""
    counts = run(folder, signature(folder), 0, MUTANTS)
    assert counts[".safetensors", "refused"] and counts[".json", "refused"]
    assert not counts[".safetensors", "the same"]


def test_mutants_whose_manifest_is_signed_again(folder):
    """What its sum would catch is there again; no sum knows what makes sense."""
    assert run(folder, None, 1, MUTANTS, sign=True)[".json", "refused"]


@pytest.mark.parametrize("name", ["v1-rtn", "v2-rtn"])
def test_mutants_of_older_folders(name, tmp_path):
    """Their manifests and tokenizers have no sum."""
    older = shutil.copytree(SAVED / name, tmp_path / name)
    assert run(older, None, 2, MUTANTS // 2)[".json", "refused"]


def test_mutants_of_a_folder_that_transformers_wrote(make_model, word_tokenizer, tmp_path):
    make_model("llama", **SIZES).save_pretrained(tmp_path / "theirs")
    word_tokenizer(bos_token="w03").save_pretrained(tmp_path / "theirs")
    assert run(tmp_path / "theirs", None, 3, MUTANTS // 2)[".json", "refused"]


def test_a_pickle_in_the_place_of_any_file(folder):
    raw = io.BytesIO()
    pickle.dump({"lm_head.weight": [1.0]}, raw)
    expected = signature(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        before = path.read_bytes()
        path.write_bytes(raw.getvalue())
        ours = path.parent != folder or path.name == "qkit.json" or path.name.startswith("weights-")
        assert outcome(folder, expected) == ("refused" if ours else "the same")  # the rest is copies for transformers
        path.write_bytes(before)


def test_a_file_more_is_not_read(folder):
    expected = signature(folder)
    names = ["added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.py", "model.safetensors"]
    for parent in [folder, next(folder.glob("tokenizer-*"))]:
        for name in [*names, ".hidden"]:
            (parent / name).write_text(json.dumps({"w03": 5}))
            refused = parent != folder and name != ".hidden"
            assert outcome(folder, expected) == ("refused" if refused else "the same"), name
            (parent / name).unlink()


@pytest.mark.parametrize("scheme", [GPTQ(4, 4), AWQ(4, 4)], ids=lambda scheme: scheme.name)
def test_mutants_of_finished_blocks(make_model, scheme, tmp_path):
    """The same model, or a sentence and a model that is as it was."""
    ids = torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(1))
    float_model = make_model("llama", **SIZES)
    before = {name: bytes_of(tensor) for name, tensor in float_model.state_dict().items()}
    expected = make_model("llama", **SIZES)
    quantize(expected, scheme, calibration=ids, resume=tmp_path)
    (path,) = tmp_path.iterdir()
    raw, choose, counts = path.read_bytes(), random.Random(0), Counter()
    for _ in range(MUTANTS // 2):
        path.write_bytes(mutate(raw, choose))
        model = make_model("llama", **SIZES)
        try:
            quantize(model, scheme, calibration=ids, resume=tmp_path, progress=False)
        except ValueError as error:
            assert "delete it, and its block is solved again" in str(error) and "\n" not in str(error)
            assert {name: bytes_of(tensor) for name, tensor in model.state_dict().items()} == before
            counts["refused"] += 1
        else:
            found, wanted = model.state_dict(), expected.state_dict()
            assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
            counts["the same"] += 1
    assert counts["refused"] > 9 * counts["the same"]
