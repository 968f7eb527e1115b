"""An adapter (LoRA and the like) is no network, whatever its weights look like."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.cli.program import QUICK, Outcome, invoke
from tests.helpers import NET_CODE, net_weights, weights

NETS = """
import torch
from torch import nn

class Lora(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.base_layer = nn.Linear(n_in, n_out)
        self.lora_A, self.lora_B = nn.Linear(n_in, 1), nn.Linear(1, n_out)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

def inside():
    return nn.Sequential(Lora(4, 3), nn.ReLU(), nn.Linear(3, 2))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return self.lora_B(self.lora_A(x))
"""


def lora(prefix: str = "base_model.model.") -> dict[str, Tensor]:
    """An adapter of a network 4-3-2, whose tensors form a chain 4-2-3-2-2 by themselves."""
    shapes = {"0.lora_A": (2, 4), "0.lora_B": (3, 2), "2.lora_A": (2, 3), "2.lora_B": (2, 2)}
    return {f"{prefix}{name}.weight": torch.ones(shape) for name, shape in shapes.items()}


def save(path: Path, state: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    if path.name.startswith("adapter_model"):
        (path.parent / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')


def refused(path: Path, *words: str, command: str = "analyze") -> Outcome:
    outcome = invoke(command, str(path), *QUICK, *words)
    assert outcome.code == 1, outcome.stderr
    assert outcome.stdout == ""
    assert "holds only an adapter" in outcome.error
    assert "merge_and_unload" in outcome.error
    return outcome


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (0, 100):
        save(tmp_path / f"run/checkpoint-{step}/adapter_model.safetensors", lora())
    return tmp_path / "run"


@pytest.mark.parametrize("place", ["", "checkpoint-0", "checkpoint-0/adapter_model.safetensors"])
@pytest.mark.parametrize("command", ["analyze", "inspect"])
def test_checkpoints_of_peft(run: Path, place: str, command: str) -> None:
    outcome = refused(run / place, command=command)
    folder = run / "checkpoint-0"
    assert f"{folder / 'adapter_model.safetensors'}: holds" in outcome.error
    assert f"PeftModel.from_pretrained(base, '{folder}')" in outcome.error


@pytest.mark.parametrize("model", ["net.py:Net", "hf"])
def test_whatever_the_model_is(run: Path, model: str) -> None:
    (run.parent / "net.py").write_text(NET_CODE)
    refused(run, "--model", model if model == "hf" else str(run.parent / model))


@pytest.mark.parametrize("name", ["step_5.pt", "checkpoint-5/adapter_model.bin", "adapter.bin"])
def test_other_files(tmp_path: Path, name: str) -> None:
    save(tmp_path / "run" / name, lora(""))
    outcome = refused(tmp_path / "run")
    assert f"{tmp_path / 'run' / name}: holds only an adapter (0.lora_A.weight)" in outcome.error


def test_the_same_adapter_in_two_formats(tmp_path: Path) -> None:
    for suffix in ("safetensors", "bin"):
        save(tmp_path / f"run/checkpoint-5/adapter_model.{suffix}", lora())
    refused(tmp_path / "run")


def test_an_adapter_that_only_its_config_shows(tmp_path: Path) -> None:
    """As PEFT saves tuned LayerNorms."""
    state = {f"base_model.model.{key}": value for key, value in weights().items()}
    save(tmp_path / "run/checkpoint-5/adapter_model.safetensors", state)
    refused(tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "pytorch_adapter.bin", "adapter_model.safetensors"]
)
@pytest.mark.parametrize("keys", [("0.foo_in", "0.foo_out"), ("0.down", "0.up")])
def test_an_adapter_with_unknown_keys(tmp_path: Path, name: str, keys: tuple[str, str]) -> None:
    shapes = dict(zip(keys, [(2, 4), (4, 2)], strict=True))
    for step in (1, 2):
        path = tmp_path / f"run/checkpoint-{step}/{name}"
        save(path, {f"{key}.weight": torch.ones(shape) for key, shape in shapes.items()})
        (path.parent / "adapter_config.json").write_text('{"peft_type": "NEW"}')
    refused(tmp_path / "run")


def test_prompts_cannot_be_merged(tmp_path: Path) -> None:
    save(tmp_path / "run/step_5.pt", {"prompt_embeddings": torch.ones(2, 4)})
    assert "cannot merge it" in refused(tmp_path / "run").error


def test_a_merged_network_beside_the_config(run: Path) -> None:
    for step in (0, 100):
        save(run / f"checkpoint-{step}/model.safetensors", weights(seed=step))
    outcome = invoke("analyze", str(run), *QUICK)
    assert outcome.code == 0, outcome.stderr
    assert "MLP 4-3-2" in outcome.stderr


class TestWithTheNetworksCode:
    def test_layers_inside_a_network(self, tmp_path: Path) -> None:
        (tmp_path / "nets.py").write_text(NETS)
        state = {key.replace("0.", "0.base_layer."): value for key, value in weights().items()}
        state |= {"0.lora_A.weight": torch.ones(1, 4), "0.lora_A.bias": torch.ones(1)}
        state |= {"0.lora_B.weight": torch.ones(3, 1), "0.lora_B.bias": torch.ones(3)}
        save(tmp_path / "run/step_5.pt", state)
        words = ("--model", f"{tmp_path / 'nets.py'}:inside")
        assert invoke("analyze", str(tmp_path / "run"), *QUICK, *words).code == 0
        outcome = invoke("analyze", str(tmp_path / "run"), *QUICK)
        assert outcome.code == 1
        assert "an adapter (0.lora_A.weight) as well as the weights of a network" in outcome.error
        assert "--model" in outcome.error

    def test_a_network_of_the_users_own_with_such_names(self, tmp_path: Path) -> None:
        (tmp_path / "nets.py").write_text(NETS)
        state = {"lora_A.weight": torch.ones(3, 4), "lora_B.weight": torch.ones(4, 3)}
        save(tmp_path / "run/step_5.pt", state)
        words = ("--model", f"{tmp_path / 'nets.py'}:Own")
        outcome = invoke("analyze", str(tmp_path / "run"), *QUICK, *words)
        assert outcome.code == 0, outcome.stderr

    def test_an_adapter_among_networks(self, tmp_path: Path) -> None:
        (tmp_path / "net.py").write_text(NET_CODE)
        save(tmp_path / "run/step_0.pt", net_weights())
        save(tmp_path / "run/step_5.pt", lora(""))
        words = ("--model", f"{tmp_path / 'net.py'}:Net")
        assert f"{tmp_path / 'run/step_5.pt'}: holds" in refused(tmp_path / "run", *words).error


@pytest.mark.parametrize("has_code", [False, True])
def test_skipped_with_the_others(tmp_path: Path, has_code: bool) -> None:
    (tmp_path / "net.py").write_text(NET_CODE)
    save(tmp_path / "run/step_0.pt", net_weights() if has_code else weights())
    save(tmp_path / "run/step_5.pt", lora(""))
    words = ["--model", f"{tmp_path / 'net.py'}:Net"] if has_code else []
    outcome = invoke("analyze", str(tmp_path / "run"), *QUICK, "--on-error", "skip", *words)
    assert outcome.code == 3
    last = outcome.stdout.splitlines()[-1]
    assert last.startswith("run,step_5.pt,5,")
    assert "merge_and_unload" in last
