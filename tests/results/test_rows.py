import torch

from localrank_cli.measures.layer import measure
from localrank_cli.results.columns import header
from localrank_cli.results.record import LayerFacts, layer_rows
from localrank_cli.spectrum.layer import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance

FACTS = LayerFacts(
    run="run",
    checkpoint="step_1.pt",
    step=1,
    layer="fc",
    layer_index=2,
    module="Linear",
    n_in=3,
    n_out=2,
    wrt="",
    input_metric="identity",
    dtype="float64",
    method="exact",
)


def spectrum(values: list[list[float]]) -> LayerSpectrum:
    tensor = torch.tensor(values, dtype=torch.float64)
    return LayerSpectrum("fc", "Linear", 2, 3, tensor, tensor[:, 0] * 1e-15, "exact")


TOLERANCES = [Tolerance(atol=0.01), Tolerance(rtol=0.5), Tolerance(rtol=None)]


def test_one_row_for_each_tolerance_with_all_columns() -> None:
    measures = measure(spectrum([[4.0, 1.0], [4.0, 3.0]]), TOLERANCES, 1.0)
    rows = layer_rows(FACTS, measures, {"beta": 2.0})
    assert [tuple(row) for row in rows] == [header(("beta",))] * 3
    assert [row["tolerance"] for row in rows] == ["atol=0.01", "rtol=0.5", "rtol=eps"]
    assert [(row["atol"], row["rtol"]) for row in rows[:2]] == [(0.01, 0), (0, 0.5)]
    assert rows[2]["rtol"] == 3 * 2**-23
    assert [row["local_rank"] for row in rows] == [2, 1.5, 2]
    assert (rows[1]["rank_min"], rows[1]["rank_max"]) == (1, 2)
    first = rows[0]
    assert (first["n_in"], first["n_out"], first["max_rank"]) == (3, 2, 2)
    assert (first["n_points"], first["n_failed"]) == (2, 0)
    assert (first["status"], first["message"]) == ("ok", "")
    assert first["spectral_norm"] == 4
    assert first["spectral_norm_se"] == 0
    assert first["beta"] == 2.0


def test_points_that_failed_are_said() -> None:
    nan = float("nan")
    measures = measure(spectrum([[4.0, 1.0], [nan, nan]]), TOLERANCES[:1], 1.0)
    (row,) = layer_rows(FACTS, measures, {})
    assert (row["n_points"], row["n_failed"], row["local_rank"]) == (1, 1, 2)
    assert row["local_rank_se"] is None  # one point has no deviation
    assert row["status"] == "nonfinite"
    assert row["message"] == "1 of 2 points have a non-finite Jacobian or pre-activation"


def test_no_finite_point_is_no_rank_zero() -> None:
    nan = float("nan")
    (row,) = layer_rows(FACTS, measure(spectrum([[nan, nan]]), TOLERANCES[:1], 1.0), {})
    assert (row["n_points"], row["n_failed"], row["n_undecided"]) == (0, 1, 0)
    for name in ("local_rank", "rank_min", "rank_max", "near_tol", "effective_rank"):
        assert row[name] is None
