"""Which part of the work is this process's: `--shard I/N`, or what a cluster says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from localrank_cli.errors import SettingsError, UsageError

AUTO = "auto"
_FORM = re.compile(r"^(\d+)/(\d+)$")


@dataclass(frozen=True)
class Shard:
    """One part of the work."""

    index: int  # from 0
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def file_name(self) -> str:
        """The name of its table, without a suffix."""
        return f"shard-{self.index:05d}-of-{self.count:05d}"


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Reads `--shard`.

    Args:
        text: `I/N` with I from 0 to N-1, or `auto`.
        environment: Where `auto` looks.

    Returns:
        The shard.

    Raises:
        UsageError: If it is none.
        SettingsError: If `auto` finds nothing to go by.
    """
    if text.strip().lower() == AUTO:
        return _from_environment(environment)
    match = _FORM.match(text.strip())
    if match is None:
        raise UsageError(f"--shard {text}: not of the form I/N.", "Give 0/8 to 7/8, or auto.")
    index, count = int(match.group(1)), int(match.group(2))
    if index >= count:
        raise UsageError(
            f"--shard {text}: counting starts at 0.",
            f"Of {count} shards the first is 0/{count} and the last {count - 1}/{count}."
            if count
            else "Give at least one shard: 0/1.",
        )
    return Shard(index, count)


def array_size(environment: Mapping[str, str]) -> int | None:
    """How many tasks the Slurm array has that this process belongs to.

    Args:
        environment: Of the process.

    Returns:
        The number; None outside of an array.
    """
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
    return count if "SLURM_ARRAY_TASK_ID" in environment else None


def _from_environment(environment: Mapping[str, str]) -> Shard:
    task = _number(environment, "SLURM_ARRAY_TASK_ID")
    if task is not None:
        low, high, count = (
            _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "COUNT")
        )
        if low is None or high is None or count is None or high - low + 1 != count:
            raise SettingsError(
                f"--shard auto: the array's tasks {low} to {high} are {count}, so that they are not"
                " numbered one after another.",
                "Submit it with --array=0-7 (no step, no list), or give --shard I/N.",
            )
        return Shard(task - low, count)
    # SLURM_PROCID stands in a batch script too, where there is one process and many tasks.
    if environment.get("SLURM_STEP_ID", "").isdecimal():
        rank, size = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")
        if rank is not None and size is not None:
            return Shard(rank, size)
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank is not None and size is not None and rank < size:
        return Shard(rank, size)
    raise SettingsError(
        "--shard auto: neither a Slurm array, nor srun, nor RANK and WORLD_SIZE tell which part is"
        " this process's.",
        "Give --shard I/N.",
    )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else None
