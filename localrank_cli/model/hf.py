"""Networks of the transformers library, built from the `config.json` beside their weights.

Nothing is downloaded, no code of a folder runs, and the library is never given the folder itself,
in which it would follow other files (an adapter's config, say): it gets the config's entries and
tensors that were read here.
"""

import contextlib
import copy
import functools
import importlib.util
import json
import math
import socket
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError, cause, one_line, printable, shortened
from localrank_cli.files import open_regular
from localrank_cli.model.hf_size import Held

CONFIG = "config.json"
_ADAPTER_CONFIG = "adapter_config.json"
_MAX_DEPTH = 50  # published configs have about 5 levels
_MAX_BYTES = 64 * 2**20  # the largest published configs, with labels of 20,000 classes, have 2 MiB
# Entries about the file or the library, not about the network.
_NOT_OF_THE_NETWORK = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
# Entries that choose kernels. One that names a repository of the Hub would run code from there.
_KERNELS = (
    "attn_implementation",
    "experts_implementation",
    "kernel_config",
    "use_kernels",
    "fusion_config",  # changes the outputs slightly
)
_OF_FILES = "transformers_weights"  # names the file that the library would read
# Forward mode and vmap pass through plain attention, and not through every fused kernel.
_ATTENTION = ("eager", "sdpa")
_QUANTIZATION = "quantization_config"
# How `save_pretrained` writes the floats that JSON does not have.
_FLOAT = "__float__"
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


# `library` changes the state of the whole process.
_LOCK = threading.RLock()


