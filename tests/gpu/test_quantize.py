"""`qkit.quantize` of a model on a card: everything stays there, and where nothing is summed the codes are the CPU's.

`make test-gpu`. Needs transformers beside what the kernels' tests need.
"""

import copy
import dataclasses

import pytest
import torch

import qkit
from products import random
from qkit import AWQ, FP4, GPTQ, NF4, RTN, W8A8, LLMInt8, SmoothQuant
from qkit.engine.resume import Resume
from qkit.methods.gptq import inverse_cholesky
from qkit.methods.statistics import InputStatistics
from qkit.model.hooks import full_products
from qkit.nn.layers import quantized_layers
from qkit.numerics.mapping import choose_scale, value_range
from schemes import every_scheme

pytest.importorskip("transformers", reason="transformers is not installed: pip install qkit")
pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")
if not torch.cuda.is_available():
    pytest.skip("no CUDA card is here", allow_module_level=True)

import transformers

from qkit.backends import torch as plain
from qkit.backends.triton import columns

pytestmark = pytest.mark.gpu
IDS = torch.randint(0, 97, (8, 48), generator=torch.Generator().manual_seed(0))
MORE = (
    RTN(4, 4, include_zero=False),
    RTN(4, "tensor"),
    NF4(32, double_quant=False),
    AWQ(4, 4, rounding=GPTQ(4, 4)),
    GPTQ.paper(4, 4),
    GPTQ(4, 4, act_order=False, static_groups=False),
    GPTQ(3, None, symmetric=True, scale_dtype="float32"),
    W8A8("per-tensor", "mse"),
    W8A8("per-tensor", "percentile"),
    SmoothQuant(None),
    SmoothQuant(None, "per-tensor", "mse"),
    SmoothQuant(0.5, rounding=GPTQ(8, None, symmetric=True)),
)
ALL = {scheme.name: scheme for scheme in (*every_scheme(), *MORE)}


def build(kind="llama", **changes):
    torch.manual_seed(0)
    llama = {
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 12,
    }
    if kind == "llama":
        config = transformers.LlamaConfig(vocab_size=97, num_key_value_heads=2, **{**llama, **changes})
        return transformers.LlamaForCausalLM(config).eval()
    config = transformers.GPT2Config(vocab_size=97, n_embd=48, n_inner=100, n_layer=2, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(config).eval()


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def on_card(model):
    return all(t.is_cuda for t in tensors(model).values())


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS.to(next(model.parameters()).device)).logits.float().cpu()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("scheme", ALL.values(), ids=ALL)
def test_every_scheme_runs_on_the_card(scheme, kind):
    original = build(kind)
    here, there = copy.deepcopy(original), copy.deepcopy(original).cuda()
    expected, report = (qkit.quantize(m, scheme, calibration=IDS, progress=False) for m in (here, there))
    assert on_card(there) and [layer.name for layer in report.layers] == [layer.name for layer in expected.layers]
    assert [one.alpha for one in report.scaling] == [one.alpha for one in expected.scaling]
    if not scheme.calibrated:
        mine, theirs = tensors(here), tensors(there)
        assert not [name for name, part in mine.items() if not torch.equal(part, theirs[name].cpu())]
    y, same, exact = logits(there), logits(here), logits(original)
    lost = (same - exact).norm()
    assert y.isfinite().all() and (y - same).norm() < 0.5 * lost + 1e-5 * exact.norm(), float((y - same).norm() / lost)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "scheme", [GPTQ(4, 4), AWQ(4, 4), SmoothQuant(), LLMInt8(), NF4(), FP4()], ids=lambda s: s.name
)
def test_models_in_16_bits(scheme, dtype):
    model = build().to(dtype).cuda()
    qkit.quantize(model, scheme, calibration=IDS, progress=False)
    assert on_card(model) and model(input_ids=IDS.cuda()).logits.isfinite().all()


def moved(inputs, device):
    parts = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    return InputStatistics(**{name: p.to(device) if isinstance(p, torch.Tensor) else p for name, p in parts.items()})


