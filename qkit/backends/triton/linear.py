"""Quantized linear layers on a GPU: chooses how, allocates, launches.

1                    on Hopper `one`: the token in whole numbers, nothing but reading the weight
up to 8              on Hopper `eight`: codes as floats, nothing but reading the weight
up to 16, 32 or 128  `few`: bound by reading the weight
up to 1023           `many`: codes become floats in registers on their way into the tensor core
                     on Hopper `hopper.many` where its tiles are the better ones
more                 `floats`, then cuBLAS: made floats once, used by all
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qkit.backends import torch as plain
from qkit.backends.triton import hopper, tiles, tuning
from qkit.backends.triton.arguments import (
    TOGETHER,
    add_up,
    aligned,
    begins,
    constants,
    dealt_out,
    in_pairs,
    pointers,
    reordered,
    sizes,
)
from qkit.backends.triton.layout import BLOCK, KIND, Laid, fits, laid, laid_beside
from qkit.backends.triton.new_enough import TensorDescriptor, triton
from qkit.numerics.activations import Activations, quantize_activations
from qkit.numerics.stored import StoredWeight
from qkit_kernels.triton import assembly
from qkit_kernels.triton import eight as eight_kernels
from qkit_kernels.triton import few as few_kernels
from qkit_kernels.triton import floats as floats_kernels
from qkit_kernels.triton import many as many_kernels
from qkit_kernels.triton import one as one_kernels

MOST = 1024  # tokens from which the weight is made floats first


def one(x: Tensor, weight: Laid, y: Tensor, cut: tiles.One) -> None:
    """y [1, N] of aligned x [1, K]."""
    (rows, _), (eights, blocks) = weight.shape, sizes(weight)
    least, over = divmod(triton.cdiv(rows, 16), cut.programs)
    names = ("S", "SPAN", "BIAS", "OFFSET", "BF16")
    one_kernels.one[(cut.programs,)](
        x, *pointers(weight)[:4], y, rows, eights, least, over, KB=blocks, BITS=weight.bits,
        **{name: value for name, value in constants(weight, True).items() if name in names},
        WARPS=tiles.ONE_WARPS, DEPTH=cut.depth, ROOM=assembly.room(tiles.one_room(weight)), EARLY=True,
        num_warps=tiles.ONE_WARPS, num_stages=1, **begins(True),
    )  # fmt: skip


def eight(x: Tensor, weight: Laid, y: Tensor, cut: tiles.Eight) -> None:
    """y [M, N] of aligned x [M, K], M at most 8.

    With one block ahead two programs may share a multiprocessor, and must fit its registers.
    """
    (rows, _), (eights, blocks), warps = weight.shape, sizes(weight), tiles.ONE_WARPS
    least, over = divmod(triton.cdiv(rows, 16), cut.programs)
    tokens, table, kind = 1 if len(x) == 1 else 8, weight.table is not None, KIND[weight.dtype]
    eight_kernels.eight[(cut.programs,)](
        x, *pointers(weight), y, len(x), rows, eights, x.stride(0), y.stride(0), least, over,
        KB=blocks, S=weight.grid.shape[2], SPAN=weight.span, BITS=weight.bits, OFFSET=weight.off is not None,
        BF16=kind == "bf16", WARPS=warps, DEPTH=cut.depth, TOKENS=tokens, ROOM=assembly.room(128 * warps * tokens),
        FILL=assembly.pairs(32 * warps) if table else "", COUNT="" if table else assembly.counted(weight.bits, kind),
        BIAS=assembly.bias(weight.bits, kind) - assembly.small_bias(weight.bits, kind), EARLY=True,
        num_warps=warps, num_stages=1, maxnreg=64 if cut.depth == 1 else None, **begins(True),
    )  # fmt: skip


def few(
    x: Tensor, weight: Laid, y: Tensor, cut: tiles.Few, ptx: bool = True, narrow: int = 8, paired: bool = False
) -> None:  # fmt: skip
    """y [M, N] of aligned x.

    Args:
        paired: a table's numbers are looked up two at a time, in shared memory.
    """
    rows, width = weight.shape[0], max(narrow, tiles.few_width(len(x), weight))
    few_kernels.few[(triton.cdiv(rows, 16), triton.cdiv(len(x), width))](
        x, *pointers(weight), y, len(x), rows, *sizes(weight), x.stride(0), y.stride(0),
        **constants(weight, ptx) | in_pairs(weight, cut.warps if paired else 0),
        WARPS=cut.warps, TOKENS=width, UNROLL=cut.unroll, TURNS=cut.turns,
        RAGGED=cut.warps * cut.unroll * cut.turns != weight.blocks, SUM=assembly.summed(cut.warps, width, "f32") if ptx else "",
        num_warps=cut.warps, num_stages=1,
    )  # fmt: skip


def many(
    x: Tensor, weight: Laid, y: Tensor, cut: tiles.Many, ptx: bool = True, drain: bool = True, early: bool = False
) -> None:  # fmt: skip
    """y [M, N] of aligned x.

    Args:
        drain, early: see the kernels; a card has them or not.
    """
    tokens, rows, features = len(x), weight.shape[0], x.shape[1]
    described = TensorDescriptor(reordered(x, early), [tokens, features], [features, 1], [cut.bm, BLOCK])
    work, programs, parts = dealt_out(cut, weight, y)
    many_kernels.many[(programs,)](
        described, *pointers(weight), y, parts, tokens, rows, *sizes(weight), work, rows, **constants(weight, ptx),
        WARPS=cut.warps, BN=cut.bn, BM=cut.bm, STAGES=cut.stages, TOGETHER=TOGETHER, SPLIT=cut.split, DRAIN=drain, EARLY=early,
        num_warps=cut.warps, **begins(early),
    )  # fmt: skip
    add_up(parts, cut, weight, work, y, early)


def floats(weight: Laid, ptx: bool = True) -> Tensor:
    """ŵ [N, K] in the dtype of x."""
    rows, features = weight.shape
    out = torch.empty(rows, features, dtype=weight.dtype, device=weight.words.device)
    floats_kernels.floats[(weight.blocks, triton.cdiv(rows, 64))](
        *pointers(weight), out, rows, features, *sizes(weight), **constants(weight, ptx), WARPS=4, num_warps=4
    )
    return out


def most(weight: Laid, card: tiles.Card) -> int:
    """Tokens from which the weight is made floats first: fewer where small tiles make it floats again and again, or where that is
    more work than shifting 2 or 4 bits into place.
    """
    if not card.tensor_cores or (card.small_tiles and not card.ptx):  # AMD's RDNA spills in all tiles of `many`
        return tiles.TOKENS + 1
    if card.small_tiles:
        return MOST // 4
    if not card.hopper:
        return MOST
    return MOST + MOST // 4 if weight.bits in (2, 4) and weight.table is None else MOST - MOST // 4


def product(x: Tensor, weight: Laid, y: Tensor | None = None) -> Tensor:
    """x ŵᵀ [M, N] of x [M, K], in its dtype; into `y` where it is given."""
    y = torch.empty(len(x), weight.shape[0], dtype=x.dtype, device=x.device) if y is None else y
    if not len(x):
        return y
    card = tiles.card(x.device.index)
    if len(x) >= most(weight, card):
        return torch.mm(x, floats(weight, card.ptx).T, out=y)
    x = aligned(x)
    cut = tuning.chosen(len(x), weight, card) or tiles.reading(len(x), weight, card)
    if cut is not None:
        launch(x, weight, y, cut, card)
    elif len(x) <= tiles.few_tokens(weight, card):
        launch(x, weight, y, tiles.few(weight, card, len(x)), card)
    elif (cut := tiles.hopper(len(x), weight, card)) is not None:
        launch(x, weight, y, cut, card)
    else:
        # A last tile of 256 tokens, at most half full, costs as much as a full one: what is left over is a product of its own
        over = len(x) % 256 if len(x) > 256 and len(x) % 256 <= 128 else 0
        for part, out in zip(x.split([len(x) - over, over]), y.split([len(x) - over, over]), strict=True):
            if len(part):
                launch(part, weight, out, tiles.many(len(part), weight, card), card)
    return y


def launch(x: Tensor, weight: Laid, y: Tensor, cut: tiles.Cut, card: tiles.Card) -> None:
    """y [M, N] of aligned x by the kernel that is cut so."""
    if isinstance(cut, tiles.One):
        one(x, weight, y, cut)
    elif isinstance(cut, tiles.Eight):
        eight(x, weight, y, cut)
    elif isinstance(cut, tiles.Few):
        few(x, weight, y, cut, card.ptx, card.narrow, card.hopper)
    elif isinstance(cut, tiles.Hopper):
        hopper.many(x, weight, y, cut)
    else:
        many(x, weight, y, cut, card.ptx, card.hopper, card.early)


def takes(x: Tensor, weights: Sequence[StoredWeight]) -> bool:
    """Whether kernels multiply them here; else the weights become floats."""
    return x.dtype in KIND and all(map(fits, weights)) and tiles.card(x.device.index).takes(x.dtype)


def linear(x: Tensor, q: StoredWeight, activations: Activations | None, bias: Tensor | None = None) -> Tensor:
    """`qkit.ops.linear` without its checks and gradient."""
    if not takes(x, (q,)):
        return plain.linear(x, q, activations, bias)
    x = x if activations is None else quantize_activations(x)
    with torch.cuda.device_of(x):  # Triton launches on the card that is current
        y = product(x.reshape(-1, q.shape[1]), laid(q, x.dtype))
    return plain.with_bias(y.reshape(*x.shape[:-1], q.shape[0]), bias)


def products(x: Tensor, weights: Sequence[StoredWeight], activations: Activations | None) -> Tensor:
    """`qkit.ops.products` of x [tokens, in]."""
    if not takes(x, weights):
        return plain.products(x, weights, activations)
    x = x if activations is None else quantize_activations(x)
    with torch.cuda.device_of(x):
        return product(x, laid_beside(weights, x.dtype))
