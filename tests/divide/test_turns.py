"""Slurm itself ends a turn: near the time limit, and for a job of more urgency."""

from pathlib import Path

import pytest

from tests.divide.jobs import Jobs, begin_one_task, check_resumed, check_second_turn, logs
from tests.divide.slurm import Slurm

pytestmark = pytest.mark.slow

# Takes all that the node has, of a partition that may take it from others.
URGENT = "#!/bin/sh\n#SBATCH --partition=urgent --cpus-per-task=4 --output=/dev/null\ntrue\n"


def test_a_task_near_its_time_limit(near_limit: tuple[Jobs, Path, tuple[str, ...]]) -> None:
    """Slurm signals it 15 s before the end of its minute, or up to 30 s earlier."""
    jobs, folder, waiting = near_limit
    jobs.end()
    check_resumed(folder, waiting)
    assert "stopped by SIGUSR1" in logs(folder, "localrank-*_0.log")


# After the test above, whose task it would preempt too.
def test_a_preempted_task(slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]) -> None:
    """It gets SIGTERM and some grace; Slurm takes one that ends within it for a failure."""
    jobs = begin_one_task(slurm, tmp_path, waiting)
    (tmp_path / "urgent.sh").write_text(URGENT)
    slurm.ask("sbatch", str(tmp_path / "urgent.sh"))
    check_second_turn(jobs, tmp_path, waiting)
    assert "stopped by SIGTERM" in logs(tmp_path, "localrank-*_0.log")
