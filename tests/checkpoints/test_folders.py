"""GPTQ, AWQ, bitsandbytes, compressed-tensors: written and read, against a slow rewrite, the libraries' own files, and damage."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import qkit
import slow_formats as slow
from damage import refused
from grids import thinned
from qkit.checkpoints.awq import interleave, separate
from qkit.checkpoints.bitsandbytes import high_half_first, row_absmax
from qkit.checkpoints.formats import FORMATS
from qkit.checkpoints.tensors import bytes_of
from qkit.checkpoints.words import octets, pack_words, unpack_words, word_count, words
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.layers import quantized_layers
from qkit.nn.permuted_linear import PermutedLinear
from qkit.numerics.activations import quantize_activations
from qkit.numerics.arithmetic import divided

SIZES = {
    "llama": {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_inner": 96},
    "opt": {"hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen2": {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16},
}
CASES = {
    "gptq": [
        *(qkit.RTN(bits, 32, symmetric=symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)),
        qkit.RTN(4, symmetric=True),
        qkit.RTN(3, "tensor"),
        {"*.down_proj": qkit.RTN(4), "*": qkit.RTN(4, 16)},  # a scale a row is repeated
    ],
    "awq": [qkit.RTN(4, 32), qkit.RTN(4, 16, symmetric=True), qkit.RTN(4)],
    "bitsandbytes": [
        qkit.NF4(),
        qkit.NF4(block_size=128, double_quant=False),
        qkit.FP4(double_quant=False),
        qkit.LLMInt8(),
        qkit.LLMInt8(threshold=0.0),
        qkit.W8A8(),
    ],
    "compressed-tensors": [
        *(qkit.RTN(bits, 32, symmetric=True) for bits in (3, 4, 8)),
        qkit.RTN(8, symmetric=True),
        {"*.down_proj": qkit.RTN(8, symmetric=True), "*": qkit.RTN(4, 32, symmetric=True)},
        qkit.W8A8(),
        qkit.W8A8("per-tensor"),
    ],
}
PAIRS = [(form, scheme) for form, schemes in CASES.items() for scheme in schemes]
PEERS = Path(__file__).parent / "peers"
EXPECTED = json.loads((PEERS / "expected.json").read_text())


@pytest.fixture(scope="session")
def make(make_model, ids):
    def build(scheme, kind="llama", **options):
        model = make_model(kind, **SIZES[kind])
        static = scheme == qkit.W8A8("per-tensor")
        qkit.quantize(model, scheme, calibration=ids if static else None, **options)
        return model

    return build


@pytest.fixture(scope="session")
def ids():
    return torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(0))


def file_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def parts_of(folder: Path, layer: str) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix(f"{layer}."): value for key, value in file_of(folder).items() if key.startswith(f"{layer}.")
    }


# ---- out and in again


@pytest.mark.parametrize(("form", "scheme"), PAIRS, ids=str)
def test_what_goes_out_comes_in_bit_for_bit(form, scheme, make, tmp_path, ids, logits):
    model = make(scheme)
    report = qkit.save(model, tmp_path / "out", format=form)
    loaded, tokenizer = qkit.load(report)
    assert tokenizer is None and type(loaded) is type(model) and not loaded.training
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    mine, theirs = quantized_layers(model), quantized_layers(loaded)
    assert mine.keys() == theirs.keys() and report.layers == len(mine)
    for name, layer in mine.items():
        assert type(layer) is type(theirs[name])
        assert torch.equal(layer.qtensor.codes(), theirs[name].qtensor.codes())
        assert torch.equal(layer.weight, theirs[name].weight)
    assert not list((tmp_path / "out").glob(".*")), "drafts are gone"


@pytest.mark.parametrize("kind", thinned(("gpt2", "opt", "qwen2"), ("gpt2",)))
@pytest.mark.parametrize("form", FORMATS)
def test_other_kinds_of_models(form, kind, make, tmp_path, ids, logits):
    if form not in CASES:
        pytest.skip("a file has tests of its own")
    model = make(CASES[form][0], kind)
    if kind == "gpt2" and form in ("awq", "compressed-tensors"):
        with pytest.raises(ValueError, match=r"c_attn of a GPT2LMHeadModel is a Conv1D"):
            qkit.save(model, tmp_path / "out", format=form)
        assert not list(tmp_path.iterdir())
        return
    loaded, _ = qkit.load(qkit.save(model, tmp_path, format=form))
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_heads_of_other_names_stay_floats_and_awq_refuses_scaled_activations(make_model, tmp_path, ids, logits):
    for form in ("bitsandbytes", "compressed-tensors", "gptq"):
        model = make_model("neox", hidden_size=128, intermediate_size=192)
        qkit.quantize(model, CASES[form][0])
        loaded, _ = qkit.load(qkit.save(model, tmp_path / form, format=form))
        assert torch.equal(logits(loaded, ids), logits(model, ids))
        said = json.loads((tmp_path / form / "config.json").read_text())["quantization_config"]
        names = {"bitsandbytes": "llm_int8_skip_modules", "compressed-tensors": "ignore"}
        head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
        assert form == "gptq" or said[names[form]] == head  # "embed_out", or "lm_head" in later versions
    with pytest.raises(ValueError, match="keeps scales of an activation in models of type 'gpt_neox'"):
        model = make_model("neox", hidden_size=128, intermediate_size=192)
        qkit.quantize(model, qkit.RTN(4, 32))
        qkit.save(model, tmp_path / "awq", format="awq")


def test_layers_that_stay_floats_and_the_tokenizer_go_along(make, word_tokenizer, tmp_path, ids, logits):
    for form in CASES:
        model = make(CASES[form][0], exclude="*.down_proj")
        loaded, tokenizer = qkit.load(qkit.save(model, tmp_path / form, word_tokenizer(), format=form))
        assert torch.equal(logits(loaded, ids), logits(model, ids)) and tokenizer("w03 w07").input_ids == [3, 7]


def test_from_one_format_to_another_and_back_the_codes_stay(make, tmp_path, ids, logits):
    model = make(qkit.RTN(4, 32, symmetric=True))
    expected, folder = logits(model, ids), None
    for step, form in enumerate(("gptq", "awq", "compressed-tensors", None, "gptq")):
        folder = qkit.save(model, tmp_path / str(step), format=form)
        model, _ = qkit.load(folder)
        assert torch.equal(logits(model, ids), expected), form


# ---- against the slow rewrite


@pytest.mark.parametrize(("form", "scheme"), PAIRS, ids=str)
def test_a_file_means_what_its_description_says(form, scheme, make, tmp_path):
    model = make(scheme)
    qkit.save(model, tmp_path, format=form)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        parts, layer = parts_of(tmp_path, name), model.get_submodule(name)
        if form == "gptq":
            assert (said["checkpoint_format"] == "gptq") == layer.qtensor.symmetric == said["sym"]
            weight = slow.gptq(parts, layer.bits, 1 if said["sym"] else 2)
        elif form == "awq":
            weight = slow.awq(parts, layer.in_features if said["group_size"] == -1 else said["group_size"])
        elif form == "bitsandbytes":
            eight = isinstance(layer, Int8Linear)
            weight = slow.bitsandbytes8(parts) if eight else slow.bitsandbytes4(parts, layer.qtensor.codebook)
        elif "weight_packed" in parts:
            weight = slow.packed(parts, layer.bits)
        else:
            weight = parts["weight"].float() * parts["weight_scale"].float()
        assert torch.equal(torch.as_tensor(weight), layer.weight), name


# ---- words


@given(st.sampled_from((2, 3, 4, 5, 6, 7, 8)), st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**31))
def test_words_are_one_stream_of_bits(bits, rows, length, seed):
    draw = random.Random(seed)
    codes = [[draw.randrange(2**bits) for _ in range(length)] for _ in range(rows)]
    packed = pack_words(torch.tensor(codes), bits)
    assert packed.shape == (rows, word_count(length, bits)) and packed.dtype == torch.int32
    for row, numbers in zip(packed.tolist(), codes, strict=True):
        assert slow.stream(row) == sum(code << (bits * place) for place, code in enumerate(numbers))
    assert unpack_words(packed, bits, length).tolist() == codes
    assert torch.equal(words(octets(packed, bits, length)), packed)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**31))
def test_awqs_order_is_the_inverse_of_its_inverse(rows, count, seed):
    draw = random.Random(seed)
    codes = torch.tensor([[draw.randrange(16) for _ in range(8 * count)] for _ in range(rows)])
    packed = interleave(codes)
    assert torch.equal(separate(packed), codes.to(torch.uint8))
    for k, row in enumerate(packed.tolist()):
        for n in range(8 * count):
            assert slow.field(row[n // 8], (0, 4, 1, 5, 2, 6, 3, 7)[n % 8], 4) == codes[k, n]


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**31))
def test_bitsandbytes_halves_are_not_filled_up_at_the_ends_of_rows(rows, columns, seed):
    draw = random.Random(seed)
    codes = [draw.randrange(16) for _ in range(rows * columns)]
    octet = high_half_first(torch.tensor(codes, dtype=torch.uint8).reshape(rows, columns))
    text = "".join(f"{value:02x}" for value in octet.flatten().tolist())
    assert text == "".join(f"{code:x}" for code in codes) + "0" * (len(codes) % 2) and octet.shape[1] == 1


@given(st.lists(st.floats(2**-60, 2**60, width=32), min_size=1, max_size=20))
def test_an_absmax_is_found_again_from_its_scale(values):
    scales = divided(torch.tensor(values, dtype=torch.float32), 127)
    assert torch.equal(divided(row_absmax(scales), 127), scales)


# ---- what the libraries themselves wrote


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_library_wrote_is_read_to_the_bit(name, tmp_path, ids, logits):
    """The sha256 of each weight is that of what the library itself gave out, in its dtype (`peers/make.py`)."""
    model, _ = qkit.load(PEERS / name)
    layers = quantized_layers(model)
    assert layers.keys() == EXPECTED[name].keys()
    for layer, (dtype, digest) in EXPECTED[name].items():
        weight = layers[layer].weight.to(getattr(torch, dtype.removeprefix("torch.")))
        if name == "bitsandbytes-int8":  # 127 times the weight: they multiply first and divide then
            parts = parts_of(PEERS / name, layer)
            weight = parts["weight"].float() * parts["SCB"].float()[:, None] / 127
            assert torch.allclose(layers[layer].weight, weight, rtol=2**-22, atol=0)
        assert hashlib.sha256(bytes_of(weight)).hexdigest() == digest, layer
    ids = ids % 64
    for form in (name.split("-")[0] if name.split("-")[0] in FORMATS else "compressed-tensors", None):
        if "compressed-tensors-4-asymmetric" in name and form is not None:
            continue
        again, _ = qkit.load(qkit.save(model, tmp_path / str(form), format=form))
        assert torch.equal(logits(again, ids), logits(model, ids))


def test_act_order_is_a_permutation_of_the_inputs():
    model, _ = qkit.load(PEERS / "gptq-4-act-order")
    layer = model.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(layer, PermutedLinear) and layer.qtensor.group_size == 32
    index = parts_of(PEERS / "gptq-4-act-order", "model.layers.0.mlp.down_proj")["g_idx"]
    assert index[layer.order].equal(torch.arange(96) // 32) and not index.equal(index.sort().values)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer(x), x @ layer.weight.T, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"'awq' holds .* has its columns sorted by group .act-order.; these can: gptq"
    ):
        qkit.save(model, "nowhere", format="awq")


@pytest.mark.parametrize("rounded", [False, True])
def test_compressed_tensors_act_order_is_heeded_whatever_becomes_of_inputs(rounded, make, tmp_path):
    """The columns of a folder in another order, and the group of each written down; inputs are rounded, or not."""
    folder = qkit.save(make(qkit.RTN(4, 16, symmetric=True)), tmp_path / "a", format="compressed-tensors").path
    generator = torch.Generator().manual_seed(0)

    def shuffle(tensors):
        for name in [name.removesuffix("packed") for name in tensors if name.endswith("packed")]:
            columns = int(tensors[f"{name}shape"][1])
            order = torch.randperm(columns, generator=generator)
            codes = unpack_words(tensors[f"{name}packed"], 4, columns)
            tensors[f"{name}packed"] = pack_words(codes[:, order], 4)
            tensors[f"{name}g_idx"] = (order // 16).int()

    groups = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]
    dynamic = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    groups["group_0"]["input_activations"] = dynamic if rounded else None
    other = rewritten(folder, tmp_path / "b", shuffle, config_groups=groups)
    layer = qkit.load(other)[0].get_submodule(Q)
    parts = parts_of(other, Q)
    steps = unpack_words(parts["weight_packed"], 4, 64).float() - 8
    weight = steps * parts["weight_scale"].float()[:, parts["weight_g_idx"].long()]
    assert torch.equal(layer.weight, weight)
    x = torch.randn(3, 64, generator=generator)
    expected = (quantize_activations(x) if rounded else x) @ weight.T
    assert torch.allclose(layer(x), expected, atol=1e-5)


# ---- GPTQ's zero points


def rewritten(folder: Path, to: Path, change, **said) -> Path:
    """A copy of a folder, `change` having had its way with the tensors, and `said` with the quantization_config."""
    shutil.copytree(folder, to)
    tensors = file_of(folder)
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    config["quantization_config"] |= said
    config["quantization_config"] = {
        key: value for key, value in config["quantization_config"].items() if value is not None
    }
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_one_that_is_missing_is_given_back_to_the_word(bits, make_model, tmp_path, ids, logits):
    """Zero points of 0 among them: taken off a word, the 1 is borrowed from the next field."""
    model = make_model("llama", **SIZES["llama"])
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[::3] += 2.0  # rows without a weight below zero
    qkit.quantize(model, qkit.RTN(bits, 32))
    assert any((layer.qtensor.zeros() == 0).any() for layer in quantized_layers(model).values())
    folder = qkit.save(model, tmp_path / "v2", format="gptq").path
    ones = sum(1 << place for place in range(0, 32, bits))

    def take_one(tensors):
        for name in [name for name in tensors if name.endswith("qzeros")]:
            words = [[(word - ones) & 0xFFFFFFFF for word in row] for row in tensors[name].tolist()]
            tensors[name] = torch.tensor(
                [[w - 2**32 if w >= 2**31 else w for w in row] for row in words], dtype=torch.int32
            )

    old = rewritten(folder, tmp_path / "v1", take_one, checkpoint_format="gptq", format=None)
    assert torch.equal(logits(qkit.load(old)[0], ids), logits(model, ids))


def test_a_file_that_says_version_1_and_holds_version_2_is_found_out(make, tmp_path, ids, logits):
    model = make(qkit.RTN(4, 32, symmetric=True))
    folder = qkit.save(model, tmp_path / "v1", format="gptq").path

    def give_one(tensors):
        for name in [name for name in tensors if name.endswith("qzeros")]:
            tensors[name] = torch.full_like(tensors[name], -0x77777778)  # 0x88888888

    lying = rewritten(folder, tmp_path / "v2", give_one)
    assert torch.equal(logits(qkit.load(lying)[0], ids), logits(model, ids))


def test_a_short_last_group_and_autogptqs_zero_biases_are_read(make, tmp_path):
    """64 columns in groups of 48; the scales of the second group serve 16 columns."""
    folder = qkit.save(make(qkit.RTN(4, 16, symmetric=True)), tmp_path / "a", format="gptq").path

    def regroup(tensors):
        for name in [name.removesuffix("g_idx") for name in tensors if name.endswith("g_idx")]:
            columns = len(tensors[f"{name}g_idx"])
            count = -(-columns // 48)
            for part in ("scales", "qzeros"):
                tensors[name + part] = tensors[name + part][:count].contiguous()
            tensors[f"{name}g_idx"] = (torch.arange(columns) // 48).int()
            tensors[f"{name}bias"] = torch.zeros(tensors[f"{name}scales"].shape[1])

    other = rewritten(folder, tmp_path / "b", regroup, group_size=48)
    model, _ = qkit.load(other)
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(torch.tensor(slow.gptq(parts_of(other, name), 4, 1)), model.get_submodule(name).weight)
    assert model.get_submodule(name).bias is None


# ---- bad input


@pytest.fixture(scope="module")
def saved(make, tmp_path_factory):
    """A folder of each format."""
    place = tmp_path_factory.mktemp("saved")
    for form, schemes in CASES.items():
        qkit.save(make(schemes[0]), place / form, format=form)
    return place


Q = "model.layers.0.self_attn.q_proj"


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, make_tensor):
    def change(tensors):
        tensors[name] = make_tensor(tensors.get(name))

    return change


@pytest.mark.parametrize(
    ("form", "change", "said", "words"),
    [
        ("gptq", drop(f"{Q}.scales"), {}, "q_proj of .* lacks scales"),
        ("gptq", drop(f"{Q}.qweight"), {}, "missing are .*q_proj.weight"),
        ("gptq", drop("model.norm.weight"), {}, "missing are model.norm.weight"),
        ("gptq", put("model.extra.weight", lambda _: torch.ones(2)), {}, "left over are model.extra.weight"),
        ("gptq", put("model.norm.weight", lambda t: t[:-1].clone()), {}, r"of another shape are model.norm.weight"),
        ("gptq", lambda _: None, {"group_size": 16}, r"qzeros int32 \(2, 4\) where .* give int32 \(4, 4\)"),
        ("gptq", lambda _: None, {"group_size": 0}, "group_size=0"),
        ("gptq", lambda _: None, {"bits": 4}, r"has qweight int32 \(4, 64\) where .* give int32 \(8, 64\)"),
        ("gptq", lambda _: None, {"bits": 5}, "says bits=5"),
        ("gptq", lambda _: None, {"bits": True}, "says bits=True"),
        ("gptq", lambda _: None, {"checkpoint_format": "marlin"}, "says checkpoint_format='marlin'"),
        ("gptq", lambda _: None, {"quant_method": "aqlm"}, "quantized by 'aqlm'; qkit reads gptq, awq"),
        ("gptq", put(f"{Q}.scales", lambda t: t * torch.nan), {}, "scales with NaN or infinity"),
        ("gptq", put(f"{Q}.g_idx", lambda t: t + 1), {}, "g_idx 1 .. 2 where there are 2 groups"),
        ("gptq", put(f"{Q}.strange", lambda _: torch.ones(1)), {}, "has strange, which is no part"),
        ("gptq", put(f"{Q}.bias", lambda _: torch.ones(64)), {}, "left over are .*q_proj.bias"),
        ("awq", lambda _: None, {"version": "gemv"}, "version='gemv', which packs its codes another way"),
        ("awq", lambda _: None, {"group_size": 64}, r"qzeros int32 \(2, 8\)"),
        ("awq", lambda _: None, {"bits": 3}, "says bits=3"),
        ("bitsandbytes", lambda _: None, {"load_in_8bit": True}, "load_in_4bit=True and load_in_8bit=True"),
        ("bitsandbytes", drop(f"{Q}.weight.quant_state.bitsandbytes__nf4"), {}, "names its table nowhere"),
        ("bitsandbytes", put(f"{Q}.weight.quant_map", lambda t: t.flip(0)), {}, "quant_map that is not nf4's"),
        ("bitsandbytes", put(f"{Q}.weight", lambda t: t[:-1].clone()), {}, r"weight uint8 \(2047, 1\)"),
        (
            "bitsandbytes",
            put(f"{Q}.weight.quant_state.bitsandbytes__nf4", lambda t: t[:-1].clone()),
            {},
            "quant_state that is no JSON",
        ),
        ("compressed-tensors", lambda _: None, {"format": "float-quantized"}, "says format='float-quantized'"),
        ("compressed-tensors", lambda _: None, {"config_groups": None}, "says nothing of its config_groups"),
        ("compressed-tensors", lambda _: None, {"kv_cache_scheme": {"num_bits": 8}}, "has a kv_cache_scheme"),
        ("compressed-tensors", put(f"{Q}.weight_shape", lambda t: t.flip(0) + 1), {}, r"weight_shape \[65, 65\]"),
        ("compressed-tensors", drop(f"{Q}.weight_packed"), {}, "lacks weight_packed"),
        ("compressed-tensors", put(f"{Q}.weight_scale", lambda t: t[:, :1].clone()), {}, r"weight_scale .* \(64, 1\)"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(saved, form, change, said, words, tmp_path):
    refused(rewritten(saved / form, tmp_path / "bad", change, **said), words)


def test_broken_configs_and_files_are_refused_in_one_sentence(saved, tmp_path):
    folder = shutil.copytree(saved / "gptq", tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    for change, match in (
        ({"model_type": "nothing"}, "no causal language model that this transformers knows"),
        ({"hidden_size": 65}, "model_type=.llama. .*hidden size .65."),
        ({"architectures": ["LlamaModel"]}, r"architectures=\[.LlamaModel.\], qkit reads causal language models"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        refused(folder, match)
    (folder / "config.json").write_text(json.dumps(config))
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-100])
    refused(folder, "model.safetensors is not whole")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors is missing; qkit reads safetensors only")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    refused(folder, "names no safetensors files of its own folder")


def test_shards_and_autogptqs_own_config_are_read(saved, tmp_path, ids, logits):
    folder = shutil.copytree(saved / "gptq", tmp_path / "a")
    expected = logits(qkit.load(folder)[0], ids)
    tensors = file_of(folder)
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({name: tensor for name, tensor in tensors.items() if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    config = json.loads((folder / "config.json").read_text())
    said = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    old = {key: said[key] for key in ("bits", "group_size", "desc_act", "sym")}
    (folder / "quantize_config.json").write_text(json.dumps(old))
    assert torch.equal(logits(qkit.load(folder)[0], ids), expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors is missing")


def test_a_model_of_the_hub_is_read_as_its_folder_is(saved, ids, logits, monkeypatch):
    import huggingface_hub
    import transformers

    config = transformers.AutoConfig.from_pretrained(saved / "awq")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: config)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(saved / "awq"))
    expected, _ = qkit.load(saved / "awq")
    assert torch.equal(logits(qkit.load("somebody/model-AWQ")[0], ids), logits(expected, ids))


@pytest.mark.parametrize("form", CASES)
def test_mutants_of_a_folder_load_or_are_refused_in_one_sentence(saved, form, tmp_path, monkeypatch):
    """Bits of the header, fields of the config: whatever is said is a ValueError of one line, and nothing is unpickled."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("something was unpickled"))
    draw = random.Random(form)
    raw = (saved / form / "model.safetensors").read_bytes()
    config = json.loads((saved / form / "config.json").read_text())
    folder = shutil.copytree(saved / form, tmp_path / "mutant")
    header = int.from_bytes(raw[:8], "little")
    outcomes = set()
    for turn in range(45):
        mutant, said = bytearray(raw), json.loads(json.dumps(config))
        if turn % 3 == 0:
            mutant[draw.randrange(8 + header)] ^= 1 << draw.randrange(8)
        else:
            fields = said["quantization_config"] if turn % 3 == 1 else said
            while True:
                name = draw.choice(list(fields))
                if not fields[name] or not isinstance(fields[name], dict) or draw.random() < 0.2:
                    break
                fields = fields[name]
            fields[name] = draw.choice([None, -1, 3, 1e9, "x", [], [1], {}, True, {"a": None}])
        (folder / "model.safetensors").write_bytes(mutant)
        (folder / "config.json").write_text(json.dumps(said))
        try:
            qkit.load(folder)
            outcomes.add("loaded")
        except ValueError as error:
            assert "\n" not in str(error), error
            outcomes.add("refused")
    assert outcomes == {"loaded", "refused"}
