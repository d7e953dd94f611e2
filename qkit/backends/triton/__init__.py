"""Adapters to the Triton kernels for GPUs: what a kernel reads is laid out and allocated here, and then it is launched."""

import triton

OLDEST = (3, 6)  # an older one that comes with an older torch cannot compile the kernels; torch's own way is taken then

if tuple(int(number) for number in triton.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(f"Triton {triton.__version__} cannot compile the kernels; pip install 'triton>=3.6'")
