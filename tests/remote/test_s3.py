"""Series in a store, read by the real client from a server of S3 on the loopback."""

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save

from localrank_cli import analyze as analyze_in_python
from localrank_cli.errors import UsageError
from localrank_cli.remote import places
from localrank_cli.remote.address import address_of
from tests.cli.program import Outcome, invoke
from tests.helpers import save_series, weights
from tests.test_docs import ROOT, assert_same, at_a_terminal, examples, sections
from tests.warm import run_warm

if TYPE_CHECKING:
    from tests.remote.s3_server import FakeS3

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto"),
]
STEPS = (0, 5, 10, 1000)
QUICK = ("--data", "normal:4", "--points", "3", "--rtol", "1e-6", "--device", "cpu")


@pytest.fixture(scope="module")
def server() -> "Iterator[FakeS3]":
    from tests.remote.s3_server import serving  # which needs moto

    with serving() as found:
        yield found


@pytest.fixture
def s3(
    server: "FakeS3",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> "Iterator[FakeS3]":
    """The server with a new bucket, and its address in the environment."""
    server.start_anew(f"lab-{abs(hash(request.node.name))}")
    for name, value in {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "XDG_CACHE_HOME": str(tmp_path / "caches"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield server
    places.release()
    s3fs.S3FileSystem.clear_instance_cache()  # a client has the credentials of its test


def fill(s3: "FakeS3", run: str = "run", folder: Path | None = None) -> None:
    """Store a series of safetensors in folders, and the same in a folder of this machine."""
    for step in STEPS:
        content = save(weights(4, 6, 2, seed=step))
        s3.put(f"{run}/step_{step}/model.safetensors", content)
        s3.put(f"{run}/step_{step}/optimizer.pt", b"no weights")
        if folder is not None:
            place = folder / f"step_{step}"
            place.mkdir(parents=True)
            (place / "model.safetensors").write_bytes(content)


def of_torch(content: object) -> bytes:
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()


def localrank(*words: str) -> Outcome:
    """Run the program, which removes at its end what it has downloaded."""
    try:
        return invoke(*words)
    finally:
        places.release()


def analyze(s3: "FakeS3", *words: str, run: str = "run", output: str = "a.csv") -> Outcome:
    return localrank("analyze", f"s3://{s3.bucket}/{run}", *QUICK, "-o", output, *words)


def done(outcome: Outcome, code: int = 0) -> Outcome:
    assert outcome.code == code, outcome.stderr
    return outcome


def downloads(folder: Path) -> list[Path]:
    return [one for one in (folder / "caches").rglob("*") if one.is_file()]


def same_table(first: str, second: str) -> pd.DataFrame:
    one, other = (pd.read_csv(name) for name in (first, second))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    return one


def test_the_table_is_that_of_a_folder(s3: "FakeS3", tmp_path: Path) -> None:
    fill(s3, folder=tmp_path / "run")
    most = []

    def look(key: str) -> None:
        files = (tmp_path / "caches").rglob("model.safetensors")
        most.append(sum("series" in one.parts and one.stat().st_size > 0 for one in files))

    s3.before_whole = look
    done(analyze(s3))
    done(localrank("analyze", "run", *QUICK, "-o", "b.csv"))
    table = same_table("a.csv", "b.csv")
    assert list(table["step"].unique()) == list(STEPS)
    assert list(table["checkpoint"].unique()) == [f"step_{step}" for step in STEPS]
    # One is computed and one on its way; each comes once.
    assert max(most) == 1
    assert s3.fetched == [f"run/step_{step}/model.safetensors" for step in STEPS]
    assert downloads(tmp_path) == []


def test_single_files_and_pickles(s3: "FakeS3", tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for step in STEPS:
        content = of_torch({"state_dict": weights(4, 6, 2, seed=step), "global_step": step})
        s3.put(f"run/step_{step}.ckpt", content)
        (tmp_path / "run" / f"step_{step}.ckpt").write_bytes(content)
    named = [f"s3://{s3.bucket}/run/step_{step}.ckpt" for step in (0, 10)]
    done(analyze(s3))
    done(localrank("analyze", "run", *QUICK, "-o", "b.csv"))
    same_table("a.csv", "b.csv")
    done(localrank("analyze", *named, *QUICK, "-o", "two.csv"))
    done(localrank("analyze", "run/step_0.ckpt", "run/step_10.ckpt", *QUICK, "-o", "local.csv"))
    same_table("two.csv", "local.csv")


def test_a_large_pickle_is_planned_without_its_tensors(s3: "FakeS3", tmp_path: Path) -> None:
    # A step that is a tensor of its own, or a part of one that is too large to be fetched twice.
    (tmp_path / "run").mkdir()
    large = torch.arange(400_000)
    for step, counter in ((7, torch.tensor(7)), (11, large[11])):
        network = weights(4, 400_000, seed=step)
        content = of_torch({"state_dict": network, "global_step": counter})
        s3.put(f"run/{step:05}.pt", content)
        (tmp_path / "run" / f"{step:05}.pt").write_bytes(content)
    inspected = done(localrank("inspect", f"s3://{s3.bucket}/run"))
    assert "steps 7, 11" in inspected.stdout
    assert s3.fetched == ["run/00011.pt"]
    done(analyze(s3, "--output-slice", ":3"))
    done(localrank("analyze", "run", *QUICK, "--output-slice", ":3", "-o", "b.csv"))
    assert list(same_table("a.csv", "b.csv")["step"].unique()) == [7, 11]


def test_nothing_is_fetched_for_what_is_finished(s3: "FakeS3") -> None:
    fill(s3)
    done(analyze(s3, "--steps", "0:10"))
    s3.requests.clear()
    again = done(analyze(s3, "--steps", "0:10"))
    assert "3 of 3 checkpoints are already finished" in again.stderr
    assert s3.fetched == []
    done(analyze(s3))
    assert s3.fetched == ["run/step_1000/model.safetensors"]
    s3.requests.clear()
    done(localrank("inspect", f"s3://{s3.bucket}/run", *QUICK))
    assert s3.fetched == []


def test_each_checkpoint_is_pinned_by_its_etag(s3: "FakeS3") -> None:
    fill(s3)
    done(analyze(s3))
    manifest = json.loads(Path("a.csv.json").read_text())
    assert manifest["series"][0]["folder"] == f"s3://{s3.bucket}/run"
    first = manifest["checkpoints"][0]
    # The ETag of an object that was sent as a whole is the MD5 of its content.
    content = save(weights(4, 6, 2, seed=0))
    assert first["pin"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert first["origin"]["address"] == f"s3://{s3.bucket}/run/step_0"


def test_an_object_that_changes_meanwhile(s3: "FakeS3") -> None:
    fill(s3)

    def change(key: str) -> None:
        if "step_5/" in key:
            s3.put("run/step_10/model.safetensors", save(weights(4, 6, 2, seed=99)))

    s3.before_whole = change
    stopped = done(analyze(s3), 1)
    assert "step_10/model.safetensors: changed since it was listed" in stopped.error
    assert list(pd.read_csv("a.csv")["step"].unique()) == [0, 5]
    s3.before_whole = lambda key: None
    done(analyze(s3))  # as the error advises
    assert list(pd.read_csv("a.csv")["step"].unique()) == list(STEPS)
    s3.put("run/step_10/model.safetensors", save(weights(4, 6, 2, seed=10)))
    s3.before_whole = change
    done(analyze(s3, "--on-error", "skip", output="b.csv"), 3)
    table = pd.read_csv("b.csv").drop_duplicates("step")
    assert table["status"].tolist() == ["ok", "ok", "unreadable", "ok"]


def test_an_object_that_changed_between_runs(s3: "FakeS3") -> None:
    fill(s3)
    done(analyze(s3))
    s3.put("run/step_5/model.safetensors", save(weights(4, 6, 2, seed=99)))  # of the same size
    refused = done(analyze(s3), 1)
    assert "step_5" in refused.error
    assert "its weights changed since it was analyzed" in refused.error
    done(analyze(s3, "--overwrite"))
    s3.put("run/step_5/model.safetensors", save(weights(4, 6, 2, seed=99)) + b"")  # written again
    done(analyze(s3))


def test_a_listing_of_several_pages(s3: "FakeS3") -> None:
    for number in range(1100):  # a page has 1000 keys
        s3.put(f"run/logs/{number:05}.txt", b"")
    fill(s3)
    done(analyze(s3))
    assert list(pd.read_csv("a.csv")["step"].unique()) == list(STEPS)
    assert s3.n_listings == 2


def test_a_download_that_breaks_off(s3: "FakeS3", tmp_path: Path) -> None:
    fill(s3)
    s3.cut = 1
    done(analyze(s3))  # the client asks again
    s3.cut = 1000
    stopped = done(analyze(s3, "--steps", "0", output="b.csv"), 1)
    assert "rerun the same command to resume" in stopped.error
    assert downloads(tmp_path) == []
    s3.cut = 0
    done(analyze(s3, "--steps", "0", output="b.csv"))


def test_keys_that_are_no_names(s3: "FakeS3", tmp_path: Path) -> None:
    fill(s3)
    odd = ("../../out.pt", "/tmp/out.pt", "step_7\n.pt", "a\\b.pt", "step_8/../step_9.pt")
    for key in odd:
        s3.put(f"run/{key}", of_torch(weights(4, 6, 2)))
    index = {"metadata": {}, "weight_map": {"0.weight": "../step_0/model.safetensors"}}
    s3.put("run/step_6/model.safetensors.index.json", json.dumps(index).encode())
    found = done(analyze(s3, "--on-error", "skip"), 3)
    assert "left out names that no file on this machine can have" in found.stderr
    assert "'step_7\\n.pt'" in found.stderr
    assert not list(tmp_path.rglob("out.pt"))
    assert not Path("/tmp/out.pt").exists()
    table = pd.read_csv("a.csv").drop_duplicates("step")
    assert dict(zip(table["step"], table["status"], strict=True)) == {
        **dict.fromkeys(STEPS, "ok"), 6: "unreadable",
    }  # fmt: skip
    assert "which is not in its folder" in table[table["step"] == 6]["message"].item()
    assert str(tmp_path) not in Path("a.csv").read_text()


def test_a_key_that_is_a_file_and_a_folder(s3: "FakeS3") -> None:
    fill(s3)
    s3.put("run/step_5", b"an object with the name of a folder")
    s3.put("run/step_10/model.safetensors/x.pt", b"a file within a file")
    found = done(analyze(s3))
    assert "step_10/model.safetensors/x.pt" in found.stderr


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("s3://no-such-bucket/run", "The specified bucket does not exist"),
        ("s3://{bucket}/ruin", "there is nothing here"),
        ("s3://{bucket}/logs", "no checkpoint is among its 1 files (a.txt)"),
        ("zip://a.zip", "files within a file"),
        ("simplecache::s3://{bucket}/run", "files within a file"),
        ("s3://{bucket}/run::zip", "files within a file"),
        ("file:///run", "Give the path alone: /run"),
        ("nothing://lab/run", "there is no client for nothing://"),
    ],
)
def test_an_address_that_names_nothing(s3: "FakeS3", address: str, part: str) -> None:
    fill(s3)
    s3.put("logs/a.txt", b"")
    found = localrank("analyze", address.format(bucket=s3.bucket), *QUICK)
    assert found.code in (1, 2)
    assert part in found.error


def test_no_credentials(s3: "FakeS3", monkeypatch: pytest.MonkeyPatch) -> None:
    fill(s3)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    found = done(analyze(s3), 1)
    assert "Unable to locate credentials" in found.error
    assert "AWS_ACCESS_KEY_ID" in found.error


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        # As S3 answers with an old token, in another region, too often, and from an archive.
        ("400 Bad Request", "InvalidToken", "renew those that have expired"),
        ("400 Bad Request", "", "renew those that have expired"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "AWS_DEFAULT_REGION"),
        ("503 Slow Down", "SlowDown", "rerun the same command later"),
        ("403 Forbidden", "InvalidObjectState", "restore it"),
    ],
)
def test_what_a_refusal_means(s3: "FakeS3", status: str, code: str, advice: str) -> None:
    fill(s3)
    s3.refusal = (status, code)
    found = done(analyze(s3), 1)
    assert advice in found.error
    assert "Check the connection" not in found.error


@pytest.mark.parametrize(
    ("endpoint", "advice"),
    [("localhost:9000", "AWS_ENDPOINT_URL"), ("htp://localhost:9000", "AWS_ENDPOINT_URL")],
)
def test_an_endpoint_that_is_none(
    s3: "FakeS3", monkeypatch: pytest.MonkeyPatch, endpoint: str, advice: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert advice in done(analyze(s3), 1).error


def test_a_login_that_ended(
    s3: "FakeS3", monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    sso = "sso_start_url=https://a.invalid\nsso_region=us-east-1\nsso_account_id=1\nsso_role_name=r"
    (tmp_path / "config").write_text(f"[default]\n{sso}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    found = done(analyze(s3), 1)
    assert "aws sso login" in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr


def test_no_network(s3: "FakeS3", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    found = done(analyze(s3), 1)
    assert f"s3://{s3.bucket}/run" in found.error
    assert "Check the connection" in found.error
    assert downloads(tmp_path) == []


def test_without_its_client(s3: "FakeS3", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    registry = vars(sys.modules["fsspec.registry"])["_registry"]
    monkeypatch.delitem(registry, "s3", raising=False)
    assert "pip install 'localrank[s3]'" in done(analyze(s3), 1).error


def test_downloads_that_are_kept_serve_later_runs(s3: "FakeS3") -> None:
    fill(s3)
    place = ("--cache", "here", "--keep")
    done(analyze(s3, *place))
    assert len(s3.fetched) == len(STEPS)
    s3.put("run/step_5/model.safetensors", save(weights(4, 6, 2, seed=99)))  # of the same size
    s3.requests.clear()
    done(analyze(s3, *place, "--overwrite"))
    assert s3.fetched == ["run/step_5/model.safetensors"]
    found = Path("here").glob("run-*/series/**/step_10/model.safetensors")
    (kept,) = (one for one in found if not one.is_symlink())
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + b"x")
    s3.requests.clear()
    done(analyze(s3, *place, output="b.csv"))
    assert s3.fetched == ["run/step_10/model.safetensors"]
    same_table("a.csv", "b.csv")
    listed = done(localrank("cache", "--cache", "here")).stdout
    assert listed.count(f"s3://{s3.bucket}/run") == 3


def test_data_and_settings_in_the_store(s3: "FakeS3", tmp_path: Path) -> None:
    fill(s3, folder=tmp_path / "run")
    points = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")
    np.save(tmp_path / "run" / "points.npy", points)
    content = (tmp_path / "run" / "points.npy").read_bytes()
    settings = 'data = "points.npy"\npoints = 4\n[columns]\nbeta = 2.0\n'
    (tmp_path / "run" / "localrank.toml").write_text(settings)
    s3.put("run/points.npy", content)
    s3.put("run/localrank.toml", settings.encode())
    address = f"s3://{s3.bucket}/run"
    done(localrank("analyze", "run", "-o", "local.csv"))
    done(localrank("analyze", address, "-o", "a.csv"))
    assert set(same_table("a.csv", "local.csv")["beta"]) == {2.0}
    done(localrank("analyze", address, "--data", f"{address}/points.npy", "-o", "b.csv"))
    same_table("b.csv", "local.csv")
    manifest = json.loads(Path("b.csv.json").read_text())
    assert manifest["series"][0]["data"] == f"{address}/points.npy"
    done(localrank("analyze", address, "--data", f"{address}/points.npy", "-o", "b.csv"))
    done(localrank("analyze", "run", "--data", f"{address}/points.npy", "-o", "c.csv"))
    same_table("c.csv", "local.csv")
    missing = localrank("analyze", address, "--data", f"{address}/none.npy")
    assert f"{address}/none.npy: there is nothing here" in missing.error


def test_held_out_data_in_the_store(s3: "FakeS3", tmp_path: Path) -> None:
    fill(s3)
    for seed, name in enumerate(("data", "held")):
        points = np.random.default_rng(seed).normal(size=(64, 4)).astype("float32")
        np.savez(tmp_path / f"{name}.npz", x=points, y=np.arange(64) % 2)
    s3.put("held.npz", (tmp_path / "held.npz").read_bytes())
    found: list[Any] = []
    for held in (f"s3://{s3.bucket}/held.npz", "held.npz"):
        what = (f"s3://{s3.bucket}/run/step_5/model.safetensors", "--data", "data.npz")
        how = ("--eval-data", held, "--budget", "0.5", "-o", f"out{len(found)}")
        done(localrank("compress", *what, *how))
        found.append(json.loads(Path(how[-1], "compress.json").read_text()))
        assert found[-1]["eval_data"].pop("data").endswith(held)
    assert found[0]["eval_data"] == found[1]["eval_data"]
    assert [row["loss"] for row in found[0]["budgets"]] == [
        row["loss"] for row in found[1]["budgets"]
    ]


@pytest.mark.parametrize("option", ["-o", "--spectra", "--cache"])
def test_nothing_is_written_to_a_store(s3: "FakeS3", tmp_path: Path, option: str) -> None:
    fill(s3)
    found = done(analyze(s3, option, "s3://lab/it"), 2)
    assert "s3://lab/it: expected a path on this machine, got an address" in found.error
    assert not (tmp_path / "s3:").exists()


def test_a_settings_file_names_no_address(s3: "FakeS3", tmp_path: Path) -> None:
    fill(s3, folder=tmp_path / "run")
    settings = f'data = "s3://{s3.bucket}/points.npy"\n'
    (tmp_path / "run" / "localrank.toml").write_text(settings)
    s3.put("run/localrank.toml", settings.encode())
    for place in ("run", f"s3://{s3.bucket}/run"):
        found = localrank("analyze", place)
        assert found.code == 1
        assert "is an address on another machine" in found.error
    assert s3.fetched == []


def test_shards(s3: "FakeS3") -> None:
    fill(s3)
    done(analyze(s3))
    for shard in ("0/2", "1/2"):
        done(analyze(s3, "--shard", shard, output="parts/"))
    done(localrank("merge", "parts", "-o", "merged.csv"))
    same_table("merged.csv", "a.csv")


def test_a_disk_without_room(s3: "FakeS3", monkeypatch: pytest.MonkeyPatch) -> None:
    fill(s3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    found = done(analyze(s3), 1)
    assert "has 1000 bytes free" in found.error
    assert "--cache DIR" in found.error


def test_a_store_in_memory_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    store: Any = fsspec.filesystem("memory")
    (tmp_path / "run").mkdir()
    for step in STEPS:
        content = save(weights(4, 6, 2, seed=step))
        store.pipe_file(f"/run/step_{step}.safetensors", content)
        (tmp_path / "run" / f"step_{step}.safetensors").write_bytes(content)
    options: dict[str, Any] = {"data": "normal:4", "points": 3, "device": "cpu"}
    remote = analyze_in_python("memory://run", **options)
    local = analyze_in_python(tmp_path / "run", **options)
    pd.testing.assert_frame_equal(remote, local, check_exact=True)
    # A later call sees what was added.
    store.pipe_file("/run/step_2000.safetensors", save(weights(4, 6, 2, seed=1)))
    assert 2000 in set(analyze_in_python("memory://run", **options)["step"])
    assert downloads(tmp_path) == []


def test_clients_are_not_imported_for_a_folder(tmp_path: Path) -> None:
    save_series(tmp_path / "run")
    code = """
import sys
from localrank_cli import analyze
for name in [one for one in sys.modules if one.partition(".")[0] in CLIENTS]:
    del sys.modules[name]  # what other tests may have had imported
analyze("run", data="normal:4", points=2)
sys.exit(bool(CLIENTS & {one.partition(".")[0] for one in sys.modules}))
"""
    clients = "CLIENTS = {'fsspec', 's3fs', 'botocore', 'huggingface_hub'}"
    null = Path("/dev/null")
    words = ("-c", clients + code)
    assert run_warm(words, tmp_path, dict(os.environ), null, null, is_python=True) == 0


def test_the_example_of_the_page(s3: "FakeS3", tmp_path: Path) -> None:
    s3.start_anew("lab")
    for path in (ROOT / "sample_checkpoints" / "gaussian_teacher").iterdir():
        s3.put(f"runs/gaussian_teacher/{path.name}", path.read_bytes())
    page = sections(ROOT / "docs/hub.md")["In S3 and other stores"]
    shown = examples(page)
    assert shown
    for example in shown:
        status, seen = at_a_terminal(example.code, tmp_path)
        assert status == 0, seen
        assert_same(seen, example)


def test_a_path_that_looks_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:" / "a").mkdir(parents=True)
    assert address_of(Path("run:/a")) is None
    assert address_of(Path("C:/a")) is None
    assert str(address_of(Path("run:/b"))) == "run://b"
    with pytest.raises(UsageError, match="no folder or file"):
        address_of("s3:///")
