"""A Slurm of one node, on this machine and for these tests only."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
CONFIGURATION = """
ClusterName=localrank
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=10
MaxArraySize=100
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Slurm:
    """A running one."""

    folder: Path
    before_path: str = ""  # folders of other programs, each with a colon

    @property
    def environment(self) -> dict[str, str]:
        """Of its programs, and of those that call them."""
        own = {"SLURM_CONF": str(self.folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **own, "PATH": self.before_path + PATH}

    def ask(self, *words: str) -> str:
        """Run one of its programs."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def jobs(self, *ids: str) -> dict[str, str]:
        """Job or task -> state, of those that have not ended; all jobs without ids."""
        lines = self.ask("squeue", "--noheader", "--array", "--format=%i|%F|%T").splitlines()
        cells = [line.strip().split("|") for line in lines]
        return {task: state for task, job, state in cells if not ids or job in ids}

    def is_running(self, job: str) -> bool:
        """Whether a task of a job runs; one that begins or ends is counted too."""
        return any(state != "PENDING" for state in self.jobs(job).values())

    def wait(self, true: Callable[[], object], seconds: float = 120) -> None:
        """Wait until something is true."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(self.ask("squeue") + self.ask("scontrol", "show", "job"))
            time.sleep(0.2)


@contextmanager
def running() -> Iterator[Slurm]:
    """Start one, and stop it."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"no Slurm on this machine: {', '.join(missing)} not found")
    if os.getuid() != 0:
        pytest.skip("a Slurm of one's own wants root")
    # A short path, for the socket, that only its owner may enter, for munged.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/var/tmp") as name, ExitStack() as stack:
        slurm = Slurm(Path(name))
        _configure(slurm)
        stack.enter_context(_munged(slurm))
        stack.enter_context(_daemon(slurm, "slurmctld", "-D", "-i"))
        slurm.wait(lambda: _answers(slurm, "scontrol", "ping"), 30)
        stack.enter_context(_daemon(slurm, "slurmd", "-D"))
        stack.callback(_end_jobs, slurm)
        slurm.wait(lambda: "idle" in slurm.ask("sinfo", "--noheader", "--format=%t"), 30)
        yield slurm


def _configure(slurm: Slurm) -> None:
    for name in ("state", "spool"):
        (slurm.folder / name).mkdir()
    key = slurm.folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    with ExitStack() as stack:
        ports = [_free_port(stack) for _ in range(2)]
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(host=host, port=ports[0], node_port=ports[1], folder=slurm.folder)
    (slurm.folder / "slurm.conf").write_text(text)
    # A GPU in name only: what is asked for can be seen, and nothing can be computed on it.
    (slurm.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")


def _free_port(stack: ExitStack) -> int:
    found = stack.enter_context(socket.socket())
    found.bind(("127.0.0.1", 0))
    return int(found.getsockname()[1])


@contextmanager
def _munged(slurm: Slurm) -> Iterator[None]:
    folder = slurm.folder
    options = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid"}
    options |= {"log-file": "munge.log", "seed-file": "munge.seed"}
    words = [f"--{name}={folder / value}" for name, value in options.items()]
    with _daemon(slurm, "munged", "--foreground", "--force", *words):
        slurm.wait((folder / "munge.socket").exists, 20)
        yield


@contextmanager
def _daemon(slurm: Slurm, *words: str) -> Iterator[None]:
    with (
        (slurm.folder / f"{words[0]}.out").open("wb") as log,
        subprocess.Popen(
            words, env=slurm.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(slurm: Slurm, *words: str) -> bool:
    done = subprocess.run(words, env=slurm.environment, capture_output=True, check=False)
    return done.returncode == 0


def _end_jobs(slurm: Slurm) -> None:
    subprocess.run(["scancel", "--user=root"], env=slurm.environment, check=False)
    slurm.wait(lambda: not slurm.jobs(), 40)
