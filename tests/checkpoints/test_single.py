"""A single checkpoint needs no step, and files without weights are no checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli import analyze
from localrank_cli.checkpoints.series import find_checkpoints
from localrank_cli.errors import LocalrankError, SettingsError, UnreadableError
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.run.follow import Watch
from localrank_cli.run.headers import HeaderContext, Headers
from tests.checkpoints.dcp_writer import save_dcp
from tests.cli.program import invoke
from tests.helpers import ignore, save_series, weights

DATA = ("--data", "normal:4", "--points", "1")


def save(path: Path, seed: int = 0, **beside: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(weights(seed=seed), path)
    else:
        torch.save({"model": weights(seed=seed), **beside}, path)
    return path


def steps(*paths: Path, **options: Any) -> list[int]:
    table = analyze(list(paths), data="normal:4", points=1, layers="0", **options)
    return table["step"].tolist()


class TestASingleCheckpoint:
    @pytest.mark.parametrize(
        "name",
        ["model.pt", "best.ckpt", "final.safetensors", "a b.pth", "best/model.pt", "llama-7b.bin"],
    )
    def test_any_name_is_step_0_with_a_note(self, tmp_path: Path, name: str) -> None:
        save(tmp_path / "run" / name)
        outcome = invoke("analyze", str(tmp_path / "run"), *DATA, "-o", str(tmp_path / "x.csv"))
        assert outcome.code == 0, outcome.stderr
        shown = "best" if "/" in name else name
        assert f"{shown}: no step was found, so it is step 0" in outcome.stderr

    def test_named_among_others(self, tmp_path: Path) -> None:
        save_series(tmp_path)
        assert steps(save(tmp_path / "final.pt", 9)) == [0]

    def test_a_folder_of_any_name(self, tmp_path: Path) -> None:
        save_dcp(tmp_path / "best", {"model": weights()})
        assert steps(tmp_path / "best") == [0]
        assert steps(tmp_path) == [0]

    def test_a_step_counts(self, tmp_path: Path) -> None:
        assert steps(save(tmp_path / "final.pt", step=70)) == [70]
        assert steps(save(tmp_path / "last.pt", epoch=7)) == [7]

    @pytest.mark.parametrize("options", [{"step_from": "name"}, {"step_regex": r"it(\d+)"}])
    def test_not_where_the_user_says_where_the_step_is(
        self, tmp_path: Path, options: dict[str, str]
    ) -> None:
        with pytest.raises(SettingsError, match=r"no step was found|finds no step in the name"):
            steps(save(tmp_path / "model.pt"), **options)

    def test_not_beside_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        save(tmp_path / "model.pt")
        (tmp_path / "step_100.pt").write_bytes(b"x")
        with pytest.raises(SettingsError, match=r"no step was found for model\.pt"):
            steps(tmp_path, on_error="skip")

    @pytest.mark.parametrize("gone", [False, True])
    def test_others_are_not_added_to_it(self, tmp_path: Path, gone: bool) -> None:
        only = save(tmp_path / "run/model.pt")
        words = ("analyze", str(tmp_path / "run"), *DATA, "-o", str(tmp_path / "x.csv"))
        assert invoke(*words).code == 0
        assert invoke(*words).code == 0  # the same again
        table = (tmp_path / "x.csv").read_bytes()
        save(tmp_path / "run/step_100.pt", 1)
        if gone:
            only.unlink()
        outcome = invoke(*words)
        assert outcome.code == 1
        expected = "the unit of the steps" if gone else "no step was found for model.pt"
        assert expected in outcome.stderr
        assert (tmp_path / "x.csv").read_bytes() == table

    def test_others_that_follow_are_refused(self, tmp_path: Path) -> None:
        save(tmp_path / "model.pt")
        first = Headers(find_checkpoints(tmp_path, [], "", []), trust_pickle=False)
        assert [step for _, step in first.steps(ignore)] == [0]
        later = find_checkpoints(tmp_path, [save(tmp_path / "step_100.pt", 1)], "", [])
        second = Headers(later, trust_pickle=False, context=HeaderContext(earlier=first.scheme))
        with pytest.raises(
            SettingsError, match="so far it holds 0, since there is no step"
        ) as caught:
            second.steps(ignore)
        assert "step_0" in caught.value.advice


class TestNoCheckpoints:
    @pytest.mark.cover(1)
    @pytest.mark.parametrize(
        "content",
        [
            torch.ones(8, 4),
            [torch.ones(8, 4), torch.ones(8)],
            {"losses": [1.0, 2.0]},
            {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
            {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3},
            {"x": torch.ones(8, 4), "y": torch.ones(8)},
            {"train": {"x": torch.ones(8, 4)}, "test": {"x": torch.ones(2, 4)}},
        ],
    )
    @pytest.mark.parametrize("command", ["analyze", "inspect"])
    def test_a_file_without_weights_is_left_out(
        self, tmp_path: Path, content: object, command: str
    ) -> None:
        torch.save(content, save_series(tmp_path / "run") / "inputs.pt")
        output = ("-o", str(tmp_path / "x.csv")) if command == "analyze" else ()
        outcome = invoke(command, str(tmp_path / "run"), *DATA, *output)
        assert outcome.code == 0, outcome.stderr
        (note,) = (line for line in outcome.stderr.splitlines() if "inputs.pt" in line)
        assert "note: " in note
        assert note.endswith("; it is left out")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("other.pt", {"weight": torch.ones(3, 4), "bias": torch.ones(3)}),
            ("other.pt", {"0.weight": torch.ones(3, 4), "x": torch.ones(3)}),
            ("step_7.pt", {"x": torch.ones(3, 4)}),
            ("best.pt", {"x": torch.ones(3, 4)}),
            ("other.pt", {"x": torch.ones(3, 4), "epoch": 7}),
        ],
    )
    def test_where_it_may_be_a_checkpoint_it_stays_an_error(
        self, tmp_path: Path, name: str, content: object
    ) -> None:
        torch.save(content, save_series(tmp_path / "run") / name)
        outcome = invoke("analyze", str(tmp_path / "run"), *DATA)
        assert outcome.code == 1
        assert name in outcome.error

    def test_also_beside_a_single_checkpoint(self, tmp_path: Path) -> None:
        save(tmp_path / "model.pt")
        torch.save(torch.ones(3), tmp_path / "inputs.pt")
        assert steps(tmp_path) == [0]
        assert steps(*tmp_path.iterdir()) == [0]

    def test_alone_it_is_refused(self, tmp_path: Path) -> None:
        torch.save(torch.ones(3), tmp_path / "inputs.pt")
        with pytest.raises(UnreadableError, match=r"inputs\.pt: holds a Tensor"):
            steps(tmp_path)

    @pytest.mark.parametrize(
        "content", [{"a": {"b": weights(), "c": weights()}}, {"x": [weights(), weights()]}]
    )
    def test_weights_that_are_not_found_stay_an_error(
        self, tmp_path: Path, content: object
    ) -> None:
        torch.save(content, save_series(tmp_path) / "step_7.pt")
        with pytest.raises(LocalrankError, match=r"step_7\.pt"):
            steps(tmp_path)

    def test_a_damaged_file_stays_an_error(self, tmp_path: Path) -> None:
        (save_series(tmp_path) / "inputs.pt").write_bytes(b"x" * 100)
        with pytest.raises(UnreadableError, match=r"inputs\.pt"):
            steps(tmp_path)


class TestResourceForks:
    def test_in_the_series(self, tmp_path: Path) -> None:
        save_series(tmp_path)
        for name in ("step_0.safetensors", "step_0.pt", "model.safetensors.index.json"):
            (tmp_path / f"._{name}").write_bytes(b"\0\5\x16\7" + bytes(120))
        assert steps(tmp_path) == [0, 5, 10]

    def test_in_the_folder_of_a_checkpoint(self, tmp_path: Path) -> None:
        save(tmp_path / "step_5/weights.pt")
        (tmp_path / "step_5/._weights.pt").write_bytes(bytes(120))
        assert steps(tmp_path) == [5]


class TestSeveralFilesInAFolder:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        for step in (0, 5):
            place = tmp_path / "run" / f"step_{step}"
            for seed, name in enumerate(("generator.pt", "discriminator.pt")):
                save(place / name, seed=10 * step + seed)
        return tmp_path / "run"

    def test_it_names_them_and_the_advice_works(self, run: Path, tmp_path: Path) -> None:
        outcome = invoke("analyze", str(run), *DATA)
        assert "step_0: holds 2 weights files (discriminator.pt, generator.pt)" in outcome.error
        norms = []
        for name in ("generator", "discriminator"):
            assert f"--pattern '*/{name}.pt'" in outcome.error
            table = analyze(run, data="normal:4", points=1, layers="0", pattern=f"*/{name}.pt")
            assert table["step"].tolist() == [0, 5]
            norms += table["jacobian_norm"].tolist()
        saved = [
            torch.load(run / f"step_{step}/{name}.pt")["model"]["0.weight"].double().norm().item()
            for name in ("generator", "discriminator") for step in (0, 5)
        ]  # fmt: skip
        # The norm of 12 numbers, computed twice in float64.
        assert norms == pytest.approx(saved, rel=1e-12)

    def test_not_where_only_one_holds_weights(self, tmp_path: Path) -> None:
        for step in (0, 5):
            save(tmp_path / f"step_{step}/net.pt")
            torch.save(torch.ones(3), tmp_path / f"step_{step}/batch.pt")
        assert steps(tmp_path) == [0, 5]

    def test_one_among_others_is_not_left_out(self, tmp_path: Path) -> None:
        save(tmp_path / "step_0.pt")
        for name in ("a.pt", "b.pt"):
            save(tmp_path / "step_5" / name)
        with pytest.raises(UnreadableError, match=r"step_5: holds 2 weights files"):
            steps(tmp_path)

    def test_the_other_one_is_not_added_to_a_table(self, run: Path, tmp_path: Path) -> None:
        words = ("analyze", str(run), *DATA, "-o", str(tmp_path / "x.csv"), "--pattern")
        assert invoke(*words, "step_0/generator.pt").code == 0
        assert "step_0" in invoke(*words, "*/discriminator.pt").error

    def test_a_pattern_that_no_folder_fits(self, run: Path) -> None:
        outcome = invoke("analyze", str(run), *DATA, "--pattern", "*/c.pt")
        assert "holds no checkpoint that matches --pattern '*/c.pt'" in outcome.error

    def test_under_follow(self, run: Path) -> None:
        options = AnalyzeOptions(
            checkpoints=(run,), data="normal:4", points=1, device="cpu", pattern="*/generator.pt"
        )
        plan = Watch(options, ignore, lambda _: None).first_plan()
        assert [one.step for one in plan.series[0].checkpoints] == [0, 5]


class TestWeightsInFoldersOfACheckpoint:
    @pytest.mark.parametrize(
        "name", ["unet/diffusion_pytorch_model.safetensors", "weights/net.pt", "a/b/model.pt"]
    )
    def test_the_advice_reads_them_by_step(self, tmp_path: Path, name: str) -> None:
        for step in (5, 10):
            save(tmp_path / f"checkpoint-{step}" / name, seed=step)
            torch.save({"state": {}}, tmp_path / f"checkpoint-{step}/optimizer.bin")
        with pytest.raises(UnreadableError) as raised:
            steps(tmp_path)
        pattern = f"*/{Path(name).parent}"
        assert raised.value.advice.endswith(f"give --pattern '{pattern}'.")
        table = analyze(tmp_path, data="normal:4", points=1, layers="0", pattern=pattern)
        norms = [weights(seed=step)["0.weight"].double().norm().item() for step in (5, 10)]
        assert table["step"].tolist() == [5, 10]
        # The norm of 12 numbers, computed twice in float64.
        assert table["jacobian_norm"].tolist() == pytest.approx(norms, rel=1e-12)

    def test_of_torch_distributed(self, tmp_path: Path) -> None:
        for step in (5, 10):
            save_dcp(tmp_path / f"ckpt-{step}/state", {"model": weights(seed=step)})
        with pytest.raises(UnreadableError, match="ckpt-10/state, ckpt-5/state") as raised:
            steps(tmp_path)
        assert "--pattern '*/state'" in raised.value.advice
        assert steps(tmp_path, pattern="*/state") == [5, 10]

    def test_of_several_the_named_one(self, tmp_path: Path) -> None:
        for name in ("unet/a.pt", "unet/b.pt", "vae/a.pt"):
            save(tmp_path / "step_5" / name)
        with pytest.raises(UnreadableError, match=r"'\*/unet' or --pattern '\*/vae'"):
            steps(tmp_path)
        with pytest.raises(UnreadableError, match=r"--pattern '\*/unet/a.pt' or") as raised:
            steps(tmp_path, pattern="*/unet")
        assert "2 weights files (unet/a.pt, unet/b.pt)" in raised.value.what
        assert steps(tmp_path, pattern="*/unet/a.pt") == [5]

    def test_a_series_in_each_folder(self, tmp_path: Path) -> None:
        for step in (5, 10):
            save(tmp_path / f"model_1/checkpoints/step_{step}.pt", seed=step)
        with pytest.raises(UnreadableError, match="each is a series"):
            steps(tmp_path)
