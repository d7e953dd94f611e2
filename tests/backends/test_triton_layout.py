"""What is kept of a weight for the Triton kernels: made once, never older than the weight, gone with it."""

import copy
import gc
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from products import random, weight
from qkit import FP4, NF4, QLinear, quantize_tensor
from qkit.numerics.kinds import stored_from
from qkit.numerics.qtensor import QTensor

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

from qkit.backends.triton import layout


def back(q, dtype=torch.float16):
    """The numbers that the laid weight holds."""
    laid = layout.laid(q, dtype)
    fresh = layout.lay(q, dtype)
    assert all(map(torch.equal, layout._tensors(laid), layout._tensors(fresh)))
    return laid


def rebuilt(q, **parts):
    return stored_from({**q.tensors(), **parts}, {"kind": q.kind, **q.meta()})


def test_it_is_made_once_for_each_dtype_and_the_words_for_all():
    q = weight(4, 8, 128, 128)
    first = back(q)
    assert layout.laid(q, torch.float16) is first and layout.laid(rebuilt(q), torch.float16) is first
    assert layout.laid(q, torch.bfloat16).words is first.words


def test_it_is_gone_when_the_weight_is():
    gc.collect()
    before = len(layout._KEPT)
    q = weight(4, 8, 128, 64, "zero points")
    back(q)
    view = q.packed[1:]  # the memory lives as long as somebody looks at it
    del q
    gc.collect()
    assert len(layout._KEPT) == before  # its scales are gone
    q = quantize_tensor(random(8, 128), NF4())
    back(q)
    assert len(layout._KEPT) == before + 1
    del q, view
    gc.collect()
    assert len(layout._KEPT) == before


@pytest.mark.parametrize("part", ["packed", "scales", "zero_points"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_weight_that_is_written_into_is_laid_out_anew_in_the_same_memory(part, mode):
    q = weight(4, 8, 128, 64, "zero points")
    first = back(q)
    places = [tensor.data_ptr() for tensor in layout._tensors(first)]
    with mode():
        getattr(q, part).copy_(getattr(weight(4, 8, 128, 64, "zero points", seed=1), part))
        second = back(q)
    assert [tensor.data_ptr() for tensor in layout._tensors(second)] == places  # of which a CUDA graph knows
    with torch.no_grad():
        q.scales.mul_(2)
    assert back(q) is second


def test_parts_that_are_swapped_are_never_taken_for_those_that_were_there():
    """A new tensor often gets the address of the one that has just gone."""
    q = weight(4, 8, 128, 64)
    for factor in range(1, 30):
        back(rebuilt(q, scales=torch.full_like(q.scales, factor)))
    layer = QLinear(weight(4, 8, 128, 64))
    for seed in range(1, 5):
        back(layer.qtensor)
        layer.scales.data = weight(4, 8, 128, 64, seed=seed).scales
        back(layer.qtensor)
        layer.load_state_dict(QLinear(weight(4, 8, 128, 64, seed=seed + 9)).state_dict(), assign=seed % 2 == 0)
        back(layer.qtensor)


def test_parts_of_the_same_memory_are_not_taken_for_each_other():
    q = weight(4, 16, 128, 64)
    whole = back(q)
    top = type(q)(q.packed[:8], q.scales[:8], 4, (8, 128))
    end = type(q)(q.packed[8:], q.scales[8:], 4, (8, 128))
    assert back(top).shape == (8, 128) and not torch.equal(back(top).words, back(end).words)
    assert layout.laid(q, torch.float16) is whole
    wide = type(q)(weight(8, 16, 64).packed, q.scales[:, :1], 8, (16, 64))
    back(wide)
    back(type(q)(wide.packed, wide.scales, 4, (16, 128)))
    n = quantize_tensor(random(8, 128), NF4(double_quant=False))
    table = back(n).table
    f = type(n)(n.packed, n.scales, 4, n.shape, "fp4")
    assert not torch.equal(back(f).table, table)
    turned = weight(8, 16, 16, None)
    back(turned)
    back(type(turned)(turned.packed.T, turned.scales, 8, (16, 16)))


def test_copies_are_their_own():
    layer = QLinear(quantize_tensor(random(16, 128), FP4()))
    first = back(layer.qtensor)
    twin = copy.deepcopy(layer)
    assert back(twin.qtensor) is not first
    twin.scales.add_(1) if twin.scales.is_floating_point() else twin.nested_scales.add_(1)
    back(twin.qtensor)
    assert back(layer.qtensor) is first
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file))
    assert torch.equal(back(twin.qtensor).grid, first.grid)
    half = copy.deepcopy(layer).half()
    assert torch.equal(back(half.qtensor).grid, first.grid)


def test_several_threads_lay_out_at_once():
    shared = weight(4, 32, 256, 64)

    def work(seed):
        for i in range(20):
            back(weight(4, 8, 128, 64, seed=seed * 100 + i))
            found = layout.laid(shared, torch.float16)
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert all(one is found[0] for one in found)


def test_scales_in_inference_mode_are_laid_out_for_use_outside():
    with torch.inference_mode():
        q = weight(4, 8, 128, 64)
        first = back(q)
    assert not any(tensor.is_inference() for tensor in layout._tensors(first)) and back(q) is first


def test_an_error_is_not_kept():
    q = weight(4, 8, 128, 64)

    def fails(q):
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            layout.kept(q, "words", fails)
    back(q)


def test_while_a_graph_is_recorded_nothing_is_laid_out(monkeypatch):
    class Far:
        """A weight that is said to be on a card."""

        def __init__(self, q):
            self.kind, self.meta, self.tensors, self.packed = q.kind, q.meta, q.tensors, self
            self.is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="run the model once before"):
        layout.laid(Far(weight(4, 8, 128, 64)), torch.float16)


@pytest.mark.parametrize("kind", ["symmetric", "zero points", "offsets"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_side_by_side_are_laid_as_one(bits, kind):
    q = weight(bits, 384, 200, 40, kind, real=True)
    parts = [rows_of(q, 0, 128), rows_of(q, 128, 384)]
    together, whole = layout.laid_beside(parts, torch.float16), layout.lay(q, torch.float16)
    assert together.shape == whole.shape and together.bits == bits
    assert all(map(torch.equal, layout._tensors(together), layout._tensors(whole)))
    assert layout.laid_beside(parts, torch.float16) is together
    before = together.words.clone()
    parts[1].packed[0] ^= 1  # any of them, not the first alone
    anew = layout.laid_beside(parts, torch.float16)
    assert not torch.equal(anew.words, before) and anew is together  # in its memory, where a CUDA graph may read


@pytest.mark.parametrize("gone", [0, 1])
def test_what_lies_side_by_side_is_gone_when_any_of_it_is(gone):
    gc.collect()
    before = len(layout._KEPT)
    parts = [weight(4, 128, 128, 128, seed=seed) for seed in (0, 1)]
    layout.laid_beside(parts, torch.float16)
    assert len(layout._KEPT) == before + 1
    del parts[gone]
    gc.collect()
    assert len(layout._KEPT) == before


def rows_of(q, start, stop):
    """Some rows of a weight, as a weight."""
    grid = [None if part is None else part[start:stop] for part in (q.scales, q.zeros(), q.offsets)]
    made = QTensor.from_codes(
        q.codes()[start:stop], grid[0], q.bits, None if q.zero_points is None else grid[1], grid[2]
    )
    assert torch.equal(made.dequantize(), q.dequantize()[start:stop])
    return made
