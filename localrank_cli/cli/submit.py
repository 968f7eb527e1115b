"""`localrank submit`: the same analysis by several processes, here or on a cluster."""

from pathlib import Path
from typing import Annotated, Any

import typer

from localrank_cli.cli.analyze import (
    Parsed,
    check_divisible,
    parse_options,
    shared_words,
)
from localrank_cli.cli.command import names_of, taking, words_of
from localrank_cli.cli.given import do_not_spin
from localrank_cli.divide.slurm import Division, parse_time
from localrank_cli.errors import UsageError

_LOCAL = "Workers"
_SLURM = "Slurm"
_CLUSTERS = ("local", "slurm")


def _option(text: str, panel: str = _SLURM, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def parse_division(
    cluster: Annotated[
        str,
        _option(
            "Where the workers run: local, processes on this machine; or slurm.",
            _LOCAL,
            metavar="NAME",
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        _option(
            "How many local workers; cores, memory and GPUs are divided among them. Default: one"
            " for each GPU, else one for each core.",
            _LOCAL,
            metavar="N",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        _option(
            "Submit nothing: print a shell script with the plan, an sbatch array and a merge, to be"
            " saved and run by hand.",
            _SLURM,
            "--dry-run",
        ),
    ] = False,
    partition: Annotated[str | None, _option("Of Slurm.", metavar="NAME")] = None,
    time: Annotated[
        str,
        _option(
            "For one task, as sbatch takes it; what is not finished then goes on in another turn.",
            metavar="LIMIT",
        ),
    ] = "60",
    gpus_per_task: Annotated[
        int | None, _option("GPUs of a task.", metavar="N", min=0, max=1)
    ] = None,
    cpus_per_task: Annotated[int | None, _option("Cores of a task.", metavar="N", min=1)] = None,
    mem: Annotated[str | None, _option("Memory of a task, such as 8GB.", metavar="SIZE")] = None,
    max_parallel: Annotated[
        int | None, _option("At most so many tasks at once.", metavar="N", min=1)
    ] = None,
    max_tasks: Annotated[int, _option("At most so many tasks in all.", metavar="N", min=1)] = 64,
    minutes_per_task: Annotated[
        float | None,
        _option(
            "As many checkpoints to a task as take so long, from the time that a point takes on"
            " this machine.",
            metavar="X",
        ),
    ] = None,
    setup: Annotated[
        list[str] | None,
        _option("A line of shell before each task, such as module load; repeat.", metavar="LINE"),
    ] = None,
    wait: Annotated[
        bool, _option("Stay until the jobs have ended, with a progress bar.", _SLURM, "--wait")
    ] = False,
) -> Division:
    """Read how the work is to be divided."""
    if cluster not in _CLUSTERS:
        raise UsageError(
            f"--cluster {cluster}: not known.", f"Known are {' and '.join(_CLUSTERS)}."
        )
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least 1.")
    if minutes_per_task is not None and not minutes_per_task > 0:
        raise UsageError(f"--minutes-per-task {minutes_per_task:g}: must be positive.")
    if cluster == "local" and (dry_run or wait):
        raise UsageError(
            f"--{'dry-run' if dry_run else 'wait'}: is for a cluster, and local workers are always"
            " waited for.",
            "Give --cluster slurm too, or leave it out.",
        )
    return Division(
        cluster=cluster,
        workers=workers,
        dry_run=dry_run,
        partition=partition,
        minutes=parse_time(time),
        gpus_per_task=gpus_per_task,
        cpus_per_task=cpus_per_task,
        mem=mem,
        max_parallel=max_parallel,
        max_tasks=max_tasks,
        minutes_per_task=minutes_per_task,
        setup=tuple(setup or ()),
        wait=wait,
    )


@taking(parse_options, parse_division)
def submit(context: typer.Context, **given: Any) -> None:
    """Divide an analysis among several workers, and merge what they give."""
    own = names_of(parse_division)
    division = parse_division(**{name: given.pop(name) for name in own})
    parsed: Parsed = parse_options(**given)
    check_divisible(parsed.options)
    if parsed.options.output in (None, Path("-")):
        raise UsageError("submit: no file to write.", "Name one with -o FILE.")
    do_not_spin()
    words = tuple(words_of(context, shared_words()))
    if division.cluster == "slurm":
        from localrank_cli.cli.run_slurm import run_slurm

        raise typer.Exit(run_slurm(parsed, words, division))
    from localrank_cli.cli.run_local import Asked, run_several

    asked = Asked(parsed.options, words, division.workers, parsed.quiet, parsed.verbose)
    raise typer.Exit(run_several(asked))
