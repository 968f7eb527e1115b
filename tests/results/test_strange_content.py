"""Invalid content with a valid checksum ends in one line that names the file and the key."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from localrank_cli.options.decisive import DECISIVE, PRECISION
from localrank_cli.results.schema import Settings
from tests.cli.program import QUICK, Outcome, invoke, run
from tests.helpers import save_series
from tests.results.spoiled import DEEP, Raw, dumped, put, spoil_json, spoil_line

HUGE = 10**10
ADVICE = "start over with --overwrite"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series, its table, its singular values, and a shard that has one of two checkpoints."""
    place = tmp_path_factory.mktemp("made")
    run = save_series(place / "run", (0, 5))
    words = ("analyze", str(run), *QUICK, "-q")
    kept = ("--spectra", str(place / "S"))
    assert invoke(*words, *kept, "-o", str(place / "ranks.csv")).code == 0
    assert invoke(*words, "--shard", "0/2", "-o", str(place / "shard.csv")).code == 0
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    monkeypatch.chdir(copy)
    return copy


def analyze(*words: str) -> Outcome:
    return invoke("analyze", "run", *QUICK, "-q", "-o", "ranks.csv", *words)


def spoiled(part: str, place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda line: put(line[part], place, value)


HEADS = [
    ("run", 7, "run: expected a string, got 7"),
    ("run", ..., "run: is missing"),
    ("kind", 1, "kind: expected a string, got 1"),
    ("kind", ..., "kind: is missing"),
    ("step", 5.0, "step: expected an integer, got 5.0"),
    ("step", "5", "step: expected an integer, got '5'"),
    ("step", True, "step: expected an integer, got true"),
    ("step", None, "expected a step where status is ok"),
    ("step", -1, "step: expected at least 0, got -1"),
    ("step", 2**63, "step: expected less than"),
    ("finite", 1, "finite: expected true or false, got 1"),
    ("finite", Raw("NaN"), "expected finite numbers, got NaN"),
    ("status", "unreadable", "finite: expected false where status is unreadable, got true"),
    ("points", "x", "points: expected a list, got 'x'"),
    ("points", [0], "points: expected at least 2 items, got a list of 1"),
    ("points", [3, 1], "points: expected two integers, the first below the second, got [3, 1]"),
    ("points", [0, 1.0], "points[1]: expected an integer, got 1.0"),
    ("facts", [], "facts: expected keys with values, got a list of 0"),
    ("facts", Raw(DEEP), "nested more than"),
    ("facts.bytes", "many", "facts.bytes: expected an integer, got 'many'"),
    ("facts.bytes", ..., "facts: expected bytes and mtime_ns beside sha256_of_tensors"),
    ("facts.seconds", Raw("1e999"), "expected finite numbers, got 1e999"),
    ("facts.epoch", 1.0, "facts.epoch: expected an integer, got 1.0"),
    ("facts", Raw('{"bytes":1,"bytes":2}'), "the key 'bytes' appears twice"),
]
LAYER = "layers.0."
BODIES = [
    ("layers", ..., "layers: is missing"),
    ("layers", [], "layers: expected at least one"),
    ("layers", {}, "layers: expected a list, got no keys"),
    ("layers.0", 3, "layers[0]: expected keys with values, got 3"),
    ("message", 3, "message: expected a string, got 3"),
    (LAYER + "points", HUGE, "layers[0]: expected 10000000000 values in soft.effective_rank"),
    (LAYER + "points", 5.0, "layers[0].points: expected an integer, got 5.0"),
    (LAYER + "points", "5", "layers[0].points: expected an integer, got '5'"),
    (LAYER + "n_in", ..., "layers[0].n_in: is missing"),
    (LAYER + "wrt", "0", "layers[0].wrt: expected '', as in the settings of its run, got '0'"),
    (LAYER + "dtype", "float32", "layers[0].dtype: expected 'float64', as in the settings of its"),
    (LAYER + "input_metric", "data", "layers[0].input_metric: expected 'identity', as in the"),
    (LAYER + "cells", Raw(DEEP), "nested more than"),
    (LAYER + "cells", {"x": [1]}, "layers[0].cells.x: expected a string"),
    (LAYER + "cells", {"loss": "low"}, "layers[0].cells.loss: expected a number, got 'low'"),
    (LAYER + "cells", {"x": 2**63}, "layers[0].cells.x: expected an integer of 64 bits"),
    (LAYER + "cells", {"n_cov": 2**63}, "layers[0].cells.n_cov: expected less than"),
    (
        LAYER + "cells",
        {"local_rank": 99.0},
        "layers[0].cells: the table already has a column 'local_rank'",
    ),
    (LAYER + "cells", {"step": 1}, "layers[0].cells: the table already has a column 'step'"),
    (LAYER + "cells", {"x": True}, "layers[0].cells.x: expected a string"),
    (LAYER + "failed", [7], "layers[0]: expected 4 values in soft.effective_rank"),
    (LAYER + "failed", [HUGE], "layers[0]"),
    (LAYER + "ranks", [], "layers[0].ranks: expected at least 1 items, got a list of 0"),
    (LAYER + "ranks.0.atol", "0.01", "layers[0].ranks[0].atol: expected a number, got '0.01'"),
    (LAYER + "ranks.0.atol", Raw("NaN"), "layers[0].ranks[0].atol: expected a finite number"),
    (LAYER + "ranks.0.rtol", -1, "layers[0].ranks[0].rtol: expected at least 0, got -1"),
    (LAYER + "ranks.0.atol", 0.5, "layers[0].ranks: expected 'atol=0.01', as in the settings of"),
    (LAYER + "ranks.0.rtol", 0.1, "ranks[0]: expected either atol or rtol other than 0, got atol"),
    (LAYER + "ranks.0.atol", 0.0, "ranks[0]: expected either atol or rtol other than 0, got atol"),
    (
        LAYER + "ranks",
        lambda ranks: 2 * ranks,
        "ranks: expected 'atol=0.01', as in the settings of its",
    ),
    (
        "layers",
        lambda layers: layers[:1],
        "layers: expected the layers '0, 2', as in the settings of its",
    ),
    (
        "layers",
        lambda layers: layers[::-1],
        "layers: expected the layers '0, 2', as in the settings of",
    ),
    ("layers.1.layer", "0", "layers[1].layer: '0' appears twice"),
    (
        "layers.1.layer",
        "3",
        "layers: expected the layers '0, 2', as in the settings of its run, got",
    ),
    (LAYER + "ranks.0.counts", [1, 2], "layers[0]: expected 5 values in ranks[0].counts"),
    (LAYER + "ranks.0.counts.1", 1.0, "ranks[0].counts[1]: expected an integer, got 1.0"),
    (LAYER + "ranks.0.counts.1", 99, "expected counts up to 3 in ranks[0].counts, got 99"),
    (LAYER + "ranks.0.near", [5], "expected different numbers below 5 in ranks[0].near"),
    (LAYER + "soft.stable_rank", [1.0], "layers[0]: expected 5 values in soft.stable_rank"),
    (LAYER + "soft.stable_rank.0", Raw("NaN"), "soft.stable_rank[0]: expected at least 0, got nan"),
    (LAYER + "soft.stable_rank.0", None, "soft.stable_rank[0]: expected a number, got null"),
    (LAYER + "soft", Raw('{"a":[],"a":[]}'), "the key 'a' appears twice"),
]
SETTINGS = [
    ("run", "other", "run: expected 'run' as in its head, got 'other'"),
    ("point_indices", ..., "point_indices: is missing"),
    ("point_indices", HUGE, "point_indices: expected a list, got 10000000000"),
    ("point_indices.0", 1.0, "point_indices[0]: expected an integer, got 1.0"),
    ("tolerances", "atol=0.01", "tolerances: expected a list, got 'atol=0.01'"),
    ("noise", "1", "noise: expected a number, got '1'"),
    ("noise", Raw("Infinity"), "noise: expected a finite number, got inf"),
    ("optional_columns", [1], "optional_columns[0]: expected a string, got 1"),
    ("optional_columns", ["epoch", "epoch"], "optional_columns: 'epoch' appears twice"),
    ("optional_columns", ["atol"], "optional_columns: the table already has a column 'atol'"),
    ("columns", {"loss": 1.0}, "columns: the table already has a column 'loss'"),
    ("columns", {"rank_min": 1}, "columns: the table already has a column 'rank_min'"),
    ("layers", [{"number": 1}], "layers[0].name: is missing"),
    ("columns", {"x": []}, "columns.x: expected a string"),
    ("columns", {"x": None}, "columns.x: expected a string, an integer or a number, got null"),
    ("layers", Raw(DEEP), "nested more than"),
    ("model_arguments", {"x": 1}, "model_arguments.x: expected a string, got 1"),
    ("data_values_sha256", ["a"], "data_values_sha256: expected a string, got a list of 1"),
    ("precision", 64, "precision: expected a string, got 64"),
]


def ids(cases: list[tuple[str, Any, str]]) -> list[str]:
    return [f"{path}: {sentence}"[:60] for path, _, sentence in cases]


def check_journal(outcome: Outcome, sentence: str, name: str = "ranks.csv.journal") -> None:
    assert outcome.code == 1
    (line,) = outcome.stderr.splitlines()[-1:]
    assert f"{name}: line " in outcome.error
    assert sentence in line, line
    assert ADVICE in line
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.count(sentence) == 1


@pytest.mark.parametrize(("path", "value", "sentence"), HEADS, ids=ids(HEADS))
def test_the_head_of_a_checkpoint(place: Path, path: str, value: Any, sentence: str) -> None:
    spoil_line(place / "ranks.csv.journal", "checkpoint", spoiled("head", path, value))
    check_journal(analyze(), sentence)
    check_journal(invoke("merge", "ranks.csv", "-o", "m.csv"), sentence)


@pytest.mark.parametrize(("path", "value", "sentence"), BODIES, ids=ids(BODIES))
def test_the_body_of_a_checkpoint(place: Path, path: str, value: Any, sentence: str) -> None:
    spoil_line(place / "ranks.csv.journal", "checkpoint", spoiled("body", path, value))
    check_journal(analyze(), sentence)
    check_journal(invoke("merge", "ranks.csv", "-o", "m.csv"), sentence)
    assert not Path("m.csv").exists()


def test_every_setting_that_is_compared_is_checked() -> None:
    assert {*DECISIVE, PRECISION} <= Settings.model_fields.keys()


@pytest.mark.parametrize(("path", "value", "sentence"), SETTINGS, ids=ids(SETTINGS))
def test_the_settings(place: Path, path: str, value: Any, sentence: str) -> None:
    spoil_line(place / "ranks.csv.journal", "settings", spoiled("body", path, value))
    check_journal(analyze(), sentence)
    check_journal(invoke("merge", "ranks.csv", "-o", "m.csv"), sentence)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("index", 5, "expected an index below count 2, got 5"),
        ("count", 0, "count: expected at least 1, got 0"),
        ("n_units", "2", "n_units: expected an integer, got '2'"),
        ("own", [["run"]], "own[0]"),
        ("own", 3, "own: expected a list, got 3"),
        ("own.0.2", [1], "own[0][2]: expected at least 2 items, got a list of 1"),
        ("units_sha256", ..., "units_sha256: is missing"),
    ],
)
def test_the_line_of_a_shard(place: Path, path: str, value: Any, sentence: str) -> None:
    spoil_line(place / "shard.csv.journal", "shard", spoiled("body", path, value))
    check_journal(invoke("merge", "shard.csv", "-o", "m.csv"), sentence, "shard.csv.journal")
    words = ("analyze", "run", *QUICK, "-q", "--shard", "0/2", "-o", "shard.csv")
    check_journal(invoke(*words), sentence, "shard.csv.journal")
    assert invoke(*words, "--overwrite").code == 0


