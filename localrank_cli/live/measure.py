"""Measure a network or a state dict in memory."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from localrank_cli.checkpoints.content import Content, State, integer
from localrank_cli.checkpoints.frameworks import unwrap
from localrank_cli.checkpoints.names import MAX_STEP, step_fault
from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.errors import Note, UsageError, shortened
from localrank_cli.live.copied import bare_network, copy_of
from localrank_cli.live.data import first_points
from localrank_cli.live.process import process_unchanged
from localrank_cli.machine import pick_device
from localrank_cli.model.twice import Given
from localrank_cli.options.folder import FolderSettings
from localrank_cli.options.needs import HF
from localrank_cli.options.read import PYTHON, ArgumentError, read_options
from localrank_cli.options.resolve import resolve, with_folder
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.points.source import check_source, load_points
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.compute import run_plan
from localrank_cli.run.plan import Plan, plan_held

_MODEL, _WEIGHTS = "the model", "the state dict"  # in place of the path of a file
_NETWORK = "a network (nn.Module) or a state dict"

Network = nn.Module | Mapping[str, Any]


def live_options(data: object, options: Mapping[str, Any]) -> AnalyzeOptions:
    """Read the options of a measurement, and take the points of a Dataset or DataLoader.

    Raises:
        LocalrankError: If one cannot be used, or there are no data.
    """
    if data is None:
        raise UsageError(
            "there are no data to draw points from.",
            "Pass a tensor with the points on its first axis, a Dataset or a DataLoader;"
            " data='normal:784' draws random points of that shape.",
        )
    values = {"checkpoints": (_MODEL,), **options}
    with process_unchanged():  # where tensors are made on the CPU, and a dataset may draw
        chosen = read_options(AnalyzeOptions, values, PYTHON)  # before a dataset is read
        if chosen.model == HF:
            raise UsageError(
                "model='hf' builds a network from the config.json next to a file, but weights in"
                " memory have none.",
                "Pass the network itself, or model=lambda: AutoModel.from_config(config).",
            )
        points = first_points(data, chosen.points)
        return read_options(AnalyzeOptions, {**values, "data": points}, PYTHON)


def check_setting(options: AnalyzeOptions) -> None:
    """Check device and data as far as they can be without a network.

    Raises:
        LocalrankError: If they cannot be used.
    """
    pick_device(options.device or "auto")
    source = resolve(with_folder(options, FolderSettings(), Path())).source
    if isinstance(source.array, Tensor) or source.is_drawn:
        load_points(source)
    elif source.array is None:
        check_source(source.text)
        if source.path is not None and not source.path.exists():
            load_points(source)  # which says so


def network_of(given: object, options: dict[str, Any]) -> Network:
    """Return the network to measure, which may be given as the option `model`.

    Raises:
        ArgumentError: If there is none, or two.
    """
    if given is None:
        given = options.pop("model", None)
    if isinstance(given, nn.Module) and options.get("model") is not None:
        raise ArgumentError(
            "model=: the network has already been given.",
            "Leave it out; it names the network of a state dict.",
        )
    if isinstance(given, nn.Module | Mapping):
        return given
    kind = "nothing" if given is None else f"a {type(given).__name__}"
    advice = "Pass the network: local_rank(network, data)."
    if isinstance(given, type) or callable(given):
        advice = "Call it, and pass the network that it returns."
    elif isinstance(given, str | Path):
        advice = "Files are read by localrank_cli.analyze(path, data=...)."
    raise ArgumentError(f"local_rank: expected {_NETWORK}, got {kind}.", advice)


def step_of(given: object) -> int:
    """Return a step as an integer; tensors and whole floats are accepted too.

    Raises:
        ArgumentError: If it is none.
    """
    found = integer(int(given) if isinstance(given, np.integer) else given)
    if found is None or step_fault(found):
        raise ArgumentError(
            f"step={shortened(repr(given))}: expected a step from 0 to {MAX_STEP}.",
            "Pass the number of steps of the optimizer so far.",
        )
    return found


def measure(
    network: Network,
    options: AnalyzeOptions,
    place: tuple[str, int],
    note: Note,
) -> tuple[Plan, CheckpointRecord]:
    """Measure a network at a run and step, and return what was planned and found."""
    with process_unchanged():
        if isinstance(network, nn.Module):
            plan = plan_network(network, options, place, note)
        else:
            plan = plan_weights(network, options, place, note)
        return plan, record_of(plan, note)


def plan_network(
    network: nn.Module,
    options: AnalyzeOptions,
    place: tuple[str, int],
    note: Note,
    weights: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan the measurement of a copy of a network; `weights` replace its own."""
    bare = bare_network(network, _MODEL)
    given = Given(copy_of(bare, _MODEL), type(bare).__qualname__)
    content = Content({"": weights_of(bare)}) if weights is None else _content(weights)
    name = _MODEL if weights is None else _WEIGHTS
    return plan_held(replace(options, model=given), _file(name, content, place[1]), place[0], note)


def plan_weights(
    weights: Mapping[str, Any], options: AnalyzeOptions, place: tuple[str, int], note: Note
) -> Plan:
    """Plan the measurement of a state dict, for the network of the option `model`."""
    return plan_held(options, _file(_WEIGHTS, _content(weights), place[1]), place[0], note)


def record_of(plan: Plan, note: Note) -> CheckpointRecord:
    """Measure the one checkpoint of a plan."""
    (record,) = run_plan(plan, note)
    return record


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network's state dict, on the CPU."""
    state: Mapping[str, Any] = network.state_dict()
    return {
        str(key): value.detach().cpu() for key, value in state.items() if isinstance(value, Tensor)
    }


def _content(weights: Mapping[str, Any]) -> Content:
    found = unwrap(dict(weights), Path(_WEIGHTS))
    states: dict[str, State] = {
        key: {name: tensor.detach().cpu() for name, tensor in state.items()}
        for key, state in found.states.items()
    }
    return replace(found, states=states)


def _file(name: str, content: Content, step: int) -> CheckpointFile:
    content = replace(content, step=step, step_source="step", epoch=None)
    return CheckpointFile(Path(name), f"step_{step}", held=content)
