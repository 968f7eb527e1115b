from pathlib import Path

import pytest

from localrank_cli.options.table import AnalyzeOptions
from tests.cli.program import invoke


@pytest.fixture
def handed_down(monkeypatch: pytest.MonkeyPatch) -> list[AnalyzeOptions]:
    seen: list[AnalyzeOptions] = []

    def run_analysis(options: AnalyzeOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr("localrank_cli.cli.run_analyze.run_analysis", run_analysis)
    return seen


def test_options_that_are_not_set_stay_unset(handed_down: list[AnalyzeOptions]) -> None:
    assert invoke("analyze", "a").code == 0
    assert handed_down == [AnalyzeOptions(checkpoints=(Path("a"),))]


def test_every_option(handed_down: list[AnalyzeOptions]) -> None:
    words = (
        "a b --model m.py:Net --model-arg width=3 --model-arg name=x --activation tanh"
        " --data d.npz --data-key k --data-scale 0.5 --points 7 --seed 8 --layers fc*,!fc3"
        " --layers head --exclude x,y --exclude z --wrt embed --atol 0.1 --atol 1 --rtol 0.2"
        " --rtol eps --input-metric identity --noise 2 --device cpu --dtype float32"
        " --pattern step_* --output o.csv -q -v --trust-model --trust-pickle"
    )
    outcome = invoke("analyze", *words.split())
    assert (outcome.code, outcome.stderr) == (0, "")
    assert handed_down == [
        AnalyzeOptions(
            checkpoints=(Path("a"), Path("b")),
            model="m.py:Net",
            model_arg=(("width", 3), ("name", "x")),
            activation="tanh",
            data="d.npz",
            data_key="k",
            data_scale=0.5,
            points=7,
            seed=8,
            layers=("fc*", "!fc3", "head"),
            exclude=("x", "y", "z"),
            wrt="embed",
            atol=(0.1, 1.0),
            rtol=(0.2, None),
            noise=2.0,
            dtype="float32",
            input_metric="identity",
            device="cpu",
            pattern="step_*",
            output=Path("o.csv"),
            quiet=True,
            verbose=True,
            trust_model=True,
            trust_pickle=True,
        )
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", 3),
        ("a=3.5", 3.5),
        ("a=true", True),
        ("a=null", None),
        ("a=[1, 2]", [1, 2]),
        ('a={"b": 1}', {"b": 1}),
        ('a="3"', "3"),
        ("a=relu", "relu"),
        ("a=True", "True"),
        ("a=", ""),
        ("a=b=c", "b=c"),
        ("a=x y", "x y"),
        ("a=" + "[" * 100_000, "[" * 100_000),
        ("a=" + "9" * 5000, "9" * 5000),
    ],
)
def test_model_arguments_are_json_or_text(
    handed_down: list[AnalyzeOptions], text: str, value: object
) -> None:
    assert invoke("analyze", "x", "--model", "m.py:N", "--model-arg", text).code == 0
    assert handed_down[0].model_arg == (("a", value),)


@pytest.mark.parametrize("text", ["a", "=3", "a-b=3", "1a=3", ""])
def test_model_arguments_need_a_name(text: str) -> None:
    outcome = invoke("analyze", "x", "--model-arg", text)
    assert outcome.code == 2
    assert "not of the form KEY=VALUE" in outcome.error
