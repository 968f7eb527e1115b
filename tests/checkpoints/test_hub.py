from pathlib import Path

from localrank_cli.checkpoints.folders import hub_folder_of, is_hub_folder, snapshots
from localrank_cli.checkpoints.series import find_checkpoints, find_folders
from tests.checkpoints.layouts import LAYOUTS

WRITE = LAYOUTS["Hub cache"].write


def test_revisions_name_snapshots(tmp_path: Path) -> None:
    WRITE(tmp_path, 10)
    WRITE(tmp_path, 20)
    (tmp_path / "refs/pr").mkdir()
    (tmp_path / "refs/pr/1").write_text(f"{10:040x}\n")
    (tmp_path / "refs/gone").write_text("f" * 40)
    first, second = (tmp_path / "snapshots" / f"{step:040x}" for step in (10, 20))
    assert snapshots(tmp_path) == {first: ["pr/1", "step10"], second: ["main", "step20"]}
    files = find_checkpoints(tmp_path, [], "", []).files
    assert [(file.label, file.name_step) for file in files] == [("step10", 10), ("step20", 20)]


def test_a_ref_leads_nowhere_else(tmp_path: Path) -> None:
    WRITE(tmp_path, 10)
    for name, text in (("a", "../../etc"), ("b", "/"), ("c", ""), ("d", "\xff" * 9), ("e", "..")):
        (tmp_path / "refs" / name).write_text(text, encoding="latin-1")
    assert list(snapshots(tmp_path).values()) == [["main", "step10"]]


def test_one_snapshot_by_its_path(tmp_path: Path) -> None:
    WRITE(tmp_path, 10)
    WRITE(tmp_path, 20)
    place = tmp_path / "snapshots" / f"{10:040x}"
    assert hub_folder_of(place) == tmp_path
    named = find_folders([place])
    assert named == {tmp_path: [place]}
    assert [f.label for f in find_checkpoints(tmp_path, [place], "", []).files] == ["step10"]


def test_a_pattern_goes_by_revisions(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        WRITE(tmp_path, step)
    files = find_checkpoints(tmp_path, [], "step[12]*", []).files
    assert [file.name_step for file in files] == [10, 20]


def test_other_folders(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    assert not is_hub_folder(tmp_path)
    assert hub_folder_of(tmp_path / "snapshots" / "x") is None
