"""Adapters from a stored weight to kernels; `torch` is the specification."""
