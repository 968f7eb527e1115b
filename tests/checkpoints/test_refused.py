import shlex
from pathlib import Path

import pytest

from localrank_cli import analyze
from localrank_cli.checkpoints.series import find_checkpoints, find_folders
from localrank_cli.errors import UnreadableError
from tests.checkpoints.layouts import touch

ZERO = ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")


def refusal(folder: Path) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        analyze(folder, data="normal:4")
    return caught.value


def test_deepspeeds_own_folder(tmp_path: Path) -> None:
    root = tmp_path / "my run"
    touch(root, "latest", "zero_to_fp32.py", *(f"global_step100/{name}" for name in ZERO))
    error = refusal(root)
    assert error.what == (
        f"{root / 'global_step100'}: its weights are DeepSpeed partitions, one per process."
    )
    command = error.advice.split(": ", 1)[1]
    assert shlex.split(command) == [
        "python", str(root / "zero_to_fp32.py"), str(root), str(root / "global_step100"),
        "--tag", "global_step100", "--safe_serialization",
    ]  # fmt: skip


def test_after_the_command_the_same_series_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "latest", "zero_to_fp32.py", *(f"global_step100/{name}" for name in ZERO))
    touch(tmp_path, "global_step100/model.safetensors.index.json")
    (file,) = find_checkpoints(tmp_path, [], "", []).files
    assert (file.name, file.name_step) == ("global_step100", 100)


def test_deepspeed_inside_a_trainers_checkpoint(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint-500"
    touch(place, "latest", "zero_to_fp32.py", *(f"global_step500/{name}" for name in ZERO))
    error = refusal(tmp_path)
    assert error.what.startswith(f"{place / 'global_step500'}: ")
    assert error.advice.endswith(
        f"python {place / 'zero_to_fp32.py'} {place} {place} --tag global_step500"
        " --safe_serialization"
    )
    # Where the trainer has put the whole weights beside them there is nothing to refuse.
    touch(place, "pytorch_model.bin")
    assert find_folders([place]) == {tmp_path: [place]}


def test_deepspeed_without_its_script(tmp_path: Path) -> None:
    touch(tmp_path, "global_step100/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert "python -m deepspeed.utils.zero_to_fp32 " in refusal(tmp_path).advice


@pytest.mark.parametrize(
    "ranks", [["mp_rank_00", "mp_rank_01"], ["mp_rank_00_000"], ["mp_rank_00"]]
)
def test_megatron(tmp_path: Path, ranks: list[str]) -> None:
    root = tmp_path / "run"
    touch(root, "latest_checkpointed_iteration.txt")
    touch(root, *(f"iter_0000100/{rank}/model_optim_rng.pt" for rank in ranks))
    error = refusal(root)
    assert error.what.startswith(f"{root / 'iter_0000100'}: its weights are Megatron's")
    assert ranks[0] in error.what
    for part in (
        "tools/checkpoint/convert.py",
        "--target-tensor-parallel-size 1",
        "--target-pipeline-parallel-size 1",
        f"--load-dir {root}",
        f"--save-dir {root}_joined",
    ):
        assert part in error.advice


def test_a_pattern_leaves_them_out(tmp_path: Path) -> None:
    touch(tmp_path, "step_1.pt", *(f"global_step100/{name}" for name in ZERO))
    assert len(find_checkpoints(tmp_path, [], "step_*", []).files) == 1
