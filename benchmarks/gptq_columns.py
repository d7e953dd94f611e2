"""GPTQ's column loop on one layer: the kernel beside the plain loop in torch, the same codes from both.

python benchmarks/gptq_columns.py [--rows 4096] [--features 4096]
"""

import argparse
import time

import torch

from qkit import GPTQ, ops
from qkit.methods.gptq import choose_grid, inverse_cholesky
from qkit.numerics.mapping import grouped


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--features", type=int, default=4096)
    arguments = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(arguments.rows, arguments.features, generator=generator).double()
    mixed = torch.randn(64, arguments.features, generator=generator)  # inputs that go together
    x = torch.randn(2 * arguments.features, 64, generator=generator) @ mixed
    x += torch.randn(x.shape, generator=generator)
    hessian = (x.T @ x).double() / len(x)
    scheme = GPTQ(4, 128, scale_search=False)  # the loop alone
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    upper, _ = inverse_cholesky(hessian[order][:, order], scheme.damp, scheme.shrink)
    groups = grouped(weight, scheme.group_size)
    scale, zero = (t[..., 0] for t in choose_grid(groups, torch.ones(groups.shape[1:]), scheme))
    weight, group = weight[:, order], order // 128
    # compiled before the clock starts, as torch is
    ops.gptq_columns(weight[:32], upper, group, scale[:32], zero[:32], scheme.bits, backend="numba")

    seconds, found = {}, {}
    for name in ("numba", "torch"):
        start = time.perf_counter()
        found[name] = ops.gptq_columns(weight, upper, group, scale, zero, scheme.bits, backend=name)
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.2f} s", flush=True)
    same = float((found["numba"] == found["torch"]).double().mean())
    print(f"{seconds['torch'] / seconds['numba']:.1f} times as fast, {100 * same:.4f}% of the codes equal")


if __name__ == "__main__":
    main()
