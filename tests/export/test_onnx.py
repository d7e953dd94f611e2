"""The ONNX graph against onnxruntime, which reads it, and torch, which says what is right."""

import json

import numpy as np
import pytest
import torch
from packaging.version import parse

import qkit
from qkit.bench.peers import onnx_threads
from qkit.checkpoints.onnx import genai_config
from qkit.export.graph import CONTRIBUTED, Graph
from qkit.export.linear import block_of, integers, linear, why_not
from qkit.export.onnx import OPSET, model_proto
from qkit.methods.int8 import int8_rows
from qkit.nn.int8_linear import Int8Linear

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'qkit[dev]'")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'qkit[dev]'")

EXACT = 2e-6  # ||y - y'|| / ||y||: two blocks of sums of up to 100 float32 products in another order, each 6e-8
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
SCHEMES = {
    "floats": None,
    "W4 g32": qkit.RTN(4, 32),
    "W4 g16 symmetric": qkit.RTN(4, 16, symmetric=True),
    "W8 per row": qkit.RTN(8),
    "W4 per row, 100 columns": qkit.RTN(4, symmetric=True),
    "W2 g32": qkit.RTN(2, 32),
    "LLM.int8": qkit.LLMInt8(),
    "W8A8": qkit.W8A8(),
    "W8A8, 100 columns": qkit.W8A8(),
    "W8A8 static": qkit.W8A8("per-tensor"),
    "W8A8 and W4": {"*.down_proj": qkit.W8A8(), "*": qkit.RTN(4, 32)},
}


def started(proto, **entries):
    """onnxruntime with a graph."""
    onnx_threads()  # a process has one pool, and the benchmarks' tests may have started it
    options = runtime.SessionOptions()
    options.use_per_session_threads = False
    for key, value in entries.pop("entries", {}).items():
        options.add_session_config_entry(key, value)
    for name, value in entries.items():
        setattr(options, name, value)
    return runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Session:
    """A graph at work, with its memory as arrays."""

    def __init__(self, proto, config):
        self.session = started(proto)
        self.shape = (config.num_key_value_heads, config.head_dim)
        self.layers = config.num_hidden_layers

    def empty(self, batch):
        return [np.zeros((batch, self.shape[0], 0, self.shape[1]), np.float32)] * (2 * self.layers)

    def __call__(self, ids, past=None):
        past = self.empty(len(ids)) if past is None else past
        names = [f"past_key_values.{i}.{part}" for i in range(self.layers) for part in ("key", "value")]
        mask = np.ones((len(ids), past[0].shape[2] + ids.shape[1]), np.int64)
        given = {"input_ids": ids.numpy(), "attention_mask": mask, **dict(zip(names, past, strict=True))}
        logits, *present = self.session.run(None, given)
        return torch.from_numpy(logits), present


def off(y, expected):
    return float((y.double() - expected.double()).norm() / expected.double().norm())


TWO_BITS = pytest.mark.skipif(
    parse(runtime.__version__) < parse("1.24"), reason="onnxruntime multiplies 2 bits from 1.24 on"
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=TWO_BITS) if "W2" in name else name for name in SCHEMES])
def test_logits_are_those_of_the_model_at_once_and_token_by_token(make_model, ids, logits, name):
    sizes = {**SIZES, "intermediate_size": 100} if "100" in name else SIZES
    model = make_model("llama", **sizes)
    if SCHEMES[name] is not None:
        qkit.quantize(model, SCHEMES[name], calibration=ids if "static" in name else None)
    floats = copy_with_floats(model)
    session, expected = Session(model_proto(model), model.config), logits(floats, ids)
    assert off(session(ids)[0], expected) < EXACT
    first, past = session(ids[:, :7])
    second, _ = session(ids[:, 7:8], past)
    assert off(torch.cat([first, second], 1), expected[:, :8]) < EXACT
    first, past = session(ids[:1, :7])  # of one text, several tokens after others: a conversation
    second, _ = session(ids[:1, 7:], past)
    assert off(torch.cat([first, second], 1), expected[:1]) < EXACT


def copy_with_floats(model):
    """The model with the same weights as floats where the graph does not round activations either."""
    from copy import deepcopy

    from qkit.model.surgery import swap
    from qkit.nn.layers import quantized_layers

    copy = deepcopy(model)
    made = {}
    for name, layer in quantized_layers(copy).items():
        if integers(layer):
            continue
        made[name] = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        made[name].weight.data = layer.weight.float()
        if layer.bias is not None:
            made[name].bias = layer.bias
    swap(copy, made)
    return copy


