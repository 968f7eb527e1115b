"""The work of `merge`: from the tables of shards to a file with the table of a single run."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from localrank_cli.divide.folder import ShardFolder, missing_checkpoints
from localrank_cli.divide.merge import collect, find_journals, write_merge
from localrank_cli.errors import LocalrankError, Note, SettingsError, UsageError
from localrank_cli.options.table import MergeOptions
from localrank_cli.results.journal import journal_path
from localrank_cli.results.manifest import read_manifest
from localrank_cli.results.plan_file import read_plan_file
from localrank_cli.results.write import check_suffix, real_target

_MAX_MISSING = 20  # units that are named; further ones are only counted


def merge_tables(options: MergeOptions, command: Sequence[str], warn: Note) -> list[str]:
    """Merge tables into a file, and return sentences on checkpoints that failed.

    `command` is for the manifest, and `warn` receives the parts that are missing.

    Raises:
        UsageError: If no file is named.
        SettingsError: If parts are missing, unless that is allowed.
    """
    output, plan = options.output, options.plan
    if output is None:
        raise UsageError("merge: no file to write.", "Name one with -o FILE.")
    check_suffix(output)
    target = real_target(output)
    # The result of an earlier merge may be among the tables.
    journals = [path for path in find_journals(options.tables) if path != journal_path(target)]
    shards = collect(journals)
    if plan is not None and not shards.missing:
        shards.missing = missing_checkpoints(shards, read_plan_file(plan))
    if shards.missing:
        _report_missing(shards.missing, journals, warn, partial=options.partial)
    flaws = write_merge(shards, target, command, overwrite=options.overwrite)
    folder = ShardFolder(target)
    if plan is not None and not shards.missing and folder.plan == plan.absolute():
        folder.clear()
    return flaws


def _report_missing(units: list[str], journals: list[Path], warn: Note, *, partial: bool) -> None:
    for unit in units[:_MAX_MISSING]:
        warn(f"missing: {unit}")
    if len(units) > _MAX_MISSING:
        warn(f"missing: {len(units) - _MAX_MISSING} more")
    if not partial:
        raise SettingsError(
            f"merge: {len(units)} units are missing.",
            f"Compute them{_command(journals)}, or merge the finished ones with --partial.",
        )


def _command(journals: list[Path]) -> str:
    """Return the command of one of the shards, which shows that of the others."""
    for path in journals:
        with suppress(LocalrankError, ValueError, IndexError):  # the next may have a command
            manifest = read_manifest(path.with_suffix("")) or {}
            words = list(manifest.get("command") or ())
            place = words.index("--shard")
            if not words[place + 1].startswith("auto"):
                words[place + 1] = "I/N"
            return f" with: {shlex.join(['localrank', *words[1:]])}"
    return ""
