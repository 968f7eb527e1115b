"""The addresses of series on other machines: `hf://org/name@step*`."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from localrank_cli.errors import UsageError

_HUB = re.compile(r"hf:/+(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_EXAMPLE = "Write hf://ORG/NAME, or hf://ORG/NAME@step* for the revisions of that name."


@dataclass(frozen=True)
class HubAddress:
    """A repository on the Hub, and which of its revisions are meant."""

    repository: str  # ORG/NAME
    revisions: tuple[str, ...] = ()  # globs; none: the default branch

    def __str__(self) -> str:
        at = ",".join(one.replace("/", "%2F") for one in self.revisions)
        return f"hf://{self.repository}" + (f"@{at}" if at else "")


def address_of(path: Path) -> HubAddress | None:
    """Return the address that a path of the command line is; None for a path on this machine.

    Raises:
        UsageError: If it is one that cannot be read.
    """
    # A path has one slash where the user wrote two.
    found = _HUB.fullmatch(str(path))
    if found is None:
        return None
    text = f"hf://{found[1]}"
    parts = found[1].strip("/").split("/")
    if parts[0] in ("datasets", "spaces", "models", "buckets") and len(parts) > 2:
        raise UsageError(
            f"{text}: names a repository of {parts[0]}, expected one of a model.", _EXAMPLE
        )
    if len(parts) > 2:
        raise UsageError(
            f"{text}: names a folder within a repository, expected ORG/NAME.",
            f"{_EXAMPLE} A slash in a revision is written %2F.",
        )
    name, at, revisions = parts[-1].partition("@")
    if len(parts) < 2 or not all(map(_NAME.fullmatch, (parts[0], name))) or ".." in name:
        raise UsageError(f"{text}: is not the address of a repository on the Hub.", _EXAMPLE)
    globs = tuple(unquote(one) for one in revisions.split(",") if one)
    if at and not globs:
        raise UsageError(f"{text}: no revision follows the @.", _EXAMPLE)
    return HubAddress(f"{parts[0]}/{name}", globs)
