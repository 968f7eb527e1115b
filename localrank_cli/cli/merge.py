"""`localrank merge`: merge the tables of shards."""

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.errors import INCOMPLETE, LocalrankError, SettingsError, UsageError
from localrank_cli.options.table import MergeOptions

if TYPE_CHECKING:  # importing torch is slow
    from localrank_cli.cli.screen import Screen

_MAX_MISSING = 20  # units that are named; further ones are only counted


@with_options(MergeOptions, example="localrank merge parts -o ranks.csv")
def merge(_context: typer.Context, options: MergeOptions) -> None:
    """Merge the tables of shards into that of a single run."""
    output, plan = options.output, options.plan
    if output is None:
        raise UsageError("merge: no file to write.", "Name one with -o FILE.")
    from localrank_cli.cli.screen import Screen
    from localrank_cli.divide.merge import collect, find_journals, write_merge
    from localrank_cli.results.journal import journal_path
    from localrank_cli.results.write import check_suffix, real_target, written

    check_suffix(output)
    screen = Screen(quiet=False, verbose=False)
    target = real_target(output)
    # The result of an earlier merge may be among the tables.
    journals = [path for path in find_journals(options.tables) if path != journal_path(target)]
    shards = collect(journals)
    if plan is not None and not shards.missing:
        from localrank_cli.divide.folder import missing_checkpoints
        from localrank_cli.results.plan_file import read_plan_file

        shards.missing = missing_checkpoints(shards, read_plan_file(plan))
    if shards.missing:
        _report_missing(shards.missing, journals, screen, partial=options.partial)
    flaws = write_merge(shards, target, sys.argv, overwrite=options.overwrite)
    if plan is not None and not shards.missing:
        from localrank_cli.divide.folder import ShardFolder

        if (folder := ShardFolder(target)).plan == plan.absolute():
            folder.clear()
    for flaw in flaws:
        screen.warn(f"warning: {flaw}")
    screen.note(written(output))
    if flaws:
        raise typer.Exit(INCOMPLETE)


def _report_missing(
    units: list[str], journals: list[Path], screen: "Screen", *, partial: bool
) -> None:
    for unit in units[:_MAX_MISSING]:
        screen.warn(f"warning: missing: {unit}")
    if len(units) > _MAX_MISSING:
        screen.warn(f"warning: missing: {len(units) - _MAX_MISSING} more")
    if not partial:
        raise SettingsError(
            f"merge: {len(units)} units are missing.",
            f"Compute them{_command(journals)}, or merge the finished ones with --partial.",
        )


def _command(journals: list[Path]) -> str:
    """Return the command of one of the shards, which shows that of the others."""
    from localrank_cli.results.manifest import read_manifest

    for path in journals:
        with suppress(LocalrankError, ValueError, IndexError):  # the next may have a command
            manifest = read_manifest(path.with_suffix("")) or {}
            words = list(manifest.get("command") or ())
            place = words.index("--shard")
            if not words[place + 1].startswith("auto"):
                words[place + 1] = "I/N"
            return f" with: {shlex.join(['localrank', *words[1:]])}"
    return ""
