"""Folders that other libraries wrote of a tiny random Llama, for tests without them.

    PYTHONPATH=tests/support CUDA_VISIBLE_DEVICES= python tests/checkpoints/peers/make.py [NAME...]

Made once, on a CPU, in the environment of `make test-judges` (torch 2.13.0, transformers 5.17.0, gptqmodel 7.6.0, bitsandbytes
0.50.2, compressed-tensors 0.19.0). Each folder keeps config.json and model.safetensors;
expected.json says what the library itself makes of each layer: the sha256 of ŵ [out, in], in the dtype it gives it out.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judges import judge, weights

HERE = Path(__file__).parent
VOCABULARY = 64
GPTQ = {  # name: what GPTQModel's QuantizeConfig is given
    "gptq-4": {"bits": 4, "group_size": 32},
    "gptq-3": {"bits": 3, "group_size": 32},
    "gptq-2": {"bits": 2, "group_size": 32},
    "gptq-8-row": {"bits": 8, "group_size": -1, "act_group_aware": False},
    "gptq-4-asymmetric-v1": {"bits": 4, "group_size": 32, "sym": False},
    "gptq-4-asymmetric-v2": {"bits": 4, "group_size": 32, "sym": False, "format": "gptq_v2"},
    "gptq-4-act-order": {"bits": 4, "group_size": 32, "desc_act": True, "act_group_aware": False},
    "gptq-3-act-order-asymmetric-v2": {
        **{"bits": 3, "group_size": 32, "desc_act": True, "act_group_aware": False},
        **{"sym": False, "format": "gptq_v2"},
    },
}
BITSANDBYTES = {
    "bitsandbytes-nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes-nf4-double": {
        **{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    },
    "bitsandbytes-fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "bitsandbytes-int8": {"load_in_8bit": True},
}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
COMPRESSED = {  # name: (weights, inputs)
    "compressed-tensors-4": ({"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32}, None),
    "compressed-tensors-4-asymmetric": (
        {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 32},
        None,
    ),
    "compressed-tensors-3": ({"num_bits": 3, "symmetric": True, "strategy": "group", "group_size": 32}, None),
    "compressed-tensors-8-row": ({"num_bits": 8, "symmetric": True, "strategy": "channel"}, None),
    "compressed-tensors-w8a8": ({"num_bits": 8, "symmetric": True, "strategy": "channel"}, TOKEN),
    "compressed-tensors-w8a8-static": ({"num_bits": 8, "symmetric": True, "strategy": "channel"}, STATIC),
}


def tiny(wide: bool = False) -> LlamaForCausalLM:
    """`wide`: outputs in multiples of 64, which GPTQModel's AWQ asks for."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 128, "num_key_value_heads": 4} if wide else {}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=64, **sizes, **special)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.half().float().eval()


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{i:02}": i for i in range(VOCABULARY)}, unk_token="w02"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w00", eos_token="w01", pad_token="w01")


def texts() -> list[str]:
    draw = torch.Generator().manual_seed(1)
    return [" ".join(f"w{i:02}" for i in torch.randint(2, VOCABULARY, (48,), generator=draw)) for _ in range(32)]


def source(folder: str, wide: bool = False) -> str:
    tiny(wide).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def by_gptqmodel(name: str, folder: str, out: str) -> None:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import AWQConfig

    if name == "awq":
        config = AWQConfig(bits=4, group_size=32, format="gemm", sym=False, device="cpu")
        model = GPTQModel.load(source(folder, wide=True), config)
        model.quantize(texts(), batch_size=4, backend=BACKEND("awq_torch"))
    else:
        model = GPTQModel.load(source(folder), QuantizeConfig(device="cpu", **GPTQ[name]))
        model.quantize(texts(), batch_size=4)
    model.save(out)


def by_bitsandbytes(name: str, folder: str, out: str) -> None:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(**BITSANDBYTES[name], bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        source(folder), quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(out)


def by_compressed_tensors(name: str, folder: str, out: str) -> None:
    """Scales by its own observer formula (`calculate_qparams`), codes and packing by its compressor."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    weights, inputs = COMPRESSED[name]
    model = tiny()
    group = {"targets": ["Linear"], "weights": {"type": "int", **weights}, "input_activations": inputs}
    config = QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(model, config)
    for module in model.modules():
        if not hasattr(module, "quantization_scheme"):
            continue
        arguments, weight = module.quantization_scheme.weights, module.weight.detach()
        groups = weight.unflatten(1, (-1, weights.get("group_size", weight.shape[1])))
        scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), arguments)
        module.weight_scale.data.copy_(scale)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero)
        if hasattr(module, "input_scale"):
            module.input_scale.data.fill_(0.03)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)


def main() -> None:
    path = HERE / "expected.json"
    expected = json.loads(path.read_text()) if path.exists() else {}
    for name in sys.argv[1:] or [*GPTQ, "awq", *BITSANDBYTES, *COMPRESSED]:
        make = {"gptq": by_gptqmodel, "awq": by_gptqmodel, "bitsandbytes": by_bitsandbytes}.get(
            name.split("-")[0], by_compressed_tensors
        )
        with tempfile.TemporaryDirectory() as place:
            make(name, f"{place}/source", f"{place}/out")
            shutil.rmtree(HERE / name, ignore_errors=True)
            (HERE / name).mkdir()
            for file in ("config.json", "model.safetensors"):
                shutil.copy(f"{place}/out/{file}", HERE / name / file)
            config = HERE / name / "config.json"  # GPTQModel notes where it put things aside on the machine that ran it
            lines = config.read_text().splitlines(keepends=True)
            config.write_text("".join(line for line in lines if "offload_to_disk_path" not in line))
        found = weights(judge(HERE / name))
        assert len(found) == 7, (name, list(found))
        expected[name] = {
            layer: [
                str(weight.dtype),
                hashlib.sha256(weight.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(),
            ]
            for layer, weight in found.items()
        }
        path.write_text(json.dumps(expected, indent=1) + "\n")
        print("made", name, flush=True)


if __name__ == "__main__":
    main()
