"""The formats of others, written slowly from their descriptions: a weight from a file's tensors, bit by bit in Python integers.

Nothing here shares a line with `qkit.checkpoints`: one of the two may be wrong.
"""

import json
import struct


def stream(words: list[int]) -> int:
    """Words of 32 bits as one whole number, the first word lowest."""
    return sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))


def field(number: int, place: int, bits: int) -> int:
    return (number >> (bits * place)) & (2**bits - 1)


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def gptq(parts: dict, bits: int, version: int) -> list[list[float]]:
    """ŵ [out][in]; version 1 has one less in each field of qzeros, without borrows."""
    qweight, qzeros, scales, index = (parts[name].tolist() for name in ("qweight", "qzeros", "scales", "g_idx"))
    columns = [stream([row[n] for row in qweight]) for n in range(len(qweight[0]))]
    zeros = [stream(row) for row in qzeros]
    result = []
    for n, codes in enumerate(columns):
        row = []
        for k, group in enumerate(index):
            zero = field(zeros[group], n, bits) + (version == 1)
            row.append(float32(scales[group][n] * (field(codes, k, bits) - zero)))
        result.append(row)
    return result


def awq(parts: dict, group: int) -> list[list[float]]:
    """ŵ [out][in]: column 8c + j lies in place (0, 4, 1, 5, 2, 6, 3, 7)[j] of word c."""
    place = (0, 4, 1, 5, 2, 6, 3, 7)
    qweight, qzeros, scales = (parts[name].tolist() for name in ("qweight", "qzeros", "scales"))

    def code(rows: list, k: int, n: int) -> int:
        return field(rows[k][n // 8], place[n % 8], 4)

    outputs, inputs = len(scales[0]), len(qweight)
    return [
        [float32(scales[k // group][n] * (code(qweight, k, n) - code(qzeros, k // group, n))) for k in range(inputs)]
        for n in range(outputs)
    ]


def bitsandbytes4(parts: dict, kind: str) -> list[list[float]]:
    """ŵ [out][in] of NF4 or FP4, with or without double quantization."""
    says = json.loads(bytes(parts[f"weight.quant_state.bitsandbytes__{kind}"].tolist()))
    table, absmax = parts["weight.quant_map"].tolist(), parts["weight.absmax"].tolist()
    if "nested_offset" in says:
        dynamic, nested = parts["weight.nested_quant_map"].tolist(), parts["weight.nested_absmax"].tolist()
        offset = float32(says["nested_offset"])
        size = says["nested_blocksize"]
        absmax = [float32(float32(dynamic[code] * nested[place // size]) + offset) for place, code in enumerate(absmax)]
    octets = parts["weight"].flatten().tolist()
    rows, columns = says["shape"]

    def weight(place: int) -> float:
        code = octets[place // 2] >> 4 if place % 2 == 0 else octets[place // 2] & 15
        return float32(table[code] * absmax[place // says["blocksize"]])

    return [[weight(n * columns + k) for k in range(columns)] for n in range(rows)]


def bitsandbytes8(parts: dict) -> list[list[float]]:
    """ŵ [out][in] of LLM.int8."""
    return [
        [float32(code * float32(absmax / 127)) for code in row]
        for row, absmax in zip(parts["weight"].tolist(), parts["SCB"].tolist(), strict=True)
    ]


def packed(parts: dict, bits: int) -> list[list[float]]:
    """ŵ [out][in] of compressed-tensors' pack-quantized, symmetric or not."""
    rows, columns = parts["weight_shape"].tolist()
    scales = parts["weight_scale"].tolist()
    size = columns // len(scales[0])
    half = 2 ** (bits - 1)
    codes = [stream(row) for row in parts["weight_packed"].tolist()]
    zeros = [0] * len(scales[0])
    if "weight_zero_point" in parts:
        zeros = [stream(column) for column in parts["weight_zero_point"].T.tolist()]

    def zero(n: int, group: int) -> int:
        return field(zeros[group], n, bits) - half if "weight_zero_point" in parts else 0

    return [
        [float32(scales[n][k // size] * (field(codes[n], k, bits) - half - zero(n, k // size))) for k in range(columns)]
        for n in range(rows)
    ]
