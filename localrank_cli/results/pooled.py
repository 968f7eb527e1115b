"""The columns of `--pooled`, and the sums of a part of a checkpoint's points until they are merged.

Sums take megabytes, so they are stored in a file next to the journal and not in its lines: one for
each part of a checkpoint, written whole before the part's line. Whole checkpoints need none.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import escape
from json import dumps
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from localrank_cli.errors import OutputError, one_line
from localrank_cli.measures.pooled import pooled_measures
from localrank_cli.results.columns import ACTIVE_EFFECTIVE_RANK
from localrank_cli.results.record import CheckpointRecord, LayerRecord
from localrank_cli.results.write import replacing
from localrank_cli.spectrum.layer import EXACT_FLOAT32
from localrank_cli.spectrum.pooled import Block, PooledSpectrum, pooled_spectrum
from localrank_cli.validation import loads

FORMAT = 1
_ENTRY = "localrank_sums"


def with_pooled(layer: LayerRecord, spectrum: PooledSpectrum | None) -> LayerRecord:
    """Return a layer with the cells of its pooled matrices; empty ones without a point."""
    measures = pooled_measures(spectrum, [ranks.tolerance for ranks in layer.points.ranks])
    if measures is None:
        return layer
    cells = {**layer.cells, ACTIVE_EFFECTIVE_RANK: measures.active_effective_rank}
    by_tolerance = tuple(
        {
            "pooled_rank": one.pooled,
            "active_rank": one.active,
            "pooled_undecided": one.undecided,
        }
        for one in measures.ranks
    )
    return replace(layer, cells=cells, by_tolerance=by_tolerance)


def sums_path(target: Path, run: str, checkpoint: str, points: Sequence[int]) -> Path:
    """Return the path of the sums of a part of a checkpoint, beside its table."""
    digest = hashlib.sha256(dumps([run, checkpoint, list(points)]).encode()).hexdigest()
    return target.with_name(f"{target.name}.sums-{digest[:16]}.safetensors")


def remove_sums(target: Path) -> None:
    """Remove the sums of all parts beside a table."""
    for path in target.parent.glob(f"{escape(target.name)}.sums-*.safetensors"):
        path.unlink(missing_ok=True)


def write_sums(target: Path, record: CheckpointRecord) -> None:
    """Write the sums of a part of a checkpoint beside its table, whole or not at all."""
    assert record.points is not None
    tensors, counts = {}, []
    for index, layer in enumerate(record.layers):
        for number, block in enumerate(layer.blocks):
            tensors[f"{index}.{number}.total"] = block.total.cpu().contiguous()
            tensors[f"{index}.{number}.rows"] = block.rows.cpu().contiguous()
        counts.append([block.count for block in layer.blocks])
    about = {"format": FORMAT, **_identity(record), "counts": counts}
    path = sums_path(target, record.run, record.checkpoint, record.points)
    with replacing(path, binary=True) as stream:
        stream.write(save(tensors, metadata={_ENTRY: dumps(about)}))


def read_sums(target: Path, record: CheckpointRecord) -> list[list[Block]]:
    """Return the sums of a part of a checkpoint: for each layer, those of its blocks of points.

    Raises:
        OutputError: If the file is missing, damaged, or of other weights than the record.
    """
    assert record.points is not None
    path = sums_path(target, record.run, record.checkpoint, record.points)
    low, high = record.points
    what = f"points {low} to {high - 1} of {record.checkpoint} (step {record.step}) of"
    advice = f"Run the shard that writes {target.name} again: it computes what is missing."
    if not path.is_file():
        raise OutputError(
            f"{path}: is missing, with the sums for --pooled over {what} {record.run!r}.", advice
        )
    try:
        with safe_open(path, framework="pt") as file:
            of_layers = _counts((file.metadata() or {}).get(_ENTRY, ""), record)
            return [
                [_block(file, f"{index}.{number}", count) for number, count in enumerate(counts)]
                for index, counts in enumerate(of_layers)
            ]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path}: cannot be read as the sums over {what} {record.run!r} ({one_line(error)}).",
            f"Remove it. {advice}",
        ) from error


def _counts(text: str, record: CheckpointRecord) -> list[list[int]]:
    """Return the numbers of Jacobians in each block, by layer, if the sums are of a record."""
    about: Any = loads(text)
    if not isinstance(about, Mapping):
        raise ValueError("it holds no sums of localrank")
    for key, value in {"format": FORMAT, **_identity(record)}.items():
        if about.get(key) != value:
            raise ValueError(f"{key}: expected {value!r}, got {about.get(key)!r}")
    counts: list[list[int]] = about["counts"]
    if len(counts) != len(record.layers):
        raise ValueError(f"counts: expected {len(record.layers)} layers, got {len(counts)}")
    return counts


def _block(file: Any, key: str, count: object) -> Block:
    total, rows = file.get_tensor(f"{key}.total"), file.get_tensor(f"{key}.rows")
    if not isinstance(count, int) or total.ndim != 2 or rows.shape[1:] != total.shape[1:]:
        raise ValueError(f"{key}: has an unexpected shape")
    if {total.dtype, rows.dtype} != {torch.float64}:
        raise ValueError(f"{key}: is not in float64")
    return Block(total, rows, count)


def _identity(record: CheckpointRecord) -> dict[str, Any]:
    assert record.points is not None
    return {
        "run": record.run,
        "checkpoint": record.checkpoint,
        "points": list(record.points),
        "sha256_of_tensors": record.facts.get("sha256_of_tensors"),
        "layers": [[layer.facts.layer, layer.facts.wrt] for layer in record.layers],
    }


def with_sums(record: CheckpointRecord, parts: Sequence[list[list[Block]]]) -> CheckpointRecord:
    """Return a merged checkpoint with the cells of its pooled matrices.

    `parts` are the sums of its parts, in order of points.
    """
    layers = []
    for index, layer in enumerate(record.layers):
        precision = torch.float32 if layer.facts.method == EXACT_FLOAT32 else torch.float64
        blocks = (block for part in parts for block in part[index])
        layers.append(with_pooled(layer, pooled_spectrum(blocks, layer.facts.n_out, precision)))
    return replace(record, layers=tuple(layers))
