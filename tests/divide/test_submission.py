"""The one script: printed or submitted, it is the same, and every job that it starts is known.

A stand-in for Slurm keeps what sbatch receives, and what the jobs file held just then.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.cli.program import QUICK, Outcome, invoke, start_warm
from tests.cli.test_merge import shard
from tests.divide.jobs import TASK
from tests.helpers import save_series, weights

SBATCH = """#!/bin/sh
here={folder}
[ ! -e "$here/slow" ] || {{ touch "$here/begun"; sleep 1; }}
n=$(ls "$here" | grep -c '^job')
cat > "$here/job$n"
cp {jobs} "$here/recorded$n" 2>/dev/null
if [ "$n" = 1 ] && [ -e "$here/crash" ]; then kill -9 "$PPID"; fi
echo "sbatch: warning: the queue is long" >&2
echo "1$n;moon"
"""


class Place:
    """A series, an output and a Slurm that runs nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.series = save_series(folder / "it's a run", range(4))
        self.target = folder / "ranks.csv"
        self.shards = folder / "ranks.csv.shards"
        self.jobs = self.shards / "jobs.json"
        self.slurm = folder / "slurm"
        self.slurm.mkdir()
        self.program("sbatch", SBATCH.format(folder=self.slurm, jobs=self.jobs))
        self.program("squeue", "#!/bin/sh\n")

    def program(self, name: str, text: str) -> None:
        path = self.slurm / name
        path.write_text(text)
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.slurm}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}

    def words(self, *more: str) -> tuple[str, ...]:
        return (str(self.series), *QUICK, "-o", str(self.target), *TASK, "--max-tasks", "2", *more)

    def submit(self, *more: str) -> Outcome:
        return invoke("submit", *self.words(*more), env=self.environment)

    def analyze(self, *more: str) -> None:
        done = invoke("analyze", str(self.series), *QUICK, "-o", str(self.target), *more)
        assert done.code == 0, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def nothing(place: Place) -> None:
    """Nothing was computed before."""


def two_of_four(place: Place) -> None:
    place.analyze("--last", "2")


def all_four(place: Place) -> None:
    place.analyze()


def earlier_jobs(place: Place) -> None:
    """An earlier submission finished one of two parts."""
    assert place.submit().code == 0
    plan = ("--plan", str(place.shards / "plan.json"))
    shard(place.series, place.shards, 0, 2, *plan)


@pytest.mark.parametrize(
    ("before", "more"),
    [
        (nothing, ()),
        (two_of_four, ("--gpus-per-task", "1", "--setup", "module load 'x y'")),
        (earlier_jobs, ()),
        (all_four, ("--overwrite",)),
        (earlier_jobs, ("--overwrite", "--max-tasks", "3")),
    ],
)
def test_what_dry_run_prints_is_what_is_submitted(
    place: Place, before: Callable[[Place], None], more: tuple[str, ...]
) -> None:
    before(place)
    files = sorted(place.folder.rglob("*"))
    printed = place.submit(*more, "--dry-run")
    assert printed.code == 0, printed.stderr
    assert sorted(place.folder.rglob("*")) == files  # nothing was written
    outcome = place.submit(*more)
    assert outcome.code == 0, outcome.stderr
    assert (place.shards / "submit.sh").read_text() == printed.stdout
    for job in place.slurm.glob("job[0-9]"):
        job.rename(job.with_name(f"by-submit-{job.name}"))
    plan = (place.shards / "plan.json").read_text()
    subprocess.run(["sh"], input=printed.stdout, env=place.environment, text=True, check=True)
    # Both jobs, and all that they read, are the same when the script is run by hand.
    assert (place.shards / "plan.json").read_text() == plan
    for index in range(2):
        by_hand = (place.slurm / f"job{index}").read_text()
        assert by_hand in printed.stdout
        assert by_hand in {one.read_text() for one in place.slurm.glob("by-submit-*")}


def test_a_saved_script_discards_earlier_results_as_overwrite_does(place: Place) -> None:
    place.analyze("--points", "3")
    shard(place.series, place.shards, 0, 3, "--points", "3")
    script = place.submit("--overwrite", "--dry-run").stdout
    subprocess.run(["sh"], input=script, env=place.environment, text=True, check=True)
    assert not place.target.exists()
    for index in range(2):  # as the jobs do
        shard(place.series, place.shards, index, 2, "--plan", str(place.shards / "plan.json"))
    merge = ("merge", str(place.shards), "-o", str(place.target))
    assert invoke(*merge).code == 0
    single = invoke("analyze", str(place.series), *QUICK).stdout
    assert place.target.read_text() == single


