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

from localrank_cli.divide.folder import ShardFolder
from localrank_cli.errors import SettingsError, UsageError, one_line
from localrank_cli.results.journal import journal_path
from localrank_cli.results.plan_file import PlanFile
from localrank_cli.results.write import write_json
from localrank_cli.searchpath import program_words

# How long before the end of its time a task is told: a checkpoint that is begun is lost. Slurm
# looks every 30 s or so; a task of a few minutes is to work first, and not to be told at once.
_SECONDS_BEFORE_END = 120
_SHARE_BEFORE_END = 4
_MOST_RESTARTS = 20


@dataclass(frozen=True)
class Resources:
    """What each task asks Slurm for."""

    partition: str | None = None
    minutes: int = 60
    gpus_per_task: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    max_parallel: int | None = None
    setup: tuple[str, ...] = ()  # lines of shell before each task

    @property
    def seconds_before_end(self) -> int:
        """How long before the end of its time a task is told."""
        return min(_SECONDS_BEFORE_END, self.minutes * 60 // _SHARE_BEFORE_END)

    def array(self, tasks: int) -> str:
        """The range of an array.

        Args:
            tasks: How many.

        Returns:
            As sbatch takes it.
        """
        return f"0-{tasks - 1}" + (f"%{self.max_parallel}" if self.max_parallel else "")


def parse_time(text: str) -> int:
    """Reads a time as sbatch does.

    Args:
        text: `90` (minutes), `90:00`, `1:30:00`, `2-12`, `2-12:30` or `2-12:30:00`.

    Returns:
        Minutes, rounded up.

    Raises:
        UsageError: If it is none, or nothing.
    """
    days, dash, rest = text.strip().rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in ([days] if dash else []) + parts) or len(parts) > 3:
        raise UsageError(f"--time {text}: not a time.", "Times are 90 (minutes), 1:30:00 or 2-12.")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    total = (int(days or 0) * 24 + hours) * 60 + minutes + -(-seconds // 60)
    if total < 1:
        raise UsageError(f"--time {text}: at least a minute.")
    return total


def task_words(frozen: PlanFile, folder: ShardFolder, *, gpus: bool) -> list[str]:
    """The command of one task, but for its `--shard`.

    Args:
        frozen: The plan file's content.
        folder: Where the tables of all shards stand.
        gpus: Whether a task has a GPU.

    Returns:
        Words.
    """
    device = "cuda" if gpus else "cpu"
    own = ["--plan", str(folder.plan), "-o", str(folder.path), "--device", device]
    return [*program_words(frozen.interpreter), "analyze", *frozen.words, *own]


def merge_words(frozen: PlanFile, folder: ShardFolder) -> list[str]:
    """The command that merges what all tasks gave.

    Args:
        frozen: The plan file's content.
        folder: Where the tables of all shards stand.

    Returns:
        Words.
    """
    own = ["--plan", str(folder.plan), "-o", frozen.output, "--overwrite"]
    return [*program_words(frozen.interpreter), "merge", str(folder.path), *own]


def submission_script(frozen: PlanFile, folder: ShardFolder, resources: Resources) -> str:
    """Writes the script.

    Args:
        frozen: The plan file's content.
        folder: Where the tables of all shards stand; made by the script.
        resources: What each task asks for.

    Returns:
        A script for sh, complete in itself: it writes the plan file, submits an array and a merge.
    """
    plan = json.dumps(frozen.to_json())
    journal, earlier, jobs = (
        shlex.quote(str(p)) for p in (journal_path(folder.target), folder.earlier, folder.jobs)
    )
    merge = shlex.join(merge_words(frozen, folder))
    return "\n".join(
        [
            "#!/bin/sh",
            f"# {frozen.n_checkpoints} checkpoints, {frozen.n_units} units left to do, in"
            f" {frozen.shards} tasks.",
            "# Written by localrank submit --dry-run. Run it where sbatch is: sh FILE",
            "set -eu",
            f"mkdir -p {shlex.quote(str(folder.logs))}",
            f"if [ -e {journal} ]; then cp {journal} {earlier}; fi",
            _here_document(f"cat > {shlex.quote(str(folder.plan))}", "LOCALRANK_PLAN", plan),
            _here_document(
                "array=$(sbatch --parsable",
                "LOCALRANK_ARRAY",
                _job(
                    frozen, folder, _array_head(frozen, resources), _task(frozen, folder, resources)
                ),
            ),
            ")",
            # As each is accepted: localrank submit refuses to work beside them.
            f'printf \'{{"array": "%s"}}\\n\' "${{array%%;*}}" > {jobs}',
            _here_document(
                'if ! merge=$(sbatch --parsable --dependency="afterany:${array%%;*}"',
                "LOCALRANK_MERGE",
                _job(
                    frozen,
                    folder,
                    ["job-name=localrank-merge", "requeue", *_partition(resources)],
                    [*resources.setup, merge, *_again("$SLURM_JOB_ID")],
                ),
            ),
            "); then",
            '  echo "sbatch refused the merge job; array job ${array%%;*} was accepted and is at'
            ' work. Stop it with scancel ${array%%;*}, or merge by hand when it has ended:" >&2',
            f"  printf '%s\\n' {shlex.quote(merge)} >&2",
            "  exit 1",
            "fi",
            'printf \'{"array": "%s", "merge": "%s"}\\n\''
            f' "${{array%%;*}}" "${{merge%%;*}}" > {jobs}',
            'echo "array job ${array%%;*}, merge job ${merge%%;*};'
            ' watch them with: squeue -j ${array%%;*},${merge%%;*}"',
            "",
        ]
    )


def _here_document(command: str, mark: str, text: str) -> str:
    return f"{command} <<'{mark}'\n{text}\n{mark}"


def _job(frozen: PlanFile, folder: ShardFolder, head: Sequence[str], body: Sequence[str]) -> str:
    name = "%x-%A_%a.log" if _is_array(head) else "%x-%j.log"
    logs = "output=" + shlex.quote(str(folder.logs).replace("%", "%%") + "/" + name)
    options = [*head, "open-mode=append", logs]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{option}" for option in options),
            f"cd {shlex.quote(frozen.folder)} || exit 1",
            *body,
        ]
    )


