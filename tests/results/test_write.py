import csv
import io
import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest

from localrank_cli.errors import OutputError, UsageError
from localrank_cli.results.columns import header
from localrank_cli.results.read import to_frame
from localrank_cli.results.write import (
    RowWriter,
    check_suffix,
    refuse_existing,
    remove_temporary,
    replacing,
    write_bytes,
    write_json,
    write_table,
)
from tests.helpers import entries
from tests.results.rows import ROWS
from tests.results.test_lock import no_flock


def written(suffix: str, columns: tuple[str, ...] = header(("beta",))) -> str:
    stream = io.StringIO()
    RowWriter(stream, columns, suffix).write(ROWS)
    return stream.getvalue()


def test_csv_letter_by_letter() -> None:
    columns = ("run", "step", "local_rank", "rank_min", "beta")
    assert written(".csv", columns) == (
        "run,step,local_rank,rank_min,beta\na run,7,0.333333333,3,2.5\n,0,,,\n"
    )
    assert written(".tsv", columns) == (
        "run\tstep\tlocal_rank\trank_min\tbeta\na run\t7\t0.333333333\t3\t2.5\n\t0\t\t\t\n"
    )
    assert written(".jsonl", columns) == (
        '{"run": "a run", "step": 7, "local_rank": 0.333333333, "rank_min": 3, "beta": 2.5}\n'
        '{"run": "", "step": 0, "local_rank": null, "rank_min": null, "beta": null}\n'
    )


def test_every_format_has_all_columns() -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        rows = list(csv.reader(io.StringIO(written(suffix)), delimiter=delimiter))
        assert [len(row) for row in rows] == [len(header()) + 1] * 3
    for line in written(".jsonl").splitlines():
        assert tuple(json.loads(line)) == header(("beta",))


@pytest.mark.parametrize("name", ['a,"b"', "a\tb", "a\nb", "ä→b", "[bold]"])
def test_awkward_names_come_back(name: str) -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        stream = io.StringIO()
        RowWriter(stream, ("run",), suffix).write([{"run": name}])
        rows = list(csv.reader(io.StringIO(stream.getvalue()), delimiter=delimiter))
        assert rows[1] == [name.replace("\n", " ")]
    stream = io.StringIO()
    RowWriter(stream, ("run",), ".jsonl").write([{"run": name}])
    assert json.loads(stream.getvalue())["run"] == name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_knows_no_nan(value: float) -> None:
    stream = io.StringIO()
    RowWriter(stream, ("x",), ".jsonl").write([{"x": value}])
    assert stream.getvalue() == '{"x": null}\n'


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.b.jsonl"])
def test_known_suffixes(name: str) -> None:
    check_suffix(Path(name))


@pytest.mark.parametrize("name", ["a", "a.xlsx", "a.json", ".csv", "a.csv.gz", ""])
def test_unknown_suffixes(name: str) -> None:
    with pytest.raises(UsageError, match=r"Supported: \.csv, \.tsv, \.jsonl"):
        check_suffix(Path(name))


class TestLeftByAKilledProcess:
    def test_it_is_removed_unless_its_process_is_alive(self, tmp_path: Path) -> None:
        dead = tmp_path / f".a.csv.{os.getpid() + 1}.tmp"
        dead.write_text("half")
        other = tmp_path / ".b.csv.1.tmp"
        other.write_text("of another target")
        with replacing(tmp_path / "a.csv") as stream:
            remove_temporary(tmp_path / "a.csv")
            stream.write("whole")
        assert (tmp_path / "a.csv").read_text() == "whole"
        assert entries(tmp_path) == [".b.csv.1.tmp", "a.csv"]

    def test_a_link_of_its_name_is_removed_and_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("mine")
        (tmp_path / ".a.csv.1.tmp").symlink_to("mine")
        remove_temporary(tmp_path / "a.csv")
        assert entries(tmp_path) == ["mine"]

    def test_without_flock_its_age_decides(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("localrank_cli.results.write.fcntl.flock", no_flock)
        for name, age in ((".a.csv.1.tmp", 2 * 3600), (".a.csv.2.tmp", 60)):
            (tmp_path / name).touch()
            then = time.time() - age
            os.utime(tmp_path / name, (then, then))
        monkeypatch.setattr("time.time", lambda: 0)  # another host's clock decides
        remove_temporary(tmp_path / "a.csv")
        assert entries(tmp_path) == [".a.csv.2.tmp"]

    def test_a_picture(self, tmp_path: Path) -> None:
        (tmp_path / ".a.png.1.tmp").touch()
        write_bytes(tmp_path / "a.png", b"new")
        assert entries(tmp_path) == ["a.png"]


class TestReplacing:
    def test_the_name_appears_only_at_the_end(self, tmp_path: Path) -> None:
        target = tmp_path / "a.csv"
        with replacing(target) as stream:
            stream.write("hällo\n")
            assert not target.exists()
        assert target.read_bytes() == "hällo\n".encode()
        assert entries(tmp_path) == ["a.csv"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_after_an_error_all_is_as_it_was(
        self, tmp_path: Path, error: type[BaseException]
    ) -> None:
        (tmp_path / "a.csv").write_text("old")

        def fail() -> None:
            with replacing(tmp_path / "a.csv") as stream:
                stream.write("x" * 100_000)
                raise error

        with pytest.raises(error):
            fail()
        assert entries(tmp_path) == ["a.csv"]
        assert (tmp_path / "a.csv").read_text() == "old"

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with (
            pytest.raises(OutputError, match="No such file or directory"),
            replacing(tmp_path / "nope/a.csv"),
        ):
            pass

    def test_names_that_are_no_unicode(self, tmp_path: Path) -> None:
        write_table(tmp_path / "a.csv", [{"run": os.fsdecode(b"r\xff")}])
        assert "r\\udcff," in (tmp_path / "a.csv").read_text()

    def test_a_name_that_cannot_be_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: Path, target: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(OutputError, match=r"a\.csv: cannot be written \(No space left"):
            write_table(tmp_path / "a.csv", ROWS)
        assert entries(tmp_path) == []


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"seed": 3, "name": "ä"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"seed": 3, "name": "ä"}
    assert text.endswith("}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"bad": object()})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text
    assert entries(tmp_path) == ["a.json"]


def test_parquet_gives_back_types_and_values(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    write_table(tmp_path / "a.parquet", ROWS, ("beta",))
    frame = pd.read_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(frame, to_frame(ROWS, header(("beta",))))


def test_parquet_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localrank_cli.results.write.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'localrank\[parquet\]'"):
        check_suffix(Path("a.parquet"))


@pytest.mark.parametrize("there", ["a.csv", "a.csv.json"])
@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
def test_what_exists_is_refused_and_kept(tmp_path: Path, there: str, kind: str) -> None:
    path = tmp_path / there
    if kind == "file":
        path.write_text("old")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=rf"{there}: already exists") as caught:
        refuse_existing(tmp_path / "a.csv")
    assert "--overwrite" in caught.value.advice
    assert entries(tmp_path) == [there]


def test_refuse_existing_lets_a_new_name_pass(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "a.csv")
