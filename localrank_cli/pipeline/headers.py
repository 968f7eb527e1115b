"""Steps and shapes of every checkpoint, from the headers alone, before any work."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor, nn

from localrank_cli.checkpoints.content import Content
from localrank_cli.checkpoints.formats import read
from localrank_cli.checkpoints.prefixes import Stripping, candidates, strip_to_fit
from localrank_cli.checkpoints.series import CheckpointFile, Series
from localrank_cli.errors import LocalrankError, MismatchError, SettingsError, UnreadableError
from localrank_cli.model.fill import Expected, fill_model, mismatch

Note = Callable[[str], None]
Skip = Callable[[CheckpointFile, LocalrankError], None]
_Shapes = dict[str, dict[str, tuple[int, ...]]]  # container -> key -> shape


@dataclass(frozen=True)
class PlannedCheckpoint:
    """One checkpoint, its step known, its header checked."""

    file: CheckpointFile
    step: int
    container: str  # key of the state dict in the file; "" for a bare one
    stripping: Stripping
    aside: tuple[str, ...] = ()  # keys of other state dicts in the file, not taken
    points: tuple[int, int] | None = None  # only these (first, one past the last), for a shard

    @property
    def place(self) -> str:
        """File and step, for messages."""
        return f"{self.file.path} (step {self.step})"


class Headers:
    """Reads each checkpoint's header once.

    Args:
        series: The checkpoints.
        trust_pickle: Whether a pickle may run code.
    """

    def __init__(self, series: Series, trust_pickle: bool) -> None:
        self._series = series
        self._trust_pickle = trust_pickle
        self._shapes: dict[CheckpointFile, _Shapes] = {}
        self._last_shapes: _Shapes = {}
        self.first: Content | None = None

    def steps(self, note: Note, skip: Skip | None = None) -> list[tuple[CheckpointFile, int]]:
        """Tells each checkpoint's step: from its content, else from its name.

        Args:
            note: Takes each note for the user.
            skip: Takes each file that cannot be read; None: the first is an error.

        Returns:
            Files and steps, by step.

        Raises:
            SettingsError: If a step cannot be told, or two files have the same.
        """
        found: dict[int, CheckpointFile] = {}
        sources: dict[CheckpointFile, str] = {}
        unknown: list[str] = []
        epochs: list[str] = []
        for file in self._series.files:
            content = self._header(file, skip)
            if content is None:
                continue
            self.first = self.first or content
            self._shapes[file] = self._shared(content)
            if content.step is not None and file.name_step not in (None, content.step):
                note(
                    f"{file.name}: its name says step {file.name_step}, its entry"
                    f" {content.step_source!r} says {content.step}, which is taken"
                )
            step, sources[file] = _step(file, content)
            if step is None:
                unknown.append(file.name)
                continue
            if content.step is None and file.name_step is None:
                epochs.append(file.name)
            if step in found:
                raise self._same_step(step, found[step], file, sources)
            found[step] = file
        if epochs and len(epochs) < len(found):
            unknown += epochs  # an epoch among steps is no step
        if unknown:
            raise _no_step(self._series, unknown)
        if epochs:
            note("there are epochs and no steps: the column step holds epochs")
        return [(found[step], step) for step in sorted(found)]

    def _header(self, file: CheckpointFile, skip: Skip | None) -> Content | None:
        try:
            return read(file.path, trust_pickle=self._trust_pickle, header_only=True)
        except UnreadableError as error:
            if skip is None:
                raise
            skip(file, error)
            return None

    def _same_step(
        self,
        step: int,
        first: CheckpointFile,
        second: CheckpointFile,
        sources: Mapping[CheckpointFile, str],
    ) -> SettingsError:
        return SettingsError(
            f"{self._series.folder}: {first.name} ({sources[first]}) and {second.name}"
            f" ({sources[second]}) are both step {step}.",
            "Leave one out with --pattern GLOB.",
        )

    def _shared(self, content: Content) -> _Shapes:
        shapes = {
            key: {name: tuple(tensor.shape) for name, tensor in state.items()}
            for key, state in content.states.items()
        }
        # Checkpoints of one run have equal headers: one copy keeps memory flat for any number.
        if shapes != self._last_shapes:
            self._last_shapes = shapes
        return self._last_shapes

    def plan(
        self, file: CheckpointFile, step: int, model: nn.Module, expected: Expected
    ) -> PlannedCheckpoint:
        """Checks a checkpoint's keys and shapes against the model.

        Args:
            file: From `steps`.
            step: From `steps`.
            model: The network.
            expected: What it must hold.

        Returns:
            How its weights are to be loaded.

        Raises:
            MismatchError: If they do not fit.
        """
        containers = self._shapes[file]
        for container, shapes in containers.items():
            found = strip_to_fit(shapes, expected.fits)
            if found is not None:
                aside = tuple(key for key in containers if key != container)
                return PlannedCheckpoint(file, step, container, found[0], aside)
        place = PlannedCheckpoint(file, step, "", Stripping()).place
        if type(model).load_state_dict is not nn.Module.load_state_dict or _has_hooks(model):
            # A user's load hooks may accept what keys and shapes alone do not show.
            content = read(file.path, trust_pickle=self._trust_pickle)
            for container, state in content.states.items():
                with suppress(MismatchError):
                    fill_model(model, expected, state, place)
                    return PlannedCheckpoint(file, step, container, Stripping())
        closest = min(
            (renamed for shapes in containers.values() for _, renamed in candidates(shapes)),
            key=lambda shapes: sum(map(len, expected.differences(shapes))),
        )
        raise mismatch(expected, closest, place)


def _step(file: CheckpointFile, content: Content) -> tuple[int | None, str]:
    """A checkpoint's step and where it was found: what is inside the file beats its name."""
    if content.step is not None:
        return content.step, f"by its entry {content.step_source!r}"
    if file.name_step is not None:
        return file.name_step, "by its name"
    if content.epoch is not None:
        return content.epoch, "by its entry 'epoch'"
    return file.name_epoch, "by the epoch in its name"


def _has_hooks(model: nn.Module) -> bool:
    return any(
        module._load_state_dict_pre_hooks  # noqa: SLF001  # torch has no public way to ask
        or type(module)._load_from_state_dict is not nn.Module._load_from_state_dict  # noqa: SLF001  # as above
        for module in model.modules()
    )


def load_state(checkpoint: PlannedCheckpoint, trust_pickle: bool) -> dict[str, Tensor]:
    """Reads a planned checkpoint's tensors under the model's names.

    Args:
        checkpoint: From the plan.
        trust_pickle: Whether a pickle may run code.

    Returns:
        Name -> tensor.
    """
    content = read(checkpoint.file.path, trust_pickle=trust_pickle)
    state: Mapping[str, Tensor] | None = content.states.get(checkpoint.container)
    if state is not None:
        for stripping, renamed in candidates(state):
            if stripping == checkpoint.stripping:
                return renamed
    raise SettingsError(
        f"{checkpoint.place}: the file changed since the run began.",
        "Run again when nothing writes to it.",
    )


def _no_step(series: Series, unknown: Sequence[str]) -> SettingsError:
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return SettingsError(
        f"{series.folder}: no step can be told for {', '.join(unknown[:5])}{more}.",
        "Names such as step_100, checkpoint-100, epoch=1-step=100 or model_100 tell one; choose"
        " the checkpoints with --pattern GLOB, or rename the file.",
    )
