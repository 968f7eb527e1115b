"""Columns on a layer's outputs and weight, beside those on its Jacobians: `--beside`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.errors import BudgetError, SettingsError, listed, printable, readable
from localrank_cli.layers.capture import Call
from localrank_cli.layers.survey import CallRecord
from localrank_cli.measures.beside import (
    OutputRanks,
    output_ranks,
    sample_bytes,
    weight_bytes,
    weight_matrix,
    weight_ranks,
)
from localrank_cli.options.resolve import Settings
from localrank_cli.results.columns import (
    BESIDE_ACTIVATIONS,
    BESIDE_CLASSES,
    BESIDE_NOTE,
    BESIDE_WEIGHTS,
    Cell,
)
from localrank_cli.spectrum.examine import Examination

ACTIVATIONS, WEIGHTS = "activations", "weights"
_FEWEST = 2  # samples that can differ
_MEASURES = ("effective_rank", "participation_ratio")


@dataclass(frozen=True)
class BesidePlan:
    """What is measured beside the Jacobians."""

    activations: bool = False
    weights: bool = False
    classes: Tensor | None = None  # labels of the points that the outputs are of
    # Entries of each call's output at each position, (positions, features); none: the whole output.
    places: Mapping[Call, Tensor] = field(default_factory=dict)
    epsilon: float = 0.0  # relative rounding of outputs
    tied: Mapping[str, str] = field(default_factory=dict)  # by key, another key of one parameter

    @property
    def columns(self) -> tuple[str, ...]:
        """The optional columns that this fills."""
        if not self.activations and not self.weights:
            return ()
        return (
            *(BESIDE_ACTIVATIONS if self.activations else ()),
            *(BESIDE_CLASSES if self.activations and self.classes is not None else ()),
            *(BESIDE_WEIGHTS if self.weights else ()),
            BESIDE_NOTE,
        )

    def of_outputs(self, record: CallRecord, outputs: Tensor) -> dict[str, Cell]:
        """Return the cells on outputs, (points, numel); their note is one of the cells."""
        if not self.activations:
            return {}
        samples, classes = outputs, self.classes
        places = self.places.get(record.call)
        if places is not None:
            samples = outputs[:, places].flatten(0, 1)
            classes = None if classes is None else classes.repeat_interleave(len(places))
        cells: dict[str, Cell] = {
            "activation_samples": samples.shape[0],
            "activation_ceiling": min(samples.shape),
        }
        if not bool(torch.isfinite(samples).all()):
            return cells | {BESIDE_NOTE: "activations: not finite"}
        found = output_ranks(samples, self.epsilon)
        at_ceiling = list(found.at_ceiling)
        cells |= {f"activation_{name}": getattr(found, name) for name in _MEASURES}
        if classes is not None:
            by_class = {
                label: output_ranks(rows, self.epsilon)
                for label, rows in _split(samples, classes)
                if len(rows) >= _FEWEST
            }
            cells |= _class_cells(by_class, classes)
            at_ceiling += [
                f"{name}({label})" for label, one in by_class.items() for name in one.at_ceiling
            ]
        return {**cells, "activation_at_ceiling": "+".join(at_ceiling)}

    def of_weights(
        self, model: nn.Module, records: Iterable[CallRecord], point: Tensor
    ) -> dict[str, dict[str, Cell]]:
        """Return the cells on the weight of each layer, by its name; notes are among the cells.

        A weight that is no parameter may be computed by a hook or a forward pass (old weight_norm,
        pruning), so the network runs at `point`, (1, ...), to have it up to date.
        """
        if not self.weights:
            return {}
        modules = {name: model.get_submodule(name) for name in {one.call.name for one in records}}
        found: dict[str, Tensor | str] = {}
        handles = [
            module.register_forward_hook(partial(_read_weight, found, name))
            for name, module in modules.items()
            if _is_computed(module)
        ]
        if handles:
            try:
                with torch.no_grad():
                    model(point.clone())
            finally:
                for handle in handles:
                    handle.remove()
        return {
            name: self._of_weight(found.get(name, weight_matrix(module)), name)
            for name, module in modules.items()
        }

    def _of_weight(self, matrix: Tensor | str, name: str) -> dict[str, Cell]:
        if isinstance(matrix, str):
            return {BESIDE_NOTE: f"weights: {matrix}"}
        cells: dict[str, Cell] = {"weight_ceiling": min(matrix.shape)}
        if not bool(torch.isfinite(matrix).all()):
            return cells | {BESIDE_NOTE: "weights: not finite"}
        found = weight_ranks(matrix)
        cells |= {
            "weight_effective_rank": found.effective_rank,
            "weight_stable_rank": found.stable_rank,
            "weight_spectral_norm": found.spectral_norm,
        }
        other = self.tied.get(f"{name}.weight")
        return cells | ({} if other is None else {BESIDE_NOTE: f"weights: tied to {other}"})


def _is_computed(module: nn.Module) -> bool:
    """Return whether a weight is an attribute that a hook or a forward pass may replace."""
    return isinstance(vars(module).get("weight"), Tensor)


def _read_weight(
    found: dict[str, Tensor | str], name: str, module: nn.Module, _args: Any, _output: Any
) -> None:
    matrix = weight_matrix(module)
    found[name] = matrix if isinstance(matrix, str) else matrix.clone()


def both(first: Mapping[str, Cell], second: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return the cells on outputs and weight with the notes of both."""
    if not first and not second:
        return {}
    notes = [str(one[BESIDE_NOTE]) for one in (first, second) if one.get(BESIDE_NOTE)]
    return {**first, **second, BESIDE_NOTE: "; ".join(notes)}


