"""How long a product takes on the card that is here, its weight not in the cache."""

import statistics
from collections.abc import Callable, Sequence

import torch

from qkit.backends.triton import linear, tiles, tuning
from qkit.backends.triton.layout import laid
from qkit.numerics.stored import StoredWeight

COLD = 128 << 20  # bytes that are written before each product: more than the L2 cache of any card holds


@torch.no_grad()
def seconds(call: Callable[[], object], device: torch.device, times: int = 9, together: int = 10) -> float:
    """Of a call and of emptying the cache before it: the median of replays of a CUDA graph that holds `together` of both.

    What emptying takes is in every figure; figures are for comparing.
    """
    cold = torch.empty(COLD, dtype=torch.uint8, device=device)
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(together):
            cold.zero_()
            call()
    taken = []
    for _ in range(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / together / 1000)
    return statistics.median(taken)


def tune(
    q: StoredWeight,
    dtype: torch.dtype = torch.bfloat16,
    regions: Sequence[int] = tuning.REGIONS,
    clock: Callable[[Callable[[], object], torch.device], float] = seconds,
) -> dict[str, tuning.Cut]:
    """Try the tiles that may be good for a weight on its card, for as many tokens as each region has at most; keep the fastest.

    Returns:
        what was chosen, by case.
    """
    device, weight, choices = q.packed.device, laid(q, dtype), {}
    card = tiles.card(device.index)
    with torch.cuda.device_of(q.packed):
        for tokens in regions:
            name = tuning.case(tokens, weight)
            if name is None or tokens >= linear.most(weight, card):
                continue
            x = linear.aligned(torch.randn(tokens, q.shape[1], device=device).to(dtype))
            y = torch.empty(tokens, q.shape[0], dtype=dtype, device=device)

            def taken(cut: tuning.Cut, x=x, y=y) -> float:
                return clock(lambda: linear.launch(x, weight, y, cut, card), device)

            choices[name] = tuning.fastest(tiles.candidates(tokens, weight, card), taken)
    tuning.keep(card.name, choices)
    return choices
