"""Save a compressed network in every form that was asked for, and load each back."""

import copy
import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.factors import metadata_of
from localrank_cli.compress.state import dense_state, difference, factored_layers, factored_state
from localrank_cli.errors import ModelError
from localrank_cli.layers.outputs import first_tensor
from localrank_cli.model.hf_weights import HfExpected
from localrank_cli.points.files import file_hash
from localrank_cli.results.compressed import (
    CONFIG_NAME,
    HF_NAME,
    LOADER_NAME,
    hf_name,
    weights_name,
    write_hf,
    write_loader,
    write_weights,
)
from localrank_cli.results.write import cannot_write
from localrank_cli.run.plan import SeriesPlan

# Loaded weights give these outputs up to float32 rounding, which a network magnifies.
_AGREEMENT = 1e-3


def forward(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the first tensor of a network's output.

    Raises:
        ModelError: If it returns none.
    """
    output = first_tensor(model(batch.clone()))
    if output is None:
        raise ModelError("the network returned no tensor.", "Return the outputs as a tensor.")
    return output


@dataclass(frozen=True)
class Saver:
    """What the saving of each budget needs."""

    series: SeriesPlan
    stored: Mapping[str, Tensor]  # the original's weights
    point: Tensor  # at which outputs are compared
    folder: Path
    dense: bool

    def files(self, share: float) -> dict[str, str]:
        """Return the SHA-256 of the files of a budget by their names; of missing ones it is empty.

        Raises:
            OutputError: If one cannot be read.
        """
        names = [weights_name(share)]
        names += [weights_name(share, dense=True)] if self.dense else []
        if self._is_hf:
            names += [f"{hf_name(share)}/{name}" for name in (CONFIG_NAME, HF_NAME)]
        paths = {name: self.folder / name for name in names}
        try:
            return {name: file_hash(path) if path.is_file() else "" for name, path in paths.items()}
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def hf_folders(self, share: float) -> list[Path]:
        """Return the folders of a budget that `from_pretrained` loads."""
        return [self.folder / hf_name(share)] if self._is_hf else []

    @property
    def _is_hf(self) -> bool:
        return isinstance(self.series.expected, HfExpected)

    def save(self, share: float, compressed: nn.Module) -> None:
        """Write the weights, and compare the outputs of each form.

        Raises:
            ModelError: If what was loaded gives other outputs.
        """
        model = self.series.model
        step = self.series.checkpoints[0].step
        state = factored_state(compressed, self.stored)
        write_loader(self.folder)
        path = self.folder / weights_name(share)
        write_weights(path, state, metadata_of(step, factored_layers(compressed)))
        # As a user runs it; the file was written just now.
        load = runpy.run_path(str(self.folder / LOADER_NAME))["load"]
        self._compare(load(copy.deepcopy(model), path), compressed, path)
        expected = self.series.expected
        if not (self.dense or self._is_hf):
            return
        dense = dense_state(compressed, model, state)
        del state  # its factors, beside the dense weights
        if self.dense:
            path = self.folder / weights_name(share, dense=True)
            write_weights(path, dense, metadata_of(step))
            copied = copy.deepcopy(model)
            copied.load_state_dict(dense)
            self._compare(copied, compressed, path)
        if not isinstance(expected, HfExpected):
            return
        path = self.folder / hf_name(share)
        config = expected.source.saved_config(self.series.settings.model.arguments)
        write_hf(path, config, dense, metadata_of(step))
        self._compare(expected.source.read(path).to(self.point.device), compressed, path)

    def _compare(self, loaded: nn.Module, compressed: nn.Module, path: Path) -> None:
        with torch.no_grad():
            found = difference(loaded.eval(), compressed, self.point, forward)
        if not found <= _AGREEMENT:
            raise ModelError(
                f"{path}: loaded back, its outputs differ from those measured by {found:.2g} of"
                " the largest.",
                "Its layers may be stored in a dtype too coarse for factors: save the checkpoint in"
                " float32.",
            )
