"""The addresses of files on other machines: `hf://org/name@step*`, `s3://bucket/run`."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from localrank_cli.errors import UsageError

# A path has one slash where the user wrote two. One letter is a drive of Windows.
_ADDRESS = re.compile(r"((?:[a-z0-9+.-]*::)*[a-z][a-z0-9+.-]+):(/.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_EXAMPLE = "Write hf://ORG/NAME, or hf://ORG/NAME@step* for the revisions of that name."
_HUB = "hf"
_LOCAL = ("file", "local")
# Protocols of fsspec that open a file within another, keep copies of their own, or name no files.
_REFUSED = (
    "zip", "tar", "libarchive", "blockcache", "filecache", "simplecache", "cached", "reference",
    "dir", "generic", "data", "asyncwrapper", "parquet",
)  # fmt: skip


@dataclass(frozen=True)
class HubAddress:
    """A repository on the Hub, which of its revisions are meant, and a folder in it."""

    repository: str  # ORG/NAME
    revisions: tuple[str, ...] = ()  # globs; none: the default branch
    folder: str = ""  # within each revision

    def __str__(self) -> str:
        at = ",".join(one.replace("/", "%2F") for one in self.revisions)
        folder = f"/{self.folder}" if self.folder else ""
        return f"hf://{self.repository}" + (f"@{at}" if at else "") + folder


@dataclass(frozen=True)
class FileAddress:
    """Files in a store that fsspec reads."""

    protocol: str
    path: str  # without slashes around it

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"


Address = HubAddress | FileAddress


def address_of(path: Path | str) -> Address | None:
    """Return the address that a path of the command line is; None for a path on this machine.

    Raises:
        UsageError: If it is one that cannot be read.
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None or (found[1] != _HUB and Path(path).exists()):
        return None
    protocol, rest = found[1], found[2].strip("/")
    if protocol == _HUB:
        return _of_hub(rest)
    text = f"{protocol}://{rest}"
    if protocol in _LOCAL:
        raise UsageError(f"{text}: is a path on this machine.", f"Give the path alone: /{rest}.")
    if "::" in text or protocol in _REFUSED:  # `::` puts one address into another
        raise UsageError(
            f"{text}: names files within a file or a cache, which localrank does not open.",
            "Name a folder or a file of the store itself, such as s3://BUCKET/RUN.",
        )
    if not rest:
        raise UsageError(f"{text}: no folder or file is named.", "Write s3://BUCKET/RUN.")
    return FileAddress(protocol, rest)


def _of_hub(rest: str) -> HubAddress:
    text = f"hf://{rest}"
    parts = rest.split("/")
    if parts[0] in ("datasets", "spaces", "models", "buckets") and len(parts) > 2:
        raise UsageError(
            f"{text}: names a repository under {parts[0]}, expected a model.", _EXAMPLE
        )
    if len(parts) < 2:
        raise UsageError(f"{text}: is not the address of a repository on the Hub.", _EXAMPLE)
    name, at, revisions = parts[1].partition("@")
    if not all(map(_NAME.fullmatch, (parts[0], name))) or ".." in name:
        raise UsageError(f"{text}: is not the address of a repository on the Hub.", _EXAMPLE)
    globs = tuple(unquote(one) for one in revisions.split(",") if one)
    if at and not globs:
        raise UsageError(f"{text}: no revision follows the @.", _EXAMPLE)
    folder = parts[2:]
    if any(part in {"", ".", ".."} for part in folder):
        raise UsageError(f"{text}: names no folder within a repository.", _EXAMPLE)
    return HubAddress(f"{parts[0]}/{name}", globs, "/".join(folder))
