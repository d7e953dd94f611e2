"""The oldest versions that pyproject.toml promises, one a line, as pip's constraints."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pins(pyproject: str, constraints: str) -> list[str]:
    """`name>=version` of [project] dependencies and of the extra `peft` as `name==version`; torch as constraints.txt has it."""
    block = re.search(r"^dependencies = \[\n(.*?)^\]", pyproject, re.M | re.S)[1]
    for extra in ("peft", "gguf", "onnx"):
        block += re.search(rf"^{extra} = \[(.*?)\]", pyproject, re.M)[1]
    block += re.search(r'"onnxruntime>=[\d.]+"', pyproject)[0]
    oldest = [f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)>=([\d.]+)"', block)]
    torch = re.search(r"^torch==\S+", constraints, re.M)[0]
    return [torch if pin.startswith("torch==") else pin for pin in oldest]


if __name__ == "__main__":
    print(*pins((ROOT / "pyproject.toml").read_text(), (ROOT / "constraints.txt").read_text()), sep="\n")
