"""What the C library keeps of memory that was freed."""

import ctypes
import sys


def give_back_memory() -> None:
    """Have the C library return what was freed.

    glibc keeps the holes that a layer's floats leave between the small layers that stay: of a Llama of 0.46 billion parameters,
    quantized layer by layer, more than a gigabyte (benchmarks/loading_memory.py).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's own
    if trim is not None:
        trim(0)
