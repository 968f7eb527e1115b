"""Slices, scores and choices: by torch's losses, and by networks whose answer is known."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from localrank_cli.compress.eligible import find_layers
from localrank_cli.compress.matrix import matrix_of
from localrank_cli.compress.methods import METHODS, OURS, candidates, factor_bytes, work_bytes
from localrank_cli.compress.moments import moment_bytes
from localrank_cli.compress.score import Batch, Difference, Kind, Scores, kind_of, scores
from localrank_cli.compress.search import Compressor, Data, split, verdict
from localrank_cli.errors import DataError, ModelError, SettingsError
from tests.compress.cases import batches, low_rank, mlp, normal, run

MEMORY = 2**30


def planted() -> nn.Sequential:
    model = mlp(12, 14, 12, 10)
    for index in (0, 2, 4):
        weight = matrix_of(model[index])
        n_out, n_in = weight.shape
        weight.copy_(low_rank(n_out, n_in, 2, seed=index) / 8)
    return model


def compressor(model: nn.Module, n_points: int = 200) -> Compressor:
    points = normal(n_points, 12, seed=5)
    labels = (model(points) + normal(n_points, 10, seed=6)).argmax(dim=1)
    slices = split(n_points, seed=0)

    def labelled(indices: Tensor) -> list[Batch]:
        return list(zip(batches(points[indices], 32), batches(labels[indices], 32), strict=True))

    data = Data(
        lambda: batches(points[slices.calibrate], 32),
        lambda: labelled(slices.pick),
        lambda: labelled(slices.report),
    )
    found = Compressor(model, find_layers(model, points[:4], run), data, run, "classes")
    found.calibrate(seed=0, memory=MEMORY)
    return found


def test_slices_are_disjoint_and_hold_every_point() -> None:
    found = split(101, seed=3)
    parts = [found.calibrate, found.pick, found.report]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(101))
    assert list(map(len, parts)) == [51, 25, 25]
    assert torch.equal(found.pick, split(101, seed=3).pick)
    assert not torch.equal(found.pick, split(101, seed=4).pick)


def test_too_few_points_are_refused_with_the_number_that_is_enough() -> None:
    with pytest.raises(DataError, match="hold 31 points, but compression needs at least 32"):
        split(31, seed=0)
    split(32, seed=0)


@pytest.mark.parametrize("kind", ["classes", "tokens", "targets", "outputs"])
def test_scores_are_torchs_losses(kind: Kind) -> None:
    model: nn.Module = mlp(6, 5)
    original: nn.Module = mlp(6, 5, seed=1)
    points, labels = normal(7, 6), None
    if kind == "tokens":
        model = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6)).double()
        original = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6)).double()
        points = torch.randint(6, (7, 4), generator=torch.Generator().manual_seed(0))
    if kind == "classes":
        labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    if kind == "targets":
        labels = normal(7, 5, seed=2)
    output, old = model(points).detach(), original(points).detach()
    assert kind_of(output, points, labels) == kind
    known = [None] * 3 if labels is None else batches(labels, 3)
    parts = list(zip(batches(points, 3), known, strict=True))
    found = scores(model, original, parts, run, kind)
    if kind == "targets":
        assert labels is not None
        divergence, loss = functional.mse_loss(output, old) / 2, functional.mse_loss(output, labels)
    else:
        logs = output.log_softmax(-1).reshape(-1, output.shape[-1])
        olds = old.log_softmax(-1).reshape(-1, output.shape[-1])
        divergence = functional.kl_div(logs, olds, log_target=True, reduction="batchmean")
        loss = divergence
    if kind == "tokens":
        loss = functional.cross_entropy(output[:, :-1].reshape(-1, 6), points[:, 1:].reshape(-1))
    if kind == "classes":
        assert labels is not None
        loss = functional.cross_entropy(output, labels)
        assert found.accuracy == pytest.approx(float((output.argmax(1) == labels).double().mean()))
    # Float64 roundoff of a few sums.
    torch.testing.assert_close(found.divergence.mean(), divergence, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.loss.mean(), loss, rtol=1e-12, atol=1e-15)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model = mlp(6, 5)
    matrix_of(model[0])[0, 0] = torch.nan
    with pytest.raises(ModelError, match="loss is not finite"):
        scores(model, model, [(normal(4, 6), torch.zeros(4, dtype=torch.int64))], run, "classes")


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="labels go up to 5"):
        kind_of(normal(2, 5), normal(2, 6), torch.tensor([0, 5]))
    with pytest.raises(ModelError, match="targets"):
        kind_of(normal(2, 5), normal(2, 6), normal(2, 4))


def test_one_output_without_labels_is_refused() -> None:
    """Its softmax is 1, and every network would seem to lose nothing."""
    with pytest.raises(ModelError, match="one value"):
        kind_of(normal(2, 1), normal(2, 6), None)
    with pytest.raises(ModelError, match="one value"):
        kind_of(normal(2), normal(2, 6), None)
    with pytest.raises(ModelError, match="one output for each point"):
        kind_of(normal(3, 4), normal(2, 6), None)


def test_targets_of_one_axis_fit_one_output() -> None:
    model, points, targets = mlp(6, 1), normal(9, 6), normal(9, seed=1)
    assert kind_of(model(points), points, targets) == "targets"
    found = scores(model, model, [(points, targets)], run, "targets")
    torch.testing.assert_close(found.loss, (model(points)[:, 0] - targets).square().detach())


@pytest.mark.parametrize("name", METHODS)
def test_a_planted_network_loses_nothing_at_its_own_size(name: str) -> None:
    found = compressor(planted())
    budget = 2 * (26 + 26 + 22)
    if name in {"uniform", "svd-llm"}:  # the last layer stays dense
        budget = 2 * (26 + 26) + 120 + 3
    outcome = found.at(name, budget)
    assert outcome is not None
    assert outcome.weights <= budget
    # A divergence of float64 roundoff, squared.
    assert float(outcome.scores.divergence.abs().max()) < 1e-12
    below = found.at(name, budget - 60)
    assert below is None or float(below.scores.divergence.mean()) > 1e-6


def test_the_metric_is_the_one_that_measures_better() -> None:
    found = compressor(mlp(12, 14, 12, 10))
    for share in (0.3, 0.5, 0.7):
        budget = found.weights_of(share)
        each = {name: found.at(name, budget) for name in OURS}
        measured = {name: float(one.scores.divergence.mean()) for name, one in each.items() if one}
        assert found.best(budget).name == min(measured, key=lambda name: measured[name])
        assert found.best(budget, candidates("fisher")).name == "fisher"


def test_the_same_network_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer of an MLP runs at one position."""
    found = compressor(mlp(12, 14, 12, 10))
    measured: list[nn.Module] = []

    def counted(self: Compressor, model: nn.Module) -> Scores:
        measured.append(model)
        return self.report(model)

    monkeypatch.setattr(Compressor, "measure", counted)
    found.best(found.weights_of(0.5))
    assert len(measured) == len({METHODS[name].sides for name in OURS}) == 3


