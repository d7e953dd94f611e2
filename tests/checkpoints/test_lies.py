"""Folders that say what is not so: each is refused in one sentence, before what it claims costs time or memory."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qkit
from damage import refused
from qkit.checkpoints.names import some

PEERS = Path(__file__).parent / "peers"
Q = "model.layers.0.self_attn.q_proj"
STATE = f"{Q}.weight.quant_state.bitsandbytes__nf4"


@pytest.fixture
def folder(tmp_path, request):
    """A copy of the golden that the test is parametrized with, or of GPTQ's."""
    return shutil.copytree(PEERS / getattr(request, "param", "gptq-4"), tmp_path / "folder")


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def say(folder: Path, **fields) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | fields))


def put(folder: Path, **tensors) -> None:
    state = load_file(folder / "model.safetensors") | tensors
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def shards(folder: Path, change=lambda weight_map: weight_map) -> None:
    """Two files and their index, changed."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(state)}
    for shard in set(weight_map.values()):
        save_file({name: state[name] for name in state if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": change(weight_map)}))


def as_floats(folder: Path) -> None:
    """The same model as transformers' own, of floats."""
    model, _ = qkit.load(folder)
    shutil.rmtree(folder)
    floats = type(model)(model.config)
    floats.save_pretrained(folder)


# ---- what a config claims


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"num_hidden_layers": 10**5}, r"num_hidden_layers=100000, and all its files hold \d+ tensors"),
        ({"num_hidden_layers": 10**12}, r"num_hidden_layers=1000000000000, and all its files hold \d+ tensors"),
        ({"rms_norm_eps": float("nan")}, "says rms_norm_eps=NaN, which is no number"),
    ],
)
def test_a_config_that_claims_too_much_is_refused_before_it_costs(folder, floats, fields, match):
    if floats:
        as_floats(folder)
    say(folder, **fields)
    refused(folder, match + "; copy or convert the model again")


def test_code_that_comes_with_a_folder_is_not_run(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()")
    say(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    qkit.load(folder)  # the class is transformers' own, nobody asks for theirs
    say(folder, model_type="evil")
    refused(folder, "no causal language model that this transformers knows: config.json says model_type='evil'")
    assert not (folder / "ran").exists()


# ---- what lies in the files


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("floats", [False, True])
def test_floats_that_are_no_numbers_are_refused(folder, floats, name, number):
    """Of the layers that are not quantized, and of a model in floats."""
    if floats:
        as_floats(folder)
    tensor = load_file(folder / "model.safetensors")[name]
    tensor.view(-1)[1] = number
    put(folder, **{name: tensor})
    refused(folder, f"holds NaN or infinity in {name}; copy or convert the model again")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_float_that_is_of_another_kind_is_refused(folder, dtype):
    put(folder, **{"model.norm.weight": torch.ones(64, dtype=dtype)})
    refused(folder, rf"of another kind are model.norm.weight \({str(dtype).removeprefix('torch.')}\)")


@pytest.mark.parametrize("name", ["norm.weight", "model.model.norm.weight", f"model.{Q}.qweight"])
def test_a_tensor_of_two_names_is_refused(folder, name):
    """Some folders leave out "model." or have it twice; one that does both has two tensors for one place."""
    put(folder, **{name: torch.ones(64)})
    refused(folder, "twice, under two names")


def test_names_that_cannot_be_printed_are_shown_in_one_line(folder):
    put(folder, **{"../x\n.weight": torch.ones(2)})
    refused(folder, r"left over are '\.\./x\\n\.weight'")
    assert some(["", "a" * 1000]) == f"'', '{'a' * 200}'"


def test_a_pickle_is_not_read_whatever_it_is_called(folder):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "ran"),)

    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    refused(folder, "model.safetensors is not whole")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "model.safetensors is missing; qkit reads safetensors only")
    assert not (folder / "ran").exists()


# ---- what an index names


@pytest.mark.parametrize(
    "name",
    [
        *("../x.safetensors", "..\\x.safetensors", "sub/x.safetensors", "/etc/passwd", "", ".", "..", 3, None, ["a"]),
        *("a\0.safetensors", "pytorch_model.bin", "a" * 5000, "a" * 300 + ".safetensors"),
    ],
)
def test_an_index_that_names_what_is_no_safetensors_file_of_its_folder(folder, name):
    shards(folder, lambda weight_map: weight_map | {"x": name})
    refused(folder, "names no safetensors files of its own folder; copy or convert the model again")


