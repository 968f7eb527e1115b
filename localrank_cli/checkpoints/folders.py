"""Checkpoints that are folders: which file in them holds or lists the weights.

Folders that only training code can join (DeepSpeed, Megatron) are refused with the command that
converts them; repositories of the Hub's cache are listed by snapshot.
"""

import re
import shlex
from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path

from localrank_cli.checkpoints.content import cannot_read
from localrank_cli.checkpoints.formats import is_weights_file, read, weights_suffix
from localrank_cli.checkpoints.names import epoch_in_name, step_in_name
from localrank_cli.checkpoints.sharded import INDEX_SUFFIXES, is_index, is_shard
from localrank_cli.errors import NoWeightsError, UnreadableError
from localrank_cli.files import open_regular

# Files and folders of DeepSpeed and Megatron.
_ZERO = re.compile(r"^(?:bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_.*states\.pt$")
_RANK = re.compile(r"^mp_rank_\d+(?:_\d+)*$")
_DEEPSPEED = re.compile(r"^mp_rank_\d+_model_states\.pt$|^layer_\d+-model_\d+-model_states\.pt$")
_TAG = re.compile(r"^global_step\d+$")

DCP_METADATA = ".metadata"
ADAPTER_CONFIG = "adapter_config.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
# Subfolders with the files of torch.distributed.checkpoint: its own, OLMo-core's, accelerate's.
_DCP_PLACES = ("", "model_and_optim", "pytorch_model_fsdp_0", "model")
# These weights are read before all others in a folder.
_FIRST = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_MODEL = "model"  # of several files without a step, the one with this stem holds the weights
# Files of trainers beside the weights, read for the step and epoch, never as weights.
FACTS = ("trainer_state.json", "meta.pt")
# Names that only say that a checkpoint is the last or the best.
_ALIAS = re.compile(r"(?:^|[_\-.])(?:last|best|latest|final|newest|current)(?:$|[_\-.=])", re.I)
NOT_CHECKPOINTS = re.compile(
    r"^(?:.*[_\-.])?(?:optim(?:izer)?|(?:lr_?)?scheduler|rng(?:_?states?)?|random_states?|scaler|"
    r"training_args|trainer_state|recipe_state|train_state|dataloader)"
    # Possessive: names are matched in linear time.
    r"(?:[_\-.=]*+(?:(?:global_?)?(?:states?|steps?|iter|epoch|checkpoint|ckpt)|\d++))*+"
    r"(?:\.[A-Za-z]+)?$",
    flags=re.IGNORECASE,
)
_REPOSITORY = "models--"
_MAX_REF_BYTES = 200  # a ref is a hash of 40 digits


