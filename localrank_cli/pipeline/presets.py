"""`--preset`: the rules of published work under one name. docs/local_rank.md has the sources."""

from dataclasses import replace

from localrank_cli.pipeline.options import AnalyzeOptions, Preset

# max(n) eps(float32) is matrix_rank's own tolerance on the float32 Gram matrix of a 3 x 16 x 16
# patch, whose eigenvalues are squares: (768 * 2^-23)^(1/2) on sigma, relative to sigma_1.
_GRAM_RTOL = (3 * 16 * 16 * 2.0**-23) ** 0.5


def with_preset(options: AnalyzeOptions) -> AnalyzeOptions:
    """Fills in what a preset says, where no flag says otherwise.

    Args:
        options: As given.

    Returns:
        The options without a preset.
    """
    kind = options.preset
    if kind is None:
        return options
    tolerances = {
        Preset.patel2024: {"atol": (0.01,)},
        Preset.feng2022: {"rtol": (_GRAM_RTOL,)},
        Preset.numpy: {"rtol": (None,)},
    }[kind]
    if not options.atol and not options.rtol:
        options = replace(options, **tolerances)  # type: ignore[arg-type]  # of several types
    if kind is Preset.patel2024:
        hidden = options.hidden or not options.layers
        options = replace(options, points=options.points or 128, hidden=hidden)
    if kind is Preset.feng2022:
        # Their matrix_rank sees the patch alone.
        options = replace(
            options,
            input_slice=options.input_slice or "center:16",
            sigma_1=options.sigma_1 or "slice",
        )
    return replace(options, preset=None)
