import pytest

from localrank_cli.checkpoints.steps import NameRule, StepRule, epoch_in_name, step_in_name
from localrank_cli.errors import UsageError


@pytest.mark.parametrize(
    ("stem", "step"),
    [
        ("step_100", 100),
        ("step100", 100),
        ("step-100", 100),
        ("step=100", 100),
        ("step.100", 100),
        ("STEP_100", 100),
        ("steps_7", 7),
        ("global_step_12", 12),
        ("globalstep12", 12),
        ("global-step12", 12),
        ("epoch=1-step=10", 10),
        ("epoch=1-step=10-v1", 10),
        ("step=10-epoch=1", 10),
        ("iter_7", 7),
        ("iteration-7", 7),
        ("iters_7", 7),
        ("checkpoint-500", 500),
        ("checkpoint_500", 500),
        ("ckpt_9", 9),
        ("model_100", 100),
        ("weights.5", 5),
        ("net_3", 3),
        ("snapshot-2", 2),
        ("000100", 100),
        ("0", 0),
        ("run7_step_20", 20),
        ("v2_step_100", 100),
        ("step_100_v2", 100),
        ("step_100_loss=0.25", 100),
        ("loss=0.25-step=100", 100),
        ("model_2_step_100", 100),
        ("checkpoint_3_iter_40", 40),
        ("resnet18_step_100", 100),
        ("step_100_of_1000", 100),
        ("step_100-seed_3", 100),
        ("my.step_8", 8),
        ("ep0-ba100-rank0", 100),
        ("ep12-ba3", 3),
        ("step1000-tokens4B", 1000),
        ("stage1-step1000-tokens5B", 1000),
        ("iter_0000100", 100),
        ("step_12345678901234567890", 12345678901234567890),
    ],
)
def test_step(stem: str, step: int) -> None:
    assert step_in_name(stem) == step


@pytest.mark.parametrize(
    "stem",
    [
        "step_1k",
        "step_100k",
        "step_1e5",
        "step_0x10",
        "step_1.5",
        "step_-5",
        "step_",
        "step",
        "resnet18_100",
        "resnet18",
        "subnet_5",
        "supermodel_5",
        "misstep_5",
        "seed_3",
        "v2",
        "lr0.1",
        "last",
        "best",
        "final",
        "model",
        "model_final",
        "model_v2",
        "model_7b",
        "epoch_3",
        "batch_32",
        "ba100",
        "hf_model_0001_3",
        "meta_model_3",
        "1e5",
        "-5",
        "1.5",
        "",
        "10_000",
        "step_½",
    ],
)
def test_no_step(stem: str) -> None:
    assert step_in_name(stem) is None


@pytest.mark.parametrize(
    ("stem", "epoch"),
    [
        ("epoch_3", 3),
        ("epoch=03", 3),
        ("epochs-3", 3),
        ("model_epoch5_loss0.25", 5),
        ("checkpoint_epoch_5", 5),
        ("epoch=1-step=10", 1),
        ("hf_model_0001_3", 3),
        ("meta_model_7", 7),
        ("step_5", None),
        ("epoch", None),
        ("epoch_3k", None),
        ("epoch_1.5", None),
    ],
)
def test_epoch(stem: str, epoch: int | None) -> None:
    assert epoch_in_name(stem) == epoch


@pytest.mark.parametrize(
    ("regex", "name", "step"),
    [
        (r"it(\d+)k", "it100k.pt", 100),
        (r"(?P<kind>a|b)_(?P<step>\d+)", "b_7.pt", 7),
        (r"(?:x|y)(\d+)", "y12", 12),
        (r"s([\d_,]+)", "s1_000,000.pt", 1_000_000),
        (r"it(\d+)", "step_5.pt", None),
        (r"it(\w+)", "itmany.pt", None),
        (r"it(\d+)?", "it.pt", None),
        (r"(\d+)", "9" * 99, None),
    ],
)
def test_a_users_own_expression(regex: str, name: str, step: int | None) -> None:
    assert NameRule.parse(regex).step(name) == step


@pytest.mark.parametrize("regex", ["(", "step", r"(a)(\d+)", r"(?P<n>a)(\d+)", "*"])
def test_expressions_that_do_not_serve(regex: str) -> None:
    with pytest.raises(UsageError, match="--step-regex"):
        NameRule.parse(regex)


def test_rules() -> None:
    assert StepRule.parse(None, None) == StepRule()
    assert StepRule.parse(None, "epoch").source == "epoch"
    with pytest.raises(UsageError, match="Known are contents, name, epoch"):
        StepRule.parse(None, "names")
