"""Each gate fails on facts made to fail it, names value, rule and repair, is skipped where it does not apply, can be forced."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InputError
from transforms.evaluate.arrivals import Arrivals
from transforms.evaluate.findings import FAULTS
from transforms.evaluate.gates import failures, gates_as_json, judge_release
from transforms.evaluate.verdicts import GATES, Evaluation, GateInputs, GateSettings, LastRelease, down, up

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


ARRIVALS = Arrivals(ratings=10_000, users=100, items=1_200, newest=1_600_000_000, repeated=(100, 9_995))
LAST = LastRelease("R1", users=100, items=1_000, evaluation=Evaluation(SPLIT, quality()), arrivals=ARRIVALS, k=50)
TABLE: dict[str, Any] = {
    "users": 100,
    "users_expected": 100,
    "pairs": 5_000,
    "items": 1_200,
    "items_eligible": 1_000,
    "items_listed": 600,
    "lists_empty": 0,
    "lists_short": 2,
    "faults": dict.fromkeys(FAULTS, 0),
    "examples": {},
    "overlap": {"k": 50, "users_in_both": 99, "users_changed": 50, "mean_jaccard": 0.6},
    "histories": {"users_then": 99, "users_in_both": 98, "mean_kept": 1.0},
}
FACTS = GateInputs(
    table=TABLE,
    recall={"mean": 0.96, "standard_error": 0.001},
    target_recall=0.95,
    evaluation=Evaluation(SPLIT, quality()),
    against_popularity=against(),
    rejected={"ratings": (5, 1_000), "items": (0, 50)},
    last=LAST,
    arrivals=ARRIVALS,
    k=50,
)


def table(**changes: Any) -> GateInputs:
    return replace(FACTS, table=TABLE | changes)


def came(**changes: Any) -> GateInputs:
    return replace(FACTS, arrivals=replace(ARRIVALS, **changes))


def statuses(facts: GateInputs, settings: GateSettings | None = None) -> dict[str, str]:
    return {gate.name: gate.status for gate in judge_release(facts, settings or GateSettings())}


def test_the_page_on_gates_names_every_gate_and_the_limits_as_they_are() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "gates.md").read_text()
    assert [name for name in GATES if f"`{name}`" not in page] == []
    limits = {each.name: each.default for each in fields(GateSettings) if each.name != "forced"}
    assert [name for name, limit in limits.items() if f"`--{name}` {limit:g}" not in page] == []


def test_a_good_table_passes_every_gate_and_json_holds_the_verdicts() -> None:
    gates = judge_release(FACTS, GateSettings())
    assert tuple(gate.name for gate in gates) == GATES
    assert {gate.status for gate in gates} == {"passed"}
    assert failures(gates) == []
    kept = json.loads(json.dumps(gates_as_json(gates)))
    assert kept["overlap"] == {
        "status": "passed",
        "value": 0.6,
        "limit": 0.1,
        "reason": "lists of 99 users share 0.6000 (mean Jaccard@50) with those of release R1, it must be 0.1 or more",
        "forced": None,
        "allow": None,
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
        (
            table(pairs=0, items_listed=0),
            "coverage",
            ["no list has an item, and 1,000 items may be recommended", "--block_items", "--min_coverage 0"],
        ),
        (
            replace(FACTS, against_popularity=dict.fromkeys(against(), against(mean=0.0, popularity=0.0)["recall@50"])),
            "popularity",
            ["the lists of the 90 users with lists of their own have nothing that is held out", "--min_lift 0"],
        ),
        (
            table(lists_empty=2),
            "empty_lists",
            ["2 of 100 lists are empty (0.0200), at most 0.01 of them may be", "--max_empty_lists 0.02 or"],
        ),
        (
            table(lists_short=51),
            "short_lists",
            ["51 of 100 lists have less than half of 50 items (0.5100)", "lower --k", "--max_short_lists 0.51 or"],
        ),
        (
            table(histories={"users_then": 99, "users_in_both": 98, "mean_kept": 0.17}),
            "histories",
            ["of what 99 users had rated in release R1, 0.1683 is still theirs", "permuted", "--min_history_kept 0.16 or"],
        ),
        (
            table(histories={"users_then": 60, "users_in_both": 5, "mean_kept": 1.0}),
            "histories",
            [
                "of what 60 users had rated in release R1, 0.0833 is still theirs",
                "5 of them are still there",
                "written in another",
            ],
        ),
        (
            table(histories={"users_then": 99, "users_in_both": 0, "mean_kept": 0.0}),
            "histories",
            ["nobody of 99 users who had rated something in release R1 is there any more", "--min_history_kept 0 or"],
        ),
        (
            replace(table(histories=None), last=replace(LAST, users_gone="stages/x/users/a.parquet is gone")),
            "histories",
            ["cannot be compared with what they have rated now (stages/x/users/a.parquet is gone)", "--min_history_kept 0 or"],
        ),
        (
            came(newest=1_600_000_000 - 86_400),
            "newest",
            [
                "the newest rating is of 2020-09-12 12:26:40, that of release R1 of 2020-09-13 12:26:40",
                "an older snapshot",
                "--max_days_older 1 or",
            ],
        ),
        (came(newest=None), "newest", ["no rating has a time, and the newest of release R1 is of 2020-09-13", "--columns"]),
        (
            came(ratings=8_900),
            "ratings",
            ["there are 8,900 ratings, in release R1 there were 10,000; at most 0.1", "--max_shrink 0.11 or"],
        ),
        (
            came(ratings=30_000),
            "ratings",
            ["there are 30,000 ratings, in release R1 there were 10,000; at most 0.5", "more than once", "--max_growth 2 or"],
        ),
        (
            came(repeated=(5_000, 9_995)),
            "repeated",
            ["5,000 of 9,995 ratings repeat another one of the same user and item (0.5003)", "it was 0.0100", "loaded twice"],
        ),
        (
            table(users=1, lists_short=0),
            "users",
            ["there is 1 user, in release R1 there were 100; at most 0.1", "--max_shrink"],
        ),
        (table(users=89), "users", ["there are 89 users, in release R1 there were 100; at most 0.1", "--max_shrink"]),
        (
            table(items_eligible=899),
            "items",
            ["there are 899 items to recommend, in release R1 there were 1,000", "--max_shrink"],
        ),
    ],
)
def test_each_gate_fails_and_can_be_forced(facts: GateInputs, name: str, words: list[str]) -> None:
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
    if gate.allow:
        flag, value = gate.allow.removeprefix("--").split()
        allowed = (
            judge_release(facts, replace(GateSettings(), **dict[str, Any]({flag: float(value)})))
            if flag != "target_recall"
            else []
        )
        assert failures(allowed) == [], "what it says is enough to let the gate pass"


@pytest.mark.parametrize(
    ("limits", "facts", "name"),
    [
        ({"max_quality_drop": 0.3}, replace(FACTS, evaluation=Evaluation(SPLIT, quality(recall=0.3))), "quality"),
        ({"min_lift": 0.8}, replace(FACTS, against_popularity=against(mean=0.25)), "popularity"),
        ({"min_coverage": 0.009}, table(items_listed=9), "coverage"),
        ({"min_overlap": 0.0}, table(overlap=TABLE["overlap"] | {"mean_jaccard": 0.0}), "overlap"),
        ({"max_rejected_fraction": 0.1}, replace(FACTS, rejected={"items": (5, 50)}), "rejected"),
        ({"min_coverage": 0}, table(pairs=0, items_listed=0), "coverage"),
        ({"max_empty_lists": 0.02}, table(lists_empty=2), "empty_lists"),
        ({"max_short_lists": 0.51}, table(lists_short=51), "short_lists"),
        ({"min_history_kept": 0.1}, table(histories={"users_then": 9, "users_in_both": 9, "mean_kept": 0.17}), "histories"),
        ({"min_history_kept": 0}, table(histories=None), "histories"),
        ({"max_days_older": 1.5}, came(newest=1_600_000_000 - 86_400), "newest"),
        ({"max_shrink": 0.11}, came(ratings=8_900), "ratings"),
        ({"max_growth": 2.0}, came(ratings=30_000), "ratings"),
        ({"max_repeated_rise": 0.5}, came(repeated=(5_000, 9_995)), "repeated"),
        ({"max_shrink": 0.11}, table(users=89), "users"),
        ({"max_shrink": 0.11}, table(items_eligible=899), "items"),
    ],
)
def test_each_limit_is_a_setting(limits: dict[str, Any], facts: GateInputs, name: str) -> None:
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
    compared = ("quality", "overlap", "histories", "repeated", "ratings", "newest", "users", "items")
    assert skipped == dict.fromkeys(compared, "there is no release before this one")


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
        (
            table(histories={"users_then": 0, "users_in_both": 0, "mean_kept": 0.0}),
            "histories",
            "no user of release R1 had rated anything",
        ),
        (
            replace(FACTS, last=replace(LAST, arrivals=Arrivals())),
            "ratings",
            "release R1 does not say how many ratings it was made of",
        ),
        (
            replace(FACTS, last=replace(LAST, arrivals=Arrivals())),
            "repeated",
            "release R1 does not say how many of its ratings were repeated",
        ),
        (replace(FACTS, last=replace(LAST, arrivals=Arrivals())), "newest", "the ratings of release R1 have no times"),
        (
            came(newest=1_600_000_000 - 86_400, forgotten="abc"),
            "newest",
            "others are to be forgotten now than then, and the newest may have been theirs",
        ),
    ],
)
def test_what_does_not_apply_is_skipped_and_says_why(facts: GateInputs, name: str, why: str) -> None:
    (gate,) = [gate for gate in judge_release(facts, GateSettings()) if gate.name == name]
    assert gate.status == "skipped"
    assert why in gate.reason


def test_growth_of_users_and_items_is_never_too_much() -> None:
    assert set(statuses(table(users=500, items_eligible=5_000, items_listed=600)).values()) == {"passed"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_shrink": 1.5}, r"max_shrink must be between 0 and 1, got 1.5: change --max_shrink"),
        ({"max_quality_drop": float("nan")}, "max_quality_drop must be between 0 and 1, got nan"),
        ({"min_overlap": -0.1}, "min_overlap must be between 0 and 1, got -0.1"),
        ({"min_coverage": 2}, "min_coverage must be between 0 and 1, got 2"),
        ({"max_growth": float("inf")}, "max_growth must be a number of at least 0, got inf: change --max_growth"),
        ({"max_days_older": -1}, "max_days_older must be a number of at least 0, got -1"),
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
    assert failed.startswith(
        "gate withdrawn failed: this very table was served as release R0: correct the data or the settings"
    )
    assert statuses(facts, GateSettings(forced={"withdrawn": "a mistake"}))["withdrawn"] == "forced"


def test_a_comparison_of_unlike_things_says_so_and_how_to_go_on() -> None:
    """After a forced cut of the catalogue, the next full night has twice as many items to find the right ones among."""
    fewer = replace(ARRIVALS, ratings=7_000)
    halved = replace(LAST, items=500, k=40, arrivals=fewer, evaluation=Evaluation(SPLIT, quality(0.9)))
    facts = replace(FACTS, last=halved, evaluation=Evaluation(SPLIT, quality(users=50)))
    (line,) = failures(judge_release(facts, GateSettings()))
    for words in (
        "gate quality failed: recall@50 is 0.4000, in release R1 0.9000",
        "unlike things are compared: 500 items to recommend then, 1,000 now",
        "100 users with held-out items then, 50 now",
        "7,000 ratings then, 10,000 now",
        "k 40 then, 50 now",
        "run the same command again with --max_quality_drop 0.56 or --force quality=REASON",
    ):
        assert words in line
    assert (
        "unlike" not in failures(judge_release(replace(FACTS, evaluation=Evaluation(SPLIT, quality(0.3))), GateSettings()))[0]
    )
    by_time = replace(FACTS, evaluation=Evaluation(SPLIT | {"split": "last"}, quality()))
    (overlap,) = [gate for gate in judge_release(by_time, GateSettings()) if gate.name == "overlap"]
    assert overlap.reason.endswith("unlike things are compared: split temporal then, last now")


@given(st.floats(0, 1e6))
def test_the_limit_that_is_named_lets_the_value_pass_and_is_near(value: float) -> None:
    assert float(down(value)) <= value <= float(up(value))
    assert float(up(value)) - float(down(value)) <= max(0.11 * value, 1e-9)