def _is_array(head: Sequence[str]) -> bool:
    return any(option.startswith("array=") for option in head)


def _array_head(frozen: PlanFile, resources: Resources) -> list[str]:
    head = [
        "job-name=localrank",
        f"array={resources.array(frozen.shards)}",
        "requeue",
        f"signal=USR1@{resources.seconds_before_end}",
        "ntasks=1",
        *_partition(resources),
    ]
    given = {
        "time": resources.minutes,
        "gpus-per-task": resources.gpus_per_task,
        "cpus-per-task": resources.cpus_per_task,
        "mem": resources.mem,
    }
    return head + [f"{name}={value}" for name, value in given.items() if value is not None]


def _partition(resources: Resources) -> list[str]:
    return [f"partition={resources.partition}"] if resources.partition is not None else []


def _task(frozen: PlanFile, folder: ShardFolder, resources: Resources) -> list[str]:
    words = task_words(frozen, folder, gpus=bool(resources.gpus_per_task))
    return [
        *resources.setup,
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}",
        # Not left to the environment: newer versions of srun do not take it from the job.
        'srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" '
        + shlex.join([*words, "--shard", "auto"]),
        *_again("${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"),
    ]


def _again(job: str) -> list[str]:
    """Puts a job into the queue again that was told to stop; what is finished is kept.

    Slurm itself does so only with a preempted job that does not end within its grace, and not with
    one whose time ends. A job that scancel ends is no longer running when it gets its SIGTERM.
    An array's own number would mean all of its tasks.

    Args:
        job: Its number, as a shell knows it.

    Returns:
        Lines of shell, to follow the command.
    """
    return [
        "status=$?",
        "again=no",
        'case "$status" in',
        f"  {128 + signal.SIGUSR1}) again=yes ;;",
        f'  {128 + signal.SIGTERM}) case "$(scontrol show job "{job}")" in',
        "    *JobState=RUNNING*) again=yes ;;",
        "  esac ;;",
        "esac",
        f'if [ "$again" = yes ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {_MOST_RESTARTS} ]; then',
        f'  exec scontrol requeue "{job}"',
        "fi",
        'exit "$status"',
    ]


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


def submit_jobs(frozen: PlanFile, folder: ShardFolder, resources: Resources) -> Jobs:
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
    write_json(folder.jobs, {"array": array_id})
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
    write_json(folder.jobs, asdict(jobs))
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
