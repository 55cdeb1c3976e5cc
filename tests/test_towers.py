"""The towers: their loss and gradient against NumPy, their optimizer against Keras's, their SavedModels."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from transforms.train.towers import Batch, IdTower, SparseAdam, TwoTowers, mixed_log_probability, negatives
from transforms.train.user_towers import UserIdTower

USERS = np.array([0, 1, 2, 0, 3], np.int32)
ITEMS = np.array([0, 1, 0, 2, 3], np.int32)
BATCH = Batch(tf.constant(USERS), tf.constant(ITEMS), tf.range(5), tf.constant([0, 0]))
# Rows 0 and 3 are the same user, rows 0 and 2 the same item.
NEGATIVES = np.array(
    [
        [1, 1, 0, 0, 1],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ],
    bool,
)


def bias_of(num_items: int) -> np.ndarray:
    return np.linspace(-2, 3, num_items)


def two_towers(probabilities: list[float], l2: float, scale: float = 20.0, mixed_negatives: int = 0) -> TwoTowers:
    """Returns towers of 4 users and as many items as probabilities, with vectors of a length near 1."""
    user_tower, item_tower = UserIdTower(4, 3, l2, seed=1), IdTower(len(probabilities), 3, l2, seed=2)
    for tower in (user_tower.own, item_tower):
        tower.embeddings.assign(tower.embeddings * scale)
    bias = bias_of(len(probabilities))
    return TwoTowers(user_tower, item_tower, np.log(probabilities), mixed_negatives, bias=bias)


def listen(model: TwoTowers) -> list[np.ndarray]:
    """Returns a list to which the item tower adds what it is asked for."""
    asked, call = [], model.item_tower.call

    def call_and_tell(codes: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        asked.append(codes.numpy())
        return call(codes, draw)

    model.item_tower.call = call_and_tell
    return asked


def by_hand(
    model: TwoTowers, probabilities: list[float], l2: float, more: np.ndarray | tuple[()] = ()
) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the loss and its gradients by the user and item vectors, in float64."""
    user_vectors, item_vectors = (tower.vectors.astype(float) for tower in (model.user_tower.own, model.item_tower))
    codes = np.array([*ITEMS, *more])
    queries, candidates = user_vectors[USERS], item_vectors[codes]
    batch = len(USERS)
    mixture = (batch * np.array(probabilities) + len(more) / len(probabilities)) / len(codes)
    logits = queries @ candidates.T + (bias_of(len(probabilities)) - np.log(mixture))[codes]
    allowed = np.hstack([NEGATIVES, ITEMS[:, None] != codes[batch:]])
    weights = np.where(allowed, np.exp(logits), 0)
    softmax = weights / weights.sum(axis=1, keepdims=True)
    penalty = l2 / 2 * ((queries**2).sum() / batch + (candidates**2).sum() / len(codes))
    loss = -np.log(np.diag(softmax)).mean() + penalty
    error = (softmax - np.eye(batch, len(codes))) / batch
    user_gradient, item_gradient = np.zeros_like(user_vectors), np.zeros_like(item_vectors)
    np.add.at(user_gradient, USERS, error @ candidates + l2 * queries / batch)
    np.add.at(item_gradient, codes, error.T @ queries + l2 * candidates / len(codes))
    return loss, user_gradient, item_gradient


@pytest.mark.parametrize("mixed_negatives", [0, 7])
@pytest.mark.parametrize(
    ("probabilities", "l2"),
    [([0.4, 0.2, 0.2, 0.2], 0.0), ([0.4, 0.2, 0.2, 0.2], 0.3), ([0.9, 1e-3, 1e-8, 3e-7], 0.1)],
)
def test_loss_and_gradient_equal_the_formula(probabilities: list[float], l2: float, mixed_negatives: int) -> None:
    model = two_towers(probabilities, l2, mixed_negatives=mixed_negatives)
    asked = listen(model)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(BATCH) + tf.add_n([*model.losses, 0.0])
    gradients = [tf.convert_to_tensor(each).numpy() for each in tape.gradient(loss, model.trainable_variables)]
    (codes,) = asked
    assert codes[:5].tolist() == ITEMS.tolist()
    assert len(codes) == 5 + mixed_negatives
    expected, user_gradient, item_gradient = by_hand(model, probabilities, l2, codes[5:])
    assert loss.numpy() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradients[0], user_gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients[1], item_gradient, rtol=1e-4, atol=1e-6)


