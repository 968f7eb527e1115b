"""Counts what the fuzz run tried."""

from collections import Counter

import pytest

TRIED: Counter[str] = Counter()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TRIED:
        terminalreporter.section("inputs tried")
        for name, count in TRIED.items():
            terminalreporter.line(f"{count:8,} {name}")
        terminalreporter.line(f"{sum(TRIED.values()):8,} in all")
