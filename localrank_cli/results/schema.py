"""Models of the lines of a journal, a manifest, a plan file and the metadata of singular values.

A checksum shows that a line is whole, not that its content is valid. Unknown keys are ignored, as
later versions may write them. No field is a union, whose members pydantic reports one by one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from localrank_cli.measures.table import ESTIMATED
from localrank_cli.results.columns import COLUMNS, FLOAT, INT, OPTIONAL, OPTIONAL_INT, STR
from localrank_cli.validation import complaint, shown


def _check_range(edges: list[int]) -> list[int]:
    if edges[0] >= edges[1]:
        raise ValueError(f"expected two integers, the first below the second, got {edges}")
    return edges


def _check_constant(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a string, an integer or a number, got {shown(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"expected an integer of 64 bits, got {shown(value)}")
    return value


def _check_free(names: Iterable[str]) -> None:
    for name in names:
        if name in COLUMNS:
            raise ValueError(f"the table already has a column {shown(name)}")


def _check_columns(names: list[str]) -> list[str]:
    _check_free(names)
    _check_distinct(names)
    return names


def _check_constants(columns: dict[str, Any]) -> dict[str, Any]:
    # A series may set a constant column named epoch itself.
    _check_free(columns)
    for name in columns.keys() & (OPTIONAL.keys() - {"epoch"}):
        raise ValueError(f"the table already has a column {shown(name)}")
    return columns


def _check_distinct(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{shown(name)} appears twice")


Count = Annotated[int, Field(ge=0, lt=2**63)]
Part = Annotated[int, Field(ge=1, lt=2**63)]
NotNegative = Annotated[float, Field(ge=0)]
# A measure may overflow (gaussian_information under a tiny noise); ge excludes NaN.
Measured = Annotated[float, Field(ge=0, allow_inf_nan=True)]
Share = Annotated[float, Field(ge=0, le=1)]
# Losses of networks that diverged, and bounds on their information, may be anything.
AnyFloat = Annotated[float, Field(allow_inf_nan=True)]
PointRange = Annotated[list[Count], Field(min_length=2, max_length=2), AfterValidator(_check_range)]
Constant = Annotated[Any, AfterValidator(_check_constant)]


class Strict(BaseModel):
    """A model that neither converts nor rounds."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


class _Constants(Strict):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Constant | None] = Field(init=False)

    @model_validator(mode="after")
    def _replaces_no_column(self) -> Self:
        _check_free(self.__pydantic_extra__)
        return self


_INT64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_TYPES: Mapping[str, Any] = {STR: str, INT: _INT64, OPTIONAL_INT: _INT64, FLOAT: AnyFloat}
_CELLS: dict[str, Any] = {
    # A series may set a constant column named epoch itself.
    name: (Constant | None if name == "epoch" else _TYPES[kind] | None, None)
    for name, kind in OPTIONAL.items()
}
# The columns after `message`: those of localrank by their type, then the constants of a series.
if TYPE_CHECKING:
    Cells = _Constants
else:
    Cells = create_model("Cells", __base__=_Constants, **_CELLS)


class _Facts(Strict):
    bytes: Count | None = None
    mtime_ns: int | None = None
    pin: str = ""
    origin: dict[str, str] = {}
    sha256_of_tensors: str | None = None
    seconds: NotNegative | None = None
    routes: list[str] | None = None
    epoch: int | None = None

    @model_validator(mode="after")
    def _identifies_the_file(self) -> Self:
        if self.sha256_of_tensors is not None and None in (self.bytes, self.mtime_ns):
            raise ValueError("expected bytes and mtime_ns beside sha256_of_tensors")
        return self


class _Head(Strict):
    kind: str


class _JournalHead(_Head):
    format: int


class _SettingsHead(_Head):
    run: str


class _CheckpointHead(_Head):
    run: str
    checkpoint: str
    step: Count | None
    status: str
    finite: bool
    points: PointRange | None
    facts: _Facts

    @model_validator(mode="after")
    def _has_a_step(self) -> Self:
        if self.status == "ok" and self.step is None:
            raise ValueError("expected a step where status is ok, got null")
        if self.status != "ok" and self.finite:
            raise ValueError(f"finite: expected false where status is {self.status}, got true")
        return self


