import io
import math
from typing import Any

import pytest
from rich.console import Console

from localrank_cli.cli.chart import Summary, trend


def row(step: int, rank: float | None, layer: str = "fc", **changes: Any) -> dict[str, Any]:
    return {
        "run": "run[seed=3]",
        "tolerance": "atol=0.01",
        "layer": layer,
        "n_out": 100,
        "n_in": 784,
        "step": step,
        "local_rank": rank,
        "effective_rank": None if rank is None else rank / 2,
        "n_points": 64,
    } | changes


def shown(rows: list[dict[str, Any]], width: int = 80, encoding: str = "utf-8") -> str:
    summary = Summary()
    summary.add(rows)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    summary.show(Console(file=stream, width=width, highlight=False))
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(encoding)


def test_letter_by_letter() -> None:
    text = shown([row(0, 10.0), row(100, 75.5), row(3000, 20.0), row(0, 8.0, "head")])
    assert [line.rstrip() for line in text.splitlines()] == [
        "run[seed=3]: local rank at atol=0.01 (64 points, steps 0 to 3000)",
        "layer      size first peak at step last trend   eff. rank",
        "─" * 57,
        "fc    100 x 784  10.0 75.5     100 20.0 ▂█▃   5.0 -> 10.0",
        "head  100 x 784   8.0  8.0       0  8.0 █      4.0 -> 4.0",
    ]


@pytest.mark.parametrize("name", ["[bold]", "[/]", "[red]x[/red]", "blocks[0]", ":smile:", "a\\[b"])
def test_names_are_no_markup(name: str) -> None:
    text = shown([row(0, 1.0, layer=name, run=name)])
    assert text.splitlines()[0].startswith(f"{name}: local rank")
    assert text.splitlines()[-1].startswith(name)


@pytest.mark.parametrize("width", [80, 100, 60, 40])
@pytest.mark.parametrize("layer", ["fc", "encoder.layers.11.self_attn.out_proj.base_layer"])
@pytest.mark.parametrize("size", [(10, 784), (4096, 150528)])
def test_no_number_is_ever_cut(width: int, layer: str, size: tuple[int, int]) -> None:
    rows = [
        row(step, 1000.0 + step, layer, n_out=size[0], n_in=size[1])
        for step in range(0, 200000, 5000)
    ]
    text = shown(rows, width)
    last = text.splitlines()[-1].rstrip()
    for part in (f"{size[0]} x {size[1]}", " 1000.0 ", " 195000 ", " 500.0 -> 98000"):
        assert part in last
    assert last.startswith(layer[:2])
    assert f"{layer[-4:]} " in last
    if width >= 80:
        assert max(map(len, text.splitlines()[1:])) <= width


def test_names_do_not_steer_the_terminal() -> None:
    text = shown([row(0, 1.0, layer="a\x1b[2Jb", run="r\x1b[2J")])
    assert "\x1b" not in text
    assert text.startswith("r\\x1b[2J: local rank")
    assert "a\\x1b[2Jb " in text


def test_ascii_where_there_are_no_blocks() -> None:
    text = shown([row(0, 10.0), row(1, 80.0)], encoding="ascii")
    assert text.isascii()
    assert "|.#   |" in text.splitlines()[-1]


def test_one_table_for_each_run_and_tolerance() -> None:
    rows = [row(0, 1.0), row(0, 2.0, tolerance="rtol=eps"), row(0, 3.0, run="b")]
    titles = [line for line in shown(rows).splitlines() if "local rank at" in line]
    assert titles == [
        "run[seed=3]: local rank at atol=0.01 (64 points, step 0)",
        "run[seed=3]: local rank at rtol=eps (64 points, step 0)",
        "b: local rank at atol=0.01 (64 points, step 0)",
    ]


def test_a_layer_without_finite_values_is_no_zero() -> None:
    last = shown([row(0, 5.0), row(0, None, layer="b"), row(1, None, layer="b")]).splitlines()[-1]
    assert "not finite" in last
    assert "0.0" not in last


def test_nothing_finite_at_all() -> None:
    assert "no finite step" in shown([row(0, None)])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], "█"),
        ([0.0], "▁"),
        ([0.0, 0.0, 0.0], "▁▁▁"),
        ([0.0, 7.0], "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([7] * 13 + [0], "█" * 13 + "▁"),
        ([2.0, math.inf, 4.0], "▅██"),
        ([math.inf], "▁"),
    ],
)
def test_trend(values: list[float], expected: str) -> None:
    assert trend(values) == expected


def test_a_long_trend_keeps_its_ends() -> None:
    line = trend([0.0] + [5.0] * 98 + [10.0])
    assert len(line) == 14
    assert (line[0], line[-1]) == ("▁", "█")
