"""Folders as published models leave them on disk: Pythia's caches, OLMo's stages, one model."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli import analyze
from localrank_cli.checkpoints.series import find_checkpoints, find_folders
from localrank_cli.errors import SettingsError, UnreadableError
from localrank_cli.run.headers import HeaderContext, Headers
from tests.helpers import weights


def save(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    save_file(weights(seed=seed), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def cache(place: Path, refs: list[str], seed: int) -> Path:
    """A repository of the Hub's cache, as from_pretrained(..., cache_dir=place) leaves it."""
    repository = place / "models--org--name"
    snapshot = repository / "snapshots" / f"{seed:040x}"
    blobs = repository / "blobs"
    save(blobs / "saved", seed)
    snapshot.mkdir(parents=True)
    for file in (blobs / "saved").iterdir():
        blob = file.rename(blobs / f"{seed}{len(file.name)}")
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (blobs / "saved").rmdir()
    for ref in refs:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(f"{seed:040x}")
    (place / ".locks" / repository.name).mkdir(parents=True, exist_ok=True)
    return snapshot


def steps(folder: Path, pattern: str = "") -> list[int]:
    table = analyze(folder, data="normal:4", points=1, layers="0", pattern=pattern or None)
    return table["step"].tolist()


class TestACacheForEachStep:
    def test_steps_are_the_folders(self, tmp_path: Path) -> None:
        for step in (0, 1000, 3000):
            cache(tmp_path / f"step{step}", [f"step{step}"], step + 1)
        assert steps(tmp_path) == [0, 1000, 3000]
        assert find_folders([tmp_path / "step0"]) == {tmp_path: [tmp_path / "step0"]}

    def test_a_revision_fetched_by_its_hash(self, tmp_path: Path) -> None:
        snapshot = cache(tmp_path / "step7", [], 1)
        file = find_checkpoints(tmp_path, [], "", []).files[0]
        assert (file.name, file.folder) == ("step7", snapshot)

    def test_of_several_snapshots_that_of_the_name(self, tmp_path: Path) -> None:
        snapshot = cache(tmp_path / "step7", ["step7"], 1)
        cache(tmp_path / "step7", ["main"], 2)
        assert find_checkpoints(tmp_path, [], "", []).files[0].folder == snapshot

    def test_several_snapshots_without_the_name(self, tmp_path: Path) -> None:
        cache(tmp_path / "step7", ["main"], 1)
        cache(tmp_path / "step7", ["other"], 2)
        with pytest.raises(UnreadableError, match="holds 2 snapshots"):
            find_checkpoints(tmp_path, [], "", [])

    def test_a_cache_of_repositories_names_them(self, tmp_path: Path) -> None:
        cache(tmp_path, ["step1"], 1)
        with pytest.raises(UnreadableError, match="its folders do: models--org--name"):
            find_checkpoints(tmp_path, [], "", [])
        assert steps(tmp_path / "models--org--name") == [1]


class TestStages:
    @pytest.mark.parametrize("second", ["stage2-step500-tokens3B", "stage2-step2000-tokens9B"])
    def test_steps_that_restart_are_refused(self, tmp_path: Path, second: str) -> None:
        for seed, name in enumerate(
            ("stage1-step1000-tokens5B", "stage1-step2000-tokens9B", second)
        ):
            save(tmp_path / name, seed)
        with pytest.raises(SettingsError, match="the steps restart in each stage") as caught:
            steps(tmp_path)
        assert "--pattern '*stage1-*'" in caught.value.advice
        assert "--pattern '*stage2-*'" in caught.value.advice
        assert steps(tmp_path, "*stage1-*") == [1000, 2000]
        assert len(steps(tmp_path, "*stage2-*")) == 1

    def test_revisions_too(self, tmp_path: Path) -> None:
        cache(tmp_path, ["stage1-step1000-tokens5B"], 1)
        cache(tmp_path, ["stage2-step500-tokens3B"], 2)
        repository = tmp_path / "models--org--name"
        with pytest.raises(SettingsError, match="stage2-step500-tokens3B after stage1-step1000"):
            steps(repository)
        assert steps(repository, "*stage2-*") == [500]

    def test_steps_that_continue(self, tmp_path: Path) -> None:
        for seed, name in enumerate(("stage1-step-40", "stage2-step-90", "stage10-step-95")):
            save(tmp_path / name, seed)
        assert steps(tmp_path) == [40, 90, 95]
        notes: list[str] = []
        series = find_checkpoints(tmp_path, [], "", [])
        first = Headers(replace(series, files=series.files[:1]), False)
        first.steps(notes.append)
        assert notes == []
        # Both at once, and a later one that appears.
        for context in (HeaderContext(), HeaderContext(earlier=first.scheme)):
            files = series.files if context.earlier is None else series.files[2:]
            Headers(replace(series, files=files), False, context=context).steps(notes.append)
        assert len(notes) == 2
        for note in notes:
            assert "stage2-step-90 comes after stage1-step-40: the stages are read as one" in note
            assert "--pattern '*stage1-*', --pattern '*stage2-*'" in note
        assert steps(tmp_path, "*stage1-*") == [40]

    def test_without_stages(self, tmp_path: Path) -> None:
        save(tmp_path / "step1000-tokens4B", 1)
        save(tmp_path / "step20000-tokens83B", 2)
        assert steps(tmp_path) == [1000, 20000]


class TestOneModel:
    def test_it_is_step_0(self, tmp_path: Path) -> None:
        assert steps(save(tmp_path / "my_model")) == [0]

    def test_by_its_file(self, tmp_path: Path) -> None:
        assert steps(save(tmp_path / "my_model") / "model.safetensors") == [0]

    def test_its_trainer_state_has_the_step(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "my_model")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": 70}))
        assert steps(folder) == [70]

    def test_a_revision_without_a_step(self, tmp_path: Path) -> None:
        cache(tmp_path, ["main"], 1)
        assert steps(tmp_path / "models--org--name") == [0]

    def test_without_a_config(self, tmp_path: Path) -> None:
        (save(tmp_path / "my_model") / "config.json").unlink()
        assert steps(tmp_path / "my_model") == [0]

    def test_in_two_formats(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "my_model")
        torch.save(weights(seed=1), folder / "pytorch_model.bin")
        files = find_checkpoints(folder, [], "", []).files
        assert [file.name for file in files] == ["model.safetensors"]
        files = find_checkpoints(folder, [], "*.bin", []).files
        assert [file.name for file in files] == ["pytorch_model.bin"]

    def test_with_indexes_of_both_formats(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "my_model")
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        torch.save(weights(seed=1), folder / "pytorch_model-00001-of-00001.bin")
        for index, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
            places = dict.fromkeys(weights(), f"{index}-00001-of-00001.{suffix}")
            path = folder / f"{index}.{suffix}.index.json"
            path.write_text(json.dumps({"weight_map": places}))
        files = find_checkpoints(folder, [], "", []).files
        assert [file.name for file in files] == ["model.safetensors.index.json"]
