"""`localrank merge`: the tables of shards put together."""

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from localrank_cli.cli.command import offering
from localrank_cli.errors import INCOMPLETE, LocalrankError, SettingsError, UsageError
from localrank_cli.options.table import MergeOptions

if TYPE_CHECKING:  # torch is imported only when there is something to do
    from localrank_cli.cli.screen import Screen
    from localrank_cli.divide.merge import Merge

_LISTED = 20


@offering(MergeOptions)
def merge(_context: typer.Context, options: MergeOptions) -> None:
    """Put the tables of shards together; the result is that of a single run."""
    output, plan = options.output, options.plan
    if output is None:
        raise UsageError("merge: no file to write.", "Name one with -o FILE.")
    from localrank_cli.cli.screen import Screen
    from localrank_cli.divide.merge import collect, find_journals, write_merged
    from localrank_cli.results.journal import journal_path
    from localrank_cli.results.write import check_suffix

    check_suffix(output)
    screen = Screen(quiet=False, verbose=False)
    target = output.absolute()
    # The result of an earlier merge may stand among the tables.
    journals = [path for path in find_journals(options.tables) if path != journal_path(target)]
    found = collect(journals)
    if plan is not None and not found.missing:
        from localrank_cli.divide.folder import missing_checkpoints
        from localrank_cli.results.plan_file import read_plan_file

        found.missing = missing_checkpoints(found, read_plan_file(plan))
    if found.missing:
        _tell_missing(found, journals, screen, partial=options.partial)
    flaws = write_merged(found, target, sys.argv, overwrite=options.overwrite)
    if plan is not None and not found.missing:
        from localrank_cli.divide.folder import ShardFolder

        if (folder := ShardFolder(target)).plan == plan.absolute():
            folder.clear()
    for flaw in flaws:
        screen.warn(f"warning: {flaw}")
    screen.note(f"wrote {output} and {output.name}.json")
    if flaws:
        raise typer.Exit(INCOMPLETE)


def _tell_missing(found: "Merge", journals: list[Path], screen: "Screen", *, partial: bool) -> None:
    for line in found.missing[:_LISTED]:
        screen.warn(f"warning: missing: {line}")
    if len(found.missing) > _LISTED:
        screen.warn(f"warning: missing: {len(found.missing) - _LISTED} more")
    if not partial:
        raise SettingsError(
            f"merge: {len(found.missing)} units are missing.",
            f"Compute them{_command(journals)}, or merge what is there with --partial.",
        )


def _command(journals: list[Path]) -> str:
    """Return the command of one of the shards, which shows that of the others."""
    from localrank_cli.results.manifest import read_manifest

    for path in journals:
        with suppress(LocalrankError, ValueError, IndexError):
            manifest = read_manifest(path.with_suffix("")) or {}
            words = list(manifest.get("command") or ())
            place = words.index("--shard")
            if not words[place + 1].startswith("auto"):
                words[place + 1] = "I/N"
            return f" with: {shlex.join(['localrank', *words[1:]])}"
    return ""
