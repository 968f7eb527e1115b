"""The settings that an analysis lacks, as far as file names and a config.json show them.

Nothing here imports torch: `analyze` reports what is missing without waiting for it.
"""

import importlib.util
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.formats import weights_suffix
from localrank_cli.errors import SettingsError, printable
from localrank_cli.files import open_regular
from localrank_cli.options.embeddings import embedding_of
from localrank_cli.options.folder import FILE_NAME, read_folder_settings
from localrank_cli.options.table import AnalyzeOptions

HF = "hf"  # the --model that transformers builds
CONFIG = "config.json"
EMBEDDING = "EMBEDDING"  # placeholder of the name of a module
FORMS_OF_DATA = "a .safetensors, .npz, .npy or .pt file"

_MAX_BYTES = 64 * 2**20  # as in model/hf.py
_INDEX = ".index.json"  # of a checkpoint in several files
_ADAPTER = "adapter_config.json"
_OF_LIBRARIES = frozenset(("model_type", "architectures", "transformers_version", "peft_type"))
# Networks of sound have a vocabulary too, that of their output.
_OF_SOUND = {"conv_dim", "num_mel_bins", "sampling_rate", "feat_extract_activation"}


@dataclass(frozen=True)
class Need:
    """A setting that is missing.

    Args:
        why: What is missing, as part of a sentence: "no data to take points from".
        words: The words of a command line that set it; a placeholder is in capitals.
        help: Their meaning, and what to write for a placeholder.
    """

    why: str
    words: tuple[str, str]
    help: str

    @property
    def written(self) -> str:
        """The words as one text."""
        return shlex.join(self.words)


@dataclass(frozen=True)
class HfConfig:
    """What the config.json of a network of transformers shows."""

    place: Path
    architecture: str
    takes_tokens: bool
    vocabulary: int = 0
    embedding: str = ""  # the module that embeds tokens, where the family is a common one


def find_hf_config(folder: Path) -> HfConfig | None:
    """Return what the config.json beside the weights shows, in a folder or its first subfolder.

    None where there is none of transformers, or where an adapter is beside it, whose base model is
    elsewhere.
    """
    try:
        inner = sorted(one for one in folder.glob(f"*/{CONFIG}"))
    except OSError:
        inner = []
    for path in (folder / CONFIG, *inner[:1]):
        config = _read(path)
        architectures = config.get("architectures")
        if not isinstance(architectures, list) or not architectures or "model_type" not in config:
            continue
        with suppress(OSError):  # a folder without permission is reported when it is read
            if (path.parent / _ADAPTER).exists():
                continue
        size = config.get("vocab_size")
        takes_tokens = isinstance(size, int) and not _OF_SOUND & set(config)
        name = printable(str(architectures[0]))
        embedding = embedding_of(str(config["model_type"]), name)
        vocabulary = size if isinstance(size, int) else 0
        return HfConfig(path, name, takes_tokens, vocabulary, embedding)
    return None


def read_plain_config(folder: Path) -> Mapping[str, Any]:
    """Return a config.json that holds the arguments of a network's class; {} without one.

    `PyTorchModelHubMixin` of huggingface_hub writes such a file. Those of transformers and adapters
    describe other classes.
    """
    config = _read(folder / CONFIG)
    return config if _OF_LIBRARIES.isdisjoint(config) else {}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return {}
        with open_regular(path) as file:
            loaded = json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError, RecursionError):  # reported where it is used
        return {}
    return loaded if isinstance(loaded, dict) else {}


def hf_needs(
    config: HfConfig, data: object, model: object, wrt: object, embedding: str = ""
) -> list[Need]:
    """Return what a network of transformers needs; the arguments are the options as set.

    `embedding` is the name of the module that embeds tokens, if it is known.
    """
    needs = []
    if model is None:
        why = f"no --model (its {CONFIG} names transformers' {config.architecture})"
        needs.append(Need(why, ("--model", HF), f"the network that {CONFIG} describes"))
    if data is None:
        text = "token ids, one row for each point" if config.takes_tokens else ""
        needs.append(need_of_data(text))
    drawn = isinstance(data, str) and data.startswith(("normal:", "uniform:"))
    if config.takes_tokens and wrt is None and not drawn:
        needs.append(need_of_wrt(embedding or EMBEDDING))
    return needs


def need_of_data(help_text: str = "") -> Need:
    """Return the need of points from a file."""
    forms = f"{FORMS_OF_DATA}, or file.py:name"
    text = f"{help_text}: {forms}" if help_text else f"the points, preprocessed: {forms}"
    return Need("no data to take points from", ("--data", "FILE"), text)


def need_of_wrt(embedding: str) -> Need:
    """Return the need of a module to differentiate by, since the data are tokens."""
    text = "the embedding's name in the network, since tokens have no derivative"
    if embedding == EMBEDDING:
        text += "; once --model and --data are given, the next error names the embeddings"
    return Need("no --wrt (tokens have no derivative)", ("--wrt", embedding), text)


def refusal(place: Path, needs: Sequence[Need]) -> SettingsError:
    """Return the error that names everything that is missing."""
    whys = [need.why for need in needs]
    text = whys[0] if len(whys) == 1 else f"{', '.join(whys[:-1])} and {whys[-1]}"
    words = " ".join(f"{need.written} ({need.help})" for need in needs)
    return SettingsError(
        f"{place}: {text}.",
        f"Give {words}. localrank inspect {shlex.quote(str(place))} shows what is there and a"
        " command line to copy.",
    )


def check_needs(options: AnalyzeOptions) -> None:
    """Report everything that is missing, as far as names and a config.json show it.

    Raises:
        SettingsError: If a folder of checkpoints has no data, and it is known what else it needs.
    """
    for path in options.checkpoints:
        needs = _needs(options, path)
        if needs:
            raise refusal(path, needs)


def _needs(options: AnalyzeOptions, path: Path) -> Sequence[Need]:
    try:
        # A folder that is itself a checkpoint has the settings of its parent.
        if not path.is_dir() or (path.absolute().parent / FILE_NAME).exists():
            return ()
        values = read_folder_settings(path).values
        names = [one.name for one in path.iterdir()]
    except (SettingsError, OSError):  # reported when the run is planned
        return ()
    model, data, wrt = (
        values.get(name) if getattr(options, name) is None else getattr(options, name)
        for name in ("model", "data", "wrt")
    )
    if data is not None:
        return ()
    config = find_hf_config(path)
    if config is not None and model in (None, HF):
        with suppress(OSError):  # a folder without permission is reported when it is read
            names += [one.name for one in config.place.parent.iterdir()]
        if config.takes_tokens and wrt is None and not config.embedding and _has_transformers():
            return ()  # the library names the embedding
        needs = hf_needs(config, data, model, wrt, config.embedding)
    elif model is not None and model != HF:
        needs = [need_of_data()]
    else:
        return ()
    return needs if any(map(_is_weights, names)) else ()


def _is_weights(name: str) -> bool:
    return weights_suffix(name) != "" or name.lower().endswith(_INDEX)


def _has_transformers() -> bool:
    return importlib.util.find_spec("transformers") is not None
