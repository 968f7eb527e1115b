"""The monitor as a callback: the same training, the step of the optimizer, the loggers' values."""

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from localrank_cli import local_rank
from localrank_cli.callbacks import LightningMonitor, TrainerMonitor
from localrank_cli.errors import SettingsError
from localrank_cli.live.copied import copy_of
from localrank_cli.model.sharing import held_objects
from tests.helpers import mlp

INPUTS = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(2))
TARGETS = torch.arange(24) % 3


def lightning_net() -> Any:
    lightning = pytest.importorskip("lightning.pytorch")

    class Net(lightning.LightningModule):  # type: ignore[misc,name-defined]  # a class that is looked up
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
                nn.Linear(48, 3),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Any:
            x, y = batch
            return nn.functional.cross_entropy(self(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    return Net()


class Kept:
    """Keeps what a logger of Lightning gets."""

    def __new__(cls) -> Any:

        loggers = pytest.importorskip("lightning.pytorch.loggers")

        class Found(loggers.Logger):  # type: ignore[misc,name-defined]  # a class that is looked up
            name, version = "kept", 0

            def __init__(self) -> None:
                self.seen: dict[int, dict[str, float]] = {}

            def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

            def log_metrics(self, metrics: dict[str, float], step: int) -> None:
                self.seen[step] = metrics

        return Found()


def lightning_training(
    folder: Path, callbacks: list[Any], logger: Any = False, **options: Any
) -> Any:

    lightning = pytest.importorskip("lightning.pytorch")
    lightning.seed_everything(0, verbose=False)
    network = lightning_net()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=logger, callbacks=callbacks,
        default_root_dir=folder, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(network, DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=6, shuffle=True))
    return network, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [0, 2, 4, 6, 8]),
        ({"accumulate_grad_batches": 2}, [0, 2, 4]),
        ({"precision": "bf16-mixed"}, [0, 2, 4, 6, 8]),
    ],
)
def test_a_training_of_lightning(tmp_path: Path, options: dict[str, Any], steps: list[int]) -> None:
    pytest.importorskip("lightning.pytorch")

    expected, _ = lightning_training(tmp_path, [], **options)
    monitor = LightningMonitor(
        tmp_path / "ranks.csv", INPUTS, every=2, device="cpu", points=4, quiet=True,
        on_error="raise",
    )  # fmt: skip
    logger = Kept()
    network, trainer = lightning_training(tmp_path, [monitor], logger, **options)
    for (name, one), other in zip(
        network.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert sorted(set(monitor.table["step"])) == steps == sorted(logger.seen)
    assert trainer.global_step == steps[-1]
    last = local_rank(network, INPUTS, device="cpu", points=4)
    assert monitor.table["spectral_norm"].tail(2).tolist() == last["spectral_norm"].tolist()
    assert logger.seen[steps[-1]]["local_rank/net.0"] == last["local_rank"][0]
    assert isinstance(monitor, LightningMonitor)


class Failing:
    """A logger of Lightning whose server is away."""

    def __new__(cls) -> Any:
        logger = Kept()

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("the server is away")

        logger.log_metrics = fail
        return logger


@pytest.mark.filterwarnings("ignore")
def test_a_logger_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    what: dict[str, Any] = {"every": 4, "device": "cpu", "points": 4, "quiet": True}
    monitor = LightningMonitor(tmp_path / "ranks.csv", INPUTS, **what)
    kept = Kept()
    with caplog.at_level(logging.WARNING, "localrank"):
        lightning_training(tmp_path, [monitor], [Failing(), kept])
    assert caplog.text.count("the server is away") == 1
    assert sorted(kept.seen) == [0, 4, 8]
    strict = LightningMonitor(tmp_path / "b.csv", INPUTS, on_error="raise", **what)
    with pytest.raises(RuntimeError, match="the server is away"):
        lightning_training(tmp_path, [strict], Failing())


def test_a_monitor_stays_in_its_process(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")
    monitor = LightningMonitor(tmp_path / "ranks.csv", INPUTS, device="cpu", quiet=True)
    with pytest.raises(SettingsError, match=r"cannot be sent .* strategy='ddp'"):
        pickle.dumps(monitor)
    assert copy.deepcopy(monitor) is monitor
    monitor.monitor.close()


@pytest.mark.filterwarnings("ignore")
def test_what_a_trainer_holds_is_no_part_of_the_network(tmp_path: Path) -> None:
    class Reached:
        """As a handler of signals reaches a notebook, with all its variables."""

        def __init__(self) -> None:
            self.variables = [torch.ones(3)]

    network, trainer = lightning_training(tmp_path, [])
    trainer._signal_connector.reached = Reached()
    assert network.trainer is trainer
    assert not [place.name for place in held_objects(network) if place.name.startswith("_trainer.")]
    network.eval()
    assert copy_of(network, "it")(INPUTS).equal(network(INPUTS))


@pytest.mark.filterwarnings("ignore")
def test_a_module_that_lightning_compiled(tmp_path: Path) -> None:
    utilities = pytest.importorskip("lightning.pytorch.utilities.compile")
    plain = lightning_net()
    expected = local_rank(plain, INPUTS, device="cpu", points=4)
    network = utilities.from_compiled(torch.compile(plain, backend="eager"))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = local_rank(network, INPUTS, device="cpu", points=4)
    assert found.equals(expected)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.filterwarnings("ignore")
def test_a_second_fit_goes_on_with_the_table(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")

    monitor = LightningMonitor(
        tmp_path / "ranks.csv", INPUTS, steps=[0, 8, 12], device="cpu", points=4, quiet=True
    )
    network, trainer = lightning_training(tmp_path, [monitor])
    assert sorted(set(monitor.table["step"])) == [0, 8]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(network, DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=6))
    assert sorted(set(monitor.table["step"])) == [0, 8, 12]


class Tokens(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        drawn = torch.randint(0, 50, (7,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": drawn, "labels": drawn, "attention_mask": torch.ones_like(drawn)}


def gpt2_training(folder: Path, monitor: Any, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "out"), per_device_train_batch_size=4, max_steps=4, use_cpu=True,
        report_to=[], save_strategy="no", logging_steps=2, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Tokens())
    if monitor is not None:
        trainer.add_callback(monitor)
        monitor.attach(trainer)
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {},
        *(
            pytest.param(options, marks=pytest.mark.families)
            for options in ({"gradient_accumulation_steps": 2}, {"bf16": True})
        ),
    ],
)
def test_a_training_of_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("accelerate")

    expected = gpt2_training(tmp_path, None, **options)
    what: dict[str, Any] = {
        "wrt": "transformer.drop", "positions": "last", "layers": "transformer.h.*",
        "exclude": "*.*.*.*", "device": "cpu", "points": 3,
    }  # fmt: skip
    monitor = TrainerMonitor(
        tmp_path / "ranks.csv", Tokens(), every=2, quiet=True, on_error="raise", **what
    )
    trainer = gpt2_training(tmp_path, monitor, **options)
    states = [one.model.state_dict() for one in (trainer, expected)]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name
    assert sorted(set(monitor.table["step"])) == [0, 2, 4]
    losses = [
        [(one["step"], one["loss"]) for one in each.state.log_history if "loss" in one]
        for each in (trainer, expected)
    ]
    assert [step for step, _ in losses[0]] == [2, 4]
    assert losses[0] == losses[1]
    logged = [one for one in trainer.state.log_history if "local_rank/transformer.h.1" in one]
    assert [one["step"] for one in logged] == [0, 2, 4]
    found = monitor.table[monitor.table["layer"] == "transformer.h.1"]["local_rank"].tolist()
    assert [one["local_rank/transformer.h.1"] for one in logged] == found
    plain = type(trainer.model)(trainer.model.config)  # without what accelerate wraps
    plain.load_state_dict(trainer.model.state_dict())
    last = local_rank(plain, Tokens(), **what)
    for column in ("method", "local_rank", "spectral_norm"):
        assert monitor.table[column].tail(len(last)).tolist() == last[column].tolist()


def test_a_trainer_that_is_not_attached(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("transformers")

    monitor = TrainerMonitor(tmp_path / "ranks.csv", "normal:4", every=1, quiet=True, device="cpu")
    for step in (1, 2):
        state = type("State", (), {"global_step": step})()
        with caplog.at_level(logging.WARNING):
            monitor.on_step_end(None, state, None, model=mlp(4, 3, 2))
    monitor.on_train_end(None, None, None)
    assert caplog.text.count("monitor.attach(trainer)") == 1
    assert sorted(set(monitor.table["step"])) == [1, 2]
