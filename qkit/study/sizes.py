"""How large a model is: in memory, on disk, and as plain float32."""

import tempfile
from pathlib import Path

from torch import nn

from qkit.checkpoints.copies import CONFIG, GENERATION
from qkit.checkpoints.native import save


def memory_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are held now; what is shared (tied embeddings) counts once."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def disk_bytes(model: nn.Module) -> int:
    """Bytes of the weights and the manifest that `qkit.save` writes for `model`: they are written, and weighed."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        return sum(path.stat().st_size for path in Path(folder).iterdir() if path.name not in (CONFIG, GENERATION))


def float32_bytes(model: nn.Module) -> int:
    """What the parameters take as float32, 4 bytes each, tied ones once: the size that compression is counted from."""
    return 4 * sum(p.numel() for p in model.parameters())
