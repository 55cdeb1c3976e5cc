import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import InputError
from transforms.search.ranking_metrics import recall_against
from transforms.search.scann_index import ShardPlan, build, plan_shard
from transforms.search.search import (
    MAX_ROUNDS,
    Answer,
    Request,
    SearchCounters,
    SearchSettings,
    Shard,
    first_requests,
    settle,
    top_k_of,
    top_k_of_block,
)
from transforms.search.top_k import NO_MORE, PAD, Lists, pack


def make_shards(vectors, num_shards, *, plan=plan_shard, blocked=None, seed=0):
    """Splits a catalogue at random; some shards may be empty."""
    shard_of = np.random.default_rng(seed).integers(0, num_shards, len(vectors))
    shards = []
    for shard in range(num_shards):
        codes = np.flatnonzero(shard_of == shard)
        index = build(vectors[codes], plan(len(codes), vectors.shape[1]))
        shards.append(Shard(index, codes, None if blocked is None else blocked[codes]))
    return shards


def best(scores, seen, blocked, k):
    """The oracle: one user's list, by sorting everything in Python."""
    eligible = [code for code in range(len(scores)) if code not in seen and not blocked[code]]
    return sorted(eligible, key=lambda code: (-scores[code], code))[:k]


def lists_of(top):
    for codes, scores, count in zip(top.codes, top.scores, top.counts, strict=True):
        assert (codes[:count] >= 0).all()
        assert (codes[count:] == -1).all()
        assert (scores[count:] == -np.inf).all()
    return [codes[:count].tolist() for codes, count in zip(top.codes, top.counts, strict=True)]