@pytest.mark.timeout(60)
def test_more_shards_than_can_be_listed(place: Path) -> None:
    def change(line: dict[str, Any]) -> None:
        line["body"] |= {"count": HUGE, "n_units": HUGE}

    spoil_line(place / "shard.csv.journal", "shard", change)
    outcome = invoke("merge", "shard.csv", "-o", "m.csv")
    assert (outcome.code, "1 of 10000000000 shards were found" in outcome.error) == (1, True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no JSON", "head: is missing"),
        ('"head":nonsense}', "Expecting value"),
        ('"head":7,"body":{}}', "head: expected keys with values, got 7"),
        (f'"head":{DEEP},"body":{{}}}}', "nested more than"),
        ('"head":{"kind":"checkpoint","kind":"x"},"body":{}}', "the key 'kind' appears twice"),
    ],
)
def test_a_line_that_is_no_record(place: Path, text: str, sentence: str) -> None:
    spoil_line(place / "ranks.csv.journal", "checkpoint", lambda line: text)
    check_journal(analyze(), sentence)


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ('"body":[}', "Expecting value"),
        ('"bodi":{}}', "body: is missing"),
        ('"body":{},"body":{}}', "the key 'body' appears twice"),
        (f'"body":{DEEP}}}', "nested more than"),
    ],
)
def test_a_line_without_a_body(place: Path, end: str, sentence: str) -> None:
    spoil_line(
        place / "ranks.csv.journal",
        "checkpoint",
        lambda line: f'"head":{dumped(line["head"])},{end}',
    )
    check_journal(analyze(), sentence)


