"""Weights in pieces that only the training code can join: refused, with the command that does."""

import re
import shlex
from collections.abc import Collection
from pathlib import Path

from localrank_cli.errors import UnreadableError

_ZERO = re.compile(r"^(?:bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_.*states\.pt$")
_RANK = re.compile(r"^mp_rank_\d+(?:_\d+)*$")
_DEEPSPEED = re.compile(r"^mp_rank_\d+_model_states\.pt$|^layer_\d+-model_\d+-model_states\.pt$")
_TAG = re.compile(r"^global_step\d+$")


def refuse_sharded_training(folder: Path, names: Collection[str]) -> None:
    """Refuses a folder of DeepSpeed ZeRO or of Megatron's model-parallel ranks.

    Args:
        folder: A checkpoint's folder.
        names: What is in it.

    Raises:
        UnreadableError: If it is such a one; the advice is the command that converts it.
    """
    if any(_ZERO.match(name) or _DEEPSPEED.match(name) for name in names):
        raise _deepspeed(folder.parent, folder.name, folder)
    tags = sorted(name for name in names if _TAG.match(name))
    if tags and ("zero_to_fp32.py" in names or "latest" in names):
        raise _deepspeed(folder, tags[-1], folder)
    ranks = sorted(name for name in names if _RANK.match(name))
    if ranks:
        raise _megatron(folder, ranks)


def _deepspeed(root: Path, tag: str, output: Path) -> UnreadableError:
    script = root / "zero_to_fp32.py"
    run = f"python {shlex.quote(str(script))}"
    if not script.is_file():
        run = "python -m deepspeed.utils.zero_to_fp32"
    arguments = " ".join(shlex.quote(str(part)) for part in (root, output))
    return UnreadableError(
        f"{root / tag}: its weights are in DeepSpeed's pieces, one for each process.",
        f"Join them, and run this again: {run} {arguments} --tag {shlex.quote(tag)}"
        " --safe_serialization",
    )


def _megatron(folder: Path, ranks: list[str]) -> UnreadableError:
    root = shlex.quote(str(folder.parent))
    joined = shlex.quote(f"{folder.parent}_joined")
    pieces = "one piece" if len(ranks) == 1 else f"{len(ranks)} pieces"
    return UnreadableError(
        f"{folder}: its weights are Megatron's, in {pieces} by model-parallel rank"
        f" ({', '.join(ranks[:3])}{', ...' if len(ranks) > 3 else ''}).",
        "Join them in the folder of Megatron-LM, and name the result: python"
        " tools/checkpoint/convert.py --model-type GPT --loader mcore --saver mcore"
        f" --target-tensor-parallel-size 1 --target-pipeline-parallel-size 1 --load-dir {root}"
        f" --save-dir {joined} (it takes the iteration that latest_checkpointed_iteration.txt"
        " names); then save its 'model' entry with torch.save.",
    )
