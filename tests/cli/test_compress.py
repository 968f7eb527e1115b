"""`localrank compress` at a command line: what it writes, says and refuses."""

import hashlib
import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from localrank_cli.cli.screen import Steps
from localrank_cli.compress.matrix import matrix_of
from localrank_cli.compress.methods import BASELINES
from localrank_cli.compress.score import Scores
from localrank_cli.compress.search import Compressor
from localrank_cli.compress.search import Outcome as Compression
from localrank_cli.results.compressed import LOADER
from localrank_cli.run.estimate import LongTime
from tests.cli.program import Outcome, invoke, rows
from tests.drawing import one_in

DATA = ("--data", "data.npz", "--data-key", "x", "--device", "cpu")
LABELS = ("--labels-key", "y")
N_POINTS = 400


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 10)
    )


@pytest.fixture
def folder(with_local_ranks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for tests of all but the local ranks, which take half of the time."""
    monkeypatch.setattr("localrank_cli.run.compress.long_time", lambda *_: LongTime(3000.0, 1))
    return with_local_ranks


@pytest.fixture
def with_local_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network whose first two layers have rank 3, and labels that it gets mostly right."""
    torch.manual_seed(0)
    model = network()
    with torch.no_grad():
        for index in (0, 2):
            weight = matrix_of(model[index])
            u, s, v = torch.linalg.svd(torch.randn_like(weight), full_matrices=False)
            weight.copy_((u[:, :3] * s[:3]) @ v[:3] / 2)
        points = torch.randn(N_POINTS, 16)
        logits = model(points)
    noise = torch.rand(logits.shape).log().neg().log().neg() / 4
    labels = (logits * 4 + noise).argmax(dim=1)
    save_file(model.state_dict(), tmp_path / "step_7.safetensors")
    np.savez(tmp_path / "data.npz", x=points.numpy(), y=labels.numpy())
    np.savez(tmp_path / "few.npz", x=points[:31].numpy(), y=labels[:31].numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compress(*words: str) -> Outcome:
    return invoke("compress", "step_7.safetensors", *DATA, "-o", "out", *words)


def test_the_weights_that_are_written_give_the_loss_that_is_reported(folder: Path) -> None:
    outcome = compress(*LABELS, "--budget", "0.6,0.35", "--dense")
    assert outcome.code == 0, outcome.stderr
    out = folder / "out"
    load = runpy.run_path(str(out / "load.py"))["load"]
    with np.load(folder / "data.npz") as file:
        data = dict(file)
    order = torch.randperm(N_POINTS, generator=torch.Generator().manual_seed(0))
    chosen = order[3 * N_POINTS // 4 :]  # the reporting split
    points, labels = (torch.from_numpy(data[key])[chosen] for key in ("x", "y"))
    table = rows(out / "budgets.csv")
    results = [next(one for one in table if one["budget"] == share) for share in ("0.6", "0.35")]
    for row in results:
        share = row["budget"]
        for model in (
            load(network(), out / f"factored_{share}.safetensors"),
            network(),
        ):
            if not isinstance(model[0], nn.Sequential):
                model.load_state_dict(load_file(out / f"dense_{share}.safetensors"))
            loss = float(functional.cross_entropy(model(points).detach(), labels))
            # Float32, in another order of products and of points.
            assert loss == pytest.approx(float(row["loss"]), rel=1e-4)
        weights = sum(
            value.numel()
            for key, value in load_file(out / f"factored_{share}.safetensors").items()
            if key.endswith("weight")
        )
        assert weights == int(row["weights"]) <= float(share) * 1064
    layers = rows(out / "layers.csv")
    assert [one["layer"] for one in layers] == ["0", "2", "4"] * 2
    assert sum(int(one["weights_before"]) for one in layers) == 2 * 1064
    facts = json.loads((out / "compress.json").read_text())
    assert facts["step"] == 7
    assert facts["points"] == {"calibrate": 200, "pick": 100, "report": 100}
    assert len(facts["verdicts"]) == 2
    assert all(text in outcome.stdout for text in facts["verdicts"])
    times = [float(one["milliseconds_at_batch_1"] or 0) for one in (table[0], *results)]
    assert min(times) > 0
    before, half, third = (f"{time:.3g} ms" for time in times)
    ours = f"{half} with 60%, {third} with 35% of the weights."
    text = f"One point takes {before} with all weights, {ours}"
    assert text in outcome.stdout


def test_a_limit_finds_the_ranks_that_were_planted(folder: Path) -> None:
    outcome = compress(*LABELS, "--max-loss-increase", "0.0001nats", "--keep", "4")
    assert outcome.code == 0, outcome.stderr
    layers = {one["layer"]: one for one in rows(folder / "out" / "layers.csv")}
    # 3 (16 + 24) + 3 (24 + 20) of 864 weights, to the percent.
    spent = sum(int(layers[name]["weights_after"]) for name in ("0", "2"))
    assert 252 <= spent <= 252 + 9
    assert layers["4"]["why_dense"] == "kept by --keep"
    assert "4 stays dense: kept by --keep" in outcome.stdout


def test_without_labels_the_divergence_is_the_loss(folder: Path) -> None:
    assert compress("--budget", "0.5").code == 0
    first = rows(folder / "out" / "budgets.csv")[1]
    assert first["loss"] == first["divergence"]
    assert first["accuracy"] == ""


def test_held_out_data_leave_all_of_the_data_to_calibrate(folder: Path) -> None:
    assert compress(*LABELS, "--budget", "0.5", "--eval-data", "few.npz").code == 0
    facts = json.loads((folder / "out" / "compress.json").read_text())
    assert facts["points"] == {"calibrate": 400, "pick": 15, "report": 16}


def test_the_same_command_gives_the_same_weights(folder: Path) -> None:
    states = []
    for _ in range(2):
        assert compress(*LABELS, "--budget", "0.5", "--overwrite").code == 0
        states.append((folder / "out" / "factored_0.5.safetensors").read_bytes())
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ((), 2, "either --budget or --max-loss-increase"),
        (("--budget", "0.5", "--max-loss-increase", "1%"), 2, "either --budget or"),
        (("--budget", "1"), 2, "--budget 1: expected less than 1"),
        (("--budget", "half"), 2, "--budget half"),
        (("--budget", "0.5,0.5000000001"), 2, "2 shares are 0.5 to six digits"),
        (("--max-loss-increase", "1"), 2, "Write 1% or 0.02nats"),
        (("--max-loss-increase", "0%"), 2, "Write 1% or 0.02nats"),
        (("--budget", "0.05"), 1, "Give at least --budget 0.1"),
        (("--max-loss-increase", "1%"), 1, "there are no labels"),
        (("--budget", "0.5", "--data", "few.npz"), 1, "hold 31 points"),
        (("--budget", "0.5", "--keep", "*"), 1, "no layer can be factored"),
        (("--budget", "0.5", "--keep", "conv"), 1, "--keep conv: no layer has a matching name"),
        (
            ("--max-loss-increase", "0.000000000001nats", "--keep", "0,2"),
            1,
            "no budget stays within it",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    folder: Path, words: tuple[str, ...], code: int, expected: str
) -> None:
    outcome = compress(*words)
    assert outcome.code == code
    assert expected in outcome.error
    assert list(folder.glob("out/*")) == []


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    state = load_file(folder / "step_7.safetensors")
    state["2.weight"][0, 0] = torch.nan
    save_file(state, folder / "step_7.safetensors")
    outcome = compress(*LABELS, "--budget", "0.5")
    assert outcome.code == 1
    assert "not finite" in outcome.error


def test_several_checkpoints_are_refused(folder: Path) -> None:
    state = load_file(folder / "step_7.safetensors")
    save_file(state, folder / "step_8.safetensors")
    outcome = invoke("compress", ".", *DATA, "-o", "out", "--budget", "0.5")
    assert outcome.code == 1
    assert "takes one checkpoint, but 2 were named" in outcome.error


def test_earlier_results_are_not_written_over(folder: Path) -> None:
    assert compress("--budget", "0.5").code == 0
    outcome = compress("--budget", "0.4")
    assert outcome.code == 1
    assert "--overwrite" in outcome.error


def test_a_label_out_of_range_is_refused_wherever_it_is(folder: Path) -> None:
    with np.load(folder / "data.npz") as file:
        data = dict(file)
    order = torch.randperm(N_POINTS, generator=torch.Generator().manual_seed(0))
    last = order[3 * N_POINTS // 4 :].max()  # in the second batch of the reporting split
    data["y"][last] = 10
    np.savez(folder / "data.npz", **data)
    outcome = compress(*LABELS, "--budget", "0.5")
    assert outcome.code == 1
    assert "labels go up to 10" in outcome.error


def test_data_that_calibrate_are_not_held_out(folder: Path) -> None:
    for data, same in (("data.npz", "./data.npz"), ("normal:16", "normal:16")):
        words = ("--data", data, "--eval-data", same, "--budget", "0.5", "-o", "out")
        key = ("--data-key", "x") if data == "data.npz" else ()
        outcome = invoke("compress", "step_7.safetensors", "--device", "cpu", *words, *key)
        assert outcome.code == 1
        assert "cannot be held out" in outcome.error


def test_held_out_points_that_calibrate_are_noted(folder: Path) -> None:
    with np.load(folder / "data.npz") as file:
        x, y = file["x"], file["y"]
    np.savez(folder / "others.npz", x=np.concatenate([x[:5], -x[5:40]]), y=y[:40])
    outcome = compress("--budget", "0.5", "--eval-data", "others.npz")
    assert outcome.code == 0, outcome.stderr
    assert "5 of 40 held-out points are also used for calibration" in outcome.stderr
    outcome = compress("--budget", "0.5", "--overwrite")
    assert "held-out points are" not in outcome.stderr
    np.savez(folder / "data.npz", x=np.concatenate([x[:200], x[:200]]), y=np.tile(y[:200], 2))
    outcome = compress("--budget", "0.5", "--overwrite")
    order = torch.randperm(N_POINTS, generator=torch.Generator().manual_seed(0)) % 200
    repeated = int(torch.isin(order[200:], order[:200]).sum())
    assert f"{repeated} of 200 held-out points are also used" in outcome.stderr


def test_held_out_data_that_are_missing_are_named(folder: Path) -> None:
    outcome = compress("--budget", "0.5", "--eval-data", "nope.npz")
    assert outcome.code == 1
    assert "--eval-data: nope.npz: there is no such data file. Check --eval-data." in outcome.error


def test_the_checkpoint_is_never_written_over(folder: Path) -> None:
    path = folder / "factored_0.5.safetensors"
    path.write_bytes((folder / "step_7.safetensors").read_bytes())
    words = ("compress", path.name, *DATA, "--budget", "0.5", "-o", ".", "--overwrite")
    outcome = invoke(*words)
    assert outcome.code == 1
    assert "factored_0.5.safetensors: is read by this command" in outcome.error
    assert path.read_bytes() == (folder / "step_7.safetensors").read_bytes()


def test_facts_of_earlier_results_do_not_stay_beside_new_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compress("--budget", "0.5").code == 0
    monkeypatch.setattr("localrank_cli.run.compress.write_rows", lambda *_: 1 / 0)
    assert compress("--budget", "0.5", "--seed", "1", "--overwrite").code != 0
    assert not (folder / "out" / "compress.json").exists()


def test_tokens_are_scored_by_the_next_one(folder: Path) -> None:
    (folder / "lm.py").write_text(
        "from torch import nn\n"
        "def model():\n"
        "    return nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 20), nn.Tanh(),"
        " nn.Linear(20, 12))\n"
    )
    torch.manual_seed(0)
    model = runpy.run_path(str(folder / "lm.py"))["model"]()
    save_file(model.state_dict(), folder / "step_7.safetensors")
    tokens = torch.randint(12, (64, 6))
    np.savez(folder / "data.npz", x=tokens.numpy())
    outcome = compress("--model", "lm.py:model", "--budget", "0.6")
    assert outcome.code == 0, outcome.stderr
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    chosen = tokens[order[48:]]
    logits = model(chosen)[:, :-1].detach().flatten(0, 1)
    loss = float(functional.cross_entropy(logits, chosen[:, 1:].flatten()))
    original = rows(folder / "out" / "budgets.csv")[0]
    assert original["method"] == "original"
    # The network runs in float32.
    assert float(original["loss"]) == pytest.approx(loss, rel=1e-5)
    assert json.loads((folder / "out" / "compress.json").read_text())["loss"] == "tokens"


def test_the_dense_file_is_analyzed_as_the_checkpoint_is(folder: Path) -> None:
    """Its layers have at most the ranks of their factors."""
    assert compress(*LABELS, "--budget", "0.4", "--dense").code == 0
    ranks = {one["layer"]: one["rank"] for one in rows(folder / "out" / "layers.csv")}
    words = (*DATA, "--points", "5", "--rtol", "0.0001", "-o", "ranks.csv")
    outcome = invoke("analyze", "out/dense_0.4.safetensors", *words)
    assert outcome.code == 0, outcome.stderr
    found = rows(folder / "ranks.csv")
    assert [one["layer"] for one in found] == list(ranks)
    for one in found:
        if ranks[one["layer"]]:
            # The float32 rounding of a product of factors is below 1e-4 of its largest value.
            assert float(one["local_rank"]) <= int(ranks[one["layer"]])


def test_a_limit_that_the_report_breaks_is_said_and_decides_the_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Compressor.report

    def worse(self: Compressor, model: nn.Module) -> Scores:
        found = measured(self, model)
        return found if model is self.model else replace(found, loss=found.loss + 1)

    monkeypatch.setattr(Compressor, "report", worse)
    outcome = compress(*LABELS, "--max-loss-increase", "0.5nats")
    assert outcome.code == 3
    assert "The limit 0.5nats is exceeded on the reporting split" in outcome.stdout
    facts = json.loads((folder / "out" / "compress.json").read_text())
    assert any("is exceeded" in text for text in facts["verdicts"])


def test_a_metric_that_is_named_is_taken(folder: Path) -> None:
    for metric in ("fisher", "logit"):
        assert compress("--budget", "0.5", "--metric", metric, "--overwrite").code == 0
        assert rows(folder / "out" / "budgets.csv")[1]["method"] == metric


def test_a_baseline_that_is_better_is_the_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Compressor.best

    def worse(self: Compressor, budget: int, names: Sequence[str]) -> Compression:
        found = measured(self, budget, names)
        divergence = found.scores.divergence + 100
        return replace(found, scores=replace(found.scores, divergence=divergence))

    monkeypatch.setattr(Compressor, "best", worse)
    for words in (("--budget", "0.5"), ("--max-loss-increase", "9nats")):
        outcome = compress(*LABELS, *words, "--overwrite")
        assert outcome.code == 0, outcome.stderr
        _original, first, *others = rows(folder / "out" / "budgets.csv")
        assert first["method"] in BASELINES
        assert first["method"] not in {one["method"] for one in others}
        assert len(others) == len(BASELINES) - 1
        title = BASELINES[first["method"]].title
        assert f"nothing is gained: the result is a baseline, {title}," in outcome.stdout
    assert compress(*LABELS, "--budget", "0.5", "--metric", "logit", "--overwrite").code == 0
    assert rows(folder / "out" / "budgets.csv")[1]["method"] == "logit"


CONV = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, bias=False)
        self.head = nn.Linear(8, 6, bias=False)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.tanh(self.second(x)).mean(dim=(2, 3)))
"""


def naive_ranks(model: nn.Module, points: torch.Tensor, names: list[str]) -> dict[str, float]:
    """The mean count of singular values above 1e-6 of the largest, from autograd's Jacobians."""
    ranks: dict[str, list[float]] = {name: [] for name in names}
    for point in points:
        for name in names:
            kept: list[torch.Tensor] = []
            with model.get_submodule(name).register_forward_hook(
                lambda _module, _args, output, kept=kept: kept.append(output)
            ):

                def of(x: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
                    kept.clear()
                    model(x[None])
                    return kept[0].flatten().clone()

                jacobian = torch.func.jacrev(of)(point).flatten(1)
            values = torch.linalg.svdvals(jacobian)
            ranks[name].append(float((values > 1e-6 * values[0]).sum()))
    return {name: sum(found) / len(found) for name, found in ranks.items()}


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_the_factored_file_is_analyzed_under_the_old_names(folder: Path, kind: str) -> None:
    """With the ranks of what load.py returns, and the original's step."""
    words: tuple[str, ...] = ()
    build = network
    if kind == "conv":
        (folder / "net.py").write_text(CONV)
        build = runpy.run_path(str(folder / "net.py"))["Net"]
        torch.manual_seed(1)
        save_file(build().state_dict(), folder / "step_7.safetensors")
        np.savez(folder / "data.npz", x=torch.randn(64, 2, 9, 9).numpy())
        words = ("--model", "net.py:Net")
    assert compress(*words, "--budget", "0.6,0.4").code == 0
    assert not list(folder.glob("out/dense*"))
    analyzed = ("--points", "6", "--rtol", "1e-6", "-o", "ranks.csv", *words)
    outcome = invoke("analyze", "out/factored_0.4.safetensors", *DATA, *analyzed)
    assert outcome.code == 0, outcome.stderr
    assert "holds layers as two factors of low rank" in outcome.stderr
    found = {one["layer"]: one for one in rows(folder / "ranks.csv")}
    facts = rows(folder / "out" / "layers.csv")
    ranks = {one["layer"]: one["rank"] for one in facts if one["budget"] == "0.4"}
    assert list(found) == list(ranks)
    assert {one["step"] for one in found.values()} == {"7"}
    load = runpy.run_path(str(folder / "out" / "load.py"))["load"]
    model = load(build(), folder / "out" / "factored_0.4.safetensors").double().eval()
    indices = json.loads((folder / "ranks.csv.json").read_text())["series"][0]["point_indices"]
    with np.load(folder / "data.npz") as file:
        points = torch.from_numpy(file["x"])[indices].double()
    expected = naive_ranks(model, points, list(found))
    assert {name: float(one["local_rank"]) for name, one in found.items()} == expected
    if kind == "mlp":
        assert any(
            rank and float(found[name]["local_rank"]) <= int(rank) for name, rank in ranks.items()
        )


def test_a_factored_file_is_inspected_as_its_original_is(folder: Path) -> None:
    assert compress("--budget", "0.4").code == 0
    outcome = invoke("inspect", "out/factored_0.4.safetensors")
    assert outcome.code == 0, outcome.stderr
    assert "normal:16" in outcome.stdout


def test_factors_that_another_program_saved_are_never_read_with_an_activation_between(
    folder: Path,
) -> None:
    """Such a file does not say what it holds; the network's code does."""
    assert compress("--budget", "0.6", "--keep", "0,4").code == 0
    load = runpy.run_path(str(folder / "out" / "load.py"))["load"]
    model = load(network(), folder / "out" / "factored_0.6.safetensors")
    assert isinstance(model[2], nn.Sequential)
    # A network that begins with the factored layer, which alone would look like a plain MLP.
    rest = nn.Sequential(model[2], nn.ReLU(), nn.Linear(20, 10))
    torch.save(rest.state_dict(), folder / "step_3.pt")
    words = ("--data", "normal:24", "--device", "cpu", "--points", "3", "-o", "ranks.csv")
    outcome = invoke("analyze", "step_3.pt", *words)
    assert outcome.code == 1
    assert "0.0 and 0.1 may be two factors of one layer" in outcome.error
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 10))\n"
    )
    outcome = invoke("analyze", "step_3.pt", *words, "--model", "net.py:net")
    assert outcome.code == 0, outcome.stderr
    assert [one["layer"] for one in rows(folder / "ranks.csv")] == ["0", "2"]


