import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import InputError
from transforms.search import scann_index
from transforms.search.scann_index import BuildSettings, ShardPlan, build, load, plan_shard

KINDS = {
    "exact": lambda n, dim: ShardPlan("exact", n, dim),
    "hashed": lambda n, dim: ShardPlan("hashed", n, dim),
    "tree": lambda n, dim: plan_shard(n, dim, num_leaves=20),
}


def brute_force(vectors, queries, k):
    """Rows by score descending, then row ascending; float64, so exact for whole numbers."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def clustered(rng, n, dim):
    """Vectors around some centres, as embeddings are."""
    return (rng.normal(size=(50, dim))[rng.integers(0, 50, n)] + 0.5 * rng.normal(size=(n, dim))).astype(np.float32)


def whole(rng, n, dim):
    """Vectors of small whole numbers: exact scores, many ties, duplicates and zero vectors among them."""
    return rng.integers(-2, 3, (n, dim)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    return clustered(np.random.default_rng(0), 4001, 16)


@pytest.fixture(scope="module")
def queries():
    return clustered(np.random.default_rng(1), 300, 16)


@pytest.fixture(scope="module", params=KINDS)
def index(request, vectors):
    return build(vectors, KINDS[request.param](*vectors.shape), seed=3)


@pytest.mark.parametrize(
    ("num_vectors", "kind", "num_leaves"),
    [
        (0, "exact", 1),
        (19_999, "exact", 1),
        (20_000, "hashed", 1),
        (99_999, "hashed", 1),
        (100_000, "tree", 474),  # 1.5 sqrt(n).
        (1_651_650, "tree", 3_839),
        (10_000_000, "tree", 9_487),  # 3 sqrt(n).
    ],
)
def test_the_size_decides_the_kind(num_vectors, kind, num_leaves):
    plan = plan_shard(num_vectors, 64)

    assert plan.kind == kind
    assert plan.num_leaves == num_leaves


@given(st.integers(0, 300), st.integers(1, 70), st.integers(1, 500))
def test_a_number_of_leaves_overrides_the_size_where_a_tree_can_be_trained(num_vectors, dim, num_leaves):
    plan = plan_shard(num_vectors, dim, num_leaves)

    assert plan.kind == ("tree" if num_vectors >= 16 else "exact")
    assert 1 <= plan.num_leaves <= max(1, num_vectors)


def test_no_leaves_is_refused():
    with pytest.raises(InputError, match="the number of leaves must be at least 1, got 0"):
        plan_shard(1000, 8, num_leaves=0)


@pytest.mark.parametrize(
    ("ask", "num_vectors", "expected"),
    [
        (BuildSettings(), 200_000, ShardPlan("tree", 200_000, 8, 788)),
        (BuildSettings(soar=False), 200_000, ShardPlan("tree", 200_000, 8, 788, soar=False)),
        (BuildSettings(num_leaves=7), 50, ShardPlan("tree", 50, 8, 7)),
        (BuildSettings(num_leaves=70), 50, ShardPlan("tree", 50, 8, 50)),
        (BuildSettings("tree"), 100, ShardPlan("tree", 100, 8, 15)),
        (BuildSettings("tree", 3), 15, ShardPlan("exact", 15, 8)),
        (BuildSettings("hashed", None, 0.1, False), 200_000, ShardPlan("hashed", 200_000, 8, 1, 0.1)),
        (BuildSettings("exact", soar=False), 200_000, ShardPlan("exact", 200_000, 8)),
        (BuildSettings(quantization_threshold=0.4), 100, ShardPlan("exact", 100, 8)),
    ],
)
def test_what_is_asked_for_overrides_what_the_size_says(ask, num_vectors, expected):
    assert ask.applied_to(plan_shard(num_vectors, 8)) == expected


def test_nothing_asked_for_changes_nothing():
    for num_vectors in (0, 15, 16, 19_999, 20_000, 99_999, 100_000, 1_000_000):
        assert BuildSettings().applied_to(plan_shard(num_vectors, 8)) == plan_shard(num_vectors, 8)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"kind": "trees"}, "the kind of index must be one of exact, hashed, tree, got 'trees': change --index_kind"),
        ({"num_leaves": 0}, "the number of leaves must be at least 1, got 0: raise it or leave it out"),
        ({"kind": "hashed", "num_leaves": 5}, "an index of kind hashed has no leaves, got 5: leave --leaves out"),
        (
            {"quantization_threshold": float("nan")},
            "quantization_threshold must be from 0 to below 1, got nan: change --quantization_threshold",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(ask, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        BuildSettings(**ask)


def test_a_tree_with_soar_puts_each_vector_in_two_leaves_and_one_without_in_one(tmp_path):
    vectors = clustered(np.random.default_rng(3), 2000, 16)
    for soar, times in ((True, 2), (False, 1)):
        plan = replace(plan_shard(2000, 16, 20), soar=soar)
        build(vectors, plan).save(tmp_path / str(soar))
        assert load(tmp_path / str(soar)).plan == plan
        assert np.load(tmp_path / str(soar) / "datapoint_to_token.npy").size == times * 2001


@pytest.mark.parametrize("kind", ["hashed", "tree"])
def test_the_threshold_counts_in_lengths_of_the_vectors(kind, tmp_path):
    """Longer vectors have the same hashes, another threshold has others: ScaNN itself takes it for an inner product."""
    vectors = clustered(np.random.default_rng(3), 2000, 16)
    plan = KINDS[kind](2000, 16)
    for name, each, scale in (
        ("plain", plan, 1),
        ("longer", plan, 4),
        ("higher", replace(plan, quantization_threshold=0.5), 1),
    ):
        build(scale * vectors, each).save(tmp_path / name)

    hashes = {folder.name: np.load(folder / "hashed_dataset.npy") for folder in tmp_path.iterdir()}
    np.testing.assert_array_equal(hashes["plain"], hashes["longer"])
    assert (hashes["plain"] != hashes["higher"]).any()


def test_bytes_without_soar_are_those_of_the_files(tmp_path):
    vectors = clustered(np.random.default_rng(3), 3000, 16)
    for soar in (True, False):
        index = build(vectors, replace(plan_shard(3000, 16, 20), soar=soar))
        index.save(tmp_path / str(soar))
        on_disk = sum(file.stat().st_size for file in (tmp_path / str(soar)).iterdir())
        assert on_disk == pytest.approx(index.plan.index_bytes, rel=0.1)


def test_vectors_that_are_not_finite_are_refused():
    vectors = np.ones((5, 2), np.float32)
    vectors[3, 1] = np.nan

    with pytest.raises(InputError, match="vectors must be finite, 1 are not, the first in row 3"):
        build(vectors, plan_shard(5, 2))


def test_a_plan_for_other_vectors_is_refused():
    with pytest.raises(ValueError, match=r"the plan is for vectors of shape \(4, 2\), got \(5, 2\)"):
        build(np.ones((5, 2), np.float32), plan_shard(4, 2))


def test_queries_of_another_dimension_are_refused(index):
    with pytest.raises(InputError, match="queries must have the index's 16 dimensions, got shape"):
        index.search(np.ones((2, 15), np.float32), 3)


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 70), st.integers(1, 64), st.integers(1, 80), st.integers(0, 40), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_any_kind_equals_brute_force_when_everything_is_searched(kind, n, dim, k, num_queries, seed):
    rng = np.random.default_rng(seed)
    vectors, queries = whole(rng, n, dim), whole(rng, num_queries, dim)
    index = build(vectors, KINDS[kind](n, dim) if n >= 16 else plan_shard(n, dim, num_leaves=3))

    rows, scores = brute_force(vectors, queries, k)
    pad = ((0, 0), (0, k - rows.shape[1]))
    for found, found_scores in (index.search(queries, k, reorder=n), index.search_exact(queries, k)):
        assert found.dtype == np.int64
        assert found_scores.dtype == np.float32
        np.testing.assert_array_equal(found, np.pad(rows, pad, constant_values=-1))
        np.testing.assert_array_equal(found_scores, np.pad(scores, pad, constant_values=-np.inf))


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 40])
@pytest.mark.parametrize("dim", [1, 2, 3, 64])
def test_fewer_vectors_than_leaves_clusters_or_dimensions(n, dim):
    vectors = whole(np.random.default_rng(n), n, dim)
    index = build(vectors, plan_shard(n, dim, num_leaves=1000))

    rows, scores = index.search(vectors, n + 5, leaves_to_search=1000)

    expected, expected_scores = brute_force(vectors, vectors, n)
    np.testing.assert_array_equal(rows, np.pad(expected, ((0, 0), (0, 5)), constant_values=-1))
    np.testing.assert_array_equal(scores, np.pad(expected_scores, ((0, 0), (0, 5)), constant_values=-np.inf))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_vectors_are_ranked_by_row(kind, value):
    index = build(np.full((1001, 3), value, np.float32), KINDS[kind](1001, 3))

    rows, _ = index.search_exact(np.ones((2, 3), np.float32), 40)

    np.testing.assert_array_equal(rows, np.broadcast_to(np.arange(40), (2, 40)))


def test_search_exact_finds_the_best_rows(index, vectors, queries):
    rows, scores = index.search_exact(queries, 100)

    expected, expected_scores = brute_force(vectors, queries, 100)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    # Scores closer than float32 can tell may change places.
    assert (rows == expected).mean() > 0.999
    assert [set(row) for row in rows] == [set(row) for row in expected]


def test_scores_are_the_same_bits_whatever_finds_them(index, vectors, queries):
    everything = build(vectors, plan_shard(*vectors.shape)).search_exact(queries, len(vectors))
    canonical = np.zeros((len(queries), len(vectors)), np.float32)
    np.put_along_axis(canonical, *everything, axis=1)

    for k, num_queries in ((7, 300), (50, 1), (101, 31), (4001, 3), (20, 257)):
        for rows, scores in (
            index.search(queries[:num_queries], k, reorder=k + 1),
            index.search(queries[:num_queries], k, reorder=len(vectors)),
            index.search_exact(queries[:num_queries], k),
        ):
            present = rows >= 0
            np.testing.assert_array_equal(scores[present], np.take_along_axis(canonical[:num_queries], rows, axis=1)[present])


def test_answers_do_not_depend_on_the_batch(index, queries):
    rows, scores = index.search(queries, 20, leaves_to_search=4, reorder=30)

    for start, stop in ((0, 1), (3, 5), (10, 41), (0, 257), (17, 290)):
        found = index.search(queries[start:stop], 20, leaves_to_search=4, reorder=30)
        np.testing.assert_array_equal(found[0], rows[start:stop])
        np.testing.assert_array_equal(found[1], scores[start:stop])


def test_as_many_rows_as_asked_for_whatever_the_reorder_size(index, queries):
    rows, scores = index.search(queries, 60, reorder=5)

    assert (rows >= 0).all()
    assert np.isfinite(scores).all()
    assert all(len(set(row)) == 60 for row in rows)


def test_what_the_opened_leaves_do_not_hold_is_missing_and_not_row_0(vectors, queries):
    index = build(vectors, plan_shard(len(vectors), 16, num_leaves=400))

    rows, scores = index.search(queries, 500, leaves_to_search=2)

    counts = (rows >= 0).sum(axis=1)
    assert (counts > 0).all()
    assert (counts < 500).any()
    for row, score, count in zip(rows, scores, counts, strict=True):
        assert len(set(row[:count])) == count
        assert (row[count:] == -1).all()
        assert (score[count:] == -np.inf).all()
        assert (np.diff(score[:count]) <= 0).all()


def test_settings_change_from_call_to_call(vectors, queries):
    index = build(vectors, plan_shard(len(vectors), 16, num_leaves=100), seed=1)
    expected, _ = brute_force(vectors, queries, 50)

    recalls = [
        np.mean(
            [len(np.intersect1d(*pair)) / 50 for pair in zip(index.search(queries, 50, leaves, 150)[0], expected, strict=True)]
        )
        for leaves in (1, 10, 100, None)
    ]

    assert recalls == sorted(recalls)
    assert recalls[0] < 0.5 < 0.9 < recalls[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_can_be_moved_and_loaded(kind, vectors, queries, tmp_path):
    index = build(vectors, KINDS[kind](*vectors.shape))
    index.save(tmp_path / "here" / "index")
    (tmp_path / "here").rename(tmp_path / "there")

    loaded = load(tmp_path / "there" / "index")

    assert loaded.plan == index.plan
    files = list((tmp_path / "there" / "index").iterdir())
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in files)
    assert not any(file.suffix in (".pkl", ".pickle") for file in files)
    assert sum(file.stat().st_size for file in files) == pytest.approx(index.plan.index_bytes, rel=0.05)
    for file in files:  # What is loaded needs them no longer.
        file.unlink()
    for one, other in (
        (index.search(queries, 30, 5, 60), loaded.search(queries, 30, 5, 60)),
        (index.search_exact(queries, 30), loaded.search_exact(queries, 30)),
    ):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_an_empty_shard_is_built_saved_loaded_and_searched(tmp_path):
    build(np.zeros((0, 4), np.float32), plan_shard(0, 4)).save(tmp_path)

    index = load(tmp_path)

    for rows, scores in (index.search(np.ones((2, 4), np.float32), 3), index.search_exact(np.ones((2, 4), np.float32), 3)):
        assert rows.tolist() == [[-1] * 3] * 2
        assert scores.tolist() == [[-np.inf] * 3] * 2


def test_no_queries(index):
    rows, scores = index.search(np.zeros((0, 16), np.float32), 3)

    assert rows.shape == scores.shape == (0, 3)


def test_loading_refuses_a_pickle(tmp_path):
    build(np.ones((3, 2), np.float32), plan_shard(3, 2)).save(tmp_path)
    (tmp_path / "scann_docids.pkl").write_bytes(pickle.dumps(["a", "b", "c"]))

    with pytest.raises(ValueError, match="is a pickle, which could run any code"):
        load(tmp_path)


def test_an_index_cannot_be_pickled(index):
    with pytest.raises(TypeError, match=r"an index cannot be pickled: save it, pass its folder, and load it in setup\(\)"):
        pickle.dumps(index)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_build_the_same_files(kind, tmp_path):
    vectors = clustered(np.random.default_rng(2), 40_000, 4)  # So many that a second thread would be given some.
    plan = ShardPlan(kind, 40_000, 4, 500 if kind == "tree" else 1)
    for folder, seed in (("one", 5), ("same", 5), ("other", 6)):
        build(vectors, plan, seed).save(tmp_path / folder)

    files = {folder.name: {file.name: file.read_bytes() for file in folder.iterdir()} for folder in tmp_path.iterdir()}
    assert files["one"] == files["same"]
    assert (files["one"] == files["other"]) == (kind != "tree")


def test_a_subset_is_an_exact_index_of_its_rows(index, vectors, queries):
    rows = np.arange(5, len(vectors), 7)

    subset = index.subset(rows)

    assert subset.is_exact
    assert [set(row) for row in rows[subset.search(queries, 20)[0]]] == [
        set(row) for row in rows[brute_force(vectors[rows], queries, 20)[0]]
    ]


def test_exact_search_widens_until_rounding_cannot_matter(monkeypatch):
    """Thousands of near-ties: far more than the few extra rows that are reordered at first."""
    rng = np.random.default_rng(0)
    vectors = (1 + 1e-7 * rng.integers(0, 3, (3000, 8))).astype(np.float32)
    index = build(vectors, plan_shard(3000, 8))
    queries = clustered(rng, 40, 8)
    whole_list = index.search_exact(queries, 3000)
    widths = []
    found = index._found

    def spy(searcher, asked, k, *rest):
        widths.append(k)
        return found(searcher, asked, k, *rest)

    monkeypatch.setattr(index, "_found", spy)

    rows, scores = index.search_exact(queries, 10)

    np.testing.assert_array_equal(rows, whole_list[0][:, :10])
    np.testing.assert_array_equal(scores, whole_list[1][:, :10])
    assert widths[-1] >= 3000


def test_wide_exact_searches_go_in_parts(monkeypatch, queries, vectors):
    index = build(vectors, plan_shard(*vectors.shape))
    expected = index.search_exact(queries, 50)
    monkeypatch.setattr(scann_index, "_MAX_RESULTS", 1000)

    rows, scores = index.search_exact(queries, 50)

    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


def test_searching_needs_no_tensorflow(tmp_path):
    build(np.eye(20, dtype=np.float32), plan_shard(20, 20, num_leaves=4)).save(tmp_path)
    program = f"""
import sys
sys.modules["tensorflow"] = None
import json
import numpy as np
from transforms.search.scann_index import load
print(json.dumps(load({str(tmp_path)!r}).search(np.eye(20, dtype=np.float32), 1)[0][:, 0].tolist()))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert json.loads(run.stdout.splitlines()[-1]) == list(range(20))
