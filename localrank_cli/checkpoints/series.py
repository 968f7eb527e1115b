"""Find the checkpoints of each series in the paths that the user named."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from localrank_cli.checkpoints.content import Content
from localrank_cli.checkpoints.folders import (
    FACTS,
    NOT_CHECKPOINTS,
    cached_snapshot,
    entries_in,
    folder_weights,
    hub_folder_of,
    in_order_of_choice,
    inner_weights,
    is_alias,
    is_file,
    is_folder_weights,
    is_hub_folder,
    is_resource_fork,
    several_weights,
    snapshots,
    stem_of,
)
from localrank_cli.checkpoints.foreign import (
    conversion_of_arrays,
    is_of_torch_save,
    renaming,
    suffix_of,
)
from localrank_cli.checkpoints.formats import SUFFIXES, is_weights_file
from localrank_cli.checkpoints.names import NO_RULE, NameRule, epoch_in_name, step_in_name
from localrank_cli.checkpoints.sharded import is_index, is_shard, shard_files
from localrank_cli.checkpoints.source import Source
from localrank_cli.errors import SettingsError, UnreadableError, listed

_SUPPORTED = f"Supported: {', '.join(SUFFIXES[:-1])} and {SUFFIXES[-1]}"
_CONVERT_PICKLE = (
    "Convert it if you trust it (detectron2's model zoo: DetectionCheckpointer reads it), and"
    " save the state dict: torch.save(model.state_dict(), 'step_100.pt')."
)

# How far, and in how many folders of a level, to look for the series that was meant.
_DEPTH = 3
_MOST_FOLDERS = 200
_MOST_PATTERNS = 3  # that an advice names


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint before it is read."""

    path: Path  # the weights file, the index of several, or `.metadata`
    name: str  # relative to the series; for checkpoint-N/ the folder's name
    folder: Path | None = None  # of a checkpoint that is a folder, with its `trainer_state.json`
    label: str = ""  # a revision of the Hub, if the name is a hash
    # The weights of a network in memory, which has no file: `path` is then a name for messages.
    held: Content | None = field(default=None, compare=False, repr=False)
    # Where the weights come from, if `path` does not hold them yet.
    source: Source | None = field(default=None, compare=False, repr=False)

    @property
    def stem(self) -> str:
        """The name from which a step is read."""
        last = self.name.rsplit("/", 1)[-1]
        return self.label or (last if self.path.name != last else stem_of(last))

    @property
    def name_step(self) -> int | None:
        """The step in the name."""
        return step_in_name(self.stem)

    @property
    def name_epoch(self) -> int | None:
        """The epoch in the name."""
        return epoch_in_name(self.stem)


@dataclass(frozen=True)
class Series:
    """One training run's folder and the checkpoints in it."""

    folder: Path  # resolved
    files: tuple[CheckpointFile, ...]
    address: str = ""  # as the user wrote it, if the series is on another machine

    @property
    def place(self) -> str:
        """Where the series is."""
        return self.address or str(self.folder)


def find_folders(
    paths: Sequence[Path], rule_of: Callable[[Path], NameRule] = lambda _: NO_RULE
) -> dict[Path, list[Path]]:
    """Group what the user named into series: a folder, or single files of one folder.

    Args:
        paths: Folders, files, and `checkpoint-N/` folders.
        rule_of: The rule by which names in a series' folder are read.

    Returns:
        Resolved folder -> the single checkpoints named in it; an empty list means the whole folder.

    Raises:
        UnreadableError: If a path does not exist.
    """
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        resolved = _resolve(path)
        if resolved.is_dir() and not _is_checkpoint_folder(resolved, rule_of):
            folders[resolved] = []
            continue
        if is_folder_weights(resolved) and _is_checkpoint_folder(resolved.parent, rule_of):
            resolved = resolved.parent
        folder = hub_folder_of(resolved) or resolved.parent
        single = folders.get(folder)
        if single is None:
            folders[folder] = [resolved]
        elif single and resolved not in single:
            single.append(resolved)
    return folders


