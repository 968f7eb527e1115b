import json
from pathlib import Path

import pytest
import torch

from localrank_cli.checkpoints.places import Facts, facts_in, is_count_of_saves
from localrank_cli.errors import UnreadableError
from tests.checkpoints.layouts import trainer_state
from tests.helpers import Evil


def test_trainer_state(tmp_path: Path) -> None:
    assert facts_in(tmp_path) == Facts()
    trainer_state(tmp_path, 30)
    assert facts_in(tmp_path) == Facts(30, "trainer_state.json ('global_step')", 3, is_global=True)


def test_a_part_of_an_epoch_is_none(tmp_path: Path) -> None:
    trainer_state(tmp_path, 35)
    assert facts_in(tmp_path).epoch is None


def test_lightnings_meta_of_a_sharded_checkpoint(tmp_path: Path) -> None:
    torch.save({"global_step": 12, "epoch": 2, "loops": {}}, tmp_path / "meta.pt")
    assert facts_in(tmp_path) == Facts(12, "meta.pt ('global_step')", 2, is_global=True)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_damaged_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(UnreadableError, match=r"trainer_state\.json: is not JSON"):
        facts_in(tmp_path)


@pytest.mark.parametrize("loaded", [[], 7, {}, {"global_step": "many"}])
def test_json_without_facts(tmp_path: Path, loaded: object) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps(loaded))
    assert facts_in(tmp_path) == Facts()


def test_meta_runs_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"global_step": 1, "x": Evil(marker)}, tmp_path / "meta.pt")
    with pytest.raises(UnreadableError, match=r"meta\.pt: the pickle needs code"):
        facts_in(tmp_path)
    assert not marker.exists()


def test_accelerates_count_of_saves(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint_3"
    folder.mkdir()
    assert not is_count_of_saves(folder)
    (folder / "random_states_0.pkl").touch()
    assert is_count_of_saves(folder)
    trainer_state(folder, 30)
    assert not is_count_of_saves(folder)
    (tmp_path / "step_3").mkdir()
    (tmp_path / "step_3/random_states_0.pkl").touch()
    assert not is_count_of_saves(tmp_path / "step_3")
