"""Which weights of a file are read where they are at no usual key, or have other names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from localrank_cli import analyze
from localrank_cli.errors import LocalrankError
from tests.checkpoints.dcp_writer import save_dcp
from tests.cli.program import invoke
from tests.helpers import mlp, renamed, weights

ONE, TWO = weights(seed=1), weights(seed=2)
OTHER = weights(4, 5, 1, seed=3)  # of another network
NET = """from torch import nn


def build():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
"""
LOSS = {"criterion.weight": torch.ones(2)}


def build() -> nn.Module:
    return mlp(4, 3, 2)


class Compiled(nn.Module):
    """Holds a module where torch.compile does, without its warnings."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self._orig_mod(inputs)
        return result


def compiled_part() -> nn.Module:
    model = mlp(4, 3, 2)
    model[0] = Compiled(model[0])
    return model


def parallel() -> nn.Module:
    return nn.DataParallel(mlp(4, 3, 2))


class Trained(nn.Module):
    """A network with its average and its loss, as a LightningModule has them."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.ema = mlp(4, 3, 2), mlp(4, 3, 2)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.net(inputs)
        return result


def with_average_and_loss() -> nn.Module:
    return Trained()


def normed() -> nn.Module:
    model = mlp(4, 3, 2)
    parametrizations.weight_norm(model[0])
    return model


def check(path: Path, state: Mapping[str, Tensor], **options: Any) -> None:
    """Analyze and compare the first layer's Jacobian with the weights that should be read."""
    table = analyze(path, data="normal:4", points=2, **options)
    norm = torch.linalg.matrix_norm(state["0.weight"].double())
    # The norm is computed twice in float64, from 12 numbers.
    torch.testing.assert_close(table["jacobian_norm"][0], norm.item(), rtol=1e-12, atol=0)


def save(folder: Path, content: object) -> Path:
    torch.save(content, folder / "step_5.pt")
    return folder


class TestOtherKeys:
    @pytest.mark.parametrize("options", [{}, {"model": build}, {"weights": "generator"}])
    def test_the_only_state_dict(self, tmp_path: Path, options: dict[str, Any]) -> None:
        save(tmp_path, {"generator": ONE, "optimizer": {"state": {}, "param_groups": []}})
        check(tmp_path, ONE, **options)

    def test_a_note_names_it(self, tmp_path: Path) -> None:
        save(tmp_path, {"nets": {"g": ONE}})
        outcome = invoke(
            "analyze", str(tmp_path), "--data", "normal:4", "-o", str(tmp_path / "x.csv")
        )
        assert "note: using the weights under 'nets.g'" in outcome.stderr

    @pytest.mark.parametrize(
        "content",
        [
            {"discriminator": OTHER, "generator": ONE},
            {"nets": {"d": OTHER, "g": ONE}},
            {"model": OTHER, "generator": ONE},
            {"online_model": ONE, "ema_model": TWO},
            {"online": ONE, "online_ema": TWO},
        ],
    )
    def test_the_one_that_fits(self, tmp_path: Path, content: object) -> None:
        check(save(tmp_path, content), ONE, model=build)

    @pytest.mark.parametrize("options", [{}, {"model": build}])
    def test_several_that_fit(self, tmp_path: Path, options: dict[str, Any]) -> None:
        save(tmp_path, {"student": ONE, "teacher": TWO})
        with pytest.raises(LocalrankError) as caught:
            check(tmp_path, ONE, **options)
        assert "--weights student or --weights teacher" in caught.value.advice
        check(tmp_path, TWO, weights="teacher", **options)

    @pytest.mark.parametrize("key", ["a.b.c", "ema_model", "optimizer_net"])
    def test_any_key_that_is_named(self, tmp_path: Path, key: str) -> None:
        content: Any = TWO
        for part in reversed(key.split(".")):
            content = {part: content}
        check(save(tmp_path, {"model": ONE} | content), TWO, weights=key)

    @pytest.mark.parametrize(
        ("content", "key", "state"),
        [
            (
                {"generator": ONE, "optim": {"state": {"0.weight": {"exp_avg": TWO["0.weight"]}}}},
                "",
                ONE,
            ),
            ({"student": ONE, "teacher": TWO}, "teacher", TWO),
            ({"model": ONE, "teacher": TWO}, "", ONE),
            ({"model": ONE, "teacher": TWO}, "teacher", TWO),
            ({"nets": {"g": ONE, "d": OTHER}}, "", ONE),
            ({"g": ONE, "g_ema": TWO}, "ema", TWO),
            ({**ONE, "ema": TWO}, "", ONE),
            ({**ONE, "ema": TWO}, "ema", TWO),
            ({**ONE, "best": TWO}, "best", TWO),
            ({**ONE, "model": TWO}, "", ONE),
            ({**ONE, "model": TWO}, "model", TWO),
            ({"stats.cov": torch.eye(3), "model": ONE}, "", ONE),
        ],
    )
    def test_in_a_folder_of_torch_distributed(
        self, tmp_path: Path, content: dict[str, Any], key: str, state: dict[str, Tensor]
    ) -> None:
        save_dcp(tmp_path / "step_5", content)
        check(tmp_path, state, model=build, **({"weights": key} if key else {}))

    def test_usual_keys_come_first(self, tmp_path: Path) -> None:
        check(save(tmp_path, {"another": TWO, "model": ONE}), ONE, model=build)


