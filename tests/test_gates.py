"""Each gate fails on facts made to fail it, names value, rule and repair, is skipped where it does not apply, can be forced."""

import json
from dataclasses import replace
from typing import Any

import pytest

from schemas.errors import InputError
from transforms.gates import (
    GATES,
    Evaluation,
    Facts,
    GateSettings,
    LastRelease,
    as_json,
    failures,
    judge_release,
)
from transforms.judge_table import FAULTS

SPLIT = {"split": "temporal", "holdout": 0.1, "min_rating": None, "k": 50, "recommend_seen": False}


def quality(recall: float = 0.4, ndcg: float = 0.3, error: float = 0.001, users: int = 100) -> dict[str, Any]:
    return {
        "users": users,
        "means": {"recall@50": recall, "ndcg@10": ndcg},
        "standard_errors": {"recall@50": error, "ndcg@10": error},
    }


def against(mean: float = 0.4, popularity: float = 0.3, error: float = 0.001, users: int = 90) -> dict[str, Any]:
    value = {"users": users, "mean": mean, "popularity": popularity, "standard_error": error}
    return {"recall@50": value, "ndcg@10": {"users": users, "mean": 0.3, "popularity": 0.2, "standard_error": 0.001}}


LAST = LastRelease("R1", users=100, items=1_000, evaluation=Evaluation(SPLIT, quality()))
TABLE: dict[str, Any] = {
    "users": 100,
    "users_expected": 100,
    "pairs": 5_000,
    "items": 1_200,
    "items_eligible": 1_000,
    "items_listed": 600,
    "faults": dict.fromkeys(FAULTS, 0),
    "examples": {},
    "overlap": {"k": 50, "users_in_both": 99, "users_changed": 50, "mean_jaccard": 0.6},
}
FACTS = Facts(
    table=TABLE,
    recall={"mean": 0.96, "standard_error": 0.001},
    target_recall=0.95,
    evaluation=Evaluation(SPLIT, quality()),
    against_popularity=against(),
    rejected={"ratings": (5, 1_000), "items": (0, 50)},
    last=LAST,
)


def table(**changes: Any) -> Facts:
    return replace(FACTS, table=TABLE | changes)


def statuses(facts: Facts, settings: GateSettings | None = None) -> dict[str, str]:
    return {gate.name: gate.status for gate in judge_release(facts, settings or GateSettings())}


def test_a_good_table_passes_every_gate_and_json_holds_the_verdicts() -> None:
    gates = judge_release(FACTS, GateSettings())
    assert tuple(gate.name for gate in gates) == GATES
    assert {gate.status for gate in gates} == {"passed"}
    assert failures(gates) == []
    kept = json.loads(json.dumps(as_json(gates)))
    assert kept["overlap"] == {
        "status": "passed",
        "value": 0.6,
        "limit": 0.1,
        "reason": "lists of 99 users share 0.6000 (mean Jaccard@50) with those of release R1, it must be 0.1 or more",
        "forced": None,
    }


@pytest.mark.parametrize(
    ("facts", "name", "words"),
    [
        *(
            (
                table(faults={**dict.fromkeys(FAULTS, 0), fault: 3}, examples={fault: "user 'u7'"}),
                fault,
                [f"3 of 100 users break the rule that {rule}, such as user 'u7'", "delete the folder of its recommend stage"],
            )
            for fault, rule in FAULTS.items()
        ),
        (
            replace(FACTS, recall={"mean": 0.94, "standard_error": 0.001}),
            "recall_against_exact",
            ["is 0.9400 ± 0.0010, it must reach 0.95", "--target_recall"],
        ),
        (
            replace(FACTS, evaluation=Evaluation(SPLIT, quality(recall=0.3))),
            "quality",
            ["recall@50 is 0.3000, in release R1 0.4000", "the drop may be 0.1 of it", "--max_quality_drop"],
        ),
        (
            replace(FACTS, against_popularity=against(mean=0.25)),
            "popularity",
            ["recall@50 is 0.2500, by popularity 0.3000", "of the 90 users with lists of their own", "--min_lift"],
        ),
        (table(items_listed=9), "coverage", ["9 of the 1,000 items that could be listed are (0.0090)", "--min_coverage"]),
        (
            table(overlap={"k": 50, "users_in_both": 99, "users_changed": 99, "mean_jaccard": 0.02}),
            "overlap",
            ["lists of 99 users share 0.0200 (mean Jaccard@50) with those of release R1", "--min_overlap"],
        ),
        (
            replace(FACTS, rejected={"ratings": (0, 10), "items": (5, 50)}),
            "rejected",
            ["5 of 50 rows of the items were rejected, at most 0.01", "--max_rejected_fraction"],
        ),
        (table(users=89), "users", ["there are 89 users, in release R1 there were 100; at most 0.1", "--max_shrink"]),
        (
            table(items_eligible=899),
            "items",
            ["there are 899 items to recommend, in release R1 there were 1,000", "--max_shrink"],
        ),
    ],
)
def test_each_gate_fails_and_can_be_forced(facts: Facts, name: str, words: list[str]) -> None:
    gates = judge_release(facts, GateSettings())
    assert [gate.name for gate in gates if gate.status != "passed"] == [name]
    (line,) = failures(gates)
    for each in [f"gate {name} failed: ", *words, f"--force {name}=REASON"]:
        assert each in line
    forced = judge_release(facts, GateSettings(forced={"order": "not needed", name: "we know"}))
    assert failures(forced) == []
    (gate,) = [gate for gate in forced if gate.status != "passed"]
    assert (gate.name, gate.status, gate.forced) == (name, "forced", "we know")
    assert gate.reason in line


