"""Monitors as callbacks of Lightning and of transformers' Trainer, which are imported lazily."""

import logging
import sys
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Self

from localrank_cli.errors import SettingsError
from localrank_cli.live.monitor import Monitor

if TYPE_CHECKING:
    import pandas as pd

_logger = logging.getLogger("localrank")


class _Callback:
    """A monitor that a framework calls; the arguments are those of `localrank_cli.Monitor`."""

    def __new__(cls, *_: object, **__: object) -> Self:
        """Return an instance that is also a callback of the framework."""
        kind: Any = cls
        made: Self = object.__new__(_of_framework(kind, cls.bases()))
        return made

    def __init__(self, output: Any, data: object = None, **options: Any) -> None:
        super().__init__()
        self.monitor = Monitor(output, data, **options)

    def __reduce__(self) -> str:
        """Refuse to be sent to another process, as the monitor does."""
        return self.monitor.__reduce__()

    def __copy__(self) -> Self:
        """Return itself, as the monitor does."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself, as the monitor does."""
        return self

    @staticmethod
    def bases() -> tuple[type, ...]:
        """Return the framework's own classes of callbacks."""
        raise NotImplementedError

    @property
    def table(self) -> "pd.DataFrame":
        """All rows so far."""
        return self.monitor.table


@cache
def _of_framework(cls: Any, bases: tuple[type, ...]) -> Any:
    """Return a subclass that is a callback of a framework too."""
    return type(cls.__name__, (cls, *bases), {"__module__": cls.__module__})


class LightningMonitor(_Callback):
    """A `localrank_cli.Monitor` for Lightning's Trainer.

    The step is `trainer.global_step`, which counts optimizer steps. Values go to all loggers of the
    trainer.
    """

    @staticmethod
    def bases() -> tuple[type, ...]:
        """Return the class of callbacks of `lightning`, of `pytorch_lightning`, or both.

        Raises:
            SettingsError: If neither is installed.
        """
        found = [
            sys.modules[name].Callback
            for name in ("lightning.pytorch", "pytorch_lightning")
            if hasattr(sys.modules.get(name), "Callback")
        ]
        if found:
            return tuple(dict.fromkeys(found))
        try:
            from lightning.pytorch import Callback
        except ImportError:
            try:
                from pytorch_lightning import Callback
            except ImportError as error:
                raise SettingsError(
                    "LightningMonitor needs Lightning, which is not installed.",
                    "Run: pip install lightning",
                ) from error
        return (Callback,)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure before the first step."""
        self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Measure after a step of the optimizer."""
        self._measure(trainer, pl_module)

    def on_train_end(self, *_: Any) -> None:
        """Write the table."""
        self.monitor.close()

    def on_exception(self, *_: Any) -> None:
        """Write the table if training fails."""
        self.monitor.close()

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        values = self.monitor(pl_module, trainer.global_step)
        if values:
            for logger in trainer.loggers:
                send = partial(logger.log_metrics, values, step=trainer.global_step)
                self.monitor.attempt(send, f"{type(logger).__name__} does not accept values")


class TrainerMonitor(_Callback):
    """A `localrank_cli.Monitor` for transformers' Trainer.

    The step is `state.global_step`. Trainer gives callbacks no way to log: to send values to its
    loggers, call `trainer.add_callback(monitor); monitor.attach(trainer)`. Otherwise they only go
    to the table.
    """

    _trainer: Any = None
    _has_said = False

    @staticmethod
    def bases() -> tuple[type, ...]:
        """Return the class of callbacks of transformers.

        Raises:
            SettingsError: If it is not installed.
        """
        try:
            from transformers import TrainerCallback
        except ImportError as error:
            raise SettingsError(
                "TrainerMonitor needs transformers, which is not installed.",
                "Run: pip install transformers accelerate",
            ) from error
        return (TrainerCallback,)

    def attach(self, trainer: Any) -> None:
        """Send values to the loggers of a trainer from now on."""
        self._trainer = trainer

    def on_train_begin(self, _args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure before the first step."""
        self._measure(state, control, given)

    def on_step_end(self, _args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure after a step of the optimizer."""
        self._measure(state, control, given)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write the table."""
        self.monitor.close()

    def _measure(self, state: Any, control: Any, given: dict[str, Any]) -> None:
        values = self.monitor(given.get("model"), state.global_step)  # type: ignore[arg-type]  # checked there
        if values and self._trainer is not None:
            # Logging takes away the order to log the loss of this step.
            logs_loss = control.should_log
            self.monitor.attempt(
                partial(self._trainer.log, values), "the trainer's loggers do not accept values"
            )
            control.should_log = logs_loss
        elif values and not self._has_said:
            self._has_said = True
            _logger.warning(
                "TrainerMonitor: values go only to the table; monitor.attach(trainer) sends them"
                " to the trainer's loggers too"
            )
