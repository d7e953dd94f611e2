"""Which method for which model on which machine: the newsletter's decision chart, as a function that gives its reasons.

What it knows
    Sizes are computed: codes, scales, zero points, and the embeddings, which stay in 16 bits. Ranks are those that lesson 07
    shows on bookworm-14m: 8 bits are as good as none; at 4 bits GPTQ loses least, if it learned from text of the kind that is
    read (from another kind it ties with NF4 and AWQ), and without calibration NF4 does at its size; at 3 bits GPTQ does. The
    ladder ends there: at 2 bits even GPTQ about doubles the perplexity of a small model. Of speed it knows two things: with
    few tokens at once, reading the weights is what takes time, so fewer bytes are faster; with many at once, arithmetic is,
    and only INT8 activations on hardware that multiplies them make that faster.

What it does not know
    Your model. Larger ones lose less at the same bits, and ranks may change: measure it (`qkit.compare`).
"""

from dataclasses import dataclass

from qkit.methods.codebook import NF4
from qkit.methods.gptq import GPTQ
from qkit.methods.rtn import RTN
from qkit.methods.scheme import Scheme
from qkit.methods.smoothquant import SmoothQuant
from qkit.methods.w8a8 import W8A8

HARDWARE = ("cpu", "cpu-vnni", "gpu", "phone")
QUALITY = ("best", "balanced", "smallest")
VOCABULARY = 2 * 32_000  # rows of the two embeddings of Llama 2; models since have up to four times as many
SMALL = 1e9  # parameters; below, a bit less is felt more

MULTIPLIES_INT8 = ("cpu-vnni", "gpu")


