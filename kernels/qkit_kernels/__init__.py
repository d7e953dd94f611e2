"""The fast paths of qkit, one room a backend: `numba` for CPUs. Nothing here imports qkit or looks for hardware."""
