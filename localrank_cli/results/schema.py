"""What the lines of a journal, a manifest, a plan file and the metadata of kept spectra must hold.

A checksum shows that a line is whole, not that it makes sense. Unknown keys are left alone: a later
version may write them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from localrank_cli.results.columns import INT, OPTIONAL, OPTIONAL_INT, STR, Cell
from localrank_cli.validation import complaint, shown

Index = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=0, lt=2**63)]
Step = Annotated[int, Field(ge=0, lt=2**63)]
NotNegative = Annotated[float, Field(ge=0)]
# A measure may overflow (gaussian_information under a tiny noise); ge leaves out NaN.
Measured = Annotated[float, Field(ge=0, allow_inf_nan=True)]
# Losses of networks that diverged, and bounds on their information.
AnyFloat = Annotated[float, Field(allow_inf_nan=True)]


class Strict(BaseModel):
    """What is neither converted nor rounded."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


def _range(value: object) -> object:
    if value is not None and not (
        isinstance(value, list)
        and [type(edge) for edge in value] == [int, int]
        and 0 <= value[0] < value[1] < 2**63
    ):
        raise ValueError(f"expected two integers, the first below the second, got {shown(value)}")
    return value


PointRange = Annotated[list[int] | None, BeforeValidator(_range)]


class Facts(Strict):
    """What is known of a checkpoint besides its numbers."""

    bytes: Size | None = None
    mtime_ns: int | None = None
    sha256_of_tensors: str | None = None
    seconds: NotNegative | None = None
    routes: list[str] | None = None
    epoch: int | None = None

    @model_validator(mode="after")
    def _tells_a_change(self) -> Self:
        if self.sha256_of_tensors is not None and None in (self.bytes, self.mtime_ns):
            raise ValueError("expected bytes and mtime_ns beside sha256_of_tensors")
        return self


class JournalHead(Strict):
    """The head of the first line."""

    format: int


class SettingsHead(Strict):
    """The head of the line with what decides the numbers of a series."""

    run: str


class ShardHead(Strict):
    """The head of the line with the part of the work that a journal belongs to."""


class CheckpointHead(Strict):
    """The head of a checkpoint's line."""

    run: str
    checkpoint: str
    step: Step | None
    status: str
    finite: bool
    points: PointRange
    facts: Facts

    @model_validator(mode="after")
    def _has_a_step(self) -> Self:
        if self.status == "ok" and self.step is None:
            raise ValueError("expected a step where status is ok, got null")
        return self


class Series(Strict):
    """What a manifest says of a series; earlier versions did not write all of it."""

    run: str | None = None
    point_indices: list[Index] | None = None
    folder: str | None = None
    definitions: int | None = None
    model: str | None = None
    model_arguments: dict[str, str] | None = None
    model_sha256: str | None = None
    data: str | None = None
    data_key: str | None = None
    data_sha256: str | None = None
    data_scale: float | None = None
    n_data: Size | None = None
    seed: int | None = None
    wrt: str | None = None
    layers: list[dict[str, Any]] | None = None
    tolerances: list[str] | None = None
    measures: list[str] | None = None
    noise: NotNegative | None = None
    input_metric: str | None = None
    dtype: str | None = None
    n_cov: Size | None = None
    slices: dict[str, str] | None = None
    labels_key: str | None = None
    information_point_indices: list[Index] | None = None
    information_noise: NotNegative | None = None
    columns: dict[str, str | int | AnyFloat] | None = None
    optional_columns: list[str] = Field(default_factory=list)
    counting: str | None = None
    weights: str | None = None
    step_from: str | None = None
    step_regex: str | None = None
    unsaved: list[str] | None = None


class Settings(Series):
    """What decides the numbers of a series."""

    run: str
    point_indices: list[Index]


class Ranks(Strict):
    """One layer at one tolerance."""

    atol: NotNegative
    rtol: NotNegative | None  # null: eps
    rtol_used: NotNegative
    counts: list[Index]
    near: list[Index]
    undecided: list[Index]


def _check_cells(cells: Mapping[str, Cell]) -> None:
    texts, integers, numbers = (str,), (int,), (int, float)
    kinds: dict[str, tuple[type, ...]] = {STR: texts, INT: integers, OPTIONAL_INT: integers}
    for name, value in cells.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"expected an integer of 64 bits in cells.{name}, got {shown(value)}")
        # A series may set a constant column named epoch itself.
        is_ours = name in OPTIONAL and name != "epoch"
        allowed = kinds.get(OPTIONAL[name], numbers) if is_ours else (object,)
        if value is not None and not isinstance(value, allowed):
            words = {texts: "a text", integers: "an integer", numbers: "a number"}
            expected = words[allowed]
            raise ValueError(f"expected {expected} in cells.{name}, got {shown(value)}")


class LayerBody(Strict):
    """One layer at one checkpoint: `points` in all, of which those in `failed` do not count."""

    layer: str
    module: str
    n_in: Size
    n_out: Size
    wrt: str
    input_metric: str
    dtype: str
    method: str
    cells: dict[str, str | int | AnyFloat | None]
    points: Index
    failed: list[Index]
    ranks: Annotated[list[Ranks], Field(min_length=1)]
    soft: dict[str, list[Measured]]

    @model_validator(mode="after")
    def _has_one_value_for_each_point(self) -> Self:
        n_points = self.points - len(self.failed)
        # First: a number of points without as many values would take memory without end.
        lengths = {f"soft.{name}": len(values) for name, values in self.soft.items()}
        lengths |= {f"ranks[{i}].counts": len(one.counts) for i, one in enumerate(self.ranks)}
        for name, length in lengths.items():
            if length != n_points:
                raise ValueError(
                    f"expected {max(0, n_points)} values in {name}, one for each point that counts,"
                    f" got {length}"
                )
        _check_places("failed", self.failed, self.points)
        for index, ranks in enumerate(self.ranks):
            _check_places(f"ranks[{index}].near", ranks.near, n_points)
            _check_places(f"ranks[{index}].undecided", ranks.undecided, n_points)
            if max(ranks.counts, default=0) > min(self.n_in, self.n_out):
                raise ValueError(
                    f"expected counts up to {min(self.n_in, self.n_out)} in ranks[{index}].counts,"
                    f" got {max(ranks.counts)}"
                )
        _check_cells(self.cells)
        return self