@pytest.mark.parametrize("scheme", [s for s in ALL.values() if s.calibrated], ids=lambda s: s.name)
def test_of_the_same_statistics_a_card_makes_the_codes_of_the_cpu(scheme):
    weight, x = random(40, 96), random(400, 96, seed=1) @ random(96, 96, seed=2)
    inputs = InputStatistics.empty(96)
    for part in x.split(100):
        inputs.add(part, 1.01 * part)
    index = torch.arange(96) // 3
    if scheme.scales:
        a, b = (
            scheme.search_scale(weight.to(d), moved(inputs, d), index.to(d) if d == "cpu" else index, 32)
            for d in ("cpu", "cuda")
        )
        assert a.alpha == b.alpha
        torch.testing.assert_close(b.scale.cpu(), a.scale, rtol=1e-6, atol=0)
    mine = scheme.round(weight, inputs).q
    theirs = scheme.round(weight.cuda(), moved(inputs, "cuda")).q.to("cpu")
    for name, part in mine.tensors().items():
        assert torch.equal(part, theirs.tensors()[name]), name
    layers = [scheme.layer(q.to(d), None, moved(inputs, d)) for q, d in ((mine, "cpu"), (theirs, "cuda"))]
    for name, part in layers[0].named_buffers():
        assert torch.equal(part, layers[1].get_buffer(name).cpu()), name


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 160, 32), (129, 131, 131), (300, 512, 64), (7, 1, 1), (64, 384, 128)], ids=str)
def test_the_column_loop_of_the_kernel_is_the_plain_one(shape, bits):
    """On the card bit for bit, errors and codes: nothing is fused. The CPU multiplies blocks in another order, in float64."""
    rows, features, size = shape
    w, order = random(rows, features).double(), torch.randperm(features, generator=torch.Generator().manual_seed(1))
    x = random(2 * features + 50, features, seed=2).double() + 1
    upper, _ = inverse_cholesky(x.T @ x / len(x), 0.01)
    w[rows // 2, :size] = 0
    scale, zero = choose_scale(*value_range(w.reshape(rows, -1, size)), bits, scale_dtype=torch.float16)
    args = (w[:, order], upper, order // size, scale[..., 0], zero[..., 0])
    there = [t.cuda() for t in args]
    codes = columns.gptq_columns(*there, 2**bits - 1)
    assert torch.equal(codes, plain.gptq_columns(*there, 2**bits - 1))
    assert torch.equal(codes.cpu(), plain.gptq_columns(*args, 2**bits - 1))
    width = min(features, 100)
    here = order[:width] // size
    w, upper, _, scale, zero = there
    block = (w[:, :width], upper[:width, :width], scale[:, here.cuda()], zero[:, here.cuda()], 2**bits - 1)
    assert all(map(torch.equal, columns.round_block(*block), plain.round_columns(*block)))


def test_products_are_whole_while_one_quantizes_whatever_torch_was_told():
    x = torch.randn(256, 256, device="cuda")
    exact = x.double() @ x.double()
    torch.set_float32_matmul_precision("high")
    try:
        inside, outside = torch.empty(0), x @ x
        with full_products():
            inside = x @ x
    finally:
        torch.set_float32_matmul_precision("highest")
    off = [float((y - exact).norm() / exact.norm()) for y in (inside, outside)]
    assert off[0] < 1e-6 < 1e-4 < off[1]


def test_a_plan_of_several_schemes_saved_and_loaded(tmp_path):
    model = build().cuda()
    plan = {"*.down_proj": RTN(8), "*.q_proj": NF4(), "*.k_proj": LLMInt8(), "*.o_proj": AWQ(4, 4), "*": GPTQ(4, 4)}
    qkit.quantize(model, plan, calibration=IDS, progress=False)
    assert on_card(model)
    qkit.save(model, tmp_path / "saved")
    loaded, _ = qkit.load(tmp_path / "saved")
    for name, part in tensors(model).items():
        assert torch.equal(part.cpu(), tensors(loaded)[name]), name
    assert torch.equal(logits(loaded.cuda()), logits(model))


@pytest.mark.parametrize("scheme", [GPTQ(4, 4), AWQ(4, 4), SmoothQuant(0.5, "per-tensor")], ids=lambda s: s.name)
def test_interrupted_and_taken_up_again(scheme, tmp_path, monkeypatch):
    expected, model = build(num_hidden_layers=3).cuda(), build(num_hidden_layers=3).cuda()
    qkit.quantize(expected, scheme, calibration=IDS, progress=False)
    keep, kept = Resume.keep, []

    def once(self, block):
        if kept:
            raise KeyboardInterrupt
        kept.append(keep(self, block))

    monkeypatch.setattr(Resume, "keep", once)
    with pytest.raises(KeyboardInterrupt):
        qkit.quantize(model, scheme, calibration=IDS, resume=tmp_path, progress=False)
    assert not quantized_layers(model)
    monkeypatch.setattr(Resume, "keep", keep)
    qkit.quantize(model, scheme, calibration=IDS, resume=tmp_path, progress=False)
    assert on_card(model)
    for name, part in tensors(expected).items():
        assert torch.equal(part, tensors(model)[name]), name


@pytest.mark.parametrize("codes", [False, True])
def test_tuned(codes):
    original = build().cuda()
    model = copy.deepcopy(original)
    qkit.quantize(model, RTN(3, 4), progress=False)
    report = qkit.tune(model, original, calibration=IDS, epochs=3, codes=codes, progress=False)
    assert on_card(model) and report.losses[-1] < report.losses[0]


def test_what_stands_around_it(tmp_path):
    model = build().cuda()
    scaling = qkit.search_scales(model, AWQ(4, 4), calibration=IDS)
    scaling.save(tmp_path / "scales.safetensors")
    before = logits(model)
    type(scaling).load(tmp_path / "scales.safetensors").apply(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-4)
    table = qkit.sensitivity(model, [RTN(4, 4), GPTQ(4, 4), SmoothQuant()], calibration=IDS)
    assert table.to_dict()
    quantized = copy.deepcopy(model)
    qkit.quantize(quantized, NF4(), progress=False)
    assert qkit.perplexity(quantized, None, IDS) > 0 and qkit.kl_divergence(model, quantized, None, IDS) > 0
    qkit.plant_outliers(model, channels=(3, 17), factor=64.0)
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)