def test_what_the_message_suggests_works(place: Path) -> None:
    whole = Path("ranks.csv").read_text()
    journal = place / "ranks.csv.journal"
    spoil_line(journal, "checkpoint", spoiled("body", LAYER + "points", "5"))
    number = int(analyze().error.split("line ")[1].split(":")[0])
    strange = journal.read_bytes()
    lines = strange.splitlines(keepends=True)
    del lines[number - 1]
    journal.write_bytes(b"".join(lines))
    assert analyze().code == 0
    assert Path("ranks.csv").read_text() == whole
    journal.write_bytes(strange)
    assert analyze("--overwrite").code == 0
    assert Path("ranks.csv").read_text() == whole


@pytest.mark.parametrize("command", ["analyze", "merge"])
def test_numbers_without_their_settings(place: Path, command: str) -> None:
    journal = place / "ranks.csv.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if b'"kind":"settings"' not in line))
    outcome = analyze() if command == "analyze" else invoke("merge", "ranks.csv", "-o", "m.csv")
    assert outcome.code == 1
    assert (
        "ranks.csv.journal: does not say which settings decided the numbers of 'run'"
        in outcome.error
    )
    assert analyze("--overwrite").code == 0


def test_fewer_points_than_the_series_has(place: Path) -> None:
    def change(line: dict[str, Any]) -> None:
        for layer in line["body"]["layers"]:
            layer["points"] = 3
            for ranks in layer["ranks"]:
                ranks["counts"] = ranks["counts"][:3]
            layer["soft"] = {name: values[:3] for name, values in layer["soft"].items()}

    spoil_line(place / "ranks.csv.journal", "checkpoint", change)
    for outcome in (analyze(), invoke("merge", "ranks.csv", "-o", "m.csv")):
        assert outcome.code == 1
        assert "has values at 3 points, but the series has 5" in outcome.error