def _split(samples: Tensor, classes: Tensor) -> Iterable[tuple[int, Tensor]]:
    for label in _labels(classes):
        yield label, samples[classes == label]


def _labels(classes: Tensor) -> list[int]:
    return sorted(set(classes.tolist()))


def _class_cells(by_class: Mapping[int, OutputRanks], classes: Tensor) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for name in _MEASURES:
        values = {label: float(getattr(one, name)) for label, one in by_class.items()}
        mean = math.fsum(values.values()) / len(values) if values else None
        cells[f"activation_class_{name}"] = mean
        cells[f"activation_{name}_by_class"] = " ".join(
            f"{label}={value:.9g}" for label, value in values.items()
        )
    single = [label for label in _labels(classes) if label not in by_class]
    if single:
        cells[BESIDE_NOTE] = f"activations: one sample of class {listed(single, 4)}"
    return cells


@dataclass(frozen=True)
class BesideNeed:
    """The memory that the columns of one layer take."""

    layer: str
    what: str  # is measured: `1000 outputs`, `the weight`
    n_bytes: int


def plan_beside(
    settings: Settings,
    tied: Sequence[Sequence[str]],
    examination: Examination,
    classes: Tensor | None,
    *,
    is_low: bool,
) -> BesidePlan:
    """Return what is measured beside the Jacobians of a network.

    Args:
        settings: Of the series.
        tied: The keys of each parameter that has several.
        examination: The chosen layers.
        classes: The labels of the points that the outputs are of, if there are any.
        is_low: Whether the network computes with less precision than the analysis.
    """
    asked = settings.sampling.beside
    places = {}
    if not settings.selection.positions.is_all:
        for view in examination.views:
            for call, axes in view.axes.items():
                places[call] = axes.entries(torch.arange(axes.n_positions))
    return BesidePlan(
        activations=ACTIVATIONS in asked,
        weights=WEIGHTS in asked,
        classes=classes,
        places=places,
        epsilon=torch.finfo(torch.float32 if is_low else settings.dtype).eps,
        tied={key: next(one for one in keys if one != key) for keys in tied for key in keys},
    )


def beside_needs(
    plan: BesidePlan, model: nn.Module, examination: Examination, n_points: int
) -> list[BesideNeed]:
    """Return the memory that each layer's columns take, on outputs at so many points."""
    needs = []
    for record in examination.records:
        label = record.call.label
        if plan.activations:
            whole = examination.survey.find(record.call) or record
            places = plan.places.get(record.call)
            rows, entries = n_points, whole.numel
            if places is not None:
                rows, entries = n_points * places.shape[0], places.shape[1]
            needs.append(BesideNeed(label, f"{rows} outputs", sample_bytes(rows, entries)))
        matrix = weight_matrix(model.get_submodule(record.call.name)) if plan.weights else ""
        if not isinstance(matrix, str):
            needs.append(BesideNeed(label, "the weight", weight_bytes(matrix)))
    return needs


def check_beside(plan: BesidePlan, needs: Sequence[BesideNeed], n_points: int, memory: int) -> None:
    """Check that there are samples to compare, and that all fits in memory.

    Raises:
        SettingsError: If there is a single point.
        BudgetError: If the budget is too small.
    """
    if plan.activations and n_points < _FEWEST:
        raise SettingsError(
            "--beside activations: the ranks describe how points differ, and there is only one"
            " point.",
            "Give data of two or more points, or leave out activations.",
        )
    if not needs:
        return
    largest = max(needs, key=lambda one: one.n_bytes)
    if largest.n_bytes > memory:
        fewer = "Ask for fewer --information-points, give" if plan.activations else "Give"
        raise BudgetError(
            f"--beside: {largest.what} of layer {printable(largest.layer)!r} need"
            f" {readable(largest.n_bytes)}, but the budget is {readable(memory)}.",
            f"{fewer} more --memory, or leave the layer out with --exclude.",
        )
