"""An open task is beaten by a better answer within its budget, and by nothing else."""

import math

import pytest
import torch

import qkit
from grids import thinned
from qkit import exercises
from qkit.exercises.open_task import OpenTask, percent_off, the_layer
from qkit.methods.awq import awq_round, search_scale
from qkit.methods.gptq import damped, gptq
from qkit.methods.smoothquant import smoothing_factor
from qkit.methods.statistics import InputStatistics
from qkit.numerics.codebooks import nf4
from scored import scored


def rows_by(reach):
    """A step and a zero point for each row, from `reach` times its range."""

    def grid(weight):
        lo = weight.amin(1, keepdim=True).clamp(max=0) * reach
        hi = weight.amax(1, keepdim=True).clamp(min=0) * reach
        steps = (hi - lo) / 15
        return steps, torch.round(-lo / steps)

    return grid


def clipped_groups(weight):
    """Groups of 128 on the range that is best of some narrower ones, as lesson 02 hints."""
    groups = weight.reshape(len(weight), -1, 128)
    lo, hi = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    kept, least = None, torch.tensor(math.inf)
    for clip in torch.linspace(0.6, 1, 21):
        steps = (clip * (hi - lo) / 15).half().float()
        zeros = torch.round(-clip * lo / steps)
        codes = (torch.round(groups / steps) + zeros).clamp(0, 15)
        error = (steps * (codes - zeros) - groups).square().sum(-1, keepdim=True)
        made = (codes, steps.expand_as(codes), zeros.expand_as(codes))
        kept = (
            made if kept is None else tuple(torch.where(error < least, a, b) for a, b in zip(made, kept, strict=True))
        )
        least = torch.minimum(error, least)
    codes, steps, zeros = kept
    return qkit.QTensor.from_codes(codes.reshape(weight.shape), steps[..., 0].half(), 4, zero_points=zeros[..., 0])


def where_the_weights_are(table, rounds=20):
    """Each level put where the weights that go to it have their mean, those of a large block counting more; and again."""
    blocks = the_layer().reshape(-1, 64)
    absmax = blocks.abs().amax(1, keepdim=True)
    inside, counts = (blocks / absmax).flatten(), absmax.square().expand_as(blocks).flatten()
    for _ in range(rounds):
        codes = torch.bucketize(inside, (table[:-1] + table[1:]) / 2)
        table = torch.zeros(16).index_add_(0, codes, counts * inside) / torch.zeros(16).index_add_(0, codes, counts)
    return table


def awq_alone(weight, x):
    """A layer by AWQ, as the library does it: scaled, clipped, rounded."""
    inputs = InputStatistics.empty(weight.shape[1])
    inputs.add(x)
    f = search_scale(weight, inputs, qkit.AWQ(3, 128)).scale
    return awq_round(weight * f, inputs.scaled(f), qkit.AWQ(3, 128)), f


def awq_and_gptq(weight, x):
    """The same factors, and GPTQ to round."""
    inputs = InputStatistics.empty(weight.shape[1])
    inputs.add(x)
    f = search_scale(weight, inputs, qkit.AWQ(3, 128)).scale
    return qkit.GPTQ(3, 128).round(weight * f, inputs.scaled(f)).q, f


def smoothed(weight, x):
    """SmoothQuant with the best alpha of its grid, and the step that the largest activation needs."""
    f = smoothing_factor(x.abs().amax(0), weight.abs().amax(0), 0.85)
    return f, (x / f).abs().max() / 127


def only_the_largest(weight, x):
    """Channels that stay below 8 keep their size."""
    f = (x.abs().amax(0) / 8).clamp(min=1)
    return f, (x / f).abs().max() / 127


def solved(weight, hessian):
    """GPTQ with all that lesson 04 has."""
    zeros = torch.zeros(weight.shape[1])
    scheme = qkit.GPTQ(3, 128, match_original=False)
    return gptq(weight, InputStatistics(1, zeros, zeros, square=hessian), scheme).q


