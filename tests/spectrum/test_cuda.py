"""The same counts on a GPU."""

import numpy as np
import pytest
import torch

from localrank_cli.measures.points import local_ranks
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import numbers, spectra_of
from tests.cases import CASES, Case, params
from tests.traces import unchanged

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

# A function of numpy runs on the CPU by its nature.
MOVED = [case for case in CASES if case.name != "numpy_function"]
TOLERANCES = (Tolerance(atol=0.01), Tolerance(rtol=1e-3), Tolerance(rtol=0.1))


def bound_of(case: Case) -> float:
    if case.name == "weight_norm":
        # Torch's fused weight norm on a GPU was off by 1.3e-8 of its own float64 result on the CPU.
        return 1e-7
    # As in test_naive: another order of the same products, in float64 or with a part in float32.
    return 6e-6 if case.low_precision else 1.1e-11


@pytest.mark.parametrize("case", params(MOVED))
def test_counts_are_those_of_the_cpu(case: Case) -> None:
    model, points = case.build()
    expected = spectra_of(model, points, case.layers, case.wrt)
    model, points = model.cuda(), points.cuda()
    drawn = torch.cuda.get_rng_state()
    with unchanged(model, points), torch.device("cuda"):  # constants of a forward go there too
        found = spectra_of(model, points, case.layers, case.wrt)
    assert torch.equal(drawn, torch.cuda.get_rng_state())
    assert list(found) == list(expected)
    for label, spectrum in found.items():
        assert spectrum.values.device.type == "cpu"
        sigma = numbers(expected[label])
        assert (np.abs(numbers(spectrum) - sigma) <= bound_of(case) * sigma[:, :1]).all(), label
        for tolerance in TOLERANCES:
            counts = local_ranks(spectrum, tolerance).counts
            assert torch.equal(counts, local_ranks(expected[label], tolerance).counts), label


@pytest.mark.parametrize("name", ["relu_mlp", "conv2d", "encoder_batch_first"])
def test_float32_without_tf32(name: str) -> None:
    # With TF32 (10 bits) products err by 5e-4 and more; float32 sums here stay under 1e-4.
    case = next(case for case in CASES if case.name == name)
    model, points = case.build()
    expected = spectra_of(model, points, case.layers, case.wrt)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = spectra_of(model.float().cuda(), points.float().cuda(), dtype=torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)
    for label, spectrum in found.items():
        sigma = numbers(expected[label])
        assert (np.abs(numbers(spectrum) - sigma) <= 1e-4 * sigma[:, :1]).all(), label