def test_an_interrupted_run_is_resumed_by_budget(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*LABELS, "--budget", "0.6,0.5,0.4", "--dense")
    assert compress(*words, "-o", "whole").code == 0
    measured = Compressor.baselines

    def interrupted(self: Compressor, budget: int) -> object:
        if budget < 600:
            raise KeyboardInterrupt
        return measured(self, budget)

    with monkeypatch.context() as patched:
        patched.setattr(Compressor, "baselines", interrupted)
        outcome = compress(*words)
    assert outcome.code == 1
    assert "1 finished budget is kept: rerun the same command to resume" in outcome.stderr
    assert (folder / "out" / "compress.unfinished.json").exists()
    assert not (folder / "out" / "compress.json").exists()
    for other in ("--seed", "--data-scale"):
        outcome = compress(*words, other, "3")
        assert outcome.code == 1
        assert "an interrupted run there had different settings" in outcome.error
        assert other in outcome.error
    kept = (folder / "out" / "factored_0.6.safetensors").stat().st_mtime_ns
    outcome = compress(*words)
    assert outcome.code == 0, outcome.stderr
    assert "60% of the weights: kept from the run before" in outcome.stderr
    assert (folder / "out" / "factored_0.6.safetensors").stat().st_mtime_ns == kept
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(
        path.name for path in (folder / "whole").iterdir()
    )
    for name in ("budgets.csv", "layers.csv"):
        tables = [rows(folder / place / name) for place in ("out", "whole")]
        for row in (*tables[0], *tables[1]):
            row.pop("milliseconds_at_batch_1", None)
        assert tables[0] == tables[1]
    for path in (folder / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (folder / "out" / path.name).read_bytes()


@pytest.fixture(scope="module")
def left() -> dict[str, bytes]:
    """What is left of a run that ended when all of its weights were written: made once."""
    return {}


@pytest.fixture
def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, left: dict[str, bytes]) -> Path:
    """The folder of such a run."""
    out = folder / "out"
    if not left:
        with monkeypatch.context() as patched:
            patched.setattr("localrank_cli.run.compress.write_rows", _ends)
            assert compress("--budget", "0.5").code == 1
        left.update({path.name: path.read_bytes() for path in out.iterdir()})
        return out
    out.mkdir()
    for name, content in left.items():
        (out / name).write_bytes(content)
    return out


