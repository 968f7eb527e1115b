"""List the contents of a folder and the missing settings, without a model or data."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.content import State
from localrank_cli.checkpoints.factors import without_factors
from localrank_cli.checkpoints.folders import DCP_METADATA
from localrank_cli.checkpoints.formats import TORCH, format_of
from localrank_cli.checkpoints.series import (
    CheckpointFile,
    find_checkpoints,
)
from localrank_cli.checkpoints.sharded import is_index
from localrank_cli.checkpoints.torch_file import load_torch
from localrank_cli.checkpoints.weights import RAW, without_wrappers
from localrank_cli.errors import (
    LocalrankError,
    ModelError,
    Note,
    UnreadableError,
    listed,
    printable,
)
from localrank_cli.model.mlp import infer_mlp, layer_groups
from localrank_cli.options.needs import (
    HF,
    HfConfig,
    Need,
    find_hf_config,
    hf_needs,
    need_of_data,
    need_of_wrt,
    refusal,
)
from localrank_cli.options.resolve import ModelChoice, SeriesOptions
from localrank_cli.remote.places import attached
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.activation import given_activation, with_held_activation
from localrank_cli.run.headers import Failures, HeaderContext, Headers
from localrank_cli.run.network import embedding_of_hf, networks_in

# Names of embeddings of tokens: wte, embed_tokens, word_embeddings, tok_emb, embedding, embed_in.
_EMBEDDING = re.compile(r"^(?:wte|embed(?:ding)?s?|tok(?:en)?s?_?emb\w*|embed_(?:tokens|in)|"
                        r"word_emb\w*|shared)$")  # fmt: skip


@dataclass(frozen=True)
class CheckpointLine:
    """What `inspect` reports of a checkpoint."""

    checkpoint: str
    step: int | None
    weights: str  # key of the state dict in the file; "" for a bare one
    taken_off: str  # description of what is stripped from the names of the weights
    problem: str = ""  # why it cannot be analyzed


@dataclass(frozen=True)
class KeyLine:
    """An entry of the state dict."""

    key: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """What `inspect` reports of a series whose model or data are not given."""

    run: str
    folder: str
    checkpoints: tuple[CheckpointLine, ...]
    written_by: str
    keys: tuple[KeyLine, ...]  # of the first checkpoint
    needs: tuple[Need, ...]
    reading: str = ""  # of weights without code, as far as they do not show the network

    @property
    def n_failed(self) -> int:
        """The number of checkpoints that cannot be read."""
        return sum(bool(line.problem) for line in self.checkpoints)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)


def refuse_without_data(series_options: SeriesOptions, named: Sequence[Path], run: str) -> None:
    """Report everything that the analysis of a series needs, if it has no data.

    Raises:
        SettingsError: If there are none.
    """
    if series_options.options.data is not None:
        return
    needs: Sequence[Need]
    try:
        needs = read_contents(series_options, named, run, lambda _: None).needs
    except LocalrankError:  # the data are missing in any case: that is reported
        needs = (need_of_data(),)
    raise refusal(series_options.folder, needs)


def read_contents(
    series_options: SeriesOptions, named: Sequence[Path], run: str, note: Note
) -> Contents:
    """Read the headers of a series' checkpoints, and return what they show.

    Raises:
        LocalrankError: If there are no checkpoints, or none can be read.
    """
    options, folder, rule = series_options.options, series_options.folder, series_options.step_rule
    series = attached(
        find_checkpoints(
            folder, named, options.pattern or "", series_options.data_files, rule.names
        )
    )
    context = HeaderContext(series.files)
    headers = Headers(series, options.trust_pickle, rule, options.weights or RAW, context)
    failures = Failures(run, skips=True)
    steps = failures.steps(headers, note, folder)
    assert headers.first is not None
    lines = [CheckpointLine(file.name, step, "", "") for file, step in steps]
    lines += [_failed(record) for record in failures.records]
    first = steps[0][0]
    config = find_hf_config(first.folder or first.path.parent) or find_hf_config(folder)
    return Contents(
        run,
        series.place,
        tuple(lines),
        _writer(first, config),
        tuple(KeyLine(key, tuple(tensor.shape)) for key, tensor in headers.first.items()),
        tuple(_needs(series_options, headers, config)),
        _inferred(series_options, headers).reading if options.model is None else "",
    )


@dataclass(frozen=True)
class _Inferred:
    """What weights without code show of the network."""

    problem: str = ""  # why they do not show it
    n_in: int | None = None  # the size of its input, where they do
    reading: str = ""  # as in `Contents`


def _failed(record: CheckpointRecord) -> CheckpointLine:
    return CheckpointLine(record.checkpoint, record.step, "", "", record.message)


def _needs(series: SeriesOptions, headers: Headers, config: HfConfig | None) -> list[Need]:
    options = series.options
    model, data, wrt = options.model, options.data, options.wrt
    state = without_factors(headers.first or {}, headers.factored)
    embedding = find_embedding(state)
    inferred = _inferred(series, headers) if model is None else _Inferred()
    if inferred.n_in is not None:
        if data is not None:
            return []
        text = f"random points, or a file with points of {inferred.n_in} numbers"
        return [Need("no data to take points from", ("--data", f"normal:{inferred.n_in}"), text)]
    if config is not None and model in (None, HF):
        if config.takes_tokens and wrt is None:
            embedding = embedding_of_hf(config, headers.held) or embedding
        return hf_needs(config, data, model, wrt, embedding)
    needs = []
    if model is None:
        needs.append(
            Need(
                f"no --model ({inferred.problem})",
                ("--model", "FILE.py:NAME"),
                f"the network's code: {inferred.problem}",
            )
        )
    if data is None:
        needs.append(need_of_data())
    if needs and wrt is None and embedding and not _is_drawn(data):
        needs.append(need_of_wrt(embedding))
    return needs


def _is_drawn(data: object) -> bool:
    return isinstance(data, str) and data.startswith(("normal:", "uniform:"))


def _inferred(series: SeriesOptions, headers: Headers) -> _Inferred:
    state = without_factors(headers.first or {}, headers.factored)
    names = networks_in(state)
    if names:
        return _Inferred(
            f"the weights are of several networks; choose one with --weights: {listed(names)}"
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    try:
        layout = infer_mlp(
            without_wrappers(shapes), not all(tensor.is_meta for tensor in state.values())
        )
    except ModelError:
        return _Inferred("the weights are not those of a plain MLP")
    given = given_activation(series)
    choice = ModelChoice(None, None, {}, series.options.activation or "")
    try:
        choice = with_held_activation(choice, headers.modules, given, headers.place)
    except ModelError as error:
        return _Inferred(error.what.removeprefix(f"{headers.place}: ").rstrip("."))
    groups = layer_groups(layout.names)
    if groups and not choice.is_seen:
        return _Inferred(f"weights do not show what is between the parts {listed(groups, 4)}")
    reading = ""
    if not choice.is_seen and given is None and len(layout.names) > 1:
        reading = (
            f"read as Linear layers with {choice.activation} between them, which weights do not"
            " show; if yours differ, give --activation or --model FILE.py:NAME"
        )
    return _Inferred(n_in=layout.widths[0], reading=reading)


def find_embedding(state: State) -> str:
    """Return the module that embeds tokens, by the names of the weights; empty if none is known."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    for key, shape in without_wrappers(shapes).items():
        module, _, kind = key.rpartition(".")
        is_matrix = kind == "weight" and len(shape) == 2
        if is_matrix and _EMBEDDING.match(module.rpartition(".")[2]):
            return module
    return ""


def _writer(first: CheckpointFile, config: HfConfig | None) -> str:
    path = first.path
    if path.name == DCP_METADATA:
        return "torch.distributed.checkpoint"
    if config is not None:
        trainer = " and its Trainer" if (path.parent / "trainer_state.json").exists() else ""
        return f"transformers{trainer} ({config.architecture})"
    if is_index(path):
        return "an index of several files of weights"
    found = format_of(path)
    if found is not TORCH:
        return found.name
    with suppress(UnreadableError):  # reported for the checkpoint itself
        return _of_torch(load_torch(path))
    return found.name


def _of_torch(loaded: object) -> str:
    if not isinstance(loaded, Mapping):
        return "torch.save"
    keys = [str(key) for key in loaded]
    if "pytorch-lightning_version" in keys:
        return f"Lightning {printable(str(loaded['pytorch-lightning_version']))}"
    if any(isinstance(value, Mapping) for value in loaded.values()):
        more = ", ..." if len(keys) > 8 else ""
        return f"torch.save, a dict of {printable(', '.join(keys[:8]))}{more}"
    return "torch.save, a state dict"
