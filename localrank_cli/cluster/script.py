"""A plain shell script that submits an analysis to Slurm, for sites without submitit."""

import json
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from localrank_cli.cluster.folder import ShardFolder
from localrank_cli.errors import UsageError
from localrank_cli.pipeline.frozen import Frozen
from localrank_cli.searchpath import program_words
from localrank_cli.table.journal import journal_path

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


def task_words(frozen: Frozen, folder: ShardFolder, *, gpus: bool) -> list[str]:
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


def merge_words(frozen: Frozen, folder: ShardFolder) -> list[str]:
    """The command that merges what all tasks gave.

    Args:
        frozen: The plan file's content.
        folder: Where the tables of all shards stand.

    Returns:
        Words.
    """
    own = ["--plan", str(folder.plan), "-o", frozen.output, "--overwrite"]
    return [*program_words(frozen.interpreter), "merge", str(folder.path), *own]


def submission_script(frozen: Frozen, folder: ShardFolder, resources: Resources) -> str:
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


def _job(frozen: Frozen, folder: ShardFolder, head: Sequence[str], body: Sequence[str]) -> str:
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


def _array_head(frozen: Frozen, resources: Resources) -> list[str]:
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


def _task(frozen: Frozen, folder: ShardFolder, resources: Resources) -> list[str]:
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