def _ends(*_: object) -> None:
    raise KeyboardInterrupt


def test_weights_that_changed_since_an_interruption_are_computed_again(
    folder: Path, interrupted: Path
) -> None:
    path = interrupted / "factored_0.5.safetensors"
    content = path.read_bytes()
    state = load_file(path)
    save_file({name: 2 * value for name, value in state.items()}, path)
    (interrupted / "load.py").write_text("another program")
    outcome = compress("--budget", "0.5")
    assert outcome.code == 0, outcome.stderr
    assert "50% of the weights: computed again because its files changed" in outcome.stderr
    assert path.read_bytes() == content
    assert (interrupted / "load.py").read_text() == LOADER


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: "", "Expecting value"),
        (lambda held: "[" * 100_000, "nested more than"),
        (lambda held: "[1]", "expected keys with values, got a list of 1"),
        (lambda held: held | {"found": {"0.5": 3}}, "found.0.5: expected keys with values, got 3"),
        (lambda held: held["found"]["0.5"].update(verdicts=3), "verdicts: expected a list"),
        (lambda held: held["found"]["0.5"]["budgets"][0].update(loss="x"), "loss: expected a numb"),
        (lambda held: held["found"]["0.5"]["budgets"][0].pop("loss"), "expected weights and loss"),
        (lambda held: held["found"]["0.5"]["budgets"][0].update(loss=0.1), "checksum differs"),
    ],
)
def test_what_an_interrupted_run_left_is_checked(
    folder: Path, interrupted: Path, change: Callable[[Any], Any], words: str
) -> None:
    path = interrupted / "compress.unfinished.json"
    held = json.loads(path.read_bytes())
    new = change(held)
    if isinstance(new, str):
        path.write_text(new)
    else:
        path.write_text(json.dumps(new if isinstance(new, dict) else held))
    outcome = compress("--budget", "0.5")
    assert outcome.code == 1
    assert f"{path.relative_to(folder)}: was not left by an interrupted run" in outcome.error
    assert words in outcome.error
    assert "--overwrite" in outcome.error


