"""Files of singular values: a safetensors file for each checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from json import dumps
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from localrank_cli.errors import DataError, OutputError, cause, one_line
from localrank_cli.results.record import CheckpointRecord, LayerFacts, check_layers
from localrank_cli.results.schema import SpectraFile, check
from localrank_cli.results.write import replacing
from localrank_cli.spectrum.layer import LayerSpectrum, Scale
from localrank_cli.spectrum.pooled import PooledSpectrum
from localrank_cli.spectrum.svd import rounding
from localrank_cli.validation import loads, shown

FORMAT = 1
_ENTRY = "localrank_spectra"
_FILES = "step_*.safetensors"
_FACTS = tuple(one.name for one in fields(LayerFacts))
# Facts that counting does not need, and that a file may lack.
_DEFAULTS: dict[str, Any] = {
    "module": "", "wrt": "", "input_metric": "", "dtype": "float64", "method": "exact",
}  # fmt: skip
_SCALE = "\tsigma_1"  # behind a layer's name: that of the whole Jacobian and its rounding
# What --pooled adds for each layer: singular values of E[J], square roots of the eigenvalues of
# E[J^T J], and how far they may be off.
_MEAN, _ACTIVE, _ROUNDING = "\tpooled", "\tactive", "\tpooled rounding"


@dataclass(frozen=True)
class LayerValues:
    """The singular values of one layer at one checkpoint, read from a file."""

    facts: LayerFacts
    n_columns: int  # of the measured matrix: of J, or of J L in a metric
    cells: Mapping[str, Any]  # optional columns
    values: Tensor  # (points, min(n_out, n_columns)), float64, descending; NaN: not finite
    scale: Scale | None  # what relative tolerances refer to; None: the first of the values
    n_positions: int = 1  # Jacobians of each point
    pooled: PooledSpectrum | None = None  # where --pooled kept it, and a point counts

    @property
    def spectrum(self) -> LayerSpectrum:
        """The spectrum from which measures are computed."""
        low = self.facts.method != "exact"
        precision = torch.float32 if low else torch.float64
        longest = max(self.facts.n_out, self.n_columns)
        return LayerSpectrum(
            layer=self.facts.layer,
            module=self.facts.module,
            n_out=self.facts.n_out,
            n_in=self.n_columns,
            computed=self.values,
            rounding=rounding(self.values[:, 0], longest, precision),
            method=self.facts.method,
            n_varied=self.facts.n_in,
            scale=self.scale,
            n_positions=self.n_positions,
            wrt=self.facts.wrt,
            layer_index=self.facts.layer_index,
        )


@dataclass(frozen=True)
class CheckpointValues:
    """The singular values of one checkpoint, read from a file."""

    path: Path
    settings: Mapping[str, Any]  # of its series
    layers: tuple[LayerValues, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)  # for the manifest; the file's and hash


def spectra_path(folder: Path, run: str, step: int) -> Path:
    """Return the path of a checkpoint's singular values: `folder/run/step_N.safetensors`."""
    return folder / run.strip("/") / f"step_{step}.safetensors"


def write_spectra(
    path: Path,
    record: CheckpointRecord,
    spectra: Sequence[LayerSpectrum],
    settings: Mapping[str, Any],
) -> None:
    """Write the singular values of a checkpoint's layers, whole or not at all."""
    tensors, entries = {}, []
    for layer, spectrum in zip(record.layers, spectra, strict=True):
        name, scale = _name(layer.facts), spectrum.scale
        if name in tensors:  # with respect to another source
            name += f"\t{layer.facts.wrt}"
        tensors[name] = spectrum.computed.contiguous()
        if scale is not None:
            tensors[name + _SCALE] = torch.stack([scale.values, scale.rounding])
        if spectrum.pooled is not None:
            tensors |= _pooled_tensors(name, spectrum.pooled)
        entries.append({
            **asdict(layer.facts), "n_columns": spectrum.n_in, "cells": dict(layer.cells),
            "n_positions": spectrum.n_positions, "key": name,
        })  # fmt: skip
    about = {
        "format": FORMAT,
        "entries": entries,
        "settings": dict(settings),
        "facts": record.facts,
        "point_indices": {record.run: settings["point_indices"]},
    }
    check_ours(path)  # it may be there only now
    with replacing(path, binary=True) as stream:
        stream.write(save(tensors, metadata={_ENTRY: dumps(about)}))


def check_ours(path: Path) -> None:
    """Check that a file of singular values would replace nothing but another one.

    `--spectra .` places the values of a series exactly where its checkpoints are.

    Raises:
        OutputError: If something else is there.
    """
    if not path.exists():
        return
    try:
        if path.is_file():  # opening a pipe would wait for its other end
            with safe_open(path, framework="pt") as file:
                if _ENTRY in (file.metadata() or {}):
                    return
    except (OSError, SafetensorError):  # it cannot be one of ours, or is damaged
        pass
    raise OutputError(
        f"{path}: is not a file of singular values, and --spectra would replace it with one.",
        "Name another folder with --spectra; or remove the file if it is a damaged one of that"
        " folder.",
    )