@dataclass(frozen=True)
class Recommendation:
    """What to use, what it takes, and why."""

    scheme: Scheme | None  # None: leave the model in 16 bits
    bits_per_weight: float  # of a quantized weight, scales and zero points included
    gigabytes: float  # all weights, embeddings included
    why: tuple[str, ...]
    cautions: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the scheme."""
        return self.scheme.name if self.scheme else "16 bits, as it is"

    def __repr__(self) -> str:
        head = f"{self.name}: {self.gigabytes:.3g} GB, {self.bits_per_weight:.2f} bits per weight"
        return "\n".join([head, *(f"  + {reason}" for reason in self.why), *(f"  ! {word}" for word in self.cautions)])


def recommend(
    parameters: float,
    memory_gb: float,
    hardware: str = "cpu",
    quality: str = "balanced",
    calibration: bool = True,
    *,
    embeddings: float | None = None,
) -> Recommendation:
    """The method to begin with.

    Args:
        parameters: how many the model has, e.g. 7e9.
        memory_gb: what its weights may take, in units of 10^9 bytes. Leave room for the context: its keys and values come
            on top.
        hardware: "cpu", "cpu-vnni" (a CPU that multiplies INT8: VNNI, AMX, or their like elsewhere), "gpu" or "phone".
        quality: "best": as many bits as fit; "balanced": 4 bits; "smallest": as few as stay usable.
        calibration: is there text of the kind that the model will read, and time to use it?
        embeddings: how many of the parameters are embeddings and output head, which stay in 16 bits; None: estimated.

    Raises:
        ValueError: an argument out of its range, or nothing usable fits.

    Example:
        >>> recommend(7e9, 5.0, hardware="gpu").scheme.name
        'GPTQ W4 g128'
    """
    if not 0 < parameters < float("inf"):
        raise ValueError(f"parameters={parameters!r} is not a number of parameters; write 7e9 for 7 billion")
    if not 0 < memory_gb < float("inf"):
        raise ValueError(f"memory_gb={memory_gb!r} is no memory; write 8 for 8 GB")
    for name, value, choices in (("hardware", hardware, HARDWARE), ("quality", quality, QUALITY)):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}; use {choices[0]!r}")
    if embeddings is None:
        embeddings = min(VOCABULARY * hidden_size(parameters), parameters / 8)
    if not 0 <= embeddings <= parameters:
        raise ValueError(f"embeddings={embeddings:g} are not a part of {parameters:g} parameters; leave it out")

    ladder = _ladder(hardware, calibration)
    first = {"best": 0, "balanced": 2, "smallest": len(ladder) - 1}[quality]
    sizes = [gigabytes(parameters, rung.scheme, embeddings) for rung in ladder]
    place = next((i for i in range(first, len(ladder)) if sizes[i] <= memory_gb), None)
    if place is None:
        raise ValueError(_refusal(parameters, memory_gb, ladder[-1].scheme, sizes[-1], calibration, embeddings))
    scheme = ladder[place].scheme
    bits = stored_bits(scheme, hidden_size(parameters))
    why = [_fit(sizes[place], memory_gb, embeddings * 2 / 1e9), *ladder[place].why]
    if place > first:
        why.append(f"{_name(ladder[place - 1].scheme)} would take {sizes[place - 1]:.3g} GB")
    return Recommendation(scheme, bits, sizes[place], tuple(why), tuple(_cautions(scheme, hardware, parameters)))


def hidden_size(parameters: float) -> float:
    """About the width of a model of that size: 12 h² weights a layer and h / 128 layers, as in Llama 2."""
    return (parameters * 128 / 12) ** (1 / 3)


def stored_bits(scheme: Scheme | None, in_features: float) -> float:
    """Bits that a weight of a square layer of so many inputs takes: its code and its share of scales and zero points."""
    return 16.0 if scheme is None else scheme.stored_bits((in_features, in_features))


def gigabytes(parameters: float, scheme: Scheme | None, embeddings: float = 0.0) -> float:
    """10^9 bytes of all weights: `embeddings` of the parameters in 16 bits, the rest by `scheme` (None: 16 bits too)."""
    bits = stored_bits(scheme, hidden_size(parameters))
    return ((parameters - embeddings) * bits + embeddings * 16) / 8e9


EIGHT = "8 bits lose next to nothing, and INT8 activations make many tokens at once faster, on hardware that multiplies INT8"


@dataclass(frozen=True)
class Rung:
    """A scheme of the ladder, and why one would stop there."""

    scheme: Scheme | None
    why: tuple[str, ...]


def _ladder(hardware: str, calibration: bool) -> list[Rung]:
    """From no loss to the most that can be asked for: 16, 8, 4 and, with calibration, 3 bits."""
    nothing = Rung(None, ("nothing is gained by rounding what fits, unless it is to be faster",))
    if hardware not in MULTIPLIES_INT8:
        eight = Rung(RTN(8), ("8 bits by rounding lose next to nothing, without any calibration",))
    elif calibration:
        eight = Rung(SmoothQuant(), (EIGHT, "SmoothQuant first moves large activations into the weights"))
    else:
        eight = Rung(W8A8(), (EIGHT, "a scale for each token needs no calibration"))
    if calibration:
        four = "at 4 bits GPTQ loses least, if it is calibrated on text of the right kind"
        three = "at 3 bits GPTQ loses much less than rounding"
        return [nothing, eight, Rung(GPTQ(4, 128), (four,)), Rung(GPTQ(3, 128), (three,))]
    if hardware == "phone":
        why = "groups of 32 need no calibration, and are a grid that runtimes on phones can read"
        return [nothing, eight, Rung(RTN(4, 32), (why,))]
    return [nothing, eight, Rung(NF4(), ("of the 4-bit methods that need no calibration, NF4 loses least",))]


def _name(scheme: Scheme | None) -> str:
    return scheme.name if scheme else "16 bits"


def _fit(size: float, memory_gb: float, embeddings_gb: float) -> str:
    return f"it fits: {size:.3g} of {memory_gb:g} GB, {embeddings_gb:.2g} of them embeddings in 16 bits"


def _cautions(scheme: Scheme | None, hardware: str, parameters: float) -> list[str]:
    words = ["the context takes memory too, and grows with every token"]
    if scheme is None:
        return words
    if scheme.calibrated:
        words.append("calibrate on what the model will read: another text can be worse than plain rounding")
    bits = scheme.weight_bits
    if bits == 3:
        words.append("3 bits are a loss that readers notice; a smaller model in 4 bits may be better")
    if bits < 8:
        if hardware == "gpu":
            words.append("faster for few tokens at once; for many, 4-bit kernels are often slower than 16 bits")
        if parameters < SMALL:
            words.append("small models lose more at the same bits; look at 8 bits too")
    if hardware == "phone":
        words.append("the runtime must have a kernel for exactly this grid; convert one layer before you choose")
    words.append("measure your model on your text (qkit.compare): these ranks are those of a small one")
    return words


def _refusal(
    parameters: float, memory_gb: float, scheme: Scheme | None, size: float, calibration: bool, embeddings: float
) -> str:
    sentence = f"{parameters:.3g} parameters take {size:.3g} GB at least ({_name(scheme)}), and memory_gb={memory_gb:g}"
    with_text = gigabytes(parameters, GPTQ(3, 128), embeddings)
    if not calibration and with_text <= memory_gb:
        return f"{sentence}; with calibration=True {GPTQ(3, 128).name} takes {with_text:.3g} GB"
    most = parameters * memory_gb / size
    return f"{sentence}; take a model of at most {most:.2g} parameters, or more memory: the chart ends at 3 bits"
