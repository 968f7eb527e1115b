import pytest

from localrank_cli.checkpoints.names import (
    TOO_LARGE,
    NameRule,
    StepRule,
    epoch_in_name,
    read_names,
    step_in_name,
)
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
        ("step_" + "9" * 31 + "_model_5", TOO_LARGE),  # refused later; never 5
        ("step_" + "0" * 40 + "7", 7),
        ("step_1_000", 1000),
        ("step_1,000", 1000),
        ("10_000", 10_000),
        ("iter-1,234,567", 1_234_567),
        ("ckpt_1_000", 1000),
        ("ckpt_1,500", 1500),
        ("model_1_234_567", 1_234_567),
        ("epoch_1_step_1_000", 1000),
        ("epoch=1-step=10_000", 10_000),
        ("step_10_000_seed_3", 10_000),
        ("v2_step_1_500", 1500),
        ("step_1_000_v2", 1000),
        ("step_1_2", 1),
        ("step_1_0000", 1),
        ("run_3_step_100_5", 100),
        ("checkpoint_2_1500", 2),
        ("epoch=1,step=500,loss=0.1", 500),
        ("step_1'000", 1000),
        ("step_1\u2019234\u2019567", 1_234_567),
        ("1'000", 1000),
        ("step-1-000", 1000),
        ("step_1 000", 1000),
        ("ckpt-2-000-000", 2_000_000),
        ("step-100-v2", 100),
        ("step-100-2", 100),
        ("step-100-2024-05-06", 100),
        ("weights.05-0.123", 5),
        ("step 1000", 1000),
        ("epoch 3, step 1 000", 1000),
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
        "model 2",
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
        "step=1,2",
        "model_5_step_1k",  # the step, which cannot be read, is not 5
        "0" * 39 + "1",  # a hash of a revision
        "step_½",
        "step_1'00",
        "2024-01-02",
    ],
)
def test_no_step(stem: str) -> None:
    assert step_in_name(stem) is None


@pytest.mark.parametrize(
    ("stems", "found"),
    [
        (["step_500", "step_1_000", "step_1_500"], [500, 1000, 1500]),
        (["step_0_000", "step_0_500", "step_1_000"], [0, 500, 1000]),  # padded with zeros
        (["ckpt_500", "ckpt_1_000", "ckpt_1_500"], [500, 1000, 1500]),
        (["ckpt_750", "ckpt_1_500"], [750, 1500]),
        (["step-500", "step-1-000", "step-1-500"], [500, 1000, 1500]),
        (["step-1-500", "step-2-500"], [None, None]),
        (["step-100-256-512"], [None]),  # widths?
        (["step-500", "step-100-5"], [500, 100]),
        (["500", "1_000", "10_500"], [500, 1000, 10_500]),
        # As fairseq writes them, of epochs and updates.
        (["checkpoint_1_500", "checkpoint_2_1000"], [1, 2]),
        (["checkpoint_1_250", "checkpoint_2_500"], [None, None]),
        (["checkpoint1", "checkpoint_2_500"], [1, None]),
        (["model_1_005", "model_1_010"], [None, None]),
        # a seed or a width at the end
        (["step_100_001", "step_200_001"], [None, None]),
        (["step_100_5", "step_1_000_5"], [100, None]),
        # here later groups are something else in one of the names at least
        (["step_1_000", "step_1_2"], [None, 1]),
        (["ckpt_1_000", "ckpt_1_2"], [None, 1]),
    ],
)
def test_digit_groups_are_read_in_one_way_in_a_series(
    stems: list[str], found: list[int | None]
) -> None:
    names = read_names(stems)
    assert [names[stem].step for stem in stems] == found
    assert [bool(names[stem].unsure) for stem in stems] == [step is None for step in found]


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
        ("epoch_1,000", 1000),
        ("epoch_1_000", 1000),
        ("epoch_3_500", 3),
        ("epoch_3_step_500", 3),
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
        (r"(\d+)", "9" * 99, TOO_LARGE),  # refused, so that no other number is taken
        (r"it(-?\d+)", "it-5.pt", -5),
        (r"s([\d_]+)", "s5_2.pt", None),
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
