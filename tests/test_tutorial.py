"""The tutorial's rows: data, accuracies and comparisons against other code that counts the same; the whole at a small scale."""

import importlib.util
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_recommenders.layers.factorized_top_k import BruteForce
from tensorflow_recommenders.metrics import FactorizedTopK

from benchmarks.tutorial import libraries, published
from benchmarks.tutorial.accuracy import accuracy_of, unseen_lists
from benchmarks.tutorial.benchmark import main, parse
from benchmarks.tutorial.catalogue import enlarged
from benchmarks.tutorial.figures import Figure, table_of
from benchmarks.tutorial.libraries import Comparison, Library, Point, front_of, speed_at
from benchmarks.tutorial.model import TutorialModel, batches
from benchmarks.tutorial.ratings import Ratings, read_ratings
from benchmarks.tutorial.serving import scann
from schemas.errors import InputError
from tests import made_data

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

NUM_ITEMS = 130


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture(scope="module")
def ratings(folder: Path) -> Ratings:
    rows = made_data.write_ratings(folder, num_users=60, num_items=NUM_ITEMS)
    return read_ratings(str(rows), str(made_data.write_items(folder, NUM_ITEMS)))


def test_every_rating_is_in_one_part_and_four_fifths_train(ratings: Ratings) -> None:
    rows = made_data.ratings(num_users=60, num_items=NUM_ITEMS)
    assert len(ratings.user) == len(rows)
    assert ratings.num_train == len(rows) * 4 // 5
    read = list(zip(ratings.user_ids[ratings.user], ratings.item_ids[ratings.item], strict=True))
    assert sorted(read) == sorted((user, item) for user, item, *_ in rows)
    assert read != [(user, item) for user, item, *_ in rows], "shuffled"
    assert read == list(zip(ratings.table["user_id"].to_pylist(), ratings.table["item_id"].to_pylist(), strict=True))


def test_the_catalogue_has_unrated_items_and_titles(ratings: Ratings) -> None:
    assert len(ratings.item_ids) == NUM_ITEMS + 1
    assert list(ratings.item_ids) == sorted(ratings.item_ids)
    assert ratings.titles[list(ratings.item_ids).index("unrated")] == "Title of unrated <b>é</b>"


def test_without_items_the_catalogue_is_what_was_rated(folder: Path) -> None:
    ratings = read_ratings(str(folder / "ratings.csv"))
    assert len(ratings.item_ids) <= NUM_ITEMS
    assert list(ratings.titles) == list(ratings.item_ids)


def test_too_few_ratings_are_refused(tmp_path: Path) -> None:
    path = made_data.write_csv(tmp_path / "few.csv", ["user_id", "item_id"], [("a", "b"), ("a", "c")])
    with pytest.raises(InputError, match=r"splits ratings four to one, got 2 that can be used: check .*few.csv"):
        read_ratings(str(path))


def random_vectors(ratings: Ratings, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((len(ids), dim), np.float32) for ids in (ratings.user_ids, ratings.item_ids))  # type: ignore[return-value]


def test_accuracy_of_lists_is_what_tfrs_counts(ratings: Ratings) -> None:
    users, items = random_vectors(ratings)
    user, item = ratings.user[ratings.test], ratings.item[ratings.test]
    metric = FactorizedTopK(BruteForce().index(tf.constant(items)), ks=list(published.ACCURACY))
    metric.update_state(tf.constant(users[user]), tf.constant(items[item]), true_candidate_ids=tf.constant(item))
    lists = np.argsort(-(users @ items.T), axis=1)[:, :100]
    assert list(accuracy_of(lists[user], item).values()) == pytest.approx([float(each) for each in metric.result()])


def test_what_was_seen_is_left_out_of_lists(ratings: Ratings) -> None:
    users, items = random_vectors(ratings)
    lists = unseen_lists(users, items, ratings)
    for user in range(len(users)):
        seen = set(ratings.item[ratings.train][ratings.user[ratings.train] == user])
        ranked = [item for item in np.argsort(-(items @ users[user])) if item not in seen]
        assert list(lists[user]) == ranked[:100]


def test_the_enlarged_catalogue_begins_with_the_items() -> None:
    items = np.random.default_rng(0).standard_normal((10, 4), np.float32)
    vectors = enlarged(items, copies=3)
    assert vectors.shape == (40, 4)
    np.testing.assert_array_equal(vectors[:10], items)
    shares = vectors[10:].reshape(3, 10, 4) / items
    assert shares.min() >= 0
    assert shares.max() < 1
    assert len(np.unique(shares)) > 100, "each number is perturbed on its own"


@pytest.mark.parametrize(
    "make", [lambda items: BruteForce().index(tf.constant(items)), lambda items: scann(items, 10, 10, len(items))]
)
def test_the_model_is_judged_through_any_layer(ratings: Ratings, make: Callable) -> None:
    model = TutorialModel(ratings, dim=8)
    model.fit(batches(ratings, ratings.train, 64), epochs=1, verbose=0)
    users, items = model.vectors(ratings)
    model.judge_with(make(items))
    lists = np.argsort(-(users @ items.T), axis=1)[:, :100]
    expected = accuracy_of(lists[ratings.user[ratings.test]], ratings.item[ratings.test])
    # An exact order of equal scores is nobody's promise.
    assert model.accuracy(batches(ratings, ratings.test, 50)) == pytest.approx(expected, abs=0.03)


