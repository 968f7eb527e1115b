"""The rows of the tables that `localrank compress` writes."""

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from localrank_cli.compress.eligible import Layers
from localrank_cli.compress.matrix import shape_of
from localrank_cli.compress.score import Difference, Scores
from localrank_cli.compress.search import Outcome
from localrank_cli.results.compressed import LATENCY
from localrank_cli.run.compress_save import forward

EFFECTIVE_RANK = "effective_rank_of_weight"
_TIMED = 20  # forward passes of one point

Row = dict[str, object]


def budget_row(outcome: Outcome, share: float, report: Scores, original: Scores) -> Row:
    """Return the row of a method at a budget, as measured on the reporting split."""
    increase = Difference.of(report.loss, original.loss)
    return _scored(outcome.name, share, outcome.weights, outcome.scores, report) | {
        "loss_increase": increase.mean,
        "loss_increase_se": increase.error,
        "predicted": outcome.predicted,
    }


def original_row(weights: int, pick: Scores, report: Scores) -> Row:
    """Return the row of the network as it was."""
    return _scored("original", 1.0, weights, pick, report)


def missing_row(name: str, share: float, why: str) -> Row:
    """Return the row of a method that has no ranks for a budget."""
    return {"method": name, "budget": share, "note": f"no ranks: {why}"}


def _scored(name: str, share: float, weights: int, pick: Scores, report: Scores) -> Row:
    return {
        "method": name,
        "budget": share,
        "weights": weights,
        "loss_pick": float(pick.loss.mean()),
        "loss": float(report.loss.mean()),
        "loss_increase": None,
        "loss_increase_se": None,
        "divergence": float(report.divergence.mean()),
        "accuracy": report.accuracy,
        "predicted": None,
    }


def layer_rows(
    model: nn.Module,
    layers: Layers,
    share: float,
    ranks: Mapping[str, int | None],
    measured: Mapping[str, Mapping[str, float]],
) -> list[Row]:
    """Return a row for every layer of the original, in the order in which it defines them.

    `measured` holds further columns, each with values by layer.
    """
    rows: list[Row] = []
    for name, module in model.named_modules():
        if name not in layers.chosen and name not in layers.dense:
            continue
        is_chosen, rank = name in layers.chosen, ranks.get(name)
        shape = shape_of(module) if is_chosen else None
        why = "" if rank else "chosen by the allocation"
        row: Row = {
            "budget": share,
            "layer": name,
            "n_out": shape and shape.n_out,
            "n_in": shape and shape.n_in,
            "rank": rank,
            "weights_before": shape and shape.weights,
            "weights_after": shape and shape.cost(rank),
            **{column: values.get(name) for column, values in measured.items()},
            "why_dense": why if is_chosen else layers.dense[name],
        }
        rows.append(row)
    return rows


def latency(model: nn.Module, point: Tensor) -> Row:
    """Return the median time of one point: fewer weights need not be faster."""
    times = []
    with torch.no_grad():
        for _ in range(_TIMED):
            began = time.perf_counter()
            forward(model, point).sum().item()  # waits for a GPU
            times.append(time.perf_counter() - began)
    return {LATENCY: round(1000 * statistics.median(times), 4)}


def aligned(rows: list[Row]) -> list[Row]:
    """Return rows that all have the same columns, empty where they had none."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "note"))
    return [{key: row.get(key) for key in (*keys, "note")} for row in rows]
