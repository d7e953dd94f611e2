"""One step of a Llama that writes: what its blocks do to a token, the same for every format.

What stands between the products, norm, gate and attention, is an operation each. On a card these are kernels that let the next
product order its weight while they compute (`qkit_kernels.triton.between`). So what follows one of them in a compiled step must
be a product, or a kernel that waits before it reads anything that the step has made: those of torch's compiler wait, with
`triton.enable_pdl`, only for what the operation just ahead has made.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from qkit.dispatch import select


@torch.library.custom_op("qkit::add_norm", mutates_args=())
def add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`qkit.backends.torch.add_norm` by the fastest kernel that there is."""
    return select("add_norm", None, x.device.type)(x, more, weight, eps)


@add_norm.register_fake
def _(x, more, weight, eps):
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("qkit::gated", mutates_args=())
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """`qkit.backends.torch.gated` by the fastest kernel that there is."""
    return select("gated", None, gate.device.type)(gate, up)


@gated.register_fake
def _(gate, up):
    return gate.new_empty(gate.shape)


@torch.library.custom_op("qkit::attend", mutates_args=())
def attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """`qkit.backends.torch.attend` by the fastest kernel that there is."""
    return select("attend", None, query.device.type)(query, keys, values, seen, scale)


@attend.register_fake
def _(query, keys, values, seen, scale):
    return query.new_empty(query.shape)


class Cache:
    """Keys and values of one block, [batch, heads, length, dim] each, written in place."""

    def __init__(self, shape: tuple[int, ...], position: Tensor, dtype: torch.dtype) -> None:
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=position.device) for _ in range(2))
        self.position = position

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, those of one new token among them. Called as transformers calls its cache of a whole model."""
        self.keys.index_copy_(2, self.position, keys)
        self.values.index_copy_(2, self.position, values)
        return self.keys, self.values


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """`attend` as transformers calls it: query [batch, heads, 1, dim]."""
    batch, heads, _, dim = query.shape
    groups, length = batch * key.shape[1], key.shape[2]
    out = attend(
        query.reshape(groups, -1, dim),
        key.view(groups, length, dim),
        value.view(groups, length, dim),
        attention_mask,
        scaling,
    )
    return out.view(batch, 1, heads, dim), None


def begin(model: nn.Module, ids: Tensor, position: Tensor, length: int) -> tuple[Tensor, ...]:
    """Hidden state [batch, hidden], what is to be added to it, cosines, sines, and which positions are written already."""
    x = model.embed_tokens(ids)
    seen = torch.arange(length, device=ids.device) <= position
    return x[:, 0], torch.zeros_like(x[:, 0]), *model.rotary_emb(x, position[None]), seen


def block(
    layer: nn.Module, x: Tensor, more: Tensor, cos: Tensor, sin: Tensor, seen: Tensor, cache: Cache
) -> tuple[Tensor, Tensor]:
    """What a block does to x + more [batch, hidden]: its sum with attention, and what the MLP makes of that."""
    first, second, mlp = layer.input_layernorm, layer.post_attention_layernorm, layer.mlp
    x, normed = add_norm(x, more, first.weight, first.variance_epsilon)
    given = {"attention_mask": seen, "position_embeddings": (cos, sin), "past_key_values": cache, "use_cache": True}
    more = layer.self_attn(hidden_states=normed[:, None], **given)[0][:, 0]
    x, normed = add_norm(x, more, second.weight, second.variance_epsilon)
    return x, mlp.down_proj(gated(mlp.gate_proj(normed), mlp.up_proj(normed)))


def end(norm: nn.Module, head: nn.Module, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [batch, vocabulary], and the likeliest token [batch, 1], in two steps: one would be one program's work."""
    _, normed = add_norm(x, more, norm.weight, norm.variance_epsilon)
    logits = head(normed)
    width = math.gcd(logits.shape[1], 256)
    most, place = logits.unflatten(1, (-1, width)).max(-1)
    best = most.argmax(-1, keepdim=True)
    return logits, best * width + place.gather(1, best)
