"""Series on the Hub, read by the real client from a server on the loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save

from tests.helpers import weights
from tests.remote.hub_server import FakeHub, Files, commit_of, serving
from tests.warm import run_warm

pytest.importorskip("huggingface_hub")
STEPS = range(0, 120, 10)  # 12 revisions
DATA = ("--data", "normal:4", "--points", "3", "--rtol", "1e-6")
SPEC = "hf://lab/net@step*"


def files(seed: int) -> Files:
    return {"model.safetensors": save(weights(4, 6, 2, seed=seed)), "README.md": b"# Net\n"}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    branches = {f"step{step}": files(step) for step in STEPS} | {"main": files(1)}
    with serving(FakeHub("lab/net", branches)) as hub:
        yield hub


def environment(hub: FakeHub, home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home)}
    return {**kept, "OMP_NUM_THREADS": "1", **own, **more}


def localrank(
    hub: FakeHub, home: Path, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the program in a process that has not imported the client yet: it reads HF_ENDPOINT."""
    out, err = (home / f".{name}" for name in ("stdout", "stderr"))
    for one in (out, err):
        one.write_text("")
    code = run_warm(words, home, environment(hub, home, **more), out, err, forget_client)
    return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def forget_client() -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


def analyze(
    hub: FakeHub, home: Path, *words: str, spec: str = SPEC, **more: str
) -> subprocess.CompletedProcess[str]:
    return localrank(hub, home, "analyze", spec, *DATA, "-o", "ranks.csv", *words, **more)


def leftovers(home: Path) -> list[str]:
    folder = home / "localrank"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def held(home: Path) -> int:
    """How many weights are on the disk."""
    return sum(path.stat().st_size > 0 for path in home.rglob("series/**/model.safetensors"))


def same_numbers(folder: Path, *names: str) -> pd.DataFrame:
    """Assert that tables differ only in where their checkpoints are, and return the first."""
    first, *others = (
        pd.read_csv(folder / name).drop(columns=["run", "checkpoint"]) for name in names
    )
    for other in others:
        pd.testing.assert_frame_equal(first, other, check_exact=True)
    return first


