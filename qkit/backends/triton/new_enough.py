"""Triton, new enough to compile the kernels; whoever launches one imports it from here."""

import triton

OLDEST = (3, 6)  # an older one that comes with an older torch cannot compile the kernels; torch's own way is taken then

if tuple(int(number) for number in triton.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(f"Triton {triton.__version__} cannot compile the kernels; pip install 'triton>=3.6'")

from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402  (3.3 has none)

__all__ = ["TensorDescriptor", "triton"]
