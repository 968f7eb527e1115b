"""Folders that try to make transformers run code, connect, hang or fill the memory."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from localrank_cli.errors import ModelError
from localrank_cli.model.hf_size import Held
from tests.model.hostile import CASES, RUNS

# Of a tiny network, beyond what is in memory already. A network of the largest size that is let
# through takes 256 MiB.
MOST_KIB = 400 * 2**10
MOST_SECONDS = 15  # of the processor; each takes about one


# One of each kind runs each time: these differ from another in a name or a number alone.
ALIKE = frozenset({
    *("_attn_implementation", "_experts_implementation", "experts_implementation"),
    *(f"nested {key} in {part}" for part in ("text_config", "vision_config") for key in (
        "_attn_implementation", "experts_implementation", "_experts_implementation_internal",
    )),
    "nested attn_implementation in text_config",
    "nested _attn_implementation_internal in text_config",
    *("size 'eight'", "size 0", "size inf", "size {'a': 8}", "size True", f"size {10**18!r:.30}"),
    *("layers -1", f"layers {10**6!r:.30}", f"layers {10**9!r:.30}", f"layers {10**18!r:.30}"),
    *("architectures ['os']", "architectures {'a': 1}", "architectures 7"),
    *("adapter as a FIFO", "adapter as a folder", "config as a link in a circle"),
    *("positions 10**9", "labels 10**12", "nested positions 10**12"),
})  # fmt: skip


def test_those_alike_are_cases() -> None:
    assert set(CASES) >= ALIKE


def chosen(session: pytest.Session) -> list[str]:
    """Return the cases that are to be tested: the others are not run."""
    specs = (getattr(item, "callspec", None) for item in session.items)
    return [spec.params["name"] for spec in specs if spec and spec.params.get("name") in CASES]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    root = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-m", "tests.model.hostile", str(root), *chosen(request.session)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "result.json").read_text())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in ALIKE else ()) for name in CASES]
)
def test_it_ends_in_one_line_and_does_nothing_else(found: Any, name: str) -> None:
    outcome, expected = found[name], CASES[name][1]
    assert outcome["marks"] == []
    assert outcome["connected"] == []
    assert outcome["kib"] < MOST_KIB
    assert outcome["seconds"] < MOST_SECONDS
    if expected == RUNS:
        assert outcome["message"] == RUNS
    else:
        assert outcome["message"].startswith("error: ")
        assert re.search(expected, outcome["message"])
        assert "\n" not in outcome["message"]


def test_a_network_loads_no_kernels_by_itself(found: Any) -> None:
    assert "loads no kernels" in found["a network's own kernels"]
    assert found["marks at the end"] == []


class TestCounts:
    HELD = Held(n_tensors=200_000, n_numbers=300_000)

    @pytest.mark.parametrize(
        "config",
        [
            {"num_hidden_layers": 200_000, "num_labels": 300_000},
            {"vision_feature_layer": -2, "out_indices": [-1]},
            {"rope_theta": 10**9, "max_position_embeddings": 10**7, "eos_token_id": 10**6},
        ],
    )
    def test_what_the_checkpoints_can_hold(self, config: Any) -> None:
        self.HELD.check_counts(config, "config.json")

    @pytest.mark.parametrize(
        "config",
        [
            {"num_hidden_layers": 200_001},
            {"num_labels": 300_001},
            {"depths": [2, 10**9]},
            {"parts": [{"n_layers": 10**9}]},
            {"num_layers": -1},
        ],
    )
    def test_more_than_that(self, config: Any) -> None:
        with pytest.raises(ModelError, match="holds 200000 tensors of 300000 numbers"):
            self.HELD.check_counts(config, "config.json")
