"""A server of S3 on the loopback: moto's, with faults on request."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import moto.server
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.remote.loopback import serving_on

_ACCOUNT = "123456789012"  # moto's own


@dataclass
class FakeS3:
    """A server with one bucket for each test."""

    endpoint: str = ""
    bucket: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, key or "", Range
    before_whole: Callable[[str], None] = lambda key: None  # when a whole object is asked for
    refusal: tuple[str, str] = ("", "")  # status and code in place of every answer
    cut: int = 0  # how many answers with a whole object end in their middle

    def start_anew(self, bucket: str) -> None:
        self.bucket, self.requests, self.cut, self.refusal = bucket, [], 0, ("", "")
        self.before_whole = lambda key: None
        self._backend.create_bucket(bucket, "us-east-1")

    @property
    def _backend(self) -> Any:
        return s3_backends[_ACCOUNT]["aws"]

    def put(self, key: str, content: bytes) -> None:
        """Store an object, whatever its key: HTTP would not carry all of them."""
        self._backend.put_object(self.bucket, key, content)

    @property
    def fetched(self) -> list[str]:
        """The objects that were sent whole, in order."""
        return [key for method, key, asked in self.requests if _is_whole(method, key, asked)]

    @property
    def n_listings(self) -> int:
        return sum(method == "GET" and not key for method, key, _ in self.requests)

    def answer(self, app: Any, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Answer one request, as a WSGI application."""
        _, _, key = environ["PATH_INFO"].strip("/").partition("/")
        asked = environ.get("HTTP_RANGE", "")
        self.requests.append((environ["REQUEST_METHOD"], key, asked))
        status, code = self.refusal
        if status:
            has_body = code and environ["REQUEST_METHOD"] != "HEAD"
            body = f"<Error><Code>{code}</Code></Error>".encode() if has_body else b""
            start(status, [("Content-Length", str(len(body)))])
            return [body]
        if _is_whole(*self.requests[-1]):
            self.before_whole(key)
        # The client asks for what is missing of a whole object.
        is_rest = environ["REQUEST_METHOD"] == "GET" and key and not re.search(r"-\d", asked)
        if not self.cut or not is_rest:
            return app(environ, start)
        self.cut -= 1
        return _half(app(environ, start))


def _is_whole(method: str, key: str, asked: str) -> bool:
    return method == "GET" and bool(key) and re.fullmatch(r"(bytes=0-)?", asked) is not None


def _half(parts: Iterable[bytes]) -> Iterator[bytes]:
    content = b"".join(parts)
    yield content[: len(content) // 2]
    raise ConnectionResetError


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def serving() -> Iterator[FakeS3]:
    """Serve until the end of a block."""
    app = moto.server.DomainDispatcherApplication(moto.server.create_backend_app)
    s3 = FakeS3()
    server = make_server(
        "127.0.0.1",
        0,
        lambda environ, start: s3.answer(app, environ, start),
        threaded=True,
        request_handler=_Quiet,
    )
    with serving_on(server) as s3.endpoint:
        yield s3
