"""The Hugging Face Hub's cache: snapshots in folders of hashes, and the names that lead to them."""

from pathlib import Path

from localrank_cli.checkpoints.faults import cannot_read

_MOST_BYTES = 200  # a ref is a hash of 40 digits


def is_hub_folder(folder: Path) -> bool:
    """Tells whether a folder is a repository in the Hub's cache.

    Args:
        folder: Any folder.

    Returns:
        True for `models--org--name` and whatever else has `refs` and `snapshots`.
    """
    try:
        return (folder / "snapshots").is_dir() and (folder / "refs").is_dir()
    except OSError:  # what cannot be looked into is said where it is read
        return False


def hub_folder_of(snapshot: Path) -> Path | None:
    """The repository that a snapshot belongs to.

    Args:
        snapshot: A folder.

    Returns:
        The repository's folder, or None where the folder is no snapshot.
    """
    folder = snapshot.parent.parent
    return folder if snapshot.parent.name == "snapshots" and is_hub_folder(folder) else None


def snapshots(folder: Path) -> dict[Path, list[str]]:
    """The snapshots of a repository and their revisions.

    Args:
        folder: For which `is_hub_folder` holds.

    Returns:
        Snapshot -> the branches and tags that lead to it, in order of name; none for a snapshot
        that was fetched by its hash.

    Raises:
        UnreadableError: If the folder cannot be read.
    """
    try:
        found: dict[Path, list[str]] = {
            path: [] for path in sorted((folder / "snapshots").iterdir()) if path.is_dir()
        }
        refs = folder / "refs"
        commits = {ref: _commit(ref) for ref in sorted(refs.rglob("*")) if ref.is_file()}
    except OSError as error:
        raise cannot_read(Path(error.filename or folder), error) from error
    for ref, commit in commits.items():
        # What a ref says is a name in `snapshots`, and never a path.
        names = found.get(folder / "snapshots" / Path(commit).name)
        if names is not None:
            names.append(ref.relative_to(refs).as_posix())
    return found


def _commit(ref: Path) -> str:
    with ref.open("rb") as file:
        return file.read(_MOST_BYTES).decode("ascii", "replace").strip()
