"""Asks Slurm, and hands it work through submitit."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from localrank_cli.cluster.folder import ShardFolder
from localrank_cli.cluster.script import (
    Resources,
    merge_words,
    task_words,
)
from localrank_cli.errors import SettingsError, one_line
from localrank_cli.pipeline.frozen import Frozen
from localrank_cli.table.write import write_whole

_STANDARD_ARRAY = 1001  # Slurm's own default for MaxArraySize
_MOST_TIMEOUTS = 20
_WAIT = 60.0  # seconds for an answer
_POLL = 0.2
_TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)
_PATIENCE = 20.0  # for a task to keep what is finished


def longest_array() -> int:
    """How many tasks an array may have here.

    Returns:
        MaxArraySize, or Slurm's default where there is no Slurm.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.M)
    return max(1, int(found.group(1)) if found else _STANDARD_ARRAY)


def jobs_alive(jobs: Sequence[str]) -> list[str]:
    """Tells which jobs are waiting or running.

    Args:
        jobs: Ids.

    Returns:
        Those of them.
    """
    lines = _ask("squeue", "--noheader", "--format=%F", f"--jobs={','.join(jobs)}").split()
    return sorted(set(lines) & set(jobs))


def _is_running() -> bool:
    """Whether this job is to go on, and not cancelled or out of time."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # an array's own number would mean all of its tasks
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return "JobState=RUNNING" in _ask("scontrol", "show", "job", job)


def _told_to_go_on_later() -> signal.Signals:
    """The signal on which submitit calls `checkpoint` and puts the job into the queue again."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def _ask(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    with suppress(subprocess.TimeoutExpired, OSError):
        done = subprocess.run(  # noqa: S603  # Slurm's own programs
            command, capture_output=True, text=True, timeout=_WAIT, check=False
        )
        return done.stdout
    return ""


@dataclass
class Task:
    """What submitit runs on a node: one command, which goes on where it stopped when run again.

    The command is a process of its own, with the handlers of signals of localrank; in this one are
    those of submitit, which calls `checkpoint` and puts the job into the queue again.
    """

    words: list[str]
    folder: str  # the working directory
    environment: dict[str, str]
    good: tuple[int, ...] = (0, 3)

    def __call__(self) -> int:
        """Runs the command.

        Returns:
            Its exit status.

        Raises:
            RuntimeError: If it failed; the log says why.
        """
        environment = {**os.environ, **self.environment}
        cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        environment.setdefault("OMP_NUM_THREADS", cores)
        self._process = subprocess.Popen(  # noqa: S603  # this program
            self.words, cwd=self.folder, env=environment
        )
        # Not wait(): a signal's handler that waits too would wait for this one's lock.
        while (status := self._process.poll()) is None:
            time.sleep(_POLL)
        if status in _TERMINATED and _is_running():
            # Preempted, and not cancelled: Slurm would take what ends by itself for a failure.
            signal.raise_signal(_told_to_go_on_later())
        if status not in self.good:
            raise RuntimeError(f"localrank ended with status {status}; what it said stands above")
        return status

    def checkpoint(self) -> Any:
        """Stops the command; what is finished is kept.

        Returns:
            The same again, for submitit to queue.
        """
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415  # an optional package

        process = self.__dict__.pop("_process", None)  # a process cannot be pickled
        if process is not None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
        return DelayedSubmission(self)


@dataclass(frozen=True)
class Jobs:
    """What was submitted."""

    array: str
    merge: str


