"""Numbers that stored weights and every backend's kernels agree on. Nothing is imported here."""

NESTED_BLOCK = 256  # absmax values of a codebook that share a nested scale (double quantization)