def test_keys_that_a_later_version_may_write_are_let_through(place: Path) -> None:
    before = Path("ranks.csv").read_text()
    for kind in ("settings", "checkpoint"):
        for part in ("head", "body"):
            spoil_line(place / "ranks.csv.journal", kind, spoiled(part, "later", [1]))
    assert analyze().code == 0
    assert Path("ranks.csv").read_text() == before


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("series", 7, "series: expected a list, got 7"),
        ("series.0.run", 7, "series[0].run: expected a string, got 7"),
        ("series.0.layers", Raw(DEEP), "nested more than"),
        ("command", "x", "command: expected a list, got 'x'"),
        ("complete", "yes", "complete: expected true or false, got 'yes'"),
        ("localrank_manifest", 1.0, "localrank_manifest: expected an integer, got 1.0"),
        ("versions", Raw('{"a":1,"a":1}'), "the key 'a' appears twice"),
    ],
)
@pytest.mark.parametrize("command", ["report", "plot"])
def test_a_manifest(place: Path, path: str, value: Any, sentence: str, command: str) -> None:
    if command == "plot":
        pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    spoil_json(place / "ranks.csv.json", path, value)
    out = "p.html" if command == "report" else "p.png"
    outcome = invoke(command, "ranks.csv", "-o", out)
    assert outcome.code == 1
    assert "ranks.csv.json: is not a valid manifest: " in outcome.error
    assert sentence in outcome.error
    Path("ranks.csv.json").unlink()
    assert invoke(command, "ranks.csv", "-o", out).code == 0


