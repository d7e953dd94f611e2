"""Products of one token by the PTX of their kernel, run on a CPU: prints a line of JSON for each job of standard input.

{"share": how much of what the roundings can make the largest error is, "finite": how many results are}. A job may put a number
that is none into x, {"bad": "nan"}.

A process of its own, like `compiled`: TRITON_INTERPRET must not be set in it.
"""

import json
import sys
from typing import Any

import torch

import ptx
from compiled import DTYPES, compiling
from products import off_of_one_token, weight
from qkit.backends.triton import layout, linear, tiles


def product(x: torch.Tensor, laid: layout.Laid, cut: tiles.One) -> torch.Tensor:
    """y [1, N] as `linear.one` would launch it."""
    y = torch.full((1, laid.shape[0]), torch.nan, dtype=x.dtype)
    with compiling("sm_90") as made:
        linear.one(x, laid, y, cut)
    ((_, _, kernel),) = made.values()
    memory, least, over = ptx.Memory(), *divmod(-(-laid.shape[0] // 16), cut.programs)
    off = laid.grid if laid.off is None else laid.off
    tensors = [memory.add(t.view(torch.uint8).numpy()) for t in (x, laid.words, laid.grid, off, laid.rows, y)]
    numbers = [n for n in (laid.shape[0], laid.grid.shape[0], least, over) if n != 1]  # a 1 is compiled in
    ptx.launch(kernel.asm["ptx"], cut.programs, [*tensors, *numbers, 0, 0], memory)
    return y


def done(job: dict[str, Any]) -> dict[str, float]:
    """What is printed of a job."""
    dtype = DTYPES[job["dtype"]]
    q = weight(job["bits"], *job["shape"], job["group"], job["kind"], real=True)
    laid = layout.lay(q, dtype)
    x = (torch.randn(1, q.shape[1], generator=torch.Generator().manual_seed(5)) / 16).to(dtype)
    x[:, q.shape[1] // 3] *= 100
    cut = tiles.one(laid, tiles.card(0))
    assert cut is not None
    cut = tiles.One(job.get("programs", cut.programs), job.get("depth", cut.depth))
    if "bad" in job:
        x[:, q.shape[1] // 2] = float(job["bad"])
    y = product(linear.aligned(x), laid, cut)
    return {"share": off_of_one_token(y, x, q), "finite": int(y.isfinite().sum())}


def main() -> None:
    """Every job."""
    tiles.card = lambda device: tiles.Card(132, 227 * 1024, 9)
    for job in json.load(sys.stdin):
        print(json.dumps(done(job)), flush=True)


if __name__ == "__main__":
    main()
