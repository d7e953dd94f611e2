"""What the processor has that Numba compiles for.

It is asked when a kernel is compiled, that is when it is first used, and of Numba's own target: LLVM ends the process when it is
asked for an instruction that the target lacks. Numba's cache on disk is kept apart by CPU, too.
"""

import re
from functools import cache

from llvmlite import binding
from numba import config
from numba.core.registry import cpu_target


def has(*features: str) -> bool:
    """Whether it has all of these instruction sets ("avx512vnni", "neon", "dotprod", ..., by LLVM's names).

    Where a user makes Numba compile for another x86 (NUMBA_CPU_NAME), only what NUMBA_CPU_FEATURES names counts.
    """
    triple, name, listed = cpu_target.target_context.codegen().magic_tuple()
    known = {feature[1:] for feature in listed.split(",") if feature[:1] == "+"}
    if triple.startswith(("aarch64", "arm64")):
        return set(features) <= known | _products(triple, name, listed)
    if config.CPU_NAME not in (None, binding.get_host_cpu_name()) and config.CPU_FEATURES is None:
        return False
    return set(features) <= known


_SUM_OF_PRODUCTS = """
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
define i32 @sum(<16 x i8> %a, <16 x i8> %b) {{
  %x = {} <16 x i8> %a to <16 x i32>
  %y = sext <16 x i8> %b to <16 x i32>
  %products = mul <16 x i32> %x, %y
  %sum = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %products)
  ret i32 %sum
}}
"""


@cache
def _products(triple: str, name: str, features: str) -> set[str]:
    """What a 64-bit Arm has to multiply bytes: "neon" always, "dotprod" where it has `sdot`, "i8mm" where it has `usdot`.

    LLVM does not list the last two, on no system, though it knows them by the processor's name. So it is given a sum of
    products to compile, and what it made of it is read.
    """
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=name, features=features)
    found = {"neon"}
    for widened, instruction, feature in (("sext", "sdot", "dotprod"), ("zext", "usdot", "i8mm")):
        text = machine.emit_assembly(binding.parse_assembly(_SUM_OF_PRODUCTS.format(widened)))
        if re.search(rf"\b{instruction}\b", text):
            found.add(feature)
    return found