def test_a_tensor_in_two_shards_is_refused(folder):
    shards(folder)
    first, second = sorted(folder.glob("model-*.safetensors"))
    state = load_file(first)
    name = next(iter(state))
    save_file(load_file(second) | {name: state[name] * 0}, second)
    refused(folder, rf"holds {name}, which another file of the folder holds too; copy or convert")


def test_a_shard_that_is_a_link_is_read(folder, tmp_path):
    """So the hub's cache keeps them."""
    shards(folder)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    qkit.load(folder)


# ---- what a format says of itself


@pytest.mark.parametrize("folder", ["gptq-2", "gptq-4", "gptq-8-row"], indirect=True)
def test_version_1_that_says_it_is_version_2_is_found_out_where_all_is_symmetric(folder, ids, logits):
    expected, _ = qkit.load(folder)
    said = config_of(folder)["quantization_config"]
    say(folder, quantization_config=said | {"checkpoint_format": "gptq_v2", "format": "gptq_v2"})
    assert torch.equal(logits(qkit.load(folder)[0], ids % 64), logits(expected, ids % 64))


@pytest.mark.parametrize("folder", ["gptq-4-asymmetric-v2", "gptq-4-asymmetric-v1"], indirect=True)
@pytest.mark.parametrize("field", ["checkpoint_format", "format"])
def test_two_versions_in_one_config_are_refused(folder, field):
    """Of zero points of two kinds one is wrong, and the file does not show which."""
    said = config_of(folder)["quantization_config"]
    other = "gptq" if said[field] == "gptq_v2" else "gptq_v2"
    say(folder, quantization_config=said | {field: other})
    refused(folder, r"says checkpoint_format='gptq.*' and format='gptq.*take out the field that is wrong")


@pytest.mark.parametrize("folder", ["gptq-4-act-order"], indirect=True)
def test_an_order_that_is_promised_and_not_there_is_refused(folder):
    state = load_file(folder / "model.safetensors")
    save_file({name: state[name] for name in state if not name.endswith("g_idx")}, folder / "model.safetensors")
    refused(folder, "lacks g_idx, which desc_act=true promises")


@pytest.mark.parametrize("floats", [False, True])
def test_a_head_of_its_own_is_not_tied_whatever_the_config_says(folder, floats, ids, logits):
    """transformers does not tie it either, and tells."""
    if floats:
        as_floats(folder)
    expected = logits(qkit.load(folder)[0], ids % 64)
    say(folder, tie_word_embeddings=True)
    assert torch.equal(logits(qkit.load(folder)[0], ids % 64), expected)


def test_more_columns_in_a_group_than_its_size_is_refused(folder):
    put(folder, **{f"{Q}.g_idx": torch.zeros(64, dtype=torch.int32)})
    refused(folder, "q_proj of .* has g_idx with 64 columns in a group where group_size=32")


@pytest.mark.parametrize("folder", ["compressed-tensors-4"], indirect=True)
@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("actorder", "group", "lacks weight_g_idx, which actorder='group' promises"),
        ("group_size", 10**40, "has weight_scale "),
    ],
)
def test_compressed_tensors_that_promise_what_they_have_not(folder, field, value, match):
    said = config_of(folder)["quantization_config"]
    next(iter(said["config_groups"].values()))["weights"][field] = value
    say(folder, quantization_config=said)
    refused(folder, match)


@pytest.mark.parametrize("folder", ["bitsandbytes-nf4-double"], indirect=True)
@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("quant_type", "fp4", "says quant_type='fp4' .* in its quant_state, which is called nf4's"),
        ("dtype", "evil", "and dtype='evil' in its quant_state"),
        ("nested_dtype", "int8", "says nested_dtype='int8', and the scales of its scales are float32"),
    ],
)
def test_a_quant_state_that_contradicts_its_name(folder, field, value, match):
    said = json.loads(bytes(load_file(folder / "model.safetensors")[STATE].tolist()))
    state = torch.tensor(list(json.dumps(said | {field: value}).encode()), dtype=torch.uint8)
    put(folder, **{STATE: state})
    refused(folder, match)