def test_ids_are_recorded_as_each_job_is_accepted(place: Place) -> None:
    outcome = place.submit()
    assert outcome.code == 0, outcome.stderr
    assert not (place.slurm / "recorded0").exists()
    assert json.loads((place.slurm / "recorded1").read_text()) == {"array": "10"}
    assert json.loads(place.jobs.read_text()) == {"array": "10", "merge": "11"}
    assert '--dependency="afterany:$array"' in (place.shards / "submit.sh").read_text()
    assert "array job 10 of 2 tasks for 4 units, merge job 11" in outcome.stderr
    assert outcome.stderr.count("sbatch: warning: the queue is long") == 1


def test_a_crash_between_the_two_jobs(place: Place) -> None:
    (place.slurm / "crash").touch()
    outcome = place.submit()
    assert outcome.code == 1
    assert "array job 10 was accepted and is waiting or running, but the merge job" in outcome.error
    assert json.loads(place.jobs.read_text()) == {"array": "10"}


@pytest.mark.processes
def test_a_signal_waits_until_the_ids_are_known(place: Place) -> None:
    (place.slurm / "slow").touch()
    with start_warm("submit", *place.words(), env=place.environment) as process:
        while not (place.slurm / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "array job 10 of 2 tasks for 4 units, merge job 11" in stderr
    assert json.loads(place.jobs.read_text()) == {"array": "10", "merge": "11"}


def test_a_jobs_file_of_a_refused_submission_names_no_earlier_jobs(place: Place) -> None:
    assert place.submit().code == 0
    place.program("sbatch", "#!/bin/sh\necho 'sbatch: error: no' >&2\nexit 1\n")
    outcome = place.submit()
    assert outcome.code == 1
    assert "nothing was submitted (sbatch: error: no)" in outcome.error
    assert not place.jobs.exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--overwrite",)])
def test_jobs_of_the_first_release_that_are_still_queued(
    place: Place, more: tuple[str, ...]
) -> None:
    """It submitted through submitit, and recorded the ids so."""
    place.shards.mkdir()
    place.jobs.write_text('{\n  "array": "812",\n  "merge": "813"\n}\n')
    place.program("squeue", "#!/bin/sh\nprintf '812\\n812\\n813\\n'\n")
    outcome = place.submit(*more)
    assert outcome.code == 1
    assert f"{place.shards}: Slurm jobs 812, 813 are still queued or running" in outcome.error
    assert "stop them with scancel 812 813" in outcome.error
    assert not list(place.slurm.glob("job*"))
    assert json.loads(place.jobs.read_text()) == {"array": "812", "merge": "813"}


def test_jobs_that_slurm_has_forgotten(place: Place) -> None:
    assert place.submit().code == 0
    text = "slurm_load_jobs error: Invalid job id specified"
    place.program("squeue", f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
    assert place.submit().code == 0


def test_no_submission_beside_jobs_that_may_be_at_work(place: Place) -> None:
    assert place.submit().code == 0
    text = "slurm_load_jobs error: Unable to contact slurm controller"
    place.program("squeue", f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
    outcome = place.submit()
    assert outcome.code == 1
    assert f"whether jobs 10, 11 are still queued or running ({text})" in outcome.error


@pytest.mark.parametrize(
    ("squeue", "message"),
    [
        (
            "echo 'squeue: error: Unable to contact\nslurm controller' >&2; exit 1",
            "squeue does not say whether jobs 812,813 are still queued or running (squeue: error:"
            " Unable to contact slurm controller). Try again when Slurm answers.",
        ),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", ""),
        ("echo 'squeue: warning: 7 tries' >&2", ""),
        (
            "echo '813   '; echo 'squeue: warning: slow' >&2",
            "Slurm jobs 813 are still queued or running.",
        ),
    ],
    ids=["no answer", "forgotten", "a warning", "at work"],
)
def test_a_saved_script_asks_slurm_as_submit_does(place: Place, squeue: str, message: str) -> None:
    script = place.submit("--dry-run").stdout
    place.shards.mkdir()
    place.jobs.write_text('{"array": "812", "merge": "813"}\n')
    place.program("squeue", f"#!/bin/sh\n{squeue}\n")
    done = subprocess.run(
        ["sh"], input=script, env=place.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == bool(message)
    assert message in done.stderr
    assert bool(list(place.slurm.glob("job*"))) is not bool(message)
    if message:
        assert len(done.stderr.splitlines()) == 1


SRUN = """#!/bin/sh
[ ! -e {folder}/progress ] || echo '"status":"ok"' >> {journal}
exit $(cat {folder}/status)
"""
SCONTROL = """#!/bin/sh
if [ "$1" = requeue ]; then echo "$2" > {folder}/requeued; else cat {folder}/state; fi
"""
USR1, TERM = 128 + signal.SIGUSR1, 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("status", "progress", "restarts", "state", "is_requeued"),
    [
        (USR1, True, 0, "RUNNING", True),
        (USR1, True, 500, "RUNNING", True),  # each turn brings it nearer to its end
        (USR1, False, 0, "RUNNING", False),
        (TERM, True, 500, "RUNNING", True),
        (TERM, False, 19, "RUNNING", True),
        (TERM, False, 20, "RUNNING", False),
        (TERM, True, 0, "CANCELLED", False),
        (TERM, True, 0, "TIMEOUT", False),
        (0, True, 0, "RUNNING", False),
        (3, True, 0, "RUNNING", False),
        (137, True, 0, "RUNNING", False),
    ],
)
def test_when_a_task_is_requeued(
    place: Place, status: int, progress: bool, restarts: int, state: str, is_requeued: bool
) -> None:
    assert place.submit("--setup", "set -e").code == 0
    journal = place.shards / "shard-00001-of-00002.csv.journal"
    journal.write_text('"status":"ok"\n"status":"failed"\n')
    place.program("srun", SRUN.format(folder=place.slurm, journal=journal))
    place.program("scontrol", SCONTROL.format(folder=place.slurm))
    (place.slurm / "status").write_text(str(status))
    (place.slurm / "state").write_text(f"JobId=77 JobState={state} Reason=None")
    if progress:
        (place.slurm / "progress").touch()
    job = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(
        ["bash", str(place.slurm / "job0")],
        env=place.environment | job | {"SLURM_RESTART_COUNT": str(restarts)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (0 if is_requeued else status), done.stderr
    requeued = place.slurm / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == ("77_1\n" if is_requeued else "")
    hopeless = status == USR1 and not progress
    assert ("no checkpoint was finished within the time limit" in done.stderr) is hopeless


def test_a_dry_run_writes_nothing_and_says_when_a_submission_would(place: Place) -> None:
    earlier_jobs(place)
    save_file(weights(seed=9), place.series / "step_9.safetensors")
    outcome = place.submit("--dry-run")
    assert outcome.code == 1
    assert "a dry run writes nothing. Submit without --dry-run" in outcome.error
    assert not place.target.exists()
    assert place.submit().code == 0  # the way out that is named
    assert place.submit("--dry-run").code == 0


def test_a_dry_run_refuses_a_table_that_a_submission_refuses(place: Place) -> None:
    place.target.write_text("mine\n")
    outcomes = [place.submit(), place.submit("--dry-run")]
    assert [outcome.code for outcome in outcomes] == [1, 1]
    assert outcomes[0].error == outcomes[1].error


def test_a_folder_in_which_slurm_writes_no_logs(place: Place) -> None:
    place.target = place.folder / "a\\b" / "ranks.csv"
    outcome = place.submit("--dry-run")
    assert outcome.code == 2
    assert "the path contains a backslash. Choose an output whose path has none." in outcome.error


def test_without_slurm(place: Place) -> None:
    empty = place.folder / "empty"
    empty.mkdir()
    outcome = invoke("submit", *place.words(), env={"PATH": str(empty)})
    assert outcome.code == 1
    assert "there is no sbatch on this machine" in outcome.error
    assert "the script that --dry-run prints" in outcome.error
    assert not place.shards.exists()
    assert invoke("submit", *place.words("--dry-run"), env={"PATH": str(empty)}).code == 0
