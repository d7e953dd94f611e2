"""LoRA on quantized layers: it learns, it is saved and read, and merging is what it says."""

import copy

import pytest
import torch
from packaging.version import parse

import qkit
from qkit.methods.registry import SCHEMES
from qkit.nn.layers import quantized_layers

peft = pytest.importorskip("peft", reason="peft is not installed")

from qkit.integrations.peft import QLoraLinear, merge_losses  # noqa: E402

ALL = [
    qkit.RTN(4),
    qkit.RTN(3, 4, include_zero=False),
    qkit.RTN(8, symmetric=True),
    qkit.NF4(),
    qkit.FP4(double_quant=False),
]
ALL += [
    qkit.LLMInt8(),
    qkit.W8A8(),
    qkit.RTN(4, 4, activations="int8"),
    qkit.GPTQ(4, 4, act_order=True),
    qkit.AWQ(4, 4),
]
ALL += [qkit.SmoothQuant()]


def config(**changes):
    return peft.LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes})


def quantized(make_model, scheme, ids, kind="llama"):
    model = make_model(kind)
    qkit.quantize(model, scheme, calibration=ids)
    return model


def stir(model, size=0.05):
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, size, generator=generator)
    return model


def test_every_scheme_is_here():
    assert {type(scheme).__name__ for scheme in ALL} == set(SCHEMES)


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_adapters_begin_with_nothing_and_learn_on_every_scheme(make_model, ids, logits, scheme):
    model = quantized(make_model, scheme, ids)
    before, codes = logits(model, ids), {name: t.clone() for name, t in model.named_buffers()}
    adapted = peft.get_peft_model(model, config())
    assert torch.equal(logits(adapted, ids), before)
    assert sum(isinstance(m, QLoraLinear) for m in adapted.modules()) == len(quantized_layers(adapted)) == 14
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], 1e-2)
    losses = []
    for step in range(4):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(float(loss))
        if step == 0:
            still = [n for n, p in adapted.named_parameters() if "lora_B" in n and not p.grad.abs().sum() > 0]
            assert not still
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    kept = {name.replace("base_model.model.", "").replace("base_layer.", ""): t for name, t in adapted.named_buffers()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in codes.items())


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_merging_is_dequantize_add_quantize_and_says_what_it_cost(make_model, ids, logits, scheme):
    model = quantized(make_model, scheme, ids)
    name = "model.layers.1.mlp.down_proj"
    before = model.get_submodule(name)
    old = before.weight
    adapted = stir(peft.get_peft_model(model, config()))
    delta = adapted.base_model.model.get_submodule(name).get_delta_weight("default")
    merged = adapted.merge_and_unload()
    new = merged.get_submodule(name)
    assert type(new) is type(before) and new.record == before.record and new.settings() == before.settings()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    losses = merge_losses(merged)
    assert set(losses) == set(quantized_layers(merged)) and new.qtensor.bits == scheme.weight_bits
    assert losses[name].error == qkit.error_statistics(old + delta, new.weight)
    assert 0.5 < losses[name].kept < 1.5
    assert logits(merged, ids).isfinite().all()


def test_merged_models_are_saved_and_read(make_model, ids, logits, tmp_path):
    merged = stir(peft.get_peft_model(quantized(make_model, qkit.NF4(), ids), config())).merge_and_unload()
    merged.save_pretrained(tmp_path / "theirs")
    qkit.save(merged, tmp_path / "ours")
    for folder in ("theirs", "ours"):
        assert torch.equal(logits(qkit.load(tmp_path / folder)[0], ids), logits(merged, ids))


def test_what_was_merged_can_be_taken_out_to_the_last_bit(make_model, ids, logits):
    model = quantized(make_model, qkit.RTN(4), ids)
    before = logits(model, ids)
    adapted = stir(peft.get_peft_model(model, config()))
    beside = logits(adapted, ids)
    adapted.merge_adapter()
    assert not torch.equal(logits(adapted, ids), beside)
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted, ids), beside)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)
    assert torch.equal(logits(adapted.unload(), ids), before)


def test_an_adapter_is_saved_and_read_again(make_model, ids, logits, tmp_path):
    model = quantized(make_model, qkit.NF4(), ids)
    base = copy.deepcopy(model)
    adapted = stir(peft.get_peft_model(model, config(target_modules=["q_proj", "down_proj"])))
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(again, ids), logits(adapted, ids))


def test_dora_and_a_conv1d(make_model, ids, logits):
    dora = peft.get_peft_model(quantized(make_model, qkit.RTN(8), ids), config(use_dora=True))
    dora(input_ids=ids, labels=ids).loss.backward()
    close = logits(stir(dora), ids)
    torch.testing.assert_close(logits(dora.merge_and_unload(), ids), close, rtol=0.2, atol=0.2)
    gpt2 = stir(peft.get_peft_model(quantized(make_model, qkit.RTN(8), ids, "gpt2"), config(fan_in_fan_out=True)))
    close = logits(gpt2, ids)
    torch.testing.assert_close(logits(gpt2.merge_and_unload(), ids), close, rtol=0.2, atol=0.2)


