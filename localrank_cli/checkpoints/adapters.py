"""Recognize adapters (LoRA and the like): a few weights that change a network but are not one."""

import re
from collections.abc import Iterable
from pathlib import Path

from localrank_cli.checkpoints.content import printable_name
from localrank_cli.checkpoints.folders import ADAPTER_CONFIG, is_file

# One part of a key, between its dots.
_PART = re.compile(
    # LoRA and variants: lora_A, lora_embedding_B, lora_magnitude_vector, to_q_lora, lora_unet_...,
    # poly_lora_A, vblora_..., randlora_...
    r"^(?:.*[_-])?(?:ada|dy|poly|rand|vb|x)?-?loras?(?:[_-].*)?$|"
    r"^(?:ia3_l|dora_scale|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?|prompt_embeddings|"
    r"prefix_encoder|adaption_(?:prompt|gate)|vera_(?:lambda_[bd]|[AB])|b?oft_(?:r|s|blocks|diag)|"
    r"fourierft_spectrum|hra_u|c3a_kernel|bone_block|miss_block|shira_weights?|road_(?:theta|alpha)|"
    r"trainable_tokens_(?:delta|indices)|adapter_(?:down|up|query|prompt))$",
    flags=re.IGNORECASE,
)
_PROMPTS = re.compile(r"^(?:prompt_embeddings|prefix_encoder|adaption_\w+)$", re.IGNORECASE)
# Bottleneck adapters (Houlsby, Pfeiffer, AdaptFormer): adapter.down_proj, adapters.task.up_linear.
_BOTTLENECK = re.compile(r"^(?:.*_)?adapt(?:ers?|mlp|former)(?:_?[a-z0-9]+)*$", re.IGNORECASE)
_PROJECTION = re.compile(
    r"^(?:[a-z0-9]+_)?(?:down|up)(?:_?(?:proj(?:ect(?:ion)?)?|sampler?|linear|fc|layer))?(?:_?\d+)?$",
    flags=re.IGNORECASE,
)
# The file of PEFT, AdapterHub or torchtune, whatever its keys are.
_PEFT_FILE = re.compile(r"^(?:adapters?(?:_(?:model|\d+))?(?![A-Za-z])|pytorch_adapters?)")
_SAVE = "torch.save(merged.state_dict(), 'step_100.pt')"


def adapter_key(keys: Iterable[str]) -> str:
    """Return the first key that belongs to an adapter; empty where there is none."""
    return next((key for key in keys if _place(key) is not None), "")


def is_adapter_alone(keys: Iterable[str]) -> bool:
    """Return whether a state dict holds an adapter without the weights that it changes.

    What PEFT saves whole beside an adapter (a head, `modules_to_save`) does not make it a network.
    """
    owners: list[str] = []
    bases: set[str] = set()
    n_weights = 0
    for key in keys:
        owner = _place(key)
        if owner is not None:
            owners.append(owner)
            continue
        parent, _, name = key.rpartition(".")
        n_weights += name == "weight"
        bases |= {parent, parent.removesuffix(".base_layer")} if name == "weight" else set()
    # A whole network has more weights than its adapters, whatever the names.
    return bool(owners) and bases.isdisjoint(owners) and n_weights <= len(owners)


def is_of_peft(path: Path) -> bool:
    """Return whether a file is an adapter by PEFT's own layout.

    That is adapter_model.safetensors or pytorch_adapter.bin beside adapter_config.json, whatever
    its keys are: a merged network has another name.
    """
    return bool(_PEFT_FILE.match(path.name)) and is_file(path.parent / ADAPTER_CONFIG)


def refusal(path: Path, keys: Iterable[str]) -> tuple[str, str]:
    """Return why an adapter is not analyzed, and the advice."""
    every = list(keys)
    key = adapter_key(every)
    named = f" ({printable_name(key)})" if key else ""
    if key and not is_adapter_alone(every) and not is_of_peft(path):
        what = f"{path}: holds an adapter{named} as well as the weights of a network."
        return what, (
            "Give the network's code with --model, or merge the adapter first: merged ="
            f" model.merge_and_unload(); {_SAVE}."
        )
    what = f"{path}: holds only an adapter{named}, not the weights of a network."
    if any(_PROMPTS.match(part) for key in every for part in key.split(".")):
        return what, (
            "A prompt or prefix changes no weights, and merge_and_unload cannot merge it: analyze"
            " the base network, or save the state dict of a module that holds both and give its"
            " code with --model."
        )
    parts = {part for name in every for part in name.split(".")}
    if path.name.startswith("pytorch_adapter") or any(map(_BOTTLENECK.match, parts)):
        return what, (
            "A bottleneck adapter adds layers, and merge_and_unload cannot merge it: load it into"
            " its base network, save the state dict of the whole network with torch.save, and give"
            " the code of both with --model."
        )
    return what, _lines(path)


def _lines(path: Path) -> str:
    folder = path.parent
    if not is_file(folder / ADAPTER_CONFIG):
        return (
            "Merge it into its base network and save that: with peft, merged ="
            f" model.merge_and_unload(); {_SAVE}. Other libraries have their own function for this"
            " (diffusers: pipe.fuse_lora()). If it is your own network, give its code with --model."
        )
    return (
        "Merge it into its base network, and save that: from peft import PeftModel; merged ="
        f" PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload();"
        f" {_SAVE}."
    )


def _place(key: str) -> str | None:
    """Return the module that an adapter's key changes; None for other keys."""
    parts = key.split(".")
    index = next((at for at, part in enumerate(parts) if _PART.match(part)), None)
    if index is None:
        index = next((at for at, part in enumerate(parts) if _BOTTLENECK.match(part)), None)
        if index is not None and not any(map(_PROJECTION.match, parts[index + 1 :])):
            index = None
    return None if index is None else ".".join(parts[:index])
