"""Which layers are analyzed, which are left out with a note, and what is refused."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import LayerError
from localrank_cli.layers.select import Selection
from localrank_cli.spectrum.examine import Examination, examine
from tests.asking import spectra_of
from tests.networks import Net, Wrapped, embedding, mlp


def block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def tower() -> Net:
    """enc.0.{0,1,2}, enc.1.{0,1,2}, head; aside runs without the input, idle never."""
    return Net(
        lambda m, x: m["head"](m["enc"](x)) + m["aside"](torch.ones(1, 4)),
        enc=nn.Sequential(block(4), block(4)),
        head=nn.Linear(4, 3),
        aside=nn.Linear(4, 3),
        idle=nn.Linear(4, 3),
    ).double()


def shared() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 3)).double()


POINTS = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)


def ask(
    model: nn.Module, *include: str, exclude: tuple[str, ...] = (), wrt: str = ""
) -> Examination:
    return examine(model, POINTS, Selection(include, exclude, wrt), torch.float64)


def labels(examination: Examination) -> list[str]:
    return [record.call.label for record in examination.records]


LINEAR = ["enc.0.0", "enc.0.2", "enc.1.0", "enc.1.2"]


@dataclass(frozen=True)
class Choice:
    include: tuple[str, ...]
    expected: list[str]
    exclude: tuple[str, ...] = field(default=())


@pytest.mark.parametrize(
    "choice",
    [
        Choice((), [*LINEAR, "head"]),
        Choice(("*.0",), ["enc.0.0", "enc.0", "enc.1.0"]),  # crosses dots
        Choice(("enc.*.0",), ["enc.0.0", "enc.1.0"]),
        Choice(("enc.[01].[02]",), LINEAR),
        Choice(("enc.?.2", "head"), ["enc.0.2", "enc.1.2", "head"]),
        Choice(("head", "enc.0.0"), ["enc.0.0", "head"]),  # in order of execution
        Choice(("head", "head"), ["head"]),
        Choice(("enc.0.1",), ["enc.0.1"]),  # any module may be named
        Choice(("enc",), ["enc"]),
        Choice((), ["head"], exclude=("enc.*",)),
        Choice((), ["enc.0.0", "enc.0.2", "head"], exclude=("enc.1.?",)),
        Choice((), LINEAR, exclude=("head",)),
        Choice(("enc.*",), ["enc.0.1", "enc.1.1"], exclude=("*.0", "*.2", "enc.0", "enc.1")),
        Choice(("*.2",), ["enc.0.2"], exclude=("enc.1.2",)),
    ],
    ids=str,
)
def test_patterns(choice: Choice) -> None:
    assert labels(ask(tower(), *choice.include, exclude=choice.exclude)) == choice.expected


def test_left_out_layers_are_noted() -> None:
    assert list(ask(tower()).notes) == [
        "left out, do not depend on the input: aside",
        "left out, never run as modules: idle",
    ]


def test_layers_that_a_glob_leaves_out_are_noted() -> None:
    examination = ask(tower(), "*[de]*")
    assert "head" in labels(examination)
    notes = "; ".join(examination.notes)
    assert "do not depend on the input: aside" in notes
    assert "never run or return no floating-point tensor: idle" in notes


def test_the_projection_inside_attention_never_runs_as_a_module() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    model = Net(
        lambda m, x: m["head"](m["attn"](x[:, None], x[:, None], x[:, None])[0]),
        attn=attention, head=nn.Linear(4, 3),
    ).double()  # fmt: skip
    examination = ask(model)
    assert labels(examination) == ["head"]
    assert examination.notes[0] == "left out, never run as modules: attn.out_proj"


def test_recurrent_layers_attention_and_norms_are_named_with_the_option_that_takes_them() -> None:
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    layers = nn.ModuleList([block, nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)])
    model = Net(
        lambda m, x: m["head"](m["rnn"](m["layers"][1](m["layers"][0](x[:, None])))[0]),
        layers=layers, rnn=nn.GRU(4, 5, batch_first=True), head=nn.Linear(5, 3),
    ).double()  # fmt: skip
    note = ask(model).notes[-1]
    assert note == (
        "left out by default: layers.0.self_attn, layers.1.self_attn (MultiheadAttention),"
        " layers.0.norm1, layers.0.norm2, layers.1.norm1 and 1 more (LayerNorm), rnn (GRU);"
        " --layers 'layers.*.norm1,layers.*.norm2,layers.*.self_attn,rnn' selects them"
    )
    globs = note.split("'")[1].split(",")
    assert set(labels(ask(model, *globs))) == {
        *(f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn", "norm1", "norm2")), "rnn",
    }  # fmt: skip


def test_calls_within_vmap_are_left_out_with_a_note() -> None:
    model = Net(
        lambda m, x: m["head"](torch.func.vmap(m["inner"])(x)),
        inner=nn.Linear(4, 5), head=nn.Linear(5, 3),
    ).double()  # fmt: skip
    assert labels(ask(model)) == ["head"]
    assert ask(model).notes == ("left out, run within torch.func.vmap: inner",)


def test_no_note_where_nothing_is_left_out() -> None:
    assert ask(mlp(4, 5, 3).double()).notes == ()


def test_each_call_can_be_named() -> None:
    assert labels(ask(shared())) == ["0", "0#2", "3"]
    assert labels(ask(shared(), "0#2")) == ["0#2"]
    assert labels(ask(shared(), "0")) == ["0", "0#2"]
    assert labels(ask(shared(), exclude=("0#2",))) == ["0", "3"]
    assert labels(ask(shared(), "*#2")) == ["0#2"]


def test_a_shared_module_answers_to_all_its_names() -> None:
    assert labels(ask(shared(), "2")) == ["0", "0#2"]
    assert labels(ask(shared(), exclude=("2",))) == ["3"]


def test_with_respect_to_a_module() -> None:
    examination = ask(tower(), wrt="enc.0")
    assert labels(examination) == ["enc.1.0", "enc.1.2", "head"]
    assert examination.survey.varied_shape == (1, 4)
    assert "do not depend on the output of 'enc.0': enc.0.0, enc.0.2, aside" in examination.notes[0]


def test_with_respect_to_the_second_call() -> None:
    model = Net(
        lambda m, x: m["b"](m["a"](torch.tanh(m["a"](x)))), a=nn.Linear(4, 4), b=nn.Linear(4, 3)
    ).double()
    assert labels(ask(model, wrt="a")) == ["a", "a#2", "b"]
    assert labels(ask(model, wrt="a#2")) == ["a#2", "b"]


def test_with_respect_to_the_other_name_of_a_shared_module() -> None:
    layer = nn.Linear(4, 4)
    model = Net(lambda m, x: m["b"](m["q"](x)), p=layer, q=layer, b=nn.Linear(4, 3)).double()
    assert labels(ask(model, "b", wrt="q")) == ["b"]


def test_a_tensor_inside_a_tuple_is_a_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Wrapped(4, 3, lambda t: (t, 1))).double()
    assert labels(ask(model, "1")) == ["1"]


@pytest.mark.parametrize(
    ("include", "what"),
    [
        ("enc.7", "there is no layer 'enc.7'."),
        ("encoder.*", "no layer matches 'encoder.*'."),
        ("head#2", "there is no layer 'head#2'."),
        ("idle", "layer 'idle' never runs."),
        ("aside", "layer 'aside' does not depend on the input."),
        ("", "there is no layer ''."),
    ],
)
def test_patterns_that_lead_nowhere(include: str, what: str) -> None:
    with pytest.raises(LayerError) as caught:
        ask(tower(), include)
    assert caught.value.what == what
    if "depend" in what:
        assert "--wrt" in caught.value.advice
    else:
        # The names there are, and in what order they run.
        advice = caught.value.advice
        assert advice.startswith("Layers that run: enc.0.0 (Linear), enc.0.1 (GELU), enc.0.2")
        assert "head (Linear)" in advice


def test_a_bad_pattern_among_good_ones_is_an_error() -> None:
    for include, exclude in [(("head", "nope*"), ()), ((), ("nope*",)), (("head",), ("nope",))]:
        with pytest.raises(LayerError, match="nope"):
            ask(tower(), *include, exclude=exclude)


def test_a_long_list_of_names_is_cut() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(30)]).double()
    with pytest.raises(LayerError, match=r"19 \(Linear\) and 10 more"):
        ask(model, "nope")


def test_a_module_without_a_tensor_cannot_be_named() -> None:
    model = Net(
        lambda m, x: (m["index"](x), m["b"](x)), b=nn.Linear(4, 3),
        index=Wrapped(4, 3, lambda t: t.argmax(1)),
    ).double()  # fmt: skip
    with pytest.raises(LayerError, match="'index' returns no floating-point tensor"):
        ask(model, "index")


def test_everything_excluded() -> None:
    with pytest.raises(LayerError, match=r"no layer is left to analyze\. Layers that run: 0"):
        ask(mlp(4, 5, 3).double(), exclude=("*",))


def test_every_layer_before_wrt() -> None:
    with pytest.raises(LayerError, match=r"no chosen layer depends on the output of '3': 0, 2"):
        ask(mlp(4, 5, 3, act=nn.Tanh).double().append(nn.Tanh()), "[02]", wrt="3")


def test_leaving_layers_out_does_not_change_the_others() -> None:
    model = tower()
    everything = spectra_of(model, POINTS)
    for label, spectrum in everything.items():
        (alone,) = spectra_of(model, POINTS, (label,)).values()
        # The same products; only the mode of differentiation may be another.
        assert torch.allclose(alone.values, spectrum.values, rtol=0, atol=1e-13)


def test_tokens_with_respect_to_their_embedding() -> None:
    tokens = torch.tensor([[1, 2, 3]])
    examination = examine(embedding().double(), tokens, Selection((), (), "emb"), torch.float64)
    assert labels(examination) == ["mix", "head"]
    assert examination.survey.n_in == 18


def test_an_empty_output_is_not_a_layer() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        net["empty"](x)
        out: Tensor = net["b"](x)
        return out

    model = Net(run, empty=Wrapped(4, 3, lambda t: t[:, :0]), b=nn.Linear(4, 3)).double()
    assert labels(ask(model, "[eb]*")) == ["empty.inner", "b"]