@pytest.mark.parametrize(
    ("limits", "facts", "name"),
    [
        ({"max_quality_drop": 0.3}, replace(FACTS, evaluation=Evaluation(SPLIT, quality(recall=0.3))), "quality"),
        ({"min_lift": 0.8}, replace(FACTS, against_popularity=against(mean=0.25)), "popularity"),
        ({"min_coverage": 0.009}, table(items_listed=9), "coverage"),
        ({"min_overlap": 0.0}, table(overlap=TABLE["overlap"] | {"mean_jaccard": 0.0}), "overlap"),
        ({"max_rejected_fraction": 0.1}, replace(FACTS, rejected={"items": (5, 50)}), "rejected"),
        ({"max_shrink": 0.11}, table(users=89), "users"),
        ({"max_shrink": 0.11}, table(items_eligible=899), "items"),
    ],
)
def test_each_limit_is_a_setting(limits: dict[str, Any], facts: Facts, name: str) -> None:
    assert statuses(facts)[name] == "failed"
    assert statuses(facts, GateSettings(**limits))[name] == "passed"


def test_a_difference_within_two_standard_errors_tells_nothing() -> None:
    noisy = replace(FACTS, evaluation=Evaluation(SPLIT, quality(recall=0.3, error=0.05)))
    assert statuses(noisy)["quality"] == "passed"
    assert statuses(replace(FACTS, against_popularity=against(mean=0.25, error=0.03)))["popularity"] == "passed"
    assert statuses(replace(FACTS, recall={"mean": 0.94, "standard_error": 0.006}))["recall_against_exact"] == "passed"


def test_the_first_release_is_compared_with_none() -> None:
    first = judge_release(replace(FACTS, last=None, table=TABLE | {"overlap": None}), GateSettings())
    skipped = {gate.name: gate.reason for gate in first if gate.status != "passed"}
    assert skipped == dict.fromkeys(("quality", "overlap", "users", "items"), "there is no release before this one")


@pytest.mark.parametrize(
    ("facts", "name", "why"),
    [
        (replace(FACTS, evaluation=Evaluation(SPLIT, {"users": 0})), "quality", "nothing is held out"),
        (replace(FACTS, evaluation=Evaluation(SPLIT, {"users": 0})), "popularity", "nothing is held out"),
        (replace(FACTS, evaluation=Evaluation(SPLIT | {"k": 10}, quality())), "quality", "another k: not comparable"),
        (
            replace(FACTS, evaluation=Evaluation(SPLIT | {"split": "last", "holdout": 1}, quality())),
            "quality",
            "release R1 was evaluated with another split, holdout: not comparable",
        ),
        (
            replace(FACTS, evaluation=Evaluation(SPLIT, quality(users=1))),
            "quality",
            "fewer than two users have held-out items",
        ),
        (
            replace(FACTS, against_popularity=against(users=1)),
            "popularity",
            "fewer than two users have a list of their own and held-out items",
        ),
        (
            replace(FACTS, recall={"mean": 1.0, "standard_error": None}),
            "recall_against_exact",
            "fewer than two lists were compared with exact search",
        ),
        (table(pairs=0, items_listed=0), "coverage", "no list has an item"),
    ],
)
def test_what_does_not_apply_is_skipped_and_says_why(facts: Facts, name: str, why: str) -> None:
    (gate,) = [gate for gate in judge_release(facts, GateSettings()) if gate.name == name]
    assert gate.status == "skipped"
    assert why in gate.reason


def test_growth_is_never_too_much() -> None:
    assert set(statuses(table(users=500, items_eligible=5_000, items_listed=600)).values()) == {"passed"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_shrink": 1.5}, r"max_shrink must be between 0 and 1, got 1.5: change --max_shrink"),
        ({"max_quality_drop": float("nan")}, "max_quality_drop must be between 0 and 1, got nan"),
        ({"min_overlap": -0.1}, "min_overlap must be between 0 and 1, got -0.1"),
        ({"min_coverage": 2}, "min_coverage must be between 0 and 1, got 2"),
        ({"min_lift": -1}, "min_lift must be a number of at least 0, got -1"),
        ({"forced": {"overlop": "x"}}, "there is no gate 'overlop' to force, there are users_once, .*: change --force"),
    ],
)
def test_bad_limits_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GateSettings(**settings)


def test_a_table_that_was_rolled_back_fails_and_can_be_forced() -> None:
    facts = replace(FACTS, withdrawn="this very table was served as release R0")
    (failed,) = failures(judge_release(facts, GateSettings()))
    assert failed.startswith("gate withdrawn failed: this very table was served as release R0: mend the data or the settings")
    assert statuses(facts, GateSettings(forced={"withdrawn": "a mistake"}))["withdrawn"] == "forced"