def test_negatives_are_other_items_of_other_users_and_all_that_are_mixed_in() -> None:
    none = tf.zeros([0], tf.int32)
    np.testing.assert_array_equal(negatives(tf.constant(USERS), tf.constant(ITEMS), none), NEGATIVES)
    more = negatives(tf.constant(USERS), tf.constant(ITEMS), tf.constant([0, 2, 9]))
    expected = np.array([[0, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    np.testing.assert_array_equal(more, np.hstack([NEGATIVES, expected]))


def test_a_batch_in_proportion_gives_the_full_softmax_of_ten_million_items() -> None:
    """A hundred items that are rated often, each once in the batch, and 9,999,900 alike, of which 900 are in it.

    The batch then holds each kind as often as is expected, so the sampled softmax must equal that over the whole catalogue,
    which is written out here. TFRS's own correction takes a probability of 9e-8 for one of 1e-6.
    """
    often, rare, batch = 100, 9_999_900, 1000
    rng = np.random.default_rng(0)
    probabilities = np.where(np.arange(batch) < often, 1e-3, 0.9 / rare)
    user_tower, item_tower = UserIdTower(batch, 4, 0.0, seed=1), IdTower(batch, 4, 0.0, seed=2)
    user_tower.own.embeddings.assign(rng.normal(size=(batch, 4)))
    item_vectors = rng.normal(size=(batch, 4))
    item_vectors[often:] = item_vectors[often]
    item_tower.embeddings.assign(item_vectors)
    codes = tf.range(batch)
    with tf.GradientTape() as tape:
        loss = TwoTowers(user_tower, item_tower, np.log(probabilities)).compute_loss(
            Batch(codes, codes, codes, tf.constant([0, 0]))
        )
    gradient = tf.convert_to_tensor(tape.gradient(loss, user_tower.own.embeddings))

    users, items = user_tower.own.vectors.astype(float), item_tower.vectors.astype(float)
    kinds, how_many = items[: often + 1], np.array([1.0] * often + [rare])
    weights = how_many * np.exp(users @ kinds.T)
    softmax = weights / weights.sum(axis=1, keepdims=True)
    full = np.log(weights.sum(axis=1)) - (users * items).sum(axis=1)
    # A row's own item is once in the batch, where its probability says batch * p times: a constant, without a gradient.
    assert loss.numpy() == pytest.approx((full + np.log(batch * probabilities)).mean(), rel=1e-5)
    np.testing.assert_allclose(gradient, (softmax @ kinds - items) / batch, rtol=1e-3, atol=1e-7)

    task = tfrs.tasks.Retrieval()
    clipped = task(user_tower.own.vectors, item_tower.vectors, candidate_sampling_probability=probabilities.astype(np.float32))
    assert abs(clipped / batch - loss) > 0.1


def test_a_mixture_of_candidates_has_the_mixtures_probability() -> None:
    probabilities = np.array([0.5, 1e-7, 3e-9, 0.0])
    found = mixed_log_probability(tf.constant(np.log(np.maximum(probabilities, 1e-300)), tf.float32), 512, 64, 10_000_000)
    expected = np.log((512 * probabilities + 64 / 10_000_000) / 576)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    alone = mixed_log_probability(tf.constant([-30.0]), 512, 0, 10_000_000)
    assert alone.numpy().tolist() == [-30.0]


def test_uniform_candidates_are_new_at_each_step_and_follow_from_the_seed() -> None:
    asked: list[np.ndarray] = []
    for draw in (1, 1, 2):
        model = two_towers([0.001] * 1000, 0.0, mixed_negatives=5000)
        heard = listen(model)
        model.compute_loss(BATCH._replace(draw=tf.constant([3, draw])))
        asked += heard
    np.testing.assert_array_equal(asked[0], asked[1])
    assert (asked[0] != asked[2]).any()
    counts = np.bincount(asked[0][5:] // 100, minlength=10)
    np.testing.assert_allclose(counts, 500, rtol=0.2)


def test_the_loss_is_a_mean_of_each_step_before_it() -> None:
    probabilities = [0.4, 0.2, 0.2, 0.2]
    model = two_towers(probabilities, 0.1)
    model.optimizer = SparseAdam(0.1)
    model.optimizer.build(model.trainable_variables)
    before = by_hand(model, probabilities, 0.1)[0]
    first = model.train_steps(USERS[None], ITEMS[None], np.arange(5, dtype=np.int32)[None]).numpy()
    after = by_hand(model, probabilities, 0.1)[0]
    second = model.train_steps(*(np.tile(each, (2, 1)) for each in (USERS, ITEMS, np.arange(5, dtype=np.int32)))).numpy()
    assert first == pytest.approx([before], rel=1e-6)
    assert second[0] == pytest.approx(after, rel=1e-6)
    assert second[1] < second[0] < first[0]


def test_sparse_adam_equals_keras_when_every_row_is_in_the_batch() -> None:
    start = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    ours, theirs = tf.Variable(start), tf.Variable(start)
    optimizers = [(SparseAdam(0.01), ours), (tf.keras.optimizers.Adam(0.01), theirs)]
    for step in range(5):
        values = np.random.default_rng(step).normal(size=(4, 2)).astype(np.float32)
        for optimizer, variable in optimizers:
            optimizer.apply_gradients([(tf.IndexedSlices(values, [0, 1, 2, 1], [3, 2]), variable)])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-7)


def test_sparse_adam_leaves_rows_alone_that_are_not_in_the_batch() -> None:
    variable = tf.Variable(np.ones((3, 2), np.float32))
    optimizer = SparseAdam(0.01)
    optimizer.apply_gradients([(tf.IndexedSlices(np.ones((1, 2), np.float32), [0], [3, 2]), variable)])
    once = variable.numpy()
    optimizer.apply_gradients([(tf.IndexedSlices(np.ones((1, 2), np.float32), [1], [3, 2]), variable)])
    np.testing.assert_array_equal(variable.numpy()[0], once[0])
    assert (once[0] < 1).all()
    assert (once[1:] == 1).all()
    assert (variable.numpy()[2] == 1).all()


def test_sparse_adam_updates_all_of_what_is_not_an_embedding() -> None:
    ours, theirs = tf.Variable([[1.0, 2.0]]), tf.Variable([[1.0, 2.0]])
    for optimizer, variable in ((SparseAdam(0.01), ours), (tf.keras.optimizers.Adam(0.01), theirs)):
        for _ in range(3):
            optimizer.apply_gradients([(tf.constant([[0.5, -3.0]]), variable)])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)


def test_first_vectors_come_from_the_seed() -> None:
    np.testing.assert_array_equal(IdTower(5, 4, 0.1, seed=3).vectors, IdTower(5, 4, 0.1, seed=3).vectors)
    assert (IdTower(5, 4, 0.1, seed=3).vectors != IdTower(5, 4, 0.1, seed=4).vectors).any()


def test_a_saved_tower_takes_ids(tmp_path: Path) -> None:
    ids = ["0002", "2", "a\nb", "a\r\nb", "é", "tab\there", " padded "]
    tower = IdTower(len(ids), 3, 0.1, seed=0)
    bias = np.linspace(-1, 5, len(ids), dtype=np.float32)
    tower.save(pa.array(ids), tmp_path / "tower", 0.5, bias)
    served = tf.saved_model.load(str(tmp_path / "tower")).signatures["serving_default"]
    output = served(tf.constant([*reversed(ids), "a", "", "02"]))
    lifted = np.hstack([tower.vectors / 2, bias[:, np.newaxis]])
    np.testing.assert_array_equal(output["embedding"], np.concatenate([lifted[::-1], np.zeros((3, 4))]))
    assert output["embedding"].dtype == tf.float32
    assert output["known"].numpy().tolist() == [True] * len(ids) + [False] * 3
    assert served(tf.constant([], tf.string))["embedding"].shape == (0, 4)


def test_equal_towers_are_saved_as_equal_files(tmp_path: Path) -> None:
    for name in ("one", "other"):
        IdTower(2, 3, 0.1, seed=0).save(pa.array(["a", "b"]), tmp_path / name, 1.0, np.ones(2, np.float32))
    one, other = (
        {
            file.relative_to(tmp_path / name).as_posix(): file.read_bytes()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }
        for name in ("one", "other")
    )
    assert one.keys() == other.keys()
    # Functions are numbered through a process, so the graphs' names differ here; in a process of its own they are equal.
    assert {name for name in one if one[name] != other[name]} <= {"saved_model.pb"}
