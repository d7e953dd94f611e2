import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
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


@pytest.mark.parametrize("tie", [True, False])
def test_a_folder_of_every_kind_is_whole(make_model, any_kind, tie, tmp_path):
    """A tied head is missing from its file, and nothing is wrong with that."""
    model = make_model(any_kind, tie=tie)
    model.save_pretrained(tmp_path)
    loaded, _ = load(tmp_path)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


OLD_BUFFERS = (
    "self_attn.rotary_emb.inv_freq",
    "attn.masked_bias",
    "attn.bias",
    "attention.masked_bias",
    "position_ids",
)


def test_buffers_of_old_checkpoints_are_harmless(llama, tmp_path, ids, logits):
    """Rotary frequencies and causal masks were once stored; now they are computed."""
    llama.save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({f"model.layers.0.{name}": torch.ones(3) for name in OLD_BUFFERS}))
    assert torch.equal(logits(load(tmp_path)[0], ids), logits(llama, ids))


def test_a_model_without_its_head_is_loaded_where_the_head_is_tied(make_model, tmp_path):
    """As the first GPT-2 was published."""
    model = make_model("gpt2", tie=True)
    model.transformer.save_pretrained(tmp_path)
    loaded, _ = load(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.transformer.wte.weight)


# ---- refused: what is not all there

MLP = "model.layers.1.mlp"


def crop(name):
    return lambda tensors: tensors.update({name: tensors[name][:, :-1].contiguous()})


INCOMPLETE = {
    "missing": (lambda t: t.pop(f"{MLP}.up_proj.weight"), rf"missing are {MLP}\.up_proj\.weight; copy"),
    "head missing": (lambda t: t.pop("lm_head.weight"), r"missing are lm_head\.weight; copy or convert"),
    "many missing": (
        lambda t: [t.pop(name) for name in list(t) if MLP in name or "norm" in name],
        r"missing are model\.layers\.0\.input\S+, \S+, \S+ and 5 more; copy",
    ),
    "left over": (lambda t: t.update({"adapter.weight": torch.ones(2)}), r"left over are adapter\.weight; copy"),
    "a bias left over": (
        lambda t: t.update({f"{MLP}.up_proj.bias": torch.ones(100)}),
        rf"left over are {MLP}\.up_proj\.bias; copy",
    ),
    "renamed": (
        lambda t: t.update({"x": t.pop(f"{MLP}.up_proj.weight")}),
        rf"missing are {MLP}\.up_proj\.weight, left over are x; copy",
    ),
    "another shape": (
        crop(f"{MLP}.down_proj.weight"),
        rf"of another shape are {MLP}\.down_proj\.weight \(\(48, 99\) where the config says \(48, 100\)\); copy",
    ),
}


@pytest.mark.parametrize(("change", "match"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_a_model_that_is_not_whole_is_refused(llama, tmp_path, change, match):
    """transformers would make up what is missing, and only tell its log."""
    llama.save_pretrained(tmp_path)
    edit_tensors(tmp_path, change)
    refused(tmp_path, rf"folder .* is not a whole LlamaForCausalLM: {match}")


@pytest.mark.parametrize("scheme", [qkit.RTN(4), qkit.NF4(), qkit.LLMInt8()], ids=lambda scheme: scheme.name)
def test_a_quantized_model_that_save_pretrained_wrote_by_itself_is_refused(llama, tmp_path, scheme):
    """As it did before qkit lent a hand (`qkit.integrations.transformers`)."""
    qkit.quantize(llama, scheme)
    type(llama).save_pretrained(llama, tmp_path)
    refused(tmp_path, r"holds the codes of a quantized model \(.*packed.*\), which .*; use qkit\.save")


@pytest.mark.parametrize("tie", [True, False])
def test_a_classifier_is_refused(llama, tmp_path, tie):
    llama.config.tie_word_embeddings = tie
    transformers.LlamaForSequenceClassification(llama.config).save_pretrained(tmp_path)
    refused(
        tmp_path, r"left over are score\.weight; it holds a LlamaForSequenceClassification: load it with transformers"
    )


def test_what_is_no_causal_language_model_is_refused(tmp_path):
    config = transformers.T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    refused(
        tmp_path, r"holds a t5, which is no causal language model; load it with transformers and hand the module to"
    )


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


CONFIGS = {
    "empty": "",
    "a list": "[]",
    "a number": "5",
    "nothing": "null",
    "deeply nested": "[" * 100_000,
    "no type": "{}",
    "a type that is a list": '{"model_type": ["llama"]}',
    "a type unknown": '{"model_type": "none-such"}',
    "code": '{"model_type": "none-such", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}',
    "a size that is a word": '{"model_type": "llama", "hidden_size": "x"}',
    "a size below zero": '{"model_type": "llama", "hidden_size": -8}',
    "not of this alphabet": "\udcff",
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_none_is_one_sentence(llama, tmp_path, text):
    llama.save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text("raise SystemExit('code was run')")
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    refused(tmp_path, r"folder .* cannot be loaded by transformers.*config|holds a .*which is no causal")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_generation_config_that_is_none_is_one_sentence(llama, tmp_path, text):
    llama.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    refused(tmp_path, r"folder .* cannot be loaded by transformers \(")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["[]", "5", "{", '{"model": 3}', "[" * 100_000])
def test_a_tokenizer_that_is_none_is_one_sentence(make_model, word_tokenizer, tmp_path, name, text):
    make_model("llama").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_text(text)
    if name == "tokenizer_config.json" and text == '{"model": 3}':
        assert load(tmp_path)[1] is not None  # a field that nobody knows
    else:
        refused(
            tmp_path, r"the tokenizer of '.*' cannot be loaded \(.*\): tokenizer\.json or tokenizer_config\.json is"
        )


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
