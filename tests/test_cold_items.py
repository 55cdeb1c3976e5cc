"""The benchmark of items set aside: what is taken away, and how lists are judged, against plain Python."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import cold_items
from benchmarks.cold_items import AMONG_COLD, SHOWN, WARM, WHOLE, Aside, cold_lists, judge_all, set_aside, summary, table_of
from benchmarks.judging import Model
from pipelines.cli.command import MISTAKE, OK, run_command
from schemas.errors import InputError
from tests.made_data import ratings, write_csv, write_ratings
from tests.test_quality import question_of
from transforms.search.top_k import Lists

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""


def ratings_table() -> pa.Table:
    users, items, _, times = zip(*ratings(), strict=True)
    return pa.table({"user_id": pa.array(users), "item_id": pa.array(items), "timestamp": pa.array(times)})


def test_all_ratings_of_some_items_are_taken_away() -> None:
    table = ratings_table()
    items = table["item_id"].unique().to_pylist()
    left, cold = set_aside(table, pa.chunked_array([[*items[:30], "unrated"]]), 0.3, seed=1)
    assert left.num_rows + cold.num_rows == table.num_rows
    chosen = set(cold["item_id"].to_pylist())
    assert not chosen & set(left["item_id"].to_pylist())
    assert 3 <= len(chosen) <= 16
    assert chosen <= set(items[:30])
    assert chosen != set(set_aside(table, pa.chunked_array([items[:30]]), 0.3, seed=2).cold["item_id"].to_pylist())


def test_nothing_to_set_aside_is_a_mistake() -> None:
    with pytest.raises(InputError, match="none of the 1 items was set aside with its ratings: raise --cold_fraction"):
        set_aside(ratings_table(), pa.chunked_array([["unrated"]]), 0.999, seed=0)


def test_who_had_rated_what_is_set_aside() -> None:
    question = question_of([[0], [1], [2]], [[], [], []], num_items=6)
    cold = pa.table({"user_id": ["u2", "u0", "u2", "gone", "u1"], "item_id": ["i5", "i4", "i3", "i3", "elsewhere"]})
    lists = cold_lists(Aside(cold, cold), question)
    assert [lists.take(np.array([user])).values.tolist() for user in range(3)] == [[4], [], [3, 5]]


def test_models_are_judged_by_what_was_set_aside_and_by_the_rest() -> None:
    # Items 6 to 9 were set aside; a model by id has no scores for them.
    question = question_of([[0, 1], [2, 3], [4, 0]], [[2], [0], [5]], num_items=10)
    cold = Lists.of([[6], [7, 8], []])
    scores = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    scores[0, 6] = scores[1, 7] = scores[1, 8] = 50.0
    known = np.ones(3, bool)
    models = {
        "id": Model(lambda users: np.where(np.arange(10) < 6, scores[users], -np.inf), known),
        "id+features": Model(lambda users: scores[users], known),
    }
    found = judge_all(models, question, cold, seed=0)
    assert found[AMONG_COLD]["id+features"]["ndcg@10"] == 1.0
    assert found[WHOLE]["id+features"]["ndcg@10"] == 1.0
    assert found[WHOLE]["id"]["recall@100"] == 0.0
    assert found[WARM]["id"]["recall@100"] == found[WARM]["id+features"]["recall@100"] == 1.0
    assert found[WARM]["id"]["ndcg@10"] > found[WARM]["id+features"]["ndcg@10"]
    # 7 and 8 turned out as popular as 6; equal scores go by code, so user 0 finds 6 first and user 1 its own after it.
    ideal = 1 + 1 / np.log2(3)
    expected = (1 + (1 / np.log2(3) + 1 / np.log2(4)) / ideal) / 2
    assert found[AMONG_COLD]["what was popular in the end"]["ndcg@10"] == pytest.approx(expected)
    assert set(found[AMONG_COLD]) == {"id+features", "one list for everybody", "chance", "what was popular in the end"}


def test_means_and_errors_over_repeats() -> None:
    one = {"group": {"model": dict.fromkeys(cold_items.METRICS, 0.1)}}
    two = {"group": {"model": dict.fromkeys(cold_items.METRICS, 0.3)}}
    assert summary([one, two])["group"]["model"]["mrr"] == {"mean": pytest.approx(0.2), "standard_error": pytest.approx(0.1)}
    assert table_of(summary([one, two])["group"], ["mrr"]).splitlines()[-1] == "| model | 0.200 ± 0.100 |"
    assert table_of(summary([one])["group"], ["mrr"]).splitlines()[-1] == "| model | 0.100 |"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = sorted({item for _, item, *_ in ratings()})
    rows = [(item, f"shelf {at % 2}") for at, item in enumerate(items)]
    flags = [
        f"--ratings={write_ratings(tmp_path)}",
        f"--items={write_csv(tmp_path / 'items.csv', ['item_id', 'shelf'], rows)}",
        *(
            "--features=shelf=category",
            "--dim=4",
            "--epochs=1",
            "--repeats=1",
            "--cold_fraction=0.3",
            f"--save={tmp_path / 'found.json'}",
        ),
    ]
    assert run_command(cold_items.main, flags) == OK
    out = capsys.readouterr().out
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    for group, shown in SHOWN.items():
        assert group in out
        assert set(shown) <= set(found["means"][group]["id+features"])
    assert found["means"][WHOLE]["id"]["recall@100"]["mean"] == 0.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cold_fraction=1"], "cold_fraction must be between 0 and 1, got 1: change --cold_fraction"),
        (["--repeats=0"], "repeats must be at least 1, got 0: raise --repeats"),
        (["--ratings=x.csv"], "items are set aside by their features: give --ratings, --items and --features"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(cold_items.main, flags) == MISTAKE
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