@pytest.mark.parametrize("begin", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_would_change_the_weight_at_its_beginning_is_refused(make_model, ids, begin):
    """PEFT writes what is left of the weight to a tensor that was dequantized for it, and nobody reads that again."""
    arguments = config(target_modules=["q_proj"])
    arguments.init_lora_weights = begin
    with pytest.raises(ValueError, match=rf"init_lora_weights='{begin}' takes .*; take one of True, False, 'gaussian'"):
        peft.get_peft_model(quantized(make_model, qkit.NF4(), ids), arguments)


MICA = pytest.param(
    "mica",
    marks=pytest.mark.skipif(parse(peft.__version__) < parse("0.20"), reason="PEFT knows this beginning from 0.20 on"),
)


@pytest.mark.parametrize("begin", [True, "gaussian", "orthogonal", MICA])
def test_other_beginnings_change_nothing(make_model, ids, logits, begin):
    model = quantized(make_model, qkit.NF4(), ids)
    before = logits(model, ids)
    adapted = peft.get_peft_model(model, config(init_lora_weights=begin))
    torch.testing.assert_close(logits(adapted, ids), before, rtol=1e-5, atol=1e-5)


def test_an_adapter_that_is_lost_is_told_of(make_model, ids):
    adapted = stir(peft.get_peft_model(quantized(make_model, qkit.RTN(2), ids), config()), 1e-4)
    with pytest.warns(UserWarning, match="less than half of it is left; .*merge_losses"):
        merged = adapted.merge_and_unload()
    assert min(loss.kept for loss in merge_losses(merged).values()) < 0.5


def test_a_model_with_an_adapter_is_saved_in_two_parts_or_not_at_all(make_model, ids, logits, tmp_path):
    """What was written under the names of wrapped layers would fit no model."""
    model = quantized(make_model, qkit.NF4(), ids)
    before = logits(model, ids)
    adapted = stir(peft.get_peft_model(model, config()))
    base = adapted.base_model.model
    saving = [
        lambda: qkit.save(adapted, tmp_path),
        lambda: qkit.save(base, tmp_path),
        lambda: qkit.save(base, tmp_path, format="bitsandbytes"),
        lambda: base.save_pretrained(tmp_path),
    ]
    for save in saving:
        with pytest.raises(ValueError, match=r"has an adapter beside it; save what merge_and_unload\(\) or unload\(\)"):
            save()
    assert not list(tmp_path.iterdir())
    qkit.save(adapted.unload(), tmp_path)
    assert torch.equal(logits(qkit.load(tmp_path)[0], ids), before)


def test_an_adapter_of_transformers_own_is_saved_alone(make_model, ids, logits, tmp_path):
    model = quantized(make_model, qkit.NF4(), ids)
    base = copy.deepcopy(model)
    model.add_adapter(config())
    stir(model).save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (tmp_path / "model.safetensors").exists()
    base.load_adapter(str(tmp_path))
    assert torch.equal(logits(base, ids), logits(model, ids))


@pytest.mark.parametrize("saved_by", ["qkit", "transformers"])
def test_the_folder_of_an_adapter_finds_its_quantized_model(make_model, ids, logits, saved_by, tmp_path):
    import transformers

    model = quantized(make_model, qkit.NF4(), ids)
    if saved_by == "qkit":
        qkit.save(model, tmp_path / "base")
    else:
        model.save_pretrained(tmp_path / "base")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = stir(peft.get_peft_model(peft.prepare_model_for_kbit_training(loaded), config()))
    adapted.save_pretrained(tmp_path / "adapter")
    for cls in (peft.AutoPeftModelForCausalLM, transformers.AutoModelForCausalLM):
        assert torch.equal(logits(cls.from_pretrained(tmp_path / "adapter"), ids), logits(adapted.eval(), ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits_learn_and_merge(make_model, ids, dtype):
    model = make_model("llama").to(dtype)
    qkit.quantize(model, qkit.NF4())
    adapted = stir(peft.get_peft_model(model, config()))
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in adapted.named_parameters() if "lora_" in n)
    merged = adapted.merge_and_unload()
    assert merged.dtype == dtype and merged.model.layers[0].mlp.up_proj.dtype == dtype


def test_an_adapter_that_is_broken_is_not_merged(make_model, ids, logits):
    adapted = stir(peft.get_peft_model(quantized(make_model, qkit.RTN(4), ids), config()))
    layer = adapted.base_model.model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.lora_B["default"].weight[0, 0] = torch.nan
    old = layer.base_layer
    with pytest.raises(ValueError, match=r"merged weight.*NaN"):
        layer.merge()
    assert layer.base_layer is old and not layer.merged


def test_a_trainer_trains_a_model_that_from_pretrained_quantized(make_model, ids, tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    import transformers

    make_model("llama").save_pretrained(tmp_path / "floats")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "floats", quantization_config=qkit.integrations.transformers.QkitConfig(qkit.NF4())
    )
    adapted = peft.get_peft_model(model, config())
    data = [{"input_ids": row, "labels": row} for row in ids.repeat(4, 1)]
    arguments = transformers.TrainingArguments(
        tmp_path / "out", max_steps=4, learning_rate=1e-2, report_to=[], use_cpu=True, logging_steps=1, save_steps=4
    )
    trainer = transformers.Trainer(adapted, arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "checkpoint-4" / "adapter_model.safetensors").is_file()
