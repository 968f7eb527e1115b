"""Networks of the transformers library, built from the `config.json` beside their weights.

Local files only: nothing is downloaded, and no code of a folder runs. The class must be one that
the installed library has; a config that asks for the folder's own code (`auto_map`) is refused.
"""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError, one_line

CONFIG = "config.json"
# Entries about the file or the library, not about the network.
_NOT_OF_THE_NETWORK = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


def hf_factory(folder: Path) -> Callable[..., nn.Module]:
    """Return a function that builds the network of a checkpoint's folder.

    Its keywords override entries of the config.

    Raises:
        ModelError: If transformers is not installed, or the config cannot be used.
    """
    config = read_config(folder)
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(
            "--model hf needs the package transformers, which is not installed.",
            "Install it: pip install 'localrank[transformers]'.",
        )
    if "model_type" not in config:
        raise ModelError(
            f"{folder / CONFIG}: has no 'model_type', so it does not describe a transformers"
            " model.",
            "Give the network's code: --model path/to/file.py:name.",
        )
    if _needs_own_code(config):
        raise ModelError(
            f"{folder / CONFIG}: the network is code in the checkpoint's folder (auto_map), which"
            " --model hf never runs.",
            "If you trust it, name it yourself: --model path/to/modeling_file.py:name.",
        )

    def hf(**arguments: Any) -> nn.Module:
        return _build(folder, arguments)

    return hf


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return the config in a checkpoint's folder.

    Raises:
        ModelError: If there is none, or it is not a JSON object.
    """
    path = folder / CONFIG
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"--model hf: {path} cannot be read ({error.strerror}).",
            "The config.json of the model must lie beside the weights: copy it there, or give the"
            " network's code with --model path/to/file.py:name.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: is not JSON ({one_line(error)}).", "Fix it or copy it again."
        ) from error
    if not isinstance(loaded, dict):
        raise ModelError(f"{path}: is not a JSON object.", "Fix it or copy it again.")
    return loaded


def same_network(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether all entries of two configs that shape the network are equal."""
    return _of_the_network(first) == _of_the_network(second)


def _of_the_network(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOT_OF_THE_NETWORK}


def _needs_own_code(config: Mapping[str, Any]) -> bool:
    from transformers import CONFIG_MAPPING  # noqa: PLC0415  # seconds, and only for --model hf

    return "auto_map" in config and config["model_type"] not in CONFIG_MAPPING


def _build(folder: Path, arguments: Mapping[str, Any]) -> nn.Module:
    import transformers  # noqa: PLC0415  # seconds, and only for --model hf

    arguments = dict(arguments)
    # Forward mode and vmap go through plain attention, and not through every fused kernel.
    attention = arguments.pop("attn_implementation", "eager")
    with _offline():
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        for key, value in arguments.items():
            if not hasattr(config, key):
                raise AttributeError(f"{folder / CONFIG} has no entry {key!r}")
            setattr(config, key, value)
        config.use_cache = False
        model_class = _class(transformers, config)
        model = model_class._from_config(  # noqa: SLF001  # public in the Auto classes only
            config, dtype=torch.float32, attn_implementation=attention
        )
    return _with_one_input(model)


def _class(transformers: Any, config: Any) -> Any:
    for name in config.architectures or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.MODEL_MAPPING[type(config)]


def _with_one_input(model: Any) -> nn.Module:
    """Make the model take one tensor: tokens, embeddings, or what else it is made for."""
    base = type(model)
    name = base.main_input_name

    def forward(self: Any, inputs: Tensor) -> Any:
        of_tokens = name == "input_ids" and not inputs.is_floating_point()
        keyword = name if of_tokens or name != "input_ids" else "inputs_embeds"
        return base.forward(self, **{keyword: inputs})

    # The class keeps its name, by which the table and messages call the network.
    model.__class__ = type(base.__name__, (base,), {"forward": forward, "__doc__": base.__doc__})
    assert isinstance(model, nn.Module)
    return model


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants  # noqa: PLC0415  # comes with transformers

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
