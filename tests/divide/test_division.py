import pytest

from localrank_cli.divide.slurm import array_of, seconds_before_end
from localrank_cli.errors import UsageError
from localrank_cli.options.read import FLAGS, read_options
from localrank_cli.options.table import SubmitOptions


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:01", 91),
        ("1:30:00", 90),
        ("1:30:30", 91),
        ("2-12", 60 * 60),
        ("2-12:30", 60 * 60 + 30),
        ("0-0:05:01", 6),
    ],
)
def test_times_are_those_of_sbatch(text: str, minutes: int) -> None:
    assert read_options(SubmitOptions, {"time": text}, FLAGS).time == minutes


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "-5", "0", "1-", "1h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="--time"):
        read_options(SubmitOptions, {"time": text}, FLAGS)


def test_arrays() -> None:
    assert array_of(SubmitOptions(), 8) == "0-7"
    assert array_of(SubmitOptions(max_parallel=3), 1) == "0-0%3"


@pytest.mark.parametrize(("minutes", "seconds"), [(1, 15), (4, 60), (8, 120), (600, 120)])
def test_a_task_is_stopped_in_time_and_not_at_once(minutes: int, seconds: int) -> None:
    assert seconds_before_end(SubmitOptions(time=minutes)) == seconds
