"""Repositories on the Hugging Face Hub, through its own client."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.formats import is_weights_file
from localrank_cli.checkpoints.sharded import is_index
from localrank_cli.errors import SettingsError, UnreadableError, cause, listed
from localrank_cli.remote.address import Address, HubAddress
from localrank_cli.remote.store import Listing, StoredFile

_COMMIT = re.compile(r"[0-9a-f]{40}")
_AT_ONCE = 8  # revisions that are listed in parallel
_PARTIAL = 206  # the status of an answer with a part of a file
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
        self._names: Mapping[str, list[str]] = {}  # commit -> its names
        self._tree_of = ""  # the commit, if checkpoints are folders within one

    def listing(self, address: Address) -> Listing:
        """Return the files of the revisions that an address names.

        Each is a checkpoint, in the layout of the client's own cache. If there is one alone, and
        its weights are in folders, these are the checkpoints.
        """
        assert isinstance(address, HubAddress)
        self._names = self._revisions(address.revisions)
        commits = list(self._names)
        if len(commits) == 1 and (address.folder or not self._has_weights(commits[0])):
            return self._tree(commits[0], address)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = pool.map(lambda commit: list(self._top(commit, address.folder)), commits)
        return Listing(
            root=self._repository,
            files=tuple(file for files in found for file in files),
            shown=str(address),
            refs={name: commit for commit, names in self._names.items() for name in names},
        )

    def _tree(self, commit: str, address: HubAddress) -> Listing:
        root = "/".join(filter(None, (self._repository, address.folder)))
        files = tuple(
            self._stored(one, commit, f"{self._repository}/{one.path}")
            for one in self._entries(commit, address.folder, recursive=True)
        )
        self._tree_of = commit
        return Listing(root, files, str(address))

    def _has_weights(self, commit: str) -> bool:
        names = [Path(one.path) for one in self._entries(commit, "")]
        return any(is_weights_file(name) or is_index(name) for name in names)

    def _top(self, commit: str, folder: str) -> Iterator[StoredFile]:
        """Yield the files of a revision, or of a folder in it, without those in further folders."""
        for one in self._entries(commit, folder):
            name = one.path.rpartition("/")[2]
            yield self._stored(one, commit, f"{self._repository}/snapshots/{commit}/{name}")

    def _entries(self, commit: str, folder: str, *, recursive: bool = False) -> list[Any]:
        """Return the files at one place of a revision, or all below it, as the client does."""
        api = self._client.HfApi()
        with self._explained():
            entries = api.list_repo_tree(
                self._repository, folder or None, revision=commit, recursive=recursive
            )
            try:
                files = [one for one in entries if hasattr(one, "size")]  # not a folder
            except self._client.errors.EntryNotFoundError as error:
                raise UnreadableError(
                    f"{self._address}: there is no folder {folder!r} in {commit}.",
                    "Check its name; a revision is named before it: hf://ORG/NAME@main/FOLDER.",
                ) from error
        if not all(isinstance(one.size, int) and 0 <= one.size < _MOST_BYTES for one in files):
            raise UnreadableError(
                f"{self._address}: the list of files of {commit} has impossible sizes.",
                "Check HF_ENDPOINT.",
            )
        # A name that leads elsewhere is none of the folder.
        inside = f"{folder}/" if folder else ""
        return [one for one in files if one.path.startswith(inside)]

    @staticmethod
    def _stored(one: Any, commit: str, path: str) -> StoredFile:
        version = one.lfs.sha256 if one.lfs else one.blob_id
        return StoredFile(path, f"{commit}/{one.path}", one.size, version, is_hash=True)

    def _revisions(self, patterns: tuple[str, ...]) -> Mapping[str, list[str]]:
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
                        f"{self._address}: the revision {name!r} has a name that no file can have.",
                        "Choose other revisions, or name this one by its commit.",
                    )
                names = found.setdefault(_checked(named[name], self._address), [])
                names += [name] if name not in names else []
        return found

    def part(self, file: StoredFile, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to `end`, or to its own end."""
        client = self._client
        commit, name = _split(file)
        url = client.hf_hub_url(self._repository, name, revision=commit)
        headers = {
            **client.utils.build_hf_headers(),
            "Range": f"bytes={start}-{end - 1}",
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
            skipped = 0 if reply.status_code == _PARTIAL else start  # a server need not know ranges
            for part in reply.iter_bytes():
                found += part
                if len(found) >= skipped + end - start:
                    break
        return bytes(found[skipped : skipped + end - start])

    def cached(self, file: StoredFile) -> Path | None:
        """Return a whole file in the client's own cache."""
        commit, name = _split(file)
        found = self._client.try_to_load_from_cache(self._repository, name, revision=commit)
        return Path(found) if isinstance(found, str) else None

    def download(self, file: StoredFile, incoming: Path) -> Path:
        """Return the path of a whole file; a commit never changes."""
        commit, name = _split(file)
        with self._explained():
            path = self._client.hf_hub_download(
                self._repository, name, revision=commit, cache_dir=incoming
            )
        return Path(path).resolve()

    def name_of(self, path: str) -> str:
        """Return the address of what is placed at a path, by its commit."""
        inner = path.removeprefix(self._repository).strip("/")
        commit = self._tree_of
        if not commit:
            _, _, inner = inner.partition("/")  # after snapshots
            commit, _, inner = inner.partition("/")
        return "/".join(filter(None, (f"hf://{self._repository}@{commit}", inner)))

    def facts(self, file: StoredFile) -> Mapping[str, str]:
        """Return the commit, and the names that it had when it was listed."""
        commit, _ = _split(file)
        return {"commit": commit, "revision": ", ".join(self._names.get(commit, ()))}

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
            "Check the connection and rerun the same command to resume. If the files are on this"
            " machine, name their folder instead."
        )


def _split(file: StoredFile) -> tuple[str, str]:
    """Return the commit of a file, and its name in the repository."""
    commit, _, name = file.key.partition("/")
    return commit, name


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
