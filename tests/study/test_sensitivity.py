import copy
import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import qkit
from qkit.model.surgery import clone, weight_of
from qkit.study.mixed_precision import _hull
from qkit.study.sensitivity import Choice, Sensitivity


@dataclass(frozen=True)
class Looking(qkit.RTN):
    """RTN that is given some statistic, and says so."""

    calibrated: ClassVar[bool] = True
    statistic: str = "sample"

    @property
    def wants(self):
        return frozenset({self.statistic})

    def round(self, weight, inputs=None, name="the weight"):
        assert getattr(inputs, self.statistic).any()
        return super().round(weight, inputs, name)


SCHEMES = (qkit.RTN(2, 4), qkit.RTN(4, 4), qkit.RTN(8))


@pytest.fixture
def ids():
    return torch.randint(2, 97, (4, 20), generator=torch.Generator().manual_seed(1))


def test_the_error_is_that_of_the_layers_output_on_the_calibration_text(any_kind, make_model, ids):
    model = make_model(any_kind)
    heard = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, name=name: heard.__setitem__(name, args[0].flatten(0, -2)))
        for name, module in model.named_modules()
        if weight_of(module) is not None
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    found = qkit.sensitivity(model, SCHEMES, calibration=ids)
    assert len(found.choices) == len(SCHEMES) * len(found.weights)
    for choice in found.choices:
        weight, x = weight_of(model.get_submodule(choice.layer)).detach().double(), heard[choice.layer].double()
        q = qkit.quantize_tensor(weight.float(), choice.scheme)
        expected = (x @ (q.dequantize() - weight).T).square().sum() / (x @ weight.T).square().sum()
        assert choice.loss == pytest.approx(float(expected), rel=1e-3)
        assert choice.nbytes == q.nbytes


def test_kl_is_that_of_the_model_with_one_layer_quantized(llama, ids):
    found = qkit.sensitivity(llama, SCHEMES[:1], calibration=ids, measure="kl", include="*v_proj")
    for choice in found.choices:
        one = clone(llama)
        qkit.quantize(one, SCHEMES[0], include=choice.layer)
        assert choice.loss == pytest.approx(qkit.kl_divergence(llama, one, None, ids[:4]), rel=1e-4)
    assert found.worst(SCHEMES[0], 1)[0].loss == max(choice.loss for choice in found.choices)


@pytest.mark.parametrize("measure", ["error", "kl"])
@pytest.mark.parametrize("statistic", ["square", "magnitudes", "sample"])
def test_a_scheme_is_given_the_statistics_that_it_wants(llama, ids, statistic, measure):
    scheme = Looking(statistic=statistic)
    found = qkit.sensitivity(llama, [scheme, qkit.RTN(8)], calibration=ids, measure=measure, include="*.1.*")
    assert {choice.scheme for choice in found.choices} == {scheme, qkit.RTN(8)}


def test_a_statistic_that_there_is_not_is_refused(llama, ids):
    with pytest.raises(ValueError, match="no statistic of the inputs is called hessian; a scheme may want drift, magn"):
        qkit.sensitivity(llama, [Looking(statistic="hessian")], calibration=ids)
    with pytest.raises(ValueError, match="no statistic of the inputs is called hessian"):
        qkit.quantize(llama, Looking(statistic="hessian"), calibration=ids)


def test_the_model_is_left_alone_and_bad_input_refused(llama, ids):
    state = copy.deepcopy(llama.state_dict())
    qkit.sensitivity(llama, SCHEMES, calibration=ids)
    assert all(torch.equal(tensor, state[name]) for name, tensor in llama.state_dict().items())
    with pytest.raises(ValueError, match="measure='taste'"):
        qkit.sensitivity(llama, SCHEMES, calibration=ids, measure="taste")
    with pytest.raises(ValueError, match=r"group_size=7 does not divide in_features=48 of model\.layers\.0"):
        qkit.sensitivity(llama, [qkit.RTN(4, 7)], calibration=ids)


def test_a_budget_is_kept_and_spent(llama, ids):
    found = qkit.sensitivity(llama, SCHEMES, calibration=ids)
    cheapest = 8 * sum(found.of(layer)[0].nbytes for layer in found.weights) / sum(found.weights.values())
    losses = []
    for budget in (cheapest + 1e-9, 7.0, 7.5, 8.5, 9.5):
        plan = qkit.mixed_precision(found, budget)
        model = clone(llama)
        assert qkit.quantize(model, plan).bits_per_weight <= budget
        losses.append(sum(c.loss for c in found.choices if plan[c.layer] == c.scheme))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    with pytest.raises(ValueError, match="less than the smallest choices take"):
        qkit.mixed_precision(found, cheapest - 0.01)


def test_on_the_hull_no_plan_of_the_same_size_is_better():
    generator = torch.Generator().manual_seed(3)
    schemes = [qkit.RTN(bits) for bits in (2, 3, 4, 8)]
    for _ in range(20):
        choices = [
            Choice(layer, scheme, int(size), float(loss))
            for layer in "abc"
            for scheme, size, loss in zip(
                schemes,
                torch.randint(1, 50, (4,), generator=generator),
                torch.rand(4, generator=generator),
                strict=True,
            )
        ]
        found = Sensitivity("error", dict.fromkeys("abc", 8), tuple(choices))
        plans = [dict(zip("abc", plan, strict=True)) for plan in itertools.product(*(found.of(x) for x in "abc"))]
        least = sum(found.of(layer)[0].nbytes for layer in "abc")
        for budget in (least, least + 10, least + 40):
            plan = qkit.mixed_precision(found, 8 * budget / 24)
            mine = [next(c for c in found.of(layer) if c.scheme == plan[layer]) for layer in "abc"]
            spent, loss = sum(c.nbytes for c in mine), sum(c.loss for c in mine)
            assert spent <= budget
            # What the greedy way leaves on the table is at most one upgrade: nothing that fits what it spent is better.
            hulls = {layer: _hull(found.of(layer)) for layer in "abc"}
            rivals = [p for p in plans if all(c in hulls[layer] for layer, c in p.items())]
            step = max((a.loss - b.loss for hull in hulls.values() for a, b in itertools.pairwise(hull)), default=0)
            best = min(sum(c.loss for c in p.values()) for p in rivals if sum(c.nbytes for c in p.values()) <= budget)
            assert loss <= best + step + 1e-9
