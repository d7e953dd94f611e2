import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import SafetensorError
from transformers import LlamaForCausalLM

from damage import edit_manifest, flip, refused, truncate
from qkit import RTN, QLinear, load, quantize, save
from qkit.methods.codebook import FP4, NF4, codebook_quantize
from qkit.methods.int8 import int8_rows
from qkit.model.surgery import find_targets, swap
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.layers import quantized_layers

SCHEMES = [None, RTN(4, 4), RTN(3, symmetric=True), RTN(8, include_zero=False, scale_dtype="float32")]


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "qkit.json").read_text())


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("weights-*.safetensors")
    return path


def stored_tensors(path: Path) -> dict[str, dict]:
    """The header of a safetensors file, read by hand: 8 bytes of length, then JSON."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def once(make_model, tmp_path_factory):
    model = make_model("llama")
    quantize(model, RTN(4, 4))
    return save(model, tmp_path_factory.mktemp("once") / "saved")


@pytest.fixture
def saved(once, tmp_path):
    """A folder with a quantized Llama in it, to be damaged."""
    return shutil.copytree(once, tmp_path / "saved")


# ---- round trips


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_a_saved_model_comes_back_bit_for_bit(model, scheme, tmp_path, ids, logits):
    if scheme is not None:
        quantize(model, scheme)
    loaded, tokenizer = load(save(model, tmp_path))
    assert type(loaded) is type(model)
    assert tokenizer is None
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    before, after = model.state_dict(), loaded.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_model_in_another_dtype_comes_back_bit_for_bit(model, cast, tmp_path, ids, logits):
    quantize(model, RTN(4, 4))
    getattr(model, cast)()
    loaded, _ = load(save(model, tmp_path))
    assert loaded.dtype == model.dtype
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def static(q, bias):
    return Int8Linear(q, bias, "per-tensor", torch.tensor(0.1))


LAYERS = {
    "nf4": lambda w, bias: QLinear(codebook_quantize(w, NF4()), bias),
    "fp4": lambda w, bias: QLinear(codebook_quantize(w, FP4(32, double_quant=False)), bias),
    "w8a8": lambda w, bias: Int8Linear(int8_rows(w), bias),
    "w8a8 static": lambda w, bias: static(int8_rows(w), bias),
    "llm.int8": lambda w, bias: Int8Linear(int8_rows(w), bias, threshold=1.5),
}


def replace_linears(model, make):
    targets, _ = find_targets(model)
    swap(model, {target.name: make(target.weight, target.module.bias) for target in targets})
    return model


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_every_kind_of_layer_comes_back_bit_for_bit(model, make, tmp_path, ids, logits):
    replace_linears(model, make)
    loaded, _ = load(save(model, tmp_path))
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    before, after = model.state_dict(), loaded.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)
    found = quantized_layers(loaded)
    for name, layer in quantized_layers(model).items():
        assert type(found[name]) is type(layer)
        assert type(found[name].qtensor) is type(layer.qtensor)
        assert (found[name].settings(), found[name].meta) == (layer.settings(), layer.meta)
        assert found[name].dtype == layer.dtype


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_every_kind_of_layer_comes_back_in_float16_too(make_model, make, tmp_path, ids, logits):
    model = replace_linears(make_model("llama"), make).half()
    loaded, _ = load(save(model, tmp_path))
    assert {layer.weight.dtype for layer in quantized_layers(loaded).values()} == {torch.float16}
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_are_one_parameter_after_loading(make_model, kind, tie, tmp_path):
    model = make_model(kind, tie=tie)
    quantize(model, RTN(4))
    loaded, _ = load(save(model, tmp_path))
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie
    heads = [
        name
        for name in stored_tensors(weights_of(tmp_path))
        if "lm_head" in name or "embed_tokens" in name or "wte" in name
    ]
    assert len(heads) == (1 if tie else 2)


def test_a_quantized_head_beside_a_float_embedding_comes_back(make_model, tmp_path, ids, logits):
    model = make_model("llama", tie=True)
    quantize(model, RTN(8), include="*")
    loaded, _ = load(save(model, tmp_path))
    assert isinstance(loaded.lm_head, QLinear)
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_a_block_used_twice_is_stored_under_both_names_and_loaded_once(llama, tmp_path, ids, logits):
    """transformers, which does not know that it is shared, would make up what it does not find."""
    llama.model.layers[1].mlp = llama.model.layers[0].mlp
    quantize(llama, RTN(4))
    loaded, _ = load(save(llama, tmp_path))
    assert torch.equal(logits(loaded, ids), logits(llama, ids))
    packed = [name for name in stored_tensors(weights_of(tmp_path)) if name.endswith("down_proj.packed")]
    assert packed == [f"model.layers.{i}.mlp.down_proj.packed" for i in (0, 1)]
    first, second = (loaded.get_buffer(name) for name in packed)
    assert first.data_ptr() == second.data_ptr()


OTHERS = {
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    ),
    "classifier": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(
            vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        )
    ),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("scheme", [None, RTN(4)], ids=repr)
def test_what_is_no_causal_language_model_comes_back_too(make, scheme, tmp_path):
    """`save` wrote the class down; only for a folder of transformers it must be guessed."""
    model = make().eval()
    if scheme is not None:
        quantize(model, scheme, progress=False)
    loaded, _ = load(save(model, tmp_path))
    assert type(loaded) is type(model) and loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_loaded_model_can_be_saved_again(saved, tmp_path, ids, logits):
    again, _ = load(save(load(saved)[0], tmp_path / "again"))
    assert torch.equal(logits(again, ids), logits(load(saved)[0], ids))


def test_a_loaded_model_generates_and_can_be_trained_further(saved, ids):
    loaded, _ = load(saved)
    assert loaded.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (2, 23)
    assert loaded.lm_head.weight.requires_grad


def test_the_configs_come_back(llama, tmp_path):
    llama.generation_config.max_new_tokens = 7
    llama.config.initializer_range = 0.5
    loaded, _ = load(save(llama, tmp_path))
    assert loaded.config.initializer_range == 0.5
    assert loaded.generation_config.max_new_tokens == 7


def test_the_tokenizer_is_saved_beside_the_model(make_model, tokenizer, tmp_path):
    save(make_model("llama", vocab_size=4096), tmp_path, tokenizer=tokenizer)
    _, loaded = load(tmp_path)
    text = "Grüße: def f(x): return x\n"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.bos_token_id == tokenizer.bos_token_id


@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=repr)
def test_nbytes_are_the_bytes_of_the_tensors_in_the_file(model, scheme, tmp_path):
    report = quantize(model, scheme)
    save(model, tmp_path)
    stored = stored_tensors(weights_of(tmp_path))
    for row in report.layers:
        parts = [stored[f"{row.name}.{part}"]["data_offsets"] for part in quantized_layers(model)[row.name].parts]
        assert sum(end - start for start, end in parts) == row.nbytes


def test_numbers_that_16_bits_hold_are_stored_in_16_bits_and_widened_again(llama, tmp_path):
    with torch.no_grad():
        llama.model.embed_tokens.weight.copy_(llama.model.embed_tokens.weight.half())
        llama.lm_head.weight.copy_((llama.lm_head.weight * 1e30).bfloat16())
        llama.model.norm.weight.fill_(1 + 2**-20)
    loaded, _ = load(save(llama, tmp_path))
    stored = stored_tensors(weights_of(tmp_path))
    assert stored["model.embed_tokens.weight"]["dtype"] == "F16"
    assert stored["lm_head.weight"]["dtype"] == "BF16"
    assert stored["model.norm.weight"]["dtype"] == "F32"
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, llama.state_dict()[name]), name


def test_float32_scales_stay_float32_in_the_file(llama, tmp_path):
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight.fill_(15.0)
    quantize(llama, RTN(4, scale_dtype="float32"))
    save(llama, tmp_path)
    assert stored_tensors(weights_of(tmp_path))["model.layers.0.mlp.up_proj.scales"]["dtype"] == "F32"


def test_the_attention_that_a_model_was_made_with_comes_back(make_model, tmp_path, ids, logits):
    eager = make_model("llama", attn_implementation="eager")
    loaded, _ = load(save(eager, tmp_path))
    assert loaded.config._attn_implementation == "eager"
    assert torch.equal(logits(loaded, ids), logits(eager, ids))


def test_a_model_saved_without_a_tokenizer_does_not_inherit_one(llama, tokenizer, tmp_path):
    save(llama, tmp_path, tokenizer=tokenizer)
    assert load(tmp_path)[1] is not None
    save(llama, tmp_path)
    assert load(tmp_path)[1] is None


# ---- what is one in memory


def test_a_quantized_head_that_was_tied_comes_back(make_model, tmp_path, ids, logits):
    """transformers ties again in many places, and hangs the embedding's weight on a quantized head, which nobody reads."""
    model = make_model("llama", tie=True)
    quantize(model, RTN(8), include="*")
    expected = logits(model, ids)
    if "weight" not in dir(model.lm_head):
        model.lm_head.register_parameter("weight", model.model.embed_tokens.weight)
    loaded, _ = load(save(model, tmp_path))
    assert torch.equal(logits(loaded, ids), expected)
    assert "lm_head.weight" not in dict(loaded.named_parameters())


