"""The model in a graph gives what the search in NumPy gives, to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from transforms.search import top_k
from transforms.search.scann_index import ShardPlan, build, plan_shard
from transforms.search.search import SearchSettings, Shard, top_k_of_block
from transforms.search.top_k import Lists
from transforms.serving import scann
from transforms.serving.model import KnownUsers, ServedItems, ServedModel
from transforms.serving.scann import ServedShard
from transforms.train.served_ids import save_served
from transforms.train.towers import IdTower, ServedVectors

NUM_ITEMS, NUM_USERS, DIM, K = 3_000, 48, 8, 10
IDS = pa.array([f"i{code:05d}" for code in range(NUM_ITEMS)])
USERS = pa.array([f"u{user}" for user in range(NUM_USERS)])

FLOATS = st.floats(allow_nan=False, allow_subnormal=False, width=32)  # TensorFlow takes subnormal numbers for 0.


@given(st.lists(st.tuples(FLOATS, st.integers(0, 2**31 - 1)), min_size=1, max_size=20), st.integers(1, 25))
def test_keys_sort_as_those_of_numpy_do(pairs: list[tuple[float, int]], k: int) -> None:
    scores, codes = np.array([each[0] for each in pairs], np.float32), np.array([each[1] for each in pairs], np.int32)
    mine = scann.merge(scann.pack(tf.constant(scores), tf.constant(codes))[tf.newaxis], k)
    found_scores, found_codes = (each.numpy() for each in scann.unpack(mine))
    expected_scores, expected_codes = top_k.unpack(top_k.merge(top_k.pack(scores, codes)[None], k))
    np.testing.assert_array_equal(found_codes, expected_codes)
    np.testing.assert_array_equal(found_scores, expected_scores)


def vectors(rng: np.random.Generator, num_rows: int) -> np.ndarray:
    """Whole numbers around some centres: scores are exact and many are equal, and some rows are the same."""
    return rng.integers(-3, 4, (40, DIM))[rng.integers(0, 40, num_rows)].astype(np.float32) + rng.integers(
        0, 2, (num_rows, DIM)
    )


def plan_of(kind: str, num_vectors: int) -> ShardPlan:
    if kind == "tree":
        return replace(plan_shard(num_vectors, DIM, 30), soar=False)
    return ShardPlan(kind, num_vectors, DIM)


def made(
    folder: Path, kind: str, num_shards: int, blocked: np.ndarray, settings: SearchSettings, seen: list[list[int]]
) -> tuple[ServedModel, list[Shard], np.ndarray]:
    """Returns a model, the shards that it holds, and its users' vectors; the last user has none."""
    rng = np.random.default_rng(0)
    items, users = vectors(rng, NUM_ITEMS), vectors(rng, NUM_USERS - 1)
    tower = IdTower(NUM_USERS - 1, DIM, 0)
    tower.embeddings.assign(users)
    save_served(lambda scratch: ServedVectors(USERS[:-1], tower.vectors, scratch), folder / "tower")
    of_item = rng.integers(0, num_shards, NUM_ITEMS)
    shards = []
    for number in range(num_shards):
        codes = np.flatnonzero(of_item == number)
        shards.append(Shard(build(items[codes], plan_of(kind, len(codes))), codes, blocked[codes]))
    allowed = np.flatnonzero(~blocked)
    known = KnownUsers(
        USERS,
        pa.array([[] for _ in range(NUM_USERS)], pa.list_(pa.string())),
        Lists.of([[-1 if blocked[code] else code for code in row] for row in seen]),
    )
    popularity = (NUM_ITEMS - allowed // 7).astype(np.float32)
    model = ServedModel(
        tf.saved_model.load(str(folder / "tower")),
        known,
        ServedItems(IDS.take(pa.array(allowed)), allowed, popularity),
        [ServedShard(shard, blocked[shard.codes]) for shard in shards],
        K,
        settings,
        False,
        folder,
    )
    return model, shards, users


@pytest.mark.parametrize(
    ("kind", "num_shards", "blocked_share", "leaves"),
    [("exact", 3, 0.0, None), ("hashed", 2, 0.2, None), ("tree", 2, 0.2, 3), ("tree", 1, 0.0, 3)],
)
def test_answers_are_those_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, num_shards: int, blocked_share: float, leaves: int | None
) -> None:
    monkeypatch.setattr("transforms.search.search.EXACT_BELOW", 0)  # Few vectors are as good as many here.
    monkeypatch.setattr("transforms.search.search._EXACT_SHARE", 8)
    # So little is asked of each shard at first that many rows have to be asked for again.
    monkeypatch.setattr("transforms.search.search.width_per_shard", lambda width, num_shards: max(1, width // 4))
    rng = np.random.default_rng(1)
    blocked = rng.random(NUM_ITEMS) < blocked_share
    # From nothing to everything seen; long lists are searched exactly, short ones are widened.
    lengths = [[0, 5, 40, 300, NUM_ITEMS][user % 5] for user in range(NUM_USERS)]
    seen = [rng.choice(NUM_ITEMS, length, replace=False).tolist() for length in lengths]
    settings = SearchSettings(leaves, 1.0)
    model, shards, users = made(tmp_path, kind, num_shards, blocked, settings, seen)
    excluded = Lists.of([[-1 if blocked[code] else code for code in row] for row in seen])
    expected, counters = top_k_of_block(shards, users, excluded.take(np.arange(NUM_USERS - 1)), K, settings)
    assert counters.rows_widened
    assert bool(counters.rows_exact) == (kind != "exact")

    found = {name: value.numpy() for name, value in model.recommend(tf.constant(USERS.to_pylist())).items()}
    ids = np.array([*IDS.to_pylist(), ""], object)[expected.codes]
    np.testing.assert_array_equal(found["item_id"][:-1].astype(str), ids.astype(str))
    np.testing.assert_array_equal(found["score"][:-1], expected.scores)
    assert found["source"].tolist() == [b"personalised"] * (NUM_USERS - 1) + [b"popular"]

    popular = [code for code in np.flatnonzero(~blocked) if code not in seen[-1]][:K]
    assert found["item_id"][-1].astype(str).tolist() == IDS.take(pa.array(popular)).to_pylist()
    assert found["score"][-1].tolist() == [float(NUM_ITEMS - code // 7) for code in popular]

    # One by one they get the same.
    for user in (0, 3, 9):
        alone = model.recommend(tf.constant([f"u{user}"]))
        np.testing.assert_array_equal(alone["item_id"].numpy()[0], found["item_id"][user])


def test_a_history_that_is_given_is_not_recommended(tmp_path: Path) -> None:
    model, _, _ = made(tmp_path, "exact", 1, np.zeros(NUM_ITEMS, bool), SearchSettings(), [[] for _ in range(NUM_USERS)])
    before = model.recommend(tf.constant(["u1", "stranger"]))["item_id"].numpy()
    given = tf.constant([[*before[0][:2], b"not an item"], [before[1][0], b"", b""]])
    after = model.recommend_with_history(tf.constant(["u1", "stranger"]), given)
    assert after["item_id"].numpy()[0][:8].tolist() == before[0][2:].tolist()
    assert after["item_id"].numpy()[1][:9].tolist() == before[1][1:].tolist()
    assert after["source"].numpy().tolist() == [b"personalised", b"popular"]
    nothing = model.recommend_with_history(tf.constant(["u1"]), tf.zeros([1, 0], tf.string))
    assert nothing["item_id"].numpy()[0].tolist() == before[0].tolist()


class HistoryTower(tf.Module):
    """A tower by history: the first item's number is the vector."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="ids"),
            tf.TensorSpec([None], tf.string, name="history"),
            tf.TensorSpec([None], tf.int64, name="history_lengths"),
        ]
    )
    def embed(self, ids: tf.Tensor, history: tf.Tensor, history_lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        known = history_lengths > 0
        first = tf.gather(tf.concat([history, ["0"]], 0), tf.cumsum(history_lengths, exclusive=True))
        value = tf.where(known, tf.strings.to_number(first), 0.0)
        return {"embedding": value[:, tf.newaxis], "known": known}


def test_a_tower_by_history_sees_what_training_knew_or_what_is_given(tmp_path: Path) -> None:
    save_served(lambda _: HistoryTower(), tmp_path / "tower")
    shard = Shard(build(np.arange(-3, 4, dtype=np.float32)[:, None], ShardPlan("exact", 7, 1)), np.arange(7))
    users = KnownUsers(
        pa.array(["plus", "minus", "new"]), pa.array([["1", "2"], ["-1"], []], pa.list_(pa.string())), Lists.of([[6], [], []])
    )
    items = ServedItems(pa.array([str(value) for value in range(-3, 4)]), np.arange(7), np.arange(7, dtype=np.float32))
    tower = tf.saved_model.load(str(tmp_path / "tower"))
    model = ServedModel(tower, users, items, [ServedShard(shard, np.zeros(7, bool))], 2, SearchSettings(), False, tmp_path)
    found = model.recommend(tf.constant(["minus", "plus", "new", "stranger"]))
    assert found["item_id"].numpy().astype(str).tolist() == [["-3", "-2"], ["2", "1"], ["3", "2"], ["3", "2"]]
    assert found["source"].numpy().astype(str).tolist() == ["personalised", "personalised", "popular", "popular"]
    given = model.recommend_with_history(tf.constant(["plus", "stranger"]), tf.constant([["-1", ""], ["1", "3"]]))
    assert given["item_id"].numpy().astype(str).tolist() == [["-3", "-2"], ["2", "0"]]


def test_the_name_of_a_searcher_stands_for_its_contents() -> None:
    def name_of(scale: float) -> str:
        index = build(scale * np.eye(20, DIM, dtype=np.float32), ShardPlan("exact", 20, DIM))
        return ServedShard(Shard(index, np.arange(20)), np.zeros(20, bool))._name

    assert name_of(1) == name_of(1) != name_of(2)
