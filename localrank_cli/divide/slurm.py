"""One way to Slurm: the script that `--dry-run` prints is the script that is submitted.

This module is imported to read the command line, so it must not import torch.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localrank_cli.errors import Note, SettingsError, UsageError, one_line, status_of_signal
from localrank_cli.options.table import SubmitOptions
from localrank_cli.results.plan_file import PlanFile
from localrank_cli.results.write import manifest_path, replacing
from localrank_cli.searchpath import program_words

if TYPE_CHECKING:
    from localrank_cli.divide.folder import ShardFolder

# How long before its time limit a task is stopped, which loses a checkpoint in progress. Slurm
# checks about every 30 s. A task of a few minutes must have time to work before it is stopped.
_SECONDS_BEFORE_END = 120
_SHARE_BEFORE_END = 4
_MOST_RESTARTS = 20  # of a job that is preempted each time before it finishes anything
_STANDARD_ARRAY = 1001  # Slurm's own default for MaxArraySize
_WAIT = 60.0  # seconds for an answer of Slurm
# In an error of squeue where Slurm has forgotten the only job.
_FORGOTTEN = "Invalid job id"
_ALONE = "array job %s was accepted and is waiting or running, but the merge job was not submitted."
# In a journal, on the line of each checkpoint that has numbers and on no other line.
_FINISHED = '"status":"ok"'


def seconds_before_end(division: SubmitOptions) -> int:
    """Return how long before its time limit a task is stopped."""
    return min(_SECONDS_BEFORE_END, division.time * 60 // _SHARE_BEFORE_END)


def array_of(division: SubmitOptions, tasks: int) -> str:
    """Return the value of sbatch's `--array` for this many tasks."""
    return f"0-{tasks - 1}" + (f"%{division.max_parallel}" if division.max_parallel else "")


def merge_words(plan_file: PlanFile, folder: "ShardFolder") -> list[str]:
    """Return the command that merges the tables of all tasks."""
    own = ["--plan", str(folder.plan), "-o", plan_file.output, "--overwrite"]
    return [*program_words(plan_file.interpreter), "merge", str(folder.path), *own]


def submission_script(
    plan_file: PlanFile, folder: "ShardFolder", division: SubmitOptions, *, overwrite: bool
) -> str:
    """Return a script for sh that writes the plan file and submits an array and a merge.

    It depends on no other file: it can be saved, changed and run later. It records each job as soon
    as Slurm accepts it, so that no other submission runs at the same time. With `overwrite` it
    discards earlier results first.
    """
    plan, jobs, journal, earlier = (
        shlex.quote(str(one)) for one in (folder.plan, folder.jobs, folder.journal, folder.earlier)
    )
    merge = shlex.join(merge_words(plan_file, folder))
    return "\n".join(
        [
            "#!/bin/sh",
            f"# {plan_file.n_checkpoints} checkpoints, {plan_file.n_units} units left to do, in"
            f" {plan_file.shards} tasks.",
            "# Written by localrank submit --cluster slurm. Run it where there is sbatch: sh FILE",
            "set -eu",
            "trap '' PIPE  # ids are recorded even if nobody reads this output any more",
            f'record() {{ printf "$@" > {jobs}.new; mv {jobs}.new {jobs}; }}',
            *_refusal(folder),
            f"mkdir -p {shlex.quote(str(folder.logs))}",
            f"rm -f {jobs}",
            *(_discard(folder) if overwrite else []),
            f"if [ -e {journal} ]; then cp {journal} {earlier}; fi",
            _here_document(f"cat > {plan}", "LOCALRANK_PLAN", json.dumps(plan_file.to_json())),
            _here_document(
                f"array=$(sbatch --parsable {_log(folder, '%x-%A_%a.log')}",
                "LOCALRANK_ARRAY",
                _array_job(plan_file, folder, division),
            ),
            ")",
            "array=${array%%;*}  # without the name of the cluster",
            'echo "array job $array" || :',
            'record \'{"array": "%s"}\\n\' "$array"',
            _here_document(
                f"if ! merge=$(sbatch --parsable {_log(folder, '%x-%j.log')}"
                ' --dependency="afterany:$array"',
                "LOCALRANK_MERGE",
                _merge_job(plan_file, division, merge),
            ),
            "); then",
            f"  printf 'localrank: error: {_ALONE} When the array has ended, merge by hand: %s;"
            f' or stop it: scancel %s\\n\' "$array" {shlex.quote(merge)} "$array" >&2',
            "  exit 1",
            "fi",
            "merge=${merge%%;*}",
            'echo "merge job $merge" || :',
            'record \'{"array": "%s", "merge": "%s"}\\n\' "$array" "$merge"',
            'echo "watch them with: squeue -j $array,$merge" || :',
            "",
        ]
    )


