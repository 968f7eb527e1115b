"""Networks that take several named inputs: `input_ids` with `attention_mask`."""

from dataclasses import replace

from torch import nn

from localrank_cli.model.build import WholeLayer
from localrank_cli.options.resolve import Settings
from localrank_cli.points.draw import Points
from localrank_cli.points.inputs import Forward
from localrank_cli.points.source import load_points


def load_for(settings: Settings, model: nn.Module) -> tuple[Settings, Points, dict[str, object]]:
    """Return the settings for a network, its points, and a description of the data.

    If it takes several inputs, it is made to take the rows of the points.

    Raises:
        LocalrankError: If the data cannot be used, or the network does not take them.
    """
    root = model.model if isinstance(model, WholeLayer) else model
    settings = replace(settings, source=replace(settings.source, forward=Forward.of(root.forward)))
    points, facts = load_points(settings.source)
    if points.inputs is not None:
        points.inputs.install(model)
        if not settings.selection.wrt:
            part = points.inputs.find_varied()
            varied = None if part is None else (part.start, part.shape)
            settings = replace(settings, selection=replace(settings.selection, part=varied))
    return settings, points, facts
