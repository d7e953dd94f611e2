"""What other libraries make of a folder: the model as transformers loads it with them, and each layer's ŵ as they give it out."""

import json
import os
from pathlib import Path

os.environ.update({"GPTQMODEL_CPU_WORKERS": "3", "HF_HUB_OFFLINE": "1"})  # of two cores one is too few for GPTQModel

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig


def judge(folder: str | os.PathLike) -> nn.Module:
    """The model, by transformers and the library that it calls; by the plain kernel where there are several.

    The quick kernels for 4 bits compute in bfloat16.
    """
    said = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    more = {}
    if said["quant_method"] == "gptq":
        more["quantization_config"] = GPTQConfig(bits=said["bits"], backend="gptq_torch")
    elif said["quant_method"] == "awq":
        more["quantization_config"] = AwqConfig(bits=4, group_size=said["group_size"], backend="torch_awq")
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", output_loading_info=True, **more
    )
    assert not any(found.values()), found
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.train()  # in eval mode it repacks the weights and computes in bfloat16
    if said["quant_method"] == "compressed-tensors":
        with torch.no_grad():
            model(torch.arange(8)[None])  # it unpacks at the first call
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """ŵ [out, in] of each quantized layer of such a model, in the dtype that its library gives it out in."""
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            import bitsandbytes.functional as F

            state = module.weight.quant_state
            shape, state.shape = state.shape, torch.Size([state.shape.numel()])
            # as one row: its kernel for AVX-512 takes blocks that run over the ends of rows for others (0.50.2)
            found[name] = F.dequantize_4bit(module.weight.data, state).reshape(shape)
            state.shape = shape
        elif type(module).__name__ == "Linear8bitLt":
            found[name] = module.weight.data.float() * module.weight.SCB.float()[:, None] / 127
        elif hasattr(module, "dequantize_weight"):
            found[name] = module.dequantize_weight().T
        elif getattr(module, "quantization_scheme", None) is not None:
            found[name] = module.weight.data
        elif hasattr(module, "qweight"):  # AWQ's layers have no such method
            bias, module.bias = module.bias, None
            with torch.no_grad():
                found[name] = module(
                    torch.eye(module.in_features)
                ).T.half()  # as it dequantizes; a sum with zeros is it
            module.bias = bias
    return found
