from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localrank_cli.errors import UsageError
from localrank_cli.options.table import AnalyzeOptions, check_options, parse_rtol

OPTIONS = AnalyzeOptions(checkpoints=(Path("run"),))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"atol": (1e-300, 1e300)},
        {"rtol": (None, 0.999, 1e-7)},
        {"noise": 1e-9},
        {"points": 1},
        {"seed": 2**63 - 1},
        {"data_scale": -0.5},
        {"dtype": "float32"},
        {"input_metric": "identity"},
        {"device": "cpu"},
        {"device": "cuda"},
        {"device": "cuda:11"},
    ],
)
def test_good(changes: dict[str, Any]) -> None:
    check_options(replace(OPTIONS, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": ()}, "no checkpoints were named"),
        ({"atol": (0.0,)}, "--atol 0: a tolerance must be positive"),
        ({"atol": (0.1, -1.0)}, "--atol -1"),
        ({"atol": (float("nan"),)}, "--atol nan"),
        ({"atol": (float("inf"),)}, "--atol inf"),
        ({"rtol": (0.0,)}, "--rtol 0"),
        ({"rtol": (1.0,)}, "--rtol 1: must be under 1"),
        ({"rtol": (None, 1.5)}, "--rtol 1.5"),
        ({"rtol": (float("nan"),)}, "--rtol nan"),
        ({"noise": 0.0}, "--noise 0"),
        ({"noise": 1e308}, "--noise 1e+308: its square"),
        ({"noise": 1e-200}, "--noise 1e-200: its square"),
        ({"noise": float("inf")}, "--noise inf"),
        ({"points": 0}, "--points 0: at least 1"),
        ({"points": -5}, "--points -5"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "--seed 9223372036854775808"),
        ({"data_scale": 0.0}, "--data-scale 0"),
        ({"data_scale": float("nan")}, "--data-scale nan"),
        ({"dtype": "float16"}, "--dtype float16: not known"),
        ({"input_metric": "euclid"}, "--input-metric euclid: not known"),
        ({"device": "gpu"}, "--device gpu: not known"),
        ({"device": "cuda:"}, "--device cuda:: not known"),
        ({"device": "cuda:x"}, "--device cuda:x"),
        ({"device": "cuda:-1"}, "--device cuda:-1"),
        ({"device": "cpu:0"}, "--device cpu:0"),
    ],
)
def test_bad(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(replace(OPTIONS, **changes))
    assert caught.value.what.startswith(message)
    assert caught.value.exit_code == 2


def test_a_tolerance_of_zero_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError) as caught:
        check_options(replace(OPTIONS, atol=(0.0,)))
    assert "rounding" in caught.value.advice
    assert "--rtol eps" in caught.value.advice


@pytest.mark.parametrize(
    ("text", "value"), [("eps", None), (" EPS ", None), ("0.1", 0.1), ("1e-3", 0.001)]
)
def test_rtol(text: str, value: float | None) -> None:
    assert parse_rtol(text) == value


@pytest.mark.parametrize("text", ["", "epsilon", "0,1", "0.1x"])
def test_rtol_that_is_neither(text: str) -> None:
    with pytest.raises(UsageError, match="neither a number nor eps"):
        parse_rtol(text)
