"""qkit: how large language models are made small, as lessons and as a library.

    >>> import qkit
    >>> model, tokenizer = qkit.load("bookworm-14m")
    >>> report = qkit.quantize(model, qkit.RTN(bits=4, group_size=128))
    >>> qkit.perplexity(model, tokenizer, qkit.passages("tales"))

`qkit.plots`, `qkit.widgets` and `qkit.exercises` are imported when first used.
"""

from importlib import import_module

from qkit import integrations
from qkit.checkpoints.load import load
from qkit.checkpoints.save import save
from qkit.engine.quantize import quantize, quantize_tensor
from qkit.engine.report import LayerReport, QuantizationReport
from qkit.engine.scale_search import search_scales
from qkit.engine.scaling import Scaling
from qkit.methods.awq import AWQ
from qkit.methods.codebook import FP4, NF4
from qkit.methods.gptq import GPTQ
from qkit.methods.llm_int8 import LLMInt8
from qkit.methods.rtn import RTN
from qkit.methods.smoothquant import SmoothQuant
from qkit.methods.w8a8 import W8A8
from qkit.model.fusing import fuse_projections
from qkit.model.outliers import plant_outliers
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.qlinear import QLinear
from qkit.numerics.error import ErrorStatistics, error_statistics, sqnr_db
from qkit.numerics.qtensor import QTensor
from qkit.ops import linear
from qkit.study.advice import Recommendation, recommend
from qkit.study.compare import compare
from qkit.study.comparison import Comparison
from qkit.study.evaluate import kl_divergence, perplexity
from qkit.study.generate import complete
from qkit.study.mixed_precision import mixed_precision
from qkit.study.sensitivity import sensitivity
from qkit.study.sizes import disk_bytes, memory_bytes
from qkit.text.corpora import passages, texts
from qkit.train.own_text import own_text
from qkit.train.tune import tune

__version__ = "0.1.0"

integrations.register()

__all__ = [
    "AWQ",
    "FP4",
    "GPTQ",
    "NF4",
    "RTN",
    "W8A8",
    "Comparison",
    "ErrorStatistics",
    "Int8Linear",
    "LLMInt8",
    "LayerReport",
    "QLinear",
    "QTensor",
    "QuantizationReport",
    "Recommendation",
    "Scaling",
    "SmoothQuant",
    "compare",
    "complete",
    "disk_bytes",
    "error_statistics",
    "fuse_projections",
    "kl_divergence",
    "linear",
    "load",
    "memory_bytes",
    "mixed_precision",
    "own_text",
    "passages",
    "perplexity",
    "plant_outliers",
    "quantize",
    "quantize_tensor",
    "recommend",
    "save",
    "search_scales",
    "sensitivity",
    "sqnr_db",
    "texts",
    "tune",
]


def __getattr__(name: str):
    """Import the rooms that need matplotlib or ipywidgets when somebody enters them."""
    if name in ("plots", "widgets", "exercises"):
        return import_module(f"qkit.{name}")
    raise AttributeError(f"module 'qkit' has no attribute {name!r}")