def gone_over_again(weight, hessian, sweeps=2):
    """And then each column once more, with the codes of all others as they are: the best of its eight levels."""
    q = solved(weight, hessian)
    w, h = weight.double(), damped(hessian.double(), 0.05, 0.3)
    step, zero = (part.double().repeat_interleave(128, 1) for part in (q.scales, q.zeros()))
    codes = q.codes().double()
    error = w - step * (codes - zero)
    slope = error @ h
    for _ in range(sweeps):
        for k in range(w.shape[1]):
            aim = w[:, k] - error[:, k] + slope[:, k] / h[k, k]
            codes[:, k] = (torch.round(aim / step[:, k]) + zero[:, k]).clamp(0, 7)
            change = w[:, k] - step[:, k] * (codes[:, k] - zero[:, k]) - error[:, k]
            error[:, k] += change
            slope += change[:, None] * h[k]
    return qkit.QTensor.from_codes(codes, q.scales, 3, zero_points=q.zeros())


BY_KIND = {
    f"*.{kind}_proj": qkit.RTN(bits, 128)
    for kind, bits in {"q": 4, "k": 5, "v": 6, "o": 5, "gate": 4, "up": 4, "down": 5}.items()
}
MORE_WHERE_IT_PAYS = {"*v_proj": qkit.RTN(5, 128), "*down_proj": qkit.RTN(5, 128), "*": qkit.RTN(4, 128)}
TO_BEAT = {
    "00": qkit.RTN(4, 32),
    "01": rows_by(1.0),
    "02": lambda w: qkit.quantize_tensor(w, qkit.RTN(4, 128)),
    "03": nf4(),
    "04": solved,
    "05": awq_alone,
    "06": smoothed,
    "07": BY_KIND,
    "10": (qkit.RTN(4, 32, symmetric=True), "compressed-tensors"),
}
BETTER = {
    "00": MORE_WHERE_IT_PAYS,
    "01": rows_by(0.8),
    "02": clipped_groups,
    "03": where_the_weights_are(nf4()),
    "04": gone_over_again,
    "05": awq_and_gptq,
    "06": only_the_largest,
    "07": BY_KIND | {f"*.{kind}_proj": qkit.NF4() for kind in ("q", "gate", "up")},
    "10": (qkit.NF4(block_size=128), "bitsandbytes"),
}
REACHED = {"01": 11.0, "02": 9.6, "03": 8.8, "04": 1.9, "10": 9.7}  # as the lessons say


@pytest.mark.parametrize("lesson", thinned(TO_BEAT, [name for name in TO_BEAT if name != "07"]))  # a plan, as in 00
def test_what_is_to_be_beaten_is_what_the_lesson_measured_and_better_answers_exist(lesson):
    task = exercises.OPEN[lesson]
    cost, loss, verdict = scored(lesson, TO_BEAT[lesson])
    assert cost <= task.budget and loss == pytest.approx(task.to_beat, abs=0.6 * 10**-task.digits)
    assert verdict.passed is False  # a tie beats nothing
    _, loss, verdict = scored(lesson, BETTER[lesson])
    assert verdict.passed and "Beaten, by" in verdict.message
    assert loss < REACHED.get(lesson, task.to_beat)


def test_nothing_attempted_is_neither_right_nor_wrong():
    for lesson in exercises.OPEN:
        verdict = exercises.score(lesson, None)
        assert verdict.passed is None and "to beat" in verdict.message and "Not attempted yet" in verdict.message
    assert exercises.score("01", lambda weight: None).passed is None
    with pytest.raises(ValueError, match="lesson '99' has no open task"):
        exercises.score("99", None)


def test_a_lower_loss_at_a_higher_cost_beats_nothing():
    verdict = exercises.score("02", lambda w: qkit.quantize_tensor(w, qkit.RTN(8)))
    assert verdict.passed is False and "costs too much" in verdict.message
    task = OpenTask("x", lambda answer: answer, budget=4, to_beat=1, cost="bits", loss="%")
    assert not task.score((4, math.nan)) and not task.score((math.nan, 0.5)) and task.score((4, 0.5))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda w: (torch.ones(3), torch.zeros(384, 1)), "the steps are \\[3\\]"),
        (lambda w: (torch.ones(384, 1), torch.zeros(384)), "the zero points are \\[384\\]"),
        (lambda w: (torch.zeros(384, 1), torch.zeros(384, 1)), "a step is not above 0"),
        (lambda w: (torch.full((384, 1), math.nan), torch.zeros(384, 1)), "a step is not above 0"),
        (lambda w: (torch.ones(384, 1), torch.full((384, 1), 7.5)), "no whole number from 0 to 15"),
        (lambda w: (torch.ones(384, 1), torch.full((384, 1), 16)), "no whole number from 0 to 15"),
    ],
)
def test_a_grid_that_is_none_is_refused(answer, words):
    with pytest.raises(ValueError, match=words):
        exercises.score("01", answer)


