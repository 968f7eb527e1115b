"""What is saved, loaded by plain torch in a clean interpreter."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from localrank_cli.compress.replace import Replacement, estimate_norms, replace_layers
from localrank_cli.compress.state import dense_state, effective_rank_of, factored_state
from localrank_cli.errors import OutputError
from localrank_cli.results.compressed import (
    FACTS_NAME,
    LOADER,
    prepare_folder,
    write_facts,
    write_loader,
    write_rows,
    write_weights,
)
from tests.compress.cases import batches, convolutional, mlp, normal, run

ROUNDING = 1e-12  # float64, sums of some dozen products


def factored_convolutional() -> tuple[nn.Module, nn.Module]:
    model = convolutional()
    new = {
        "first": Replacement(normal(8, 3), normal(3, 27, seed=1), normal(27, seed=2)),
        "second": Replacement(normal(6, 2), normal(2, 48, seed=1), normal(48, seed=2)),
        "head": Replacement(normal(5, 2), normal(2, 6, seed=1), normal(6, seed=2)),
    }
    found = replace_layers(model, new)
    estimate_norms(found, batches(normal(8, 3, 7, 6), 4), run)
    return model, found.eval()


def test_the_loader_is_short_and_the_same_for_every_network() -> None:
    lines = LOADER.strip().splitlines()
    assert len(lines) <= 20
    imports = [line for line in lines if "import" in line]
    assert imports == ["import json, pathlib, struct, torch", "from torch import nn"]
    # Changed on purpose only: outputs of every version are to be loaded alike.
    assert hashlib.sha256(LOADER.encode()).hexdigest()[:16] == "2d1dffc1da343ee7"


def test_a_clean_interpreter_with_torch_alone_loads_what_was_written(tmp_path: Path) -> None:
    model, compressed = factored_convolutional()
    write_weights(tmp_path / "new.safetensors", factored_state(compressed, model.state_dict()))
    write_loader(tmp_path)
    images = normal(3, 3, 7, 6)
    torch.save(images, tmp_path / "images.pt")
    torch.save(compressed(images).detach(), tmp_path / "expected.pt")
    network = Path(__file__).with_name("cases.py").read_text(encoding="utf-8")
    (tmp_path / "network.py").write_text(network, encoding="utf-8")
    program = """
import sys
for name in ("safetensors", "localrank_cli"):
    sys.modules[name] = None  # an import of it fails
import torch
from load import load
from network import convolutional
model = load(convolutional(seed=7), "new.safetensors").eval()
with torch.no_grad():
    found, expected = model(torch.load("images.pt")), torch.load("expected.pt")
assert type(model.first) is torch.nn.Sequential, model
print(float((found - expected).abs().max()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= ROUNDING


def test_dense_weights_have_the_old_names_and_give_the_same_outputs() -> None:
    model, compressed = factored_convolutional()
    state = dense_state(compressed, model, factored_state(compressed, model.state_dict()))
    assert set(state) == set(model.state_dict())
    other = convolutional(seed=3)
    other.load_state_dict(state)
    images = normal(3, 3, 7, 6)
    torch.testing.assert_close(other(images), compressed(images), rtol=0, atol=ROUNDING)
    assert int(torch.linalg.matrix_rank(state["first.weight"].flatten(1))) == 3


def test_dense_weights_of_a_layer_without_bias_have_none() -> None:
    model = nn.Sequential(nn.Linear(6, 5, bias=False)).double()
    new = {"0": Replacement(normal(5, 2), normal(2, 6), torch.zeros(6, dtype=torch.float64))}
    compressed = replace_layers(model, new)
    state = dense_state(compressed, model, factored_state(compressed, model.state_dict()))
    torch.testing.assert_close(state["0.weight"], new["0"].left @ new["0"].right)
    assert list(state) == ["0.weight"]


def test_what_was_not_factored_is_saved_as_it_was_stored() -> None:
    """In its own dtype: the network computes in another one."""
    model = mlp(6, 8, 5)
    stored = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.load_state_dict(stored)
    new = {"0": Replacement(normal(8, 2), normal(2, 6), torch.zeros(6, dtype=torch.float64))}
    state = factored_state(replace_layers(model, new), stored)
    assert torch.equal(state["2.weight"], stored["2.weight"])
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert list(state["0.0.weight"].shape) == [2, 6]


def test_shared_weights_are_written_under_both_names(tmp_path: Path) -> None:
    model = mlp(6, 6, 6, 5)
    model[2].weight = model[0].weight
    new = {"4": Replacement(normal(5, 2), normal(2, 6), torch.zeros(6, dtype=torch.float64))}
    write_weights(
        tmp_path / "a.safetensors",
        factored_state(replace_layers(model, new), model.state_dict()),
    )
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["0.weight"], found["2.weight"])


def test_the_effective_rank_is_exp_of_the_entropy() -> None:
    layer = nn.Linear(4, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))
    assert effective_rank_of(layer) == pytest.approx(3.0)


def test_results_are_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    prepare_folder(folder, overwrite=False)
    write_rows(folder / "rows.csv", [{"layer": "a,b", "rank": None}, {"layer": "c", "rank": 2}])
    assert (folder / "rows.csv").read_text() == 'layer,rank\n"a,b",\nc,2\n'
    write_facts(folder, {"a": 1})
    with pytest.raises(OutputError, match=FACTS_NAME):
        prepare_folder(folder, overwrite=False)
    prepare_folder(folder, overwrite=True)


@pytest.mark.parametrize(
    "name", ["load.py", "budgets.csv", "layers.csv", "factored_0.5.safetensors"]
)
def test_a_file_of_the_user_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        prepare_folder(tmp_path, overwrite=False)
    with pytest.raises(OutputError, match="read by this command"):
        prepare_folder(tmp_path, [tmp_path / name], overwrite=True)
