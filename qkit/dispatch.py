"""One table of kernels: which operation has which backends, on which devices, and where each one stands.

`torch` is the specification: it exists for every operation and runs on every device. The others are faster somewhere. A place
is written by name and imported when the operation is first asked for, so that `import qkit` compiles nothing and looks for no
hardware. An explicit choice must work or say why it cannot; left open, the first row of the table that can run is taken. What
cannot be imported because it is not installed is passed over; a mistake in our own files never is.

A new kernel is a row here, an adapter in `qkit/backends/` and a kernel in `kernels/`; nothing else has to know of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

ANY: tuple[str, ...] = ()
OURS = ("qkit.", "qkit_kernels.")


@dataclass(frozen=True)
class Kernel:
    """A row of the table.

    Attributes:
        op: the operation, as `qkit.ops`, `qkit.numerics` and `qkit.bench.gpu_step` call it.
        backend: "torch", "numba", ...
        devices: types of torch devices it runs on; none named: all.
        place: "module:function".
    """

    op: str
    backend: str
    devices: tuple[str, ...]
    place: str

    @property
    def module(self) -> str:
        """Where it stands."""
        return self.place.partition(":")[0]

    def load(self) -> Callable[..., Any]:
        """The function, imported now if it was not before."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)


TABLE = (  # of one operation, the fastest first
    Kernel("pack", "numba", ("cpu",), "qkit.backends.numba.codes:pack"),
    Kernel("pack", "torch", ANY, "qkit.numerics.packing:pack_plain"),
    Kernel("unpack", "numba", ("cpu",), "qkit.backends.numba.codes:unpack"),
    Kernel("unpack", "torch", ANY, "qkit.numerics.packing:unpack_plain"),
    Kernel("dequantize_affine", "numba", ("cpu",), "qkit.backends.numba.codes:dequantize"),
    Kernel("dequantize_affine", "torch", ANY, "qkit.backends.torch:dequantize"),
    Kernel("dequantize_codebook", "torch", ANY, "qkit.backends.torch:dequantize"),
    Kernel("round_trip", "numba", ("cpu",), "qkit.backends.numba.codes:round_trip"),
    Kernel("round_trip", "torch", ANY, "qkit.backends.torch:round_trip"),
    Kernel("count_magnitudes", "numba", ("cpu",), "qkit.backends.numba.codes:count_magnitudes"),
    Kernel("count_magnitudes", "torch", ANY, "qkit.backends.torch:count_magnitudes"),
    Kernel("gptq_columns", "numba", ("cpu",), "qkit.backends.numba.codes:gptq_columns"),
    Kernel("gptq_columns", "triton", ("cuda",), "qkit.backends.triton.columns:gptq_columns"),
    Kernel("gptq_columns", "torch", ANY, "qkit.backends.torch:gptq_columns"),
    Kernel("gptq_moving_columns", "numba", ("cpu",), "qkit.backends.numba.codes:gptq_moving_columns"),
    Kernel("gptq_moving_columns", "triton", ("cuda",), "qkit.backends.triton.columns:gptq_columns"),
    Kernel("gptq_moving_columns", "torch", ANY, "qkit.backends.torch:gptq_columns"),
    Kernel("linear", "numba", ("cpu",), "qkit.backends.numba.linear:linear"),
    Kernel("linear", "triton", ("cuda",), "qkit.backends.triton.linear:linear"),
    Kernel("linear", "torch", ANY, "qkit.backends.torch:linear"),
    Kernel("int8_linear", "numba", ("cpu",), "qkit.backends.numba.linear:int8_linear"),
    Kernel("int8_linear", "triton", ("cuda",), "qkit.backends.triton.integer:int8_linear"),
    Kernel("int8_linear", "torch", ANY, "qkit.backends.torch:int8_linear"),
    Kernel("products", "triton", ("cuda",), "qkit.backends.triton.linear:products"),
    Kernel("products", "torch", ANY, "qkit.backends.torch:products"),
    Kernel("int8_products", "triton", ("cuda",), "qkit.backends.triton.integer:int8_products"),
    Kernel("int8_products", "torch", ANY, "qkit.backends.torch:int8_products"),
    Kernel("add_norm", "triton", ("cuda",), "qkit.backends.triton.between:add_norm"),
    Kernel("add_norm", "torch", ANY, "qkit.backends.torch:add_norm"),
    Kernel("gated", "triton", ("cuda",), "qkit.backends.triton.between:gated"),
    Kernel("gated", "torch", ANY, "qkit.backends.torch:gated"),
    Kernel("attend", "triton", ("cuda",), "qkit.backends.triton.between:attend"),
    Kernel("attend", "torch", ANY, "qkit.backends.torch:attend"),
)


def rows_of(op: str) -> list[Kernel]:
    """The rows of an operation, the fastest first."""
    return [kernel for kernel in TABLE if kernel.op == op]


@cache
def missing(module: str) -> str | None:
    """Why a module cannot be imported on this machine, or None where it can.

    Raises:
        ImportError: the mistake is in our own files; it is not to be hidden by a slower way.
    """
    try:
        import_module(module)
    except (ImportError, RuntimeError) as error:  # not installed; or Numba finds no folder to keep compiled code in
        if (getattr(error, "name", None) or "").startswith(OURS):
            raise
        return str(error)
    return None


def obstacle(kernel: Kernel, device: str) -> str | None:
    """Why a kernel cannot run on this type of device, or None when it can."""
    if kernel.devices and device not in kernel.devices:
        places = " and ".join({"cpu": "the CPU", "cuda": "CUDA devices"}.get(name, name) for name in kernel.devices)
        return f'it runs on {places} and the weight is on {device}; use backend="torch" or move the weight'
    if why := missing(kernel.module):
        return f'its kernel cannot be imported ({why}); pip install qkit, set NUMBA_CACHE_DIR, or use backend="torch"'
    return None


@cache
def select(op: str, backend: str | None, device: str) -> Callable[..., Any]:
    """The function for `op`: of the named backend, or of the first in the table that can run on `device`.

    Args:
        device: the type of a torch device, "cpu" or "cuda".

    Raises:
        ValueError: the named backend does not exist for `op`, or cannot run there.
    """
    rows = rows_of(op)
    if backend is None:
        return next(kernel.load() for kernel in rows if obstacle(kernel, device) is None)
    kernel = next((kernel for kernel in rows if kernel.backend == backend), None)
    if kernel is None:
        have = ", ".join(kernel.backend for kernel in reversed(rows))
        raise ValueError(f"backend={backend!r} cannot be used: there is no such kernel; use one of: {have}, or None")
    if why := obstacle(kernel, device):
        raise ValueError(f"backend={backend!r} cannot be used: {why}")
    return kernel.load()
