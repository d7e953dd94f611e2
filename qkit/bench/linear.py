"""Linear layers: qkit's and the peers' on the same weight and the same inputs.

The weight is normal, as trained ones nearly are. The inputs are normal too, but for one column of outliers, which LLM.int8()
keeps in floating point and which widens everybody's INT8 scale. Each contender rotates over copies of its weight that together
take `WORKING_SET` bytes or more, as the layers of a model would: no cache keeps them, and every byte comes from memory.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import qkit
from qkit.bench.child import answer, ask
from qkit.bench.contender import BuiltLayer, Contender
from qkit.bench.peers import PEERS
from qkit.bench.record import LinearRecord, Measurement, Roof, core_count, describe_machine, merged
from qkit.bench.timing import Rotation, Timing, interleave
from qkit.checkpoints.files import line_of
from qkit.engine.progress import progress_bar
from qkit.engine.quantize import quantize_tensor
from qkit.methods.codebook import NF4
from qkit.methods.int8 import int8_rows
from qkit.methods.rtn import RTN
from qkit.methods.scheme import Scheme
from qkit.numerics.qtensor import QTensor
from qkit.ops import int8_linear

SHAPES = ((4096, 4096), (11008, 4096))  # out x in
TOKENS = (1, 4, 16, 128, 512)
THREADS = (1, 2)
ROUNDS = 7  # three times as many for few tokens, whose calls are short
QUICK_SHAPES, QUICK_TOKENS, QUICK_ROUNDS = SHAPES[:1], (1, 128), 3
WORKING_SET = 2**27  # bytes
FEW = 16  # tokens
WARM = 2  # calls at the start of a turn that are not counted
COLUMNS = 128  # the largest group that takes part
OUTLIER, THRESHOLD = 8.0, 6.0  # of the activations; the first is the largest that there is
WRONG = 0.7  # relative error: W2 g64 rounds about 0.5 away, and a product that has nothing to do with it is 1.4 away


def weight_only(scheme: Scheme, activations: str | None, weight: Tensor) -> Callable[[], BuiltLayer]:
    """`qkit.linear`, with float activations or INT8 ones."""
    q = quantize_tensor(weight, scheme)

    def layer() -> BuiltLayer:
        mine = _copy(q)
        return BuiltLayer(lambda x: qkit.linear(x, mine, activations=activations), mine.nbytes)

    return layer


def integer(static: bool, threshold: float, weight: Tensor) -> Callable[[], BuiltLayer]:
    """`qkit.ops.int8_linear`: a scale a token or one for all; above 0, the threshold of LLM.int8()."""
    q, scale = int8_rows(weight), torch.tensor(OUTLIER / 127) if static else None

    def layer() -> BuiltLayer:
        mine = _copy(q)
        return BuiltLayer(lambda x: int8_linear(x, mine, input_scale=scale, threshold=threshold), mine.nbytes)

    return layer


def _copy(q: QTensor) -> QTensor:
    return type(q)(**{name: part.clone() for name, part in q.tensors().items()}, **q.meta())


OURS = (
    Contender("qkit", "W4 g128", partial(weight_only, RTN(4, 128), None)),
    Contender("qkit", "W4 g128 sym", partial(weight_only, RTN(4, 128, symmetric=True), None)),
    Contender("qkit", "W4 g128 A8", partial(weight_only, RTN(4, 128), "int8")),
    Contender("qkit", "W4 g128 sym A8", partial(weight_only, RTN(4, 128, symmetric=True), "int8")),
    Contender("qkit", "W4 g32 A8", partial(weight_only, RTN(4, 32), "int8")),
    Contender("qkit", "W3 g128", partial(weight_only, RTN(3, 128), None)),
    Contender("qkit", "W3 g128 A8", partial(weight_only, RTN(3, 128), "int8")),
    Contender("qkit", "W2 g64", partial(weight_only, RTN(2, 64), None)),
    Contender("qkit", "W2 g64 A8", partial(weight_only, RTN(2, 64), "int8")),
    Contender("qkit", "W8 g128 A8", partial(weight_only, RTN(8, 128), "int8")),
    Contender("qkit", "NF4 b64", partial(weight_only, NF4(double_quant=False), None)),
    Contender("qkit", "NF4 b64 dq", partial(weight_only, NF4(), None)),
    Contender("qkit", "W8A8 dynamic", partial(integer, False, 0.0)),
    Contender("qkit", "W8A8 static", partial(integer, True, 0.0)),
    Contender("qkit", "LLM.int8", partial(integer, False, THRESHOLD)),
)


FORMATS = ("fp32", "bf16", "W4 g128", "W4 g32", "NF4", "W8A8", "dynamic INT8", "LLM.int8", "W8 g128", "W3", "W2")
# In the order in which they take turns: what will be compared stands together, so that a disturbance falls on both.
CONTENDERS = sorted((*OURS, *PEERS), key=lambda c: next(i for i, name in enumerate(FORMATS) if c.name.startswith(name)))


def draw_weight(shape: tuple[int, int]) -> Tensor:
    """float32 [out, in], the same each time."""
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def draw_inputs(tokens: int, features: int) -> Tensor:
    """float32 [tokens, in], the same each time: normal, with one column of outliers in the middle."""
    x = torch.randn(tokens, features, generator=torch.Generator().manual_seed(tokens)).clamp(-5, 5)
    x[:, features // 2] = OUTLIER
    return x


def copies(nbytes: int, working_set: int = WORKING_SET) -> int:
    """How many weights of `nbytes` fill the working set; at least two take turns."""
    return max(2, -(-working_set // nbytes))


def rounds_of(tokens: int, rounds: int) -> int:
    """Rounds with so many tokens: a disturbance of a second is to fall on few of them."""
    return rounds if tokens > FEW else 3 * rounds


def block_of(tokens: int) -> int:
    """Calls in a turn: 8 of one token, fewer of many, which take longer."""
    return max(1, min(8, 64 // tokens))


def relative_error(y: Tensor, exact: Tensor) -> float:
    """|y - exact| / |exact|, Frobenius norms."""
    return float((y - exact).norm() / exact.norm())


def fill(contender: Contender, weight: Tensor, working_set: int = WORKING_SET) -> list[BuiltLayer]:
    """Equal layers that fill the working set, each with memory of its own."""
    make = contender.make(weight)
    first = make()
    return [first, *(make() for _ in range(copies(first.nbytes, working_set) - 1))]


def checked_error(contender: Contender, layer: BuiltLayer, x: Tensor, weight: Tensor) -> float:
    """The relative error of a layer's product.

    Raises:
        ArithmeticError: it is not the product that was asked for: to be quick with something else is no art.
    """
    error = relative_error(torch.as_tensor(layer.call(contender.native(x))).float(), x @ weight.T)
    if not error < WRONG:
        raise ArithmeticError(f"its product is {error:.2g} away from that of float32, as far as any other would be")
    return error


@torch.inference_mode()
def measure(
    shapes: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    rounds: int = ROUNDS,
    contenders: Sequence[Contender] = CONTENDERS,
    working_set: int = WORKING_SET,
    progress: bool | None = None,
) -> LinearRecord:
    """Time all contenders in this process, with as many threads as torch has."""
    from qkit.bench.roof import measure_roof  # Numba, which takes a moment to import

    machine, roof = describe_machine(), measure_roof()
    missing: dict[str, str] = {}
    measurements: list[Measurement] = []
    unsettled = 0
    for shape in shapes:
        weight, layers = draw_weight(shape), {}
        for contender in progress_bar(progress, f"{spell(shape)}: packing", over=contenders, leave=False):
            try:
                built = fill(contender, weight, working_set)
                checked_error(contender, built[0], draw_inputs(1, shape[1]), weight)
                layers[contender] = built
            except Exception as error:
                if contender.library == "qkit":
                    raise
                missing[contender.label] = line_of(error, 0)  # whatever that library makes of this machine
        for count in tokens:
            timings, errors = _time(layers, weight, count, rounds, progress)
            for contender, timing in timings.items():
                measurements.append(_measurement(contender, layers[contender], count, shape, timing, errors[contender]))
                unsettled += timing.unsettled
    again = measure_roof()
    best = {name: max(getattr(roof, name), getattr(again, name)) for name in vars(roof)}  # not one slow moment's
    return LinearRecord(machine, (Roof(**best),), tuple(measurements), missing, unsettled)


def _time(
    layers: dict[Contender, list[BuiltLayer]], weight: Tensor, tokens: int, rounds: int, progress: bool | None
) -> tuple[dict[Contender, Timing], dict[Contender, float]]:
    x = draw_inputs(tokens, weight.shape[1])
    errors = {contender: checked_error(contender, built[0], x, weight) for contender, built in layers.items()}
    calls = {c: Rotation([layer.call for layer in built], c.native(x)) for c, built in layers.items()}
    block, rounds = block_of(tokens), rounds_of(tokens, rounds)
    words = f"{spell(tuple(weight.shape))}: M = {tokens}, {torch.get_num_threads()} threads"
    with progress_bar(progress, words, total=rounds * len(calls), leave=False) as bar:
        return interleave(calls, rounds, block, min(WARM, block), bar.update), errors


def _measurement(
    contender: Contender, built: list[BuiltLayer], tokens: int, shape: tuple[int, int], timing: Timing, error: float
) -> Measurement:
    return Measurement(
        library=contender.library,
        name=contender.name,
        shape=shape,
        threads=torch.get_num_threads(),
        tokens=tokens,
        nbytes=built[0].nbytes,
        copies=len(built),
        error=error,
        cores=round(timing.cores, 2),
        milliseconds=tuple(round(1e3 * seconds, 5) for seconds in timing.seconds),
    )


def run(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    tokens: Sequence[int] = TOKENS,
    threads: Sequence[int] = THREADS,
    rounds: int = ROUNDS,
) -> LinearRecord:
    """`measure` in a fresh process for each number of threads: qkit against every peer that is installed.

    Raises:
        ValueError: a shape, a number of tokens or of threads that cannot be measured.
    """
    for shape in shapes:
        if min(shape) < 1 or shape[1] % COLUMNS:
            raise ValueError(
                f"shape={spell(shape)} does not divide into groups of {COLUMNS}; give in as a multiple of it"
            )
    for count in tokens:
        if count < 1:
            raise ValueError(f"tokens={count} is no number of tokens; give 1 or more")
    for count in threads:
        if not 1 <= count <= core_count():
            raise ValueError(f"threads={count} on {core_count()} cores would time waiting; give 1 to {core_count()}")
    request = {"shapes": [list(shape) for shape in shapes], "tokens": list(tokens), "rounds": rounds}
    return merged([LinearRecord.from_dict(ask("qkit.bench.linear", request, count)) for count in threads])


def spell(shape: tuple[int, int]) -> str:
    """(4096, 11008) as "4096x11008"."""
    return "x".join(map(str, shape))


def parse_shape(text: str) -> tuple[int, int]:
    """The inverse of `spell`."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if match is None:
        raise ValueError(f"shape {text!r} is not understood; write out x in, e.g. 4096x4096")
    return int(match[1]), int(match[2])


def _answer(shapes: list[list[int]], tokens: list[int], rounds: int) -> dict:
    return measure([tuple(shape) for shape in shapes], tokens, rounds).to_dict()


if __name__ == "__main__":
    answer(_answer)