def _refusal(folder: "ShardFolder") -> list[str]:
    """Return lines of shell that end the script if earlier jobs are running, or may be.

    They query Slurm as `jobs_alive` does.
    """
    return [
        f"ids=$(grep -oE '[0-9]+' {shlex.quote(str(folder.jobs))} 2>/dev/null | paste -sd, -)",
        "answer=",
        'if [ -n "$ids" ] && command -v squeue > /dev/null; then',
        '  answer=$(squeue --noheader --format=%F --jobs="$ids" 2>&1) || case "$answer" in',
        f"    *'{_FORGOTTEN}'*) ;;",
        "    *)",
        "      answer=$(printf %s \"$answer\" | tr '\\n' ' ')  # on one line",
        "      printf 'localrank: error: squeue does not say whether jobs %s are still queued or"
        ' running (%s). Try again when Slurm answers.\\n\' "$ids" "$answer" >&2',
        "      exit 1",
        "      ;;",
        "  esac",
        "fi",
        "alive=$(printf '%s\\n' \"$answer\" | grep -oxE ' *[0-9]+ *' | sort -u)",
        'if [ -n "$alive" ]; then',
        "  alive=$(echo $alive)  # on one line",
        "  printf 'localrank: error: %s: Slurm jobs %s are still queued or running. Wait for them,"
        " or stop them with"
        f' scancel %s.\\n\' {shlex.quote(str(folder.path))} "$alive" "$alive" >&2',
        "  exit 1",
        "fi",
    ]


def _discard(folder: "ShardFolder") -> list[str]:
    output = [folder.target, folder.journal, manifest_path(folder.target), folder.earlier]
    shards = f"{shlex.quote(str(folder.path))}/shard-*-of-*.csv*"
    return [f"rm -f {shlex.join(map(str, output))} {shards}  # --overwrite"]


def _here_document(command: str, mark: str, text: str) -> str:
    return f"{command} <<'{mark}'\n{text}\n{mark}"


def _array_job(plan_file: PlanFile, folder: "ShardFolder", division: SubmitOptions) -> str:
    head = [
        "job-name=localrank",
        f"array={array_of(division, plan_file.shards)}",
        f"signal=USR1@{seconds_before_end(division)}",
        "ntasks=1",  # without it Slurm does not accept --gpus-per-task
        *_options(division, "gpus_per_task", "cpus_per_task", "mem"),
    ]
    device = "cuda" if division.gpus_per_task else "cpu"
    own = ["--plan", str(folder.plan), "-o", str(folder.path), "--device", device]
    words = [*program_words(plan_file.interpreter), "analyze", *plan_file.words, *own]
    name = f"%s/shard-%05d-of-{plan_file.shards:05d}.csv.journal"
    body = [
        *division.setup,
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}",
        # The id of the array alone would mean all of its tasks.
        'job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
        f"journal=$(printf '{name}' {shlex.quote(str(folder.path))} \"$SLURM_ARRAY_TASK_ID\")",
        f"finished() {{ cat \"$journal\" 2>/dev/null | grep -c '{_FINISHED}' || :; }}",
        "before=$(finished)",
        "status=0",
        # Passed explicitly: newer versions of srun do not inherit it from the job.
        f'srun --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" {shlex.join(words)}'
        f' --shard "$SLURM_ARRAY_TASK_ID/{plan_file.shards}" || status=$?',
    ]
    out_of_time = [
        f'if [ "$status" = {status_of_signal(signal.SIGUSR1)} ]; then  # the time limit is near',
        '  if [ "$(finished)" -gt "$before" ]; then exec scontrol requeue "$job"; fi',
        '  echo "localrank: error: no checkpoint was finished within the time limit. Submit again'
        ' with more --time." >&2',
        "fi",
    ]
    return _job(plan_file, head, [*body, *out_of_time, *_after_preemption()])


def _merge_job(plan_file: PlanFile, division: SubmitOptions, merge: str) -> str:
    body = [
        *division.setup,
        'job="$SLURM_JOB_ID"',
        "before=0",
        "finished() { echo 0; }  # a merge is whole or not at all",
        "status=0",
        f"{merge} || status=$?",
    ]
    head = ["job-name=localrank-merge", *_options(division)]
    return _job(plan_file, head, [*body, *_after_preemption()])


def _log(folder: "ShardFolder", name: str) -> str:
    """Return an option of sbatch; the shell supports more folder names than #SBATCH lines do."""
    return "--output=" + shlex.quote(str(folder.logs).replace("%", "%%") + "/" + name)


def _job(plan_file: PlanFile, head: Sequence[str], body: Sequence[str]) -> str:
    options = [*head, "requeue", "open-mode=append"]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{option}" for option in options),
            f"cd {shlex.quote(plan_file.folder)} || exit 1",
            *body,
        ]
    )


def _options(division: SubmitOptions, *more: str) -> list[str]:
    values = {"time": division.time, "partition": division.partition}
    values |= {name.replace("_", "-"): getattr(division, name) for name in more}
    return [
        f"{name}={shlex.quote(str(value))}" for name, value in values.items() if value is not None
    ]