class _LayerCall(Strict):
    name: str
    number: Part = 1
    wrt: str | None = None  # of several sources, its own


class _Series(Strict):
    """The settings of a series in a manifest; earlier versions did not write all of them."""

    run: str | None = None
    point_indices: list[Count] | None = None
    folder: str | None = None
    definitions: int | None = None
    model: str | None = None
    model_arguments: dict[str, str] | None = None
    model_sha256: str | None = None
    data: str | None = None
    data_key: str | None = None
    data_sha256: str | None = None
    data_values_sha256: str | None = None
    data_shape: list[Count] | None = None
    data_scale: float | None = None
    n_data: Count | None = None
    seed: int | None = None
    wrt: str | None = None
    positions: str | None = None
    residual: bool | None = None
    pooled: bool | None = None
    feature_axis: list[str] | None = None
    layers: list[_LayerCall] | None = None
    tolerances: list[str] | None = None
    measures: list[str] | None = None
    method: str | None = None
    confidence: Share | None = None
    width: Share | None = None
    products: Count | None = None
    noise: NotNegative | None = None
    input_metric: str | None = None
    dtype: str | None = None
    precision: str | None = None
    n_cov: Count | None = None
    slices: dict[str, str] | None = None
    labels_key: str | None = None
    information_point_indices: list[Count] | None = None
    information_noise: NotNegative | None = None
    beside: str | None = None
    columns: Annotated[dict[str, Constant], AfterValidator(_check_constants)] | None = None
    optional_columns: Annotated[list[str], AfterValidator(_check_columns)] = []
    counting: str | None = None
    weights: str | None = None
    step_from: str | None = None
    step_regex: str | None = None
    unsaved: list[str] | None = None


class Settings(_Series):
    """The settings of a series in a journal."""

    run: str
    point_indices: list[Count]


class _Ranks(Strict):
    atol: NotNegative
    rtol: NotNegative | None  # null: eps
    rtol_used: NotNegative
    counts: list[Count]
    near: list[Count]
    undecided: list[Count]
    cells: Cells | None = None  # those that differ between tolerances

    @model_validator(mode="after")
    def _is_of_one_tolerance(self) -> Self:
        if (self.atol > 0) is (self.rtol is None or self.rtol > 0):
            raise ValueError(
                "expected either atol or rtol other than 0, got"
                f" atol {shown(self.atol)} and rtol {shown(self.rtol)}"
            )
        return self


class _Level(Strict):
    low: Share
    high: Share
    certain: Count
    undecided: bool
    bound: Count
    deflated: Count | None = None
    fresh_square: NotNegative = 0.0
    fresh_high: Share = 1.0


class _PointEvidence(Strict):
    size: Part
    square: NotNegative
    sigma_low: NotNegative
    sigma_high: Measured | None
    n_products: Count
    levels: Annotated[list[_Level], Field(min_length=1)]
    norm: NotNegative
    participation: NotNegative
    information: Measured

    @model_validator(mode="after")
    def _counts_no_more_than_there_are(self) -> Self:
        for index, level in enumerate(self.levels):
            for name in ("certain", "bound", "deflated"):
                if (getattr(level, name) or 0) > self.size:
                    raise ValueError(
                        f"expected levels[{index}].{name} up to {self.size}, got"
                        f" {getattr(level, name)}"
                    )
            if level.low > level.high:
                raise ValueError(f"expected levels[{index}].low up to its high")
        return self


class _Evidence(Strict):
    probes: Part
    delta: Annotated[float, Field(gt=0, lt=1)]
    points: list[_PointEvidence]


