"""A monitor in a training on several processes: the first measures, the others wait."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.cli.program import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trainings left what they wrote, and what they printed in `stderr`."""
    found = tmp_path_factory.mktemp("distributed")
    code = f"from tests.live.distributed import main; main({str(found)!r})"
    done = run("-c", code, is_python=True)
    assert done.code == 0, done.stderr
    (found / "stderr").write_text(done.stderr)
    return found


def test_a_training_on_two_processes_is_the_same_with_and_without_it(folder: Path) -> None:
    for rank in (0, 1):
        with_it, without = (torch.load(folder / f"{kind}_{rank}.pt") for kind in ("ddp", "none"))
        for key in without:
            assert torch.equal(with_it[key], without[key]), key
    rows = pd.read_csv(folder / "ddp.csv")
    assert rows["step"].tolist() == [0, 0, 2, 2, 4, 4]
    assert rows["layer"].astype(str).tolist() == ["0", "3"] * 3


def test_weights_that_fsdp_divides_are_gathered(folder: Path) -> None:
    divided, whole = (pd.read_csv(folder / f"{kind}.csv") for kind in ("fsdp", "ddp"))
    assert divided["step"].tolist() == whole["step"].tolist()
    for column in ("local_rank", "spectral_norm"):  # of step 0: BatchNorm is not averaged after
        assert divided[column][:2].tolist() == whole[column][:2].tolist()


def test_a_fault_is_one_line_of_the_first_process(folder: Path) -> None:
    printed = (folder / "stderr").read_text()
    assert printed.count("is not measured") == 1
    assert "'nothing'" in printed
    assert (folder / "fault_1.pt").exists()


def test_a_fault_that_is_to_stop_the_training_stops_all_processes(folder: Path) -> None:
    texts = [(folder / f"raise_{rank}.txt").read_text() for rank in (0, 1)]
    assert "expected a network or a state dict" in texts[0]
    assert texts[0] == texts[1]
