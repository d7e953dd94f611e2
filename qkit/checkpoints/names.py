"""Names of tensors: those that nobody misses, and how an error lists some of many."""

import re

# Buffers of old checkpoints that newer classes compute: rotary frequencies, causal masks, positions.
HARMLESS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids|(attn|attention)\.bias)$"
)


def some(names: list[str]) -> str:
    """The first three, and how many there are besides; one that cannot be printed, or goes on for ever, as far as it goes."""
    shown = [name if name.isprintable() and 0 < len(name) <= 200 else repr(name[:200]) for name in names[:3]]
    return ", ".join(shown) + f" and {len(names) - 3} more" * (len(names) > 3)
