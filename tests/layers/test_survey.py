"""One forward pass over one point: what ran, in which order, and what depends on what."""

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import LayerError, ModelError
from localrank_cli.layers.capture import Call
from localrank_cli.layers.plain import survey_precisely
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import Survey, survey
from tests.cases import CASES, Case, params
from tests.naive import naive_jacobians
from tests.networks import Net, Wrapped, ab, embedding, mlp
from tests.traces import unchanged


def survey_of(model: nn.Module, points: Tensor, wrt: str = "") -> Survey:
    call = Call.parse(wrt) if wrt else None
    seen, _ = survey_precisely(model, points[:1], call, torch.float64)
    return seen


@pytest.mark.parametrize("case", params(CASES))
def test_records_agree_with_the_naive_way(case: Case) -> None:
    model, points = case.build()
    with unchanged(model, points):
        seen = survey_of(model, points, case.wrt)
    expected = naive_jacobians(model, points[:1], case.layers, case.wrt)
    for label, jacobians in expected.items():
        record = seen.find(Call.parse(label))
        assert record is not None
        assert record.depends
        assert record.numel == jacobians.shape[1]
        assert seen.n_in == jacobians.shape[2]
    if not case.layers:
        depending = [r.call.label for r in seen.records if r.affine and r.depends]
        assert depending == list(expected)
    assert seen.has_low_precision == case.low_precision


def test_records_are_in_the_order_in_which_calls_end() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))).double()
    seen = survey_of(model, torch.randn(1, 3, dtype=torch.float64))
    assert [r.call.label for r in seen.records] == ["0", "1.0", "1.1", "1"]
    assert [r.module for r in seen.records] == ["Linear", "ReLU", "Linear", "Sequential"]
    assert [r.shape for r in seen.records] == [(1, 4), (1, 4), (1, 2), (1, 2)]
    assert [r.affine for r in seen.records] == [True, False, True, False]


def test_cost_is_products_and_results() -> None:
    # A Linear of n x m takes 2 n m operations and writes m entries; an activation writes its own.
    model = mlp(30, 50, 40, act=nn.Tanh).double()
    records = survey_of(model, torch.randn(1, 30, dtype=torch.float64)).records
    first, act, second = (record.cost for record in records)
    assert first == 2 * 30 * 50 + 50
    assert act == first + 50
    assert second == act + 2 * 50 * 40 + 40


def test_activations_are_the_results_for_one_point() -> None:
    model = mlp(30, 50, 40, act=nn.Tanh).double()
    seen = survey_of(model, torch.randn(7, 30, dtype=torch.float64))
    assert seen.activations == 50 + 50 + 40  # no transposed weight among them


@pytest.mark.parametrize(("dtype", "part", "low"), [
    (torch.float64, lambda t: t, False),
    (torch.float64, lambda t: t.float().double(), False),  # float64 answers
    (torch.float64, lambda t: t.half().double(), True),
    (torch.float64, lambda t: t.bfloat16().double(), True),
    (torch.float32, lambda t: t * 1, False),
    (torch.float32, lambda t: t.half().float(), True),
])  # fmt: skip
def test_low_precision_is_seen(dtype: torch.dtype, part: object, low: bool) -> None:
    assert callable(part)
    model = ab(lambda m, x: m["b"](part(m["a"](x)))).to(dtype)
    with analysis_setting(model, dtype):
        assert survey(model, torch.randn(1, 6, dtype=dtype)).has_low_precision is low


def test_modules_that_return_no_tensor() -> None:
    model = Net(
        lambda m, x: (m["silent"](x), m["index"](x), m["a"](x)),
        silent=Wrapped(3, 2, lambda t: None),
        index=Wrapped(3, 2, lambda t: t.argmax(1)),
        a=nn.Linear(3, 2),
    ).double()
    seen = survey_of(model, torch.randn(1, 3, dtype=torch.float64))
    assert seen.silent == ("silent", "index")
    assert seen.find(Call("index")) is None


def test_wrt_cuts_what_came_before() -> None:
    model = Net(
        lambda m, x: m["c"](m["b"](torch.tanh(m["a"](x))) + m["skip"](x)),
        a=nn.Linear(5, 6), b=nn.Linear(6, 4), skip=nn.Linear(5, 4), c=nn.Linear(4, 3),
    ).double()  # fmt: skip
    seen = survey_of(model, torch.randn(2, 5, dtype=torch.float64), wrt="b")
    assert (seen.varied_shape, seen.n_in) == ((1, 4), 4)
    assert {r.call.label: r.depends for r in seen.records} == {
        "a": False, "b": True, "skip": False, "c": True,
    }  # fmt: skip


def test_tokens() -> None:
    model, tokens = embedding().double(), torch.randint(11, (3, 4))
    assert survey_of(model, tokens, wrt="emb").varied_shape == (1, 4, 6)
    with pytest.raises(LayerError, match=r"integers .* --wrt emb"):
        survey_of(model, tokens)


def test_a_failing_forward_pass_is_placed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2))).double()
    points = torch.randn(2, 4, dtype=torch.float64)
    with unchanged(model, points), pytest.raises(ModelError) as caught:
        survey_of(model, points)
    assert "failed in '1.1' (Linear)" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