def layer_proto(layer, tokens):
    """The graph of one layer, x [texts, tokens, in] to y."""
    graph, value = Graph(), onnx.helper.make_tensor_value_info
    y = linear(graph, "x", layer, "layer", 0)
    inputs = [value("x", onnx.TensorProto.FLOAT, ["texts", tokens, layer.in_features])]
    outputs = [value(y, onnx.TensorProto.FLOAT, ["texts", tokens, layer.out_features])]
    made = onnx.helper.make_graph(graph.nodes, "layer", inputs, outputs, graph.initializers)
    sets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(CONTRIBUTED, 1)]
    return onnx.helper.make_model(made, opset_imports=sets, ir_version=10)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (5, 3), (33, 64), (64, 100), (7, 257)])
def test_integers_are_multiplied_as_here(rows, columns, biased, static):
    """Tokens of zeros, of tiny and of huge numbers, and such as a fixed scale clamps; all levels of optimization."""
    generator = torch.Generator().manual_seed(rows * columns)
    weight, x = (torch.randn(n, columns, generator=generator) for n in (rows, 2 * 9))
    x[0], x[1], x[2], x[3] = 0, x[1] * 1e-30, x[2] * 1e30, x[3] * 100
    x[4], x[4, 0] = 0, -1e-42  # a denormal has no step of its own
    weight[-1] *= float(rows == 1)  # a row of zeros
    bias = torch.nn.Parameter(torch.randn(rows, generator=generator)) if biased else None
    scale = {"activations": "per-tensor", "input_scale": torch.tensor(0.0123)} if static else {}
    layer = Int8Linear(int8_rows(weight), bias, **scale)
    x = x.reshape(2, 9, columns)
    proto, expected = layer_proto(layer, 9), layer(x).detach()
    reach = x.abs().clamp(max=127 * 0.0123) if static else x.abs()
    sums = reach @ layer.weight.abs().T + (0 if bias is None else bias.detach().abs())
    levels = runtime.GraphOptimizationLevel
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        for precise in ("0", "1"):  # by itself it is right on every processor
            session = started(proto, graph_optimization_level=level, entries={"session.x64quantprecision": precise})
            y = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
            assert ((y - expected).abs() <= 2e-6 * sums).all()  # up to 257 float32 products where nothing is fused


