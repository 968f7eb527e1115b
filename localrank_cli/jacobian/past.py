"""Causal decoders with the past held: one token is pushed through instead of all.

In a causal network the output at a token depends on the source at that token along its own path
alone, once the keys and values of the tokens before it are there. So the Jacobian of a token with
respect to itself takes passes of one token. Whether a network is causal is not assumed but checked,
at every position that is used.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.routes import normal_direction, unit_rows
from localrank_cli.layers.capture import Call, Capture, How
from localrank_cli.layers.kinds import cache_class
from localrank_cli.layers.positions import Parts
from localrank_cli.layers.replay import Replay, record
from localrank_cli.layers.triangle import Triangle

# Relative, of the outputs and of J v against all tokens at once, in float64. Orders of summation
# differ by up to 3e-15 (GPT-2, NeoX, Llama, Mixtral, Mistral); a path that is missed shows at 1e-5
# and more (a state that is no cache).
_SAME = 1e-10
# Relative to J v, where J - 1 is so small that rounding in J exceeds the above: all tokens at once
# would round as much. Three times the differences seen.
_ROUNDING = 1e-14
# With fewer tokens the dense way is as cheap as the checks.
_FEWEST_TOKENS = 4


@dataclass(frozen=True)
class Token:
    """One token of one point, with the keys and values before it."""

    model: nn.Module
    token: Tensor  # (1, 1), the network's input at the position
    cache: Any
    wrt: Call
    triangles: Mapping[Call, Triangle]
    replay: Replay | None = None

    def outputs(self, varied: Tensor, calls: Sequence[Call]) -> tuple[Tensor, ...]:
        """Return the outputs of some calls, each (features,), of the source with shape (features,).

        A cache grows at every call, so that each pass has a copy of its own.
        """
        capture = Capture(
            self.model, calls, self.wrt, how=How(inputs_of=self.triangles, run=self._run)
        )
        shape = (1, 1, varied.shape[0])
        if self.replay is None:
            found = capture(self.token, varied.reshape(shape))
        else:
            with self.replay.active():
                found = capture(self.token, varied.reshape(shape))
        return tuple(self._part(call, one) for call, one in zip(calls, found, strict=True))

    def _run(self, token: Tensor) -> object:
        return self.model(token, **with_cache(self.model, copy.deepcopy(self.cache)))

    def _part(self, call: Call, tensor: Tensor) -> Tensor:
        triangle = self.triangles.get(call)
        if triangle is not None:
            tensor = triangle.output(self.model.get_submodule(call.name), tensor)
        return tensor.reshape(-1)

    def with_replay(self, calls: Sequence[Call]) -> "Token":
        """Return this token with what comes before the source run once.

        That it is exact is checked with all else, see `_agrees`.
        """
        return replace(self, replay=record(self.model, self.token, self.wrt, calls, self._run))


@dataclass(frozen=True)
class Pasts:
    """The keys and values of all tokens of each point, for all sources at these points."""

    model: nn.Module
    points: Tensor  # token ids, (points, tokens)
    last: Call  # the last that is needed: the network is run as far as that
    first: int = 0  # the point from which a batch's points are counted
    caches: dict[int, Any] = field(default_factory=dict)  # of points, as they are asked for

    def before(self, point: int, position: int) -> Any:
        """Return the keys and values of the tokens before a position, not to be changed.

        Of a network that is not causal they are not those of these tokens alone, which the checks
        of `token_jacobians` see.
        """
        make_cache = cache_class()
        assert make_cache is not None
        if position == 0:
            return make_cache()
        point += self.first
        whole = self.caches.get(point)
        if whole is None:
            # Without the config: a layer with a window would drop what the next tokens need.
            whole = make_cache()
            keywords = with_cache(self.model, whole)
            with torch.no_grad():
                Capture(
                    self.model, [self.last], how=How(run=lambda ids: self.model(ids, **keywords))
                )(self.points[point : point + 1])
            self.caches[point] = whole
        cropped = copy.deepcopy(whole)
        # Negative: the tokens to remove, where a positive number is refused.
        cropped.crop(position - self.points.shape[1])
        return cropped


def tokens_with_past(
    model: nn.Module, inputs: Tensor, wrt: Call | None, parts: Parts, n_in: int
) -> int:
    """Return the number of tokens that may be pushed through one by one; 0 if they may not.

    Each position must have its counterpart in the source; `n_in` are the entries of the source.
    """
    if wrt is None or parts.places is None or parts.columns is None:
        return 0
    n_tokens = n_in // parts.columns.shape[2]
    return n_tokens if has_past(model, inputs, n_tokens) else 0


def has_past(model: nn.Module, inputs: Tensor, n_positions: int) -> bool:
    """Return whether a model takes keys and values of earlier tokens, and has enough of them.

    `inputs` are token ids, (points, tokens).
    """
    if inputs.dim() != 2 or inputs.is_floating_point() or inputs.shape[1] != n_positions:
        return False
    if n_positions < _FEWEST_TOKENS or cache_class() is None:
        return False
    return _cache_keyword(model) is not None


def with_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Return the keywords that give a model a cache to use and to fill."""
    keyword = _cache_keyword(model)
    assert keyword is not None
    return {keyword: cache, "use_cache": True}


