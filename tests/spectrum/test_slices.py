"""Parts of Jacobians by every route against rows and columns of the whole one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from localrank_cli.errors import LayerError
from localrank_cli.jacobian.metric_factor import MetricFactor
from localrank_cli.layers.select import Selection
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import LayerSpectrum, Request, layer_spectra
from tests.asking import PLENTY, numbers
from tests.cases import CASES, Case, in_turn
from tests.naive import Array, naive_spectra
from tests.spectrum.routes import ROUTES, TOLERANCES, Route, jacobians
from tests.spectrum.test_naive import BOUND, BOUND_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

CHOSEN = {name: route for name, route in ROUTES.items() if name != "blocks_in_reverse"}
# Points lie along another axis, or there is none.
OTHERWISE = {"scalar_output", "complex_scalar", "sequence_first_wrt_viewed"}
OUTPUTS_OTHERWISE = {
    "attention_inside_sequence_first", "lstm_inside_sequence_first", "windows_of_points",
    "points_in_windows", "one_at_a_time",
}  # fmt: skip
SLICED = [case for case in CASES if case.name not in OTHERWISE]


def found_by(
    case: Case, selection: Selection, route: Route, metric: MetricFactor | None = None
) -> dict[str, LayerSpectrum]:
    model, points = case.build()
    memory = PLENTY
    if route.tight:
        memory = max(48 * min(j.shape[1:]) ** 2 for j in jacobians(case).values())
    request = Request(selection, torch.float64, memory, demand_of(TOLERANCES), metric)
    modes = route.modes()
    return {found.layer: found for found in layer_spectra(model, points, request, modes)}


def check(case: Case, found: dict[str, LayerSpectrum], parts: dict[str, Array]) -> None:
    expected = naive_spectra(parts)
    bound = 10 * (BOUND_FLOAT32 if case.low_precision else BOUND)
    assert list(found) == list(expected)
    for label, spectrum in found.items():
        sigma = expected[label]
        assert spectrum.values.shape == sigma.shape
        assert (spectrum.n_out, spectrum.n_varied) == parts[label].shape[1:]
        total = sigma.sum(axis=1, keepdims=True)
        # Rounding is relative to the whole Jacobian where the part is small beside it.
        whole = naive_spectra({label: jacobians(case)[label]})[label][:, :1]
        off = np.abs(numbers(spectrum) - sigma)
        assert (off <= bound * whole + 2.5e-7 * total).all(), label


@pytest.mark.parametrize(("case", "route"), in_turn(SLICED, *CHOSEN, one_in=2))
def test_the_last_of_the_first_axis_varied(case: Case, route: str) -> None:
    selection = Selection(case.layers, (), case.wrt, input_slice="-1")
    found = found_by(case, selection, CHOSEN[route])
    n_varied = next(iter(found.values())).n_varied
    assert n_varied
    check(case, found, {k: j[:, :, -n_varied:] for k, j in jacobians(case).items()})


@pytest.mark.parametrize(
    ("case", "route"),
    in_turn(
        (case for case in SLICED if case.name not in OUTPUTS_OTHERWISE),
        *CHOSEN,
        one_in=2,
        start=1,
    ),
)
def test_the_first_two_of_the_first_axis_of_every_output(case: Case, route: str) -> None:
    selection = Selection(case.layers, (), case.wrt, output_slice=":2")
    found = found_by(case, selection, CHOSEN[route])
    check(case, found, {k: j[:, : found[k].n_out] for k, j in jacobians(case).items()})


@pytest.mark.parametrize(
    ("name", "sizes"), [("relu_mlp", [2, 2, 2]), ("conv2d", [2 * 6 * 6, 2 * 2 * 2, 2])]
)
def test_sizes_of_sliced_outputs(name: str, sizes: list[int]) -> None:
    case = next(case for case in CASES if case.name == name)
    found = found_by(case, Selection(output_slice=":2"), Route())
    assert [spectrum.n_out for spectrum in found.values()] == sizes


@pytest.mark.parametrize("name", ["relu_mlp", "conv2d", "hidden_wrt"])
def test_both_and_a_metric(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    selection = Selection(case.layers, (), case.wrt, input_slice=":1", output_slice="-1")
    n_varied = next(iter(found_by(case, selection, Route()).values())).n_varied
    assert n_varied is not None
    factor = torch.randn(n_varied, n_varied, dtype=torch.float64)
    for route in CHOSEN.values():
        metric = MetricFactor(factor, 99)
        found = found_by(case, selection, replace(route, tight=False), metric)
        parts = {
            label: jacobian[:, -found[label].n_out :, :n_varied] @ factor.numpy()
            for label, jacobian in jacobians(case).items()
        }
        check(case, found, parts)


@pytest.mark.parametrize("varied", [True, False])
def test_a_slice_of_a_complex_tensor_takes_both_parts_of_an_entry(varied: bool) -> None:
    case = next(case for case in CASES if case.name == "complex_wrt")
    slices = ("1:3", "") if varied else ("", "1:3")
    found = found_by(case, Selection(("b",), (), case.wrt, False, *slices), Route())
    jacobian = jacobians(case)["b"]
    part = jacobian[:, :, 2:6] if varied else jacobian[:, 2:6]
    check(case, found, {"b": part})


def test_a_slice_that_does_not_fit_names_the_layer() -> None:
    case = next(case for case in CASES if case.name == "conv2d")
    with pytest.raises(LayerError, match=r"'9' of shape \(3,\).*--layers"):
        found_by(case, Selection(output_slice="0,0"), Route())


@pytest.mark.parametrize(
    "name", sorted(OUTPUTS_OTHERWISE | OTHERWISE - {"sequence_first_wrt_viewed"})
)
def test_outputs_whose_points_lie_otherwise_are_refused(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(LayerError, match="first axis is not the point axis"):
        found_by(case, Selection(case.layers, (), case.wrt, output_slice=":2"), Route())
