"""Runs the PTX of a kernel on a CPU: what a card would do, one warp after the other, each address looked at.

For kernels that are assembly in Triton's clothes (`qkit_kernels.triton.one`, `eight`), which Triton's interpreter cannot run.
It knows the instructions that those are compiled to and no others; a branch must be taken by all lanes of a warp or by none, and
a load or store must be aligned and lie within a tensor that was given, or within shared memory.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

LANES = 32
LANE = np.arange(LANES, dtype=np.uint32)
WIDTH = {
    "s8": 1,
    "b8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
    "b64": 8,
    "u64": 8,
    "s64": 8,
}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
KIND = {"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "f32": np.float32, "f16": np.float16}
COMPARED: dict[str, Callable] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal
}  # fmt: skip


@dataclass
class Memory:
    """Tensors at made-up addresses: {address: bytes}."""

    regions: dict[int, np.ndarray] = field(default_factory=dict)
    free: int = 1 << 20

    def add(self, array: np.ndarray) -> int:
        """The address at which the bytes of `array` lie; it is written in place."""
        address, self.free = self.free, self.free + (array.nbytes + 4095) // 4096 * 4096 + (1 << 20)
        self.regions[address] = array.reshape(-1).view(np.uint8)
        return address


@dataclass
class Program:
    """Instructions (guard, name, operands), where labels are, how many bytes of shared memory, and where in it each name is."""

    body: list[tuple[str, str, list[str]]]
    labels: dict[str, int]
    shared: int
    places: dict[str, int]
    threads: int


def parse(text: str) -> Program:
    """The one kernel of a PTX module."""
    body: list[tuple[str, str, list[str]]] = []
    labels: dict[str, int] = {}
    places, shared = {}, 0
    for align, name, size in re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", text):
        places[name] = -(-shared // int(align)) * int(align)
        shared = places[name] + int(size)
    text = re.sub(r"//[^\n]*", "", text)
    start = re.search(r"\.visible \.entry[^{]*", text)
    assert start
    code = re.sub(r"\.loc[^\n]*", "", text[start.end() :])
    for statement in re.split(r"[;\n]", code):
        statement = re.sub(r"^\{(?=\s|$)", "", statement.strip()).strip()  # blocks only give names a place
        while statement.count("}") > statement.count("{"):
            statement = statement[: statement.rindex("}")].strip()
        while label := re.match(r"(\$?[\w$]+):\s*", statement):
            labels[label[1]] = len(body)
            statement = statement[label.end() :]
        if not statement or statement.startswith("."):
            continue
        guard = re.match(r"@(!?[%\w]+)\s+", statement)
        statement = statement[guard.end() :] if guard else statement
        name, _, rest = statement.partition("\t" if "\t" in statement else " ")
        operands = [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest)]
        body.append((guard[1] if guard else "", name.strip(), operands))
    threads = re.search(r"\.reqntid (\d+)", text)
    assert threads
    return Program(body, labels, shared, places, int(threads[1]))


class Warp:
    """A warp of a program: its registers, and where it is."""

    def __init__(
        self, program: Program, memory: Memory, shared: np.ndarray, params: list, block: int, number: int
    ) -> None:
        self.program, self.memory, self.shared = program, memory, shared
        self.params, self.block, self.number = params, block, number
        self.registers: dict[str, np.ndarray] = {}

    def get(self, operand: str, kind: str) -> np.ndarray:
        """An operand of all lanes, as `kind` says."""
        width = WIDTH[kind]
        if operand in self.registers:
            bits = self.registers[operand]
        elif operand == "%tid.x":
            bits = LANE + np.uint32(LANES * self.number)
        elif operand == "%laneid":
            bits = LANE
        elif operand == "%ctaid.x":
            bits = np.full(LANES, self.block, np.uint32)
        elif operand in self.program.places:
            bits = np.full(LANES, self.program.places[operand], np.uint32)
        elif operand.startswith("0f"):
            bits = np.full(LANES, int(operand[2:], 16), np.uint32)
        else:
            bits = np.full(LANES, int(operand.rstrip("U"), 0) & ((1 << 8 * width) - 1), UNSIGNED[width])
        bits = bits.astype(UNSIGNED[width], copy=False)
        return bits.view(KIND[kind]) if kind in KIND else bits

    def put(self, operand: str, value: np.ndarray, active: np.ndarray, kind: str) -> None:
        """To a register, of the lanes that are active."""
        bits = np.ascontiguousarray(value).view(UNSIGNED[WIDTH[kind]]) if kind != "pred" else value
        if not active.all():
            old = self.registers.get(operand, np.zeros(LANES, bits.dtype))
            bits = np.where(active, bits, old)
        self.registers[operand] = bits

    def run(self) -> Iterator[None]:
        """Until it is done, stopping at each barrier."""
        at = 0
        with np.errstate(all="ignore"):
            while True:
                guard, name, operands = self.program.body[at]
                at += 1
                active = np.ones(LANES, bool)
                if guard:
                    active = self.registers[guard.lstrip("!")] ^ (guard[0] == "!")
                if name.startswith("bra"):
                    assert active.all() or not active.any(), "lanes of a warp part"
                    at = self.program.labels[operands[0]] if active.all() else at
                elif name == "ret":
                    return
                elif name == "bar.sync":
                    yield
                elif not name.startswith("griddepcontrol"):
                    self.execute(name, operands, active)

    def execute(self, name: str, operands: list[str], active: np.ndarray) -> None:
        """One instruction."""
        op, *rest = name.split(".")
        kind = rest[-1] if rest else ""
        if op in ("ld", "st"):
            self.move(op, rest, operands, active)
        elif op == "mma":
            self.product(operands) if kind == "s32" else self.product_of_floats(operands, rest[-2])
        elif op == "setp":
            a, b = (self.get(o, kind) for o in operands[1:3])
            self.put(operands[0], COMPARED[rest[0]](a, b), active, "pred")
        elif kind == "pred":
            values = [self.registers[o] for o in operands[1:]]
            made = {"and": np.logical_and, "or": np.logical_or, "not": np.logical_not}[op](*values)
            self.put(operands[0], made, active, "pred")
        elif op == "selp":
            a, b = (self.get(o, kind) for o in operands[1:3])
            self.put(operands[0], np.where(self.registers[operands[3]], a, b), active, kind)
        elif op == "cvt":
            self.put(
                operands[0], self.converted(rest, operands[1]), active, "b16" if rest[-2][-2:] == "16" else rest[-2]
            )
        elif op == "mov" and operands[0].startswith("{"):
            low, high = (o.strip() for o in operands[0][1:-1].split(","))
            value = self.get(operands[1], "b32")
            for half, shift in ((low, 0), (high, 16)):
                if half != "_":
                    self.put(half, (value >> shift).astype(np.uint16), active, "b16")
        elif op == "mov" and operands[1].startswith("{"):
            low, high = (self.get(o.strip(), "b16").astype(np.uint32) for o in operands[1][1:-1].split(","))
            self.put(operands[0], low | high << np.uint32(16), active, "b32")
        else:
            self.put(operands[0], self.computed(op, rest, kind, operands[1:]), active, self.width_of(op, rest, kind))

    @staticmethod
    def width_of(op: str, rest: list[str], kind: str) -> str:
        """The kind of a result: twice as wide where an instruction says so."""
        if kind == "bf16x2":
            return "b32"
        return {"s32": "s64", "u32": "u64"}[kind] if op in ("mad", "mul") and "wide" in rest else kind

    def computed(self, op: str, rest: list[str], kind: str, operands: list[str]) -> np.ndarray:
        """What arithmetic makes of its operands."""
        if op == "shfl":
            value = self.get(operands[0], "b32")
            other = int(self.get(operands[1], "b32")[0])
            return value[LANE ^ other] if "bfly" in rest else np.full(LANES, value[other])
        if op == "prmt":
            a, b, which = (self.get(o, "b32") for o in operands)
            octets = np.stack([(v >> np.uint32(8 * i)) & 255 for v in (a, b) for i in range(4)])
            made = np.zeros(LANES, np.uint32)
            for i in range(4):
                made |= octets[(which >> np.uint32(4 * i)) & 7, LANE] << np.uint32(8 * i)
            return made
        if op == "bfe":
            value, first, length = (self.get(o, "u32").astype(np.uint64) for o in operands)
            made = (value >> first) & ((np.uint64(1) << length) - np.uint64(1))
            if kind == "s32" and length[0]:
                top = np.uint64(1) << (length - np.uint64(1))
                made = (made ^ top) - top
            return made.astype(np.uint32)
        if op == "shf":  # of two registers, the lower first, one's worth
            low, high, by = (self.get(o, "u32").astype(np.uint64) for o in operands)
            by = by & np.uint64(31) if "wrap" in rest else np.minimum(by, np.uint64(32))
            both = high << np.uint64(32) | low
            return (both << by >> np.uint64(32) if "l" in rest else both >> by).astype(np.uint32)
        if op in ("shl", "shr"):
            value, by = self.get(operands[0], kind), self.get(operands[1], "u32")
            most = 8 * WIDTH[kind]
            moved = np.left_shift if op == "shl" else np.right_shift
            inside = moved(value, np.minimum(by, most - 1).astype(value.dtype))
            gone = value >> (most - 1) if kind.startswith("s") and op == "shr" else np.zeros_like(value)
            return np.where(by < most, inside, gone).astype(value.dtype)
        if op in ("mad", "mul") and kind in ("s32", "u32", "s64"):
            wide = np.int64 if kind[0] == "s" else np.uint64
            a, b = (self.get(o, kind).astype(wide) for o in operands[:2])
            made = a * b
            if "hi" in rest:
                return (made >> 32).astype(np.int32)
            if "wide" in rest:
                return made + self.get(operands[2], kind.replace("32", "64")) if op == "mad" else made
            made = made + self.get(operands[2], kind).astype(wide) if op == "mad" else made
            return made.astype(self.get(operands[0], kind).dtype)
        if op == "lop3":  # bit 4 a + 2 b + c of the table is what three bits make
            a, b, c = (self.get(o, "b32") for o in operands[:3])
            made, table = np.zeros(LANES, np.uint32), int(operands[3], 0)
            for place in (place for place in range(8) if table >> place & 1):
                made |= (a if place & 4 else ~a) & (b if place & 2 else ~b) & (c if place & 1 else ~c)
            return made
        if op == "fma" and kind == "bf16x2":
            return self.two_bfloats([self.get(o, "b32") for o in operands])
        values = [self.get(o, kind) for o in operands]
        if op == "fma":  # one rounding: the product of two float32 is exact in float64, the sum nearly
            exact = values[0].astype(np.float64) * values[1].astype(np.float64) + values[2].astype(np.float64)
            return exact.astype(np.float32)
        if op == "div":
            return (values[0].astype(np.float64) / values[1]).astype(values[0].dtype)
        if op in ("max", "min") and kind == "f32":
            return (np.maximum if "NaN" in rest else np.fmax)(*values)
        made = {
            "add": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.bitwise_and, "or": np.bitwise_or,
            "xor": np.bitwise_xor, "not": np.invert, "neg": np.negative, "abs": np.abs, "max": np.maximum, "min": np.minimum,
            "mov": lambda value: value,
        }[op](*values)  # fmt: skip
        return made.astype(values[0].dtype)

    @staticmethod
    def two_bfloats(operands: list[np.ndarray]) -> np.ndarray:
        """a b + c of both bfloat16 in a register; only results that need no rounding."""
        made = np.zeros(LANES, np.uint32)
        for shift in (0, 16):
            a, b, c = ((o >> np.uint32(shift) << np.uint32(16)).view(np.float32) for o in operands)
            bits = (a * b + c).view(np.uint32)
            assert not (bits & np.uint32(0xFFFF)).any(), "a bfloat16 would be rounded here"
            made |= bits >> np.uint32(16) << np.uint32(shift)
        return made

    def converted(self, rest: list[str], operand: str) -> np.ndarray:
        """A number of one kind as one of another; the last two words say which."""
        to, of = rest[-2:]
        if to == "bf16":
            bits = self.get(operand, "b32")
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            return np.where((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), 0x7FFF, rounded).astype(np.uint16)
        return self.get(operand, of).astype(KIND.get(to) or UNSIGNED[WIDTH[to]])

    def move(self, op: str, rest: list[str], operands: list[str], active: np.ndarray) -> None:
        """Loads and stores."""
        kind, count = rest[-1], next((int(word[1:]) for word in rest if re.fullmatch(r"v\d", word)), 1)
        given, place = (operands[0], operands[1]) if op == "ld" else (operands[1], operands[0])
        names = [o.strip() for o in given[1:-1].split(",")] if given.startswith("{") else [given]
        if rest[0] == "param":
            number = int(re.search(r"_(\d+)\]", place)[1])
            self.put(
                names[0],
                np.full(LANES, self.params[number] & (2**64 - 1), np.uint64).astype(UNSIGNED[WIDTH[kind]]),
                active,
                kind,
            )
            return
        base, _, offset = place[1:-1].partition("+")
        width = WIDTH[kind] * count
        addresses = self.get(base.strip(), "u64" if rest[0] == "global" else "u32").astype(np.int64) + int(offset or 0)
        bits = UNSIGNED[WIDTH[kind]]
        values = [np.zeros(LANES, bits) if op == "ld" else self.get(name, kind).view(bits) for name in names]
        lanes = np.flatnonzero(active)
        for region, start, there in self.regions_of(rest[0], addresses, width, lanes):
            words = region[: len(region) // WIDTH[kind] * WIDTH[kind]].view(bits)
            first = (addresses[there] - start) // WIDTH[kind]
            for i, value in enumerate(values):
                if op == "ld":
                    value[there] = words[first + i]
                else:
                    words[first + i] = value[there]
        if op == "ld":
            for name, value in zip(names, values, strict=True):
                self.put(name, value, active, kind)

    def regions_of(
        self, space: str, addresses: np.ndarray, width: int, lanes: np.ndarray
    ) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """The memory in which lanes find `width` bytes, where it begins, and which of them do.

        Raises:
            IndexError: there is none for one of them, or they are not aligned in it.
        """
        regions = {0: self.shared} if space == "shared" else self.memory.regions
        for start, region in regions.items():
            inside = (addresses[lanes] >= start) & (addresses[lanes] + width <= start + len(region))
            there, lanes = lanes[inside], lanes[~inside]
            if len(wrong := there[(addresses[there] - start) % width != 0]):
                raise IndexError(f"{width} bytes at {addresses[wrong[0]] - start} of {space} memory are not aligned")
            if len(there):
                yield region, start, there
            if not len(lanes):
                return
        raise IndexError(f"{width} bytes at {addresses[lanes[0]]:#x} lie in no {space} memory")

    def product(self, operands: list[str]) -> None:
        """mma.m16n8k32 of uint8 and int8."""
        names = [[o.strip() for o in group[1:-1].split(",")] for group in operands]
        octets = [[self.get(o, "b32").copy().view(np.uint8).reshape(LANES, 4) for o in group] for group in names[1:3]]
        g, t = LANE // 4, LANE % 4
        a, b = np.zeros((16, 32), np.int64), np.zeros((32, 8), np.int64)
        for j in range(4):
            for i in range(4):
                a[g + 8 * (i % 2), 16 * (i // 2) + 4 * t + j] = octets[0][i][:, j]
            for i in range(2):
                b[16 * i + 4 * t + j, g] = octets[1][i][:, j].view(np.int8)
        made = a @ b
        for i, (into, sums) in enumerate(zip(names[0], names[3], strict=True)):
            value = made[g + 8 * (i // 2), 2 * t + i % 2].astype(np.int32) + self.get(sums, "s32")
            self.put(into, value, np.ones(LANES, bool), "s32")

    def product_of_floats(self, operands: list[str], kind: str) -> None:
        """mma.m16n8k16 of 16-bit floats; sums are cut off towards 0, as a card's (Fasi et al. 2021, 10.7717/peerj-cs.330)."""
        names = [[o.strip() for o in group[1:-1].split(",")] for group in operands]
        g, t = LANE // 4, LANE % 4
        a, b = np.zeros((16, 16)), np.zeros((16, 8))
        for j in range(2):
            for i in range(4):
                a[g + 8 * (i % 2), 8 * (i // 2) + 2 * t + j] = self.halves(names[1][i], kind)[j]
            for i in range(2):
                b[8 * i + 2 * t + j, g] = self.halves(names[2][i], kind)[j]
        made = a @ b
        for i, (into, sums) in enumerate(zip(names[0], names[3], strict=True)):
            value = made[g + 8 * (i // 2), 2 * t + i % 2] + self.get(sums, "f32")
            near = value.astype(np.float32)
            cut = np.where(np.abs(near.astype(np.float64)) > np.abs(value), np.nextafter(near, np.float32(0)), near)
            self.put(into, cut.astype(np.float32), np.ones(LANES, bool), "f32")

    def halves(self, operand: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """The two 16-bit floats of a register, the lower first."""
        bits = self.get(operand, "b32")
        parts = bits & np.uint32(0xFFFF), bits >> np.uint32(16)
        if kind == "bf16":
            return tuple((part << np.uint32(16)).view(np.float32) for part in parts)
        return tuple(part.astype(np.uint16).view(np.float16) for part in parts)


def launch(text: str, blocks: int, params: list[int], memory: Memory) -> None:
    """All programs, one after the other; shared memory is full of what no program wrote."""
    program = parse(text)
    for block in range(blocks):
        shared = np.full(program.shared // 4 + 1, 0x7FC12345, np.uint32).view(np.uint8)[: program.shared]
        warps = [Warp(program, memory, shared, params, block, n).run() for n in range(program.threads // LANES)]
        while warps:
            still = [warp for warp in warps if next(warp, "done") != "done"]
            assert len(still) in (0, len(warps)), "not all warps meet at a barrier"
            warps = still
