"""Is this the file that was meant; and if it is not, what went wrong in one line."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the one expected, naming both sums."""
    found = sha256(path)
    if found != expected:
        raise ValueError(
            f"{path} has sha256 {found[:12]}..., expected {expected[:12]}...: it was altered; copy it again"
        )


def line_of(error: Exception, number: int) -> str:
    """One line of what an error says: the first (0) or the last (-1)."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return lines[number] if lines else type(error).__name__