def refuse_sharded_training(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder of DeepSpeed ZeRO or of Megatron's model-parallel ranks.

    Raises:
        UnreadableError: If the names in the folder are theirs; the advice is the command that
            converts it.
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
        f"{root / tag}: its weights are DeepSpeed partitions, one per process.",
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


def folder_weights(folder: Path) -> Path | None:
    """Return the file from which a checkpoint's folder is read.

    It is a weights file, the index of several, or the `.metadata` of torch.distributed.checkpoint;
    None when the folder is not a checkpoint. Whether the folder has a step does not matter.

    Raises:
        UnreadableError: If the folder cannot be listed, or its weights are in pieces that only the
            training code can join.
    """
    try:
        entries = [entry for entry in folder.iterdir() if not is_resource_fork(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # it may be a checkpoint: leaving it out silently would lose it
        raise cannot_read(folder, error) from error
    names = {entry.name for entry in entries}
    first = in_order_of_choice(entries)
    if first:
        return first[0]
    for place in _DCP_PLACES:
        metadata = folder / place / DCP_METADATA
        if (not place or place in names) and is_file(metadata):
            return metadata
    refuse_sharded_training(folder, names)
    adapters = [folder / name for name in _ADAPTERS if name in names]
    if ADAPTER_CONFIG in names and len(adapters) > 1:
        return adapters[0]  # the same adapter in two formats, which is refused when it is read
    return _only_one(entries)


def several_weights(folder: Path, pattern: str = "") -> list[Path]:
    """Return the weights files in a folder of which none is known to be the checkpoint's.

    Empty where one of them has a step in its name: the folder is a series then. `pattern` is a glob
    on their names; empty for all.
    """
    files = [entry for entry in _weights_files(entries_in(folder)) if not is_index(entry)]
    if any(map(_has_step, files)):
        return []
    fitting = [file for file in files if not pattern or fnmatch(file.name, pattern)]
    return sorted(fitting if pattern else filter(_may_hold_weights, fitting))


def inner_weights(folder: Path, pattern: str) -> list[Path]:
    """Return the weights in a checkpoint's folder that `--pattern '*/PATTERN'` chooses.

    They are files in it, those of a folder in it (`unet`), or files in such a folder (`unet/*.pt`).
    """
    first, _, rest = pattern.partition("/")
    found = [] if rest else several_weights(folder, first)
    for entry in sorted(entries_in(folder)):
        if not entry.is_dir() or not fnmatch(entry.name, first):
            continue
        weights = None if rest else folder_weights(entry)
        if weights is not None:
            found.append(weights)
        else:
            found += inner_weights(entry, rest) if rest else several_weights(entry)
    return found


def in_order_of_choice(entries: Collection[Path]) -> list[Path]:
    """Return the entries that `from_pretrained` might read, in its order of preference."""
    by_name = {entry.name: entry for entry in entries}
    return [by_name[name] for name in _FIRST if name in by_name]


def is_folder_weights(path: Path) -> bool:
    """Return whether a file is named as the weights in a checkpoint's folder are."""
    return path.name in (*_FIRST, DCP_METADATA)


def is_resource_fork(path: Path) -> bool:
    """Return whether a file is what macOS writes beside one (`._step_100.pt`) on other disks."""
    return path.name.startswith("._")


def is_alias(name: str) -> bool:
    """Return whether a name only means "last" or "best" (last.ckpt, model_best.pth.tar)."""
    return _ALIAS.search(stem_of(name)) is not None


def stem_of(name: str) -> str:
    """Return a file's name without its suffix, `.pth.tar` and `.safetensors.index.json` whole."""
    for suffix in INDEX_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    suffix = weights_suffix(name)
    return name[: -len(suffix)] if suffix else Path(name).stem


def is_file(path: Path) -> bool:
    """Return whether a file exists; False also if the system does not permit the check."""
    try:
        return path.is_file()
    except OSError:
        return False


def entries_in(folder: Path) -> list[Path]:
    """Return the entries of a folder; none where it cannot be read."""
    try:
        return [entry for entry in folder.iterdir() if not is_resource_fork(entry)]
    except OSError:
        return []


def _only_one(entries: Sequence[Path]) -> Path | None:
    """Return the one index or weights file; one whose name has a step makes the folder a series."""
    indexes = [entry for entry in entries if is_index(entry)]
    if len(indexes) == 1 and not _has_step(indexes[0]):
        return indexes[0]
    files = _weights_files(entries)
    named = [entry for entry in files if stem_of(entry.name) == _MODEL]
    if len(named) == 1 and not any(map(_has_step, files)):
        files = named  # OLMo: model.pt beside optim.pt and train.pt
    if len(files) > 1 and not indexes and not any(map(_has_step, files)):
        files = list(filter(_may_hold_weights, files))
    alone = len(files) == 1 and not indexes and not _has_step(files[0])
    return files[0] if alone else None


def _weights_files(entries: Sequence[Path]) -> list[Path]:
    return [
        entry
        for entry in entries
        if is_weights_file(entry)
        and not is_shard(stem_of(entry.name))
        and not NOT_CHECKPOINTS.match(entry.name)
        and entry.name not in FACTS
        and is_file(entry)
    ]


def _may_hold_weights(path: Path) -> bool:
    try:
        read(path, header_only=True)
    except NoWeightsError:
        return False
    except UnreadableError:  # reported where it is read
        return True
    return True


def _has_step(path: Path) -> bool:
    stem = stem_of(path.name)
    return step_in_name(stem) is not None or epoch_in_name(stem) is not None


def is_hub_folder(folder: Path) -> bool:
    """Return whether a folder is a repository in the Hub's cache: it has `snapshots` and others.

    A revision that was fetched by its hash has no entry in `refs`.
    """
    try:
        return (folder / "snapshots").is_dir() and any(
            (folder / name).is_dir() for name in ("refs", "blobs")
        )
    except OSError:  # a folder that cannot be listed is reported when it is read
        return False


def hub_folder_of(snapshot: Path) -> Path | None:
    """Return the repository that a snapshot belongs to; None for other folders."""
    folder = snapshot.parent.parent
    return folder if snapshot.parent.name == "snapshots" and is_hub_folder(folder) else None


def snapshots(folder: Path) -> dict[Path, list[str]]:
    """Return the snapshots of a repository, each with its branches and tags in order of name.

    A snapshot that was fetched by its hash has none.

    Raises:
        UnreadableError: If the folder cannot be read.
    """
    try:
        found: dict[Path, list[str]] = {
            path: [] for path in sorted((folder / "snapshots").iterdir()) if path.is_dir()
        }
        refs = folder / "refs"
        commits = {
            ref: _commit(ref)
            for ref in sorted(refs.rglob("*"))
            if ref.is_file() and not is_resource_fork(ref)
        }
    except OSError as error:
        raise cannot_read(Path(error.filename or folder), error) from error
    for ref, commit in commits.items():
        # A ref holds a name in `snapshots`, never a path.
        names = found.get(folder / "snapshots" / Path(commit).name)
        if names is not None:
            names.append(ref.relative_to(refs).as_posix())
    return found


def cached_snapshot(folder: Path) -> Path | None:
    """Return the only snapshot in a folder that was the `cache_dir` of a single revision.

    Pythia's README has `./pythia-70m/step3000/models--EleutherAI--pythia-70m/snapshots/HASH`.
    None where there is no repository in the folder.

    Raises:
        UnreadableError: If there are several snapshots and none of them bears the folder's name.
    """
    found = {
        snapshot: refs
        for entry in entries_in(folder)
        if entry.name.startswith(_REPOSITORY) and is_hub_folder(entry)
        for snapshot, refs in snapshots(entry).items()
        if folder_weights(snapshot) is not None
    }
    named = [snapshot for snapshot, refs in found.items() if folder.name in refs] or list(found)
    if len(named) > 1:
        places = ", ".join(path.relative_to(folder).as_posix() for path in named[:3])
        raise UnreadableError(
            f"{folder}: holds {len(named)} snapshots ({places}), but none of them has the folder's"
            " name.",
            "Remove all but one, or name the folder models--ORG--NAME itself: it is a series.",
        )
    return named[0] if named else None


def _commit(ref: Path) -> str:
    with open_regular(ref) as file:
        return file.read(_MAX_REF_BYTES).decode("ascii", "replace").strip()
