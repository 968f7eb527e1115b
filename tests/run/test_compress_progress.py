"""The time that is left, on a clock that the test sets."""

import pytest

from localrank_cli.run.compress_progress import Progress, Work

SECONDS: dict[Work, float] = {"measure": 2.0, "calibrate": 7.0, "factor": 0.25, "norms": 1.0}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_right_once_every_kind_of_work_was_done() -> None:
    clock, shares = Clock(), list[float]()
    progress = Progress(lambda share, _: shares.append(share), clock)

    def work(*done: tuple[Work, float]) -> None:
        for kind, units in done:
            clock.now += SECONDS[kind] * units
            progress.done(kind, kind, units)

    began = clock.now
    progress.expect({})
    work(("measure", 1))
    assert shares == [0.0]  # what follows is not known
    clock.now += 50  # work of no kind, as the local ranks
    progress.expect({"calibrate": 2, "factor": 40, "measure": 10, "norms": 6})
    work(("calibrate", 1), ("calibrate", 1), ("factor", 10), ("norms", 2))
    # 30 units of factors, 10 batches measured and 4 for BatchNorm are left.
    spent = clock.now - began
    assert spent * (1 - shares[-1]) / shares[-1] == pytest.approx(30 * 0.25 + 10 * 2 + 4 * 1)
    work(("factor", 30), ("measure", 10), ("norms", 4), ("measure", 3))
    assert shares[-2:] == [1.0, 1.0]


def test_what_was_never_done_is_guessed() -> None:
    clock, shares = Clock(), list[float]()
    progress = Progress(lambda share, _: shares.append(share), clock)
    clock.now += 4
    progress.done("measure", "")
    progress.expect({"calibrate": 10, "measure": 1})
    clock.now += 4
    progress.done("measure", "")
    # Ten batches that take twice as long as one that is measured, after 8 seconds.
    assert shares[-1] == pytest.approx(8 / (8 + 10 * 2 * 4))