def test_a_table_of_another_size_or_out_of_order_is_refused():
    for table in (nf4()[:15], nf4().flip(0), [0.0] * 16):
        with pytest.raises(ValueError, match="give 16 levels, each above the one before"):
            exercises.score("03", table)


def test_an_answer_whose_bits_cannot_be_counted_is_refused():
    with pytest.raises(TypeError, match="the answer is Tensor, whose bits cannot be counted"):
        exercises.score("02", lambda weight: weight)
    with pytest.raises(TypeError, match="the answer is Tensor, whose bits cannot be counted"):
        exercises.score("04", lambda weight, hessian: weight)


def test_what_stands_for_another_weight_or_for_no_numbers_is_refused():
    weight = torch.ones(2, 2)
    assert percent_off(weight, 1.1 * weight) == pytest.approx(10)
    with pytest.raises(ValueError, match=r"a weight of \[2\]; the layer is \[2, 2\]"):
        percent_off(weight, weight[0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        percent_off(weight, weight / 0)


def test_lesson_08s_layer_is_looked_at_before_it_is_timed(monkeypatch):
    from qkit.bench.timing import Timing
    from qkit.exercises import lesson_08_open as task
    from qkit_kernels.numba import steps

    timed = {"step": Timing([2.0, 3.0]), "answer": Timing([1.0, 9.0])}  # nobody waits for a clock here
    monkeypatch.setattr(task, "interleave", lambda calls, **how: [call() for call in calls.values()] and timed)

    def by_step(name):
        step = steps.STEPS[name]
        return lambda x, packed, scales: step(step.lay(x), packed, scales)

    verdict = exercises.score("08", by_step("whole registers"))
    assert (
        verdict.passed and "0.50 times the time of step 4" in verdict.message and "Beaten, by 50.0 %" in verdict.message
    )
    assert "costs too much" in exercises.score("08", by_step("INT8 activations")).message
    with pytest.raises(ValueError, match=r"y of shape \[3\]"):
        exercises.score("08", lambda x, packed, scales: x[:3])
    with pytest.raises(ValueError, match="writes into x, packed or scales"):
        exercises.score("08", lambda x, packed, scales: x.fill(0) or x)
    timed["answer"] = Timing([2.0])
    assert "Not beaten yet" in exercises.score("08", by_step("types fixed")).message


JUDGES = qkit.passages("tales")[::6]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (qkit.RTN(4, 32), TypeError, "give \\(plan, format\\)"),
        ((qkit.RTN(4, 32), None), ValueError, "format None is none that another program reads"),
        ((qkit.RTN(4, 32), "onnx"), ValueError, "format 'onnx' is none"),
        ((qkit.NF4(), "gptq"), ValueError, "format 'gptq' holds"),
        ((qkit.GPTQ(4, 128), "gptq", "\n".join(JUDGES)), ValueError, "contains a tale that judges"),
    ],
)
def test_a_file_that_nobody_reads_or_that_has_read_its_judge_is_refused(answer, error, words):
    with pytest.raises(error, match=words):
        exercises.score("10", answer)


def test_lesson_07s_plan_does_not_learn_from_its_judge_either():
    with pytest.raises(ValueError, match="contains a tale that judges"):
        exercises.score("07", (qkit.GPTQ(4, 128), JUDGES[2:3]))


def test_a_smaller_file_that_says_something_else_beats_nothing():
    verdict = exercises.score("10", (qkit.RTN(3, 128, symmetric=True), "gptq"))
    assert verdict.passed is False and "costs too much" in verdict.message