class _LayerBody(Strict):
    """One layer at one checkpoint: `points` in all, of which those in `failed` do not count."""

    layer: str
    module: str
    n_in: Count
    n_out: Count
    wrt: str
    input_metric: str
    dtype: str
    method: str
    cells: Cells
    n_positions: Part = 1
    layer_index: Count | None = None
    points: Count
    failed: list[Count]
    ranks: Annotated[list[_Ranks], Field(min_length=1)]
    soft: dict[str, list[Measured]]
    evidence: _Evidence | None = None  # of intervals, in place of counts

    @model_validator(mode="after")
    def _has_one_value_for_each_point(self) -> Self:
        n_points = (self.points - len(self.failed)) * self.n_positions
        # First: a number of points without as many values would take memory without end.
        lengths = {f"soft.{name}": len(values) for name, values in self.soft.items()}
        if self.evidence is None:
            lengths |= {f"ranks[{i}].counts": len(one.counts) for i, one in enumerate(self.ranks)}
        else:
            _check_evidence(self.evidence, self.ranks, self.soft, min(self.n_in, self.n_out))
            lengths["evidence.points"] = len(self.evidence.points)
        for name, length in lengths.items():
            if length != n_points:
                raise ValueError(
                    f"expected {max(0, n_points)} values in {name}, one for each point that counts,"
                    f" got {length}"
                )
        if len({one.cells is None for one in self.ranks}) > 1:
            raise ValueError("expected cells in each of ranks, or in none")
        _check_places("failed", self.failed, self.points)
        for index, ranks in enumerate(self.ranks):
            _check_places(f"ranks[{index}].near", ranks.near, n_points)
            _check_places(f"ranks[{index}].undecided", ranks.undecided, n_points)
            if max(ranks.counts, default=0) > min(self.n_in, self.n_out):
                raise ValueError(
                    f"expected counts up to {min(self.n_in, self.n_out)} in ranks[{index}].counts,"
                    f" got {max(ranks.counts)}"
                )
        return self


def _check_evidence(
    evidence: _Evidence, ranks: Sequence[_Ranks], soft: Mapping[str, Any], size: int
) -> None:
    """Check that evidence fits the tolerances, the shape and the measures of its layer."""
    if list(soft) != list(ESTIMATED):
        raise ValueError(f"expected {', '.join(ESTIMATED)} in soft, got {', '.join(soft)}")
    for index, one in enumerate(ranks):
        if one.counts or one.near or one.cells is not None:
            raise ValueError(f"expected no counts in ranks[{index}] beside evidence")
    for index, point in enumerate(evidence.points):
        if len(point.levels) != len(ranks):
            raise ValueError(
                f"expected {len(ranks)} levels in evidence.points[{index}], one for each of ranks,"
                f" got {len(point.levels)}"
            )
        if point.size > size:
            raise ValueError(f"expected evidence.points[{index}].size up to {size}")


def _check_places(name: str, places: list[int], count: int) -> None:
    if any(place >= count for place in places) or len(set(places)) < len(places):
        raise ValueError(f"expected different numbers below {count} in {name}")


class _CheckpointBody(Strict):
    message: str
    layers: list[_LayerBody]


class _Division(Strict):
    """The part of the work that a journal belongs to."""

    index: Count
    count: Part
    units_sha256: str
    n_units: Count
    own: list[Annotated[tuple[str, str, PointRange | None], Field(strict=False)]]

    @model_validator(mode="after")
    def _is_a_part(self) -> Self:
        if self.index >= self.count:
            raise ValueError(f"expected an index below count {self.count}, got {self.index}")
        return self


class _Line(Strict):
    head: _Head
    body: Any


class _SettingsLine(_Line):
    head: _SettingsHead
    body: Settings

    @model_validator(mode="after")
    def _is_of_one_run(self) -> Self:
        if self.body.run != self.head.run:
            raise ValueError(
                f"body.run: expected {self.head.run!r} as in its head, got {self.body.run!r}"
            )
        return self


class _ShardLine(_Line):
    body: _Division


def _check_layers(pairs: Sequence[tuple[str, str]]) -> None:
    """Check that each pair of a layer and its source is there once."""
    for index, pair in enumerate(pairs):
        if pair in pairs[:index]:
            raise ValueError(f"body.layers[{index}].layer: {shown(pair[0])} appears twice")