class TestPrefixes:
    @pytest.mark.cover(1)
    @pytest.mark.parametrize(
        ("content", "key"),
        [
            ({**renamed(ONE, "student."), **renamed(TWO, "teacher.")}, "student"),
            ({"state_dict": {**renamed(ONE, "a."), **renamed(TWO, "b.")}}, "a"),
            ({"state_dict": {**renamed(ONE, "a."), **renamed(TWO, "b.")}}, "state_dict.a"),
            ({**renamed(ONE, "x.g."), **renamed(TWO, "x.d.")}, "x.g"),
        ],
    )
    @pytest.mark.parametrize("options", [{}, {"model": build}])
    def test_of_two_networks_the_named_one(
        self, tmp_path: Path, content: object, key: str, options: dict[str, Any]
    ) -> None:
        save(tmp_path, content)
        with pytest.raises(LocalrankError) as caught:
            check(tmp_path, ONE, **options)
        assert f"--weights {key.removeprefix('state_dict.')} or" in caught.value.advice
        check(tmp_path, ONE, weights=key, **options)

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("place", ["ema", "best"])
    @pytest.mark.parametrize("options", [{}, {"model": build}])
    def test_not_another_set_whose_place_ends_so(
        self, tmp_path: Path, place: str, options: dict[str, Any]
    ) -> None:
        both = {**renamed(ONE, "student."), **renamed(OTHER, "teacher.")}
        save(tmp_path, {"state_dict": both, place: {"student": TWO}})
        check(tmp_path, ONE, weights="student", **options)
        check(tmp_path, TWO, weights=f"{place}.student", **options)

    def test_of_two_networks_the_one_that_fits(self, tmp_path: Path) -> None:
        save(tmp_path, {**renamed(OTHER, "d."), **renamed(ONE, "g.")})
        check(tmp_path, ONE, model=build)

    def test_an_average_by_its_prefix(self, tmp_path: Path) -> None:
        save(tmp_path, {**renamed(ONE, "online_model."), **renamed(TWO, "ema_model.")})
        check(tmp_path, ONE, model=build)
        check(tmp_path, TWO, model=build, weights="ema")

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("key", ["ema", "ema_state_dict", "model_ema"])
    @pytest.mark.parametrize("beside", [{}, {"model": ONE}])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_an_average_that_keeps_the_weights_it_averages(
        self, tmp_path: Path, key: str, beside: dict[str, Any], prefix: str
    ) -> None:
        # As written by ema.state_dict() of the package ema-pytorch.
        both = {**renamed(ONE, f"{prefix}online_model."), **renamed(TWO, f"{prefix}ema_model.")}
        counters = {"initted": torch.tensor(True), "step": torch.tensor(7)}
        save(tmp_path, {**beside, key: {**both, **counters}})
        check(tmp_path, ONE, model=build)
        check(tmp_path, ONE)
        check(tmp_path, TWO, model=build, weights="ema")
        for name in (f"{prefix}ema_model", f"{key}.{prefix}ema_model"):
            check(tmp_path, TWO, model=build, weights=name)
        check(tmp_path, ONE, model=build, weights=f"{prefix}online_model")

    @pytest.mark.parametrize(
        "content",
        [
            {"model": ONE, "ema": {"decay": 0.9, "shadow": TWO}},
            {"generator": ONE, "generator_ema": TWO},
            {"nets": {"g": ONE, "g_ema": TWO}},
        ],
    )
    def test_an_average_at_a_key_that_no_framework_uses(
        self, tmp_path: Path, content: object
    ) -> None:
        save(tmp_path, content)
        for options in ({}, {"model": build}):
            check(tmp_path, ONE, **options)
            check(tmp_path, TWO, weights="ema", **options)

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("options", [{}, {"model": build}])
    @pytest.mark.parametrize("beside", [{}, {"epoch": 3, "optimizer": {"state": {}}}])
    @pytest.mark.parametrize(
        ("place", "key"),
        [
            ("ema", "ema"),
            ("model_ema", "model_ema.shadow"),
            ("best", "best"),
            ("old", "old.best"),
            ("model", "model"),
            ("state_dict", "state_dict"),
            ("net", "net.module"),
        ],
    )
    def test_another_set_within_a_bare_state_dict(
        self,
        tmp_path: Path,
        place: str,
        key: str,
        beside: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        inner: Any = {key.rpartition(".")[2]: TWO} if "." in key else TWO
        save(tmp_path, {**ONE, **beside, place: inner})
        check(tmp_path, ONE, **options)
        check(tmp_path, TWO, weights=key, **options)
        if "ema" in place:
            check(tmp_path, TWO, weights="ema", **options)

    @pytest.mark.parametrize("place", ["model", "ema", "best"])
    def test_another_set_within_the_state_dict_of_one_layer(
        self, tmp_path: Path, place: str
    ) -> None:
        one, two = ({k: state[f"0.{k}"] for k in ("weight", "bias")} for state in (ONE, TWO))
        save(tmp_path, {**one, place: two})
        check(tmp_path, ONE, model=lambda: nn.Linear(4, 3))
        check(tmp_path, TWO, model=lambda: nn.Linear(4, 3), weights=place)

    @pytest.mark.parametrize("content", [{**ONE, "model": TWO}, {**ONE, **renamed(TWO, "best.")}])
    def test_a_note_names_the_set_within_a_bare_state_dict(
        self, tmp_path: Path, content: dict[str, Any]
    ) -> None:
        save(tmp_path, content)
        (tmp_path / "net.py").write_text(NET)
        words = ("analyze", str(tmp_path), "--data", "normal:4", "-o", str(tmp_path / "x.csv"))
        outcome = invoke(*words, "--model", f"{tmp_path / 'net.py'}:build")
        assert "best.0.weight" in outcome.stderr or "not 'model' (--weights)" in outcome.stderr

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("options", [{}, {"model": build}])
    @pytest.mark.parametrize("place", ["model", "best"])
    def test_statistics_beside_a_state_dict_are_none(
        self, tmp_path: Path, place: str, options: dict[str, Any]
    ) -> None:
        check(save(tmp_path, {"stats.cov": torch.eye(3), place: ONE}), ONE, **options)
        check(save(tmp_path, {"0.weight": TWO["0.weight"], place: ONE}), ONE, **options)

    @pytest.mark.parametrize("place", ["model", "best"])
    def test_a_plain_mlp_beside_a_network_that_is_none_is_not_taken_for_it(
        self, tmp_path: Path, place: str
    ) -> None:
        save(tmp_path, {**nn.Sequential(nn.Conv2d(1, 2, 3)).state_dict(), place: ONE})
        with pytest.raises(LocalrankError, match=r"0\.weight \[2, 1, 3, 3\]"):
            check(tmp_path, ONE)
        check(tmp_path, ONE, weights=place)

    @pytest.mark.parametrize("prefix", ["model.", "best.", "ema.module."])
    def test_another_set_under_a_prefix_beside_the_networks_own_names(
        self, tmp_path: Path, prefix: str
    ) -> None:
        state = {**ONE, **renamed(TWO, prefix)}
        save_file(dict(state), tmp_path / "step_5.safetensors")
        check(tmp_path, ONE, model=build)
        check(tmp_path, TWO, model=build, weights=prefix.rstrip("."))
        save_file({**state, "head.weight": torch.ones(2, 2)}, tmp_path / "step_5.safetensors")
        with pytest.raises(LocalrankError, match="unexpected: "):
            check(tmp_path, ONE, model=build)

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("options", [{}, {"model": build}])
    @pytest.mark.parametrize(
        "state", [{**ONE, **LOSS}, {**renamed(ONE, "model."), **LOSS}, {**LOSS, **ONE}]
    )
    def test_beside_the_weights_of_a_loss(
        self, tmp_path: Path, state: dict[str, Tensor], options: dict[str, Any]
    ) -> None:
        check(save(tmp_path, {"state_dict": state}), ONE, **options)
        words = ("analyze", str(tmp_path), "--data", "normal:4", "-o", str(tmp_path / "x.csv"))
        outcome = invoke(*words)
        assert "in the checkpoints, but not in the model: criterion.weight" in outcome.stderr

    @pytest.mark.parametrize("names", [("generator", "discriminator"), ("net", "target_net")])
    def test_two_networks_that_form_one_chain(self, tmp_path: Path, names: tuple[str, str]) -> None:
        second = weights(2, 5, 1)
        save(tmp_path, {**renamed(ONE, f"{names[0]}."), **renamed(second, f"{names[1]}.")})
        advice = f"--weights {names[0]} or --weights {names[1]}"
        with pytest.raises(LocalrankError, match="several networks by their names") as caught:
            check(tmp_path, ONE)
        assert advice in caught.value.advice
        check(tmp_path, ONE, weights=names[0])
        needs = invoke("inspect", str(tmp_path)).stdout
        assert f"choose one with --weights: {names[0]}, {names[1]}" in needs

    @pytest.mark.parametrize(
        ("before", "within"),
        [("module.", ""), ("_fsdp_wrapped_module.", ""), ("net.", ""), ("", "_orig_mod.")],
    )
    def test_two_networks_that_form_one_chain_in_wrappers(
        self, tmp_path: Path, before: str, within: str
    ) -> None:
        one = renamed(ONE, f"{before}generator.{within}")
        second = renamed(weights(2, 5, 1), f"{before}discriminator.{within}")
        save(tmp_path, {**one, **second})
        with pytest.raises(LocalrankError, match="several networks by their names") as caught:
            check(tmp_path, ONE)
        advice = f"--weights {before}generator or --weights {before}discriminator"
        assert advice in caught.value.advice
        check(tmp_path, ONE, weights=f"{before}generator")

    @pytest.mark.parametrize(
        ("first", "second"),
        [("encoder", "decoder"), ("G", "D"), ("policy", "value"), ("net.a", "net.b")],
    )
    def test_parts_of_several_layers_that_form_one_chain(
        self, tmp_path: Path, first: str, second: str
    ) -> None:
        both = {**renamed(ONE, f"{first}."), **renamed(weights(2, 5, 1), f"{second}.")}
        save(tmp_path, both)
        advice = f"--weights {first} or {second}"
        with pytest.raises(LocalrankError, match=f"several parts \\({first}, {second}") as caught:
            check(tmp_path, ONE)
        assert advice in caught.value.advice
        check(tmp_path, ONE, weights=first)
        assert f"between the parts {first}, {second}" in invoke("inspect", str(tmp_path)).stdout

    def test_parts_whose_modules_are_in_the_file(self, tmp_path: Path) -> None:
        both = nn.Sequential(mlp(4, 3, 2, seed=1).append(nn.ReLU()), mlp(2, 5, 1))
        save(tmp_path, both)
        check(tmp_path, ONE)

    def test_a_part_and_a_head(self, tmp_path: Path) -> None:
        save(tmp_path, {**renamed(ONE, "body."), "head.weight": torch.ones(3, 2)})
        check(tmp_path, ONE)

    @pytest.mark.parametrize("name", ["criterion", "loss_fn", "arc_loss", "arcface", "margin"])
    def test_a_loss_whose_weight_fits_as_the_last_layer(self, tmp_path: Path, name: str) -> None:
        save(tmp_path, {**ONE, f"{name}.weight": torch.ones(7, 2)})
        words = ("analyze", str(tmp_path), "--data", "normal:4", "-o", str(tmp_path / "x.csv"))
        outcome = invoke(*words)
        assert "read as a plain MLP 4-3-2 with" in outcome.stderr
        assert f"in the checkpoints, but not in the model: {name}.weight" in outcome.stderr

    def test_a_layer_with_the_name_of_a_loss_before_others(self, tmp_path: Path) -> None:
        state = {key.replace("0.", "geometric."): value for key, value in ONE.items()}
        save(tmp_path, {**state, "4.weight": torch.ones(5, 2)})
        words = ("analyze", str(tmp_path), "--data", "normal:4", "-o", str(tmp_path / "x.csv"))
        assert "read as a plain MLP 4-3-2-5 with" in invoke(*words).stderr

    def test_one_network_whose_last_layer_is_called_critic(self, tmp_path: Path) -> None:
        state = {key.replace("2.", "critic."): value for key, value in ONE.items()}
        check(save(tmp_path, state), ONE)

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("options", [{}, {"model": build}])
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("step", torch.tensor(5)),
            ("best_loss", torch.tensor(0.5)),
            ("rng_state", torch.zeros(16, dtype=torch.uint8)),
            ("0._extra_state", torch.zeros(0, dtype=torch.uint8)),
        ],
    )
    def test_beside_tensors_of_the_training(
        self, tmp_path: Path, key: str, value: Tensor, options: dict[str, Any]
    ) -> None:
        check(save(tmp_path, {**ONE, key: value}), ONE, **options)

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("options", [{}, {"weights": "state_dict"}])
    @pytest.mark.parametrize("prefix", ["", "model."])
    def test_the_network_itself_comes_before_a_second_one(
        self, tmp_path: Path, prefix: str, options: dict[str, Any]
    ) -> None:
        state = {**renamed(ONE, prefix), **renamed(TWO, "teacher.")}
        check(save(tmp_path, {"state_dict": state}), ONE, model=build, **options)
        check(tmp_path, TWO, model=build, weights="teacher")
        if not options:
            check(save(tmp_path, state), ONE, model=build)

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module.", "net.module."])
    @pytest.mark.parametrize("second", ["ema_model.", "teacher."])
    def test_the_network_itself_comes_before_a_second_one_in_wrappers(
        self, tmp_path: Path, prefix: str, second: str
    ) -> None:
        state = {**ONE, **renamed(TWO, second), "loss.weight": torch.ones(2)}
        save(tmp_path, renamed(state, prefix))
        check(tmp_path, ONE, model=build)
        check(tmp_path, TWO, model=build, weights=f"{prefix}{second[:-1]}")

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
    @pytest.mark.parametrize("named", ["ema_model", "ema"])
    def test_an_average_within_wrappers_is_found_by_its_own_name(
        self, tmp_path: Path, prefix: str, named: str
    ) -> None:
        save(tmp_path, renamed({**ONE, **renamed(TWO, "ema_model.")}, prefix))
        check(tmp_path, TWO, model=build, weights=named)

    def test_weights_that_are_not_there_are_not_suggested(self, tmp_path: Path) -> None:
        save(tmp_path, ONE)
        with pytest.raises(LocalrankError, match="no average") as caught:
            check(tmp_path, ONE, model=build, weights="ema")
        assert "--weights raw, one of these keys, or a prefix" in str(caught.value)

    @pytest.mark.parametrize("more", ["4.weight", "head.weight", "0.extra"])
    def test_the_network_itself_is_strict(self, tmp_path: Path, more: str) -> None:
        save(tmp_path, {**ONE, **LOSS, more: torch.ones(2, 2)})
        with pytest.raises(LocalrankError, match=f"unexpected: .*{more}"):
            check(tmp_path, ONE, model=build)

    @pytest.mark.parametrize(
        "more", ["metric.total", "train_acc.tp", "teacher.0.weight", "net._extra_state"]
    )
    def test_beside_a_network_that_has_such_parts_itself(self, tmp_path: Path, more: str) -> None:
        own = dict(with_average_and_loss().state_dict())
        save(tmp_path, {**own, **renamed(ONE, "net."), more: torch.ones(2, 2)})
        check(tmp_path, ONE, model=with_average_and_loss)

    @pytest.mark.parametrize("more", ["ema.extra", "loss.extra", "head.weight"])
    def test_a_network_that_has_such_parts_is_strict(self, tmp_path: Path, more: str) -> None:
        own = dict(with_average_and_loss().state_dict())
        save(tmp_path, {**own, more: torch.ones(2, 2)})
        with pytest.raises(LocalrankError, match=f"unexpected: {more}"):
            check(tmp_path, ONE, model=with_average_and_loss)


