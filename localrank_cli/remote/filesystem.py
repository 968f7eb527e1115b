"""Files in stores that fsspec reads: S3, and others for which it has a client."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from localrank_cli.errors import SettingsError, UnreadableError, UsageError, cause
from localrank_cli.remote.address import Address, FileAddress
from localrank_cli.remote.store import Listing, StoredFile, is_of_disk

# Where clients say which version of a file this is, the most certain first.
_VERSIONS = (
    "ETag", "etag", "generation", "md5Hash", "content_md5", "Content-MD5", "content_hash",
    "checksum", "sha", "hex", "LastModified", "Last-Modified", "last_modified", "updated", "mtime",
    "modified", "modified_at", "modifiedTime", "modificationTime", "last_write_time", "modify",
    "created",
)  # fmt: skip
# The ETag of an object that was sent as a whole is the MD5 of its content; of one that was sent in
# parts, of theirs.
_HASHES = {"s3": "ETag", "s3a": "ETag"}
_MOST_BYTES = 2**50  # of a file, which no store holds
_EXTRAS = {"s3": "s3", "s3a": "s3"}  # of localrank, with the client of a protocol
_CHANGED = "Rerun the same command to resume, once nothing writes to it."


@dataclass(frozen=True)
class _Trouble:
    """A kind of failure, and what to do about it."""

    # Errors of clients: importing the classes would import the clients. Also codes of S3's answers.
    names: frozenset[str]
    advice: str  # {anon} is the variable that makes a protocol's client read without credentials
    of_others: str  # for protocols whose clients are set up in another way


# The first that fits. Clients make a PermissionError of several codes.
_TROUBLES = (
    _Trouble(
        frozenset({"InvalidObjectState"}),
        "It is in an archive: restore it, or leave it out with --pattern.",
        "It is in an archive: restore it, or leave it out with --pattern.",
    ),
    _Trouble(
        frozenset({
            "SlowDown", "ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded",
            "ThrottlingException", "429", "503",
        }),
        "The store is busy: rerun the same command later to resume.",
        "The store is busy: rerun the same command later to resume.",
    ),
    _Trouble(
        frozenset({
            "PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException", "301", "302", "307", "InvalidRegionError",
            "NoRegionError", "EndpointResolutionError", "InvalidEndpointError", "SSLError",
            "ConfigParseError", "ConfigNotFound", "InvalidConfigError", "LookupError",
        }),
        "Check the client's region and endpoint (aws configure, AWS_DEFAULT_REGION,"
        " AWS_ENDPOINT_URL).",
        "Check the settings of the store's own client.",
    ),
    _Trouble(
        frozenset({"ParamValidationError", "InvalidBucketName"}),
        "Check the spelling of the address: s3://BUCKET/RUN.",
        "Check the spelling of the address.",
    ),
    _Trouble(
        # A request for an object's size alone is refused without more than its number.
        frozenset({
            "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
            "ProfileNotFound", "TokenRetrievalError", "UnauthorizedSSOTokenError",
            "SSOTokenLoadError", "PermissionError", "DefaultCredentialsError",
            "ClientAuthenticationError", "InvalidToken", "ExpiredToken", "TokenRefreshRequired",
            "InvalidSecurity", "InvalidClientTokenId", "UnrecognizedClientException", "400",
        }),
        "Set the credentials as for other programs (aws configure, aws sso login, AWS_PROFILE, or"
        " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and renew those that have expired; a public"
        " bucket is read with {anon}=true.",
        "Log in as the store's own client requires.",
    ),
)  # fmt: skip
_NO_CONNECTION = (
    "Check the connection and rerun the same command to resume. If the files are on this machine,"
    " name their folder instead."
)


class FileSystem:
    """The files of one protocol.

    Args:
        address: The first that is read.

    Raises:
        SettingsError: If its client is not installed.
        UsageError: If there is no client for its protocol.
    """

    def __init__(self, address: FileAddress) -> None:
        self._protocol = address.protocol
        self._shown_by: dict[str, str] = {}  # key of a file -> which entry shows its version
        try:
            from fsspec.core import url_to_fs
            from fsspec.registry import known_implementations
        except ImportError as error:
            raise _not_installed(address, "fsspec") from error
        known: Mapping[str, Mapping[str, str]] = known_implementations
        if self._protocol not in known:
            raise UsageError(
                f"{address}: there is no client for {self._protocol}://.",
                "Use s3://BUCKET/RUN, hf://ORG/NAME, or another protocol that fsspec knows.",
            )
        try:
            with self._explained(str(address)):
                # Listed anew, as files may have changed since another use of the client.
                fs, _ = url_to_fs(str(address), use_listings_cache=False)
        except UnreadableError as error:
            if isinstance(error.__cause__, ImportError):
                text = known[self._protocol].get("err", "")
                raise _not_installed(address, text) from error
            raise
        self._fs: Any = fs

    def listing(self, address: Address) -> Listing:
        """Return all files below a folder, or one file."""
        assert isinstance(address, FileAddress)
        text = str(address)
        with self._explained(text):
            root: str = self._fs._strip_protocol(text)  # noqa: SLF001  # what url_to_fs calls
            found = self._fs.find(root, detail=True)
            if not found:  # `find` need not say why there is nothing
                self._fs.ls(root, detail=False)
            first = self._choose_version(found)
        files = tuple(self._files(found, root, address, first))
        if not files:
            raise UnreadableError(
                f"{text}: there is no file with this prefix.",
                "Check its spelling: it names a folder of checkpoints, or one checkpoint.",
            )
        return Listing(self._root(address), files, text)

    def _choose_version(self, found: Mapping[str, Any]) -> str:
        """Return the entry of a listing that shows a version, and that a single file shows too.

        If there is none, each file is asked for its own.
        """
        if self._protocol in _HASHES or not found:
            return _HASHES.get(self._protocol, "")
        key, info = next(iter(found.items()))
        now = self._fs.info(key)
        fitting = (
            one for one in _VERSIONS if info.get(one) and _text(info, one) == _text(now, one)
        )
        return next(fitting, "")

    def _root(self, address: FileAddress) -> str:
        return f"{self._protocol}/{address.path}"

    def _files(
        self, found: Mapping[str, Any], root: str, address: FileAddress, shown_by: str
    ) -> Iterator[StoredFile]:
        for key, info in found.items():
            # An object whose name ends in a slash stands for an empty folder.
            is_inside = key == root or key.startswith(root.rstrip("/") + "/")
            if info.get("type") == "directory" or key.endswith("/") or not is_inside:
                continue
            is_shown = bool(info.get(shown_by))
            if info.get("size") is None or not is_shown:
                with self._explained(f"{self._protocol}://{key}"):
                    info = self._fs.info(key)  # noqa: PLW2901  # with more than a list has
            size = info.get("size")
            if not isinstance(size, int) or not 0 <= size < _MOST_BYTES:
                raise UnreadableError(
                    f"{address}: {key!r} is listed with {size!r} bytes.", "Check the store."
                )
            path = self._root(address) + key[len(root.rstrip("/")) :]
            others = (one for one in _VERSIONS if info.get(one))
            self._shown_by[key] = shown_by if is_shown else next(others, "")
            version = self._version(key, info)
            is_hash = bool(version) and self._shown_by[key] == _HASHES.get(self._protocol)
            yield StoredFile(path, key, size, version, is_hash=is_hash)

    def _version(self, key: str, info: Mapping[str, Any]) -> str:
        """Return what differs between versions of a file; "" if nothing shows it."""
        text = _text(info, self._shown_by[key])
        # A time does not show a change within its resolution; the size may.
        return text if not text or self._protocol in _HASHES else f"{text} {info.get('size')}"

    def part(self, file: StoredFile, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to `end`, or to its own end."""
        with self._explained(self.name_of(file.path)):
            found: bytes = self._fs.cat_file(file.key, start=start, end=min(end, file.size))
        # A server of http need not know ranges: it sends the whole file then.
        is_whole = len(found) == file.size > end - start
        return found[start:end] if is_whole else found

    def cached(self, file: StoredFile) -> Path | None:
        """Return None: there is no cache."""

    def download(self, file: StoredFile, incoming: Path) -> Path:
        """Return the path of a whole file, which is the version that was listed."""
        place, name = incoming / "file", self.name_of(file.path)
        with self._explained(name):
            self._fs.get_file(file.key, str(place))
            # The parts of a file need not be of one version. If it is the one that was listed, even
            # now, they are.
            self._fs.invalidate_cache(file.key)
            info = self._fs.info(file.key)
        size = place.stat().st_size
        now = self._version(file.key, info)
        if now != file.version or size != file.size:
            raise UnreadableError(
                f"{name}: changed since it was listed (version {now!r} of {size} bytes, expected"
                f" {file.version!r} of {file.size}).",
                _CHANGED,
            )
        return place

    def check(self, file: StoredFile, path: Path) -> None:
        """Check nothing: not every version is a hash, and `download` compares it again."""

    def name_of(self, path: str) -> str:
        """Return the address of what is placed at a path."""
        return f"{self._protocol}://{path.removeprefix(self._protocol).lstrip('/')}"

    def facts(self, file: StoredFile) -> Mapping[str, str]:
        """Return which file it is, whose version is noted anyway."""
        return {"key": file.key}

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Raise what the client raises as an error of ours, with what to do about it."""
        try:
            yield
        except (UnreadableError, MemoryError):
            raise
        except FileNotFoundError as error:
            what = str(error.args[-1]) if " " in str(error) else "there is nothing here"
            raise UnreadableError(
                f"{name}: {what.rstrip('.')}.",
                "Check the spelling of the address, and that it still exists.",
            ) from error
        except Exception as error:  # each client has many kinds
            if is_of_disk(error):
                raise
            what = cause(error).rstrip(".")
            if isinstance(error, LookupError):  # of what the client looked for in an answer
                what = f"the store's answer cannot be read ({what})"
            raise UnreadableError(f"{name}: {what}.", self._advice(error)) from error

    def _advice(self, error: BaseException) -> str:
        names = set(_names(error))
        is_s3 = self._protocol in _EXTRAS
        if is_s3 and "Invalid endpoint" in str(error):  # a ValueError of botocore
            names.add("InvalidEndpointError")
        for one in _TROUBLES:
            if names & one.names:
                anon = f"FSSPEC_{self._protocol.upper()}_ANON"
                return one.advice.format(anon=anon) if is_s3 else one.of_others
        return _NO_CONNECTION


def _text(info: Mapping[str, Any], name: str) -> str:
    """Return an entry that shows a version; clients have times in several forms."""
    value = info.get(name) or ""
    return str(value.timestamp() if isinstance(value, datetime) else value).strip('"')


def _names(error: BaseException) -> Iterator[str]:
    """Yield the names of an error, of those that led to it, and of the answers in them."""
    for one in _chain(error):
        yield from (kind.__name__ for kind in type(one).__mro__)
        response = getattr(one, "response", None)  # of botocore
        answer = response.get("Error") if isinstance(response, Mapping) else None
        if isinstance(answer, Mapping):
            yield str(answer.get("Code"))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _not_installed(address: FileAddress, text: str) -> SettingsError:
    extra = _EXTRAS.get(address.protocol)
    what = f"{address}: is read through a client that is not installed"
    if extra is None:
        return SettingsError(f"{what} ({text}).", "Install it with pip.")
    return SettingsError(f"{what}.", f"Install it: pip install 'localrank[{extra}]'.")
