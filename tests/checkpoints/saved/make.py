"""Folders that older versions of qkit wrote, a few kilobytes each: made once, by their own code, and kept.

Version 1 by the parent of commit d524d9c, version 2 by commit a95d12e:

    PYTHONPATH=<checkout of that commit>:<the same>/kernels python make.py <version> <folder>

expected.json holds what was saved: dtype, shape and sha256 of every tensor, and the token ids of a text.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import qkit

version, folder = int(sys.argv[1]), Path(sys.argv[2])
TEXT = "w03 w07 w11 <s> w19 zz"


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 20}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32}
    config = transformers.LlamaConfig(
        **sizes, **heads, bos_token_id=0, eos_token_id=1, tie_word_embeddings=version == 2
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, **{f"w{i:02}": i for i in range(3, 20)}}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def record(tensor: torch.Tensor) -> list:
    raw = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw).hexdigest()[:16]]


schemes = {"rtn": qkit.RTN(4, 8)}
if version == 2:
    static = qkit.W8A8(activations="per-tensor")
    schemes |= {"nf4": qkit.NF4(), "llm-int8": qkit.LLMInt8(1.5), "w8a8-static": static, "rtn-half": qkit.RTN(3)}
ids = torch.randint(0, 20, (4, 16), generator=torch.Generator().manual_seed(1))
expected = {}
for name, scheme in schemes.items():
    model, words = tiny(), tokenizer() if name == "rtn" else None
    qkit.quantize(model, scheme, **({"calibration": ids} if name == "w8a8-static" else {}))
    if name == "rtn-half":
        model.half()
    target = folder / f"v{version}-{name}"
    qkit.save(model, target, tokenizer=words)
    if words is None:
        (target / "config.json").unlink()  # never read
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    expected[target.name] = {key: record(tensor) for key, tensor in tensors.items()}
    if words is not None:
        expected[target.name]["ids"] = words(TEXT)["input_ids"]
path = folder / "expected.json"
known = json.loads(path.read_text()) if path.exists() else {}
path.write_text(json.dumps(known | expected, indent=1) + "\n")
