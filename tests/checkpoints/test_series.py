import os
import re
import shlex
from pathlib import Path

import pytest

from localrank_cli.checkpoints.formats import SUFFIXES
from localrank_cli.checkpoints.series import (
    Series,
    find_checkpoints,
    find_folders,
    run_names,
)
from localrank_cli.errors import SettingsError, UnreadableError
from tests.checkpoints.layouts import touch


def names_in(folder: Path, pattern: str = "", exclude: tuple[Path, ...] = ()) -> list[str]:
    return [file.name for file in find_checkpoints(folder, [], pattern, exclude).files]


class TestFindFolders:
    def test_folders_and_files(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/step_1.pt", "b/step_1.pt", "b/step_2.pt")
        found = find_folders([tmp_path / "a", tmp_path / "b/step_2.pt", tmp_path / "b/step_1.pt"])
        assert found == {
            tmp_path / "a": [],
            tmp_path / "b": [tmp_path / "b/step_2.pt", tmp_path / "b/step_1.pt"],
        }

    @pytest.mark.parametrize("folder_first", [True, False])
    def test_a_folder_holds_its_files_too(self, tmp_path: Path, folder_first: bool) -> None:
        touch(tmp_path, "step_1.pt")
        paths = [tmp_path, tmp_path / "step_1.pt"]
        assert find_folders(paths if folder_first else paths[::-1]) == {tmp_path: []}

    def test_named_twice_counts_once(self, tmp_path: Path) -> None:
        file = touch(tmp_path, "step_1.pt") / "step_1.pt"
        assert find_folders([file, tmp_path / ".." / tmp_path.name / "step_1.pt"]) == {
            tmp_path: [file]
        }
        assert find_folders([tmp_path, tmp_path / "."]) == {tmp_path: []}

    def test_relative_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "run/step_1.pt")
        monkeypatch.chdir(tmp_path / "run")
        assert find_folders([Path()]) == {tmp_path / "run": []}
        assert find_folders([Path("step_1.pt")]) == {tmp_path / "run": [tmp_path / "run/step_1.pt"]}

    def test_a_checkpoint_folder_is_a_single_checkpoint(self, tmp_path: Path) -> None:
        touch(tmp_path, "checkpoint-5/model.safetensors", "checkpoint-6/pytorch_model.bin")
        found = find_folders(
            [tmp_path / "checkpoint-5", tmp_path / "checkpoint-6/pytorch_model.bin"]
        )
        assert found == {tmp_path: [tmp_path / "checkpoint-5", tmp_path / "checkpoint-6"]}

    def test_a_link_keeps_its_own_name(self, tmp_path: Path) -> None:
        touch(tmp_path, "blobs/8f3a")
        (tmp_path / "run").mkdir()
        link = tmp_path / "run/step_3.safetensors"
        link.symlink_to(tmp_path / "blobs/8f3a")
        assert find_folders([link]) == {tmp_path / "run": [link]}

    @pytest.mark.parametrize("name", ["nope", "nope/step_1.pt"])
    def test_a_missing_path(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UnreadableError, match="no such file or folder") as caught:
            find_folders([tmp_path / name])
        assert name in caught.value.what

    def test_a_glob_that_no_shell_expanded(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableError, match="no such file or folder") as caught:
            find_folders([tmp_path / "it's *.pt"])
        words = shlex.split(caught.value.advice.removesuffix("."))
        assert words[-2:] == ["--pattern", "it's *.pt"]

    def test_strange_paths(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "broken.pt").symlink_to(tmp_path / "nope")
        touch(tmp_path, "file.pt")
        for path in ("loop", "broken.pt", "x" * 300, "file.pt/step_1.pt"):
            with pytest.raises(UnreadableError, match=path[:9]):
                find_folders([tmp_path / path])


