from typing import Any

import pytest
import torch

from localrank_cli.checkpoints.frameworks import EMA_KEYS, find_states, progress, without_counter
from tests.helpers import renamed, weights


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        ({"meta": {"iter": 7, "epoch": 2}}, (7, "meta.iter", 2)),
        ({"meta": {"iter": 7}, "step": 3}, (3, "step", None)),
        ({"state": {"timestamp": {"batch": 4, "epoch": 1}}}, (4, "state.timestamp.batch", 1)),
        (
            {"state": {"timestamp": {"Timestamp": {"batch": 4, "step": 9}}}},
            (4, "state.timestamp.Timestamp.batch", None),
        ),
        (
            {"optimizer_history": [{"num_updates": 1}, {"num_updates": 8}]},
            (8, "optimizer_history.-1.num_updates", None),
        ),
        ({"extra_state": {"train_iterator": {"epoch": 5, "step": 1}}}, (None, "", 5)),
        ({"train_state": {"step": torch.tensor(6)}}, (6, "train_state.step", None)),
        ({"optimizer_history": []}, (None, "", None)),
        ({"optimizer_history": 3, "meta": [1], "state": None}, (None, "", None)),
        ({"hyper_parameters": {"step": 9}, "args": {"iter": 9}}, (None, "", None)),
        ({"state": {"timestamp": {"batch": -1}}}, (-1, "state.timestamp.batch", None)),
        ({"step": -1, "meta": {"iter": 4}}, (4, "meta.iter", None)),
        # A counter from the start of training beats one that may restart.
        (
            {"step": 4, "epoch": 2, "train_state": {"global_step": 204}},
            (204, "train_state.global_step", 2),
        ),
        ({}, (None, "", None)),
    ],
)
def test_progress(loaded: dict[str, Any], expected: tuple[int | None, str, int | None]) -> None:
    assert progress(loaded) == expected


@pytest.mark.parametrize("key", EMA_KEYS)
@pytest.mark.parametrize("inner", ["", "state_dict", "module"])
def test_averages(key: str, inner: str) -> None:
    average: dict[str, Any] = weights(seed=1)
    loaded = {"model": weights(), key: {inner: average} if inner else average}
    states, averaged = find_states(loaded)
    place = f"{key}.{inner}" if inner else key
    assert list(states) == ["model", place]
    assert averaged == {place}


def test_an_averaged_model_alone_is_an_average() -> None:
    average = {"n_averaged": torch.tensor(2), **renamed(weights(), "module.")}
    states, averaged = find_states(average)
    assert list(states[""]) == [f"module.{key}" for key in weights()]
    assert averaged == {""}


@pytest.mark.parametrize(
    "state",
    [
        weights(),
        {"steps": torch.tensor(1), **weights()},  # a parameter of that name
        {"steps": torch.ones(3), **renamed(weights(), "module.")},
        {"steps": torch.tensor(1)},
    ],
)
def test_what_only_looks_like_a_counter_stays(state: dict[str, torch.Tensor]) -> None:
    assert without_counter(state) == (state, False)


def test_averages_under_the_key_of_the_weights() -> None:
    moved = {"state_dict": weights(seed=1), "current_model_state": weights()}
    states, averaged = find_states(moved)
    assert list(states) == ["current_model_state", "state_dict"]
    assert averaged == {"state_dict"}


def test_mmengine_swaps_and_others_do_not() -> None:
    both: dict[str, Any] = {"state_dict": weights(), "ema_state_dict": weights(seed=1)}
    assert find_states(both)[1] == {"ema_state_dict"}
    assert find_states(both | {"meta": {"mmengine_version": "0.10"}})[1] == {"state_dict"}
