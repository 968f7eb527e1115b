"""Progress within a checkpoint, and passes that are forecast: both against what is really done."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from localrank_cli.jacobian.engine import Modes
from localrank_cli.jacobian.progress import Progress, Source, Span, Step
from localrank_cli.layers.capture import Call
from localrank_cli.layers.positions import Positions
from localrank_cli.layers.select import Selection
from localrank_cli.spectrum.layer import Request, layer_spectra
from tests.spectrum.test_positions import built

PLENTY, LITTLE = 2**31, 3 * 8 * 200


@dataclass
class Counted(Progress):
    """Progress that also counts the passes that are made between two beginnings."""

    counts: list[tuple[tuple[str, ...], int, int]] = field(default_factory=list)

    def begin(self, source: Source, calls: Sequence[Call], span: Span, passes: int) -> None:
        super().begin(source, calls, span, passes)
        self.counts.append((tuple(call.label for call in calls), passes, 0))
        for call in calls:
            work = self._works[source, call]
            whole = span.n_parts >= work.n_matrices
            assert not whole or work.passes in {passes, passes // span.n_points}, call

    def advance(self, passes: int) -> None:
        super().advance(passes)
        calls, expected, made = self.counts[-1] if self.counts else ((), 0, 0)
        if self.counts:
            self.counts[-1] = calls, expected, made + passes


@pytest.mark.cover(2)
@pytest.mark.parametrize("memory", [PLENTY, LITTLE])
@pytest.mark.parametrize("kind", ["all", "each:2", "same:2", "last-all", "last-each:2"])
@pytest.mark.parametrize("name", ["resnet", "mlp"])
def test_passes_are_those_forecast_and_all_is_done_at_the_end(
    name: str, kind: str, memory: int
) -> None:
    model, points = built(name)
    kind = kind.partition(":")[0] if name == "mlp" else kind
    needed = 40 * 120**2 + 8 * 120 if kind == "all" else memory
    steps: list[Step] = []
    progress = Counted(steps.append)
    selection = Selection(positions=Positions.parse(kind))
    request = Request(selection, memory=max(memory, needed))
    layer_spectra(model, points, request, Modes(chain=False, narrow=False, progress=progress))
    assert progress.counts
    # A check by one direction more may follow the passes that it is for.
    assert all(expected <= made <= expected + 1 for _, expected, made in progress.counts)
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1)
    assert len(done) >= len(progress.counts)
    assert all(1 <= step.points[0] <= step.points[1] <= step.n_points == 2 for step in steps)
