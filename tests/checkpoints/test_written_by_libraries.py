"""Checkpoints that the real libraries write, where they are installed (extra `formats`)."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from localrank_cli import analyze
from localrank_cli.checkpoints.names import StepRule
from localrank_cli.checkpoints.series import find_checkpoints
from localrank_cli.errors import SettingsError
from localrank_cli.model.fill import Expected
from localrank_cli.run.headers import Headers, load_state
from tests.helpers import ignore, mlp

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def library(name: str) -> Any:
    """The library; it may warn of what it likes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = name.split(".", maxsplit=1)[0]
        reason = f"{package} is not installed: pip install {package}"
        return pytest.importorskip(name, reason=reason)


def loaded(
    folder: Path, model: nn.Module, chosen: str = "raw", step_from: str | None = None
) -> dict[int, dict[str, Tensor]]:
    rule = StepRule.parse(None, step_from)
    headers = Headers(find_checkpoints(folder, [], "", []), False, rule, chosen)
    expected = Expected(model)
    planned = [headers.plan(file, step, model, expected) for file, step in headers.steps(ignore)]
    return {one.step: load_state(one, trust_pickle=False) for one in planned}


def same(state: dict[str, Tensor], other: Any) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


def lightning_run(folder: Path, *callbacks: Any) -> dict[int, dict[str, Tensor]]:
    """Trains six steps; gives the training weights of each, as they were when it was saved."""
    pl = library("lightning.pytorch")
    seen: dict[int, dict[str, Tensor]] = {}

    class Module(pl.LightningModule):  # type: ignore[name-defined, misc]  # a class when it is there
        def __init__(self) -> None:
            super().__init__()
            self.model = mlp(4, 3, 2)
            self.save_hyperparameters({"width": 3, "step": 77})

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss: Tensor = self.model(batch[0]).square().sum()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Watch(pl.Callback):  # type: ignore[name-defined, misc]  # a class when it is there
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            state = {k: v.clone() for k, v in module.model.state_dict().items()}
            seen[trainer.global_step] = state

    saving = pl.callbacks.ModelCheckpoint(
        folder, save_top_k=-1, every_n_train_steps=2, save_last=True
    )
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[Watch(), saving, *callbacks],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(torch.randn(12, 4)), batch_size=4))
    return seen


def test_lightning(tmp_path: Path) -> None:
    seen = lightning_run(tmp_path)
    found = loaded(tmp_path, mlp(4, 3, 2))
    assert list(found) == [2, 4, 6]
    assert all(same(state, seen[step]) for step, state in found.items())


def test_lightnings_average(tmp_path: Path) -> None:
    callbacks = library("lightning.pytorch.callbacks")
    average_of_two = callbacks.WeightAveraging(
        avg_fn=lambda average, value, count: 0.5 * average + 0.5 * value
    )
    seen = lightning_run(tmp_path, average_of_two)
    raw, ema = loaded(tmp_path, mlp(4, 3, 2)), loaded(tmp_path, mlp(4, 3, 2), "ema")
    assert list(raw) == list(ema) == [2, 4, 6]
    assert all(same(state, seen[step]) for step, state in raw.items())
    average = seen[1]
    for step in range(2, 7):
        average = {key: 0.5 * value + 0.5 * seen[step][key] for key, value in average.items()}
        if step in ema:
            assert all(torch.allclose(average[key], ema[step][key]) for key in average)
            assert not same(ema[step], raw[step])


def test_transformers_trainer(tmp_path: Path) -> None:
    transformers = library("transformers")
    library("accelerate")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 3, 2)

        def forward(self, x: Tensor, labels: Any = None) -> dict[str, Tensor]:
            return {"loss": self.net(x).square().mean()}

    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=6, save_steps=2, per_device_train_batch_size=2, use_cpu=True,
        report_to=[], disable_tqdm=True, remove_unused_columns=False, save_strategy="steps",
    )  # fmt: skip
    data = [{"x": torch.randn(4), "labels": torch.zeros(1)} for _ in range(12)]
    model = Net()
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    trainer.save_model()  # beside the checkpoints, the same as the last
    found = loaded(tmp_path, Net())
    assert list(found) == [2, 4, 6]
    assert same(found[6], model.state_dict())


def test_save_pretrained_sharded(tmp_path: Path) -> None:
    transformers = library("transformers")
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    folder = tmp_path / "step_100"
    model.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("*-of-*"))) > 1
    found = loaded(tmp_path, transformers.GPT2LMHeadModel(config))
    state = dict(model.state_dict())
    state.pop("lm_head.weight")  # tied to the embedding and not saved
    assert list(found) == [100]
    assert same(found[100], state)


def accelerate_run(folder: Path) -> dict[int, dict[str, Tensor]]:
    accelerate = library("accelerate")
    project = library("accelerate.utils").ProjectConfiguration(
        str(folder), automatic_checkpoint_naming=True
    )
    accelerator = accelerate.Accelerator(cpu=True, project_config=project)
    plain = mlp(4, 3, 2)
    model, optimizer = accelerator.prepare(plain, torch.optim.Adam(plain.parameters(), 0.1))
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.ConstantLR(optimizer))
    seen = {}
    for number in range(3):
        for _ in range(5):
            accelerator.backward(model(torch.randn(3, 4)).square().sum())
            optimizer.step()
            scheduler.step()
        accelerator.save_state()
        seen[number] = {k: v.clone() for k, v in plain.state_dict().items()}
    return seen


def test_accelerate(tmp_path: Path) -> None:
    seen = accelerate_run(tmp_path)
    with pytest.raises(SettingsError, match="accelerate's count of saves"):
        loaded(tmp_path / "checkpoints", mlp(4, 3, 2))
    found = loaded(tmp_path / "checkpoints", mlp(4, 3, 2), step_from="name")
    assert list(found) == [0, 1, 2]
    assert all(same(state, seen[number]) for number, state in found.items())
    frame = analyze(tmp_path / "checkpoints", data="normal:4", points=2, step_from="name")
    assert set(frame["step"]) == {0, 1, 2}
