"""Numba compiles for a 64-bit Arm, whatever this machine is: what it makes is looked at, not run. To be imported before Numba.

NUMBA_CPU_NAME=cortex-a76 NUMBA_CPU_FEATURES=+neon python -c "import cross; from numba import njit; ..."
"""

from llvmlite import binding

binding.initialize_all_targets()
binding.initialize_all_asmprinters()
binding.get_process_triple = binding.get_default_triple = lambda: "aarch64-unknown-linux-gnu"
