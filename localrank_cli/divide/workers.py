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

from localrank_cli.divide.parent import Tie
from localrank_cli.errors import INCOMPLETE

_POLL = 0.2  # seconds
_ERROR = "localrank: error: "
_GOOD = (0, INCOMPLETE)


@dataclass(frozen=True)
class Job:
    """A process to start."""

    command: Sequence[str]
    environment: Mapping[str, str]  # what differs from this process's


@dataclass
class Worker:
    """A process, and its last error."""

    process: "subprocess.Popen[bytes]"
    error: str = ""  # the last message after `localrank: error: `

    @property
    def is_bad(self) -> bool:
        """Whether it has ended with an unexpected status."""
        return self.process.returncode is not None and self.process.returncode not in _GOOD


@dataclass
class Workers:
    """Several processes, each in a session of its own, so that a signal reaches each once.

    Ctrl-C at a terminal signals every process of its session, and a second signal ends a worker at
    once. They end with this process, even if it is killed.
    """

    jobs: Sequence[Job]
    workers: list[Worker] = field(default_factory=list)
    _lines: "queue.SimpleQueue[tuple[int, str]]" = field(default_factory=queue.SimpleQueue)
    _readers: list[threading.Thread] = field(default_factory=list)
    _tie: Tie = field(default_factory=Tie)

    def start(self) -> None:
        """Start all processes; the calling thread must live as long as they do."""
        for index, job in enumerate(self.jobs):
            process = subprocess.Popen(
                list(job.command),
                env={**os.environ, **job.environment, **self._tie.environment},
                pass_fds=(self._tie.theirs,),
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
        """Yield each line of output since the last call, after a short wait; store errors."""
        wait = time.monotonic() + _POLL
        while True:
            try:
                index, line = self._lines.get(timeout=max(0.0, wait - time.monotonic()))
            except queue.Empty:
                return
            if line.startswith(_ERROR):
                self.workers[index].error = line.removeprefix(_ERROR)
            else:
                yield line

    @property
    def are_running(self) -> bool:
        """Whether a process is running."""
        return any(worker.process.poll() is None for worker in self.workers)

    @property
    def first_bad(self) -> Worker | None:
        """The first process that has ended with an unexpected status."""
        for worker in self.workers:
            worker.process.poll()
        return next((worker for worker in self.workers if worker.is_bad), None)

    def signal(self, number: int) -> None:
        """Send a signal to every process that is running."""
        for worker in self.workers:
            with suppress(ProcessLookupError):  # it has just ended
                worker.process.send_signal(number)

    def wait(self) -> None:
        """Wait until all processes have ended and their output is read."""
        for worker in self.workers:
            worker.process.wait()
        for reader in self._readers:
            reader.join(1.0)  # a grandchild may hold the pipe

    def kill(self) -> None:
        """End all processes at once; finished checkpoints are on the disk."""
        self.signal(signal.SIGKILL)
