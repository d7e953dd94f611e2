"""Quantize and back in one pass, against the plain version to the last bit."""

import pytest
import torch

from qkit import ops


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 7), (5, 4, 32), (600, 3, 128)])  # the last for two threads
@pytest.mark.parametrize("shared", [False, True])
def test_every_backend_returns_the_same_bits(bits, shape, shared):
    generator = torch.Generator().manual_seed(bits)
    w = torch.randn(shape, generator=generator)
    w[0, 0, 0] = 0
    scale = torch.rand(*shape[:-1], 1, generator=generator) / 4 + 0.01
    zero = torch.randint(0, 2**bits, (*shape[:-1], 1), generator=generator).float()
    if shared:
        scale, zero = scale[:1, :1], zero[:1, :1]
    fast, plain = (ops.round_trip(w, scale, zero, bits, backend) for backend in ("numba", "torch"))
    assert torch.equal(fast.view(torch.int32), plain.view(torch.int32))
    codes = torch.clamp(torch.round(w / scale) + zero, 0, 2**bits - 1)
    assert torch.equal(plain, scale * (codes - zero))


def test_weights_of_16_bits_and_turned_ones_are_taken_as_they_are():
    w = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).half().T.reshape(4, 1, 6)
    scale, zero = torch.full((4, 1, 1), 0.1), torch.full((4, 1, 1), 8.0)
    expected = ops.round_trip(w.float().contiguous(), scale, zero, 4, "torch")
    assert torch.equal(ops.round_trip(w, scale, zero, 4, "numba"), expected)
