"""The operations that a quantized model runs: checked here, chosen in `qkit.dispatch`, then launched.

`torch` is the specification: plain, slow, everywhere. An explicit backend must work or say why it cannot; the automatic choice
is the fastest that can run where the tensors are.

Gradients pass through rounding as if it had slope 1 (straight through, Bengio et al. 2013, arXiv 1308.3432): whatever a product
rounds on its way, going back it is the product with ŵ. Nothing is ever cut off the graph without a word.
"""

import json
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from qkit.dispatch import select
from qkit.numerics.activations import (
    Activations,
    activations_from,
    outlier_columns,
    quantize_activations,
    quantize_activations_int8,
)
from qkit.numerics.integers import INT8_MAX_FEATURES, check_int8_weight, int8_codes, int8_matmul
from qkit.numerics.kinds import stored_from
from qkit.numerics.mapping import integer_range
from qkit.numerics.qtensor import QTensor
from qkit.numerics.stored import StoredWeight

__all__ = [
    "INT8_MAX_FEATURES",
    "check_int8_weight",
    "count_magnitudes",
    "dequantize",
    "gptq_columns",
    "int8_codes",
    "int8_linear",
    "int8_matmul",
    "layer",
    "linear",
    "outlier_columns",
    "quantize_activations",
    "quantize_activations_int8",
    "round_trip",
]


def dequantize(q: StoredWeight, backend: str | None = None) -> Tensor:
    """ŵ, float32 [out, in]; every backend returns the same bits."""
    kernel = select(f"dequantize_{q.kind}", backend, q.packed.device.type)
    return _Constant.apply(kernel, q) if _transformed() else kernel(q)


class _Constant(torch.autograd.Function):
    """What a kernel makes of a weight. Inside a transform of torch.func tensors have no memory that a kernel could read, and
    the forward of a function is the one place outside.
    """

    @staticmethod
    def forward(kernel: Callable[[StoredWeight], Tensor], q: StoredWeight) -> Tensor:
        return kernel(q)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, dims: tuple, kernel: Callable[[StoredWeight], Tensor], q: StoredWeight) -> tuple[Tensor, None]:
        return _Constant.apply(kernel, q), None


def _transformed() -> bool:
    """Whether this runs inside torch.func: grad, jvp, vmap, or what is made of them."""
    return torch._C._are_functorch_transforms_active()


@torch.no_grad()
def round_trip(groups: Tensor, scale: Tensor, zero: Tensor, bits: int, backend: str | None = None) -> Tensor:
    """ŵ = s (clamp(round(w / s) + z, 0, 2^b - 1) - z), float32; every backend returns the same bits.

    Args:
        groups: float [..., g].
        scale, zero: float [..., 1].
    """
    return select("round_trip", backend, groups.device.type)(groups, scale, zero, integer_range(bits)[1])


@torch.no_grad()
def count_magnitudes(x: Tensor, bins: int, shift: int, lowest: int, backend: str | None = None) -> Tensor:
    """How many |x| lie in each bin, int64 [bins]; every backend returns the same.

    A float32 without its sign, seen as an integer and shifted right by `shift`, less `lowest`, is the number of its bin; what
    lies outside counts in the first or the last.

    Args:
        x: float32 [tokens, features].
    """
    return select("count_magnitudes", backend, x.device.type)(x, bins, shift, lowest)


@torch.no_grad()
def gptq_columns(
    w: Tensor,
    upper: Tensor,
    group: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    backend: str | None = None,
    regrid: Callable[[Tensor, int], tuple[Tensor, Tensor] | None] | None = None,
) -> Tensor:
    """GPTQ's column loop (2210.17323, algorithm 1): codes uint8 [out, in].

    Column after column is rounded, and its error, divided by U_jj, is taken off the columns that follow, times U_jk.

    Args:
        w: float64 [out, in], columns in the order in which they are rounded.
        upper: float64 [in, in], U of `qkit.methods.gptq.inverse_cholesky`.
        group: int64 [in], which scale a column has.
        scale, zero: float [out, groups].
        regrid: where the grids of groups are not fixed: from the weights as the last finished batch of columns left them,
            [out, in], and a column to the scale and zero point [out] of the group that begins there, or None where none
            does. `scale` and `zero` are filled with them.
    """
    args = (w, upper, group, scale, zero, integer_range(bits)[1])
    if regrid is None:
        return select("gptq_columns", backend, w.device.type)(*args)
    return select("gptq_moving_columns", backend, w.device.type)(*args, regrid)


