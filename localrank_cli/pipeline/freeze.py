"""Makes a plan file of a plan, and holds a later plan to it."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from localrank_cli.errors import SettingsError
from localrank_cli.pipeline.division import name_of, take_shard
from localrank_cli.pipeline.frozen import Frozen, FrozenSeries, Listed
from localrank_cli.pipeline.manifest import decisive, series_settings
from localrank_cli.pipeline.narrow import marks
from localrank_cli.pipeline.plan import Plan, SeriesPlan
from localrank_cli.pipeline.shard import Shard


def freeze(plan: Plan, left: Plan, shards: int, words: Sequence[str], output: Path) -> Frozen:
    """Writes down what all parts of a run must see.

    Args:
        plan: All that was asked for.
        left: What of it is to be computed.
        shards: In how many parts.
        words: The command line of analyze, but for what each part has of its own.
        output: Where the result goes.

    Returns:
        The plan for a file.
    """
    series = tuple(
        FrozenSeries(
            one.run,
            str(one.series.folder),
            json.loads(json.dumps(series_settings(one))),
            tuple(_listed(one, {name_of(each) for each in rest.in_order})),
        )
        for one, rest in zip(plan.series, left.series, strict=True)
    )
    n_units = take_shard(left, Shard(0, shards))[1].n_units if left.n_checkpoints else 0
    return Frozen(
        series, shards, n_units, tuple(words), str(output), str(Path.cwd()), sys.executable
    )


def _listed(series: SeriesPlan, left: set[str]) -> Iterator[Listed]:
    paths = {file.name: file.path for file in series.series.files}
    for one in series.in_order:
        name = name_of(one)
        yield Listed(name, one.step, *marks(paths[name]), is_done=name not in left)


def hold_to(plan: Plan, frozen: Frozen) -> Plan:
    """Checks that a part of a run plans what all others do.

    Args:
        plan: Made of the checkpoints that the plan file lists.
        frozen: The plan file.

    Returns:
        What of it was left to do when the work was divided.

    Raises:
        SettingsError: If a setting or a step differs.
    """
    for series in plan.series:
        listed = frozen.of_run(series.run)
        now = decisive(json.loads(json.dumps(series_settings(series))))
        for key, value in decisive(listed.settings).items():
            if now[key] != value:
                raise SettingsError(
                    f"{series.run}: {key.replace('_', ' ')} is not what it was when the plan was"
                    " made.",
                    "Submit again; what is finished is kept.",
                )
        steps = {one.name: one.step for one in listed.checkpoints}
        for checkpoint in series.checkpoints:
            if steps[checkpoint.file.name] != checkpoint.step:
                raise SettingsError(
                    f"{checkpoint.place}: was step {steps[checkpoint.file.name]} when the plan was"
                    " made.",
                    "Submit again; what is finished is kept.",
                )
    left = [
        replace(
            one,
            checkpoints=tuple(
                each for each in one.checkpoints if (one.run, each.file.name) not in frozen.done
            ),
        )
        for one in plan.series
    ]
    return replace(plan, series=tuple(left))