class _CheckpointLine(_Line):
    head: _CheckpointHead
    body: _CheckpointBody

    @model_validator(mode="after")
    def _has_the_numbers_of_its_head(self) -> Self:
        head, layers = self.head, self.body.layers
        if head.status != "ok":
            return self
        if not layers:
            raise ValueError("body.layers: expected at least one where status is ok, got none")
        _check_layers([(layer.layer, layer.wrt) for layer in layers])
        wanted = head.points[1] - head.points[0] if head.points else layers[0].points
        for index, layer in enumerate(layers):
            if layer.points != wanted:
                raise ValueError(
                    f"body.layers[{index}].points: expected {wanted}, as in its head and in the"
                    f" other layers, got {layer.points}"
                )
        if head.finite is any(layer.failed for layer in layers):
            raise ValueError("head.finite: differs from what the layers say")
        return self


class Manifest(Strict):
    """The part of a manifest that readers use."""

    localrank_manifest: int
    command: list[str] | None = None
    complete: bool | None = None
    series: list[_Series] | None = None
    checkpoints: list[dict[str, Any]] | None = None


class _SpectraEntry(Strict):
    run: str
    checkpoint: str
    step: Count
    layer: str
    layer_index: Count
    n_in: Count
    n_out: Count
    module: str = ""
    wrt: str = ""
    input_metric: str = ""
    dtype: str = ""
    method: str = ""
    n_columns: Count = 0
    n_positions: Part = 1
    key: str | None = None
    cells: Cells = Cells()


class SpectraFile(Strict):
    """The metadata of a file of singular values; pictures need no settings."""

    entries: list[_SpectraEntry]
    settings: Settings | None = None
    facts: _Facts = _Facts()


def _with_later_items(value: object) -> object:
    # Earlier versions wrote fewer: without what was finished before, and without a pin.
    if not isinstance(value, list) or len(value) < 4:
        return value
    return (*value, *(False, "")[len(value) - 4 :])


class _PlanSeries(Strict):
    run: str
    folder: str
    settings: Settings
    checkpoints: list[
        Annotated[
            tuple[str, Count | None, Count | None, int | None, bool, str],
            Field(strict=False),
            BeforeValidator(_with_later_items),
        ]
    ]


class PlanContent(Strict):
    """A plan file."""

    interpreter: str
    folder: str
    words: list[str]
    output: str
    shards: Part
    n_units: Count
    series: list[_PlanSeries]


class _CompressedRow(Strict):
    """A row of a table of `localrank compress`, with columns that are not named here."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Constant | None] = Field(init=False)
    budget: Share


class _BudgetRow(_CompressedRow):
    method: str
    weights: Count | None = None
    loss: AnyFloat | None = None
    loss_increase: AnyFloat | None = None
    loss_increase_se: AnyFloat | None = None
    accuracy: AnyFloat | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if self.note is None and (self.weights is None or self.loss is None):
            raise ValueError("expected weights and loss where there is no note")
        return self


class _LayerRow(_CompressedRow):
    layer: str
    n_out: Count | None = None
    n_in: Count | None = None
    rank: Count | None = None


class _FoundBudget(Strict):
    budgets: Annotated[list[_BudgetRow], Field(min_length=1)]
    layers: Annotated[list[_LayerRow], Field(min_length=1)]
    verdicts: list[str]
    files: Annotated[dict[str, str], Field(min_length=1)]
    keeps_limit: bool


class Unfinished(Strict):
    """What `localrank compress` keeps of a run that has not ended."""

    sha256: str
    key: dict[str, Any]
    found: dict[str, _FoundBudget]


_HEADS: Mapping[str, type[_Head]] = {
    "journal": _JournalHead,
    "settings": _SettingsHead,
    "checkpoint": _CheckpointHead,
}
_LINES: Mapping[str, type[_Line]] = {
    "settings": _SettingsLine,
    "shard": _ShardLine,
    "checkpoint": _CheckpointLine,
}


def check(model: type[Strict], value: object) -> None:
    """Check a value from a file; a ValueError is one sentence that names the key."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def check_head(head: Mapping[str, Any]) -> None:
    """Check the head of a journal's line; a ValueError names the key."""
    check(_HEADS.get(str(head.get("kind")), _Head), head)


def check_line(kind: str, line: object) -> None:
    """Check a whole line of a kind, and that its body fits its head; a ValueError names the key."""
    check(_LINES.get(kind, _Line), line)
