"""What the tests share: tiny random models of every supported type, the embedded model, and an RTN written apart."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # one core a worker; read by torch when it is imported, and by what a test starts
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # on the CPU, and before anything imports it; `make test-gpu` sets 0
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import numpy as np
import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import qkit
from grids import thinned

settings.register_profile("qkit", max_examples=60, deadline=None, derandomize=True, database=None)
settings.load_profile("qkit")


def pytest_addoption(parser):
    parser.addoption(
        "--share",
        default="0/1",
        metavar="I/N",
        help="run every N-th case only, from case I on: a part of many that CI has time for",
    )


@pytest.hookimpl(trylast=True)  # what -m and -k leave
def pytest_collection_modifyitems(config, items):
    first, of = map(int, config.getoption("--share").split("/"))
    if not 0 <= first < of:
        raise pytest.UsageError(f"--share={first}/{of} is no part; give I/N with I from 0 to N - 1")
    left = [item for place, item in enumerate(items) if place % of != first]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = items[first::of]


KINDS = ("llama", "gpt2", "opt", "qwen2", "qwen3")
ALL_KINDS = (*KINDS, "mistral", "neox", "bloom", "phi")


def build(kind: str, tie: bool | None = None, **changes) -> transformers.PreTrainedModel:
    """A random model with sizes that are no powers of two, with biases and norms that are not 0 and 1."""
    common = {"vocab_size": 97, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
    gated = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, **heads}
    gpt2 = {"n_embd": 48, "n_inner": 100, "n_layer": 2, "n_head": 4, "n_positions": 64}
    opt = {
        "hidden_size": 48,
        "ffn_dim": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 48,
    }
    plain = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
    bloom = {"hidden_size": 48, "n_layer": 2, "n_head": 4}
    config_class, model_class, own, tied = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, gated, False),
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, gpt2, True),
        "opt": (transformers.OPTConfig, transformers.OPTForCausalLM, opt, True),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, gated, True),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {**gated, "head_dim": 16}, False),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, gated, False),
        "neox": (transformers.GPTNeoXConfig, transformers.GPTNeoXForCausalLM, plain, False),
        "bloom": (transformers.BloomConfig, transformers.BloomForCausalLM, bloom, True),
        "phi": (transformers.PhiConfig, transformers.PhiForCausalLM, plain, False),
    }[kind]
    if kind in ("gpt2", "bloom"):
        del common["max_position_embeddings"]
    tied = tied if tie is None else tie
    torch.manual_seed(0)
    model = model_class(config_class(**{**common, **own, "tie_word_embeddings": tied, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def state_of_the_process() -> dict[str, object]:
    """What torch computes by in the whole process; a test that leaves it changed breaks another, or lets it pass."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return {
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "products": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "compiler": compiler._stance.stance if compiler else "default",
    }


@pytest.fixture(autouse=True)
def _the_process_is_as_it_was():
    before = state_of_the_process()
    yield
    assert state_of_the_process() == before


@pytest.fixture(scope="session")
def make_model():
    return build


# In the quick tests one of each kind: gated, with Conv1D, fused and biased. OPT is GPT-2 with Linear; Mistral and the Qwens are
# Llamas with another window, biases or norms; NeoX and Phi are fused as Bloom is.
@pytest.fixture(params=thinned(KINDS, ("llama", "gpt2")))
def kind(request) -> str:
    return request.param


@pytest.fixture(params=thinned(ALL_KINDS, ("llama", "gpt2", "bloom")))
def any_kind(request) -> str:
    return request.param


@pytest.fixture
def model(kind):
    """One model of each type in turn."""
    return build(kind)


@pytest.fixture
def llama():
    return build("llama")


@pytest.fixture
def ids():
    return torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def embedded():
    """(bookworm-14m, its tokenizer), loaded once: copy the model before changing it."""
    return qkit.load("bookworm-14m")


@pytest.fixture(scope="session")
def tokenizer(embedded):
    return embedded[1]


@pytest.fixture(scope="session")
def word_tokenizer():
    """Makes a tokenizer of 97 words w00 .. w96; special tokens as asked for."""

    def make(**special):
        words = WordLevel({f"w{i:02}": i for i in range(97)}, unk_token="w02")
        backend = Tokenizer(words)
        backend.pre_tokenizer = WhitespaceSplit()
        return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)

    return make


@pytest.fixture(scope="session")
def logits():
    def compute(model, ids):
        with torch.no_grad():
            return model(input_ids=ids).logits

    return compute


def numpy_rtn(weight, bits, group_size=None, symmetric=False, scale_dtype="float16"):
    """Round to nearest in float32 numpy, group by group: the weight as it comes back."""
    weight = np.asarray(weight, np.float32)
    steps = np.float32(2**bits - 1)
    flat = weight.reshape(1, -1) if group_size == "tensor" else weight
    size = flat.shape[1] if group_size in (None, "tensor") else group_size
    groups = flat.reshape(-1, size)
    low = np.minimum(groups.min(1, keepdims=True), np.float32(0))
    high = np.maximum(groups.max(1, keepdims=True), np.float32(0))
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = (high - low) / steps
    scale[scale == 0] = 1
    if scale_dtype == "float16" and scale.min() >= 2**-14 and scale.max() <= 65504:
        half = scale.astype(np.float16)
        half[half.astype(np.float32) < scale] = np.nextafter(half, np.float16(np.inf))[half.astype(np.float32) < scale]
        scale = half.astype(np.float32)
    zero = np.float32(2 ** (bits - 1)) if symmetric else np.rint(-low / scale)
    codes = np.clip(np.rint(groups / scale) + zero, 0, steps)
    return (scale * (codes - zero)).reshape(weight.shape)


@pytest.fixture(scope="session")
def reference_rtn():
    return numpy_rtn