def _cache_keyword(model: nn.Module) -> str | None:
    names = inspect.signature(model.forward).parameters
    if "use_cache" not in names:
        return None
    # The first is the name of earlier versions of transformers.
    return next((name for name in ("past_key_values", "cache") if name in names), None)


def part_of_token(
    batch: Batch, first: Parts, place: tuple[int, int], pasts: Pasts
) -> tuple[Token, Tensor]:
    """Return the token at a place, (point, part), and its varied tensor, (features,).

    `first` are the parts of any call.
    """
    point, part = place
    assert first.columns is not None
    assert first.places is not None
    assert batch.wrt is not None
    position = int(first.places[point, part])
    ids = batch.inputs[point : point + 1, position : position + 1]
    cache = pasts.before(point, position)
    token = Token(batch.model, ids, cache, batch.wrt, batch.triangles)
    varied = batch.varied[point, first.columns[point, part].to(batch.varied.device)]
    return token, varied


@dataclass
class TokenJacobians:
    """The Jacobians of tokens by passes of one token, and the points where that is not exact."""

    blocks: dict[Call, Tensor]  # (points, parts, r, c); undefined at the points below
    dense: dict[Call, set[int]]  # points to compute with all tokens at once
    differing: set[Call]  # calls that have other values at such a point, all of them finite


def token_jacobians(
    batch: Batch,
    parts: Mapping[Call, Parts],
    calls: Sequence[Call],
    chunks: tuple[int, int],
    pasts: Pasts,
    finite: Mapping[Call, Tensor],
    *,
    residual: bool = False,
) -> TokenJacobians:
    """Return the Jacobians of each token with respect to itself, by passes of one token.

    The batch is one of `with_rows`, whose parts have one position of the source for each of the
    output. A call whose check fails at a point is not causal there, or keeps more than keys and
    values; it is for the caller to compute with all tokens at once.

    `chunks` says how many directions of all tokens are computed at once, and how many of one.
    Nothing is computed at points that are not `finite`, (points,) bool. With `residual`, J - 1 has
    to be the same as that of all tokens at once.
    """
    n_parts = parts[calls[0]].n_parts
    dense, pushed = _dense(batch, parts, calls, chunks[0])
    found = TokenJacobians({}, {call: set() for call in calls}, set())
    for call in calls:
        n_rows, width = parts[call].n_rows, n_columns(parts[call])
        found.blocks[call] = batch.varied.new_zeros(batch.n_points, n_parts, n_rows, width)
    for point, part in product(range(batch.n_points), range(n_parts)):
        left = [c for c in calls if bool(finite[c][point]) and point not in found.dense[c]]
        if not left:
            continue
        token, varied = part_of_token(batch, parts[calls[0]], (point, part), pasts)
        with torch.no_grad():
            token = token.with_replay(left)
        expected = {call: (dense[call][point, part], pushed[call][point, part]) for call in left}
        agreeing = _agreeing(token, varied, expected, residual=residual)
        for call in left:
            if call not in agreeing:
                found.dense[call].add(point)
                if all(bool(torch.isfinite(one).all()) for one in expected[call]):
                    found.differing.add(call)
        if agreeing:
            blocks = _block(token, varied, agreeing, chunks[1], batch.advance)
            for call, block in zip(agreeing, blocks, strict=True):
                found.blocks[call][point, part] = block
    return found


