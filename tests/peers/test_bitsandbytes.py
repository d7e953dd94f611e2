"""qkit against the bitsandbytes that is installed: bit for bit (make test-peers)."""

import pytest
import torch
import torch._dynamo

from qkit import ops
from qkit.methods.codebook import FP4, NF4, codebook_quantize
from qkit.methods.int8 import int8_rows
from qkit.numerics.codebooks import dynamic_map, fp4, nf4

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install qkit[peers]")
import bitsandbytes.functional as peer

pytestmark = pytest.mark.peers

SHAPES = [(1, 1), (1, 63), (1, 64), (1, 65), (3, 7), (5, 100), (7, 33), (64, 64), (65, 130), (2, 4097), (61, 257)]
SHAPES += [(64, 256)]
BLOCKS = [32, 64, 128, 256, 512, 1024, 2048, 4096]
KINDS = ["normal", "half zeros", "ties", "zeros", "denormal"]


@pytest.fixture(autouse=True, scope="module")
def _uncompiled():
    """bitsandbytes compiles anew for every shape."""
    with torch._dynamo.config.patch(disable=True):
        yield


def draw(kind, *shape):
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(*shape, generator=generator)
    if kind == "half zeros":
        weight.view(-1)[: weight.numel() // 2] = 0
    if kind == "ties":
        weight = torch.randint(-8, 9, shape, generator=generator).float() / 8
    return weight * {"zeros": 0, "denormal": 1e-39}.get(kind, 1)


def four_bit(weight, name, block, double):
    """(codes [out, in], state, weights) of bitsandbytes.

    0.50.2 dequantizes wrongly on a CPU with AVX-512 where a block is longer than a row (even rows, blocks up to 1024), and
    transposes weights of one packed byte: the formula, with its table and its absmax values, stands in there.
    """
    packed, state = peer.quantize_4bit(weight, blocksize=block, quant_type=name, compress_statistics=double)
    codes = torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], 1).view(-1)[: weight.numel()].view(weight.shape)
    if block <= weight.shape[1]:
        return codes, state, peer.dequantize_4bit(packed, state)
    absmax = peer.dequantize_blockwise(state.absmax, state.state2) + state.offset if double else state.absmax
    values = state.code[codes.long()].view(-1)
    return codes, state, (values * absmax.repeat_interleave(block)[: len(values)]).view(weight.shape)


def test_tables():
    assert torch.equal(nf4(), peer.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(fp4(), peer.get_4bit_type("fp4", device="cpu"))
    assert torch.equal(dynamic_map(), peer.create_dynamic_map())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("scheme", [NF4, FP4])
def test_4_bits(scheme, block, kind):
    for shape in SHAPES:
        weight = draw(kind, *shape)
        q = codebook_quantize(weight, scheme(block, double_quant=False))
        codes, state, values = four_bit(weight, q.codebook, block, double=False)
        assert torch.equal(q.codes(), codes), shape
        assert torch.equal(q.scales[0], state.absmax), shape
        assert torch.equal(q.dequantize(), values), shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("scheme", [NF4, FP4])
def test_double_quantization(scheme, block, kind):
    for shape in SHAPES:
        weight = draw(kind, *shape)
        q = codebook_quantize(weight, scheme(block))
        codes, state, values = four_bit(weight, q.codebook, block, double=True)
        assert torch.equal(q.codes(), codes), shape
        assert torch.equal(q.scales[0], state.absmax), shape
        assert torch.equal(q.nested_scales, state.state2.absmax), shape
        assert torch.equal(q.scale_offset, state.offset), shape
        assert torch.equal(q.dequantize(), values), shape


@pytest.mark.parametrize("kind", ["normal", "half zeros", "ties"])
def test_int8_rows(kind):
    for shape in SHAPES:
        weight = draw(kind, *shape).half()
        weight[weight.abs().amax(1) == 0, 0] = 1  # a row of zeros is 0/0 in bitsandbytes
        codes, absmax, _ = peer.int8_vectorwise_quant(weight.clone())
        q = int8_rows(weight)
        assert torch.equal(ops.int8_codes(q), codes), shape
        # absmax / 127 is stored, and bitsandbytes stores absmax: two roundings apart
        torch.testing.assert_close(q.dequantize(), peer.int8_vectorwise_dequant(codes, absmax), rtol=2**-22, atol=0)


@pytest.mark.parametrize("threshold", [0.0, 2.5])
@pytest.mark.parametrize(("tokens", "out", "columns"), [(1, 8, 16), (5, 33, 70), (20, 64, 256)])
def test_llm_int8(tokens, out, columns, threshold):
    """Against the operations that its GPUs run; on a CPU its Linear8bitLt multiplies with dequantized weights instead."""
    weight, x = draw("normal", out, columns).half(), draw("normal", tokens, columns).half()
    codes, absmax, _ = peer.int8_vectorwise_quant(weight.clone())
    x_codes, x_absmax, outliers = peer.int8_vectorwise_quant(x.clone(), threshold)
    product = torch.ops.bitsandbytes.int8_mixed_scaled_mm
    theirs, _ = product(x, x_codes, codes, x_absmax, absmax, outliers if threshold else None, None)
    mine, exact = ops.int8_linear(x, int8_rows(weight), threshold=threshold), x.float() @ weight.float().T
    if threshold:
        assert torch.equal(ops.outlier_columns(x, threshold).nonzero()[:, 0], outliers)
    error, their_error = ((y.float() - exact).square().mean().sqrt() for y in (mine, theirs))
    # The same arithmetic, but qkit leaves outlier columns out of the absmax of a row altogether, which makes finer steps
    assert error <= 1.02 * their_error
    assert (mine.float() - theirs.float()).square().mean().sqrt() <= (0.7 if threshold else 0.1) * their_error