@dataclass(frozen=True)
class HfModel:
    """A class of transformers and the config to build it with."""

    folder: Path
    model_class: Any
    config: Any
    attention: str = "eager"
    held: Held | None = None  # by the checkpoints
    entries: Mapping[str, Any] = field(default_factory=dict)  # of config.json

    @property
    def _choices(self) -> dict[str, Any]:
        choices: dict[str, Any] = {"attn_implementation": self.attention}
        if hasattr(self.model_class, "get_correct_experts_implementation"):
            # Grouped products have neither float64 nor a forward mode.
            choices["experts_implementation"] = "eager"
        return choices

    def _own_config(self) -> Any:
        """Return a copy of the config: some networks (LeViT) append to theirs while being built."""
        return copy.deepcopy(self.config)

    def build(self) -> nn.Module:
        """Return the network with weights that are drawn; its buffers are those of float32.

        Raises:
            ModelError: If the library cannot build it, or it is far larger than the checkpoints.
        """
        with library():
            if self.held is not None:
                # Without memory: a mask of all pairs of positions exists before it is counted.
                with self._bounded(), torch.device("meta"):
                    self._try()
            with self._bounded():
                try:
                    return _with_one_input(self._build())
                except ModelError:
                    raise
                except Exception as error:  # inconsistent sizes fail anywhere in the library
                    raise ModelError(
                        f"{self.folder / CONFIG}: transformers cannot build the network"
                        f" ({cause(error)}).",
                        "Correct its sizes and its 'architectures', or copy it again; check"
                        " --model-arg if you gave it.",
                    ) from error

    def embedding(self) -> str:
        """Return the name of the module that embeds tokens; empty if it is not known.

        The network is built without memory.
        """
        with library(), contextlib.suppress(Exception):
            with self._bounded(), torch.device("meta"):
                model = self._build()
            embedding = model.get_input_embeddings()
            names = (name for name, module in model.named_modules() if module is embedding)
            return next(names, "")
        return ""

    def _bounded(self) -> contextlib.AbstractContextManager[None]:
        if self.held is None:
            return contextlib.nullcontext()
        return self.held.bounded(self.folder / CONFIG)

    def _try(self) -> None:
        try:
            self._build()
        except ModelError:
            raise
        except Exception:  # noqa: S110  # some code needs values; the real build reports the rest
            pass

    def _build(self) -> Any:
        return self.model_class._from_config(  # public in the Auto classes only
            self._own_config(), dtype=torch.float32, **self._choices
        )

    def load(
        self, state: Mapping[str, Tensor], dtype: torch.dtype
    ) -> tuple[Any, Mapping[str, Any]]:
        """Return what `from_pretrained` makes of stored tensors, and its report.

        Raises:
            Exception: Whatever the library raises.
        """
        with library():
            # Without a path the library looks for no file. Some versions change the dict: a copy.
            model, report = self.model_class.from_pretrained(
                None,
                config=self._own_config(),
                state_dict=dict(state),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                trust_remote_code=False,
                **self._choices,
            )
        return model, report

    def saved_config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config of the network for a folder of other weights of it."""
        config = {key: value for key, value in self.entries.items() if key != _OF_FILES}
        return config | {
            key: value for key, value in arguments.items() if key != "attn_implementation"
        }

    def read(self, folder: Path) -> nn.Module:
        """Return the network that `from_pretrained` loads from a folder that was just written.

        Raises:
            ModelError: If the library cannot load it, or some weights of it.
        """
        with library():
            try:
                model, report = self.model_class.from_pretrained(
                    folder,
                    dtype=torch.float32,
                    output_loading_info=True,
                    local_files_only=True,
                    **self._choices,
                )
            except Exception as error:  # the library raises whatever a conversion raises
                raise _not_loaded(folder, cause(error)) from error
            left = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
            if left:
                raise _not_loaded(folder, f"it finds no place for {left[0]}")
            return _with_one_input(model)


def _not_loaded(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"{folder}: transformers does not load the compressed weights ({why}).",
        "Give the network's code, --model path/to/file.py:name, and the factored weights alone are"
        " written.",
    )


def hf_model(folder: Path, arguments: Mapping[str, Any], held: Held | None = None) -> HfModel:
    """Return the network that the config in a checkpoint's folder describes.

    `arguments` override entries of the config, and `held` limits its size.

    Raises:
        ModelError: If transformers is not installed, or the config cannot be used.
    """
    config = read_config(folder)
    path = folder / CONFIG
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(
            "--model hf needs the package transformers, which is not installed.",
            "Install it: pip install 'localrank[transformers]'.",
        )
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelError(
            f"{path}: has no 'model_type', so it does not describe a transformers model.",
            "Give the network's code: --model path/to/file.py:name.",
        )
    refuse_folder(folder, config)
    if held is not None:
        held.check_counts([config, dict(arguments)], path)
    with library():
        import transformers

        if kind not in transformers.CONFIG_MAPPING:
            raise _unknown(folder, config, transformers.__version__)
        attention = _attention(arguments)
        try:
            made = transformers.CONFIG_MAPPING[kind].from_dict(_for_the_network(config))
        except Exception as error:  # the library checks entries in many ways
            raise ModelError(
                f"{path}: transformers {transformers.__version__} cannot use it"
                f" ({one_line(error)}).",
                "Install the version that wrote it (its 'transformers_version'), or correct it.",
            ) from error
        _override(made, arguments, path)
        made.use_cache = False
        made.return_dict = True  # networks look up parts of outputs by name
        return HfModel(folder, _class(transformers, made), made, attention, held, config)


def _override(made: Any, arguments: Mapping[str, Any], path: Path) -> None:
    for key, value in arguments.items():
        if key == "attn_implementation":
            continue
        if _is_of_kernels(key) or key in (_QUANTIZATION, _OF_FILES):
            raise ModelError(
                f"--model-arg {key}: this entry chooses kernels, files or quantized weights, which"
                " --model hf does not support.",
                "Leave it out.",
            )
        if not hasattr(made, key):
            raise ModelError(
                f"--model-arg {key}: {path} has no entry {key!r}.",
                "Check the name in the config of this family of networks.",
            )
        try:
            setattr(made, key, value)
        except Exception as error:  # the library checks entries in many ways
            raise ModelError(
                f"--model-arg {key}: transformers cannot use {_shown(value)!r}"
                f" ({one_line(error)}).",
                f"Give a value of the kind that is in {path}.",
            ) from error


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return the config in a checkpoint's folder.

    Raises:
        ModelError: If there is none, or it is not a JSON object in a file of ordinary size.
    """
    path = folder / CONFIG
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"--model hf: {path} is not a file.", "Put the model's config there.")
        if status.st_size > _MAX_BYTES:
            raise ModelError(
                f"{path}: has {status.st_size} bytes; a config has at most {_MAX_BYTES}.",
                "Copy the config.json of the model there.",
            )
        with open_regular(path) as file:
            loaded = json.loads(file.read().decode("utf-8"))
    except OSError as error:
        raise ModelError(
            f"--model hf: {path} cannot be read ({error.strerror}).",
            "The config.json of the model must be next to the weights: copy it there, or give the"
            " network's code with --model path/to/file.py:name.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: is not JSON ({one_line(error)}).", "Fix it or copy it again."
        ) from error
    if not isinstance(loaded, dict):
        raise ModelError(f"{path}: is not a JSON object.", "Fix it or copy it again.")
    level: list[Any] = [loaded]
    for _ in range(_MAX_DEPTH):
        level = [child for one in level for child in _children(one)]
    if level:
        raise ModelError(
            f"{path}: is nested more than {_MAX_DEPTH} levels deep.", "Fix it or copy it again."
        )
    return loaded


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def same_network(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether all entries of two configs that shape the network are equal."""
    return _of_the_network(first) == _of_the_network(second)


def _of_the_network(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOT_OF_THE_NETWORK}


def refuse_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder whose weights are not those of the network alone, before any call.

    Raises:
        ModelError: If there is an adapter's config, or the weights are quantized.
    """
    if (folder / _ADAPTER_CONFIG).exists() or (folder / _ADAPTER_CONFIG).is_symlink():
        raise ModelError(
            f"{folder / _ADAPTER_CONFIG}: an adapter's config is next to the weights, and --model"
            " hf does not apply adapters.",
            "Merge the adapter and save the result: peft's merge_and_unload(), then"
            " save_pretrained. If the weights are merged already, remove this file.",
        )
    place = _find(config, _QUANTIZATION)
    if place:
        raise ModelError(
            f"{folder / CONFIG}: {_shown(place)} says that the weights are quantized, which"
            " --model hf does not read.",
            "Save them as floats: model.dequantize(), then save_pretrained. If they are floats"
            " already, remove this entry.",
        )


def refuse_other_weights(folder: Path, config: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Refuse weights beside which a config names other ones.

    Raises:
        ModelError: If the library would read another file of the folder than one of `files`.
    """
    named = config.get(_OF_FILES)
    other = next((file for file in files if file.name != named), None)
    if isinstance(named, str) and named and other and (folder / Path(named).name).exists():
        raise ModelError(
            f"{folder / CONFIG}: {_OF_FILES} names {_shown(named)}, but the weights that were"
            f" found are {other.name}.",
            "Keep one of the two in the folder, and remove this entry.",
        )


def _find(config: Any, key: str, place: str = "") -> str:
    """Return the dotted place of an entry that is set, at any depth; empty if there is none."""
    pairs = config.items() if isinstance(config, dict) else enumerate(_children(config))
    for name, value in pairs:
        here = f"{place}.{name}" if place else str(name)
        if name == key and value:
            return here
        found = _find(value, key, here)
        if found:
            return found
    return ""


def _for_the_network(config: Any) -> Any:
    """Return a config as the library reads it, without what chooses kernels or files."""
    if isinstance(config, list):
        return [_for_the_network(value) for value in config]
    if not isinstance(config, dict):
        return config
    if set(config) == {_FLOAT} and config[_FLOAT] in _FLOATS:
        return _FLOATS[config[_FLOAT]]
    return {
        key: _for_the_network(value)
        for key, value in config.items()
        # An empty quantization_config has no meaning, but the library refuses it.
        if not (_is_of_kernels(key) or key in (_QUANTIZATION, _OF_FILES))
    }


def _shown(value: object) -> str:
    """Return an entry of a config for a message, in one short line."""
    return printable(shortened(value))


def _is_of_kernels(key: str) -> bool:
    return key.lstrip("_").startswith(_KERNELS)


def _attention(arguments: Mapping[str, Any]) -> str:
    attention = arguments.get("attn_implementation", "eager")
    if attention not in _ATTENTION:
        raise ModelError(
            f"--model-arg attn_implementation={_shown(attention)}: is not one of"
            f" {', '.join(_ATTENTION)}.",
            "Leave it out: eager attention is differentiated in every mode.",
        )
    return str(attention)


def _unknown(folder: Path, config: Mapping[str, Any], version: str) -> ModelError:
    kind = _shown(config["model_type"])
    if "auto_map" in config:
        return ModelError(
            f"{folder / CONFIG}: the network is code in the checkpoint's folder (auto_map), which"
            " --model hf never runs.",
            "If you trust it, name it yourself: --model path/to/modeling_file.py:name.",
        )
    return ModelError(
        f"{folder / CONFIG}: transformers {version} does not know the model type {kind!r}.",
        "Install a version that does (pip install -U transformers), or give the network's code:"
        " --model path/to/file.py:name.",
    )


def _class(transformers: Any, config: Any) -> Any:
    named, base = config.architectures, transformers.PreTrainedModel
    for name in [named] if isinstance(named, str) else _children(named):
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, base) and found is not base:
            return found
    try:
        return transformers.MODEL_MAPPING[type(config)]
    except KeyError as error:
        raise ModelError(
            f"--model hf: transformers has no network for a {type(config).__name__} whose"
            f" architectures are {_shown(config.architectures)}.",
            "Name the class in 'architectures' of config.json, or give the network's code:"
            " --model path/to/file.py:name.",
        ) from error


def _with_one_input(model: Any) -> nn.Module:
    """Make the model take one tensor: tokens, embeddings, or whatever its main input is.

    Several inputs are taken by name.
    """
    base = type(model)
    name = base.main_input_name

    @functools.wraps(base.forward)
    def forward(self: Any, inputs: Tensor | None = None, **named: Any) -> Any:
        """Pass one tensor on under the name of what it is."""
        if inputs is None:
            return base.forward(self, **named)
        of_tokens = name == "input_ids" and not inputs.is_floating_point()
        keyword = name if of_tokens or name != "input_ids" else "inputs_embeds"
        return base.forward(self, **{keyword: inputs}, **named)

    # The class keeps its name, by which the table and messages call the network.
    model.__class__ = type(base.__name__, (base,), {"forward": forward, "__doc__": base.__doc__})
    assert isinstance(model, nn.Module)
    return model


@contextlib.contextmanager
def library() -> Iterator[None]:
    """Call transformers without network, progress bars and warnings about weights.

    What the warnings would say is in the report of `load`.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_LOCK)
        stack.enter_context(_offline())
        import transformers

        stack.enter_context(_no_kernels())
        logging = transformers.utils.logging
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


@contextlib.contextmanager
def _no_kernels() -> Iterator[None]:
    """Refuse to load kernels, which some networks (RWKV, YOSO) load on their own."""
    from transformers.integrations import hub_kernels

    name = "get_kernel_hub"  # only there with the package kernels
    before = getattr(hub_kernels, name, None)

    def refuse(repository: str, **_: object) -> None:
        """Refuse to load a kernel; transformers then takes its own code."""
        raise FileNotFoundError(f"--model hf loads no kernels ({repository})")

    if before is None:
        yield
        return
    setattr(hub_kernels, name, refuse)
    try:
        yield
    finally:
        setattr(hub_kernels, name, before)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants

    before, connect = constants.HF_HUB_OFFLINE, socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        """Connect within this machine only."""
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise OSError(f"--model hf connects to no other machine ({address})")
        connect(self, address)

    constants.HF_HUB_OFFLINE = True
    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]  # patched on purpose
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        socket.socket.connect = connect  # type: ignore[method-assign]  # restores the original
