"""Products of few tokens by the PTX of the kernels that only read a weight, run on a CPU: a line of JSON for each job of standard
input.

{"share": how much of what the roundings can make the largest error is, "finite": how many results are}. A job may put a number
that is none into the first token, {"bad": "nan"}, have all of one sign, {"positive": true}, and so many columns of something
else behind each, {"apart": 8}.

A process of its own, like `compiled`: TRITON_INTERPRET must not be set in it.
"""

import json
import sys
from typing import Any

import torch

import ptx
from compiled import DTYPES, compiling
from products import off_where_read, random, weight
from qkit import FP4, NF4, quantize_tensor
from qkit.backends.triton import layout, linear, tiles

TABLES = {"nf4": NF4, "fp4": FP4}


def held(t: torch.Tensor) -> torch.Tensor:
    """All that lies between a tensor's first number and its last, in one row."""
    return t.as_strided((1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)),), (1,))


def product(x: torch.Tensor, laid: layout.Laid, cut: tiles.One | tiles.Eight) -> torch.Tensor:
    """y [M, N] as `linear` would launch it."""
    y = torch.full((len(x), laid.shape[0]), torch.nan, dtype=x.dtype)
    with compiling("sm_90") as made:
        linear.launch(x, laid, y, cut, tiles.card(0))
    ((_, _, kernel, arguments),) = made.values()
    memory = ptx.Memory()
    params = [
        memory.add(held(one).view(torch.uint8).numpy()) if torch.is_tensor(one) else one
        for one in arguments
        if torch.is_tensor(one) or one != 1  # a 1 is compiled in
    ]
    ptx.launch(kernel.asm["ptx"], cut.programs, [*params, 0, 0], memory)
    return y


def done(job: dict[str, Any]) -> dict[str, float]:
    """What is printed of a job."""
    dtype = DTYPES[job["dtype"]]
    tokens, shape = job.get("tokens", 1), job["shape"]
    if job["kind"] in TABLES:
        q = quantize_tensor(random(*shape), TABLES[job["kind"]](job["group"]))
    else:
        q = weight(job["bits"], *shape, job["group"], job["kind"], real=True)
    laid = layout.lay(q, dtype)
    x = (torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(5)) / 16).to(dtype)
    x[:, shape[1] // 3] *= 100
    if job.get("positive"):
        x = x.abs()
    if "apart" in job:
        x = torch.cat([x, torch.full((tokens, job["apart"]), torch.nan, dtype=dtype)], 1)[:, : shape[1]]
    cut = tiles.reading(tokens, laid, tiles.card(0))
    assert cut is not None
    cut = type(cut)(job.get("programs", cut.programs), job.get("depth", cut.depth))
    if "bad" in job:
        x[0, q.shape[1] // 2] = float(job["bad"])
    y = product(linear.aligned(x), laid, cut)
    return {"share": off_where_read(y, x, q), "finite": int(y.isfinite().sum())}


def main() -> None:
    """Every job."""
    tiles.card = lambda device: tiles.Card(132, 227 * 1024, 9)
    for job in json.load(sys.stdin):
        print(json.dumps(done(job)), flush=True)


if __name__ == "__main__":
    main()
