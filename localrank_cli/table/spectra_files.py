"""Singular values on the disk: a safetensors file for each checkpoint."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from localrank_cli.errors import UnreadableError
from localrank_cli.spectrum.spectra import LayerSpectrum, Scale
from localrank_cli.spectrum.svd import rounding
from localrank_cli.table.columns import SCALE
from localrank_cli.table.record import CheckpointRecord
from localrank_cli.table.rows import LayerFacts
from localrank_cli.table.write import replacing

FORMAT = 1
_ENTRY = "localrank_spectra"


@dataclass(frozen=True)
class KeptLayer:
    """One layer at one checkpoint, as kept."""

    facts: LayerFacts
    n_columns: int  # of the measured matrix: of J, or of J L in a metric
    cells: Mapping[str, Any]  # optional columns
    values: Tensor  # (points, min(n_out, n_columns)), float64, descending; NaN: not finite
    scale: Scale | None  # what relative tolerances refer to; None: the first of the values

    @property
    def spectrum(self) -> LayerSpectrum:
        """What the measures are made of."""
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
        )


@dataclass(frozen=True)
class KeptCheckpoint:
    """One checkpoint, as kept."""

    path: Path
    settings: Mapping[str, Any]  # of its series
    layers: tuple[KeptLayer, ...]


def spectra_path(folder: Path, run: str, step: int) -> Path:
    """Where the singular values of a checkpoint stand.

    Args:
        folder: Of all of them.
        run: Name of the series.
        step: Of the checkpoint.

    Returns:
        `folder/run/step_N.safetensors`.
    """
    return folder / run.strip("/") / f"step_{step}.safetensors"


def write_spectra(
    path: Path,
    record: CheckpointRecord,
    spectra: Sequence[LayerSpectrum],
    settings: Mapping[str, Any],
) -> None:
    """Writes the singular values of a checkpoint, whole or not at all.

    Args:
        path: The file.
        record: Of the same checkpoint.
        spectra: Of its layers, in order.
        settings: Of its series.
    """
    tensors = {
        _name(layer.facts): spectrum.computed.contiguous()
        for layer, spectrum in zip(record.layers, spectra, strict=True)
    }
    for layer, spectrum in zip(record.layers, spectra, strict=True):
        if spectrum.scale is not None:
            both = [spectrum.scale.values, spectrum.scale.rounding]
            tensors[_name(layer.facts) + SCALE] = torch.stack(both)
    about = {
        "format": FORMAT,
        "entries": [
            asdict(layer.facts) | {"n_columns": spectrum.n_in, "cells": dict(layer.cells)}
            for layer, spectrum in zip(record.layers, spectra, strict=True)
        ],
        "settings": dict(settings),
        "point_indices": {record.run: settings["point_indices"]},
    }
    with replacing(path, binary=True) as stream:
        stream.write(save(tensors, metadata={_ENTRY: json.dumps(about)}))


def read_spectra(path: Path) -> KeptCheckpoint:
    """Reads what `write_spectra` wrote.

    Args:
        path: The file.

    Returns:
        The checkpoint.

    Raises:
        UnreadableError: If it is no such file, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_ENTRY])
            layers = [_layer(entry, file) for entry in about["entries"]]
        if about["format"] == FORMAT:
            return KeptCheckpoint(path, about["settings"], tuple(layers))
        reason = f"format {about['format']}"
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    raise UnreadableError(
        f"{path}: holds no singular values of localrank ({reason}).",
        "Name a folder that was written with --spectra.",
    )


def _layer(entry: dict[str, Any], file: Any) -> KeptLayer:
    n_columns, cells = entry.pop("n_columns"), entry.pop("cells")
    facts = LayerFacts(**entry)
    name, scale = _name(facts), None
    if name + SCALE in file.keys():  # noqa: SIM118  # safetensors' file is no mapping
        scale = Scale(*file.get_tensor(name + SCALE))
    return KeptLayer(facts, n_columns, cells, file.get_tensor(name), scale)


def find_spectra(folder: Path) -> Iterator[Path]:
    """Finds all files of a folder of singular values.

    Args:
        folder: As given to `--spectra`.

    Yields:
        Files, in order of run, not of step.
    """
    yield from sorted(folder.rglob("step_*.safetensors"))


def _name(facts: LayerFacts) -> str:
    return f"{facts.run}\t{facts.step}\t{facts.layer}"
