"""Which calls go forward and which in reverse, and what fits."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.jacobian.budget import directions_at_once, layer_groups, split_by_depth
from localrank_cli.layers.capture import Call
from localrank_cli.layers.survey import CallRecord


def record(name: str, numel: int, cost: float) -> CallRecord:
    return CallRecord(Call(name), "Linear", True, (1, numel), True, cost)


layers = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 1000)), min_size=1, max_size=6)


def records_of(sizes: list[tuple[int, int]]) -> list[CallRecord]:
    depth = 0.0
    records = []
    for index, (numel, cost) in enumerate(sizes):
        depth += cost
        records.append(record(str(index), numel, depth))
    return records


def test_wide_outputs_go_forward_and_narrow_ones_in_reverse() -> None:
    # An encoder: 100 inputs, 1000 hidden, then 10 logits after a dear stretch.
    records = [record("wide", 1000, 1.0), record("logits", 10, 50.0)]
    split = split_by_depth(records, n_in=100)
    assert [one.call.name for one in split.forward] == ["wide"]
    assert [one.call.name for one in split.reverse] == ["logits"]


def test_one_forward_pass_serves_all_calls() -> None:
    # In reverse each costs 80 * depth; forward costs 100 * 3 for all three.
    records = [record(str(depth), 80, depth) for depth in (1.0, 2.0, 3.0)]
    assert len(split_by_depth(records, n_in=100).forward) == 3


@given(sizes=layers, n_in=st.integers(1, 300))
def test_no_other_split_is_cheaper(sizes: list[tuple[int, int]], n_in: int) -> None:
    records = records_of(sizes)
    split = split_by_depth(records, n_in)
    assert sorted(r.call for r in (*split.forward, *split.reverse)) == [r.call for r in records]

    def cost(forward: tuple[CallRecord, ...]) -> float:
        rest = [one for one in records if one not in forward]
        deepest = max((one.cost for one in forward), default=0.0)
        return n_in * deepest + sum(one.numel * one.cost for one in rest)

    subsets = [s for k in range(len(records) + 1) for s in combinations(records, k)]
    assert cost(split.forward) == min(cost(subset) for subset in subsets)


@given(sizes=layers, n_in=st.integers(1, 300))
def test_both_parts_keep_the_order_of_execution(sizes: list[tuple[int, int]], n_in: int) -> None:
    records = records_of(sizes)
    split = split_by_depth(records, n_in)
    for part in (split.forward, split.reverse):
        assert list(part) == [one for one in records if one in part]


@given(sizes=layers, n_in=st.integers(1, 50), budget=st.integers(1, 10**6))
def test_groups_fit_and_lose_nothing(sizes: list[tuple[int, int]], n_in: int, budget: int) -> None:
    records = records_of(sizes)
    groups = layer_groups(records, n_in, 8, budget)
    assert [one for group in groups for one in group] == records
    for group in groups:
        assert len(group) == 1 or sum(one.numel * n_in * 8 for one in group) <= budget
    for first, second in pairwise(groups):
        # Not smaller than need be: the next call would not have fitted.
        assert sum(one.numel * n_in * 8 for one in (*first, second[0])) > budget


@given(
    n_points=st.integers(1, 100),
    activations=st.integers(1, 10**6),
    budget=st.integers(0, 10**9),
)
def test_directions_fit_or_go_one_by_one(n_points: int, activations: int, budget: int) -> None:
    chunk = directions_at_once(n_points, activations, 8, budget)
    one = n_points * activations * 8
    assert chunk == 1 or chunk * one <= budget
    assert (chunk + 1) * one > budget