def _after_preemption() -> list[str]:
    """Return lines of shell that requeue a job that was preempted; what is finished is kept.

    Slurm itself requeues only a preempted job that does not end within its grace time. A job that
    is cancelled, or whose time is over, is not running any more when it gets its SIGTERM.
    """
    terminated = status_of_signal(signal.SIGTERM)
    return [
        f'if [ "$status" = {terminated} ] && {{ [ "$(finished)" -gt "$before" ] ||'
        f' [ "${{SLURM_RESTART_COUNT:-0}}" -lt {_MOST_RESTARTS} ]; }}; then',
        '  case "$(scontrol show job "$job")" in',
        '    *JobState=RUNNING*) exec scontrol requeue "$job" ;;',
        "  esac",
        "fi",
        'exit "$status"',
    ]


def check_log_folder(folder: "ShardFolder") -> None:
    """Check that Slurm can write logs beside the output.

    Raises:
        UsageError: If a folder's name holds a backslash, which Slurm takes for an escape.
    """
    if "\\" in str(folder.path):
        raise UsageError(
            f"--output {folder.target}: Slurm cannot write the logs into {folder.path.name}/ next"
            " to it, because the path contains a backslash.",
            "Choose an output whose path has none.",
        )


def check_sbatch() -> None:
    """Check that jobs can be submitted from this machine.

    Raises:
        SettingsError: If there is no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise SettingsError(
            "--cluster slurm: there is no sbatch on this machine.",
            "Submit from a login node, save the script that --dry-run prints and run it there, or"
            " use --cluster local.",
        )


def longest_array() -> int:
    """Return Slurm's MaxArraySize, or its default where there is no Slurm."""
    asked = _ask("scontrol", "show", "config")
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", asked.stdout, re.M) if asked else None
    return max(1, int(found.group(1)) if found else _STANDARD_ARRAY)


def jobs_alive(jobs: Sequence[str]) -> list[str]:
    """Return which of these jobs are waiting or running; none where there is no Slurm.

    Raises:
        SettingsError: If Slurm does not answer.
    """
    if shutil.which("squeue") is None:
        return []
    asked = _ask("squeue", "--noheader", "--format=%F", f"--jobs={','.join(jobs)}")
    if asked is None or (asked.returncode and _FORGOTTEN not in asked.stderr):
        why = f" ({one_line(asked.stderr)})" if asked else ""
        raise SettingsError(
            f"squeue does not say whether jobs {', '.join(jobs)} are still queued or running{why}.",
            "Try again when Slurm answers.",
        )
    return sorted(set(asked.stdout.split()) & set(jobs))


def _ask(*command: str) -> "subprocess.CompletedProcess[str] | None":
    with suppress(subprocess.TimeoutExpired, OSError):  # None: Slurm does not answer
        return subprocess.run(command, capture_output=True, text=True, timeout=_WAIT, check=False)
    return None


@dataclass(frozen=True)
class Jobs:
    """The ids of the jobs of one submission."""

    array: str
    merge: str


def submit_jobs(script: str, plan_file: PlanFile, folder: "ShardFolder", note: Note) -> Jobs:
    """Run the submission script, which is kept in the folder; `note` receives Slurm's warnings.

    Raises:
        SettingsError: If Slurm refuses a job.
    """
    with replacing(folder.script, binary=True) as stream:
        stream.write(os.fsencode(script))  # a path need not be UTF-8
    done = subprocess.run(
        ["sh", str(folder.script)],  # noqa: S607  # every system has its own sh
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        # Ctrl-C at the terminal must not end it between a job and the record of its id.
        start_new_session=True,
    )
    accepted = re.findall(r"^(?:array|merge) job (\d+)$", done.stdout, re.M)
    others = [one for one in done.stderr.splitlines() if not one.startswith("localrank: error: ")]
    if len(accepted) == 2:
        for line in others:
            note(line)
        return Jobs(*accepted)
    reason = one_line("\n".join(others) or done.stderr)
    if not accepted:
        raise SettingsError(
            f"--cluster slurm: nothing was submitted ({reason}).",
            "Check --partition, --time and --mem.",
        )
    (array,) = accepted
    raise SettingsError(
        f"{(_ALONE % array).removesuffix('.')} ({reason}).",
        f"When the array has ended, merge by hand: {shlex.join(merge_words(plan_file, folder))};"
        f" or stop it: scancel {array}",
    )


def recorded_jobs(folder: "ShardFolder") -> list[str]:
    """Return the ids of the jobs that were accepted for an output, by any release."""
    # Without a readable file no job is known; the locks still keep two jobs from one table.
    with suppress(OSError, ValueError, AttributeError):
        if not folder.jobs.is_file():  # opening a pipe would wait for its other end
            return []
        found = json.loads(folder.jobs.read_text(encoding="utf-8"))
        return [str(number) for number in found.values()]
    return []
