"""The fast paths of qkit. Each file holds one operation: jit functions on plain arrays, with the arithmetic in words.

Checks, allocation and the choice of a backend stand in `qkit.ops`; nothing here imports qkit, and nothing looks for
hardware when it is imported.
"""
