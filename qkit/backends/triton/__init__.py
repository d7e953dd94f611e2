"""Adapters to the Triton kernels for GPUs: what a kernel reads is laid out and allocated here, and then it is launched."""
