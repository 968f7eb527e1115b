"""Repositories on the Hugging Face Hub, through its own client."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.formats import is_weights_file
from localrank_cli.checkpoints.sharded import is_index
from localrank_cli.errors import SettingsError, UnreadableError, cause, listed, shortened
from localrank_cli.remote.address import Address, HubAddress
from localrank_cli.remote.store import Listing, StoredFile, is_of_disk

_COMMIT = re.compile(r"[0-9a-f]{40}")
# What the client raises for an answer that it does not expect.
_ODD = (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError)
_NO_ACCESS, _TOO_MANY = (401, 403), 429  # statuses
_AT_ONCE = 8  # revisions that are listed in parallel
_PARTIAL = 206  # the status of an answer with a part of a file
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a small file, SHA-256 of others
_MOST_FILES = 100_000  # in one repository, as the Hub recommends
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
            some: list[Any] = []
            try:
                # A server need not come to an end.
                some = list(islice(entries, _MOST_FILES + 1))
            except self._client.errors.EntryNotFoundError as error:
                raise UnreadableError(
                    f"{self._address}: there is no folder {folder!r} in {commit}.",
                    "Check its name; a revision is named before it: hf://ORG/NAME@main/FOLDER.",
                ) from error
        files = [one for one in some if hasattr(one, "size")]  # not a folder
        if len(some) > _MOST_FILES:
            raise UnreadableError(
                f"{self._address}: over {_MOST_FILES} files are listed in {commit}.",
                "Choose another revision, or a folder within this one: hf://ORG/NAME@REV/FOLDER.",
            )
        if not all(map(_is_possible, files)):
            raise UnreadableError(
                f"{self._address}: the list of files of {commit} has impossible names, sizes or"
                " hashes.",
                "Check HF_ENDPOINT.",
            )
        # A name that leads elsewhere is none of the folder.
        inside = f"{folder}/" if folder else ""
        return [one for one in files if one.path.startswith(inside)]

    @staticmethod
    def _stored(one: Any, commit: str, path: str) -> StoredFile:
        version = _version(one)
        return StoredFile(path, f"{commit}/{one.path}", one.size, version, is_hash=True)

    def _revisions(self, patterns: tuple[str, ...]) -> Mapping[str, list[str]]:
        """Return the revisions that a pattern matches: commit -> its names."""
        api = self._client.HfApi()
        with self._explained():
            if not patterns:
                return {_checked(api.model_info(self._repository).sha, self._address): ["main"]}
            refs = api.list_repo_refs(self._repository)
        named: dict[str, set[object]] = {}
        for one in (*refs.branches, *refs.tags):
            named.setdefault(str(one.name), set()).add(str(one.target_commit))
        found: dict[str, dict[str, None]] = {}
        for pattern in patterns:
            fitting = [name for name in named if fnmatchcase(name, pattern)]
            if not fitting and re.fullmatch(r"[0-9a-f]{7,40}", pattern):
                with self._explained():
                    info = api.model_info(self._repository, revision=pattern)
                found.setdefault(_checked(info.sha, self._address), {})
            elif not fitting:
                raise self._no_revision(pattern, list(named))
            for name in fitting:
                self._check_name(name, named)
                (commit,) = named[name]
                found.setdefault(_checked(commit, self._address), {})[name] = None
        every = {name for names in found.values() for name in names}
        for name in every:
            outer = [one for one in every if name.startswith(f"{one}/")] if "/" in name else []
            if outer:
                raise UnreadableError(
                    f"{self._address}: the revisions {outer[0]!r} and {name!r} cannot both be"
                    " placed here: the name of one is the folder of the other.",
                    "Name the ones that you mean: hf://ORG/NAME@ONE,OTHER.",
                )
        return {commit: list(names) for commit, names in found.items()}

    def _check_name(self, name: str, named: Mapping[str, set[object]]) -> None:
        if not _REF.fullmatch(name):
            raise UnreadableError(
                f"{self._address}: the name of revision {shortened(name)!r} cannot be a file name.",
                "Choose other revisions, or name this one by its commit.",
            )
        if len(named[name]) > 1:
            commits = listed(sorted(map(str, named[name])))
            raise UnreadableError(
                f"{self._address}: {name!r} is a branch and a tag at different commits: {commits}.",
                "Name the commit: hf://ORG/NAME@COMMIT.",
            )

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

    def check(self, file: StoredFile, path: Path) -> None:
        """Check the hash of a file's content, also of one from a cache."""
        size = path.stat().st_size
        digest = (
            hashlib.sha256()
            if len(file.version) == hashlib.sha256().digest_size * 2
            else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)  # as git names a file
        )
        with path.open("rb") as stream:
            while part := stream.read(2**20):
                digest.update(part)
        if digest.hexdigest() != file.version:
            raise UnreadableError(
                f"{self.name_of(file.path)}: differs from the file that the Hub lists (hash"
                f" {digest.hexdigest()}, expected {file.version}).",
                f"Remove {path} if it is there, and run the same command again; if that does not"
                " help, check HF_ENDPOINT and any proxy between this machine and the Hub.",
            )

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
            f"{self._address}: no revision matches {shortened(pattern)!r}; there are"
            f" {listed(names, 8) or 'none'}.",
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
            if is_of_disk(error):
                raise
            if isinstance(error, _ODD):
                raise UnreadableError(
                    f"{self._address}: the response is not from the Hub's API.",
                    "Check HF_ENDPOINT.",
                ) from error
            first: BaseException = error
            if isinstance(error, self._client.errors.LocalEntryNotFoundError):
                first = error.__cause__ or error  # why the Hub could not be asked
            raise UnreadableError(
                f"{self._address}: {_short(first)}.", self._advice(first)
            ) from error

    def _advice(self, error: BaseException) -> str:
        errors = self._client.errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        is_here = isinstance(error, errors.LocalEntryNotFoundError)
        if isinstance(error, errors.GatedRepoError):
            return "Ask for access on its page, then log in: hf auth login, or set HF_TOKEN."
        if isinstance(error, errors.RevisionNotFoundError | errors.EntryNotFoundError):
            if not is_here:
                return "Choose another revision with hf://ORG/NAME@GLOB."
        elif isinstance(error, errors.RepositoryNotFoundError):
            return "Check its name; if it is private, log in: hf auth login, or set HF_TOKEN."
        if status in _NO_ACCESS:
            return "Log in: hf auth login, or set HF_TOKEN, and ask for access on its page."
        if status == _TOO_MANY:
            return "Wait a few minutes, or log in (hf auth login), and run the same command again."
        return (
            "Check the connection and rerun the same command to resume. If the files are on this"
            " machine, name their folder instead."
        )


def _is_possible(one: Any) -> bool:
    """Return whether an entry of a list of files can be one of the Hub's."""
    size, path = one.size, one.path
    is_sized = type(size) is int and 0 <= size < _MOST_BYTES
    return is_sized and isinstance(path, str) and _HASH.fullmatch(_version(one)) is not None


def _version(one: Any) -> str:
    return str(one.lfs.sha256 if one.lfs else one.blob_id)


def _split(file: StoredFile) -> tuple[str, str]:
    """Return the commit of a file, and its name in the repository."""
    commit, _, name = file.key.partition("/")
    return commit, name


def _short(error: BaseException) -> str:
    """Return the first line of an error that says something; a client's may have many."""
    lines = [line.strip() for line in cause(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__).rstrip(".")


def _checked(commit: object, address: str) -> str:
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise UnreadableError(
            f"{address}: the Hub gives {commit!r} for a revision, expected a commit of 40 digits.",
            "Check HF_ENDPOINT.",
        )
    return commit
