"""What changes under the program's hands, between the plan and the last checkpoint."""

import io
from pathlib import Path

import pytest
import torch

from tests.cli.program import QUICK, Outcome, invoke
from tests.helpers import NET_CODE, net_weights


def series(tmp_path: Path, deed: str) -> tuple[Path, tuple[str, ...]]:
    """Three checkpoints; while the second is computed, its model does the deed."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "out").mkdir()
    code = (
        "        if self.a.bias[0] > 9 and not Path('DONE').exists():\n"
        "            Path('DONE').touch()\n"
        f"            {deed}\n"
        "        return self.b"
    ).replace("DONE", str(tmp_path / "done"))
    other = io.BytesIO()
    torch.save({"x": torch.ones(1)}, other)
    head = "import os, shutil\nfrom pathlib import Path\n"
    head += f"RUN, OTHER = Path({str(run)!r}), {other.getvalue()!r}\n"
    (tmp_path / "net.py").write_text(head + NET_CODE.replace("        return self.b", code))
    for step in (1, 2, 3):
        bias = torch.full((3,), 10.0 if step == 2 else 0.0)
        torch.save(net_weights(step) | {"a.bias": bias}, run / f"step_{step}.pt")
    return run, (*QUICK, "--model", f"{tmp_path}/net.py:Net")


def analyze(run: Path, words: tuple[str, ...], *more: str) -> Outcome:
    return invoke("analyze", str(run), *words, *more, "-o", str(run.parent / "out/ranks.csv"))


def steps(run: Path) -> set[str]:
    lines = (run.parent / "out/ranks.csv").read_text().splitlines()[1:]
    return {line.split(",")[2] for line in lines if ",ok," in line}


SPOILS = {
    "vanishes": ("(RUN / 'step_3.pt').unlink()", "No such file or directory"),
    "is cut off": ("os.truncate(RUN / 'step_3.pt', 700)", "not a readable torch file"),
    "is emptied": ("os.truncate(RUN / 'step_3.pt', 0)", "the file is empty"),
    "becomes a folder": (
        "(RUN / 'step_3.pt').unlink(); (RUN / 'step_3.pt').mkdir()", "Is a directory",
    ),
    "gets other tensors": (
        "(RUN / 'step_3.pt').write_bytes(OTHER)", "step_3.pt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILS)
def test_the_next_checkpoint(tmp_path: Path, what: str) -> None:
    deed, message = SPOILS[what]
    run, words = series(tmp_path, deed)
    outcome = analyze(run, words)
    assert outcome.code == 1, outcome.stderr
    assert message in outcome.error
    assert "step_3.pt" in outcome.error
    assert steps(run) == {"1", "2"}


# Each of them stops the run in the test above; here a file that is not there, and one that is.
SKIPPED = {"vanishes", "gets other tensors"}


@pytest.mark.parametrize(
    "what",
    [pytest.param(what, marks=() if what in SKIPPED else pytest.mark.long) for what in SPOILS],
)
def test_the_next_checkpoint_is_skipped(tmp_path: Path, what: str) -> None:
    run, words = series(tmp_path, SPOILS[what][0])
    outcome = analyze(run, words, "--on-error", "skip")
    assert outcome.code == 3, outcome.stderr
    assert "left out" in outcome.stderr
    assert steps(run) == {"1", "2"}


def test_a_skipped_checkpoint_that_is_repaired_is_computed(tmp_path: Path) -> None:
    run, words = series(tmp_path, SPOILS["is cut off"][0])
    assert analyze(run, words, "--on-error", "skip").code == 3
    torch.save(net_weights(3), run / "step_3.pt")
    assert analyze(run, words).code == 0
    assert steps(run) == {"1", "2", "3"}


def test_the_checkpoint_at_hand(tmp_path: Path) -> None:
    """Its numbers could be of either: they are not kept."""
    run, words = series(tmp_path, "os.utime(RUN / 'step_2.pt', (1, 1))")
    outcome = analyze(run, words)
    assert outcome.code == 1
    assert "step_2.pt (step 2): changed while it was read" in outcome.error
    assert steps(run) == {"1"}
    assert analyze(run, words).code == 0
    assert steps(run) == {"1", "2", "3"}


def test_the_whole_series(tmp_path: Path) -> None:
    run, words = series(tmp_path, "shutil.rmtree(RUN)")
    outcome = analyze(run, words)
    assert outcome.code == 1
    assert "No such file or directory" in outcome.error
    assert steps(run) == {"1"}


def test_the_outputs_folder(tmp_path: Path) -> None:
    run, words = series(tmp_path, "shutil.rmtree(RUN.parent / 'out')")
    outcome = analyze(run, words)
    assert outcome.code == 1
    assert "out/ranks.csv" in outcome.error
    assert "cannot be written" in outcome.error