@pytest.mark.parametrize("scheme", [qkit.W8A8(), qkit.W8A8("per-tensor")], ids=str)
def test_onnxruntime_makes_integer_products_of_them_and_nan_stays_nan(scheme, make_model, ids, tmp_path):
    model = make_model("llama", **SIZES)
    qkit.quantize(model, scheme, calibration=ids if scheme.calibrated else None)
    started(model_proto(model), optimized_model_filepath=str(tmp_path / "made.onnx"), log_severity_level=3)
    kinds = [node.op_type for node in onnx.load(tmp_path / "made.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 14 and kinds.count("MatMul") == 1  # the head is of floats
    assert kinds.count("QuantizeLinear") == 8  # q, k and v read the same, gate and up as well
    with torch.no_grad():
        model.model.embed_tokens.weight[5, 3] = torch.nan
    got = Session(model_proto(model), model.config)(torch.tensor([[1, 2, 5, 3], [1, 2, 3, 4]]))[0]
    assert got[0, 2].isnan().all() and got[1].isfinite().all()


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
@pytest.mark.parametrize("tie", [True, False])
def test_relatives_of_llama(make_model, ids, logits, kind, tie):
    model = make_model(kind, tie, **SIZES, **({"sliding_window": None} if kind == "mistral" else {}))
    qkit.quantize(model, qkit.RTN(4, 32))
    assert off(Session(model_proto(model), model.config)(ids)[0], logits(model, ids)) < EXACT


def test_a_head_that_is_quantized_and_angles_that_are_stretched(make_model, ids, logits):
    turn = {
        "rope_type": "llama3", "rope_theta": 1000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    model = make_model("llama", False, **SIZES, rope_parameters=turn)
    qkit.quantize(model, qkit.RTN(8, 32), include=["*"])
    assert off(Session(model_proto(model), model.config)(ids)[0], logits(model, ids)) < EXACT


def test_codes_go_over_as_they_are(make_model):
    model = make_model("llama", **SIZES)
    qkit.quantize(model, qkit.RTN(4, 32))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model_proto(model).graph.initializer}
    for name, layer in model.named_modules():
        if isinstance(layer, qkit.QLinear):
            q = layer.qtensor
            codes = tensors[f"{name}.codes"].reshape(q.shape[0], -1)
            low_first = np.stack([codes & 15, codes >> 4], -1).reshape(q.shape)
            assert np.array_equal(low_first, q.codes().numpy())
            assert np.array_equal(tensors[f"{name}.scales"], q.scales.float().numpy())


@pytest.mark.parametrize("level", [0, 4])
def test_the_level_is_written(make_model, ids, logits, level):
    model = make_model("llama", **SIZES)
    qkit.quantize(model, qkit.RTN(4, 32))
    proto = model_proto(model, accuracy_level=level)
    levels = {a.i for node in proto.graph.node for a in node.attribute if a.name == "accuracy_level"}
    assert levels == {level}
    wrong = off(Session(proto, model.config)(ids)[0], logits(model, ids))
    assert wrong < (0.1 if level else EXACT)


def test_blocks_lie_in_groups():
    def block(columns, group):
        return block_of(qkit.quantize_tensor(torch.randn(2, columns), bits=4, group_size=group))

    assert [block(96, 32), block(96, 48), block(512, 512), block(1024, 256), block(100, None), block(5, None)] == [
        32, 16, 256, 256, 128, 16,
    ]  # fmt: skip
    assert block(96, 24) == block(96, 8) == 0


def test_what_the_graph_cannot_hold_is_refused(make_model, tmp_path):
    def layer(scheme):
        model = make_model("llama", **SIZES)
        qkit.quantize(model, scheme)
        return model.model.layers[0].mlp.gate_proj

    assert "places in a table" in why_not(layer(qkit.NF4()))
    assert "minimum" in why_not(layer(qkit.RTN(4, 32, include_zero=False)))
    assert "3 bits" in why_not(layer(qkit.RTN(3, 32)))
    assert "groups of 8 columns" in why_not(layer(qkit.RTN(4, 8)))
    with pytest.raises(ValueError, match="this model is a gpt2"):
        model_proto(make_model("gpt2"))
    with pytest.raises(ValueError, match="a sliding window"):
        model_proto(make_model("mistral", **SIZES, sliding_window=8))
    with pytest.raises(ValueError, match=r"hidden_act='gelu' \(silu is known\)"):
        model_proto(make_model("llama", **SIZES, hidden_act="gelu"))
    with pytest.raises(ValueError, match=r"heads of 12 numbers \(multiples of 16"):
        model_proto(make_model("llama"))
    with pytest.raises(ValueError, match="accuracy_level=2 is not one of 0, 4"):
        model_proto(make_model("llama", **SIZES), accuracy_level=2)
    model = make_model("llama", **SIZES)
    model.model.layers[1].self_attn.register_parameter("sinks", torch.nn.Parameter(torch.zeros(4)))
    with pytest.raises(ValueError, match=r"no place for model\.layers\.1\.self_attn\.sinks"):
        model_proto(model)
    model = make_model("llama", **SIZES)
    qkit.quantize(model, qkit.NF4())
    with pytest.raises(
        ValueError, match=r"format 'onnx' holds steps of 2, 4 or 8 bits.*q_proj has codes that are places"
    ):
        qkit.save(model, tmp_path / "out", format="onnx")
    assert not list(tmp_path.iterdir())


def test_two_bits_are_told_of_before_an_old_onnxruntime_refuses_them(make_model, tmp_path):
    model = make_model("llama", **SIZES)
    qkit.quantize(model, qkit.RTN(2, 32))
    assert any("14 layers have 2 bits" in note for note in qkit.save(model, tmp_path / "a", format="onnx").notes)


def test_a_folder_is_written_and_not_read(make_model, tmp_path, ids, logits, tokenizer, monkeypatch):
    model = make_model("llama", **SIZES)
    qkit.quantize(model, qkit.RTN(8, activations="int8"))
    report = qkit.save(model, tmp_path / "out", tokenizer, format="onnx")
    assert report.layers == 14 and "14 layers round their inputs to INT8 here" in repr(report)
    written = {path.name for path in report.path.iterdir()}
    assert {"model.onnx", "genai_config.json", "tokenizer.json"} <= written and "model.onnx.data" not in written
    assert json.loads((report.path / "genai_config.json").read_text()) == genai_config(model)
    with pytest.raises(ValueError, match="is an ONNX graph, which qkit writes and does not read"):
        qkit.load(report.path)
    monkeypatch.setattr("qkit.checkpoints.onnx.ONE_FILE", 1000)
    large = qkit.save(model, tmp_path / "large", format="onnx").path
    assert (large / "model.onnx.data").is_file()
    small, big = (Session(onnx.load(folder / "model.onnx"), model.config)(ids)[0] for folder in (report.path, large))
    assert torch.equal(small, big)


def test_the_report_says_what_is_multiplied_by_what(make_model, tmp_path):
    model = make_model("llama", **SIZES)
    qkit.quantize(model, {"*.down_proj": qkit.W8A8(), "*": qkit.LLMInt8()}, exclude="*.up_proj")
    report = qkit.save(model, tmp_path, format="onnx")
    said = repr(report)
    assert "12 quantized layers" in said and "10 layers round their inputs to INT8 here" in said
    assert "10 layers are MatMulNBits with accuracy_level=0" in said
    assert "2 layers multiply INT8 by INT8 there as here" in said
    qkit.quantize(model := make_model("llama", **SIZES), qkit.RTN(4, 32))
    report = qkit.save(model, tmp_path / "w4", format="onnx")
    assert len(report.notes) == 1 and "accuracy_level=4" in report.notes[0]
    assert qkit.save(make_model("llama", **SIZES), tmp_path / "floats", format="onnx").notes == ()