def test_the_smallest_budget_keeps_to_the_limit() -> None:
    found = compressor(planted())
    outcome = found.smallest(limit=1e-6)
    assert outcome is not None
    # Rank 2 everywhere, on a grid of percents.
    assert 148 <= outcome.weights <= 148 + found.total / 100
    assert found.increase(outcome).bound < 1e-6
    assert found.smallest(limit=-1.0) is None


def test_a_budget_that_cannot_be_reached_names_one_that_can() -> None:
    found = compressor(planted())
    with pytest.raises(SettingsError, match="rank 1 in every layer needs 74") as caught:
        found.weights_of(0.05)
    share = float(caught.value.advice.rsplit(" ", 1)[1].rstrip("."))
    assert found.weights_of(share) >= 74


class Rooted(nn.Sequential):
    """A network with a root between its layers, which has no gradient at 0."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self[1](self[0](x).square().sqrt())
        return found


def test_gradients_that_are_not_finite_name_their_layers() -> None:
    first = nn.Linear(12, 14, bias=False)
    model, points = Rooted(first, nn.Linear(14, 10)).double().eval(), normal(40, 12)
    points[7] = 0
    data = Data(lambda: [points], lambda: [(points, None)], lambda: [(points, None)])
    found = Compressor(model, find_layers(model, points, run), data, run, "outputs")
    with pytest.raises(ModelError, match="0: on the calibration data, the inputs or") as caught:
        found.calibrate(seed=0, memory=MEMORY)
    assert caught.value.advice.endswith(" --keep 0.")
    kept = find_layers(model, points, run, keep=("0",))
    Compressor(model, kept, data, run, "outputs").calibrate(seed=0, memory=MEMORY)


def test_groups_of_layers_give_the_same_network() -> None:
    model = mlp(12, 14, 12, 10)
    together, apart = compressor(model), compressor(model)
    held = sum(map(factor_bytes, together.layers.chosen.values()))
    held += max(map(work_bytes, together.layers.chosen.values()))
    largest = max(map(moment_bytes, together.layers.chosen.values()))
    assert len(apart.groups(held + largest)) == 3  # one layer at a time
    apart.calibrate(seed=0, memory=held + largest)
    with pytest.raises(SettingsError, match="the factors of all layers need"):
        apart.groups(held + largest - 1)
    one, other = together.at("fisher", 200), apart.at("fisher", 200)
    assert one is not None
    assert other is not None
    assert one.ranks == other.ranks
    # Float64 roundoff; the sums are added in the same order.
    torch.testing.assert_close(one.scores.loss, other.scores.loss, rtol=1e-10, atol=1e-10)


def scored(loss: Tensor) -> Scores:
    return Scores(loss, loss, None)


def test_differences_are_paired() -> None:
    first, second = normal(50), normal(50, seed=1)
    found = Difference.of(first, second)
    assert found.mean == pytest.approx(float((first - second).mean()))
    assert found.error == pytest.approx(float((first - second).std()) / 50**0.5)
    assert found.bound == pytest.approx(found.mean + 1.65 * found.error)


def test_the_verdict_says_what_was_gained_or_that_it_is_noise() -> None:
    base = normal(100)
    noise = verdict(
        "fisher", scored(base), {"fwsvd": scored(base + normal(100, seed=1))}, "nats", 0.5
    )
    assert "within noise of the best baseline, FWSVD" in noise
    gain = verdict(
        "fisher", scored(base), {"energy": scored(base + 1 + normal(100, seed=1))}, "nats", 0.5
    )
    assert "nats lower than that of the best baseline, weight energy" in gain
    worse = scored(base + 1 + normal(100, seed=1))
    loss = verdict("fisher", worse, {"energy": scored(base)}, "nats", 0.5)
    assert "nats higher" in loss
    assert loss.startswith("At 50% of")
    # As two networks that lose nothing differ, run in float32.
    rounded = verdict("fisher", scored(base), {"energy": scored(base + 1e-7)}, "nats", 0.5)
    assert "within noise" in rounded
    assert verdict("fisher", scored(base), {}, "nats", 0.125).startswith("At 12.5% of")
    same = verdict("energy", worse, {"fwsvd": scored(base), "energy": worse}, "nats", 0.5)
    assert "nothing is gained: the result is a baseline, weight energy" in same