def _not_compiled(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.compile does not look into this operation: kernels are compiled already. It goes on behind it with a new graph.

    What writes a whole model down instead (torch.jit.trace, torch.export) cannot: that is said in one sentence.
    On a GPU, where a graph that breaks cannot be replayed as a whole, layers put `layer` into it instead.
    """

    @wraps(operation)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        compiling = torch.compiler.is_compiling()
        if torch.jit.is_tracing() or (compiling and exporting()):
            raise TypeError(
                "a quantized layer is computed by kernels, which torch.jit.trace and torch.export cannot write down; "
                "use torch.compile, or write down the model in float"
            )
        if compiling:  # asked for only then: to import the compiler takes seconds
            return cast(Callable[..., Tensor], torch.compiler.disable(operation))(*args, **kwargs)
        return operation(*args, **kwargs)

    return call


def exporting() -> bool:
    """Whether torch.export is looking, which writes a model down. (`torch.compiler.is_exporting` reads the same flag, but up to
    torch 2.11 the compiler takes it for True wherever it looks.)
    """
    return torch.compiler.is_compiling() and bool(getattr(torch.compiler, "_is_exporting_flag", False))


Product = Callable[[Tensor], Tensor]  # x [..., in] -> [..., out]


class _StraightThrough(torch.autograd.Function):
    """`product(x)`, with the derivatives of x ŵᵀ: backward, forward, and for each of several x."""

    @staticmethod
    def forward(x: Tensor, product: Product, q: StoredWeight) -> Tensor:
        return product(x.detach()).clone(
            memory_format=torch.contiguous_format
        )  # a tangent has to lie as its value does

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.q = inputs[2]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient @ dequantize(ctx.q).to(gradient.dtype), None, None

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_: None) -> Tensor:  # type: ignore[override]
        return tangent @ dequantize(ctx.q).to(tangent.dtype).T

    @staticmethod
    def vmap(info, dims: tuple[int, None, None], x: Tensor, product: Product, q: StoredWeight) -> tuple[Tensor, int]:
        return _StraightThrough.apply(x.movedim(dims[0], 0), product, q), 0


def _learnable(x: Tensor, product: Product, q: StoredWeight) -> Tensor:
    """`product(x)`; where somebody asks for derivatives, straight through."""
    return _StraightThrough.apply(x, product, q) if _learns(x) else product(x.detach())


def _learns(*tensors: Tensor | None) -> bool:
    """Whether somebody asks for derivatives by one of them."""
    if _transformed():
        return True
    recorded = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and ((recorded and tensor.requires_grad) or unpack_dual(tensor).tangent is not None):
            return True
    return False


def linear(
    x: Tensor,
    q: StoredWeight,
    bias: Tensor | None = None,
    backend: str | None = None,
    activations: str | Activations | None = None,
) -> Tensor:
    """x ŵᵀ + bias with a quantized weight.

    "torch" makes the weight floats and multiplies in the dtype of x. "numba" multiplies with the codes as they are stored,
    in float32 whatever x is; float64 takes torch's way.

    Args:
        x: float [..., in].
        q: the weight, [out, in].
        bias: [out] or None.
        backend: "torch", "numba" or None (chosen by device).
        activations: None, or "int8" to quantize each token of `x` to INT8 on the fly, which changes the result.

    Returns:
        [..., out], in the dtype of `x`.
    """
    if backend is None and (kept := _kept(x, q, bias)) is not None:
        y = kept.linear(x, bias, activations)
        if y is not None:
            return y
    return _linear(x, q, bias, backend, activations)


def _kept(x: Tensor, q: StoredWeight, bias: Tensor | None) -> Any:
    """What a backend keeps with `q` of the product before, if this is a call like most: not looked at, and nothing learns."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _learns(x, bias):
        return None
    return getattr(q, "ready", None)


@_not_compiled
def _linear(
    x: Tensor, q: StoredWeight, bias: Tensor | None, backend: str | None, activations: str | Activations | None
) -> Tensor:
    """`linear`, everything asked."""
    _check_linear(x, q, bias)
    if not (activations is None or isinstance(activations, Activations)):
        activations = activations_from(activations, ("int8",))
    kernel = select("linear", backend, q.packed.device.type)
    if not _learns(x, bias):
        return kernel(x, q, activations, bias)  # which may add the bias itself
    y = _learnable(x, lambda x: kernel(x, q, activations), q)
    return y if bias is None else y + bias.to(x.dtype)


def _check_linear(x: Tensor, q: StoredWeight, bias: Tensor | None) -> None:
    if not isinstance(q, StoredWeight):
        raise TypeError(f"the weight is a {type(q).__name__}, linear takes a QTensor; make one with quantize_tensor")
    out_features, in_features = q.shape
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the weight takes [..., {in_features}]; check which layer this is"
        )
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, linear takes floats; call x.float() first")
    if bias is not None and tuple(bias.shape) != (out_features,):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, the weight has {out_features} outputs; give [{out_features}]"
        )
    _check_devices(q, x=x, bias=bias)


def _check_devices(q: StoredWeight, **others: Tensor | None) -> None:
    """A kernel reads memory by its address, and asks nobody whose it is."""
    device = q.packed.device
    for name, tensor in others.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{name} is on {tensor.device} and the weight on {device}; move one of them with .to(device)"
            )


