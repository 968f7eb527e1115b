"""Repositories on the Hugging Face Hub, through its own client."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from localrank_cli.errors import SettingsError, UnreadableError, cause, listed
from localrank_cli.remote.store import StoredFile

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_BYTES = 2**50  # of a file; the Hub's limit is far below
# Names of branches and tags become files on the disk: git allows no other parts that matter.
_REF = re.compile(r"(?!.*(?:^|/)\.)[\w.+=@,-]+(?:/[\w.+=@,-]+)*", re.ASCII)


class Hub:
    """The revisions of a repository of a model.

    Args:
        repository: ORG/NAME.
        address: As the user wrote it, for messages.

    Raises:
        SettingsError: If the client is not installed.
    """

    def __init__(self, repository: str, address: str) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            raise SettingsError(
                f"{address}: the Hub is read through huggingface_hub, which is not installed.",
                "Install it: pip install 'localrank[hub]'.",
            ) from error
        self._client: Any = huggingface_hub
        self._repository, self._address = repository, address

    def revisions(self, patterns: tuple[str, ...]) -> Mapping[str, list[str]]:
        """Return the revisions that a pattern matches: commit -> its names."""
        api = self._client.HfApi()
        with self._explained():
            if not patterns:
                return {_checked(api.model_info(self._repository).sha, self._address): ["main"]}
            refs = api.list_repo_refs(self._repository)
        named = {one.name: one.target_commit for one in (*refs.branches, *refs.tags)}
        found: dict[str, list[str]] = {}
        for pattern in patterns:
            fitting = [name for name in named if fnmatchcase(name, pattern)]
            if not fitting and re.fullmatch(r"[0-9a-f]{7,40}", pattern):
                with self._explained():
                    info = api.model_info(self._repository, revision=pattern)
                found.setdefault(_checked(info.sha, self._address), [])
            elif not fitting:
                raise self._no_revision(pattern, list(named))
            for name in fitting:
                if not _REF.fullmatch(name):
                    raise UnreadableError(
                        f"{self._address}: the revision {name!r} has no name that a file can have.",
                        "Choose other revisions, or name this one by its commit.",
                    )
                names = found.setdefault(_checked(named[name], self._address), [])
                names += [name] if name not in names else []
        return found

    def files(self, commit: str) -> list[StoredFile]:
        """Return the files at the top of a revision."""
        with self._explained():
            entries = list(self._client.HfApi().list_repo_tree(self._repository, revision=commit))
        files = [
            StoredFile(one.path, one.size, one.lfs.sha256 if one.lfs else one.blob_id)
            for one in entries
            if hasattr(one, "size")  # not a folder
        ]
        if not all(isinstance(one.size, int) and 0 <= one.size < _MOST_BYTES for one in files):
            raise UnreadableError(
                f"{self._address}: the list of files of {commit} has impossible sizes.",
                "Check HF_ENDPOINT.",
            )
        return files

    def start(self, commit: str, name: str, size: int) -> bytes:
        """Return the first `size` bytes of a file, or all of a shorter one."""
        client = self._client
        url = client.hf_hub_url(self._repository, name, revision=commit)
        headers = {
            **client.utils.build_hf_headers(),
            "Range": f"bytes=0-{size - 1}",
            "Accept-Encoding": "identity",
        }
        found = bytearray()
        with (
            self._explained(),
            client.utils.get_session().stream(
                "GET", url, headers=headers, follow_redirects=True
            ) as reply,
        ):
            client.utils.hf_raise_for_status(reply)
            for part in reply.iter_bytes():
                found += part
                if len(found) >= size:  # a server need not know ranges
                    break
        return bytes(found[:size])

    def download(self, commit: str, name: str, incoming: Path) -> tuple[Path, bool]:
        """Return the path of a whole file, and whether it is ours to move."""
        cached = self._client.try_to_load_from_cache(self._repository, name, revision=commit)
        if isinstance(cached, str):
            return Path(cached), False
        with self._explained():
            path = self._client.hf_hub_download(
                self._repository, name, revision=commit, cache_dir=incoming
            )
        return Path(path).resolve(), True

    def _no_revision(self, pattern: str, names: list[str]) -> UnreadableError:
        return UnreadableError(
            f"{self._address}: no revision matches {pattern!r}; there are {listed(names, 8)}.",
            "Choose revisions by a glob or a list of names: hf://ORG/NAME@step*.",
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise what the client raises as an error of ours, with what to do about it."""
        try:
            yield
        except (UnreadableError, MemoryError):
            raise
        except Exception as error:  # the client and its transport have many kinds
            raise UnreadableError(
                f"{self._address}: {_short(error)}.", self._advice(error)
            ) from error

    def _advice(self, error: Exception) -> str:
        errors = self._client.errors
        if isinstance(error, errors.GatedRepoError):
            return "Ask for access on its page, then log in: hf auth login, or set HF_TOKEN."
        if isinstance(error, errors.RevisionNotFoundError | errors.EntryNotFoundError):
            return "Choose another revision with hf://ORG/NAME@GLOB."
        if isinstance(error, errors.RepositoryNotFoundError):
            return "Check its name; if it is private, log in: hf auth login, or set HF_TOKEN."
        return (
            "Check the connection and run the same command again: what is finished is kept. Files"
            " that are on this machine are analyzed by their folder."
        )


def _short(error: Exception) -> str:
    """Return the first line of an error that says something; a client's may have many."""
    lines = [line.strip() for line in cause(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__).rstrip(".")


def _checked(commit: object, address: str) -> str:
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise UnreadableError(
            f"{address}: the Hub names a revision by {commit!r}, expected a commit of 40 digits.",
            "Check HF_ENDPOINT.",
        )
    return commit
