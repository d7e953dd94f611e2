"""Adapters to the Numba kernels for CPUs: what a kernel reads is laid out and allocated here, and then it is launched."""