def int8_linear(
    x: Tensor,
    q: QTensor,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
    threshold: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """x ŵᵀ + bias in integers: y[t, o] = s_x[t] s_w[o] sum_k (x codes)[t, k] (w codes)[o, k] + bias[o].

    The sum is exact in int32; scales, outliers and bias are float32.

    Args:
        x: float [..., in].
        q: 8 bits, symmetric, one scale a row (`qkit.methods.int8.int8_rows`).
        bias: [out] or None.
        input_scale: float32 [], a fixed step of the activations; None: absmax / 127 of each token.
        threshold: above 0, LLM.int8() (2208.07339, eq. 8): columns of x with any |x| >= threshold are multiplied as
            floats with the dequantized weight, and only the others are quantized.
        backend: "torch", "numba" or None (chosen by device).

    Returns:
        [..., out], in the dtype of `x`.
    """
    if backend is None and (kept := _kept(x, q, bias)) is not None:
        check_int8_weight(q)
        y = kept.int8_linear(x, bias, input_scale, threshold)
        if y is not None:
            return y
    return _int8_linear(x, q, bias, input_scale, threshold, backend)


@_not_compiled
def _int8_linear(
    x: Tensor, q: QTensor, bias: Tensor | None, input_scale: Tensor | None, threshold: float, backend: str | None
) -> Tensor:
    """`int8_linear`, everything asked."""
    _check_linear(x, q, bias)
    _check_devices(q, input_scale=input_scale)
    check_int8_weight(q)
    kernel = select("int8_linear", backend, q.packed.device.type)

    def product(x: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        tokens = x.reshape(-1, q.shape[1])
        return kernel(tokens, q, input_scale, threshold, bias, dtype).reshape(*x.shape[:-1], q.shape[0])

    if not _learns(x, bias):
        return product(x.detach(), bias, x.dtype)  # a kernel may add the bias itself
    y = _learnable(x, product, q)
    return (y if bias is None else y + bias.float()).to(x.dtype)


@torch.library.custom_op("qkit::layer", mutates_args=())
def layer(
    x: Tensor,
    parts: list[Tensor],
    record: str,
    bias: Tensor | None = None,
    activations: str | None = None,
    input_scale: Tensor | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """What a quantized layer computes, as one operation of a compiled graph; it has no gradient.

    Args:
        x: float [..., in].
        parts: the tensors of the stored weight.
        record: their names and what else makes the weight, JSON; see `qkit.nn.QLinear`.
        bias: [out] or None.
        activations: of `linear`; "integers": the layer multiplies integers (`int8_linear`).
        input_scale, threshold: of `int8_linear`.
    """
    q = _stored(parts, json.loads(record))
    if activations == "integers":
        y = int8_linear(x, q, bias, input_scale, threshold)  # type: ignore[arg-type]
    else:
        y = linear(x, q, bias, activations=activations)
    return y.contiguous()


@layer.register_fake
def _(x, parts, record, bias=None, activations=None, input_scale=None, threshold=0.0):
    return x.new_empty(*x.shape[:-1], json.loads(record)["shape"][0])


@_not_compiled
def products(
    x: Tensor, weights: Sequence[StoredWeight], activations: str | None = None, threshold: float = 0.0
) -> Tensor:
    """x ŵᵀ of several weights, side by side; without derivatives.

    Args:
        x: float [..., in].
        weights: [out, in] each, of one kind.
        activations, threshold: as for `layer`.

    Returns:
        [..., the outs of all], in the dtype of `x`.
    """
    for q in weights:
        _check_linear(x, q, None)
    op = "int8_products" if activations == "integers" else "products"
    kernel, tokens = select(op, None, weights[0].packed.device.type), x.detach().reshape(-1, x.shape[-1])
    more = threshold if activations == "integers" else activations_from(activations, ("int8",))
    return kernel(tokens, weights, more).reshape(*x.shape[:-1], -1)


@torch.library.custom_op("qkit::layers", mutates_args=())
def layers(
    x: Tensor, parts: list[Tensor], record: str, activations: str | None = None, threshold: float = 0.0
) -> Tensor:
    """`products` as one operation of a compiled graph.

    Args:
        parts: those of all weights, one after the other.
        record: a list of the records of `layer`, JSON.
    """
    rest = iter(parts)
    weights = [_stored(list(islice(rest, len(meta["parts"]))), meta) for meta in json.loads(record)]
    return products(x, weights, activations, threshold)


@layers.register_fake
def _(x, parts, record, activations=None, threshold=0.0):
    return x.new_empty(*x.shape[:-1], sum(one["shape"][0] for one in json.loads(record)))


def _stored(parts: list[Tensor], meta: dict[str, Any]) -> StoredWeight:
    return stored_from(dict(zip(meta.pop("parts"), parts, strict=True)), meta)
