"""A headless Chromium, driven through its own pipe: no driver, no port, no package."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--remote-debugging-pipe", "--disable-background-networking", "--hide-scrollbars",
)  # fmt: skip


def browser_path() -> str:
    """Return the path of the browser, or skip the test if there is none."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return found


class Page:
    """One page, with all its messages and requests."""

    def __init__(self, process: "subprocess.Popen[bytes]", to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._number, self._rest = 0, b""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True}, None)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the browser and return its result."""
        return self._call(method, parameters, self._session)

    def open(self, file: Path, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Open a file in a window of the given size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.resolve().as_uri())
        # Navigation starts a new document; the script runs before it is complete.
        for _ in range(600):
            if self.ask("document.readyState === 'complete' && location.protocol === 'file:'"):
                return
        raise AssertionError("the page never became complete")

    def ask(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def pointer(self, kind: str, x: float, y: float) -> None:
        """Move or press the mouse."""
        pressed = kind in {"mousePressed", "mouseReleased"}
        self.call(
            "Input.dispatchMouseEvent",
            type=kind, x=x, y=y, button="left" if pressed else "none", clickCount=int(pressed),
        )  # fmt: skip

    def click(self, x: float, y: float) -> None:
        """Click somewhere in the window."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.pointer(kind, x, y)

    def key(self, key: str) -> None:
        """Press a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self, target: Path, *, whole: bool = True) -> None:
        """Take a screenshot of the page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, parameters: Any, session: str | None) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            self._heard(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._back, 1 << 16)
            assert part, "the browser has gone"
            self._rest += part
        first, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def _heard(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method in {"Runtime.exceptionThrown", "Log.entryAdded"} or (
            method == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning"}
        ):
            self.complaints.append(json.dumps(parameters))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """Open a page in a new browser, which is closed afterwards."""
    path = browser_path()
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()

    def as_three_and_four() -> None:
        # The browser reads from 3 and writes to 4; the copies keep them from closing each other.
        read, write = os.dup(in_read), os.dup(out_write)
        os.dup2(read, 3)
        os.dup2(write, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=as_three_and_four, close_fds=False,  # noqa: PLW1509  # no threads here
        )  # fmt: skip
        os.close(in_read)
        os.close(out_write)
        try:
            yield Page(process, in_write, out_read)
        finally:
            process.kill()
            process.wait()
            os.close(in_write)
            os.close(out_read)
