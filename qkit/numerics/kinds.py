"""The kinds of stored weights by the names that saved records call them."""

from typing import Any

from torch import Tensor

from qkit.numerics.codebook_qtensor import CodebookQTensor
from qkit.numerics.qtensor import QTensor
from qkit.numerics.stored import StoredWeight

KINDS: dict[str, type[StoredWeight]] = {cls.kind: cls for cls in (QTensor, CodebookQTensor)}


def stored_from(tensors: dict[str, Tensor], meta: dict[str, Any]) -> StoredWeight:
    """The weight whose `tensors()` and `meta()` these are.

    Args:
        meta: may name the "kind"; records that were written before kinds had names do not: a table told them apart.

    Raises:
        ValueError: a kind that this qkit does not know, or parts that do not belong together.
    """
    meta = dict(meta)
    kind = meta.pop("kind", "codebook" if "codebook" in meta else "affine")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}; was it written by a newer qkit?")
    return KINDS[kind](**tensors, **meta)
