from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from localrank_cli.checkpoints.series import find_checkpoints
from localrank_cli.errors import MismatchError, SettingsError, UnreadableError
from localrank_cli.model.fill import Expected
from localrank_cli.run.headers import Headers, load_state
from tests.helpers import ignore, mlp, renamed, weights


def headers(folder: Path) -> Headers:
    return Headers(find_checkpoints(folder, [], "", []), trust_pickle=False)


def steps(folder: Path, notes: list[str] | None = None) -> dict[str, int]:
    found = headers(folder).steps((notes if notes is not None else []).append)
    return {file.name: step for file, step in found}


def save(path: Path, state: Mapping[str, Any] | None = None) -> None:
    torch.save(state if state is not None else weights(), path)


class TestSteps:
    def test_sorted_as_numbers(self, tmp_path: Path) -> None:
        for step in (10, 9, 100, 0):
            save(tmp_path / f"step_{step}.pt")
        assert list(steps(tmp_path).values()) == [0, 9, 10, 100]

    def test_what_is_inside_beats_the_name_with_a_note(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save(tmp_path / "step_5.pt", {"model": weights(), "global_step": 50})
        save_file(weights(), tmp_path / "b_7.safetensors", metadata={"step": "70"})
        save(tmp_path / "step_9.pt", {"model": weights(), "step": 9})
        assert steps(tmp_path, notes) == {"step_9.pt": 9, "step_5.pt": 50, "b_7.safetensors": 70}
        assert notes == [
            "step_5.pt: its name says step 5, its entry 'global_step' says 50, which is used"
        ]

    def test_names_without_a_step(self, tmp_path: Path) -> None:
        for seed, name in enumerate(("last.pt", "best.pt", "step_1.pt")):
            save(tmp_path / name, weights(seed=seed))
        with pytest.raises(SettingsError, match=r"no step was found for best\.pt, last\.pt") as e:
            steps(tmp_path)
        assert "--pattern" in e.value.advice
        assert "step_100" in e.value.advice

    def test_many_names_without_a_step(self, tmp_path: Path) -> None:
        for letter in "abcdefgh":
            save(tmp_path / f"{letter}.pt")
        with pytest.raises(SettingsError, match=r"e\.pt and 3 more"):
            steps(tmp_path)

    def test_the_same_step_twice(self, tmp_path: Path) -> None:
        save(tmp_path / "step_5.pt")
        save(tmp_path / "model_005.pt", weights(seed=1))
        with pytest.raises(SettingsError, match="are both step 5") as caught:
            steps(tmp_path)
        assert (
            "model_005.pt (by its name) and step_5.pt (by its name) are both" in caught.value.what
        )
        assert "--pattern" in caught.value.advice

    def test_a_constant_entry_is_refused_as_a_counter(self, tmp_path: Path) -> None:
        for step in (1, 2):
            save(tmp_path / f"step_{step}.pt", {"model": weights(seed=step), "steps": 1000})
        with pytest.raises(SettingsError, match="by its entry 'steps'"):
            steps(tmp_path)

    def test_epochs_where_there_is_nothing_else(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save(tmp_path / "epoch_3.pt")
        save(tmp_path / "a.pt", {"model": weights(), "epoch": 1})
        assert steps(tmp_path, notes) == {"a.pt": 1, "epoch_3.pt": 3}
        assert notes == ["there are epochs but no steps: the column step holds epochs"]

    def test_a_step_beats_an_epoch(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save(tmp_path / "epoch=1-step=10.ckpt", {"state_dict": weights(), "epoch": 1})
        assert steps(tmp_path, notes) == {"epoch=1-step=10.ckpt": 10}
        assert notes == []

    def test_epochs_among_steps_are_no_steps(self, tmp_path: Path) -> None:
        save(tmp_path / "step_100.pt")
        save(tmp_path / "epoch_3.pt", weights(seed=1))
        with pytest.raises(SettingsError, match=r"no step was found for epoch_3\.pt"):
            steps(tmp_path)

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        save(tmp_path / "step_1.pt")
        (tmp_path / "step_2.pt").write_bytes((tmp_path / "step_1.pt").read_bytes()[:-99])
        with pytest.raises(UnreadableError, match=r"step_2\.pt"):
            steps(tmp_path)


class TestPlan:
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.net."])
    def test_names_are_stripped_alike_when_planned_and_loaded(
        self, tmp_path: Path, prefix: str
    ) -> None:
        state = renamed(weights(), prefix)
        save(tmp_path / "step_1.pt", {"net": state, "state_dict": {"other": torch.ones(1)}})
        all_headers = headers(tmp_path)
        ((file, step),) = all_headers.steps(ignore)
        model = mlp(4, 3, 2)
        planned = all_headers.plan(file, step, model, Expected(model))
        assert planned.container == "net"
        assert planned.stripping.prefix == prefix
        assert planned.place == f"{tmp_path / 'step_1.pt'} (step 1)"
        loaded = load_state(planned, trust_pickle=False)
        assert sorted(loaded) == sorted(weights())
        assert torch.equal(loaded["0.bias"], weights()["0.bias"])

    def mismatch(self, folder: Path, state: Mapping[str, Tensor], model: nn.Module) -> str:
        save(folder / "step_1.pt", {"model": state})
        all_headers = headers(folder)
        ((file, step),) = all_headers.steps(ignore)
        with pytest.raises(MismatchError) as caught:
            all_headers.plan(file, step, model, Expected(model))
        assert caught.value.what.startswith(f"{folder / 'step_1.pt'} (step 1): ")
        return caught.value.what

    def test_a_mismatch_is_reported_under_the_nearest_names(self, tmp_path: Path) -> None:
        state = renamed(weights(), "module.")
        del state["module.2.bias"]
        message = self.mismatch(tmp_path, state, mlp(4, 3, 2))
        assert "missing: 2.bias." in message
        assert "unexpected" not in message

    def test_also_where_modules_load_in_their_own_way(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        state = renamed(dict(model.state_dict()), "module.")
        del state["module.0.bias"]
        message = self.mismatch(tmp_path, state, model)
        assert "missing: 0.bias." in message
        assert "unexpected" not in message

    def test_load_hooks_may_accept_other_names(self, tmp_path: Path) -> None:
        class Renames(nn.Linear):
            def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
                state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")
                super()._load_from_state_dict(state, prefix, *args)

        model = nn.Sequential(Renames(4, 3))
        state = {"0.kernel": torch.ones(3, 4), "0.bias": torch.ones(3)}
        save(tmp_path / "step_1.pt", {"model": weights(), "net": state})
        all_headers = headers(tmp_path)
        ((file, step),) = all_headers.steps(ignore)
        planned = all_headers.plan(file, step, model, Expected(model))
        assert planned.container == "net"
        assert model.state_dict()["0.weight"].sum().item() == 12

    def test_a_file_that_changed_since(self, tmp_path: Path) -> None:
        save(tmp_path / "step_1.pt", {"model": weights()})
        all_headers = headers(tmp_path)
        ((file, step),) = all_headers.steps(ignore)
        model = mlp(4, 3, 2)
        planned = all_headers.plan(file, step, model, Expected(model))
        save(tmp_path / "step_1.pt", {"net": weights()})
        with pytest.raises(SettingsError, match="the file changed since the run began"):
            load_state(planned, trust_pickle=False)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_tensors_of_a_wrong_kind_are_refused_by_the_header(
    tmp_path: Path, prefix: str, suffix: str
) -> None:
    state = {f"{prefix}{key}": value for key, value in weights().items()}
    state[f"{prefix}2.bias"] = state[f"{prefix}2.bias"].to(torch.int8)
    if suffix == "pt":
        save(tmp_path / "step_5.pt", {"model": state})
    else:
        save_file(state, tmp_path / "step_5.safetensors")
    found = headers(tmp_path)
    ((file, step),) = found.steps(ignore)
    model = mlp(4, 3, 2)
    with pytest.raises(MismatchError, match=r"step_5.* \(step 5\): 2.bias holds int8, expected"):
        found.plan(file, step, model, Expected(model))