@pytest.mark.parametrize("text", ["{", "7", "[1]", DEEP, '{"a": NaN}'])
def test_a_file_of_another_program_in_place_of_the_manifest(place: Path, text: str) -> None:
    Path("ranks.csv.json").write_text(text)
    assert invoke("report", "ranks.csv", "-o", "p.html").code == 0


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("shards", "2", "shards: expected an integer, got '2'"),
        ("shards", 2.0, "shards: expected an integer, got 2.0"),
        ("n_units", -1, "n_units: expected at least 0, got -1"),
        ("words", "analyze", "words: expected a list, got 'analyze'"),
        ("series", ..., "series: is missing"),
        ("series.0.run", 1, "series[0].run: expected a string, got 1"),
        (
            "series.0.settings.data_values_sha256",
            ["a"],
            "settings.data_values_sha256: expected a string, got a list of 1",
        ),
        ("series.0.settings", [], "series[0].settings: expected keys with values"),
        ("series.0.settings.layers", Raw(DEEP), "nested more than"),
        ("series.0.checkpoints", 10**10, "series[0].checkpoints: expected a list"),
        ("series.0.checkpoints.0", ["a"], "series[0].checkpoints[0][1]: is missing"),
        ("series.0.checkpoints.0", "a", "series[0].checkpoints[0]: expected a list, got 'a'"),
        ("series.0.checkpoints.0.0", 1, "series[0].checkpoints[0][0]: expected a string, got 1"),
        ("series.0.checkpoints.0.1", 1.0, "checkpoints[0][1]: expected an integer, got 1.0"),
        ("series.0.checkpoints.0.4", 1, "checkpoints[0][4]: expected true or false, got 1"),
        ("series.0", Raw('{"run":"a","run":"b"}'), "the key 'run' appears twice"),
        ("localrank_plan", 2, "is not a plan file of this version"),
        ("localrank_plan", ..., "is not a plan file of this version"),
    ],
)
def test_a_plan_file(place: Path, path: str, value: Any, sentence: str) -> None:
    Path("plan.json").write_text(json.dumps(plan_content(place)))
    words = ("analyze", "run", *QUICK, "-q", "--plan", "plan.json", "-o", "new.csv")
    assert invoke(*words).code == 0
    spoil_json(place / "plan.json", path, value)
    for outcome in (
        invoke(*words),
        invoke("merge", "new.csv", "--plan", "plan.json", "-o", "m.csv"),
    ):
        assert outcome.code == 1
        assert outcome.error.startswith("plan.json: ")
        assert sentence in outcome.error
        assert outcome.error.endswith("Submit again; finished checkpoints are kept.")


def plan_content(place: Path) -> dict[str, Any]:
    manifest = json.loads((place / "ranks.csv.json").read_text())
    (series,) = manifest["series"]
    stats = [(path.name, path.stat()) for path in sorted((place / "run").iterdir())]
    series["folder"] = str(place / "run")
    return {
        "localrank_plan": 1, "interpreter": "python", "folder": str(place), "words": ["analyze"],
        "output": str(place / "new.csv"), "shards": 2, "n_units": 2,
        "series": [{
            "run": "run", "folder": str(place / "run"), "settings": series,
            "checkpoints": [
                [name, int(name[5]), stat.st_size, stat.st_mtime_ns, False] for name, stat in stats
            ],
        }],
    }  # fmt: skip