def points(*values: tuple[float, float]) -> list[Point]:
    return [Point("a library", {}, recall, speed) for recall, speed in values]


def test_a_front_has_no_point_that_another_beats_in_both() -> None:
    found = front_of(points((0.9, 100), (0.8, 400), (0.85, 50), (0.95, 100), (0.7, 399)))
    assert [(point.recall, point.users_per_second) for point in found] == [(0.8, 400), (0.95, 100)]


def test_speed_is_read_off_between_two_points() -> None:
    front = points((0.8, 400), (1.0, 100))
    assert speed_at(front, 0.9) == pytest.approx(200), "the geometric mean, half way"
    assert speed_at(front, 1.0) == pytest.approx(100)
    assert speed_at(front, 0.5) == 400, "no setting is so careless"
    assert speed_at(points((0.8, 400)), 0.9) is None


def fake_library(name: str, found: float) -> Library:
    """Finds a share of the true rows, which are 0 to 99 for everyone."""

    def search(queries: np.ndarray, k: int, setting: libraries.Setting) -> np.ndarray:
        rows = np.arange(k) + np.where(np.arange(k) < setting["share"] * k, 0, 1_000)
        return np.tile(rows, (len(queries), 1))

    return Library(name, [{"share": found}], search, 1.0)


def test_libraries_are_measured_and_compared() -> None:
    truth = np.tile(np.arange(100), (7, 1))
    vectors = np.zeros((7, 2), np.float32)
    made = libraries.measure([fake_library("ours", 1.0), fake_library("other", 0.4)], vectors, truth, vectors)
    assert [(point.library, point.recall) for point in made] == [("ours", 1.0), ("other", pytest.approx(0.4))]
    table = Comparison("7 vectors", {"ours": 1.0}, made).table(recall=0.95)
    assert "1.00x" in table
    assert "not reached, 0.400 at most" in table


def test_shortlist_and_a_plain_scan_find_what_is_nearest() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((2_000, 8), np.float32), rng.standard_normal((20, 8), np.float32)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :100]
    found = libraries.compare(vectors, [libraries.shortlist, libraries.plain_scan], [], queries, queries)
    assert all(point.recall == 1 for point in found.points)
    np.testing.assert_array_equal(libraries.plain_scan(vectors).search(queries, 100, {}), truth)


@pytest.mark.parametrize(
    ("module", "make"), [("faiss", libraries.faiss_ivf), ("faiss", libraries.faiss_scan), ("hnswlib", libraries.hnsw)]
)
def test_other_libraries_find_most_of_what_is_nearest(module: str, make: Callable[[np.ndarray], Library]) -> None:
    pytest.importorskip(module)
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((3_000, 8), np.float32), rng.standard_normal((20, 8), np.float32)
    library = make(vectors)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :100]
    (point,) = libraries.measure([Library(library.name, library.settings[-1:], library.search, 0)], queries, truth, queries)
    assert point.recall > 0.5


def test_mistakes_in_the_flags_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--ratings=r.csv", "--output=out"]
    with pytest.raises(InputError, match="copies must be at least 1, got 0: raise --copies"):
        parse([*given, "--copies=0"])
    with pytest.raises(InputError, match="rows must be some of 1, 2, 3, 4, 5, 7, 9, got 6, x: change --rows"):
        parse([*given, "--rows=1,6,x"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"row 9 compares with faiss-cpu and hnswlib, not installed here: pip install -r"):
        parse([*given, "--rows=9"])
    assert parse([*given, "--rows=7,2"]).rows == [2, 7]


def test_figures_make_a_table() -> None:
    lines = table_of(
        [Figure(5, "a | b", "s", 215.0, 0.1234, None), Figure(1, "top-1", "", 0.0013, "text", 1234.5)]
    ).splitlines()
    assert lines[0].split(" | ")[1].strip() == "measured"
    assert lines[2] == r"| 5 | a \| b   | 215 s             | 0.123 s        |                 |"
    assert len({len(line) for line in lines}) == 1


def test_the_benchmark_runs(ratings: Ratings, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "out"
    main(
        [
            f"--ratings={folder / 'ratings.csv'}",
            f"--items={folder / 'items.csv'}",
            f"--output={output}",
            "--copies=9",
            "--rows=1,2,3,4,5,7",
        ]
    )
    table = capsys.readouterr().out
    assert table == (output / "tutorial.md").read_text()
    facts = json.loads((output / "tutorial.json").read_text())
    assert facts["vectors"] == 10 * (NUM_ITEMS + 1)
    assert {figure["row"] for figure in facts["figures"]} == {1, 2, 3, 4, 5, 7}
    for name in ("accuracy.svg", "times.svg"):
        ET.fromstring((output / name).read_text())
    by_what = {figure["what"]: figure for figure in facts["figures"]}
    exact = by_what[f"top-100 accuracy among {facts['vectors']:,} items, brute force"]
    assert exact["tutorial"] == pytest.approx(exact["shortlist"], abs=0.01)
    (same,) = (figure for what, figure in by_what.items() if what.startswith("brute force, the first 3"))
    assert same["tutorial"] == same["shortlist"]
