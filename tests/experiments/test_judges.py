"""Each experiment's verdict on tables made by hand: it must be able to fail."""

from collections.abc import Mapping

import pandas as pd
import pytest

from localrank_cli.experiments import gaussian, mnist, vib
from localrank_cli.experiments.vib import RHO
from localrank_cli.information.bottleneck import (
    active,
    variational_information,
    variational_singular_values,
)

Ends = Mapping[int, float]


def gaussian_table(decay: Ends, control: Ends) -> pd.DataFrame:
    rows = []
    for seed in (0, 1):
        for strength, ends in ((5e-3, decay), (0.0, control)):
            for layer, rank in ends.items():
                shared = {"layer_index": layer - 1, "weight_decay": strength, "seed": seed}
                rows += [
                    {"step": 0, "local_rank": 30.0, **shared},
                    {"step": 100, "local_rank": rank, **shared},
                ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("decay", "control", "holds"),
    [
        ({1: 14, 2: 3, 3: 3}, {1: 25, 2: 10, 3: 3}, (True, True)),
        ({1: 14, 2: 3.2, 3: 3}, {1: 25, 2: 10, 3: 3}, (False, True)),
        ({1: 14, 2: 3, 3: 3}, {1: 25, 2: 7.9, 3: 3}, (True, False)),
        ({1: 14, 2: 3, 3: 5}, {1: 25, 2: 10, 3: 9}, (True, True)),  # layer 3 is no evidence
    ],
)
def test_gaussian(decay: Ends, control: Ends, holds: tuple[bool, bool]) -> None:
    verdict = gaussian.judge(gaussian_table(decay, control))
    assert tuple(claim.holds for claim in verdict.claims if claim.is_evidence) == holds
    assert verdict.holds is all(holds)
    assert "SGD, momentum 0.9" in verdict.setting
    assert "2 seeds" in verdict.setting


# Falls after the landmark: enough in every layer, and at the edge of what the control may show.
FALL = {1: (100, 91), 2: (70, 40), 3: (30, 17), 4: (9, 8)}
STAY = {1: (100, 99), 2: (70, 72), 3: (50, 48.6), 4: (9, 9)}


def mnist_table(
    decay: Mapping[int, tuple[float, float]],
    control: Mapping[int, tuple[float, float]],
    accuracy: float = 0.99,
) -> pd.DataFrame:
    rows = []
    for run, strength, courses in (("a", 1e-3, decay), ("b", 0.0, control)):
        for layer, (first, last) in courses.items():
            # What comes before the landmark must not count: the early collapse is every recipe's.
            for step, reached, rank in ((0, 0.1, 500.0), (10, accuracy, first), (20, 1.0, last)):
                rows.append(
                    {
                        "run": run, "step": step, "layer_index": layer - 1, "local_rank": rank,
                        "effective_rank": rank / 2, "tolerance": "atol=0.1",
                        "weight_decay": strength, "seed": 3, "train_accuracy": reached,
                        "test_accuracy": 0.9,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("decay", "control", "failing"),
    [
        (FALL, STAY, []),
        (FALL | {2: (70, 43)}, STAY, ["with weight decay the rank of layer 2 falls late"]),
        (FALL | {1: (100, 93)}, STAY, ["with weight decay the rank of layer 1 falls late"]),
        (FALL | {4: (9, 8.2)}, STAY, ["with weight decay the rank of layer 4 falls late"]),
        (FALL, STAY | {3: (50, 48)}, ["without weight decay (the control) no layer's rank"]),
    ],
)
def test_mnist(
    decay: Mapping[int, tuple[float, float]],
    control: Mapping[int, tuple[float, float]],
    failing: list[str],
) -> None:
    verdict = mnist.judge(mnist_table(decay, control))
    failed = [claim.text for claim in verdict.claims if not claim.holds]
    assert len(failed) == len(failing)
    assert all(text.startswith(start) for text, start in zip(failed, failing, strict=True))
    assert "momentum 0.9" in verdict.setting


def test_mnist_that_never_learns_shows_nothing() -> None:
    table = mnist_table(FALL, STAY)
    verdict = mnist.judge(table.assign(train_accuracy=0.5))
    assert not verdict.holds
    assert "never reached" in verdict.text


def test_mnist_shows_the_band_of_several_seeds() -> None:
    again = {**FALL, 2: (72, 42)}
    both = [mnist_table(FALL, STAY), mnist_table(again, STAY)]
    table = pd.concat([one.assign(run=one["run"] + str(i), seed=i) for i, one in enumerate(both)])
    verdict = mnist.judge(table)
    assert verdict.holds
    assert "2 seeds" in verdict.setting
    assert "70.0 to 72.0 -> 40.0 to 42.0 (-43% to -42%)" in verdict.text
    assert "100.0 -> 91.0 (-9%)" in verdict.text
    # A seed that never gets to the landmark is not passed over.
    table.loc[table["seed"] == 1, "train_accuracy"] = 0.5
    assert not mnist.judge(table).holds


def vib_table(rank: float = 0, sigma: float = 0, rate: float = 0, ty: float = 0) -> pd.DataFrame:
    """Return the values of theory at every beta, changed by `off` at the largest one."""
    rows = []
    for beta in (1.1, 3.0, 10.0):
        off = beta == 10.0
        count = active(RHO, beta) + off * rank
        values = [*variational_singular_values(RHO, beta), 0.0, 0.0, 0.0]
        values[1] += off * sigma
        ends = {
            "run": f"beta_{beta}", "beta": beta, "seed": 0, "layer_index": 2,
            "local_rank": count, "rank_min": int(count), "rank_max": int(-(-count // 1)),
            "rate": variational_information(RHO, beta).xt + off * rate,
            "ty_nats": variational_information(RHO, beta).ty + off * ty,
        }  # fmt: skip
        ends |= {f"sigma_{index + 1}": value for index, value in enumerate(values)}
        # The other layers, and what was before the end, are not looked at.
        rows += [
            ends | {"step": 3000},
            ends | {"step": 0, "rank_min": 8, "rank_max": 8, "rate": 9.0},
            ends | {"step": 3000, "layer_index": 0, "rank_min": 10, "rank_max": 10},
        ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("off", "failing"),
    [
        ({}, []),
        ({"rank": 1}, ["the local rank"]),
        ({"rank": 0.02}, ["the local rank"]),
        ({"sigma": 0.149}, []),
        ({"sigma": -0.151}, ["the singular values"]),
        ({"rate": 0.09}, []),
        ({"rate": -0.11}, ["the rate"]),
        ({"ty": -0.09}, []),
        ({"ty": 0.11}, ["I(T;Y)"]),
    ],
)
def test_vib(off: dict[str, float], failing: list[str]) -> None:
    verdict = vib.judge(vib_table(**off))
    failed = [claim.text for claim in verdict.claims if not claim.holds]
    assert len(failed) == len(failing)
    assert all(text.startswith(start) for text, start in zip(failed, failing, strict=True))
    assert verdict.holds is (not failing)
    assert "Adam" in verdict.setting