def _resolve(path: Path) -> Path:
    try:
        found = path.resolve()
        if found.is_dir():
            return found
        # A link keeps its own name: the name of its target may have no step and no known suffix.
        found = path.parent.resolve() / path.name
        found.stat()
        return found
    except FileNotFoundError as error:
        advice = "Check the spelling of the path."
        if any(mark in path.name for mark in "*?["):
            pattern = shlex.quote(path.name)
            advice = f"To choose files by a glob, name the folder and give --pattern {pattern}."
        raise UnreadableError(f"{path}: there is no such file or folder.", advice) from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableError(
            f"{path}: cannot be read ({reason}).", "Check the path and its permissions."
        ) from error


def find_checkpoints(
    folder: Path,
    named: Sequence[Path],
    pattern: str,
    exclude: Iterable[Path],
    rule: NameRule = NO_RULE,
) -> Series:
    """Return the checkpoints of a series, in order of name.

    Args:
        folder: The series' folder.
        named: Single checkpoints of it; empty for all.
        pattern: A glob on names (`--pattern`); empty for all. In `step_*/a.pt` the second part
            chooses one of several files in a checkpoint's folder.
        exclude: Files that are not checkpoints, such as the data file.
        rule: `--step-regex`.

    Raises:
        UnreadableError: If there is no checkpoint.
        SettingsError: If a named file is not a checkpoint.
    """
    excluded = {_real(path) for path in exclude}
    if is_hub_folder(folder):
        files = list(_of_hub(folder, named, pattern))
        entries = list(snapshots(folder))
    else:
        try:
            entries = list(named) or sorted(
                entry for entry in folder.iterdir() if not is_resource_fork(entry)
            )
        except OSError as error:
            raise UnreadableError(
                f"{folder}: cannot be read ({error.strerror}).", "Check its permissions."
            ) from error
        shards = _shards(entries)
        inner = pattern.partition("/")[2]
        fitting = [entry for entry in entries if not pattern or _matches(entry, pattern)]
        # The same weights in several formats, as in many repositories of the Hub.
        others = set() if named else set(in_order_of_choice(fitting)[1:])
        files = []
        for entry in fitting:
            if not named and (NOT_CHECKPOINTS.match(entry.name) or entry.name in FACTS):
                continue
            if entry in shards or entry in others or _real(entry) in excluded:
                continue
            file = _as_checkpoint(entry, folder, bool(named), rule, inner)
            if file is not None:
                files.append(file)
    if not files and not named and not pattern:
        weights = folder_weights(folder)  # of a single checkpoint, such as best/.metadata
        if weights is not None:
            files = [CheckpointFile(weights, weights.relative_to(folder).as_posix(), folder)]
    if not files:
        raise _nothing_found(folder, entries, pattern)
    return Series(folder, tuple(files))


def _matches(entry: Path, pattern: str) -> bool:
    outer, slash, _ = pattern.partition("/")
    return fnmatch(entry.name, outer) and (not slash or entry.is_dir())


