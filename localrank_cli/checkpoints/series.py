"""Finds the checkpoints among what the user named."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from localrank_cli.checkpoints.formats import folder_weights, is_folder_weights, is_weights_file
from localrank_cli.checkpoints.steps import epoch_in_name, step_in_name
from localrank_cli.errors import SettingsError, UnreadableError

_NOT_CHECKPOINTS = re.compile(
    r"^(?:.*[_\-.])?(?:optim(?:izer)?|(?:lr_?)?scheduler|rng(?:_?states?)?|random_states?|scaler|"
    r"training_args|trainer_state)"
    # Possessive: names are matched in linear time.
    r"(?:[_\-.=]*+(?:(?:global_?)?(?:states?|steps?|iter|epoch|checkpoint|ckpt)|\d++))*+"
    r"(?:\.[A-Za-z]+)?$",
    flags=re.IGNORECASE,
)
_SHARD = re.compile(r"\d+-of-\d+$")


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint before it is read."""

    path: Path  # the weights file
    name: str  # relative to the series; for checkpoint-N/ the folder's name

    @property
    def stem(self) -> str:
        """The name from which a step is read."""
        last = self.name.rsplit("/", 1)[-1]
        return last if self.path.name != last else Path(last).stem

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


def find_folders(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Groups what the user named into series: a folder, or single files of one folder.

    Args:
        paths: Folders, files, and `checkpoint-N/` folders.

    Returns:
        Resolved folder -> the single checkpoints named in it; an empty list means the whole folder.

    Raises:
        UnreadableError: If a path does not exist.
    """
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        resolved = _resolve(path)
        if resolved.is_dir() and not _is_checkpoint_folder(resolved):
            folders[resolved] = []
            continue
        if is_folder_weights(resolved) and _is_checkpoint_folder(resolved.parent):
            resolved = resolved.parent
        single = folders.get(resolved.parent)
        if single is None:
            folders[resolved.parent] = [resolved]
        elif single and resolved not in single:
            single.append(resolved)
    return folders


def _resolve(path: Path) -> Path:
    try:
        found = path.resolve()
        if found.is_dir():
            return found
        # A link keeps its own name: where it leads, the name may tell no step and no format.
        found = path.parent.resolve() / path.name
        found.stat()
        return found
    except FileNotFoundError as error:
        raise UnreadableError(
            f"{path}: there is no such file or folder.", "Check the spelling of the path."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableError(
            f"{path}: cannot be read ({reason}).", "Check the path and its permissions."
        ) from error


def find_checkpoints(
    folder: Path, named: Sequence[Path], pattern: str, exclude: Iterable[Path]
) -> Series:
    """Lists the checkpoints of a series.

    Args:
        folder: The series' folder.
        named: Single checkpoints of it; empty for all.
        pattern: A glob on names (`--pattern`); empty for all.
        exclude: Files that are no checkpoints, such as the data file.

    Returns:
        The series, in order of name.

    Raises:
        UnreadableError: If there is no checkpoint.
        SettingsError: If a file was named that is no checkpoint.
    """
    excluded = {path.resolve() for path in exclude}
    try:
        entries = list(named) or sorted(folder.iterdir())
    except OSError as error:
        raise UnreadableError(
            f"{folder}: cannot be read ({error.strerror}).", "Check its permissions."
        ) from error
    files = []
    for entry in entries:
        if not named and _NOT_CHECKPOINTS.match(entry.name):
            continue
        if entry.resolve() in excluded or (pattern and not fnmatch(entry.name, pattern)):
            continue
        file = _as_checkpoint(entry, folder, bool(named))
        if file is not None:
            files.append(file)
    if not files:
        raise _nothing_found(folder, entries, pattern)
    return Series(folder, tuple(files))


def run_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Names series by their folder, or by the shortest path ending that tells all apart.

    Args:
        folders: Resolved folders.

    Returns:
        Folder -> run.
    """
    names: dict[Path, str] = {}
    for folder in folders:
        for length in range(1, len(folder.parts) + 1):
            ending = folder.parts[-length:]
            same = [other for other in folders if other.parts[-length:] == ending]
            if len(same) == 1:
                break
        names[folder] = "/".join(part.strip("/") for part in ending) or "/"
    return names


def _as_checkpoint(entry: Path, folder: Path, named: bool) -> CheckpointFile | None:
    name = entry.relative_to(folder).as_posix()
    if entry.is_dir():
        if not _is_checkpoint_folder(entry):
            return None
        weights = folder_weights(entry)
        return CheckpointFile(weights, name) if weights is not None else None
    if is_weights_file(entry):
        if _SHARD.search(entry.stem):
            raise UnreadableError(
                f"{entry}: is one of several files of a sharded checkpoint, which are not read"
                " yet.",
                "Save it again in one file: model.save_pretrained(DIR, max_shard_size='1TB').",
            )
        return CheckpointFile(entry, name)
    if named:
        raise SettingsError(
            f"{entry}: is not a checkpoint by its suffix {entry.suffix!r}.",
            "Known are .safetensors, .pt, .pth, .ckpt and .bin.",
        )
    return None


def _is_checkpoint_folder(folder: Path) -> bool:
    if step_in_name(folder.name) is None:
        return False
    names = {entry.name for entry in _listed(folder)}
    return any(name.startswith(("model.safetensors", "pytorch_model.bin")) for name in names)


def _nothing_found(folder: Path, entries: Sequence[Path], pattern: str) -> UnreadableError:
    if not entries:
        return UnreadableError(f"{folder}: the folder is empty.", "Name a folder of checkpoints.")
    inside = [
        entry.name
        for entry in entries
        if entry.is_dir() and any(is_weights_file(path) for path in _listed(entry))
    ]
    if inside:
        return UnreadableError(
            f"{folder}: holds no checkpoint, but its folders do: {', '.join(inside[:5])}.",
            "Name them: each is a series.",
        )
    names = ", ".join(entry.name for entry in entries[:8])
    by = f" that matches --pattern {pattern!r}" if pattern else ""
    return UnreadableError(
        f"{folder}: holds no checkpoint{by}; it holds {names}.",
        "Known are files with the suffixes .safetensors, .pt, .pth, .ckpt and .bin, and"
        " checkpoint-N/ folders.",
    )


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