@pytest.mark.parametrize("tie", [True, False])
def test_weights_tied_by_their_memory_are_saved_once(make_model, tmp_path, ids, logits, tie):
    """Two Parameter objects over the same numbers; transformers' own load makes one of them. If its config does not say so it
    would make up the one that the file has not, so that both are there.
    """
    model = make_model("llama", tie=tie)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.data)
    quantize(model, RTN(4))
    loaded, _ = load(save(model, tmp_path))
    assert ("lm_head.weight" in stored_tensors(weights_of(tmp_path))) == (not tie)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded, ids), logits(model, ids))


VIEWS = {
    "the same rows": lambda base, n: (base[:n], base[:n]),
    "overlapping rows": lambda base, n: (base[:n], base[1 : n + 1]),
    "the same memory, another shape": lambda base, n: (base[:n], base.flatten()[: base[:n].numel()].reshape(n, -1)),
    "rows of one memory": lambda base, n: (base[:n], base[n : 2 * n]),
    "every other row": lambda base, n: (base[: 2 * n : 2], base[1 : 2 * n : 2]),
}


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("half", [False, True])
def test_weights_that_are_views_of_one_memory_come_back(llama, views, half, tmp_path, ids, logits):
    base = torch.randn(2 * 48 + 1, 48, generator=torch.Generator().manual_seed(0))
    base = base.half().float() if half else base
    attention = llama.model.layers[0].self_attn
    attention.q_proj.weight, attention.o_proj.weight = (torch.nn.Parameter(view) for view in views(base, 48))
    loaded, _ = load(save(llama, tmp_path))
    assert torch.equal(logits(loaded, ids), logits(llama, ids))
    assert all(torch.equal(tensor, llama.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_buffer_and_a_parameter_of_one_memory_stay_two(llama, tmp_path):
    llama.model.rotary_emb.register_buffer("inv_freq", llama.model.norm.weight.data[:6], persistent=False)
    loaded, _ = load(save(llama, tmp_path))
    assert "model.rotary_emb.inv_freq" in dict(loaded.named_buffers())
    assert torch.equal(loaded.model.rotary_emb.inv_freq, llama.model.norm.weight[:6])


# ---- refused by save: what load could not build


def fewer_layers(model):
    model.model.layers = model.model.layers[:1]


def another_width(model):
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(48, 96, bias=False)


def an_adapter(model):
    model.model.layers[0].mlp.up_proj.lora = torch.nn.Linear(48, 2)


def another_config(model):
    model.config.vocab_size = 98


@pytest.mark.parametrize("change", [fewer_layers, another_width, an_adapter, another_config], ids=lambda f: f.__name__)
@pytest.mark.parametrize("scheme", [None, RTN(4)], ids=repr)
def test_a_model_that_its_config_does_not_describe_is_refused(llama, change, scheme, tmp_path):
    """Before anything is written: what load refuses is of no use on a disk."""
    change(llama)
    if scheme is not None:
        quantize(llama, scheme, include="*layers.1.*" if change is not fewer_layers else "*")
    with pytest.raises(
        ValueError, match=r"load could not build this LlamaForCausalLM from its config again .*; change"
    ):
        save(llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers_are_refused(llama, bad, tmp_path):
    quantize(llama, RTN(4))
    llama.model.layers[1].mlp.up_proj.scales[3, 0] = bad
    with pytest.raises(ValueError, match=r"scales of model\.layers\.1\.mlp\.up_proj hold NaN or infinity"):
        save(llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def change_epsilon(model):
    model.model.norm.variance_epsilon = 0.5


def change_config(model):
    model.config.rms_norm_eps = 0.5


@pytest.mark.parametrize("change", [change_epsilon, change_config])
def test_a_model_that_computes_with_other_numbers_than_its_config_says_is_refused(llama, tmp_path, change):
    change(llama)
    with pytest.raises(
        ValueError, match=r"from its config again \(\S+\.variance_epsilon is \S+, and its config makes it"
    ):
        save(llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_how_much_a_model_drops_is_no_matter(make_model, tmp_path, ids, logits):
    model = make_model("gpt2")
    model.transformer.drop.p = 0.0
    assert torch.equal(logits(load(save(model, tmp_path))[0], ids), logits(model, ids))


def test_weights_without_numbers_are_refused(llama, tmp_path):
    llama.model.layers[1].to("meta")
    with pytest.raises(
        ValueError, match=r"model\.layers\.1\.\S+ has no numbers, it is on the device meta; load all of"
    ):
        save(llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "a"])
def test_saving_onto_a_link_to_nothing_is_refused(llama, tmp_path, below):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match="link is a link to nothing; give a folder"):
        save(llama, tmp_path / "link" / below)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize(
    ("path", "why"), [("~no such user/a", "names no user who has a home here"), ("a\udcff", "is not UTF-8")]
)
def test_a_path_that_cannot_be_is_refused(llama, monkeypatch, tmp_path, path, why):
    monkeypatch.chdir(tmp_path)
    for door in (load, lambda path: save(llama, path)):
        with pytest.raises(ValueError, match=f"{why}; give another"):
            door(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tokenizer", ["gpt2", 5])
def test_what_is_no_tokenizer_is_not_saved(llama, tmp_path, tokenizer):
    with pytest.raises(TypeError, match=r"tokenizer is a \w+; give one of transformers"):
        save(llama, tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "a"])
def test_saving_onto_a_file_is_refused(llama, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((FileExistsError, NotADirectoryError), match="file is a file; give a folder"):
        save(llama, tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"


FULL = {
    "of Python": OSError(28, "No space left on device"),
    "of safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "of rights": PermissionError(13, "Permission denied"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_folder_that_cannot_be_written_is_one_sentence(saved, llama, ids, logits, monkeypatch, error):
    """An OSError of the same kind; what was there is still there."""
    expected = logits(load(saved)[0], ids)
    with monkeypatch.context() as patch:
        break_weights(patch, error)
        kind = PermissionError if isinstance(error, PermissionError) else OSError
        with pytest.raises(
            kind, match=r"saved could not be written \((No space|Permission).*\); what qkit\.json"
        ) as caught:
            save(llama, saved)
    assert caught.value.errno == (13 if kind is PermissionError else 28)
    assert torch.equal(logits(load(saved)[0], ids), expected)


# ---- saving into a folder that is not empty, and interrupted saves


def test_other_files_in_the_folder_survive(llama, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_bytes(b"not qkit's")
    save(llama, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model.safetensors").read_bytes() == b"not qkit's"


def test_saving_again_replaces_the_earlier_model(saved, make_model, ids, logits):
    other = make_model("gpt2")
    quantize(other, RTN(2))
    save(other, saved)
    assert torch.equal(logits(load(saved)[0], ids), logits(other, ids))
    names = {"config.json", "generation_config.json", "qkit.json", weights_of(saved).name}
    assert {path.name for path in saved.iterdir()} == names


@pytest.mark.parametrize("quantized", [True, False])
def test_a_folder_that_transformers_saved_into_later_holds_two_models_and_says_so(
    saved, make_model, ids, logits, quantized
):
    """Or the older would be loaded in silence."""
    other = make_model("llama")
    if quantized:
        quantize(other, RTN(2))
    other.save_pretrained(saved)
    refused(saved, r"holds two models, .*; remove qkit\.json to load the latter, or save into a folder of its own")
    (saved / "qkit.json").unlink()
    assert torch.equal(logits(load(saved)[0], ids), logits(other, ids))
    save(other, saved)  # and the other way round the later is the one that was meant
    assert torch.equal(logits(load(saved)[0], ids), logits(other, ids))


def test_a_tokenizer_of_ones_own_stays_and_one_that_was_saved_goes_with_its_model(llama, word_tokenizer, tmp_path):
    tokenizer = word_tokenizer(bos_token="w03")
    save(llama, tmp_path, tokenizer)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    save(llama, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "tokenizer_config.json" in names and "tokenizer.json" not in names
    assert load(tmp_path)[1] is None


def test_saving_the_same_model_twice_writes_the_same_files(saved):
    before = files(saved)
    save(load(saved)[0], saved)
    assert files(saved) == before


def break_weights(monkeypatch, error):
    def fail(tensors, path):
        Path(path).write_bytes(b"half of the weigh")
        raise error

    monkeypatch.setattr("qkit.checkpoints.native.save_file", fail)


def break_rename_of(start):
    def break_rename(monkeypatch, error):
        replace = Path.replace

        def fail(self, target):
            if Path(target).name.startswith(start):
                raise error
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", fail)

    return break_rename


BREAKS = {
    "writing the weights": break_weights,
    "renaming the weights": break_rename_of("weights-"),
    "renaming the manifest": break_rename_of("qkit.json"),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS.keys())
def test_an_interrupted_save_leaves_the_earlier_model(saved, make_model, ids, logits, monkeypatch, breaks, error):
    expected = logits(load(saved)[0], ids)
    with monkeypatch.context() as patch:
        breaks(patch, error)
        with pytest.raises(type(error)):
            save(make_model("gpt2"), saved)
    assert torch.equal(logits(load(saved)[0], ids), expected)
    assert not list(saved.glob(".qkit-*"))


@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS.keys())
def test_an_interrupted_first_save_leaves_no_model_and_no_litter(llama, tmp_path, monkeypatch, breaks):
    breaks(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save(llama, tmp_path)
    assert not (tmp_path / "qkit.json").exists()
    assert not list(tmp_path.glob(".qkit-*"))


def test_who_may_read_the_manifest_may_read_the_weights(saved):
    assert weights_of(saved).stat().st_mode == (saved / "qkit.json").stat().st_mode


def test_saving_leaves_the_model_as_it_was(llama, tmp_path, ids, logits):
    quantize(llama, RTN(4))
    before, expected = dict(llama.state_dict(keep_vars=True)), logits(llama, ids)
    save(llama, tmp_path)
    assert all(tensor is before[name] for name, tensor in llama.state_dict(keep_vars=True).items())
    assert torch.equal(logits(llama, ids), expected)


class OfMyOwn(LlamaForCausalLM):
    pass


@pytest.mark.parametrize("make", [lambda llama: torch.nn.Linear(4, 4), lambda llama: OfMyOwn(llama.config)])
def test_a_model_that_load_could_not_build_is_refused(llama, make, tmp_path):
    with pytest.raises(
        ValueError, match=r"is no class of transformers, so load could not build it again; save its state"
    ):
        save(make(llama), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- refused: damaged and altered folders


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (truncate, r"has .* bytes where qkit\.json says .*: truncated; copy it again"),
        (lengthen, r"has .* bytes where qkit\.json says .*: altered; copy it again"),
        (flip, r"has sha256 .*, expected .*: it was altered; copy it again"),
        (Path.unlink, r"is missing; copy the whole folder again"),
    ],
)
def test_damaged_weights_are_refused(saved, damage, match):
    damage(weights_of(saved))
    refused(saved, match)


LAYER = "model.layers.1.mlp.down_proj"


def edit(**changes):
    return lambda manifest: manifest.update(changes)


def edit_config(**changes):
    return lambda manifest: manifest["config"].update(changes)


def edit_layer(**changes):
    return lambda manifest: manifest["layers"][LAYER].update(changes)


EDITS = {
    "version 99": (
        edit(version=99),
        r"has format version 99, this qkit reads 1 to 3; load it with the qkit that wrote it",
    ),
    "no version": (lambda m: m.pop("version"), r"has format version None, this qkit reads 1 to 3"),
    "other format": (edit(format="gguf"), r"is not a manifest of qkit's; give a folder that qkit\.save wrote"),
    "no layers": (lambda m: m.pop("layers"), r"lacks layers; it was altered"),
    "no sha256": (lambda m: m["weights"].pop("sha256"), r"lacks parts of weights; it was altered"),
    "unknown class": (
        edit(**{"class": "LlamaForNothing"}),
        r"'LlamaForNothing', which this transformers does not have",
    ),
    "not a model class": (edit(**{"class": "pipeline"}), r"'pipeline', which this transformers does not have"),
    "bits": (edit_layer(bits=3), "do not fit each other .*packed is .*; one of them was altered: save the model again"),
    "bits outside": (edit_layer(bits=44), "do not fit each other .*bits=44 is outside"),
    "shape": (edit_layer(shape=[100, 48]), "do not fit each other"),
    "parts": (edit_layer(parts=["packed", "scales"]), "do not fit each other"),
    "bias": (edit_layer(bias=True), "do not fit each other"),
    "module": (edit_layer(module="Int8Linear"), "do not fit each other .*INT8 arithmetic takes 8 bits"),
    "unknown module": (edit_layer(module="Linear"), "do not fit each other"),
    "settings": (edit_layer(settings={"threshold": 6.0}), "do not fit each other"),
    "codebook": (edit_layer(codebook="nf4", block_size=64), "do not fit each other"),
    "a layer removed": (lambda m: m["layers"].pop(LAYER), "do not fit each other"),
    "a layer renamed": (lambda m: m["layers"].update(x=m["layers"].pop(LAYER)), "do not fit each other"),
    "no layer left": (edit(layers={}), "do not fit each other"),
    "layers are a list": (edit(layers=[]), "was altered: its layers is a list"),
    "tied to nothing": (edit(tied={"lm_head.weight": "x"}), "do not fit each other"),
    "widened to nothing": (edit(widened={"lm_head.weight": "int"}), "altered|do not fit each other"),
    "hidden_size": (edit_config(hidden_size=40), "do not fit each other"),
    "hidden_size that no head divides": (edit_config(hidden_size=50), "altered|do not fit each other"),
    "hidden_size that is a word": (edit_config(hidden_size="x"), "altered|do not fit each other"),
    "vocab_size": (edit_config(vocab_size=98), "do not fit each other"),
    "num_hidden_layers": (edit_config(num_hidden_layers=3), "do not fit each other"),
    "fewer layers": (edit_config(num_hidden_layers=1), "do not fit each other"),
    "unknown activation": (edit_config(hidden_act="zz"), "altered|do not fit each other"),
    "unknown model type": (edit_config(model_type="nope"), "altered|transformers|do not fit each other"),
    "no model type": (lambda m: m["config"].pop("model_type"), "altered|do not fit each other"),
    "no config": (edit(config=None), "altered|lacks|do not fit each other"),
    "weights are no record": (edit(weights=None), "altered|lacks"),
    "class is a number": (edit(**{"class": 3}), "altered|does not have"),
    "weights have no size": (lambda m: m["weights"].update(bytes="9"), "gives a file size '9' .* altered"),
    "a sum that is a number": (lambda m: m["weights"].update(sha256=9), "sha256 9; it was altered"),
    "dtype": (edit_layer(dtype="load"), "do not fit each other .*load"),
    "kind": (edit_layer(kind="codebook"), "do not fit each other"),
    "unknown kind": (edit_layer(kind="lattice"), "do not fit each other .*lattice"),
    "tied is a list": (edit(tied=[]), "was altered: its tied is a list"),
    "weights file is a number": (lambda m: m["weights"].update(file=5), "altered|missing"),
}


@pytest.mark.parametrize(("change", "match"), EDITS.values(), ids=EDITS.keys())
def test_an_edited_manifest_is_refused(saved, change, match):
    """By its sense, were its sum put right again."""
    edit_manifest(saved, change)
    refused(saved, match)


@pytest.mark.parametrize("change", [change for change, _ in EDITS.values()], ids=EDITS.keys())
def test_an_edited_manifest_is_refused_by_its_sum(saved, change):
    edit_manifest(saved, change, sign=False)
    refused(saved, r"qkit\.json (was altered: its fields are not those|has format version|lacks|is not a manifest)")


HARMLESS = {
    "a warmer": edit_config(initializer_range=0.5),
    "another epsilon": edit_config(rms_norm_eps=1e-3),
    "another name": edit(attention="eager"),
    "another end": lambda manifest: manifest["generation_config"].update(eos_token_id=5),
    "a field more": edit(note="mine"),
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())
def test_edits_that_load_could_not_notice_are_refused_by_the_sum(saved, change, version):
    """Also in a manifest that calls itself older than it is: one flipped bit makes 2 of 3."""
    edit_manifest(saved, lambda manifest: (change(manifest), manifest.update(version=version)), sign=False)
    refused(saved, r"qkit\.json was altered")


@pytest.mark.parametrize("text", ["", "{", "not json", "\x80"])
def test_a_manifest_that_is_not_json_is_refused(saved, text):
    (saved / "qkit.json").write_bytes(text.encode("latin-1"))
    refused(saved, r"qkit\.json is not JSON \(.*\): truncated or altered; copy or save the model again")


@pytest.mark.parametrize("text", ["[]", "5", "null", '{"format": "other"}'])
def test_json_that_is_no_manifest_is_refused(saved, text):
    (saved / "qkit.json").write_text(text)
    refused(saved, "is not a manifest of qkit's")


@pytest.mark.parametrize("where", ["../outside.safetensors", "absolute"])
def test_weights_outside_the_folder_are_never_read(saved, where):
    target = saved.parent / "outside.safetensors" if where == "absolute" else saved / where
    weights_of(saved).rename(target)
    name = str(target) if where == "absolute" else where
    edit_manifest(saved, lambda manifest: manifest["weights"].update(file=name))
    refused(saved, r"outside\.safetensors")


def test_a_refused_load_leaves_torch_as_it_was(saved):
    register = torch.nn.Module.register_parameter
    edit_manifest(saved, edit_config(hidden_act="zz"))
    with pytest.raises(ValueError, match="do not fit"):
        load(saved)
    assert torch.nn.Module.register_parameter is register


def test_the_embedded_model_in_4_bits_comes_back_with_its_tokenizer(embedded, tmp_path, logits):
    model, tokenizer = copy.deepcopy(embedded[0]), embedded[1]
    quantize(model, RTN(4, 128))
    loaded, again = load(save(model, tmp_path, tokenizer=tokenizer))
    ids = tokenizer("It was a dark night, and", return_tensors="pt")["input_ids"]
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert again("It was")["input_ids"] == tokenizer("It was")["input_ids"]


def test_where_a_model_lay_is_not_in_what_is_saved(make_model, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "somewhere")
    model, _ = load(tmp_path / "somewhere")
    quantize(model, RTN(4))
    sizes = []
    for name in ("a", "b"):
        model.config._name_or_path = str(tmp_path / "somewhere" / (9 * name if name == "b" else name))
        folder = save(model, tmp_path / name)
        sizes.append([(p.name, p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file()])
        assert not any(b"somewhere" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert sizes[0] == sizes[1]
