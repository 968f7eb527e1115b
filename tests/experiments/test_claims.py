"""A verdict follows from its claims, and its text shows them."""

import numpy as np
import pandas as pd
import pytest

from localrank_cli.experiments.experiment import Claim, Verdict, live_claims, span


def claim(holds: bool, is_evidence: bool = True) -> Claim:
    return Claim("rank falls", "to 3", "to 4", holds, is_evidence)


@pytest.mark.parametrize(
    ("claims", "holds"),
    [
        ((claim(True),), True),
        ((claim(True), claim(False)), False),
        ((claim(True), claim(False, is_evidence=False)), True),
    ],
)
def test_every_evidence_must_hold(claims: tuple[Claim, ...], holds: bool) -> None:
    verdict = Verdict("gaussian", "SGD", claims)
    assert verdict.holds is holds
    assert verdict.text.endswith(
        "verdict: every claim holds\n" if holds else "verdict: NOT every claim holds\n"
    )


def test_the_text_shows_claim_expectation_and_measurement() -> None:
    text = Verdict("gaussian", "SGD", (claim(False), claim(True, is_evidence=False))).text
    assert text.splitlines() == [
        "gaussian: SGD",
        "",
        "does not hold: rank falls",
        "    expected: to 3",
        "    measured: to 4",
        "shown, not evidence: rank falls",
        "    expected: to 3",
        "    measured: to 4",
        "",
        "verdict: NOT every claim holds",
    ]


def test_where_nothing_is_evidence_nothing_is_judged() -> None:
    verdict = Verdict("patel2024", "AdamW", (claim(True, is_evidence=False),))
    assert verdict.text.endswith("verdict: none; published figures are shown for comparison only\n")


@pytest.mark.parametrize(("live", "holds"), [(12.5, True), (12.515625, False), (np.nan, False)])
def test_ranks_while_training_must_be_those_of_the_checkpoints(live: float, holds: bool) -> None:
    frame = pd.DataFrame({"local_rank": [10.0, 12.5], "live_rank": [10.0, live]})
    (found,) = live_claims(frame)
    assert (found.holds, found.is_evidence) == (holds, True)
    assert found.measured == f"{1 + holds} of 2 are equal"
    assert live_claims(frame.drop(columns="live_rank")) == []


def test_the_answer_to_open_questions_ends_a_verdict_that_holds() -> None:
    question = Claim("rank falls", "to 3", "to 4", False, is_evidence=False, answer="no")
    verdict = Verdict("gaussian", "SGD", (claim(True), question), "it does not fall")
    assert "\nno: rank falls\n" in verdict.text
    assert verdict.text.endswith("verdict: it does not fall\n")
    broken = Verdict("gaussian", "SGD", (claim(False), question), "it does not fall")
    assert broken.text.endswith("verdict: NOT every claim holds\n")


def test_span() -> None:
    assert span([3.04, 2.96]) == "3.0"
    assert span([9.4, 8.06, 8.5]) == "8.1 to 9.4"
    assert span([0.123], 3) == "0.123"