class TestFindCheckpoints:
    def test_what_is_a_checkpoint(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"step_{i}{s}" for i, s in enumerate((".pt", ".pth", ".ckpt", ".bin"))))
        touch(tmp_path, "step_9.safetensors", "checkpoint-7/model.safetensors")
        touch(tmp_path, "README.md", "localrank.toml", "metrics.csv", "log", "logs/step_1.pt")
        touch(tmp_path, "step_5.pt.tmp", "step_6.npz", "checkpoint-8/README")
        series = find_checkpoints(tmp_path, [], "", [])
        assert isinstance(series, Series)
        assert [file.name for file in series.files] == [
            "checkpoint-7",
            "step_0.pt",
            "step_1.pth",
            "step_2.ckpt",
            "step_3.bin",
            "step_9.safetensors",
        ]
        first = series.files[0]
        assert first.path == tmp_path / "checkpoint-7/model.safetensors"
        assert first.name_step == 7

    @pytest.mark.parametrize(
        "name",
        [
            "optimizer.pt",
            "optimizer.bin",
            "optim.pt",
            "optimizer_100.pt",
            "optimizer_step_100.pt",
            "optimizer-step=5.pt",
            "step_100_optimizer.pt",
            "step_100.optimizer.pt",
            "optimizer_state.pt",
            "scheduler.pt",
            "lr_scheduler_5.pt",
            "rng_state.pth",
            "rng_state_0.pth",
            "rng_states_1.pth",
            "random_states_0.bin",
            "training_args.bin",
            "scaler.pt",
            "Optimizer.PT",
        ],
    )
    def test_files_beside_checkpoints(self, tmp_path: Path, name: str) -> None:
        touch(tmp_path, "step_1.pt", name)
        assert names_in(tmp_path) == ["step_1.pt"]

    @pytest.mark.parametrize(
        "name",
        [
            "model_optim_sgd_step_10.pt",
            "optimizerless_step_5.pt",
            "scheduler_free_100.pt",
            "ranger_step_5.pt",
            "last.pt",
        ],
    )
    def test_names_that_only_look_alike(self, tmp_path: Path, name: str) -> None:
        assert names_in(touch(tmp_path, name)) == [name]

    def test_a_long_name_takes_no_time(self, tmp_path: Path) -> None:
        # Patterns that backtrack took minutes for 40 digits; a hang is what this would show.
        name = "optimizer_" + "1" * 100 + "_step" * 20 + "!.pt"
        assert names_in(touch(tmp_path, name)) == [name]

    def test_a_named_file_is_always_a_checkpoint(self, tmp_path: Path) -> None:
        path = touch(tmp_path, "optimizer_5.pt") / "optimizer_5.pt"
        assert [file.path for file in find_checkpoints(tmp_path, [path], "", []).files] == [path]

    def test_the_data_file_is_not_a_checkpoint(self, tmp_path: Path) -> None:
        touch(tmp_path, "step_1.pt", "inputs.pt", "step_9.pt")
        exclude = (tmp_path / "inputs.pt", tmp_path / "sub" / ".." / "step_9.pt")
        assert names_in(tmp_path, exclude=exclude) == ["step_1.pt"]

    def test_pattern(self, tmp_path: Path) -> None:
        touch(tmp_path, "ema_step_1.pt", "step_1.pt", "step_2.pt", "checkpoint-3/model.safetensors")
        assert names_in(tmp_path, "step_*") == ["step_1.pt", "step_2.pt"]
        assert names_in(tmp_path, "checkpoint-*") == ["checkpoint-3"]
        assert names_in(tmp_path, "*[13]*") == ["checkpoint-3", "ema_step_1.pt", "step_1.pt"]

    def test_a_pattern_leaves_out_what_is_sharded(self, tmp_path: Path) -> None:
        touch(tmp_path, "model-00001-of-00002.safetensors", "step_1.pt")
        assert names_in(tmp_path, "step_*") == ["step_1.pt"]

    @pytest.mark.parametrize(
        "name", ["model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.bin"]
    )
    def test_shards_without_an_index(self, tmp_path: Path, name: str) -> None:
        touch(tmp_path, "step_1.pt", name)
        with pytest.raises(UnreadableError, match="no index file") as caught:
            names_in(tmp_path)
        assert name in caught.value.what
        assert "max_shard_size" in caught.value.advice

    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableError, match="the folder is empty"):
            names_in(tmp_path)

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        touch(tmp_path, "README.md", "a.npz")
        with pytest.raises(UnreadableError, match=r"holds README\.md, a\.npz|a\.npz") as caught:
            names_in(tmp_path)
        assert [suffix for suffix in SUFFIXES if suffix not in caught.value.advice] == []

    def test_no_checkpoint_of_that_pattern(self, tmp_path: Path) -> None:
        touch(tmp_path, "step_1.pt")
        with pytest.raises(UnreadableError, match=r"--pattern 'x\*'; it holds step_1\.pt"):
            names_in(tmp_path, "x*")

    def test_checkpoints_one_folder_deeper(self, tmp_path: Path) -> None:
        touch(tmp_path, "seed_0/step_1.pt", "seed_1/step_1.pt", "notes.txt")
        with pytest.raises(UnreadableError, match="seed_0, seed_1") as caught:
            names_in(tmp_path)
        assert f"Name these instead, such as {tmp_path / 'seed_0'}: each" in caught.value.advice

    @pytest.mark.parametrize(
        ("names", "series"),
        [
            (
                ["version_0/x.yaml", "version_0/checkpoints/last.ckpt"],
                "version_0/checkpoints",
            ),
            (["run/checkpoint-5/model.safetensors", "run/log.txt"], "run"),
            (["run/checkpoints/step-5/.metadata"], "run/checkpoints"),
            (["a/.hidden/step_1.pt", "a/b/c/d/step_1.pt"], None),
        ],
    )
    def test_checkpoints_some_folders_deeper(
        self, tmp_path: Path, names: list[str], series: str | None
    ) -> None:
        touch(tmp_path, *names)
        with pytest.raises(UnreadableError) as caught:
            names_in(tmp_path)
        found = "but its folders do: (.*)\\." if series else "it holds (a)\\."
        (named,) = re.findall(found, caught.value.what)
        assert named == (series or "a")
        if series:
            assert str(tmp_path / series) in caught.value.advice
            assert names_in(tmp_path / series)

    def test_a_pattern_that_leaves_all_out_is_what_is_named(self, tmp_path: Path) -> None:
        touch(tmp_path, "checkpoint-5/model.safetensors")
        with pytest.raises(UnreadableError, match=r"that matches --pattern 'x\*'"):
            names_in(tmp_path, "x*")

    def test_a_named_file_that_is_not_a_checkpoint(self, tmp_path: Path) -> None:
        path = touch(tmp_path, "notes.txt") / "notes.txt"
        with pytest.raises(
            SettingsError, match=r"notes\.txt: .\.txt. is not a checkpoint suffix"
        ) as caught:
            find_checkpoints(tmp_path, [path], "", [])
        assert caught.value.advice.startswith("Supported: .safetensors, ")
        assert [suffix for suffix in SUFFIXES if suffix not in caught.value.advice] == []

    def test_a_folder_named_like_a_file_is_passed_over(self, tmp_path: Path) -> None:
        touch(tmp_path, "step_1.pt", "step_2.pt/shard")
        assert names_in(tmp_path) == ["step_1.pt"]


class TestRunNames:
    def test_the_folders_own_name(self) -> None:
        assert run_names([Path("/data/run[seed=3]")]) == {Path("/data/run[seed=3]"): "run[seed=3]"}

    def test_the_shortest_unique_ending(self) -> None:
        folders = [Path("/x/a/ckpt"), Path("/x/b/ckpt"), Path("/x/c/other")]
        assert list(run_names(folders).values()) == ["a/ckpt", "b/ckpt", "other"]

    def test_one_is_the_ending_of_the_other(self) -> None:
        names = run_names([Path("/a/run"), Path("/b/a/run")])
        assert len(set(names.values())) == 2
        assert names[Path("/b/a/run")] == "b/a/run"

    def test_the_root(self) -> None:
        assert run_names([Path(os.sep)]) == {Path("/"): "/"}
