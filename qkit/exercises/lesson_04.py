"""Exercises of lesson 04: the error that counts, one step of the column loop, damping, and the whole loop."""

from collections.abc import Callable
from functools import cache

import torch

import qkit
from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw, off_halves
from qkit.exercises.open_task import OpenTask, check_stored, chunks_to_learn_from, percent_off
from qkit.model.inputs import layer_statistics
from qkit.text.tokens import passage_chunks

OPEN_LAYER = "model.layers.3.mlp.gate_proj"


def output_error(w: torch.Tensor, w_hat: torch.Tensor, h: torch.Tensor) -> float:
    """||(W - Ŵ) X||² of w, w_hat [out, in], from h = X Xᵀ [in, in]: the sum over rows of (w - ŵ) H (w - ŵ)ᵀ."""
    e = w - w_hat
    return float(((e @ h) * e).sum())


def round_column(w: torch.Tensor, upper: torch.Tensor, j: int, step: float) -> torch.Tensor:
    """GPTQ's step j on w [out, in]: column j becomes round(w_j / step) step, and the columns after it make that good.

    With e = (w_j - ŵ_j) / U_jj each column k > j is lowered by e U_jk.
    """
    w = w.clone()
    rounded = torch.round(w[:, j] / step) * step
    error = (w[:, j] - rounded) / upper[j, j]
    w[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    w[:, j] = rounded
    return w


def inverse_factor(x: torch.Tensor, damp: float) -> torch.Tensor:
    """U, upper triangular, with H⁻¹ = Uᵀ U, of H = X Xᵀ (x is [in, tokens]) + damp mean(diag X Xᵀ) I."""
    h = x @ x.T
    h = h + damp * h.diagonal().mean() * torch.eye(len(h))
    return torch.linalg.cholesky(torch.linalg.inv(h), upper=True)


def gptq_loop(w: torch.Tensor, x: torch.Tensor, step: torch.Tensor, bits: int, damp: float) -> torch.Tensor:
    """GPTQ on w [out, in] for inputs x [tokens, in]: what the codes stand for, [out, in].

    Codes are whole numbers from -2^(bits-1) to 2^(bits-1) - 1, row n stands on multiples of step[n], columns are taken from the
    first to the last, and H = Xᵀ X has damp times the mean of its diagonal added to it.
    """
    h = x.T.double() @ x.double()
    h = h + damp * h.diagonal().mean() * torch.eye(len(h))
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    left, w_hat = w.double().clone(), torch.zeros_like(w)
    for k in range(w.shape[1]):
        codes = torch.round(left[:, k] / step).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        w_hat[:, k] = codes * step
        error = (left[:, k] - codes * step) / upper[k, k]
        left[:, k:] -= error[:, None] * upper[k, k:]
    return w_hat


@cache
def _open_layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weight of the lesson, H of its calibration text, and H of the tales that judge."""
    model, tokenizer = qkit.load("bookworm-14m")
    learned, judging = chunks_to_learn_from(tokenizer)[::2], passage_chunks(qkit.passages("tales")[::6], tokenizer)[0]
    seen, unseen = (layer_statistics(model, ids, [OPEN_LAYER])[OPEN_LAYER].hessian for ids in (learned, judging))
    return model.get_parameter(f"{OPEN_LAYER}.weight").detach(), seen, unseen


def on_other_text(answer: Callable) -> tuple[float, float] | None:
    """Stored bits a weight, and the output error in percent on other tales, of what `answer` makes of the lesson's layer.

    It is given the weight [out, in] and H [in, in] of the calibration text, and gives a stored weight
    (`qkit.QTensor.from_codes`); None where it gives None.

    Raises:
        TypeError: it gives something else, whose bits cannot be counted.
    """
    weight, seen, unseen = _open_layer()
    q = answer(weight.clone(), seen.clone())
    if q is None:
        return None
    check_stored(q)
    percent_off(weight, q.dequantize())  # which refuses another shape, and what is not finite
    return q.bits_per_weight, 100 * output_error(weight, q.dequantize(), unseen) / output_error(
        weight, 0 * weight, unseen
    )


def _step(w, upper, j, step, error=None, first=None, moved=None, rounding=torch.round, sign=-1):
    """`round_column` with one thing changed."""
    w = w.clone()
    rounded = rounding(w[:, j] / step) * step
    e = (w[:, j] - rounded) / (upper[j, j] if error is None else error)
    after = slice(j + 1 if first is None else first, None)
    w[:, after] += sign * e[:, None] * (upper[j, after] if moved is None else moved[after])
    w[:, j] = rounded
    return w


def _factor(x, damp, h=None, of_mean=True):
    h = x @ x.T if h is None else h
    return torch.linalg.cholesky(
        torch.linalg.inv(h + damp * (h.diagonal().mean() if of_mean else 1) * torch.eye(len(h))), upper=True
    )


_G = torch.Generator().manual_seed(0)
_X = torch.randn(6, 40, generator=_G) * torch.tensor([1.0, 3.0, 0.5, 2.0, 1.0, 0.2])[:, None]
_X[1] += 2 * _X[3]
_H = _X @ _X.T
_W = torch.randn(4, 6, generator=_G)
_W_HAT = torch.round(_W * 2) / 2
_U = inverse_factor(_X, 0.01)
_FEW = torch.randn(5, 3, generator=_G)


def _rounded_and_hessian(d: Draw) -> tuple[torch.Tensor, ...]:
    w, x = d.weight(d.whole(1, 6), d.whole(1, 8)), d.normal(8, 30)
    step = float(w.abs().max()) / 5
    return w, torch.round(w / step) * step, (x @ x.T)[: w.shape[1], : w.shape[1]]


def _column_to_round(d: Draw) -> tuple[torch.Tensor, torch.Tensor, int, float]:
    columns = d.whole(1, 8)
    w = d.weight(d.whole(1, 6), columns)
    step = float(w.abs().max()) * d.real(0.05, 0.5)
    upper = (d.normal(columns, columns) / 2 + 2 * torch.eye(columns)).triu()
    return off_halves(w, step), upper, d.whole(0, columns - 1), step


def _loop(w, x, step, bits, damp, *, update=True, limits=True, upper=None):
    """`gptq_loop` with one thing changed."""
    h = x.T.double() @ x.double()
    h = h + damp * h.diagonal().mean() * torch.eye(len(h))
    factor = torch.linalg.cholesky(torch.linalg.inv(h), upper=True) if upper is None else upper(h)
    left, w_hat = w.double().clone(), torch.zeros_like(w)
    for k in range(w.shape[1]):
        codes = torch.round(left[:, k] / step)
        codes = codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if limits else codes
        w_hat[:, k] = codes * step
        if update:
            left[:, k:] -= ((left[:, k] - codes * step) / factor[k, k])[:, None] * factor[k, k:]
    return w_hat


def _a_layer(d: Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, float]:
    """Inputs that go together, and steps with which some codes meet their limits."""
    columns, bits = d.whole(2, 9), d.whole(2, 8)
    w = d.weight(d.whole(1, 6), columns)
    x = d.normal(d.whole(3, 40), columns) @ (d.normal(columns, columns) + torch.eye(columns))
    step = w.abs().amax(1) / 2 ** (bits - 1) * d.real(0.6, 1.2)
    return off_halves(w, step[:, None]), x * d.size(0.1, 10), step, bits, d.real(0.01, 0.3)


_TOKENS = _X.T.contiguous()
_STEP = _W.abs().amax(1) / 4
_HAND = (torch.tensor([[0.4, 0.3]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([1.0]), 2, 1e-6)

EXERCISES = (
    Exercise(
        name="04.1",
        minutes=6,
        difficulty="easy",
        hints=(
            "||E X||² is the sum of the squares of E X, and that is the trace of E X Xᵀ Eᵀ.",
            "A trace needs no whole matrix: of (E H) Eᵀ row n has its diagonal from row n of E H and row n of E.",
        ),
        solution=output_error,
        cases=(
            (torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 3.0]])),
            (_W, _W_HAT, _H),
        ),
        edges={
            "one row": (_W[:1], _W_HAT[:1], _H),
            "one column": (_W[:, :1], _W_HAT[:, :1], _H[:1, :1]),
            "very small inputs": (_W, _W_HAT, _H * 1e-8),
        },
        draw=_rounded_and_hessian,
        mistakes=(
            (
                lambda w, v, h: float((w - v).square().sum()),
                "that is the error of the weights; the inputs decide what each of them costs: use h.",
            ),
            (
                lambda w, v, h: float(((w - v).square() * h.diagonal()).sum()),
                "that uses the diagonal of h alone: errors of two inputs that go together add up, or cancel.",
            ),
            (
                lambda w, v, h: float(((w - v) @ h).square().sum()),
                "that is ||E H||²: h holds X twice already. Multiply e h by e, do not square it.",
            ),
            (
                lambda w, v, h: float((((w - v) @ h) * (w - v)).mean()),
                "that is the mean over the weights: the sum is asked for.",
            ),
            (
                lambda w, v, h: float((((w - v) @ h) * (w - v)).sum().sqrt()),
                "that is the root; the squared norm is asked for.",
            ),
            (
                lambda w, v, h: float(((w @ h) * w).sum() - ((v @ h) * v).sum()),
                "that is the difference of two squared norms; take the squared norm of the difference.",
            ),
            (
                lambda w, v, h: ((w - v) @ h @ (w - v).T).sum().item(),
                "that adds up the whole matrix E H Eᵀ, rows against other rows too: only its diagonal counts.",
            ),
        ),
    ),
    Exercise(
        name="04.2",
        minutes=10,
        difficulty="medium",
        hints=(
            "Start with w = w.clone(), and keep the rounded column apart until the end.",
            "What is passed on is one number a row: what column j lost by rounding, over U_jj.",
            "A column of errors times a row of U is a matrix, [out, columns after j]. Which slice of w is as wide?",
        ),
        solution=round_column,
        cases=((_W, _U, 0, 0.5), (_W, _U, 3, 0.5), (_W, _U, 5, 0.25), (_W, _U, 1, 0.7)),
        edges={
            "the first column": (_W[:2], _U, 0, 0.5),
            "the last column": (_W, _U, 5, 0.5),
            "one row": (_W[:1], _U, 2, 0.25),
            "numbers that lie halfway": (torch.arange(6)[None, :].T * torch.ones(6) / 4 + 0.25, _U, 1, 0.5),
            "a column that is zero": (_W * (torch.arange(6) != 2), _U, 2, 0.3),
        },
        draw=_column_to_round,
        mistakes=(
            (
                lambda w, u, j, s: _step(w, u, j, s, sign=0),
                "that only rounds: the columns after j must make the error good.",
            ),
            (
                lambda w, u, j, s: _step(w, u, j, s, sign=1),
                "the wrong sign: the columns after j are lowered by e U_jk.",
            ),
            (
                lambda w, u, j, s: _step(w, u, j, s, error=1.0),
                "the error is divided by U_jj before it is spread.",
            ),
            (
                lambda w, u, j, s: _step(w, u, j, s, error=u[j, j] ** 2),
                "divide by U_jj, not by its square.",
            ),
            (
                lambda w, u, j, s: _step(w, u, j, s, moved=u[:, j]),
                "that takes column j of U, which is zero below the diagonal; take row j.",
            ),
            (
                lambda w, u, j, s: torch.round(w / s) * s,
                "that rounds every column; only column j is rounded in step j.",
            ),
            (
                lambda w, u, j, s: _step(w, u, j, s, rounding=torch.trunc),
                "that truncates: round to the nearest.",
            ),
            (
                lambda w, u, j, s: torch.cat(
                    [_step(w, u, j, s)[:, :j], w[:, j : j + 1], _step(w, u, j, s)[:, j + 1 :]], 1
                ),
                "column j itself is still unrounded.",
            ),
        ),
    ),
    Exercise(
        name="04.3",
        minutes=8,
        difficulty="medium",
        hints=(
            "h.diagonal().mean() is the unit of damp.",
            "torch.linalg.cholesky(..., upper=True) gives U with Uᵀ U. Of which matrix?",
        ),
        solution=inverse_factor,
        cases=((_X, 0.01), (_X, 0.5), (_FEW, 0.1)),
        edges={
            "one input": (_X[:1], 0.01),
            "an input that is always 0": (_X * (torch.arange(6) != 4)[:, None], 0.1),
            "fewer tokens than inputs": (_FEW[:, :2], 0.05),
            "very small inputs": (_X * 1e-3, 0.01),
        },
        draw=lambda d: (d.normal(d.whole(2, 8), d.whole(3, 40)) * d.size(0.1, 10), d.real(0.05, 0.5)),
        rtol=2e-4,
        mistakes=(
            (
                lambda x, d: _factor(x, d, of_mean=False),
                "damp is a share of the mean of the diagonal: multiply it by h.diagonal().mean().",
            ),
            (
                lambda x, d: _factor(x, d * x.shape[0]),
                "the mean of the diagonal, not its sum (the trace).",
            ),
            (
                lambda x, d: torch.linalg.cholesky(
                    x @ x.T + d * (x @ x.T).diagonal().mean() * torch.eye(len(x)), upper=True
                ),
                "that is the factor of H; the one of its inverse is asked for.",
            ),
            (
                lambda x, d: torch.linalg.inv(
                    torch.linalg.cholesky(x @ x.T + d * (x @ x.T).diagonal().mean() * torch.eye(len(x)))
                ),
                "that is the inverse of the factor of H, and lower triangular: invert first, then factor.",
            ),
            (lambda x, d: _factor(x, d).T, "that is lower triangular, Uᵀ: use upper=True."),
            (
                lambda x, d: _factor(x, d, h=x @ x.T / x.shape[1]),
                "that divides H by the number of tokens: right for GPTQ, whose codes it does not change, but not X Xᵀ.",
            ),
            (
                lambda x, d: torch.linalg.inv(x @ x.T + d * (x @ x.T).diagonal().mean() * torch.eye(len(x))),
                "that is H⁻¹: its Cholesky factor is asked for.",
            ),
        ),
    ),
    Exercise(
        name="04.4",
        minutes=16,
        difficulty="hard",
        hints=(
            "H, its damping and U are 04.3's, with a row of x for each token. What is computed once stands before the loop.",
            "Two tensors: one that the loop goes on changing, and one for what is finished. Take H and the first in float64.",
            "Compare with 04.2: there the step is one number, here one for each row, and codes have limits. The error is taken "
            "after the limits.",
        ),
        solution=gptq_loop,
        cases=(
            _HAND,
            (_W, _TOKENS, _STEP, 3, 0.01),
            (_W, _TOKENS, _STEP / 2, 3, 0.01),
            (_W, _TOKENS, _STEP, 4, 0.3),
        ),
        edges={
            "one row": (_W[:1], _TOKENS, _STEP[:1], 3, 0.01),
            "one column": (_W[:, :1], _TOKENS[:, :1], _STEP, 3, 0.01),
            "an input that is always 0": (_W, _TOKENS * (torch.arange(6) != 2), _STEP, 3, 0.05),
            "fewer tokens than inputs": (_W, _TOKENS[:3], _STEP, 3, 0.05),
            "very small inputs": (_W, _TOKENS * 1e-4, _STEP, 3, 0.01),
            "weights that lie halfway": (torch.tensor([[0.5, 0.2], [1.5, -0.1]]), *_HAND[1:2], torch.ones(2), 3, 0.01),
            "numbers in float64": (_W.double(), _TOKENS.double(), _STEP.double(), 3, 0.01),
        },
        draw=_a_layer,
        mistakes=(
            (
                lambda *a: _loop(*a, update=False),
                "that is rounding: what a column loses must be made good by those after it.",
            ),
            (
                lambda *a: _loop(*a, limits=False),
                "the codes have limits, -2^(bits-1) and 2^(bits-1) - 1; clamp them before you take the error.",
            ),
            (
                lambda *a: _loop(*a, upper=lambda h: torch.linalg.cholesky(h, upper=True)),
                "that is the factor of H; the loop asks for the one of its inverse.",
            ),
            (
                lambda w, x, step, bits, damp: _loop(w, x, step, bits, 0.0),
                "damp is not used: it is a share of the mean of H's diagonal, added to the diagonal.",
            ),
            (
                lambda w, x, step, bits, damp: _loop(w, x, step, bits, damp * x.shape[1]),
                "the mean of the diagonal, not its sum (the trace).",
            ),
            (
                lambda w, x, step, bits, damp: _loop(w, x, step, bits, damp) / step[:, None],
                "those are the codes; give what they stand for, codes times the row's step.",
            ),
            (
                lambda w, x, step, bits, damp: _loop(w, x, step.max(), bits, damp),
                "each row has its own step.",
            ),
        ),
    ),
)

OPEN = OpenTask(
    "04", on_other_text, budget=3.15, to_beat=1.993, cost="bits a weight", loss="% output error on other text"
)
