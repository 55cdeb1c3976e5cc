"""The quality benchmark: its metrics against formulas written out, its towers against a run's own figures, its anchors."""

import importlib
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import anchors, quality
from benchmarks.anchors import ANCHORS, Anchor, check_installed, fit_ease, fit_ials, fit_item_knn, fit_recent_popularity, tune
from benchmarks.judging import METRICS, Judged, Model, Pairs, Question, judge, lists_of, objective, validation_of
from benchmarks.quality_report import Row, figures, table_of, with_error
from pipelines import run
from pipelines.cli.command import MISTAKE, OK, run_command
from schemas.workspace import Workspace
from tests.made_data import write_items, write_ratings
from transforms.search.top_k import Lists

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

DAY = 86_400


def question_of(
    train: Sequence[Sequence[int]], holdout: Sequence[Sequence[int]], num_items: int, times: Sequence[int] | None = None
) -> Question:
    """Returns a question by each user's training and held-out items."""
    user = np.repeat(np.arange(len(train)), [len(each) for each in train])
    item = np.array([code for row in train for code in row], np.int64)
    pairs = Pairs(user, item, np.array(times if times is not None else np.zeros(len(user)), np.int64), len(train), num_items)
    return Question(
        pairs,
        pa.array([f"u{each}" for each in range(len(train))]),
        pa.array([f"i{each}" for each in range(num_items)]),
        [],
        Lists.of([list(row) for row in train]),
        Lists.of([list(row) for row in holdout]),
        np.bincount(item, minlength=num_items).astype(np.float32),
    )


def made_question(seed: int, num_users: int = 30, num_items: int = 150) -> Question:
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(num_items)[: rng.integers(2, 40)].tolist() for _ in range(num_users)]
    cuts = [int(rng.integers(1, len(each))) for each in drawn]
    times = rng.integers(0, 100 * DAY, sum(cuts))
    train, holdout = (
        [each[part(cut)] for each, cut in zip(drawn, cuts, strict=True)] for part in (slice, lambda c: slice(c, None))
    )
    return question_of(train, holdout, num_items, times.tolist())


def test_metrics_equal_formulas_written_out() -> None:
    question = made_question(0)
    scores = np.random.default_rng(1).normal(size=(30, 150)).astype(np.float32)
    judged = judge(Model(lambda users: scores[users], np.ones(30, bool)), question)
    everyone: set[int] = set()
    for user in range(30):
        seen = set(question.pairs.item[question.pairs.user == user].tolist())
        held = set(question.holdout.take(np.array([user])).values.tolist())
        ranked = [item for item in np.argsort(-scores[user]).tolist() if item not in seen][:100]
        everyone |= set(ranked)
        hits = [item in held for item in ranked]
        gain = sum(1 / math.log2(rank + 2) for rank in range(10) if hits[rank])
        expected = {
            "recall@10": sum(hits[:10]) / len(held),
            "recall@100": sum(hits) / len(held),
            "ndcg@10": gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(held)))),
            "mrr": 1 / (hits.index(True) + 1) if any(hits) else 0,
        }
        for name, value in expected.items():
            assert judged.of_users[user, METRICS.index(name)] == pytest.approx(value), name
    assert judged.coverage == len(everyone) / 150


def test_users_without_pairs_get_what_is_recently_popular_and_unlisted_items_never_appear() -> None:
    question = question_of([[0, 1], [1], []], [[2], [3], [1]], 5)
    scores = np.array([[0, 0, 1, -np.inf, 2]] * 3, np.float32)
    lists = lists_of(Model(lambda users: scores[users], question.pairs.counts_of_users > 0), question, np.arange(3))
    assert [[code for code in row if code >= 0] for row in lists.tolist()] == [[4, 2], [4, 2, 0], [1, 0]]


@pytest.mark.parametrize("split", ["random", "temporal"])
def test_the_validation_slice_is_of_training_pairs_and_what_is_left_is_learned_from(split: str) -> None:
    question = made_question(2)
    trial = validation_of(question, split, 0.2, seed=42)
    left = set(trial.pairs.keys.tolist())
    held = {user * 150 + code for user in range(30) for code in trial.holdout.take(np.array([user])).values.tolist()}
    assert held
    assert not left & held
    assert left | held <= set(question.pairs.keys.tolist())
    assert 0.1 < len(held) / len(question.pairs.user) < 0.3
    for user in range(30):
        assert sorted(trial.unwanted.take(np.array([user])).values) == sorted(trial.pairs.item[trial.pairs.user == user])
    if split == "temporal":
        time_of = dict(zip(question.pairs.keys.tolist(), question.pairs.time.tolist(), strict=True))
        assert max(time_of[key] for key in left) < min(time_of[key] for key in held)
    # The test decides nothing: a question with another holdout has the same trial.
    other = validation_of(question._replace(holdout=Lists.none(30)), split, 0.2, seed=42)
    assert (other.holdout.values == trial.holdout.values).all()


