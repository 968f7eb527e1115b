"""The record of one finished checkpoint: values at each point, and the rows made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localrank_cli.errors import SettingsError
from localrank_cli.intervals.evidence import Evidence
from localrank_cli.layers.capture import Call
from localrank_cli.measures.intervals import (
    IntervalSummary,
    interval_summaries,
    root_mean_square,
)
from localrank_cli.measures.layer import Average, LayerMeasures, RankSummary, reduce_points
from localrank_cli.measures.points import PointMeasures, PointRanks
from localrank_cli.measures.table import AVERAGED, FIRST
from localrank_cli.results.columns import COLUMNS, Cell
from localrank_cli.spectrum.layer import EXACT_FLOAT32
from localrank_cli.spectrum.pooled import Block
from localrank_cli.spectrum.tolerance import Tolerance
from localrank_cli.validation import shown

KIND, SETTINGS, SHARD = "checkpoint", "settings", "shard"

# The setting `precision` of analyses that give a network float64 where it requests float32.
FLOAT64_THROUGHOUT = "float64 throughout"


@dataclass(frozen=True)
class LayerFacts:
    """The cells that all rows of one layer at one checkpoint share."""

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
    facts: LayerFacts,
    measures: LayerMeasures,
    constants: Mapping[str, Cell],
    remark: str = "",
    by_tolerance: Sequence[Mapping[str, Cell]] = (),
) -> list[dict[str, Cell]]:
    """Return one row for each tolerance, in order.

    `constants` are the columns after `message`, and `by_tolerance`, if there are any, those of each
    row; `remark` is appended to the text in `message` on failed points.
    """
    own = by_tolerance or [{} for _ in measures.ranks]
    return [
        {**_row(facts, measures, ranks, remark), **constants, **cells}
        for ranks, cells in zip(measures.ranks, own, strict=True)
    ]


def _row(
    facts: LayerFacts, measures: LayerMeasures, ranks: RankSummary, remark: str
) -> dict[str, Cell]:
    averages: dict[str, Cell] = {}
    for name in AVERAGED:
        # Empty for what --measures leaves out.
        found = measures.soft.get(name, Average(None, None))
        averages[name], averages[f"{name}_se"] = found.mean, found.error
    total = measures.n_points + measures.n_failed
    failed = measures.n_failed > 0
    failure = f"{measures.n_failed} of {total} points have a non-finite Jacobian or pre-activation"
    cells: dict[str, Cell] = {
        **vars(facts),
        "max_rank": min(facts.n_in, facts.n_out),
        "n_points": measures.n_points,
        "n_failed": measures.n_failed,
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
        "status": "nonfinite" if failed else "ok",
        "message": "; ".join(text for text in (failure if failed else "", remark) if text),
    }
    return {name: cells[name] for name in COLUMNS}


def _interval_cells(points: PointMeasures, dtype: str, remark: str) -> list[Mapping[str, Cell]]:
    """Return the cells of intervals, for each tolerance; none where ranks were counted."""
    if points.evidence is None:
        return []
    norm = root_mean_square(points.soft["jacobian_norm"])
    tolerances = [ranks.tolerance for ranks in points.ranks]
    return [
        {"jacobian_norm": norm, **(_bounds(one, dtype, remark) if one is not None else {})}
        for one in interval_summaries(points.evidence, tolerances)
    ]


def _bounds(one: IntervalSummary, dtype: str, remark: str) -> dict[str, Cell]:
    cells: dict[str, Cell] = {
        "rank_low": one.low,
        "rank_high": one.high,
        # In float32 it rests on a rounding that is measured, not proved.
        "rank_certain_low": one.certain_low if dtype == "float64" else None,
        "confidence": one.confidence,
        "sigma_1_low": one.sigma_low,
        "sigma_1_high": one.sigma_high,
        "n_products": one.n_products,
    }
    if one.failed:
        what = (
            "rank_low is above rank_high: the interval failed, as a share of 1 - confidence of all"
            " rows may"
        )
        cells |= {"status": "failed", "message": "; ".join(filter(None, (what, remark)))}
    return cells


@dataclass(frozen=True)
class LayerRecord:
    """One layer at one checkpoint."""

    facts: LayerFacts
    points: PointMeasures
    cells: Mapping[str, Cell] = field(default_factory=dict)  # optional columns
    # Optional columns that differ between tolerances, for each of them; none: none has any.
    by_tolerance: tuple[Mapping[str, Cell], ...] = ()
    # Sums over a part of the points, for --pooled; the journal does not hold them.
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class CheckpointRecord:
    """One checkpoint: its layers, or why there are none."""

    run: str
    checkpoint: str
    step: int | None
    layers: tuple[LayerRecord, ...] = ()
    status: str = "ok"  # else a word for what failed
    message: str = ""  # of a failure, or a remark on every row
    facts: dict[str, Any] = field(default_factory=dict)  # for the manifest
    points: tuple[int, int] | None = None  # only these of the run's points, for a shard

    @property
    def is_failed(self) -> bool:
        """Whether there are no numbers for it."""
        return self.status != "ok"

    @property
    def rows(self) -> list[dict[str, Cell]]:
        """The rows of the table; one with the message for a failed checkpoint."""
        if self.is_failed:
            return [self._failed_row()]
        rows = []
        for layer in self.layers:
            measures = reduce_points(layer.points)
            own = layer.by_tolerance or _interval_cells(
                layer.points, layer.facts.dtype, self.message
            )
            rows += layer_rows(layer.facts, measures, layer.cells, self.message, own)
        return rows

    @property
    def is_finite(self) -> bool:
        """Whether every point of every layer was finite."""
        return not self.is_failed and all(all(layer.points.finite) for layer in self.layers)

    @property
    def is_in_float32(self) -> bool:
        """Whether any of its numbers was computed in part in float32."""
        return any(layer.facts.method == EXACT_FLOAT32 for layer in self.layers)

    @property
    def flaw(self) -> str:
        """A sentence on failed or non-finite numbers; empty if there are none."""
        if self.is_failed:
            return f"{self.run}: left out: {self.message}"
        if self.is_finite:
            return ""
        broken = [layer for layer in self.layers if not all(layer.points.finite)]
        names = dict.fromkeys(layer.facts.layer for layer in broken)
        where = f"{self.run}: {self.checkpoint} (step {self.step})"
        return f"{where}: non-finite values in {', '.join(names)}"

    def _failed_row(self) -> dict[str, Cell]:
        row: dict[str, Cell] = dict.fromkeys(COLUMNS)
        row |= {"run": self.run, "checkpoint": self.checkpoint, "step": self.step}
        return row | {"status": self.status, "message": self.message}

    def to_json(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the head and the body of its line in a journal."""
        head = {
            "kind": KIND,
            "run": self.run,
            "checkpoint": self.checkpoint,
            "step": self.step,
            "status": self.status,
            "finite": self.is_finite,
            "points": None if self.points is None else list(self.points),
            "facts": self.facts,
        }
        body = {
            "message": self.message,
            "layers": [_layer_json(layer, index) for index, layer in enumerate(self.layers)],
        }
        return head, body

    @classmethod
    def from_json(cls, head: dict[str, Any], body: dict[str, Any]) -> "CheckpointRecord":
        """Return the record that `to_json` described."""
        place = {"run": head["run"], "checkpoint": head["checkpoint"], "step": head["step"]}
        return cls(
            **place,
            layers=tuple(_layer(layer, place, index) for index, layer in enumerate(body["layers"])),
            status=head["status"],
            message=body["message"],
            facts=head["facts"],
            points=None if head["points"] is None else (head["points"][0], head["points"][1]),
        )


