"""The Triton kernels for GPUs, a file a job: jit functions only. Nothing here imports qkit or looks for hardware."""
