"""A server on the loopback that speaks the Hub's API, as far as the real client asks."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.remote.loopback import serving_on

Files = dict[str, bytes]


def commit_of(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def git_hash(content: bytes) -> str:
    """As git names a file; `git hash-object`."""
    named = b"blob %d\0" % len(content) + content
    return hashlib.sha1(named, usedforsecurity=False).hexdigest()


@dataclass
class FakeHub:
    """One repository."""

    repository: str
    branches: dict[str, Files]  # by name
    token: str = ""  # who does not send it learns of no repository
    endpoint: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    before_weights: Callable[[], None] = lambda: None  # called when a whole file is asked for
    cut: int = 0  # how many answers with whole weights end in their middle

    def commits(self) -> dict[str, Files]:
        return {commit_of(files): files for files in self.branches.values()} | self.old

    gone: set[str] = field(default_factory=set)  # commits whose weights are not sent
    old: dict[str, Files] = field(default_factory=dict)  # commits that no branch names any more

    def move(self, branch: str, files: Files) -> None:
        self.old[commit_of(self.branches[branch])] = self.branches[branch]
        self.branches[branch] = files

    @property
    def fetched(self) -> list[str]:
        """The whole files of weights that were sent, each by its commit."""
        return [
            path.split("/")[-2]
            for method, path, asked in self.requests
            if method == "GET" and path.endswith(WEIGHTS) and not is_start(asked)
        ]


WEIGHTS = (".safetensors", ".bin")


def is_start(asked: str) -> bool:
    return re.fullmatch(r"bytes=0-\d+", asked) is not None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Write nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        api, resolve = f"/api/models/{hub.repository}", f"/{hub.repository}/resolve/"
        if path == f"{api}/refs":
            self._json(self._refs())
        elif path == api:
            self._json(self._info("main"))
        elif path.startswith(f"{api}/revision/"):
            self._json(self._info(path.removeprefix(f"{api}/revision/")))
        elif path.startswith(f"{api}/tree/"):
            self._json(self._tree(path.removeprefix(f"{api}/tree/")), "EntryNotFound")
        elif path.startswith(resolve):
            self._file(path.removeprefix(resolve), with_body=with_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _refs(self) -> object:
        names = {name: commit_of(files) for name, files in self.hub.branches.items()}
        return {
            "branches": [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in names.items()
            ],
            "tags": [],
            "converts": [],
        }

    def _commit(self, revision: str) -> str:
        files = self.hub.branches.get(revision)
        if files is not None:
            return commit_of(files)
        return next((one for one in self.hub.commits() if one.startswith(revision)), "")

    def _info(self, revision: str) -> object:
        commit = self._commit(revision)
        return {"id": self.hub.repository, "sha": commit, "siblings": []} if commit else None

    def _tree(self, place: str) -> object:
        """The files and folders of a revision, or of a folder in it (REVISION/FOLDER)."""
        revision, _, folder = place.partition("/")
        files = self.hub.commits().get(self._commit(revision))
        start = f"{folder}/" if folder else ""
        if files is None or not any(name.startswith(start) for name in files):
            return None
        inside = {name: content for name, content in files.items() if name.startswith(start)}
        is_recursive = "recursive=true" in self.path.lower()
        below = {name.removeprefix(start).partition("/")[0] for name in inside}
        folders = [start + name for name in sorted(below) if start + name not in inside]
        return [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": git_hash(content),
            }
            for name, content in inside.items()
            if is_recursive or "/" not in name.removeprefix(start)
        ] + [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders]

    def _json(self, found: object, missing: str = "RevisionNotFound") -> None:
        if found is None:
            self._send(404, b"{}", {"X-Error-Code": missing})
        else:
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _file(self, path: str, *, with_body: bool) -> None:
        revision, _, name = path.partition("/")
        commit = self._commit(revision)
        content = self.hub.commits().get(commit, {}).get(name)
        if content is None:
            code = "EntryNotFound" if commit else "RevisionNotFound"
            self._send(404, b"", {"X-Error-Code": code, "X-Repo-Commit": commit})
            return
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        asked = self.headers.get("Range", "")
        is_whole = with_body and name.endswith(WEIGHTS) and not is_start(asked)
        if is_whole:
            self.hub.before_weights()
            if commit in self.hub.gone:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                return
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        status = 200
        if found is not None:
            first, last = int(found[1]), int(found[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        is_cut = is_whole and self.hub.cut > 0
        self.hub.cut -= is_cut
        self._send(status, content, headers, with_body=with_body, is_cut=is_cut)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str],
        *,
        with_body: bool = True,
        is_cut: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if is_cut else body)
        if is_cut:
            self.close_connection = True


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a repository; its `endpoint` is for HF_ENDPOINT."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    with serving_on(server) as hub.endpoint:
        yield hub