def n_columns(parts: Parts) -> int:
    """Return the columns of the Jacobian of a token with respect to itself."""
    assert parts.columns is not None
    return parts.columns.shape[2]


def _dense(
    batch: Batch, parts: Mapping[Call, Parts], calls: Sequence[Call], chunk: int
) -> tuple[dict[Call, Tensor], dict[Call, Tensor]]:
    """Return outputs and J v of all tokens at once, each (points, parts, r).

    `chunk` directions, of which each part has one, are computed at once.
    """
    first = parts[calls[0]]
    assert first.columns is not None
    columns = first.columns.to(batch.varied.device)
    outputs = dict[Call, Tensor]()
    pushed: dict[Call, list[Tensor]] = {call: [] for call in calls}
    normal = normal_direction(columns.shape[2], batch.varied)

    def along(direction: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the outputs and J v of all calls along one direction."""
        pair = jvp(
            lambda varied: batch.outputs(varied, calls, early=True), (batch.varied,), (direction,)
        )
        return pair[0], pair[1]

    for start in range(0, first.n_parts, chunk):
        by_part = columns[:, start : start + chunk].movedim(1, 0)
        directions = batch.varied.new_zeros(len(by_part), *batch.varied.shape)
        directions.scatter_(2, by_part, normal.expand_as(by_part))
        # The outputs are the same along every direction.
        values, tangents = vmap(along, out_dims=(None, 0))(directions)  # type: ignore[arg-type]  # torch takes None within a tuple
        for call, value, tangent in zip(calls, values, tangents, strict=True):
            shape = batch.n_points, parts[call].n_parts, parts[call].n_rows
            outputs[call] = value.reshape(shape)
            every = tangent.reshape(len(by_part), *shape)
            pushed[call] += [every[i, :, start + i] for i in range(len(by_part))]
    return outputs, {call: torch.stack(rows, dim=1) for call, rows in pushed.items()}


def _agreeing(
    token: Token, varied: Tensor, expected: Mapping[Call, tuple[Tensor, Tensor]], *, residual: bool
) -> list[Call]:
    """Return the calls whose output and J v, or (J - 1) v, are those of all tokens at once."""
    calls = list(expected)
    direction = normal_direction(varied.shape[0], varied)
    pair = jvp(lambda v: token.outputs(v, calls), (varied,), (direction,))
    less = direction if residual else None
    return [
        call
        for call, value, tangent in zip(calls, pair[0], pair[1], strict=True)
        if _same(value, expected[call][0]) and _same(tangent, expected[call][1], less)
    ]


def _same(ours: Tensor, theirs: Tensor, less: Tensor | None = None) -> bool:
    """Return whether two tensors are the same, and so are what is left without a third."""
    if ours.numel() != theirs.numel():
        return False
    bound = _SAME * theirs.abs().max()
    if less is not None:
        left = _SAME * (theirs.flatten() - less).abs().max()
        bound = torch.minimum(bound, torch.maximum(left, _ROUNDING / _SAME * bound))
    return bool(((ours - theirs.flatten()).abs() <= bound).all())


def push_token(
    token: Token, varied: Tensor, calls: Sequence[Call], span: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Return J v of each call for some unit vectors v, (directions, features)."""

    def along(direction: Tensor) -> tuple[Tensor, ...]:
        """Return J v of all calls along one direction of the token."""
        pair = jvp(lambda v: token.outputs(v, calls), (varied,), (direction,))
        tangents: tuple[Tensor, ...] = pair[1]
        return tangents

    found: tuple[Tensor, ...] = vmap(along)(unit_rows(*span, varied.unsqueeze(0)))
    return found


def _block(
    token: Token,
    varied: Tensor,
    calls: Sequence[Call],
    chunk: int,
    advance: Callable[[int], None],
) -> list[Tensor]:
    count = varied.shape[0]
    kept: list[list[Tensor]] = [[] for _ in calls]
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        tangents = push_token(token, varied, calls, (start, stop))
        advance(stop - start)
        for one, tangent in zip(kept, tangents, strict=True):
            one.append(tangent)
    return [torch.cat(one).mT for one in kept]
