"""GPTQ's column loop on one layer: the kernel beside the plain loop in torch, the same codes from both.

python benchmarks/gptq_columns.py [--rows 4096] [--features 4096]
"""

import argparse
import time

import torch

from qkit import GPTQ
from qkit.methods.gptq import _columns, _columns_lazily, inverse_cholesky


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
    args = (upper, order, hessian.diagonal(), scheme, "the weight")
    small = (slice(0, 32), slice(None))
    _columns(weight[small].clone(), *args)  # compiled before the clock starts, as torch is

    seconds, found = {}, {}
    for name, columns in (("kernel", _columns), ("torch", _columns_lazily)):
        start = time.perf_counter()
        found[name] = columns(weight.clone(), *args)
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.2f} s", flush=True)
    same = float((found["kernel"][0] == found["torch"][0]).double().mean())
    print(f"{seconds['torch'] / seconds['kernel']:.1f} times as fast, {100 * same:.4f}% of the codes equal")


if __name__ == "__main__":
    main()
