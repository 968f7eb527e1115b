"""What does not fit in memory, and that what is proposed in its place fits and runs.

Sizes are counted by hand: the singular values of an n x m Jacobian take five squares of the shorter
side s, and a row, in doubles: 40 s^2 + 8 s bytes. 16 MiB have room for s = 647.
"""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from localrank_cli import analyze
from localrank_cli.errors import BudgetError, SettingsError
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.run.fits import WayOut
from localrank_cli.run.plan import look_at, make_plan
from tests.cli.program import Outcome, invoke
from tests.helpers import ignore

MIB = 2**20
LEAST = "16MiB"

CONVOLUTIONS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.down(self.stem(x).tanh()).tanh().mean((2, 3)))
"""


def convolutions(folder: Path) -> list[str]:
    (folder / "net.py").write_text(CONVOLUTIONS)
    scope: dict[str, Any] = {}
    exec(CONVOLUTIONS, scope)  # the text above
    (folder / "run").mkdir()
    torch.save(scope["Net"]().state_dict(), folder / "run" / "step_1.pt")
    return [str(folder / "run"), "--model", f"{folder}/net.py:Net", "--data", "normal:3x16x16"]


def plain(folder: Path) -> list[str]:
    net = nn.Sequential(nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 3))
    (folder / "run").mkdir()
    torch.save(net.state_dict(), folder / "run" / "step_1.pt")
    return [str(folder / "run"), "--data", "normal:700"]


def decoder(folder: Path) -> list[str]:
    """GPT-2 with 24 tokens of 32 features: 768 entries of the source."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=4, vocab_size=97, n_positions=32, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder / "run" / "checkpoint-1")
    torch.save(torch.randint(0, 97, (2, 24)), folder / "tokens.pt")
    words = ["--model", "hf", "--data", str(folder / "tokens.pt"), "--wrt", "transformer.wte"]
    return [str(folder / "run"), *words]


KINDS = {"convolutions": convolutions, "plain": plain, "decoder": decoder}
# Kind -> how many layers do not fit in 16 MiB, of how many; the largest; the least memory.
REFUSED = {
    "convolutions": ("1 of 3 layers does not fit", "'stem'", "1024 x 768", "22.5 MiB"),
    "plain": ("1 of 2 layers does not fit", "'0'", "700 x 700", "18.7 MiB"),
    "decoder": ("9 of 9 layers do not fit", "h.0.mlp.c_fc", "3072 x 768", "22.5 MiB"),
}
# Kind -> what fits: how many Jacobians, and the shape of the largest.
WAYS = {
    "convolutions": {
        "--memory 23MiB": (3, (1024, 768)),
        "--exclude stem": (2, (384, 768)),
        "--positions each:1": (3, (6, 768)),
        "--positions last": (1, (4, 3)),
        # stem from the input, down from stem, head from down.
        "--wrt previous --positions each:1": (3, (6, 1024)),
        "--wrt previous --positions last": (1, (4, 3)),
        "--output-slice ...,:8": (3, (512, 768)),
    },
    "plain": {
        "--memory 19MiB": (2, (700, 700)),
        "--exclude 0": (1, (3, 700)),
        "--output-slice ...,:512": (2, (512, 700)),
    },
    "decoder": {
        "--memory 23MiB": (9, (3072, 768)),
        # c_fc, 128 x 32: of the triangular factor of its weight, 32 x 32.
        "--positions last": (9, (128, 32)),
        # c_fc from the attention's c_proj.
        "--wrt previous --positions last": (9, (128, 32)),
        "--output-slice ...,:16": (9, (384, 768)),
        "data of 20 tokens for each point (x[:, :20])": (9, (2560, 640)),
    },
}


def options(words: list[str]) -> AnalyzeOptions:
    named = dict(zip(words[1::2], words[2::2], strict=True))
    given: Any = {word.removeprefix("--").replace("-", "_"): value for word, value in named.items()}
    return AnalyzeOptions(checkpoints=(Path(words[0]),), points=2, device="cpu", **given)


def run(*words: str) -> Outcome:
    return invoke(*words, "--points", "2", "--device", "cpu")