def read_spectra(path: Path) -> CheckpointValues:
    """Read a file that `write_spectra` wrote.

    Raises:
        DataError: If it is no such file, or damaged.
    """
    with opened(path) as (tensors, about):
        layers = tuple(read_layer(entry, tensors) for entry in about["entries"])
        _check_one_checkpoint(about, layers)
        return CheckpointValues(path, about["settings"], layers, about.get("facts", {}))


def _check_one_checkpoint(about: Mapping[str, Any], layers: Sequence[LayerValues]) -> None:
    """Check that all layers are of one checkpoint, and of the series whose settings are there."""
    settings = about.get("settings") or {}
    for key in ("run", "noise", "point_indices"):
        if settings.get(key) is None:
            raise ValueError(f"settings.{key}: is missing")
    found = {(one.facts.run, one.facts.checkpoint, one.facts.step) for one in layers}
    if len(found) != 1 or {run for run, _, _ in found} != {settings["run"]}:
        raise ValueError(f"entries: expected layers of one checkpoint of {settings['run']!r}")
    check_layers(settings, [one.facts.layer for one in layers], "entries")
    for index, layer in enumerate(layers):
        place = index if index == 0 else layers[index - 1].facts.layer_index + 1
        same = index > 0 and layers[index - 1].facts.layer == layer.facts.layer
        if layer.facts.layer_index != place - same:
            raise ValueError(f"entries[{index}].layer_index: expected {place - same}")
        n_rows = len(settings["point_indices"]) * layer.n_positions
        wanted = (n_rows, min(layer.facts.n_out, layer.n_columns))
        if tuple(layer.values.shape) != wanted:
            raise ValueError(
                f"{layer.facts.layer}: expected singular values of shape {wanted}, got"
                f" {tuple(layer.values.shape)}"
            )


@contextmanager
def opened(path: Path) -> Iterator[tuple["Tensors", dict[str, Any]]]:
    """Open a file of singular values, and turn every fault in it into one error.

    Yields:
        Its tensors, for `read_layer`, and its metadata: `entries` has one item for each layer.

    Raises:
        DataError: If it is no such file, or damaged.
    """
    advice = "Name a folder that was written with localrank analyze --spectra FOLDER."
    if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
        raise DataError(f"{path}: is not a regular file.", "Remove it.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY)
            if text is None:
                raise DataError(f"{path}: holds no singular values written by localrank.", advice)
            about: Any = loads(text, non_finite=True)
            if about["format"] != FORMAT:
                raise DataError(
                    f"{path}: has format {shown(about['format'])}, and this version reads"
                    f" {FORMAT}.",
                    "Use the version of localrank that wrote it.",
                )
            check(SpectraFile, about)
            yield Tensors(file), about
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read ({reason}).", "Check the name.") from error
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        reason = one_line(error) if type(error) is ValueError else cause(error)
        raise DataError(
            f"{path}: holds no singular values written by localrank ({reason}).", advice
        ) from error


class Tensors:
    """The tensors of an open file, whose names are read once: each time takes as long as all."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, frozenset(file.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self._file.get_tensor(name)
        return found


def read_layer(entry: Mapping[str, Any], tensors: Tensors) -> LayerValues:
    """Read the layer of one of the `entries` of an open file."""
    named = {name: entry[name] for name in _FACTS if name in entry}
    facts = LayerFacts(**(_DEFAULTS | named))
    name, scale = entry.get("key") or _name(facts), None
    if name + _SCALE in tensors:
        scale = Scale(*tensors[name + _SCALE])
    values = tensors[name].double()
    if values.ndim != 2:
        raise ValueError(f"{name!r} has shape {tuple(values.shape)}")
    # In the file's order they are descending; the measures take the first as the largest.
    values = values.sort(dim=1, descending=True).values
    n_columns = entry.get("n_columns", facts.n_in)
    n_positions = entry.get("n_positions", 1)
    pooled = None
    if name + _MEAN in tensors:
        mean, active, bound = (tensors[name + end] for end in (_MEAN, _ACTIVE, _ROUNDING))
        pooled = PooledSpectrum(mean, active, float(bound), (facts.n_out, n_columns))
    cells = entry.get("cells", {})
    return LayerValues(facts, n_columns, cells, values, scale, n_positions, pooled)


def _pooled_tensors(name: str, pooled: PooledSpectrum) -> dict[str, Tensor]:
    bound = torch.tensor(pooled.rounding, dtype=torch.float64, device="cpu")
    named = {_MEAN: pooled.mean, _ACTIVE: pooled.active, _ROUNDING: bound}
    return {name + end: tensor.contiguous() for end, tensor in named.items()}


def find_spectra(folder: Path) -> Iterator[Path]:
    """Yield all files of a `--spectra` folder, in order of run, not of step."""
    yield from sorted(folder.rglob(_FILES))


def is_spectra(name: str) -> bool:
    """Return whether a file in the folder of a run has the name of singular values."""
    return fnmatchcase(name, _FILES)


def _name(facts: LayerFacts) -> str:
    return f"{facts.run}\t{facts.step}\t{facts.layer}"
