"""The singular values that `reproduce` adds to its table."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from safetensors.torch import load_file

from localrank_cli.experiments.reproduce import last_sigma
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.run.plan import make_plan
from tests.helpers import save_series


@pytest.mark.parametrize("metric", ["identity", "data"])
def test_singular_values_of_a_linear_network_are_those_of_its_weight(
    tmp_path: Path, metric: Literal["identity", "data"]
) -> None:
    for run in ("a", "b"):
        save_series(tmp_path / run, steps=(0, 7) if run == "a" else (3,), widths=(4, 3))
    folders = (tmp_path / "a", tmp_path / "b")
    options = AnalyzeOptions(folders, data="normal:4", data_scale=2.0, input_metric=metric)
    frame = last_sigma(make_plan(options, lambda note: None))
    assert frame[["run", "step", "layer_index"]].values.tolist() == [["a", 7, 0], ["b", 3, 0]]
    for _, row in frame.iterrows():
        weight = load_file(tmp_path / row["run"] / f"step_{row['step']}.safetensors")["0.weight"]
        sigma = np.linalg.svd(weight.double().numpy(), compute_uv=False)
        found = [row[f"sigma_{index + 1}"] for index in range(3)]
        np.testing.assert_allclose(found, sigma * (2.0 if metric == "data" else 1.0), rtol=1e-9)
