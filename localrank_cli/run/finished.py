"""The finished part of a series on another machine, which need not be fetched again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

from localrank_cli.checkpoints.reading import footprint_of
from localrank_cli.results.journal import Journal
from localrank_cli.results.record import KIND, SETTINGS
from localrank_cli.run.headers import PlannedCheckpoint
from localrank_cli.spectrum.examine import Examination


@dataclass(frozen=True)
class Finished:
    """The finished checkpoints of a run.

    Args:
        settings: Those of the run, as its journal holds them.
        footprints: Bytes, time and versions of each by its name.
    """

    settings: Mapping[str, Any]
    footprints: Mapping[str, tuple[int, int, str]]

    def has(self, checkpoint: PlannedCheckpoint) -> bool:
        """Return whether a checkpoint on another machine is finished, and as it was then."""
        if checkpoint.file.source is None or checkpoint.points is not None:
            return False
        known = self.footprints.get(checkpoint.file.name)
        return known is not None and known == astuple(footprint_of(checkpoint.file))

    def fits(self, examination: Examination, *, one_source: bool) -> bool:
        """Return whether a network, examined with other weights or none, has the same layers."""
        return bool(self.settings.get("layers") == layers_of(examination, one_source=one_source))

    @property
    def needs_weights(self) -> bool:
        """Whether more than the layers was found by running the network with its weights."""
        return bool(self.settings.get("unsaved"))


def finished_runs(journal: Journal) -> dict[str, Finished]:
    """Return what a journal holds of each run.

    Raises:
        SettingsError: If the journal cannot be read.
    """
    journal.check_settings()
    footprints: dict[str, dict[str, tuple[int, int, str]]] = {}
    for entry in journal.entries(KIND):
        head, facts = entry.head, entry.head["facts"]
        if head["status"] == "ok" and "bytes" in facts and not head["points"]:
            found = facts["bytes"], facts["mtime_ns"], facts.get("pin", "")
            footprints.setdefault(head["run"], {})[head["checkpoint"]] = found
    return {
        entry.head["run"]: Finished(journal.body(entry), footprints.get(entry.head["run"], {}))
        for entry in journal.entries(SETTINGS)
    }


def layers_of(examination: Examination, *, one_source: bool) -> list[dict[str, Any]]:
    """Return the pairs of layers and sources that have rows, as JSON can hold them."""
    found = [
        asdict(pair.record.call)
        | {"module": pair.record.module, "shape": list(pair.record.shape)}
        | ({} if one_source else {"wrt": pair.view.label})
        for pair in examination.pairs
    ]
    loaded: list[dict[str, Any]] = json.loads(json.dumps(found))
    return loaded
