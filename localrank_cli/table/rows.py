"""The rows of one layer at one checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass

from localrank_cli.measures.layer import LayerMeasures, RankSummary
from localrank_cli.measures.table import AVERAGED
from localrank_cli.table.columns import Cell


@dataclass(frozen=True)
class LayerFacts:
    """What all rows of one layer at one checkpoint share."""

    run: str
    checkpoint: str
    step: int | None
    layer: str
    layer_index: int
    module: str
    n_in: int
    n_out: int
    wrt: str
    input_metric: str
    dtype: str
    method: str


def layer_rows(
    facts: LayerFacts, measures: LayerMeasures, constants: Mapping[str, Cell], remark: str = ""
) -> list[dict[str, Cell]]:
    """Makes one row for each tolerance.

    Args:
        facts: What the rows share.
        measures: The averages.
        constants: Optional columns, after `message`.
        remark: For `message`, beside what there may be of failed points.

    Returns:
        The rows, in the order of the tolerances.
    """
    return [_row(facts, measures, ranks, remark) | dict(constants) for ranks in measures.ranks]


def _row(
    facts: LayerFacts, measures: LayerMeasures, ranks: RankSummary, remark: str
) -> dict[str, Cell]:
    averages: dict[str, Cell] = {}
    for name in AVERAGED:
        averages[name] = measures.soft[name].mean
        averages[f"{name}_se"] = measures.soft[name].error
    total = measures.n_points + measures.n_failed
    failed = measures.n_failed > 0
    failure = f"{measures.n_failed} of {total} points have a non-finite Jacobian or pre-activation"
    return {
        "run": facts.run,
        "checkpoint": facts.checkpoint,
        "step": facts.step,
        "layer": facts.layer,
        "layer_index": facts.layer_index,
        "module": facts.module,
        "n_in": facts.n_in,
        "n_out": facts.n_out,
        "max_rank": min(facts.n_in, facts.n_out),
        "n_points": measures.n_points,
        "n_failed": measures.n_failed,
        "wrt": facts.wrt,
        "input_metric": facts.input_metric,
        "dtype": facts.dtype,
        "tolerance": ranks.tolerance.label,
        "atol": ranks.tolerance.atol,
        "rtol": ranks.rtol,
        "local_rank": ranks.local_rank.mean,
        "local_rank_se": ranks.local_rank.error,
        "rank_min": ranks.rank_min,
        "rank_max": ranks.rank_max,
        "near_tol": ranks.near_tol,
        "n_undecided": ranks.n_undecided,
        **averages,
        "method": facts.method,
        "status": "nonfinite" if failed else "ok",
        "message": "; ".join(text for text in (failure if failed else "", remark) if text),
    }