def _check_places(name: str, places: list[int], count: int) -> None:
    if any(place >= count for place in places) or len(set(places)) < len(places):
        raise ValueError(f"expected different numbers below {count} in {name}")


class CheckpointBody(Strict):
    """The numbers of a checkpoint."""

    message: str
    layers: list[LayerBody]


class Division(Strict):
    """The part of the work that a journal belongs to."""

    index: Index
    count: Annotated[int, Field(ge=1, lt=2**63)]
    units_sha256: str
    n_units: Size
    own: list[
        Annotated[
            tuple[str, str, PointRange],
            BeforeValidator(lambda one: tuple(one) if isinstance(one, list) else one),
        ]
    ]

    @model_validator(mode="after")
    def _is_a_part(self) -> Self:
        if self.index >= self.count:
            raise ValueError(f"expected an index below count {self.count}, got {self.index}")
        return self


class Manifest(Strict):
    """What readers use of a manifest."""

    localrank_manifest: int
    command: list[str] | None = None
    complete: bool | None = None
    series: list[Series] | None = None
    checkpoints: list[dict[str, Any]] | None = None


class SpectraEntry(Strict):
    """What a file of singular values says of one layer."""

    run: str
    checkpoint: str
    step: Step
    layer: str
    layer_index: Index
    n_in: Size
    n_out: Size
    module: str = ""
    wrt: str = ""
    input_metric: str = ""
    dtype: str = ""
    method: str = ""
    n_columns: Size = 0
    cells: dict[str, str | int | AnyFloat | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_sound_cells(self) -> Self:
        _check_cells(self.cells)
        return self


class SpectraFile(Strict):
    """The metadata of a file of singular values; pictures need no settings."""

    entries: list[SpectraEntry]
    settings: Settings | None = None
    facts: Facts = Field(default_factory=Facts)


def _listed(value: object) -> object:
    # Four items: of a version that did not say what was finished before.
    return (*value, False)[:5] if isinstance(value, list) and len(value) in {4, 5} else value


class PlanSeries(Strict):
    """A series in a plan file."""

    run: str
    folder: str
    settings: Settings
    checkpoints: list[
        Annotated[tuple[str, Step | None, Size | None, int | None, bool], BeforeValidator(_listed)]
    ]


class PlanContent(Strict):
    """A plan file."""

    interpreter: str
    folder: str
    words: list[str]
    output: str
    shards: Annotated[int, Field(ge=1, lt=2**63)]
    n_units: Size
    series: list[PlanSeries]


class _Line(Strict):
    body: Any


_KINDS = ("journal", "settings", "shard", "checkpoint")
_HEADS: Mapping[str, type[Strict]] = dict(
    zip(_KINDS, (JournalHead, SettingsHead, ShardHead, CheckpointHead), strict=True)
)
_BODIES: Mapping[str, type[Strict]] = {
    "settings": Settings,
    "shard": Division,
    "checkpoint": CheckpointBody,
}


def check(model: type[Strict], value: object) -> None:
    """Check a value from a file.

    Raises:
        ValueError: If it is not what the model says, in one sentence that names the key.
    """
    try:
        model.model_validate(value)
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def check_head(head: Mapping[str, Any]) -> None:
    """Check the head of a journal's line; of kinds that are not known nothing is asked.

    Raises:
        ValueError: If something is wrong with it.
    """
    kind = head.get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"kind: expected a text, got {shown(kind)}")  # noqa: TRY004
    if kind in _HEADS:
        check(_HEADS[kind], head)


def check_body(head: Mapping[str, Any], line: object) -> Any:
    """Check the body of a journal's line, and that it fits its head.

    Args:
        head: Of the line, checked.
        line: The parsed line.

    Returns:
        The body.

    Raises:
        ValueError: If something is wrong with it.
    """
    check(_Line, line)
    assert isinstance(line, dict)
    kind, body = head["kind"], line["body"]
    if kind in _BODIES:
        check(_BODIES[kind], body)
        _check_fit(head, body)
    return body


def _check_fit(head: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    kind = head["kind"]
    if kind == "settings" and body["run"] != head["run"]:
        raise ValueError(f"run: expected {head['run']!r} as in its head, got {body['run']!r}")
    if kind == "checkpoint":
        _check_numbers(head, body)


def _check_numbers(head: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    layers = body["layers"]
    if head["status"] != "ok":
        return
    if not layers:
        raise ValueError("layers: expected at least one where status is ok, got none")
    wanted = head["points"][1] - head["points"][0] if head["points"] else layers[0]["points"]
    for index, layer in enumerate(layers):
        if layer["points"] != wanted:
            raise ValueError(
                f"layers[{index}].points: expected {wanted}, as in its head and in the other"
                f" layers, got {layer['points']}"
            )
    if head["finite"] is any(layer["failed"] for layer in layers):
        raise ValueError("finite: differs from what the layers say")
