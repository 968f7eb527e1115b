"""Checkpoints from their headers alone: their steps, whether they fit the model, and which failed.

Everything here happens before any work, except for `load_state`, which reads the tensors.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.adapters import (
    adapter_key,
    is_adapter_alone,
    is_of_peft,
    refusal,
)
from localrank_cli.checkpoints.bundle import Bundle
from localrank_cli.checkpoints.content import Content, State, printable_name
from localrank_cli.checkpoints.counting import ALONE, Counting
from localrank_cli.checkpoints.entries import find_entries
from localrank_cli.checkpoints.factors import without_factors
from localrank_cli.checkpoints.folders import is_alias
from localrank_cli.checkpoints.modules import HeldModule, kinds_of
from localrank_cli.checkpoints.names import StepRule
from localrank_cli.checkpoints.order import SeriesSteps, StepScheme
from localrank_cli.checkpoints.places import Names, Place, find_place
from localrank_cli.checkpoints.reading import Twins, read_file, sets_of, with_part
from localrank_cli.checkpoints.series import CheckpointFile, Series
from localrank_cli.checkpoints.weights import (
    EMA,
    RAW,
    WRAPPERS,
    Sets,
    Stripping,
    candidates,
    choose,
    describe_weights,
    find_part,
    match_names,
    part_at,
    prefer,
    strip_to_fit,
)
from localrank_cli.errors import (
    LocalrankError,
    MismatchError,
    Note,
    NoWeightsError,
    SettingsError,
    UnreadableError,
    listed,
)
from localrank_cli.model.arguments import Recorded, Source
from localrank_cli.model.fill import Expected, fill_custom, has_custom_loading, mismatch
from localrank_cli.model.hf_size import Held
from localrank_cli.model.hf_weights import HfExpected, Report, mismatch_of
from localrank_cli.options.needs import CONFIG, read_plain_config
from localrank_cli.options.parse import Part
from localrank_cli.recorded import Entries
from localrank_cli.remote.places import shown
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.missing import Parts
from localrank_cli.run.network import (
    can_infer,
    check_config,
    config_folder,
    networks_in,
    without_loss_layer,
)
from localrank_cli.spectrum.examine import Examination

Skip = Callable[[CheckpointFile, LocalrankError], None]


@dataclass(frozen=True)
class _Header:
    """The shapes and dtypes in a checkpoint, without its tensors."""

    shapes: dict[str, dict[str, tuple[int, ...]]]  # container -> key -> shape
    averaged: frozenset[str]  # containers that hold an average over training
    dtypes: dict[str, dict[str, torch.dtype]]  # container -> key -> dtype
    others: frozenset[str] = frozenset()  # containers that no framework uses

    @property
    def sets(self) -> Sets:
        """The sets of weights."""
        return Sets(tuple(self.shapes), self.averaged, self.others)


@dataclass(frozen=True)
class PlannedCheckpoint:
    """A checkpoint whose step is known and whose header fits the model."""

    file: CheckpointFile
    step: int
    container: str  # key of the state dict in the file; "" for a bare one
    stripping: Stripping
    ignored: tuple[str, ...] = ()  # other state dicts in the file
    epoch: int | None = None
    averaged: bool = False  # whether the weights are an average over training
    points: tuple[int, int] | None = None  # only these (first, one past the last), for a shard
    mapped: bool = True  # whether its tensors may be mapped; not while a training may write it
    missing: tuple[str, ...] = ()  # parts of the network that it does not hold
    unexpected: tuple[str, ...] = ()  # entries that the network has no place for
    is_found: bool = False  # whether the weights are at a place that no framework uses

    @property
    def place(self) -> str:
        """File and step, for messages."""
        source = self.file.source
        place = str(self.file.path) if source is None else source.name
        return f"{place} (step {self.step})"


@dataclass(frozen=True)
class HeaderContext:
    """What is known of a series besides the files to read."""

    files: tuple[CheckpointFile, ...] = ()  # all of the series: their names are read together
    counting: Counting | None = None  # what the steps count according to a plan file
    earlier: StepScheme | None = None  # of checkpoints that were there before these
    is_inferred: bool = False  # whether the network is inferred from the weights
    is_hf: bool = False  # whether transformers builds it
    names: Collection[str] = ()  # of the model's weights, once it is built
    modules: tuple[HeldModule, ...] = ()  # of an earlier file with a whole module
    place: Path | None = None  # of that file


class Headers:
    """The headers of a series, each read once.

    `rule` says where to look for steps, and `weights` which of several sets in one file to use.
    """

    def __init__(
        self,
        series: Series,
        trust_pickle: bool,
        rule: StepRule = StepRule(),
        weights: str = RAW,
        context: HeaderContext = HeaderContext(),  # frozen
    ) -> None:
        self._series = series
        self._trust_pickle = trust_pickle
        self._rule = rule
        self._weights = weights
        self._twins = Twins(weights, trust_pickle)
        self._headers: dict[CheckpointFile, _Header] = {}
        self._last = _Header({}, frozenset(), {})
        self._epochs: dict[CheckpointFile, int | None] = {}
        self._fits: dict[tuple[int, str, int], _Fit | None] = {}
        self._furthers: dict[tuple[int, int], dict[str, tuple[str, _Fit]]] = {}
        self._context = context
        self.scheme = StepScheme(rule, Counting(), {})
        self.unfilled: set[str] = set()  # parts of the model that a checkpoint does not fill
        self.first: State | None = None  # the weights in the first file, by name
        self.factored: frozenset[str] = frozenset()  # layers that it says it holds as factors
        self._entries: dict[CheckpointFile, Entries] = {}
        self._last_entries: Entries = {}
        self._configs: dict[Path, Entries] = {}  # those of config.json, by its folder
        self.recorded: Recorded | None = None  # what the network was built with, to be compared
        self.modules = context.modules  # of the first file with a whole module
        self.place = context.place or series.folder  # of that file

    @property
    def held(self) -> Held:
        """How much the largest checkpoint holds."""
        states = [
            shapes
            for header in {id(one): one for one in self._headers.values()}.values()
            for shapes in header.shapes.values()
        ]
        return Held(
            max((len(shapes) for shapes in states), default=0),
            max((sum(map(math.prod, shapes.values())) for shapes in states), default=0),
        )

    def steps(self, note: Note, skip: Skip | None = None) -> list[tuple[CheckpointFile, int]]:
        """Return each checkpoint and its step, by step, without duplicates.

        `skip` receives each file that cannot be read; without it the first is an error.

        Raises:
            UnreadableError: If a file cannot be read and `skip` is None.
            SettingsError: If a step is not found, or different checkpoints have the same.
        """
        places: dict[CheckpointFile, Place] = {}
        without: dict[CheckpointFile, NoWeightsError] = {}
        bundles: list[tuple[CheckpointFile, str, Bundle]] = []
        doubtful: list[tuple[CheckpointFile, Content]] = []
        earlier = self._context.earlier
        before = earlier.places if earlier is not None else ()
        names = Names([*before, *self._context.files, *self._series.files])
        for file in self._series.files:
            try:
                content = self._read(file, skip)
            except NoWeightsError as error:
                without[file] = error
                continue
            if content is not None and may_be_data(content):
                doubtful.append((file, content))
            elif content is not None:
                self._take(file, content, names, (places, bundles), skip)
        for file, content in doubtful:  # last, when it is known what the others hold
            data = self._as_data(file, content, names)
            if data is not None:
                without[file] = data
            else:
                self._take(file, content, names, (places, bundles), skip)
        self._pass_over(without, note)
        ordered = self._in_order(places, names)
        self._check_bundles(bundles, note)
        if earlier is not None and self.scheme.stages and not earlier.stages:
            note(self.scheme.stages)
        steps = ordered.steps(note)
        self._epochs = {file: places[file].epoch for file, _ in steps}
        return steps

    def sources(self, files: Iterable[CheckpointFile]) -> list[Source]:
        """Return what some of the checkpoints record of how the network was built."""
        return [self._source(file) for file in files]

    def _source(self, file: CheckpointFile) -> Source:
        """Return what a checkpoint records, or else a config.json beside it."""
        if self._entries[file] or self._context.is_hf or file.held is not None:
            return Source(str(file.path), self._entries[file])
        place = config_folder(file, self._series.folder)
        if place not in self._configs:
            self._configs[place] = find_entries({"config": read_plain_config(place)})
        return Source(str(place / CONFIG), self._configs[place])

    def _take(
        self,
        file: CheckpointFile,
        content: Content,
        names: Names,
        found: tuple[dict[CheckpointFile, Place], list[tuple[CheckpointFile, str, Bundle]]],
        skip: Skip | None,
    ) -> None:
        """Keep the header of a checkpoint, and add its place and its bundle to those found."""
        places, bundles = found
        keys = choose(sets_of(content), self._weights, str(file.path))
        if content.bundle is not None:
            bundles.append((file, keys[0], content.bundle))
        try:
            bare = self._check_adapter({key: content.states[key] for key in keys}, file)
            places[file] = find_place(file, content, self._rule, names)
        except UnreadableError as error:
            _skip(skip, file, error)
            return
        if self.first is None:
            self.first = self._first(content, bare, file)
            self.factored = content.factored
        self._compare_modules(content, bare, file)
        self._headers[file] = self._shared(content)
        if content.entries != self._last_entries:  # one copy, as of headers
            self._last_entries = content.entries
        self._entries[file] = self._last_entries

    def _as_data(
        self, file: CheckpointFile, content: Content, names: Names
    ) -> NoWeightsError | None:
        """Return why a file holds data, not weights; None where that is not certain.

        Certain is: it has no step, and not one entry's name is that of an entry of the model or
        of another checkpoint.
        """
        known = set(self._context.names)
        for header in {id(one): one for one in self._headers.values()}.values():
            known |= {name for shapes in header.shapes.values() for name in shapes}
        if not known or is_alias(file.name):
            return None
        known |= {name.rpartition(".")[2] for name in known}
        held = list(dict.fromkeys(name for state in content.states.values() for name in state))
        with suppress(UnreadableError):
            place = find_place(file, content, self._rule, names)
            if place.step is None and place.epoch is None and known.isdisjoint(held):
                return NoWeightsError(
                    f"{file.path}: holds tensors ({listed(map(printable_name, held), 4)}) that no"
                    " checkpoint has.",
                    "If these are data, pass them with --data.",
                )
        return None

    def _check_bundles(
        self, bundles: Sequence[tuple[CheckpointFile, str, Bundle]], note: Note
    ) -> None:
        """Point out a single file that holds a series beside its weights.

        Raises:
            SettingsError: If the file has no step: the series is more likely meant.
        """
        if len(self._series.files) != 1 or not bundles or self._context.earlier is not None:
            return
        ((file, key, bundle),) = bundles
        if self.scheme.counting.kind == ALONE and self._weights == RAW:
            raise _without_step(bundle, key, file)
        note(f"{bundle.describe(file.path)}, which are left out. {bundle.advice(file.path)}")

    def _pass_over(self, without: Mapping[CheckpointFile, NoWeightsError], note: Note) -> None:
        """Leave out the files without weights, such as inputs; each is named in a note.

        Raises:
            NoWeightsError: If there are no others.
        """
        kept = tuple(file for file in self._series.files if file not in without)
        if without and not kept and self._context.earlier is None:
            raise next(iter(without.values()))
        for error in without.values():
            note(f"{error.what.removesuffix('.')}; it is left out")
        self._series = replace(self._series, files=kept)

    def _in_order(self, places: dict[CheckpointFile, Place], names: Names) -> SeriesSteps:
        earlier = self._context.earlier
        if earlier is None:
            counting = self._context.counting
            ordered = SeriesSteps(self._series, places, self._same, self._rule, counting)
            self.scheme = ordered.scheme
            return ordered
        # A new name may change how those of earlier checkpoints are to be read.
        reread = {
            file: replace(one, step=names.step(file).step) if one.source == "name" else one
            for file, one in earlier.places.items()
        }
        together = SeriesSteps(self._series, reread | places, self._same, self._rule)
        for file in places:
            earlier.check(together, file)
        self.scheme = together.scheme
        return SeriesSteps(self._series, places, self._same, self._rule, earlier.counting)

    def _read(self, file: CheckpointFile, skip: Skip | None) -> Content | None:
        try:
            content = read_file(file, trust_pickle=self._trust_pickle, header_only=True)
            return with_part(content, self._weights)
        except NoWeightsError:
            raise
        except UnreadableError as error:
            _skip(skip, file, error)
            return None

    def _check_adapter(self, states: Mapping[str, State], file: CheckpointFile) -> str:
        """Refuse adapters without a base model; return the first set of weights that is none.

        Raises:
            UnreadableError: If all of the sets are adapters.
        """
        # If the user's code builds the network, its layers may have such names.
        if self._context.is_inferred:
            bare = [key for key, state in states.items() if not adapter_key(state)]
        else:
            is_hf = self._context.is_hf
            bare = [key for key, state in states.items() if not (is_hf and is_adapter_alone(state))]
        if not bare or (file.held is None and is_of_peft(file.path)):
            raise UnreadableError(*refusal(file.path, next(iter(states.values()))))
        return bare[0]

    def _same(self, one: CheckpointFile, other: CheckpointFile) -> bool:
        if one.source is not None and other.source is not None:
            if one.source.has_content_of(other.source):
                return True
            if self._headers.get(one) != self._headers.get(other):
                return False
            one.source.fetch()
            other.source.fetch()
        if one in self._headers and other in self._headers:
            return self._headers[one] == self._headers[other] and self._twins.same(
                one.path, other.path
            )
        try:
            return self._twins.same(one.path, other.path)
        except UnreadableError:  # an earlier checkpoint has been removed
            return False

    def _compare_modules(self, content: Content, bare: str, file: CheckpointFile) -> None:
        """Keep what a whole module consists of, which must be the same in all files.

        Raises:
            SettingsError: If an inferred network would differ.
        """
        if not content.modules:
            return
        is_inferred = self._context.is_inferred
        key = self._key_of_first(content, bare, file) if is_inferred else bare
        modules = content.modules.get(key, ())
        if is_inferred and self.modules and modules and kinds_of(self.modules) != kinds_of(modules):
            raise SettingsError(
                f"{file.path}: holds a module with different parts from {self.place}.",
                "Choose the checkpoints of one network with --pattern GLOB, or give the network's"
                " code: --model path/to/file.py:name.",
            )
        if not self.modules:
            self.modules, self.place = modules, file.path

    def _first(self, content: Content, bare: str, file: CheckpointFile) -> State:
        """Return the weights from which a network may be inferred.

        Raises:
            SettingsError: If it may be inferred from several, at keys that no framework uses.
        """
        if not self._context.is_inferred:
            return content.states[bare]
        key = self._key_of_first(content, bare, file)
        first = content.states[key]
        if key in content.others:
            return first
        found = without_loss_layer(first)
        names = networks_in(without_factors(found, content.factored))
        if names:
            raise SettingsError(
                f"{file.path}: holds several networks by their names: {listed(names)}.",
                f"Choose one: --weights {' or --weights '.join(names[:4])}; or give the"
                " network's code: --model path/to/file.py:name.",
            )
        return found

    def _key_of_first(self, content: Content, bare: str, file: CheckpointFile) -> str:
        keys = choose(sets_of(content), self._weights, str(file.path))
        if bare not in content.others:
            # Tensors beside the sets, such as statistics of the data, may have dots in their names.
            is_among_others = not bare and len(content.states) > 1 and self._weights == RAW
            if not is_among_others or _is_network(bare, content.states):
                return bare
            usual = [key for key in keys if key not in content.others and key != bare]
            inferable = [key for key in usual if can_infer(content.states[key])]
            if usual:
                return (inferable or usual)[0]
            keys = tuple(key for key in content.states if key in content.others)
        fitting = prefer([key for key in keys if can_infer(content.states[key])])
        if len(fitting) > 1 and content.bundle is not None:
            raise _without_step(content.bundle, fitting[0], file)
        if len(fitting) > 1:
            raise SettingsError(
                f"{file.path}: holds several networks: {listed(fitting)}.",
                f"Choose one: --weights {' or --weights '.join(fitting[:4])}.",
            )
        return fitting[0] if fitting else bare

    def _shared(self, content: Content) -> _Header:
        shapes = {
            key: {name: tuple(tensor.shape) for name, tensor in state.items()}
            for key, state in content.states.items()
        }
        dtypes = {
            key: {name: tensor.dtype for name, tensor in state.items()}
            for key, state in content.states.items()
        }
        header = _Header(shapes, content.averaged, dtypes, content.others)
        # Checkpoints of one run have equal headers: one copy keeps memory flat for any number.
        if header != self._last:
            self._last = header
        return self._last

    def plan(
        self, file: CheckpointFile, step: int, model: nn.Module, expected: Expected
    ) -> PlannedCheckpoint:
        """Return how to load the weights of a checkpoint, checked by their keys and shapes.

        `file` and `step` come from `steps`.

        Raises:
            MismatchError: If they do not fit the model, or the arguments that it was built with.
            UnreadableError: If the config of transformers beside them cannot be read.
        """
        self._check_recorded(file)
        if isinstance(expected, HfExpected):
            check_config(file, self._series.folder, expected.source)
        header = self._headers[file]
        keys = choose(header.sets, self._weights, str(file.path))
        bare = PlannedCheckpoint(file, step, "", Stripping(), epoch=self._epochs.get(file))
        place = bare.place
        usual = [key for key in keys if key not in header.others or key == self._weights]
        for container in usual:
            fit = self._fit(header, container, expected)
            if fit is not None:
                return _planned(bare, header, container, fit, expected)
        if has_custom_loading(model) and usual:
            found = self._custom(bare, usual, model, expected, stripped=False)
            if found is not None:
                return found
        further = self._further(header, keys, expected, place)
        if further is not None:
            return _planned(bare, header, *further, expected)
        if has_custom_loading(model):
            found = self._custom(bare, keys, model, expected, stripped=True)
            if found is not None:
                return found
        raise self._misfit(file, header, keys, expected, place)

    @staticmethod
    def _misfit(
        file: CheckpointFile, header: _Header, keys: Sequence[str], expected: Expected, place: str
    ) -> MismatchError:
        if all(is_adapter_alone(header.shapes[key]) for key in keys):
            return MismatchError(*refusal(file.path, header.shapes[keys[0]]))
        if isinstance(expected, HfExpected):
            return mismatch_of(expected.report(header.shapes[keys[0]]), place)
        closest = min(
            (renamed for key in keys for _, renamed in candidates(header.shapes[key])),
            key=lambda shapes: sum(map(len, expected.differences(shapes))),
        )
        return mismatch(expected, closest, place)

    def _check_recorded(self, file: CheckpointFile) -> None:
        if self.recorded is not None:
            self.recorded.check(*self.sources([file]))

    def _custom(
        self,
        bare: PlannedCheckpoint,
        keys: Sequence[str],
        model: nn.Module,
        expected: Expected,
        *,
        stripped: bool,
    ) -> PlannedCheckpoint | None:
        """Return how a user's load hooks accept what keys and shapes alone do not show.

        `stripped` tries names without prefixes.
        """
        content = read_file(bare.file, trust_pickle=self._trust_pickle)
        content = with_part(content, self._weights)
        for container in keys:
            for stripping, state in candidates(content.states[container]):
                if (stripping != Stripping()) is stripped:
                    with suppress(MismatchError):  # the next candidate may fit
                        self.unfilled |= fill_custom(model, expected, state, bare.place)
                        return replace(bare, container=container, stripping=stripping)
        return None

    def _further(
        self, header: _Header, keys: Sequence[str], expected: Expected, place: str
    ) -> "tuple[str, _Fit] | None":
        """Return the one set of weights, or part of one, that fits where the usual ones do not.

        Raises:
            MismatchError: If several fit.
        """
        key = (id(header), id(expected))
        if key not in self._furthers:
            more = header.others if self._weights == RAW else ()
            places = [*keys, *(one for one in header.shapes if one in more and one not in keys)]
            self._furthers[key] = _find_further(header, places, expected)
            if not self._furthers[key] and self._weights == RAW:
                averages = [one for one in header.shapes if one in header.averaged]
                self._furthers[key] = _find_further(header, averages, expected)
        found = self._furthers[key]
        if self._weights != EMA:  # the network itself comes before a second one beside it
            found = {
                place: (container, fit)
                for place, (container, fit) in found.items()
                if place == container or container not in found
            }
        chosen = prefer(found, averages=self._weights == EMA)
        if len(chosen) > 1:
            raise MismatchError(
                f"{place}: holds several sets of weights that fit the model: {listed(chosen)}.",
                f"Choose one: --weights {' or --weights '.join(chosen[:4])}.",
            )
        return found[chosen[0]] if chosen else None

    def _fit(self, header: _Header, container: str, expected: Expected) -> "_Fit | None":
        """Return how a set of weights fits; checkpoints of one run share header and answer."""
        key = (id(header), container, id(expected))
        if key not in self._fits:
            self._fits[key] = _find_fit(header, container, expected)
        return self._fits[key]


@dataclass(frozen=True)
class _Fit:
    """How a set of weights fits a network."""

    stripping: Stripping
    report: Report = Report()
    odd: tuple[str, ...] = ()  # floating-point entries that would be filled from other numbers


def _find_fit(header: _Header, container: str, expected: Expected) -> _Fit | None:
    shapes = header.shapes[container]
    exact = strip_to_fit(shapes, expected.fits)
    if not isinstance(expected, HfExpected):
        return None if exact is None else _Fit(exact[0])
    tried = [exact] if exact is not None else candidates(shapes, WRAPPERS)
    fits = [(_Fit(stripping, expected.report(renamed)), renamed) for stripping, renamed in tried]
    # Weights that fill nothing belong to another network.
    possible = [pair for pair in fits if expected.can_load(pair[0].report)]
    if not possible:
        return None
    best, renamed = min(possible, key=lambda pair: pair[0].report.n_left)
    if best.report.missing:  # perhaps under the names of wrappers within
        fills = expected.is_filled_by
        whole = match_names(shapes, expected.shapes, fills)
        whole = whole or find_part(shapes, expected.shapes, fills).get("")
        if whole is not None:
            return _fit_of(header, container, whole, expected)
    odd = {
        name
        for (_, names), (_, dtypes) in zip(
            candidates(shapes), candidates(header.dtypes[container]), strict=False
        )
        if names.keys() == renamed.keys()
        for name, dtype in dtypes.items()
        if not dtype.is_floating_point
    }
    return replace(best, odd=expected.filled_by(renamed, odd))


def _find_further(
    header: _Header, keys: Sequence[str], expected: Expected
) -> "dict[str, tuple[str, _Fit]]":
    """Return the places, for --weights, of what fits a network, each with its container."""
    found: dict[str, tuple[str, _Fit]] = {}
    fits = expected.is_filled_by if isinstance(expected, HfExpected) else expected.fits
    for container in keys:
        fit = _find_fit(header, container, expected)
        shapes = header.shapes[container]
        if fit is None:
            pair = strip_to_fit(shapes, fits)
            renamed = pair[0] if pair is not None else match_names(shapes, expected.shapes, fits)
            fit = None if renamed is None else _fit_of(header, container, renamed, expected)
        if fit is not None:
            found[container] = (container, fit)
        else:
            for prefix, part in find_part(shapes, expected.shapes, fits).items():
                found[prefix or container] = (
                    container, _fit_of(header, container, part, expected),
                )  # fmt: skip
    return found


def _fit_of(header: _Header, container: str, stripping: Stripping, expected: Expected) -> _Fit:
    """Return the fit of a set of weights that fills the network once it is renamed."""
    if not isinstance(expected, HfExpected):
        return _Fit(stripping, Report(unexpected=stripping.left))
    renamed = stripping.apply(header.shapes[container]) or {}
    dtypes = stripping.apply(header.dtypes[container]) or {}
    odd = {name for name, dtype in dtypes.items() if not dtype.is_floating_point}
    report = replace(expected.report(renamed), unexpected=stripping.left)
    return _Fit(stripping, report, expected.filled_by(renamed, odd))


def _planned(
    bare: PlannedCheckpoint, header: _Header, container: str, fit: _Fit, expected: Expected
) -> PlannedCheckpoint:
    """Return the plan for a set of weights that fits.

    Raises:
        MismatchError: If it holds numbers of another kind than the model's.
    """
    if isinstance(expected, HfExpected):
        expected.check_stored(fit.odd, header.dtypes[container], bare.place)
    else:
        _check_types(header, container, fit.stripping, expected, bare.place)
    return replace(
        bare,
        container=container,
        stripping=fit.stripping,
        missing=fit.report.missing,
        unexpected=fit.report.unexpected,
        ignored=tuple(
            describe_weights(key, header.averaged) for key in header.shapes if key != container
        ),
        averaged=container in header.averaged,
        is_found=container in header.others,
    )


def _is_network(key: str, states: Mapping[str, State]) -> bool:
    """Return whether one of several sets has weights, and is not a part of another."""
    own = {name: tensor.shape for name, tensor in states[key].items()}
    shapes = ({name: one.shape for name, one in state.items()} for state in states.values())
    is_part = any(own.items() < one.items() for one in shapes)
    return not is_part and any(name.endswith("weight") for name in own)


def _without_step(bundle: Bundle, key: str, file: CheckpointFile) -> SettingsError:
    """Return the error for a series in one file that also holds weights without a step."""
    return SettingsError(
        f"{bundle.describe(file.path)} as well as weights without a step.",
        f"{bundle.advice(file.path)}. To analyze the other weights alone, give --weights {key}.",
    )


def may_be_data(content: Content) -> bool:
    """Return whether no name of an entry is that of a part of a network (`0.weight`)."""
    return not any("." in name for state in content.states.values() for name in state)


def _skip(skip: Skip | None, file: CheckpointFile, error: UnreadableError) -> None:
    if skip is None:
        raise error
    skip(file, error)


def _check_types(
    header: _Header, container: str, stripping: Stripping, expected: Expected, place: str
) -> None:
    dtypes = header.dtypes[container]
    floats = all(dtype.is_floating_point for dtype in dtypes.values())
    if floats and not expected.has_complex:
        return  # early, as a series may have thousands of checkpoints
    renamed = stripping.apply(dtypes)
    if renamed is not None:
        expected.check_types(renamed, place)


def describe_missing(checkpoints: Sequence[PlannedCheckpoint]) -> list[str]:
    """Return notes on what checkpoints do not hold, and on what the network has no place for."""
    missing = {name for one in checkpoints for name in one.missing}
    unexpected = {name for one in checkpoints for name in one.unexpected}
    notes = []
    if missing:
        notes.append(
            f"not in every checkpoint, and no chosen layer depends on it: {listed(sorted(missing))}"
        )
    if unexpected:
        notes.append(f"in the checkpoints, but not in the model: {listed(sorted(unexpected))}")
    return notes


def load_state(checkpoint: PlannedCheckpoint, trust_pickle: bool) -> dict[str, Tensor]:
    """Read a checkpoint's tensors, by the model's names.

    Raises:
        SettingsError: If the file does not hold what its header held when the run was planned.
    """
    content = read_file(checkpoint.file, trust_pickle=trust_pickle, mapped=checkpoint.mapped)
    container = checkpoint.container
    state: Mapping[str, Tensor] | None = content.states.get(container)
    if state is None:  # --weights named a prefix
        state = part_at(content.states, container)
    renamed = checkpoint.stripping.apply(state) if state is not None else None
    if renamed is not None:
        return renamed
    raise SettingsError(
        f"{checkpoint.place}: the file changed since the run began.",
        "Run again when nothing writes to it.",
    )


class Failures:
    """The checkpoints of a series that fail; without `skips`, the first is raised instead."""

    def __init__(self, run: str, *, skips: bool) -> None:
        self._run = run
        self._skips = skips
        self._errors: list[LocalrankError] = []
        self.records: list[CheckpointRecord] = []
        self._unread: dict[int, CheckpointFile] = {}  # index of the record -> file

    def steps(self, headers: Headers, note: Note, folder: Path) -> list[tuple[CheckpointFile, int]]:
        """Return each checkpoint that can be read and its step, by step; there is at least one.

        Raises:
            LocalrankError: If one cannot be read and errors are not skipped, or none can.
        """
        found = headers.steps(note, self._add_unread if self._skips else None)
        if not found:
            self.refuse_all(folder)
        # The steps of the others are in their names, once it is known how to read those.
        for index, file in self._unread.items():
            step = headers.scheme.step_of_unread(file)
            self.records[index] = replace(self.records[index], step=step)
        return found

    def _add_unread(self, file: CheckpointFile, error: LocalrankError) -> None:
        self._unread[len(self.records)] = file
        self._add(file.name, None, error)

    def _add(self, name: str, step: int | None, error: LocalrankError) -> None:
        self._errors.append(error)
        self.records.append(failed_record(self._run, name, step, error))

    def fitting(
        self,
        steps: Sequence[tuple[CheckpointFile, int]],
        plan: Callable[[CheckpointFile, int], PlannedCheckpoint],
        folder: Path,
    ) -> list[PlannedCheckpoint]:
        """Plan each checkpoint whose keys and shapes fit; at least one does.

        Raises:
            MismatchError: If one does not fit and errors are not skipped.
            UnreadableError: If a config beside one cannot be read.
            LocalrankError: If none fits.
        """
        planned = []
        for file, step in steps:
            try:
                planned.append(plan(file, step))
            except (MismatchError, UnreadableError) as error:
                if not self._skips:
                    raise
                self._add(file.name, step, error)
        if not planned:
            self.refuse_all(folder)
        return planned

    def complete(
        self,
        planned: Sequence[PlannedCheckpoint],
        parts: Parts,
        folder: Path,
    ) -> tuple[tuple[PlannedCheckpoint, ...], tuple[CheckpointRecord, ...]]:
        """Return the checkpoints that hold what their layers need, and records of the others.

        Raises:
            MismatchError: If one does not and errors are not skipped.
            LocalrankError: If none does.
        """
        n_before, passing = len(self.records), []
        for one in planned:
            try:
                parts.check(one.missing, one.place)
                passing.append(one)
            except MismatchError as error:
                if not self._skips:
                    raise
                self._add(one.file.name, one.step, error)
        if planned and not passing:
            self.refuse_all(folder)
        return tuple(passing), tuple(self.records[n_before:])

    def first_that_runs(
        self,
        planned: Sequence[PlannedCheckpoint],
        examine: Callable[[PlannedCheckpoint], Examination],
    ) -> tuple[Examination, tuple[str, ...]]:
        """Examine the model at the first checkpoint; if errors are skipped, the first that runs.

        The names of the checkpoints that were tried are returned too.

        Raises:
            UnreadableError: If the checkpoint cannot be read.
            MismatchError: If it does not fit.
        """
        for count, checkpoint in enumerate(planned, start=1):
            try:
                return examine(checkpoint), tuple(one.file.name for one in planned[:count])
            except (UnreadableError, MismatchError):  # reported when the checkpoint is computed
                if not self._skips or count == len(planned):
                    raise
        raise AssertionError  # there is at least one

    def refuse_all(self, folder: Path) -> None:
        """Report that no checkpoint can be analyzed.

        Raises:
            LocalrankError: Always, of the kind of the first failure.
        """
        first = self._errors[0]
        raise type(first)(
            f"{folder}: none of its {len(self._errors)} checkpoints can be analyzed; the first:"
            f" {first.what}",
            first.advice,
        )


def failed_record(
    run: str, checkpoint: str, step: int | None, error: LocalrankError
) -> CheckpointRecord:
    """Return a record without numbers, for a checkpoint that cannot be read or run."""
    return CheckpointRecord(run, checkpoint, step, status=error.status, message=shown(str(error)))


def choose_part(
    part: Part,
    planned: Sequence[PlannedCheckpoint],
    failed: Sequence[CheckpointRecord],
    folder: Path,
) -> tuple[tuple[PlannedCheckpoint, ...], tuple[CheckpointRecord, ...]]:
    """Return the checkpoints and failures in a part of a series; `planned` is by step.

    A failure counts as a checkpoint of its step.

    Raises:
        SettingsError: If the part is empty.
    """
    if part.is_all:
        return tuple(planned), tuple(failed)
    every: list[PlannedCheckpoint | CheckpointRecord] = [*planned, *failed]
    every.sort(key=lambda one: float("inf") if one.step is None else one.step)
    picked = part.of(every)
    if not picked:
        steps = [one.step for one in every]
        raise SettingsError(
            f"{folder}: --steps selects none of its {len(every)} checkpoints, which are at steps"
            f" {steps[0]} to {steps[-1]}.",
            "Give a range that contains some of them.",
        )
    return (
        tuple(one for one in picked if isinstance(one, PlannedCheckpoint)),
        tuple(one for one in picked if isinstance(one, CheckpointRecord)),
    )
