import json
from pathlib import Path

import numpy as np
import torch

from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.points.files import file_hash
from localrank_cli.results.manifest import make_manifest
from localrank_cli.run.compute import run_plan
from localrank_cli.run.output import about_run
from localrank_cli.run.plan import make_plan, series_settings
from tests.helpers import NET_CODE, ignore, net_weights


def test_the_manifest_holds_all_that_decides_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET_CODE)
    for step in (1, 2):
        torch.save(net_weights(step), tmp_path / f"step_{step}.pt")
    np.savez(tmp_path / "x.npz", x=np.ones((9, 4)) * np.arange(9)[:, None])
    options = AnalyzeOptions(
        checkpoints=(tmp_path,),
        model=f"{tmp_path}/net.py:Net",
        model_arg=(("width", 3), ("name", "y")),
        data=str(tmp_path / "x.npz"),
        data_scale=0.5,
        points=4,
        seed=3,
        atol=(0.5,),
        rtol=(None,),
        noise=2.0,
        device="cpu",
    )
    plan = make_plan(options, ignore)
    facts = [{"step": record.step} | record.facts for record in run_plan(plan, ignore)]
    made = make_manifest(
        ["localrank", "analyze"],
        [series_settings(series) for series in plan.series],
        facts,
        about_run(plan, 1.23456),
        is_complete=True,
    )
    manifest = json.loads(json.dumps(made))
    assert manifest["complete"] is True
    assert manifest["command"] == ["localrank", "analyze"]
    assert manifest["seconds"] == 1.235
    assert manifest["device"] == "cpu"
    assert manifest["threads"] >= 1
    assert manifest["peak_memory_bytes"] > 0
    assert manifest["versions"]["torch"]
    (series,) = manifest["series"]
    assert series["run"] == tmp_path.name
    assert series["folder"] == str(tmp_path)
    assert series["model"].endswith("net.py:Net")
    assert series["model_arguments"] == {"width": "3", "name": "'y'"}
    assert series["model_sha256"] == file_hash(tmp_path / "net.py")
    assert series["data"] == str(tmp_path / "x.npz")
    assert series["data_key"] == "x"
    assert series["data_sha256"] == file_hash(tmp_path / "x.npz")
    assert series["data_scale"] == 0.5
    assert series["seed"] == 3
    assert series["n_data"] == 9
    assert len(series["point_indices"]) == 4
    assert series["tolerances"] == ["atol=0.5", "rtol=eps"]
    assert series["noise"] == 2.0
    assert series["dtype"] == "float64"
    assert [layer["name"] for layer in series["layers"]] == ["a", "b"]
    assert [checkpoint["step"] for checkpoint in manifest["checkpoints"]] == [1, 2]
    for checkpoint in manifest["checkpoints"]:
        assert checkpoint["bytes"] > 0
        assert checkpoint["mtime_ns"] > 0
        assert len(checkpoint["sha256_of_tensors"]) == 64
        assert checkpoint["routes"]
