import pytest
import torch

from localrank_cli.errors import SettingsError
from localrank_cli.machine import memory_budget, peak_memory, pick_device, versions


def test_cpu() -> None:
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_is_the_gpu_if_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "cuda:99999999999999999999"])
def test_a_missing_gpu(name: str) -> None:
    with pytest.raises(SettingsError, match=f"--device {name}: there is no such GPU") as caught:
        pick_device(name)
    assert "--device cpu" in caught.value.advice


def test_memory_is_between_nothing_and_everything() -> None:
    assert 2**20 < memory_budget(torch.device("cpu")) < 2**45
    assert 2**20 < peak_memory() < 2**45


def test_versions() -> None:
    assert set(versions()) >= {"python", "platform", "localrank", "torch", "numpy", "safetensors"}
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
