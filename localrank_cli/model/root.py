"""A network that is one layer itself: the root of a network has no name, and tables need one."""

from typing import Any

from torch import nn

# A parametrized layer (weight_norm, spectral_norm) keeps its parametrizations as a child.
_NO_LAYERS = {"parametrizations"}


class WholeLayer(nn.Module):
    """Holds a network without modules of its own as the layer `model`.

    Weights keep the names that they have in the network: a checkpoint of an nn.Linear holds
    `weight` and `bias`.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the network.

        Args:
            *args: As the network's.
            **kwargs: As the network's.

        Returns:
            What the network returned.
        """
        return self.model(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own.

        Args:
            *args: As torch's.
            **kwargs: As torch's.

        Returns:
            Names without `model.`.
        """
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Fills the network.

        Args:
            *args: As torch's.
            **kwargs: As torch's.

        Returns:
            As torch's.
        """
        return self.model.load_state_dict(*args, **kwargs)


def with_named_root(model: nn.Module) -> nn.Module:
    """Gives the root a name where it is the only module there is.

    Args:
        model: The network.

    Returns:
        The network itself, or a `WholeLayer` of it.
    """
    is_one_layer = {name for name, _ in model.named_children()} <= _NO_LAYERS
    return WholeLayer(model) if is_one_layer else model
