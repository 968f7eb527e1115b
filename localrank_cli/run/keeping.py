"""Check that a network keeps nothing of one checkpoint when the next one is loaded."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError, ModelError, Note, cause
from localrank_cli.jacobian.guards import agreement, close
from localrank_cli.layers.capture import Capture
from localrank_cli.layers.precision import run_alike
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.model.build import existing_modules, move_model
from localrank_cli.model.fill import Expected, fill_model
from localrank_cli.model.twice import Builder
from localrank_cli.options.resolve import ModelChoice
from localrank_cli.points.files import file_hash
from localrank_cli.run.headers import PlannedCheckpoint
from localrank_cli.run.plan import SeriesPlan
from localrank_cli.seeds import SEED, seeded
from localrank_cli.userimport import CodeError, CodeSpec, import_object

_UNCHECKED = "could not check that the network keeps nothing between checkpoints"


class KeptValuesError(ModelError):
    """A network whose numbers depend on the checkpoints that were loaded before."""


@dataclass
class Loads:
    """The checkpoints that one process loads into the networks of its series."""

    weights: dict[str, set[str]] = field(default_factory=dict)  # run -> hashes of its weights
    checked: set[str] = field(default_factory=set)  # runs whose network needs no more comparison

    def check(
        self,
        series: SeriesPlan,
        checkpoint: PlannedCheckpoint,
        weights: tuple[str, Mapping[str, Tensor]],
        point: Tensor,
        note: Note,
    ) -> None:
        """Compare a network with a new one, until a checkpoint with other weights was compared.

        The network of `series` is filled with the checkpoint, and ran with earlier ones. `weights`
        are the checkpoint's hash and state dict; `point` has shape (1, ...).

        Raises:
            KeptValuesError: If they differ by more than rounding.
        """
        choice, (digest, state) = series.settings.model, weights
        if choice.is_hf or choice.is_inferred or series.run in self.checked:
            return
        seen = self.weights.setdefault(series.run, set())
        seen.add(digest)
        if checkpoint.file.name in series.examined:
            return
        try:
            new = _new_network(choice, series)
        except LocalrankError as error:
            note(f"{_UNCHECKED}: {error.what}")
            new = None
        if new is not None:
            if series.points.inputs is not None:
                series.points.inputs.install(new)
            move_model(new, point.device, series.settings.dtype)
            fill_model(new, Expected(new), state, checkpoint.place)
            run_alike(series.model, new)
            try:
                layer = _first_difference(series, new, point)
            except Exception as error:  # the user's code may raise anything
                note(f"{_UNCHECKED}: {cause(error)}")
                return
            if layer:
                raise KeptValuesError(
                    f"{checkpoint.place}: the network keeps values of one checkpoint when the next"
                    f" is loaded: at layer {layer!r} it differs from a new network with the same"
                    " weights.",
                    "Look for a cache that is filled in the forward pass, and compute it there each"
                    " time, or clear it in load_state_dict; or analyze one checkpoint per command"
                    f" (--steps {checkpoint.step}:{checkpoint.step}).",
                )
        if len(seen) > 1:
            self.checked.add(series.run)


def _first_difference(series: SeriesPlan, new: nn.Module, point: Tensor) -> str:
    """Return the label of the first layer whose outputs differ; empty where none does."""
    calls = [record.call for record in series.examination.records]
    dtype = series.settings.dtype
    rounding = agreement(dtype, series.examination.survey.has_low_values)
    found: list[tuple[Tensor, ...]] = []
    for model in (series.model, new):
        with analysis_setting(model, dtype), torch.no_grad():
            found.append(Capture(model, calls)(point))
    for call, ours, theirs in zip(calls, found[0], found[1], strict=True):
        if not close(theirs, ours, rounding):
            return call.label
    return ""


def _new_network(choice: ModelChoice, series: SeriesPlan) -> nn.Module:
    existing = existing_modules()
    factory: Any = choice.factory
    if choice.code is not None:
        factory = _imported_again(choice.code, series.model_facts.get("model_sha256"))
    name = f"--model {choice.description}"
    builder = Builder(factory, choice.arguments, name, existing, recorded=series.recorded)
    return builder.build(SEED).model


def _imported_again(code: CodeSpec, sha256: object) -> object:
    """Return the object of a file that runs again, without what its module holds by now.

    The file may have been edited since the run began, or refuse to run twice (a registry): then the
    object of the first import is returned.
    """
    if not code.is_file:
        return import_object(code, "--model")
    before = dict(sys.modules)
    try:
        with suppress(CodeError, OSError), seeded(SEED):  # the first import is used instead
            if file_hash(Path(code.place)) == sha256:
                return import_object(code, "--model")
    finally:
        sys.modules.update(before)
    place = str(Path(code.place).resolve())
    for module in before.values():
        if getattr(module, "__file__", None) == place:
            return reduce(getattr, code.name.split("."), module)
    raise CodeError(f"{code.place}: changed since the run began.")