def submit_jobs(frozen: Frozen, folder: ShardFolder, resources: Resources) -> Jobs:
    """Submits an array of all parts, and a merge for when it has ended.

    Each job is written down as soon as it is accepted, so that no other submission works beside it.

    Args:
        frozen: The plan file's content, which stands in the folder.
        folder: Where the tables of all shards stand.
        resources: What each task asks for.

    Returns:
        The ids of both jobs.

    Raises:
        SettingsError: If submitit or Slurm is not there, or Slurm refuses.
    """
    submitit = _submitit()
    words = task_words(frozen, folder, gpus=bool(resources.gpus_per_task))
    tasks = [
        Task([*words, "--shard", f"{index}/{frozen.shards}"], frozen.folder, {})
        for index in range(frozen.shards)
    ]
    refusals = (subprocess.SubprocessError, OSError, submitit.core.utils.FailedJobError)
    try:
        array = _executor(submitit, folder, resources)
        parallel = {"slurm_array_parallelism": resources.max_parallel or frozen.shards}
        # Without it Slurm takes no --gpus-per-task.
        one = {"slurm_additional_parameters": {"ntasks": 1}}
        array.update_parameters(name="localrank", **parallel, **one)
        array_id = array.submit_array(tasks)[0].job_id.partition("_")[0]
    except refusals as error:
        raise SettingsError(
            f"--cluster slurm: sbatch refused ({_reason(error)}).",
            "Check --partition, --time and --mem.",
        ) from error
    write_whole(folder.jobs, {"array": array_id})
    words = merge_words(frozen, folder)
    try:
        merge = _executor(submitit, folder, Resources(resources.partition, setup=resources.setup))
        after = {"dependency": f"afterany:{array_id}"}
        merge.update_parameters(name="localrank-merge", slurm_additional_parameters=after)
        jobs = Jobs(array_id, merge.submit(Task(words, frozen.folder, {})).job_id)
    except refusals as error:
        raise SettingsError(
            f"--cluster slurm: array job {array_id} was accepted and is at work, but sbatch refused"
            f" the merge job after it ({_reason(error)}).",
            f"When the array has ended, merge by hand: {shlex.join(words)}; or stop it:"
            f" scancel {array_id}",
        ) from error
    write_whole(folder.jobs, asdict(jobs))
    return jobs


def _submitit() -> Any:
    try:
        import submitit  # noqa: PLC0415  # an optional package
    except ImportError as error:
        raise SettingsError(
            "--cluster slurm: submitit is not installed.",
            "Install it with pip install 'localrank[slurm]', or save the script of --dry-run.",
        ) from error
    if shutil.which("sbatch") is None:
        raise SettingsError(
            "--cluster slurm: there is no sbatch on this machine.",
            "Submit from a login node, or use --cluster local.",
        )
    return submitit


def recorded_jobs(folder: ShardFolder) -> list[str]:
    """The jobs that were accepted for an output.

    Args:
        folder: Where the tables of all shards stand.

    Returns:
        Ids; none where nothing was submitted.
    """
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads(folder.jobs.read_text(encoding="utf-8"))
        return [str(number) for number in found.values()]
    return []


def _reason(error: Exception) -> str:
    return one_line(error)


def _executor(submitit: Any, folder: ShardFolder, resources: Resources) -> Any:
    executor = submitit.AutoExecutor(
        str(folder.logs),
        cluster="slurm",
        slurm_max_num_timeout=_MOST_TIMEOUTS,
        # Its own command is `-m` too, and would import from the current folder first.
        slurm_python=f"{shlex.quote(sys.executable)} -P",
    )
    given: Mapping[str, Any] = {
        "slurm_partition": resources.partition,
        "slurm_time": resources.minutes,
        "slurm_gpus_per_task": resources.gpus_per_task,
        "slurm_cpus_per_task": resources.cpus_per_task,
        "slurm_mem": resources.mem,
        "slurm_setup": list(resources.setup) or None,
    }
    if resources.cpus_per_task is not None:
        # Newer versions of srun do not take it from the job.
        executor.update_parameters(slurm_srun_args=[f"--cpus-per-task={resources.cpus_per_task}"])
    executor.update_parameters(
        slurm_signal_delay_s=resources.seconds_before_end,
        **{name: value for name, value in given.items() if value is not None},
    )
    return executor
