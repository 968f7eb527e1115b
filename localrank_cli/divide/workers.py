"""Worker processes on this machine."""

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

_POLL = 0.2  # seconds
_GOOD = (0, 3)  # done, and done with failures


@dataclass(frozen=True)
class Job:
    """A process to be started."""

    command: Sequence[str]
    environment: Mapping[str, str]  # what differs from this process's


@dataclass
class Worker:
    """A started process, and what it said."""

    process: "subprocess.Popen[bytes]"
    error: str = ""  # the last words after `localrank: error: `

    @property
    def is_bad(self) -> bool:
        """Whether it ended otherwise than it should."""
        return self.process.returncode is not None and self.process.returncode not in _GOOD


@dataclass
class Workers:
    """Several processes, each in a session of its own, so that a signal reaches each once.

    What is typed at a terminal goes to all processes of one session; a second signal would end a
    worker at once.

    Args:
        jobs: What to start.
    """

    jobs: Sequence[Job]
    workers: list[Worker] = field(default_factory=list)
    _lines: "queue.SimpleQueue[tuple[int, str]]" = field(default_factory=queue.SimpleQueue)
    _readers: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Starts all."""
        for index, job in enumerate(self.jobs):
            process = subprocess.Popen(  # noqa: S603  # this interpreter and this program
                list(job.command),
                env={**os.environ, **job.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self.workers.append(Worker(process))
            assert process.stderr is not None
            reader = threading.Thread(target=self._read, args=(index, process.stderr), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read(self, index: int, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._lines.put((index, line.decode(errors="replace").rstrip("\n")))

    def lines(self) -> Iterator[str]:
        """What was said since the last call; waits a moment for it. Errors are kept aside.

        Yields:
            A line.
        """
        wait = time.monotonic() + _POLL
        while True:
            try:
                index, line = self._lines.get(timeout=max(0.0, wait - time.monotonic()))
            except queue.Empty:
                return
            said, mark, error = line.partition("localrank: error: ")
            if mark and not said:
                self.workers[index].error = error
            else:
                yield line

    @property
    def are_running(self) -> bool:
        """Whether one is at work."""
        return any(worker.process.poll() is None for worker in self.workers)

    @property
    def first_bad(self) -> Worker | None:
        """The first that ended badly."""
        for worker in self.workers:
            worker.process.poll()
        return next((worker for worker in self.workers if worker.is_bad), None)

    def signal(self, number: int) -> None:
        """Sends a signal to those that are at work.

        Args:
            number: The signal.
        """
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.process.send_signal(number)

    def wait(self) -> None:
        """Waits for all to end, and for what they said."""
        for worker in self.workers:
            worker.process.wait()
        for reader in self._readers:
            reader.join(1.0)  # a grandchild may hold the pipe

    def kill(self) -> None:
        """Ends all on the spot; what is finished is on the disk."""
        self.signal(signal.SIGKILL)