def run_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return a name for each series: the shortest ending of its path that is unique."""
    names: dict[Path, str] = {}
    for folder in folders:
        for length in range(1, len(folder.parts) + 1):
            ending = folder.parts[-length:]
            same = [other for other in folders if other.parts[-length:] == ending]
            if len(same) == 1:
                break
        names[folder] = "/".join(part.strip("/") for part in ending) or "/"
    return names


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle: reported when it is read
        return path


def _of_hub(folder: Path, named: Sequence[Path], pattern: str) -> Iterator[CheckpointFile]:
    for snapshot, refs in snapshots(folder).items():
        if named and snapshot not in named:
            continue
        # If a snapshot has several names, the one with a step identifies it (`main` is an alias).
        label = next((ref for ref in refs if step_in_name(ref) is not None), "".join(refs[:1]))
        name = snapshot.relative_to(folder).as_posix()
        if pattern and not any(fnmatch(text, pattern) for text in (*refs, snapshot.name)):
            continue
        weights = folder_weights(snapshot)
        if weights is not None:
            yield CheckpointFile(weights, name, snapshot, label)


def _shards(entries: Sequence[Path]) -> set[Path]:
    """Return the files that indexes among the entries list: they are not checkpoints themselves."""
    return {shard for entry in entries if is_index(entry) for shard in shard_files(entry)}


def _as_checkpoint(
    entry: Path, folder: Path, named: bool, rule: NameRule, inner: str
) -> CheckpointFile | None:
    name = entry.relative_to(folder).as_posix()
    if entry.is_dir():
        if not _may_be_checkpoint(entry, rule):
            return None
        place = cached_snapshot(entry) or entry
        weights = None if inner else folder_weights(place)
        several = []
        if weights is None:
            several = inner_weights(place, inner) if inner else several_weights(place)
        if len(several) > 1:
            raise _ambiguous(entry, [path.relative_to(place) for path in several])
        weights = next(iter(several), weights)
        return CheckpointFile(weights, name, place) if weights is not None else None
    if is_index(entry) or is_weights_file(entry):
        if is_shard(stem_of(entry.name)):
            raise UnreadableError(
                f"{entry}: is one of several files of a sharded checkpoint, but there is no index"
                " file (*.index.json) that lists it.",
                "Copy the index of the checkpoint too, or save it again in one file:"
                " model.save_pretrained(DIR, max_shard_size='1TB').",
            )
        return CheckpointFile(entry, name, folder if is_folder_weights(entry) else None)
    if named:
        raise _not_a_checkpoint(entry)
    return None


def _ambiguous(folder: Path, files: Sequence[Path]) -> UnreadableError:
    names = [file.as_posix() for file in files]
    return UnreadableError(
        f"{folder}: holds {len(files)} weights files ({listed(names, 4)}), but none is named"
        " model.pt, model.safetensors or pytorch_model.bin.",
        f"Choose one in each folder: --pattern '*/{names[0]}' or --pattern '*/{names[1]}'.",
    )


def _not_a_checkpoint(entry: Path) -> SettingsError:
    if is_of_torch_save(entry):
        return SettingsError(
            f"{entry}: was written by torch.save, but {entry.suffix!r} is not a checkpoint suffix.",
            f"Rename it: {renaming([entry])}. {_SUPPORTED}.",
        )
    if entry.suffix.lower() in (".pkl", ".pickle"):
        return SettingsError(
            f"{entry}: is a plain pickle, which cannot be read without running code.",
            _CONVERT_PICKLE,
        )
    if entry.suffix.lower() == ".npz":
        return SettingsError(
            f"{entry}: is an archive of numpy arrays, not a checkpoint.", _convert_arrays(entry)
        )
    return SettingsError(f"{entry}: {entry.suffix!r} is not a checkpoint suffix.", f"{_SUPPORTED}.")


def _convert_arrays(path: Path) -> str:
    return (
        f"If these are data, pass them with --data. If they are the weights of a network, under"
        f" their names in its state dict, convert them: {conversion_of_arrays(path)}"
    )


def _may_be_checkpoint(folder: Path, rule: NameRule) -> bool:
    if rule.step(folder.name) is not None or step_in_name(folder.name) is not None:
        return True
    if epoch_in_name(folder.name) is not None or is_alias(folder.name):
        return True
    if not any(is_file(folder / name) for name in FACTS):
        return False
    # A folder of checkpoints may contain a `trainer_state.json` too.
    return not any(
        step_in_name(path.name) is not None and path.is_dir() for path in entries_in(folder)
    )


def _is_checkpoint_folder(folder: Path, rule_of: Callable[[Path], NameRule]) -> bool:
    """Return whether a folder that was named is one checkpoint and not a series."""
    if hub_folder_of(folder) is not None:
        return True
    named = step_in_name(folder.name) is not None or epoch_in_name(folder.name) is not None
    if not named and rule_of(folder.parent).step(folder.name) is None:
        return False
    return _holds_weights(folder)


def _holds_weights(folder: Path) -> bool:
    place = cached_snapshot(folder) or folder
    return folder_weights(place) is not None or len(several_weights(place)) > 1


def _series_inside(folder: Path) -> list[str]:
    """Return the nearest folders inside that are a series, relative to this one."""
    level = [folder]
    for _ in range(_DEPTH):
        below = [path for parent in level for path in sorted(entries_in(parent)) if path.is_dir()]
        level = [path for path in below if not path.name.startswith(".")][:_MOST_FOLDERS]
        found = [path for path in level if _is_series(path)]
        if found:
            return [path.relative_to(folder).as_posix() for path in found]
    return []


def _is_series(folder: Path) -> bool:
    if is_hub_folder(folder):
        return True
    return any(
        _may_be_checkpoint(entry, NO_RULE) and _holds_weights(entry)
        if entry.is_dir()
        else is_weights_file(entry) or is_folder_weights(entry)
        for entry in entries_in(folder)
        if not NOT_CHECKPOINTS.match(entry.name)
    )


def _advice_of_folders(folder: Path, inside: Sequence[str]) -> str:
    """Return how to read the folders that hold weights: as one series where steps name those above.

    Named by themselves, `checkpoint-100/unet` and `checkpoint-200/unet` would both be step 0.
    """
    split = [path.partition("/") for path in inside]
    below = list(dict.fromkeys(rest for _, _, rest in split))
    if all(
        rest and _may_be_checkpoint(folder / first, NO_RULE) and _holds_weights(folder / path)
        for path, (first, _, rest) in zip(inside, split, strict=True)
    ):
        patterns = [f"--pattern {shlex.quote(f'*/{rest}')}" for rest in below[:_MOST_PATTERNS]]
        return f"To read them as one series, give {' or '.join(patterns)}."
    return f"Name these instead, such as {folder / inside[0]}: each is a series."


def _of_torch_save(entries: Sequence[Path]) -> list[Path]:
    """Return the files of torch.save, of one suffix, that are no checkpoints by their suffix."""
    found = [
        entry
        for entry in entries[:_MOST_FOLDERS]
        if entry.is_file() and not NOT_CHECKPOINTS.match(entry.name) and is_of_torch_save(entry)
    ]
    return [entry for entry in found if suffix_of(entry) == suffix_of(found[0])]


def _nothing_found(folder: Path, entries: Sequence[Path], pattern: str) -> UnreadableError:
    if not entries:
        return UnreadableError(f"{folder}: the folder is empty.", "Name a folder of checkpoints.")
    inside = [] if pattern else _series_inside(folder)
    if inside:
        return UnreadableError(
            f"{folder}: holds no checkpoint, but its folders do: {', '.join(inside[:5])}.",
            _advice_of_folders(folder, inside),
        )
    others = [] if pattern else _of_torch_save(entries)
    if others:
        return UnreadableError(
            f"{folder}: holds no file with a checkpoint suffix, but files that torch.save wrote:"
            f" {listed([path.name for path in others], 4)}.",
            f"If {'it is a checkpoint' if len(others) == 1 else 'they are checkpoints'}, rename"
            f" {'it' if len(others) == 1 else 'them'}: {renaming(others)}",
        )
    pickles = [entry for entry in entries if entry.suffix.lower() in (".pkl", ".pickle")]
    names = ", ".join(entry.name for entry in entries[:8])
    by = f" that matches --pattern {pattern!r}" if pattern else ""
    advice = f"{_SUPPORTED}, and checkpoint-N/ folders."
    arrays = [entry for entry in entries if entry.suffix.lower() == ".npz"]
    if (pickles or arrays) and not pattern:
        advice = _CONVERT_PICKLE if pickles else f"{advice} {_convert_arrays(arrays[0])}"
    return UnreadableError(f"{folder}: holds no checkpoint{by}; it holds {names}.", advice)
