"""qkit: how large language models are made small, as lessons and as a library.

    >>> import qkit
    >>> model, tokenizer = qkit.load("bookworm-14m")
    >>> report = qkit.quantize(model, qkit.RTN(bits=4, group_size=128))
    >>> qkit.perplexity(model, tokenizer, qkit.texts("python-docs-heldout"))

`qkit.plots`, `qkit.widgets` and `qkit.exercises` are imported when first used.
"""

from importlib import import_module

from qkit.checkpoint import save
from qkit.compare import compare
from qkit.error import ErrorStatistics, error_statistics, sqnr_db
from qkit.evaluate import kl_divergence, perplexity
from qkit.generate import complete
from qkit.models import load
from qkit.modules import QLinear
from qkit.ops import linear
from qkit.qtensor import QTensor
from qkit.quantize import quantize, quantize_tensor
from qkit.report import Comparison, LayerReport, QuantizationReport
from qkit.schemes import RTN
from qkit.sizes import disk_bytes, memory_bytes
from qkit.texts import texts

__version__ = "0.1.0"

__all__ = [
    "RTN",
    "Comparison",
    "ErrorStatistics",
    "LayerReport",
    "QLinear",
    "QTensor",
    "QuantizationReport",
    "compare",
    "complete",
    "disk_bytes",
    "error_statistics",
    "kl_divergence",
    "linear",
    "load",
    "memory_bytes",
    "perplexity",
    "quantize",
    "quantize_tensor",
    "save",
    "sqnr_db",
    "texts",
]


def __getattr__(name: str):
    """Import the rooms that need matplotlib or ipywidgets when somebody enters them."""
    if name in ("plots", "widgets", "exercises"):
        return import_module(f"qkit.{name}")
    raise AttributeError(f"module 'qkit' has no attribute {name!r}")