@st.composite
def catalogues(draw, max_items=300):
    """Items of whole-number vectors (exact scores, many ties, duplicates, zero vectors), users, histories, a block list."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_items, dim, num_users = draw(st.integers(1, max_items)), draw(st.sampled_from([1, 2, 5, 64])), draw(st.integers(1, 12))
    vectors = rng.integers(-2, 3, (num_items, dim)).astype(np.float32)
    users = rng.integers(-2, 3, (num_users, dim)).astype(np.float32)
    shares = rng.choice([0.0, 0.02, 0.3, 0.95, 1.0], num_users)
    seen = [rng.permutation(num_items)[: int(share * num_items)].tolist() for share in shares]
    blocked = rng.random(num_items) < draw(st.sampled_from([0, 0, 0.1, 0.9, 1]))
    k = draw(st.sampled_from([1, 2, 10, 100, num_items, num_items + 7]))
    return vectors, users, seen, blocked, k


@given(catalogues())
@settings(max_examples=40)
def test_every_list_is_the_best_there_is_however_the_items_are_sharded(catalogue):
    vectors, users, seen, blocked, k = catalogue
    expected = [best(scores, set(codes), blocked, k) for scores, codes in zip(users @ vectors.T, seen, strict=True)]

    for num_shards in (1, 4, 16):
        shards = make_shards(vectors, num_shards, blocked=blocked)
        top, _ = top_k_of_block(shards, users, Lists.of(seen), k, SearchSettings())

        assert lists_of(top) == expected
        for codes, scores, user in zip(expected, top.scores, users, strict=True):
            assert scores[: len(codes)].tolist() == (vectors[codes] @ user).tolist()


@given(catalogues(), st.integers(1, 5))
@settings(max_examples=25)
def test_approximate_lists_are_full_sorted_and_without_what_must_not_be_in_them(catalogue, leaves):
    vectors, users, seen, blocked, k = catalogue
    scores = users @ vectors.T
    for plan in (lambda n, dim: plan_shard(n, dim, 5), lambda n, dim: ShardPlan("hashed" if n >= 16 else "exact", n, dim)):
        shards = make_shards(vectors, 3, plan=plan, blocked=blocked)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("transforms.search.search._EXACT_SHARE", 0)
            patch.setattr("transforms.search.search.EXACT_BELOW", 0)
            top, _ = top_k_of_block(shards, users, Lists.of(seen), k, SearchSettings(leaves, 1.0))

        for row, codes in enumerate(lists_of(top)):
            assert len(codes) == min(k, len(best(scores[row], set(seen[row]), blocked, k)))
            assert len(set(codes)) == len(codes)
            assert not set(codes) & set(seen[row])
            assert not blocked[codes].any()
            assert codes == sorted(codes, key=lambda code: (-scores[row, code], code))
            assert top.scores[row, : len(codes)].tolist() == scores[row, codes].tolist()


def embeddings(rng, n, dim=16):
    return (rng.normal(size=(80, dim))[rng.integers(0, 80, n)] + 0.6 * rng.normal(size=(n, dim))).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    return embeddings(np.random.default_rng(0), 3000)


@pytest.fixture(scope="module")
def users():
    return embeddings(np.random.default_rng(1), 300)


@pytest.fixture(scope="module")
def seen(vectors, users):
    """Histories of most lengths, among them what the user would like best."""
    order = np.argsort(-users @ vectors.T, axis=1)
    return [order[row, : (row * row) % 700].tolist() for row in range(len(users))]


def test_real_scores_do_not_depend_on_shards_or_kind(vectors, users, seen):
    excluded = Lists.of(seen)
    expected, _ = top_k_of_block(make_shards(vectors, 1), users, excluded, 20, SearchSettings())
    approximate = np.sort(users @ vectors.T, axis=1)

    for num_shards, plan in ((4, plan_shard), (16, plan_shard), (300, plan_shard), (3, lambda n, dim: plan_shard(n, dim, 30))):
        shards = make_shards(vectors, num_shards, plan=plan)
        top, _ = top_k_of_block(shards, users, excluded, 20, SearchSettings(None, 1000.0))

        np.testing.assert_array_equal(top.codes, expected.codes)
        np.testing.assert_array_equal(top.scores, expected.scores)
    # And they are right, as far as float32 goes: users whose best items are all seen get those that follow.
    for row, codes in enumerate(seen):
        end = len(vectors) - len(codes)
        np.testing.assert_allclose(expected.scores[row], approximate[row, end - 20 : end][::-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_leaves", [None, 60])
def test_answers_do_not_depend_on_blocks(vectors, users, seen, num_leaves, monkeypatch):
    monkeypatch.setattr("transforms.search.search._EXACT_SHARE", 0)
    shards = make_shards(vectors, 2, plan=lambda n, dim: plan_shard(n, dim, num_leaves))
    excluded = Lists.of([codes[: row % 60] for row, codes in enumerate(seen)])
    search = SearchSettings(20, 2.0)
    whole_block, _ = top_k_of_block(shards, users, excluded, 20, search)

    for size in (1, 37, 299):
        for start in range(0, len(users) if size > 1 else 20, size):
            rows = np.arange(start, min(start + size, len(users)))
            top, _ = top_k_of_block(shards, users[rows], excluded.take(rows), 20, search)
            np.testing.assert_array_equal(top.codes, whole_block.codes[rows])
            np.testing.assert_array_equal(top.scores, whole_block.scores[rows])


@pytest.mark.parametrize("num_leaves", [None, 30])
@pytest.mark.parametrize("blocked_share", [0, 0.2])
def test_an_answer_keeps_nothing_back_before_its_bound(vectors, users, num_leaves, blocked_share, monkeypatch):
    monkeypatch.setattr("transforms.search.search.EXACT_BELOW", 0)
    users = users[:50]
    codes = np.arange(0, 9000, 3)
    blocked = np.random.default_rng(1).random(9000) < blocked_share
    shard = Shard(build(vectors, plan_shard(3000, 16, num_leaves)), codes, blocked[codes])
    rows, scores = build(vectors, plan_shard(3000, 16)).search_exact(users, 3000)
    everything = pack(scores, codes[rows])
    everything = np.sort(np.where(blocked[everything.astype(np.uint32)], PAD, everything), axis=1)

    for width in (1, 10, 500, 2999, 3000, 4000):
        answer = shard.answer(Request(np.arange(len(users)), users, width, width), SearchSettings(None, 3000.0))
        for keys, bound, row in zip(answer.keys, answer.bounds, everything, strict=True):
            assert keys[keys <= min(bound, NO_MORE)].tolist() == row[row <= min(bound, NO_MORE)].tolist()
        # And something is known: about as much as was asked for.
        known = ((answer.keys <= answer.bounds[:, None]) & (answer.keys < PAD)).sum(axis=1).mean()
        assert known >= 0.7 * min(width, 3000 * (1 - blocked_share))


def test_shards_that_are_asked_elsewhere_give_the_same(vectors, users, seen):
    """The by-shard plan: each round sends every request to all shards, whose answers come back in any order."""
    shards = make_shards(vectors, 5)
    excluded = Lists.of(seen)
    keys = np.full((len(users), 20), PAD)
    requests = first_requests(users, excluded, 20, [shard.index.plan for shard in shards])
    for _ in range(MAX_ROUNDS):
        following = []
        for request in requests:
            answers = [shard.answer(request, SearchSettings()) for shard in reversed(shards)]
            keys[request.rows], certain = settle(request, answers, excluded.take(request.rows), 20)
            if not certain.all():
                following.append(request.next(~certain))
        requests = following

    assert not requests
    expected, _ = top_k_of_block(shards, users, excluded, 20, SearchSettings())
    np.testing.assert_array_equal(top_k_of(keys).codes, expected.codes)


def test_a_shard_that_holds_more_of_the_best_than_its_share_is_asked_for_more():
    """All of the best lie in one of ten shards, where the binomial expects a tenth of them."""
    vectors = np.arange(10_000, dtype=np.float32)[:, None]
    shards = [Shard(build(vectors[a : a + 1000], plan_shard(1000, 1)), np.arange(a, a + 1000)) for a in range(0, 10_000, 1000)]

    top, counters = top_k_of_block(shards, np.ones((4, 1), np.float32), Lists.none(4), 100, SearchSettings())

    assert top.codes.tolist() == [list(range(9999, 9899, -1))] * 4
    assert counters == SearchCounters(rows=4, rows_widened=4, rows_exact=0)


def test_a_shard_with_most_of_the_best_and_blocked_items_is_asked_for_more(monkeypatch):
    """The same with trees that keep a few blocked items, whose rows are dropped from what they find."""
    monkeypatch.setattr("transforms.search.search._EXACT_SHARE", 0)
    monkeypatch.setattr("transforms.search.search.EXACT_BELOW", 0)
    vectors = np.arange(10_000, dtype=np.float32)[:, None]
    blocked = np.random.default_rng(0).random(10_000) < 0.1
    shards = [
        Shard(build(vectors[a : a + 1000], plan_shard(1000, 1, 8)), np.arange(a, a + 1000), blocked[a : a + 1000])
        for a in range(0, 10_000, 1000)
    ]
    assert not any(shard.index.is_exact for shard in shards)

    top, counters = top_k_of_block(shards, np.ones((4, 1), np.float32), Lists.none(4), 100, SearchSettings(None, 1000.0))

    assert counters == SearchCounters(rows=4, rows_widened=4, rows_exact=0)
    assert top.codes.tolist() == [np.flatnonzero(~blocked)[::-1][:100].tolist()] * 4


def test_rows_that_the_opened_leaves_leave_short_are_searched_exactly(vectors, users):
    shards = make_shards(vectors, 1, plan=lambda n, dim: plan_shard(n, dim, 500))
    excluded = Lists.none(len(users))

    top, counters = top_k_of_block(shards, users, excluded, 40, SearchSettings(1, 1.0))

    assert (top.counts == 40).all()
    assert 0 < counters.rows_exact <= counters.rows == len(users)


def test_long_lists_are_searched_exactly_at_once(vectors, users):
    shards = make_shards(vectors, 1, plan=lambda n, dim: plan_shard(n, dim, 100))
    excluded = Lists.of([[]] * 10 + [list(range(2000))] + [[]] * 9)

    requests = first_requests(users[:20], excluded, 10, [shard.index.plan for shard in shards])

    assert [(request.rows.tolist(), request.exact) for request in requests] == [
        ([*range(10), *range(11, 20)], False),
        ([10], True),
    ]
    assert requests[0].width == 10


def test_blocks_are_split_so_that_answers_fit_memory(vectors, users, seen, monkeypatch):
    shards = make_shards(vectors, 4)
    expected, _ = top_k_of_block(shards, users, Lists.of(seen), 20, SearchSettings())
    monkeypatch.setattr("transforms.search.search._MAX_KEYS", 500)

    requests = first_requests(users, Lists.of(seen), 20, [shard.index.plan for shard in shards])
    top, _ = top_k_of_block(shards, users, Lists.of(seen), 20, SearchSettings())

    assert all(len(request.rows) * request.shard_width * 4 <= 500 + request.shard_width * 4 for request in requests)
    assert sorted(np.concatenate([request.rows for request in requests])) == list(range(len(users)))
    np.testing.assert_array_equal(top.codes, expected.codes)


def test_blocked_items_that_lie_anywhere_are_made_up_for_in_one_search(vectors, users, monkeypatch):
    monkeypatch.setattr("transforms.search.search.EXACT_BELOW", 0)
    monkeypatch.setattr("transforms.search.search._EXACT_SHARE", 0)
    blocked = np.random.default_rng(0).random(len(vectors)) < 0.5
    shards = make_shards(vectors, 1, plan=lambda n, dim: plan_shard(n, dim, 40), blocked=blocked)

    _, counters = top_k_of_block(shards, users, Lists.of([[0]] * len(users)), 30, SearchSettings(None, 5.0))

    # Half of twice as many are blocked, give or take a few, and there are eight to spare.
    assert counters.rows_exact < len(users) / 4


@pytest.mark.parametrize("blocked_share", [0.05, 0.5, 0.9])
def test_blocked_items_cost_no_eligible_one_its_place(vectors, users, blocked_share, monkeypatch):
    """Blocked are the items that most users like best; a tree that keeps them is asked for more."""
    monkeypatch.setattr("transforms.search.search.EXACT_BELOW", 0)
    monkeypatch.setattr("transforms.search.search._EXACT_SHARE", 0)
    popularity = (users @ vectors.T).mean(axis=0)
    blocked = popularity > np.quantile(popularity, 1 - blocked_share)
    shards = make_shards(vectors, 2, plan=lambda n, dim: plan_shard(n, dim, 40), blocked=blocked)
    assert [shard.index.is_exact for shard in shards] == [blocked_share > 0.75] * 2

    top, _ = top_k_of_block(shards, users, Lists.none(len(users)), 30, SearchSettings(None, 20.0))

    exact, _ = top_k_of_block(make_shards(vectors, 1, blocked=blocked), users, Lists.none(len(users)), 30, SearchSettings())
    assert not blocked[top.codes].any()
    assert (top.counts == 30).all()
    assert recall_against(top.codes, exact.codes).mean > 0.99


def test_a_tree_of_realistic_size_finds_nearly_all_for_users_with_histories():
    rng = np.random.default_rng(5)
    vectors, users = embeddings(rng, 40_000, 32), embeddings(rng, 400, 32)
    order = np.argsort(-users @ vectors.T, axis=1)[:, :400]
    excluded = Lists.of([rng.choice(order[row], row % 200, replace=False).tolist() for row in range(400)])
    shards = make_shards(vectors, 2, plan=lambda n, dim: plan_shard(n, dim, 200))

    top, counters = top_k_of_block(shards, users, excluded, 50, SearchSettings(60, 4.0))

    exact, _ = top_k_of_block(
        make_shards(vectors, 1, plan=lambda n, dim: ShardPlan("exact", n, dim)), users, excluded, 50, SearchSettings()
    )
    estimate = recall_against(top.codes, exact.codes)
    assert 0.95 < estimate.mean < 1
    assert (top.counts == 50).all()
    assert counters.rows_exact < 40
    # What was found has the very scores that an exact search gives.
    for row in range(400):
        _, here, there = np.intersect1d(top.codes[row], exact.codes[row], return_indices=True)
        np.testing.assert_array_equal(top.scores[row, here], exact.scores[row, there])


def test_no_items_and_no_users():
    empty = [Shard(build(np.zeros((0, 3), np.float32), plan_shard(0, 3)), np.zeros(0, np.int64))]

    top, counters = top_k_of_block(empty, np.ones((2, 3), np.float32), Lists.of([[1], []]), 5, SearchSettings())
    assert top.codes.tolist() == [[-1] * 5] * 2
    assert top.counts.tolist() == [0, 0]

    shards = make_shards(np.eye(3, dtype=np.float32), 2)
    top, counters = top_k_of_block(shards, np.zeros((0, 3), np.float32), Lists.none(0), 5, SearchSettings())
    assert top.codes.shape == (0, 5)
    assert counters == SearchCounters()


def test_an_answer_that_stays_uncertain_is_a_fault():
    request = Request(np.arange(2), np.ones((2, 1), np.float32), 5, 2)
    wide = request.next(np.array([True, False]))
    exact = wide.next(np.array([True]))

    assert [(r.rows.tolist(), r.shard_width, r.exact) for r in (wide, exact)] == [([0], 5, False), ([0], 5, True)]
    with pytest.raises(RuntimeError, match="1 rows are not certain after an exact search of width 5"):
        exact.next(np.array([True]))


def test_settings_can_ask_for_exact_searches(vectors, users, seen):
    shards = make_shards(vectors, 2, plan=lambda n, dim: plan_shard(n, dim, 60))
    excluded = Lists.of(seen)
    expected, _ = top_k_of_block(shards, users, excluded, 20, SearchSettings(1, 1.0), exact=True)

    top, counters = top_k_of_block(shards, users, excluded, 20, SearchSettings(1, 1.0, exact=True))

    np.testing.assert_array_equal(top.codes, expected.codes)
    assert counters.rows_exact >= counters.rows


def test_settle_trusts_no_shard_that_kept_something_back():
    request = Request(np.arange(3), np.ones((3, 1), np.float32), 2, 1)
    keys = pack(np.full((3, 1), 5, np.float32), np.array([[0], [0], [0]]))
    other = pack(np.full((3, 1), 3, np.float32), np.array([[1], [1], [1]]))
    answers = [
        Answer(keys, np.array([keys[0, 0], PAD, NO_MORE])),
        Answer(other, np.array([PAD, other[0, 0], NO_MORE])),
    ]

    _, certain = settle(request, answers, Lists.none(3), 2)

    assert certain.tolist() == [False, True, True]


def test_refusals(vectors, users):
    index = build(np.eye(3, dtype=np.float32), plan_shard(3, 3))
    shards = [Shard(index, np.arange(3))]
    none = Lists.none(1)
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k must be at least 1, got {k}: raise --k"):
            top_k_of_block(shards, np.ones((1, 3), np.float32), none, k, SearchSettings())
    with pytest.raises(InputError, match="queries must have the index's 3 dimensions"):
        top_k_of_block(shards, np.ones((1, 4), np.float32), none, 1, SearchSettings())
    with pytest.raises(ValueError, match="2 queries and 1 lists to exclude"):
        top_k_of_block(shards, np.ones((2, 3), np.float32), none, 1, SearchSettings())
    with pytest.raises(ValueError, match="the index has 3 vectors and its id map 2 rows"):
        Shard(index, np.arange(2))
    with pytest.raises(ValueError, match="a shard's rows must be in ascending order of code"):
        Shard(index, np.array([0, 2, 1]))
    with pytest.raises(InputError, match="leaves to search must be at least 1, got 0"):
        SearchSettings(leaves_to_search=0)
    with pytest.raises(InputError, match=r"reorder per neighbor must be a number from 1 on, got 0\.5"):
        SearchSettings(reorder_per_neighbor=0.5)