def ways(words: list[str]) -> dict[str, WayOut]:
    plan = make_plan(options(words), ignore, refuses=False)
    plan = type(plan)(plan.series, plan.device, 16 * MIB, (), False, False)
    (series,) = plan.series
    return {way.text: way for way in look_at(plan, series).ways_out()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_has_three_lines(kind: str, tmp_path: Path) -> None:
    outcome = run("analyze", *KINDS[kind](tmp_path), "--memory", LEAST)
    assert outcome.code == 1
    lines = outcome.stderr.splitlines()[-3:]
    count, largest, shape, needed = REFUSED[kind]
    assert lines[0] == f"localrank: error: {count} in 16 MiB of memory."
    for word in (largest, shape, needed, "16 MiB"):
        assert word in lines[1]
    assert lines[2].startswith("What fits: --memory ")
    assert " Or: --" in lines[2]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_is_proposed_fits(kind: str, tmp_path: Path) -> None:
    found = ways(KINDS[kind](tmp_path))
    assert {text: (way.n_layers, way.largest.shape) for text, way in found.items()} == WAYS[kind]


# What another way proposes too: test_everything_that_is_proposed_fits knows the shapes of each.
AGAIN = {
    ("convolutions", "--memory 23MiB"),
    ("convolutions", "--positions last"),
    ("convolutions", "--wrt previous --positions each:1"),
    ("decoder", "--positions last"),
    ("plain", "--exclude 0"),
    ("plain", "--output-slice ...,:512"),
}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        pytest.param(kind, text, marks=pytest.mark.long if (kind, text) in AGAIN else ())
        for kind, found in WAYS.items()
        for text in found
        # Whole Jacobians of a decoder take minutes in so little memory.
        if text.startswith("--") and (kind != "decoder" or "--positions" in text)
    ],
)
def test_everything_that_is_proposed_runs(kind: str, text: str, tmp_path: Path) -> None:
    words = KINDS[kind](tmp_path)
    more = shlex.split(text)
    if more[0] == "--wrt":
        words = [word for word in words if word not in {"--wrt", "transformer.wte"}]
    memory = [] if more[0] == "--memory" else ["--memory", LEAST]
    outcome = run("analyze", *words, *more, *memory, "-o", str(tmp_path / "t.csv"))
    assert outcome.code == 0, outcome.stderr
    rows = (tmp_path / "t.csv").read_text().splitlines()[1:]
    assert len(rows) == WAYS[kind][text][0]


def test_fewer_tokens_run(tmp_path: Path) -> None:
    words = decoder(tmp_path)
    torch.save(torch.load(tmp_path / "tokens.pt")[:, :20], tmp_path / "tokens.pt")
    plan = make_plan(options([*words, "--memory", "16MiB"][:-2]), ignore)
    assert plan.series[0].examination.n_in == 640
    plan = type(plan)(plan.series, plan.device, 16 * MIB, (), False, False)
    look_at(plan, plan.series[0]).check()


@pytest.mark.parametrize("positions", ["all", "each:1"])
def test_pairs_and_positions_are_refused_before_any_work(positions: str, tmp_path: Path) -> None:
    """Of a layer with more than 647 features at each position, and as many in its source."""
    net = nn.Sequential(nn.Linear(700, 690), nn.ReLU(), nn.Linear(690, 680))
    torch.save(net.state_dict(), tmp_path / "step_1.pt")
    with pytest.raises(BudgetError, match="2 of 2 layers do not fit") as caught:
        analyze(
            tmp_path, data="normal:700", memory=LEAST, wrt="previous", positions=positions,
            on_error="skip",
        )  # fmt: skip
    # 690 x 700, of which the square of 690 counts: 40 * 690^2 + 8 * 690 = 19,049,520 bytes.
    assert "'0', has a Jacobian of 690 x 700; its reduction needs 18.2 MiB" in str(caught.value)
    assert "--memory 19MiB" in caught.value.advice


@pytest.mark.parametrize("command", ["analyze", "inspect"])
def test_more_memory_than_there_is(command: str, tmp_path: Path) -> None:
    outcome = run(command, *plain(tmp_path), "--memory", "2000000GiB")
    assert outcome.code == 1
    assert "--memory 2000000 GiB: this machine" in outcome.error
    assert "GiB is free. Give at most what is free" in outcome.error


def test_a_submission_is_for_other_machines(tmp_path: Path) -> None:
    words = options([*plain(tmp_path), "--data-scale", "1"][:-2])
    far = AnalyzeOptions(
        checkpoints=words.checkpoints, data=words.data, points=2, memory=2**60, device="cpu"
    )
    make_plan(far, ignore, is_here=False)
    with pytest.raises(SettingsError, match="--memory"):
        make_plan(far, ignore)
