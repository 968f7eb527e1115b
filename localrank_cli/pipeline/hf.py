"""`--model hf`: one network for a series, from the configs beside its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.errors import ModelError
from localrank_cli.model.build import modules_there_are
from localrank_cli.model.hf import CONFIG, describes_the_same, hf_factory, read_config
from localrank_cli.model.twice import Built, build_twice


def make_hf_model(
    files: Sequence[CheckpointFile], folder: Path, arguments: Mapping[str, Any], *, allowed: bool
) -> Built:
    """Builds the network that all checkpoints of a series are of.

    Args:
        files: The checkpoints, by step.
        folder: The series.
        arguments: `--model-arg`, which override entries of the config.
        allowed: As for `build_twice`.

    Returns:
        The network, with weights that are still to be filled in.

    Raises:
        ModelError: If there is no config, it does not serve, or the checkpoints' configs differ.
    """
    places = list(dict.fromkeys(_config_folder(file, folder) for file in files))
    first = read_config(places[0])
    for place in places[1:]:
        if not describes_the_same(first, read_config(place)):
            raise ModelError(
                f"{place / CONFIG} describes another network than {places[0] / CONFIG}.",
                "Choose the checkpoints of one network with --pattern GLOB.",
            )
    there = modules_there_are()
    return build_twice(hf_factory(places[0]), arguments, "--model hf", there, allowed=allowed)


def _config_folder(file: CheckpointFile, folder: Path) -> Path:
    own = file.folder or file.path.parent
    return own if (own / CONFIG).is_file() else folder
