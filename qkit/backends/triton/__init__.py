"""Adapters to the Triton kernels for GPUs: what a kernel reads is laid out and allocated here, and then it is launched.

The layout needs no Triton: lessons show it on every machine. What launches takes Triton from `new_enough`.
"""