def test_tuning_keeps_the_best_of_each_setting_and_asks_for_nothing_twice() -> None:
    asked: list[tuple] = []

    def quality_of(settings: Mapping[str, Any]) -> float:
        asked.append(tuple(settings.values()))
        return -abs(settings["a"] - 3) - 0.5 * abs(settings["b"] - settings["a"])

    anchor = Anchor("made", lambda *_: lambda users: users, space={"a": [1, 2, 3], "b": [1, 2, 3]})
    assert tune(anchor, quality_of) == ({"a": 3, "b": 3}, 0)
    assert len(asked) == len(set(asked))


def test_recent_popularity_halves_with_age() -> None:
    pairs = Pairs(np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([0, 2 * DAY, 4 * DAY]), 3, 3)
    scores = fit_recent_popularity(pairs, {"half_life_days": 2}, 0)(np.array([0]))
    assert scores.tolist() == [[0.25 + 0.5, 1.0, 0.0]]


def test_ease_equals_each_items_regression_on_the_others() -> None:
    pytest.importorskip("scipy")
    pairs = made_question(3, num_items=20).pairs
    dense = np.zeros((30, 20))
    dense[pairs.user, pairs.item] = 1
    expected = np.empty((30, 20))
    for item in range(20):
        others = np.delete(dense, item, axis=1)
        weights = np.linalg.solve(others.T @ others + 5 * np.eye(19), others.T @ dense[:, item])
        expected[:, item] = others @ weights
    assert fit_ease(pairs, {"l2": 5}, 0)(np.arange(30)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("power", [0, 1])
def test_ials_comes_to_rest_where_its_loss_has_no_slope(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    pairs = made_question(4, num_items=20).pairs
    settings = {"l2": 0.2, "unobserved": 0.2, "power": power, "dim": 3, "epochs": 400}
    learned: list[np.ndarray] = []
    monkeypatch.setattr(anchors, "inner_products", lambda *vectors: learned.extend(vectors))
    fit_ials(pairs, settings, 0)
    users, items = (each.astype(float) for each in learned)
    dense = np.zeros((30, 20))
    dense[pairs.user, pairs.item] = 1
    scores = users @ items.T
    error = dense * (scores - 1) + settings["unobserved"] * scores
    for vectors, others, gradient, counts in ((users, items, error, dense.sum(1)), (items, users, error.T, dense.sum(0))):
        frequency = counts + settings["unobserved"] * len(others)
        weights = settings["l2"] * (frequency if power else np.full(len(counts), frequency.mean()))
        assert np.abs(gradient @ others + weights[:, None] * vectors).max() < 1e-2
    assert np.abs(scores).max() > 0.1


def test_item_knn_finds_the_items_of_the_same_taste() -> None:
    pytest.importorskip("implicit")
    train = [[item for item in range(20) if item % 2 == user % 2 and item % 7 != user % 7] for user in range(14)]
    scores = fit_item_knn(question_of(train, [[]] * 14, 20).pairs, {"neighbors": 20, "k1": 1.2, "b": 0.2}, 0)(np.arange(14))
    for user in range(14):
        same = np.arange(20) % 2 == user % 2
        assert scores[user, same].min() > scores[user, ~same].max()


@pytest.mark.parametrize("anchor", ANCHORS, ids=lambda each: each.name)
def test_every_anchor_beats_chance_and_is_the_same_each_time(anchor: Anchor) -> None:
    if anchor.needs:
        pytest.importorskip(anchor.needs)
    rng = np.random.default_rng(0)
    chance = np.where(np.arange(60) % 3 == 0, 6.0, 1.0)
    drawn = [rng.choice(60, 20, replace=False, p=chance / chance.sum()).tolist() for _ in range(50)]
    question = question_of([row[:12] for row in drawn], [row[12:] for row in drawn], 60)
    settings = {name: values[0] for name, values in anchor.space.items()}
    made, again = (quality.model_of(anchor, question, settings, 1) for _ in range(2))
    noise = rng.normal(size=(50, 60)).astype(np.float32)
    assert objective(made, question) > objective(Model(lambda users: noise[users], made.known), question)
    assert (lists_of(made, question, np.arange(50)) == lists_of(again, question, np.arange(50))).all()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A folder, what a run says of its own quality, and what the benchmark says of the same stages."""
    folder = tmp_path_factory.mktemp("quality")
    flags = [
        f"--ratings={write_ratings(folder)}",
        f"--items={write_items(folder)}",
        "--features=title=text",
        f"--output={folder}/out",
        *("--dim=8", "--l2=0.1", "--epochs=2", "--batch_size=64", "--k=40", "--num_shards=2", "--num_buckets=2", "--seed=7"),
    ]
    assert run_command(run.main, flags) == OK
    own = Workspace(f"{folder}/out").finished("recommend")[-1].metrics
    more = [f"--save={folder}/q.json", f"--plot={folder}/q.svg", "--models=popularity,id", "--seeds=2"]
    assert run_command(quality.main, [*flags, *more]) == OK
    return folder, dict(own), json.loads((folder / "q.json").read_text())


def test_towers_and_popularity_are_judged_as_a_run_judges_them(measured: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, own, result = measured
    popularity, plain, towers = result["groups"][0]["models"]
    for name in ("recall@10", "ndcg@10", "hit_rate@10", "mrr"):
        assert towers["means_of_seeds"][0][name] == pytest.approx(own["quality"]["means"][name], abs=1e-9)
        assert popularity["means"][name] == pytest.approx(own["popularity"]["means"][name], abs=1e-9)
        assert popularity["standard_errors"][name] == pytest.approx(own["popularity"]["standard_errors"][name], abs=1e-9)
    assert (plain["name"], towers["name"]) == ("Shortlist, id", "Shortlist, id, items id+features")
    assert len(towers["means_of_seeds"]) == 2


def test_the_chart_is_well_formed_and_names_every_model(measured: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    root = ET.parse(measured[0] / "q.svg").getroot()
    assert {"popularity", "Shortlist, id, items id+features", "Recall@100", "NDCG@10"} <= {each.text for each in root.iter()}


def test_the_table_compares_user_by_user_with_the_best_anchor() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(size=(50, len(METRICS)))
    rows = [
        Row("popularity", {}, None, 0, [Judged(base - 0.2, 0.1)]),
        Row("EASE", {}, None, 0, [Judged(base, 0.2)]),
        Row("Shortlist, id", {}, None, 0, [Judged(base + 0.01, 0.3), Judged(base + 0.03, 0.3)]),
    ]
    found = figures(rows, np.ones(50, bool))
    assert found["best_anchor"] == "EASE"
    gained = found["models"][2]["against_best_anchor"]["recall@100"]
    assert gained["mean"] == pytest.approx(0.02)
    assert gained["standard_error"] == pytest.approx(0, abs=1e-9)
    assert found["models"][2]["standard_errors_over_seeds"]["mrr"] == pytest.approx(0.01)
    assert found["models"][1]["standard_errors"]["mrr"] == pytest.approx(base[:, -1].std(ddof=1) / math.sqrt(50))
    lines = table_of(found).splitlines()
    assert lines[0].startswith(
        "| model | Recall@10 | Recall@20 | Recall@50 | Recall@100 | NDCG@10 | NDCG@20 | MRR | coverage@100 | Recall@100 against"
    )
    assert lines[4].endswith("| +.0200 ± .0000 | +.0200 ± .0000 |")
    assert lines[3].endswith("|  |  |")
    assert with_error(-0.5, 0.25, "+") == "-.5000 ± .2500"
    assert with_error(1.0, None) == "1.0000"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models=popularity,als"], "there is no model 'als': --models takes popularity, "),
        (["--seeds=0"], "seeds must be at least 1, got 0: raise --seeds"),
        (["--models=popularity"], "no ratings: give --ratings"),
        (["--models=popularity", "--ratings=r.csv", "--split=none"], "--split none holds nothing out to judge by"),
        (["--models=popularity", "--rating=r.csv"], "unknown flag --rating: did you mean --ratings?"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(quality.main, flags) == MISTAKE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_a_missing_package_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.import_module

    def lacking(name: str, *rest: Any) -> Any:
        if name == "implicit":
            raise ImportError("No module named 'implicit'")
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", lacking)
    assert run_command(quality.main, ["--ratings=none.csv", "--models=implicit ALS"]) == MISTAKE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "implicit ALS needs the package implicit" in line
    assert "pip install -r requirements-benchmarks.txt" in line
    check_installed([])