def test_numbers_are_those_of_a_folder(hub: FakeHub, tmp_path: Path) -> None:
    most = []
    hub.before_weights = lambda: most.append(held(tmp_path))
    done = analyze(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    for name, content in hub.branches.items():
        if name != "main":
            (run / name).mkdir(parents=True)
            (run / name / "model.safetensors").write_bytes(content["model.safetensors"])
    local = localrank(hub, tmp_path, "analyze", "run", *DATA, "-o", "local.csv")
    assert local.returncode == 0, local.stderr
    remote = same_numbers(tmp_path, "ranks.csv", "local.csv")
    assert list(remote["step"].unique()) == list(STEPS)
    # One is computed and one on its way; each comes once.
    assert max(most) == 1
    assert hub.fetched == [commit_of(hub.branches[f"step{step}"]) for step in STEPS]
    assert leftovers(tmp_path) == []


def test_inspect_fetches_no_weights(hub: FakeHub, tmp_path: Path) -> None:
    for words in ((), DATA):
        done = localrank(hub, tmp_path, "inspect", SPEC, *words)
        assert done.returncode == 0, done.stderr
        assert "12" in done.stdout
        assert "110" in done.stdout
    assert hub.fetched == []


def test_a_rerun_fetches_only_what_is_new(hub: FakeHub, tmp_path: Path) -> None:
    assert analyze(hub, tmp_path, "--steps", "0:100:10").returncode == 0
    first = len(hub.fetched)
    done = analyze(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming: 11 of 12" in done.stderr
    assert len(hub.fetched) - first == 1
    assert analyze(hub, tmp_path).returncode == 0
    assert len(hub.fetched) - first == 1


def test_a_revision_that_moves_meanwhile_stays_what_was_listed(
    hub: FakeHub, tmp_path: Path
) -> None:
    expected = commit_of(hub.branches["step110"])
    hub.before_weights = lambda: hub.move("step110", files(999))
    assert analyze(hub, tmp_path).returncode == 0
    assert hub.fetched[-1] == expected


def test_a_download_cut_in_the_middle_is_resumed(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut = 1
    done = analyze(hub, tmp_path, spec="hf://lab/net@step0,step10")
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(tmp_path / "ranks.csv")["step"].unique()) == [0, 10]


def test_a_private_repository(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "secret"
    done = analyze(hub, tmp_path)
    assert done.returncode == 1
    assert "HF_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
    done = analyze(hub, tmp_path, HF_TOKEN="secret")
    assert done.returncode == 0, done.stderr


def test_no_network(hub: FakeHub, tmp_path: Path) -> None:
    done = analyze(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "hf://lab/net@step*" in done.stderr
    assert "Check the connection" in done.stderr
    assert leftovers(tmp_path) == []


def test_a_revision_in_the_clients_own_cache_is_read_there_and_stays(
    hub: FakeHub, tmp_path: Path
) -> None:
    code = "import huggingface_hub as h; h.snapshot_download('lab/net', revision='step10')"
    subprocess.run([sys.executable, "-c", code], env=environment(hub, tmp_path), check=True)
    cached = [path for path in (tmp_path / "hf").rglob("*") if path.is_file()]
    hub.requests.clear()
    done = analyze(hub, tmp_path, spec="hf://lab/net@step10,step20")
    assert done.returncode == 0, done.stderr
    assert hub.fetched == [commit_of(hub.branches["step20"])]
    assert all(path.is_file() for path in cached)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("hf://lab", "is not the address"),
        ("hf://datasets/lab/net", "a repository under datasets"),
        ("hf://lab/net/part", "there is no folder 'part'"),
        ("hf://lab/net/../part", "names no folder"),
        ("hf://lab/net@", "no revision follows"),
        ("hf://lab/net@stepp*", "no revision matches 'stepp*'"),
        ("hf://lab/other@step*", "Check its name"),
    ],
)
def test_an_address_that_names_nothing(hub: FakeHub, tmp_path: Path, spec: str, part: str) -> None:
    done = analyze(hub, tmp_path, spec=spec)
    assert done.returncode in (1, 2)
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_it_is_not_followed(hub: FakeHub, tmp_path: Path) -> None:
    done = analyze(hub, tmp_path, "--follow")
    assert done.returncode == 2
    assert "cannot watch" in done.stderr


def test_downloads_that_are_kept_serve_later_runs_until_they_are_cleared(
    hub: FakeHub, tmp_path: Path
) -> None:
    spec, place = "hf://lab/net@step0,step10", ("--cache", "here")
    assert analyze(hub, tmp_path, *place, "--keep", spec=spec).returncode == 0
    assert len(hub.fetched) == 2
    own = tmp_path / "here" / "mine.txt"
    own.touch()
    for words in (("--overwrite",), ("--overwrite", "--keep")):
        done = analyze(hub, tmp_path, *place, *words, spec=spec)
        assert done.returncode == 0, done.stderr
    assert len(hub.fetched) == 2
    listed = localrank(hub, tmp_path, "cache", *place).stdout
    assert listed.count(spec) == 2
    assert "kept" in listed
    assert leftovers(tmp_path) == []
    assert "removed" in localrank(hub, tmp_path, "cache", "--clear", *place).stdout
    assert list((tmp_path / "here").iterdir()) == [own]


def test_a_file_of_the_user_in_a_folder_of_downloads_stays(hub: FakeHub, tmp_path: Path) -> None:
    assert analyze(hub, tmp_path, "--cache", "here", "--keep").returncode == 0
    (folder,) = (tmp_path / "here").iterdir()
    own = folder / "mine.txt"
    own.touch()
    assert localrank(hub, tmp_path, "cache", "--clear", "--cache", "here").returncode == 0
    assert list(folder.iterdir()) == [own]


def test_what_a_killed_run_left_is_cleared_and_what_is_in_use_is_not(
    hub: FakeHub, tmp_path: Path
) -> None:
    states = []

    def look() -> None:
        states.append(localrank(hub, tmp_path, "cache", "--clear").stdout)

    hub.before_weights = look
    assert analyze(hub, tmp_path, spec="hf://lab/net@step0").returncode == 0
    assert "in use" in states[0]
    started: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        started[0].kill()

    hub.before_weights = kill
    command = [sys.executable, "-m", "localrank_cli", "analyze", SPEC, *DATA, "-o", "k.csv"]
    started.append(
        subprocess.Popen(
            command, cwd=tmp_path, env=environment(hub, tmp_path), stderr=subprocess.DEVNULL
        )
    )
    started[0].wait()
    assert len(leftovers(tmp_path)) == 1
    assert "removed" in localrank(hub, tmp_path, "cache", "--clear").stdout
    assert leftovers(tmp_path) == []


def test_names_that_lead_out_of_the_folder_are_not_followed(hub: FakeHub, tmp_path: Path) -> None:
    index = {"metadata": {}, "weight_map": {"0.weight": "../../../../out.safetensors"}}
    hub.branches = {
        "step1": files(1) | {"../../../../../out.txt": b"x", "/tmp/out.txt": b"x", "a/b": b"x"},
        "step2": {"model.safetensors.index.json": json.dumps(index).encode()},
        "step3": files(3),
    }
    done = analyze(hub, tmp_path, "--on-error", "skip")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    table = pd.read_csv(tmp_path / "ranks.csv")
    assert dict(zip(table["step"], table["status"], strict=True)) == {
        1: "ok", 2: "unreadable", 3: "ok",
    }  # fmt: skip
    assert not list(tmp_path.rglob("out.txt"))
    hub.branches = {"step1": files(1), "../../step2": files(2)}
    done = analyze(hub, tmp_path, "--overwrite", spec="hf://lab/net@*")
    assert done.returncode == 1
    assert "cannot be a file name" in done.stderr


def test_a_revision_that_cannot_be_fetched_is_skipped_on_request(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.branches["step20"] = {"model.safetensors": b"\x00" * 400}  # no header
    hub.gone = {commit_of(hub.branches["step30"])}  # listed, and its weights are not sent
    done = analyze(hub, tmp_path, "--on-error", "skip")
    assert done.returncode == 3, done.stderr
    table = pd.read_csv(tmp_path / "ranks.csv")
    failed = table[table["status"] != "ok"]
    assert list(failed["step"].unique()) == [20, 30]
    assert set(table["step"]) == set(STEPS)


def test_a_branch_that_moved_between_runs_is_another_checkpoint(
    hub: FakeHub, tmp_path: Path
) -> None:
    spec = "hf://lab/net@step0,step10"
    assert analyze(hub, tmp_path, spec=spec).returncode == 0
    hub.move("step10", files(999))
    done = analyze(hub, tmp_path, spec=spec)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "ranks.csv")
    assert table[table["step"] == 10]["checkpoint"].nunique() == 2


def test_folders_within_a_revision_are_a_series(hub: FakeHub, tmp_path: Path) -> None:
    inner: Files = {"README.md": b"# Net\n"}
    for step in (5, 10, 100):
        (content,) = (one for name, one in files(step).items() if name != "README.md")
        inner[f"runs/a/checkpoint-{step}/model.safetensors"] = content
        inner[f"runs/a/checkpoint-{step}/optimizer.bin"] = b"no weights"
        place = tmp_path / "a" / f"checkpoint-{step}"
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(content)
    hub.branches = {"main": inner, "other": files(1)}
    done = localrank(hub, tmp_path, "analyze", "a", *DATA, "-o", "local.csv")
    assert done.returncode == 0, done.stderr
    for spec in ("hf://lab/net/runs/a", "hf://lab/net@main/runs/a"):
        done = analyze(hub, tmp_path, "--overwrite", spec=spec)
        assert done.returncode == 0, done.stderr
        remote, local = (pd.read_csv(tmp_path / name) for name in ("ranks.csv", "local.csv"))
        pd.testing.assert_frame_equal(remote, local, check_exact=True)
    fetched = len(hub.fetched)
    hub.move("main", {**inner, "notes.txt": b"the checkpoints are as before"})
    done = analyze(hub, tmp_path, spec="hf://lab/net/runs/a")
    assert done.returncode == 0, done.stderr
    assert len(hub.fetched) == fetched
    manifest = json.loads((tmp_path / "ranks.csv.json").read_text())
    origin = manifest["checkpoints"][0]["origin"]
    first = commit_of(inner)
    assert origin == {
        "address": f"hf://lab/net@{first}/runs/a/checkpoint-5", "commit": first, "revision": "main",
    }  # fmt: skip
    one = localrank(
        hub, tmp_path, "analyze", "hf://lab/net/runs/a/checkpoint-10", *DATA, "-o", "one.csv"
    )
    assert one.returncode == 0, one.stderr
    assert list(pd.read_csv(tmp_path / "one.csv")["step"].unique()) == [10]


def test_checkpoints_at_the_top_of_a_revision(hub: FakeHub, tmp_path: Path) -> None:
    (content,) = (one for name, one in files(1).items() if name != "README.md")
    hub.branches = {"main": {f"step_{n}/model.safetensors": content for n in (1, 20)}}
    done = localrank(hub, tmp_path, "inspect", "hf://lab/net")
    assert "steps 1, 20" in done.stdout, done.stderr
    assert hub.fetched == []


def test_a_folder_of_each_revision(hub: FakeHub, tmp_path: Path) -> None:
    hub.branches = {
        name: {f"unet/{inner}": content for inner, content in found.items()}
        for name, found in hub.branches.items()
        if name.startswith("step")
    }
    done = analyze(hub, tmp_path, spec="hf://lab/net@step0,step10/unet")
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(tmp_path / "ranks.csv")["step"].unique()) == [0, 10]
    manifest = json.loads((tmp_path / "ranks.csv.json").read_text())
    assert [one["origin"]["revision"] for one in manifest["checkpoints"]] == ["step0", "step10"]