class TestWrappers:
    @pytest.mark.cover(1)
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda key: f"_forward_module.{key}",
            lambda key: f"_fsdp_wrapped_module.{key}",
            lambda key: key.replace("0.", "0._checkpoint_wrapped_module."),
            lambda key: key.replace("2.", "module._fsdp_wrapped_module.2._orig_mod."),
            lambda key: f"_forward_module.model.{key}",
        ],
    )
    @pytest.mark.parametrize("model", [build, compiled_part, parallel])
    def test_names_match_without_them(
        self, tmp_path: Path, wrap: Callable[[str], str], model: Callable[[], nn.Module]
    ) -> None:
        save(tmp_path, {wrap(key): value for key, value in ONE.items()})
        check(tmp_path, ONE, model=model)

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda key: f"_forward_module._orig_mod.{key}",
            lambda key: f"module._module.{key}",
            lambda key: f"_fsdp_wrapped_module.{key.replace('0.', '0._fpw_module.')}",
            lambda key: key.replace("0.", "0._checkpoint_wrapped_module."),
        ],
    )
    def test_an_inferred_network_has_none(self, tmp_path: Path, wrap: Callable[[str], str]) -> None:
        save(tmp_path, {wrap(key): value for key, value in ONE.items()})
        check(tmp_path, ONE)
        assert list(analyze(tmp_path, data="normal:4", points=2)["layer"]) == ["0", "2"]

    def test_parts_of_such_names_stay(self, tmp_path: Path) -> None:
        names = {"module.weight": "0.weight", "module.bias": "0.bias", "head.weight": "2.weight"}
        save(tmp_path, {name: ONE[key] for name, key in names.items()})
        assert list(analyze(tmp_path, data="normal:4")["layer"]) == ["module", "head"]

    @pytest.mark.parametrize("model", [compiled_part, parallel])
    def test_they_are_added(self, tmp_path: Path, model: Callable[[], nn.Module]) -> None:
        check(save(tmp_path, ONE), ONE, model=model)

    def test_not_where_two_keys_become_one(self, tmp_path: Path) -> None:
        save(tmp_path, ONE | {"0._orig_mod.weight": TWO["0.weight"]})
        with pytest.raises(LocalrankError, match=r"unexpected: 0\._orig_mod\.weight"):
            check(tmp_path, ONE, model=build)

    @pytest.mark.cover(1)
    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "net._orig_mod."])
    @pytest.mark.parametrize("is_new", [False, True])
    def test_weight_norm_of_old_and_new(self, tmp_path: Path, prefix: str, is_new: bool) -> None:
        state = dict(normed().state_dict())
        weight: Any = normed().double().get_submodule("0").weight
        names = {} if is_new else {"parametrizations.weight.original0": "weight_g",
                                   "parametrizations.weight.original1": "weight_v"}  # fmt: skip
        for new, old in names.items():
            state[f"0.{old}"] = state.pop(f"0.{new}")
        save(tmp_path, renamed(state, prefix))
        check(tmp_path, {"0.weight": weight.detach()}, model=normed)
