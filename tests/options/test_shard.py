import pytest

from localrank_cli.errors import SettingsError
from localrank_cli.options import parse
from localrank_cli.options.parse import Shard, UnfitError, array_size

ARRAY = {
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_ARRAY_TASK_MIN": "3",
    "SLURM_ARRAY_TASK_MAX": "10",
    "SLURM_ARRAY_TASK_COUNT": "8",
}


def test_the_form() -> None:
    assert parse.shard("0/8", {}) == Shard(0, 8)
    assert parse.shard(" 7/8 ", {}) == Shard(7, 8)
    assert str(Shard(3, 8)) == "3/8"
    assert Shard(3, 8).file_name == "shard-00003-of-00008"


@pytest.mark.parametrize("text", ["8/8", "9/8", "-1/8", "1/0", "0/0", "1", "a/b", "", "1/8/2"])
def test_texts_that_are_no_shard_are_refused(text: str) -> None:
    with pytest.raises(UnfitError):
        parse.shard(text, ARRAY)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (ARRAY, Shard(2, 8)),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, Shard(1, 4)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Shard(2, 4)),
        # The array comes first: its tasks may be started by srun.
        (ARRAY | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Shard(2, 8)),
    ],
)
def test_auto(environment: dict[str, str], expected: Shard) -> None:
    assert parse.shard("auto", environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        ARRAY | {"SLURM_ARRAY_TASK_COUNT": "4"},  # --array=3-10:2
        # In the batch script itself there is one process, whatever the number of tasks.
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        {"SLURM_STEP_ID": "batch", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "0"},
    ],
)
def test_auto_without_ranks_in_the_environment_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="--shard auto"):
        parse.shard("auto", environment)


def test_the_size_of_an_array() -> None:
    assert array_size(ARRAY) == 8
    assert array_size({}) is None
