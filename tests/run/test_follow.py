"""Watching a run in progress, under a simulated clock."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from localrank_cli.errors import SettingsError, UnreadableError
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.run.compute import run_plan
from localrank_cli.run.follow import Watch
from tests.helpers import ignore, save_epochs, save_series, weights


def followed(
    folder: Path | tuple[Path, ...],
    happenings: list[Callable[[], object]],
    until: int | None,
    on_error: Literal["stop", "skip"] = "stop",
) -> list[int | None]:
    """Follow folders, with one happening at each wait; return the steps in order of arrival."""
    left = iter(happenings)

    def sleep(seconds: float) -> None:
        happening = next(left, None)
        assert happening is not None, "waited for longer than anything happens"
        happening()

    options = AnalyzeOptions(
        checkpoints=folder if isinstance(folder, tuple) else (folder,),
        data="normal:4",
        points=2,
        device="cpu",
        follow=True,
        until=until,
        on_error=on_error,
    )
    watch = Watch(options, ignore, sleep)
    plan = watch.first_plan()
    steps = [record.step for record in run_plan(plan, ignore)]
    for more in watch.plans(plan):
        assert all(not c.mapped for series in more.series for c in series.checkpoints)
        steps += [record.step for record in run_plan(more, ignore)]
    return steps


def nothing() -> None:
    pass


def save(folder: Path, *steps: int) -> Callable[[], object]:
    return lambda: save_series(folder, steps)


def test_checkpoints_as_they_appear(tmp_path: Path) -> None:
    run = tmp_path / "run"
    happenings = [nothing, save(run, 5, 0), nothing, save(run, 10), nothing, save(run, 20), nothing]
    assert followed(run, happenings, until=20) == [0, 5, 10, 20]


@pytest.mark.parametrize("data", [torch.ones(3, 4), {"x": torch.ones(3, 4), "y": torch.ones(3)}])
@pytest.mark.parametrize("at", [0, 3])
def test_data_are_no_checkpoint(tmp_path: Path, data: object, at: int) -> None:
    """Neither at the start nor later."""
    run = tmp_path / "run"
    happenings = [nothing, nothing, save(run, 0), nothing, save(run, 5), nothing, nothing]
    run.mkdir()
    happenings.insert(at, lambda: torch.save(data, run / "inputs.pt"))
    assert followed(run, happenings, until=5) == [0, 5]


def test_a_later_module_with_another_activation_is_refused(tmp_path: Path) -> None:
    def write(step: int, activation: nn.Module) -> Callable[[], object]:
        module = nn.Sequential(nn.Linear(4, 3), activation, nn.Linear(3, 2))
        return lambda: torch.save(module, tmp_path / f"step_{step}.pt")

    same = [write(0, nn.ReLU()), nothing, write(5, nn.ReLU()), nothing]
    assert followed(tmp_path, same, until=5) == [0, 5]
    (tmp_path / "step_5.pt").unlink()
    with pytest.raises(SettingsError, match=r"step_5\.pt: holds a module with different parts"):
        followed(tmp_path, [write(5, nn.Tanh()), nothing, nothing], until=5)


def test_it_stops_after_the_step(tmp_path: Path) -> None:
    run = save_series(tmp_path / "run", (0, 5))
    assert followed(run, [nothing], until=5) == [0, 5]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path, suffix: str) -> None:
    run = save_series(tmp_path / "run", (0,))
    target, whole = run / f"step_5.{suffix}", tmp_path / f"whole.{suffix}"
    if suffix == "pt":
        torch.save(weights(seed=5), whole)
    else:
        save_file(weights(seed=5), whole)
    data = whole.read_bytes()

    def write(share: float) -> Callable[[], object]:
        return lambda: target.write_bytes(data[: int(len(data) * share)])

    happenings = [nothing, write(0.02), write(0.5), nothing, nothing, nothing, write(1), nothing]
    assert followed(run, happenings, until=5) == [0, 5]


def test_a_file_that_stays_incomplete_fails_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrank_cli.run.follow._PATIENCE", 0.0)
    run = save_series(tmp_path / "run", (0,))

    def torn() -> None:
        (run / "step_5.safetensors").write_bytes(b"\x10" + bytes(7) + b"{")

    with pytest.raises(UnreadableError, match=r"step_5\.safetensors"):
        followed(run, [nothing, torn, nothing, nothing], until=10)
    (run / "step_5.safetensors").unlink()
    happenings = [nothing, torn, nothing, save(run, 10), nothing]
    assert followed(run, happenings, until=10, on_error="skip") == [0, 5, 10]


def test_a_last_step_that_cannot_be_analysed_ends_the_wait(tmp_path: Path) -> None:
    """Otherwise nothing would ever end the wait."""
    run = save_series(tmp_path / "run", (0,))

    def misfit() -> None:
        save_file(weights(7, 7), run / "step_5.safetensors")

    assert followed(run, [nothing, misfit, nothing], until=5, on_error="skip") == [0, 5]


def test_every_series_is_waited_for(tmp_path: Path) -> None:
    runs = (save_series(tmp_path / "a", (0,)), save_series(tmp_path / "b", (0,)))
    happenings = [nothing, save(runs[0], 5), nothing, save(runs[1], 3), nothing]
    happenings += [save(runs[1], 5), nothing]
    assert followed(runs, happenings, until=5) == [0, 0, 5, 3, 5]


def test_an_average_of_two_looks_is_not_enough(tmp_path: Path) -> None:
    """A file that grows from look to look is not read, complete or not."""
    run = save_series(tmp_path / "run", (0,))
    target = run / "step_5.pt"

    def grow(seed: int) -> Callable[[], object]:
        return lambda: torch.save(weights(seed=seed) | {"x": torch.zeros(seed + 1)}, target)

    def mend() -> None:
        torch.save(weights(seed=5), target)

    happenings = [nothing, *(grow(seed) for seed in range(5)), mend, nothing]
    assert followed(run, happenings, until=5) == [0, 5]


class TestStepsThatCountInsideEachEpoch:
    PLACES = ((0, 40), (1, 20), (2, 60))

    def save(self, folder: Path, n: int) -> Callable[[], object]:
        def happen() -> None:
            for file in save_epochs(folder.parent / "saved", self.PLACES[:n]).iterdir():
                if not (folder / file.name).exists():
                    file.rename(folder / file.name)

        return happen

    def test_later_ones_are_counted_as_the_first(self, tmp_path: Path) -> None:
        run = save_epochs(tmp_path / "run", self.PLACES[:2])
        assert followed(run, [nothing, self.save(run, 3), nothing], until=2) == [0, 1, 2]

    @pytest.mark.parametrize("on_error", ["stop", "skip"])
    def test_what_would_change_earlier_steps_is_refused(
        self, tmp_path: Path, on_error: Literal["stop", "skip"]
    ) -> None:
        run = save_epochs(tmp_path / "run", self.PLACES[:1])
        with pytest.raises(SettingsError, match=r"c_01\.pt.*must hold epochs") as caught:
            followed(run, [nothing, self.save(run, 2), nothing], until=60, on_error=on_error)
        assert "--overwrite" in caught.value.advice

    @pytest.mark.parametrize(
        ("first", "later", "message"),
        [
            ("epoch_0.pt", "step_500.pt", r"step_500\.pt.*but so far it holds epochs"),
            ("step_1_000.pt", "step_1_2.pt", r"the digit groups in step_1_000\.pt"),
        ],
    )
    def test_a_name_that_changes_how_earlier_ones_are_read_is_refused(
        self, tmp_path: Path, first: str, later: str, message: str
    ) -> None:
        torch.save(weights(seed=0), tmp_path / first)

        def appear() -> None:
            torch.save(weights(seed=1), tmp_path / later)

        with pytest.raises(SettingsError, match=message):
            followed(tmp_path, [nothing, appear, nothing], until=2000)
