"""Figures are drawn from tables."""

from typing import Any

import pandas as pd
import pytest

from localrank_cli.experiments import correlation
from tests.experiments.test_generalization import planted


def table() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"step": step, "layer_index": layer, "local_rank": 9.0 - layer, "weight_decay": decay,
             "tolerance": "rtol=0.1", "seed": seed}
            for step in (0, 10, 100) for layer in range(3) for decay in (5e-3, 0.0)
            for seed in (0, 1)
        ]
    )  # fmt: skip


def panels_of(name: str, frame: pd.DataFrame) -> list[Any]:
    """Return the axes of a figure."""
    pytest.importorskip("matplotlib")
    from localrank_cli.experiments.pictures import draw

    return list(draw(name, frame).axes)


def lines_of(axes: Any, label: str = "layer") -> list[Any]:
    return [line for line in axes.get_lines() if line.get_label().startswith(label)]


def test_one_panel_for_each_weight_decay_and_one_line_for_each_layer() -> None:
    panels = panels_of("gaussian", table())
    assert [axes.get_title() for axes in panels] == [
        "weight decay 0.005",
        "weight decay 0",
    ]
    for axes in panels:
        lines = {line.get_label(): line for line in lines_of(axes)}
        assert list(lines) == ["layer 1", "layer 2", "layer 3"]
        assert lines["layer 2"].get_ydata().tolist() == [8.0, 8.0, 8.0]
        shades = [sum(line.get_color()[:3]) for line in lines.values()]
        assert shades == sorted(shades, reverse=True)  # from light to dark


def test_a_step_that_one_seed_alone_has_is_left_out() -> None:
    frame = table()
    extra = frame[(frame["seed"] == 1) & (frame["step"] == 10)].assign(step=40, local_rank=1.0)
    panels = panels_of("gaussian", pd.concat([frame, extra]))
    assert lines_of(panels[0])[0].get_xdata().tolist() == [0, 10, 100]


def test_ranks_and_singular_values_over_beta_beside_theory() -> None:
    rows = [
        {"run": f"b{beta}", "step": 9, "beta": beta, "layer_index": 2, "local_rank": 2.0,
         "xt_nats": beta / 4, "ty_nats": beta / 8,
         **{f"sigma_{index + 1}": 0.1 * index for index in range(8)}}
        for beta in (1.6, 3.0, 6.0)
    ]  # fmt: skip
    ranks, sigmas, optimum, plane = panels_of("vib", pd.DataFrame(rows))
    theory, trained = ranks.get_lines()
    assert sorted(set(theory.get_ydata())) == [0, 1, 2, 3]
    assert trained.get_xydata().tolist() == [[1.6, 2.0], [3.0, 2.0], [6.0, 2.0]]
    assert len(sigmas.get_lines()) == 5 + 5
    # The optimum has a panel of its own, on the same axes; what was trained is not placed on it.
    (optimal,) = optimum.get_lines()
    variational, points = plane.get_lines()
    assert optimal.get_xdata()[-1] > variational.get_xdata()[-1] > 0
    assert points.get_xydata().tolist() == [[0.4, 0.2], [0.75, 0.375], [1.5, 0.75]]
    assert plane.get_xlim() == optimum.get_xlim()
    assert plane.get_ylim() == optimum.get_ylim()


def test_each_network_of_a_sweep_and_the_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "_RESAMPLES", 50)
    frame = planted("gap")
    points, bars = panels_of("generalization", frame)
    drawn = sum(len(line.get_xdata()) for line in points.get_lines())
    assert drawn == frame["run"].nunique()
    assert [text.get_text() for text in points.get_legend().get_texts()] == [
        "label noise 0", "label noise 0.2", "random labels",
    ]  # fmt: skip
    names = [text.get_text() for text in bars.get_yticklabels()]
    assert names[:2] == ["overall", "width only"]
    assert names[-1] == "given norms and decay"


def test_published_end_values_beside_ours() -> None:
    rows = [
        {"step": step, "layer_index": layer, "local_rank": 9.0, "weight_decay": 0.01,
         "tolerance": "atol=0.01", "seed": 0}
        for step in (0, 10, 100) for layer in range(5)
    ]  # fmt: skip
    (panel,) = panels_of("patel2024", pd.DataFrame(rows))
    ours, published = lines_of(panel), lines_of(panel, "_published")
    assert all(line.get_xdata().max() == 100 for line in ours)
    ends = [tuple(line.get_xydata()[0]) for line in published]
    assert ends == [(1e6, 198.0), (1e6, 36.0), (1e6, 10.2), (1e6, 7.95), (1e6, 6.97)]
    assert [line.get_color() for line in published] == [line.get_color() for line in ours]