def test_held_out_data_that_changed_since_an_interruption_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured on the earlier ones would stand beside what is measured on these."""
    np.savez(folder / "other.npz", x=np.random.default_rng(0).standard_normal((40, 16), "f4"))
    words = ("--budget", "0.5", "--eval-data", "other.npz")
    with monkeypatch.context() as patched:
        patched.setattr("localrank_cli.run.compress.write_rows", _ends)
        assert compress(*words).code == 1
    np.savez(folder / "other.npz", x=np.random.default_rng(1).standard_normal((40, 16), "f4"))
    outcome = compress(*words)
    assert outcome.code == 1
    assert "had different settings: --eval-data" in outcome.error
    assert compress(*words, "--overwrite").code == 0
    facts = json.loads((folder / "out" / "compress.json").read_text())["eval_data"]
    assert facts["data_sha256"] == hashlib.sha256((folder / "other.npz").read_bytes()).hexdigest()


def test_an_interrupted_run_is_begun_anew_on_request(interrupted: Path) -> None:
    (interrupted / "compress.unfinished.json").write_text("")
    assert compress("--budget", "0.5", "--overwrite").code == 0
    assert not (interrupted / "compress.unfinished.json").exists()


@pytest.mark.parametrize(
    "name",
    one_in(2, ["load.py", "factored_0.5.safetensors", "compress.unfinished.json", "compress.json"]),
)
def test_results_are_not_written_through_links(folder: Path, name: str) -> None:
    """Or in the place of a folder: that is seen before any work."""
    (folder / "mine").write_text("precious")
    path = folder / "out" / name
    path.parent.mkdir()
    for make in (lambda: path.symlink_to(folder / "mine"), path.mkdir):
        make()
        outcome = compress("--budget", "0.5", "--overwrite")
        assert outcome.code == 1
        assert f"out/{name}: is " in outcome.error
        assert "calibrating" not in outcome.stderr
        path.unlink() if path.is_symlink() else path.rmdir()
    assert (folder / "mine").read_text() == "precious"
    assert compress("--budget", "0.5", "--overwrite").code == 0  # as the message says


def test_names_that_steer_a_terminal_are_escaped_in_tables(folder: Path) -> None:
    rename = {"0": "a\x1b[2J", "2": "b", "4": "c"}
    state = load_file(folder / "step_7.safetensors")
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.parts = nn.ModuleDict({'a\\x1b[2J': nn.Linear(16, 24),"
        " 'b': nn.Linear(24, 20), 'c': nn.Linear(20, 10)})\n"
        "    def forward(self, x):\n"
        "        for part in self.parts.values():\n"
        "            x = part(x)\n"
        "        return x\n"
    )
    new = {f"parts.{rename[key[0]]}{key[1:]}": value for key, value in state.items()}
    save_file(new, folder / "step_7.safetensors")
    outcome = compress("--model", "net.py:Net", "--budget", "0.5")
    assert outcome.code == 0, outcome.stderr
    texts = [outcome.stdout, outcome.stderr]
    texts += [(folder / "out" / name).read_text() for name in ("layers.csv", "budgets.csv")]
    assert "\x1b" not in "".join(texts)
    assert "parts.a\\x1b[2J" in texts[2]


@pytest.mark.parametrize("dtype", one_in(2, [torch.bfloat16, torch.float16, torch.float64]))
def test_weights_of_any_precision_give_the_loss_that_is_reported(
    folder: Path, dtype: torch.dtype
) -> None:
    """What is saved is rounded before it is measured."""
    state = load_file(folder / "step_7.safetensors")
    save_file({name: value.to(dtype) for name, value in state.items()}, "step_7.safetensors")
    assert compress(*LABELS, "--budget", "0.4", "--dense").code == 0
    load = runpy.run_path(str(folder / "out" / "load.py"))["load"]
    saved = load_file(folder / "out" / "factored_0.4.safetensors")
    assert {value.dtype for value in saved.values()} == {dtype}
    with np.load(folder / "data.npz") as file:
        data = dict(file)
    order = torch.randperm(N_POINTS, generator=torch.Generator().manual_seed(0))
    chosen = order[3 * N_POINTS // 4 :]
    points, labels = (torch.from_numpy(data[key])[chosen] for key in ("x", "y"))
    row = next(one for one in rows(folder / "out" / "budgets.csv") if one["budget"] == "0.4")
    dense = network()
    dense.load_state_dict(load_file(folder / "out" / "dense_0.4.safetensors"))
    for model in (load(network(), folder / "out" / "factored_0.4.safetensors"), dense):
        loss = float(functional.cross_entropy(model(points).detach(), labels))
        # Float32, in another order of products.
        assert loss == pytest.approx(float(row["loss"]), rel=1e-4)
    ranks = {one["layer"]: one["rank"] for one in rows(folder / "out" / "layers.csv")}
    for name, rank in ranks.items():
        if rank:
            weight = dense.get_parameter(f"{name}.weight").detach().double()
            assert int(torch.linalg.matrix_rank(weight, rtol=1e-5)) <= int(rank)


def test_a_baseline_without_ranks_says_why(folder: Path) -> None:
    """Of 1064 weights, the last layer has 200."""
    outcome = compress(*LABELS, "--budget", "0.18")
    assert outcome.code == 0, outcome.stderr
    found = {one["method"]: one for one in rows(folder / "out" / "budgets.csv")}
    for name in ("uniform", "svd-llm"):
        why = "no ranks: the last layer, 4, stays dense and has 200 weights"
        assert found[name]["note"] == why
        assert found[name]["loss"] == ""
        assert f"{name} at 0.18: {why}" in outcome.stdout
    assert found["energy"]["note"] == ""


def test_local_ranks_are_those_of_analyze(with_local_ranks: Path) -> None:
    folder = with_local_ranks
    assert compress(*LABELS, "--budget", "0.5").code == 0
    words = ("--data", "data.npz", "--data-key", "x", "--device", "cpu", "-o", "ranks.csv")
    assert invoke("analyze", "step_7.safetensors", *words).code == 0
    expected = {one["layer"]: float(one["local_rank"]) for one in rows(folder / "ranks.csv")}
    found = rows(folder / "out" / "layers.csv")
    assert {one["layer"]: float(one["local_rank"]) for one in found} == expected


def test_local_ranks_that_take_long_are_left_out(folder: Path) -> None:
    outcome = compress("--budget", "0.5")
    assert outcome.code == 0
    assert "local ranks are left out: they take about 50 min" in outcome.stderr
    assert {one["local_rank"] for one in rows(folder / "out" / "layers.csv")} == {""}


def test_factors_are_not_factored_again(folder: Path) -> None:
    assert compress("--budget", "0.5").code == 0
    words = (*DATA, "--budget", "0.3", "-o", "more")
    outcome = invoke("compress", "out/factored_0.5.safetensors", *words)
    assert outcome.code == 1
    assert "its layers are already factored" in outcome.error


def test_the_memory_that_is_asked_for_is_enough(folder: Path) -> None:
    wide = nn.Sequential(nn.Linear(16, 700), nn.ReLU(), nn.Linear(700, 700))
    save_file(wide.state_dict(), folder / "step_7.safetensors")
    outcome = compress("--budget", "0.5", "--memory", "30MiB")
    assert outcome.code == 1
    assert "the factors of all layers need" in outcome.error
    wanted = outcome.error.split("Give --memory ")[1].split(",")[0]
    assert compress("--budget", "0.5", "--memory", wanted).code == 0


def test_what_is_done_ends_with_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("--budget", "0.6,0.4"), (*LABELS, "--max-loss-increase", "0.5nats")):
        seen: list[float] = []
        monkeypatch.setattr(
            Steps, "within", lambda _self, _name, share, _text, seen=seen: seen.append(share)
        )
        assert compress(*words, "--overwrite").code == 0
        assert all(0 <= share <= 1 for share in seen)
        # The networks that are measured take a share of the time, and a bisection needs fewer.
        assert seen[-1] > 0.8 if words[0] in LABELS else seen[-1] == 1


@pytest.mark.cuda
def test_a_gpu_gives_the_ranks_and_losses_of_the_cpu(folder: Path) -> None:
    words = (*LABELS, "--budget", "0.6,0.4", "--metric", "fisher")
    assert compress(*words).code == 0
    outcome = compress(*words, "--overwrite", "--device", "cuda", "-o", "gpu")
    assert outcome.code == 0, outcome.stderr
    layers = [rows(folder / place / "layers.csv") for place in ("out", "gpu")]
    assert [one["rank"] for one in layers[0]] == [one["rank"] for one in layers[1]]
    for one, other in zip(
        *(rows(folder / place / "budgets.csv") for place in ("out", "gpu")), strict=True
    ):
        assert one["method"] == other["method"]
        # Float32, in another order of sums.
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)
