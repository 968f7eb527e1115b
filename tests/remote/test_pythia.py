"""A repository of Pythia's layout, as docs/hub.md analyzes it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.remote.hub_server import FakeHub, Files, serving
from tests.remote.test_hub import held, localrank, same_numbers
from tests.warm import preload_libraries

pytest.importorskip("huggingface_hub")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.pages
STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)  # the first of Pythia's 154
DATA = "tokens.safetensors"
WORDS = (
    "--model", "hf", "--data", DATA, "--layers", "gpt_neox.layers.*,!*.*.*.*", "--wrt",
    "previous", "--positions", "last", "--points", "2", "--rtol", "1e-3",
)  # fmt: skip


def revision(step: int) -> Files:
    config = transformers.GPTNeoXConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step)
        model = transformers.GPTNeoXForCausalLM(config)
    described = json.loads(config.to_json_string(use_diff=False))
    described["architectures"] = ["GPTNeoXForCausalLM"]
    return {
        ".gitattributes": b"*.bin filter=lfs\n",
        "config.json": json.dumps(described).encode(),
        "model.safetensors": save(dict(model.state_dict()), metadata={"format": "pt"}),
        "pytorch_model.bin": b"the same weights as a pickle, which is not read",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
    }


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    preload_libraries()


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    branches = {f"step{step}": revision(step) for step in STEPS}
    with serving(FakeHub("lab/pythia", branches | {"main": branches["step1000"]})) as hub:
        yield hub


def tokens(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = {"input_ids": torch.randint(50, (4, 6), generator=generator)}
    (folder / DATA).write_bytes(save(data))


def test_twelve_revisions_block_to_block_with_two_on_the_disk(hub: FakeHub, tmp_path: Path) -> None:
    tokens(tmp_path)
    most: list[int] = []
    hub.before_weights = lambda: most.append(held(tmp_path))
    done = localrank(hub, tmp_path, "analyze", "hf://lab/pythia@step*", *WORDS, "-o", "a.csv")
    assert done.returncode == 0, done.stderr
    assert max(most) == 1  # and the one that is asked for
    assert len(hub.fetched) == len(STEPS)
    for step in STEPS:
        place = tmp_path / "run" / f"step{step}"
        place.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (place / name).write_bytes(hub.branches[f"step{step}"][name])
    done = localrank(hub, tmp_path, "analyze", "run", *WORDS, "-o", "b.csv")
    assert done.returncode == 0, done.stderr
    remote = same_numbers(tmp_path, "a.csv", "b.csv")
    assert list(remote["step"].unique()) == list(STEPS)
    assert remote["layer"].nunique() >= 2


def test_inspect_runs_the_network_without_its_weights(hub: FakeHub, tmp_path: Path) -> None:
    tokens(tmp_path)
    hub.requests.clear()
    for words in ((), WORDS):
        done = localrank(hub, tmp_path, "inspect", "hf://lab/pythia@step*", *words)
        assert done.returncode == 0, done.stderr
        assert "1000" in done.stdout
    assert "gpt_neox.layers.1" in done.stdout
    assert hub.fetched == []
