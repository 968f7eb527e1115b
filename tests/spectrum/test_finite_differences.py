"""Central differences of the layers' outputs: a truth that knows no derivative."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.measures.points import local_ranks
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import numbers, spectra_of_case
from tests.cases import CASES, Case, params
from tests.drawing import one_in
from tests.naive import Array, naive_counts, naive_outputs

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

# Smooth all over: the error of (f(x + h e) - f(x - h e)) / 2h is h^2/6 |f'''| + u |f| / h.
SMOOTH_STEP = 2.0**-13
# |f'''| < 20 along a coordinate (the sharpest here are LayerNorms after attention, about 5), so
# 5e-8; the second term is under 1e-16 * 20 / 1e-4 = 2e-11.
SMOOTH_BOUND = SMOOTH_STEP**2 / 6 * 20
SMOOTH = (
    "linear", "tanh_mlp", "gelu_mlp", "sigmoid_mlp", "tied_weights", "weight_norm", "bilinear",
    "conv3d", "norms", "checkpointed", "causal_attention", "encoder_batch_first",
    "encoder_norm_first", "encoder_sequence_first", "attention_batch_first", "lstm_batch_first",
    "lstm_over_points", "gru_batch_first", "windows_of_points", "old_function", "numpy_function",
    "default_dtype_constants", "batch_statistics", "written_into_zeros", "subtracts_batch_mean",
    "in_place_input", "tuple_output", "dataclass_output", "complex_phases",
    "complex_spectral", "complex_rotary", "complex_conjugated",
)  # fmt: skip

# Linear between kinks: only u |f| / h is left, at most 20 roundings of numbers under 5.
KINKED_STEP = 2.0**-12
KINKED_BOUND = 20 * 2.0**-53 * 5 / KINKED_STEP  # 4.5e-11
KINKED = (
    "relu_mlp", "no_bias", "wider_than_input", "dead_units", "residual", "in_place_relu",
    "input_skip", "same_module_in_a_chain", "users_hook", "batchnorm_dropout", "one_at_a_time",
)  # fmt: skip


def named(names: tuple[str, ...]) -> list[Case]:
    by_name = {case.name: case for case in CASES}
    chosen = [by_name[name] for name in names]
    assert all(case.has_derivative and not case.wrt for case in chosen)
    return chosen


def differences(
    model: nn.Module, point: Tensor, layers: tuple[str, ...], step: float, kinks: bool
) -> dict[str, Array] | None:
    """Central differences, or None where a unit changes its sign within the step."""
    columns: dict[str, list[Array]] = {}
    flat = point.flatten()
    for index in range(flat.numel()):
        move = torch.zeros_like(flat)
        move[index] = step
        up = naive_outputs(model, (flat + move).reshape(point.shape), layers)
        down = naive_outputs(model, (flat - move).reshape(point.shape), layers)
        for label, value in up.items():
            if kinks and (np.sign(value) != np.sign(down[label])).any():
                return None
            columns.setdefault(label, []).append((value - down[label]) / (2 * step))
    return {label: np.stack(parts, axis=1) for label, parts in columns.items()}


def compare(case: Case, step: float, bound: float, kinks: bool) -> int:
    model, points = case.build()
    found = spectra_of_case(case)
    compared = 0
    for index, point in enumerate(points):
        jacobians = differences(model, point, case.layers, step, kinks)
        if jacobians is None:
            continue
        compared += 1
        assert list(jacobians) == list(found)
        for label, jacobian in jacobians.items():
            spectrum = found[label]
            sigma: Array = np.linalg.svd(jacobian, compute_uv=False).astype(np.float64)
            # Weyl: the Frobenius norm of the error bounds how far singular values move.
            off = bound * np.sqrt(jacobian.size)
            assert np.abs(numbers(spectrum)[index] - sigma).max() <= off, label
            if (np.abs(sigma - 0.01) > off).all():
                counts = local_ranks(spectrum, Tolerance(atol=0.01)).counts
                assert counts[index] == naive_counts(sigma[None], atol=0.01)[0]
    return compared


@pytest.mark.parametrize("case", one_in(2, named(SMOOTH)))
def test_smooth(case: Case) -> None:
    assert compare(case, SMOOTH_STEP, SMOOTH_BOUND, kinks=False) == len(case.build()[1])


@pytest.mark.parametrize("case", params(named(KINKED)))
def test_between_kinks(case: Case) -> None:
    # The seeds are fixed: no kink is within the step at any of the points.
    assert compare(case, KINKED_STEP, KINKED_BOUND, kinks=True) == len(case.build()[1])