def check_against_settings(settings: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    """Check that a record's body has the layers, tolerances and columns of its settings.

    Settings of earlier versions may lack some of them.

    Raises:
        ValueError: If it does not; the message names the key.
    """
    layers = body["layers"]
    check_layers(settings, [one["layer"] for one in layers], "body.layers")
    for index, layer in enumerate(layers):
        key = f"body.layers[{index}]"
        wanted_facts = {name: settings.get(name) for name in ("wrt", "input_metric", "dtype")}
        # Of several sources, each entry of the layers names its own.
        wanted_facts["wrt"] = _own_source(settings, index, wanted_facts["wrt"])
        for name, value in wanted_facts.items():
            if value not in (None, layer[name]):
                raise ValueError(
                    f"{key}.{name}: expected {shown(value)}, as in the settings of its"
                    f" run, got {shown(layer[name])}"
                )
        found = [Tolerance(one["atol"], one["rtol"]).label for one in layer["ranks"]]
        if settings.get("tolerances") not in (None, found):
            wanted = ", ".join(settings["tolerances"])
            raise ValueError(
                f"{key}.ranks: expected {shown(wanted)}, as in the settings of its run, got"
                f" {shown(', '.join(found))}"
            )
        measures = set(settings.get("measures") or FIRST)
        if layer.get("evidence") is None and measures != set(layer["soft"]):
            raise ValueError(
                f"{key}.soft: expected {shown(', '.join(sorted(measures)))}, as in the settings of"
                f" its run, got {shown(', '.join(sorted(layer['soft'])))}"
            )
        for name in settings.get("optional_columns", ()):
            if name not in layer["cells"]:
                raise ValueError(f"{key}.cells.{name}: is missing")


def _own_source(settings: Mapping[str, Any], index: int, whole: Any) -> Any:
    layers = settings.get("layers")
    return layers[index].get("wrt", whole) if layers is not None else whole


def check_layers(settings: Mapping[str, Any], found: Sequence[str], key: str) -> None:
    """Check that the names of layers are those of the settings, in order.

    Raises:
        ValueError: If they are not; it names the key.
    """
    if settings.get("layers") is None:
        return
    wanted = [Call(one["name"], one.get("number", 1)).label for one in settings["layers"]]
    if wanted != list(found):
        raise ValueError(
            f"{key}: expected the layers {shown(', '.join(wanted))}, as in the settings of its run,"
            f" got {shown(', '.join(found))}"
        )


_SHARED = ("layer", "module", "n_in", "n_out", "wrt", "input_metric", "dtype", "method")


def _layer_json(layer: LayerRecord, index: int) -> dict[str, Any]:
    points = layer.points
    return {
        **{name: getattr(layer.facts, name) for name in _SHARED},
        "cells": dict(layer.cells),
        # Earlier versions had neither.
        **({"n_positions": points.n_positions} if points.n_positions > 1 else {}),
        **({"layer_index": layer.facts.layer_index} if layer.facts.layer_index != index else {}),
        "points": len(points.finite),
        "failed": _where([not flag for flag in points.finite]),
        "ranks": [
            {
                "atol": ranks.tolerance.atol,
                "rtol": ranks.tolerance.rtol,  # null: eps
                "rtol_used": ranks.rtol,
                "counts": list(ranks.counts),
                "near": _where(ranks.near),
                "undecided": _where(ranks.undecided),
                **({"cells": dict(layer.by_tolerance[row])} if layer.by_tolerance else {}),
            }
            for row, ranks in enumerate(points.ranks)
        ],
        "soft": {name: list(values) for name, values in points.soft.items()},
        **({"evidence": points.evidence.to_json()} if points.evidence is not None else {}),
    }


def _layer(saved: dict[str, Any], place: dict[str, Any], index: int) -> LayerRecord:
    if saved.get("evidence") is None:
        _check_measures(saved["soft"], place)
    layer_index, n_positions = saved.get("layer_index", index), saved.get("n_positions", 1)
    facts = LayerFacts(**place, **{name: saved[name] for name in _SHARED}, layer_index=layer_index)
    failed = set(saved["failed"])
    finite = tuple(point not in failed for point in range(saved["points"]))
    evidence = saved.get("evidence")
    n_points = sum(finite) * n_positions
    return LayerRecord(
        facts,
        PointMeasures(
            n_in=saved["n_in"],
            n_out=saved["n_out"],
            finite=finite,
            ranks=tuple(_ranks(ranks, n_points) for ranks in saved["ranks"]),
            soft={name: tuple(values) for name, values in saved["soft"].items()},
            n_positions=n_positions,
            evidence=None if evidence is None else Evidence.from_json(evidence),
        ),
        saved["cells"],
        tuple(ranks["cells"] for ranks in saved["ranks"] if "cells" in ranks),
    )


def _check_measures(saved: Mapping[str, Any], place: Mapping[str, Any]) -> None:
    if unknown := [name for name in saved if name not in AVERAGED]:
        raise SettingsError(
            f"{place['run']}: {place['checkpoint']} (step {place['step']}) was analyzed by another"
            f" version of localrank, with the measures {', '.join(unknown)}, which this one lacks.",
            "Use the version that wrote it, or analyze the series again with --overwrite.",
        )


def _ranks(saved: dict[str, Any], n_points: int) -> PointRanks:
    return PointRanks(
        tolerance=Tolerance(atol=saved["atol"], rtol=saved["rtol"]),
        rtol=saved["rtol_used"],
        counts=tuple(saved["counts"]),
        # Intervals have neither counts nor near values.
        near=_flags(saved["near"], n_points) if saved["counts"] else (),
        undecided=_flags(saved["undecided"], n_points),
    )


def _where(flags: tuple[bool, ...] | list[bool]) -> list[int]:
    return [index for index, flag in enumerate(flags) if flag]


def _flags(where: list[int], count: int) -> tuple[bool, ...]:
    there = set(where)
    return tuple(index in there for index in range(count))


def unsaved_message(names: Sequence[str]) -> str:
    """Return the message for parts of a network that no checkpoint holds; empty without any."""
    return f"--allow-unsaved: no checkpoint holds {', '.join(names)}" if names else ""