def test_submitting_again_repairs_an_invalid_plan(place: Path) -> None:
    words = ("submit", "run", *QUICK, "-o", "new.csv", "--workers", "2")
    folder = place / "new.csv.shards"
    folder.mkdir()
    content = plan_content(place) | {"shards": "2"}
    (folder / "plan.json").write_text(json.dumps(content))
    outcome = run(*words)
    assert outcome.code == 0, outcome.stderr
    assert "plan.json: shards: expected an integer, got '2'." in outcome.stderr
    assert Path("new.csv").read_text() == Path("ranks.csv").read_text()


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("format", "1", "has format '1', and this version reads 1"),
        ("entries", [], "entries: expected layers of one checkpoint"),
        ("entries", 7, "entries: expected a list, got 7"),
        ("entries.0.n_in", "4", "entries[0].n_in: expected an integer, got '4'"),
        ("entries.0.n_out", 10**9, "expected singular values of shape"),
        ("entries.0.step", 5.0, "entries[0].step: expected an integer, got 5.0"),
        ("entries.0.step", 77, "No such tensor|does not contain|tensor"),
        ("entries.0.cells", {"loss": "x"}, "entries[0].cells.loss: expected a number, got 'x'"),
        ("entries.0.cells", {"n_in": 9}, "entries[0].cells: the table already has a column 'n_in'"),
        ("entries.0.layer_index", 1, "entries[0].layer_index: expected 0"),
        (
            "entries.1",
            ...,
            "entries: expected the layers '0, 2', as in the settings of its run, got",
        ),
        ("entries.1.layer", "0", "entries: expected the layers '0, 2', as in the settings of its"),
        ("settings.optional_columns", ["step"], "the table already has a column 'step'"),
        ("entries.0.cells", Raw(DEEP), "nested more than"),
        ("settings", ..., "settings.run: is missing"),
        ("settings.noise", "1", "settings.noise: expected a number, got '1'"),
        ("settings.noise", ..., "settings.noise: is missing"),
        ("settings.run", "other", "entries: expected layers of one checkpoint of 'other'"),
        ("settings.point_indices", [0], "expected singular values of shape (1, "),
        ("facts", 3, "facts: expected keys with values, got 3"),
        ("facts", Raw('{"bytes":1,"bytes":1}'), "the key 'bytes' appears twice"),
    ],
)
def test_kept_singular_values(place: Path, path: str, value: Any, sentence: str) -> None:
    file = place / "S/run/step_5.safetensors"
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        about = json.loads(opened.metadata()["localrank_spectra"])
    put(about, path, value)
    save_file(tensors, file, {"localrank_spectra": dumped(about)})
    outcome = invoke("rethreshold", "S", "-o", "t.csv")
    assert outcome.code == 1
    assert "S/run/step_5.safetensors: " in outcome.error
    assert any(one in outcome.error for one in sentence.split("|")), outcome.error
    assert not list(place.glob("t.csv*"))


def test_a_partial_merge_is_not_taken_for_the_whole(place: Path) -> None:
    words = ("analyze", "run", *QUICK, "-q", "--shard", "0/4", "-o", "part.csv")
    assert invoke(*words).code == 0  # two points of the first checkpoint
    assert invoke("merge", "part.csv", "--partial", "-o", "m.csv").code == 0
    for outcome, name in (
        (invoke("analyze", "run", *QUICK, "-q", "-o", "m.csv"), "m.csv"),
        (invoke("merge", "m.csv", "-o", "again.csv"), "m.csv.journal"),
    ):
        assert outcome.code == 1
        assert f"/{name}: " in outcome.error
        assert "has values at 2 points, but the series has 5" in outcome.error
