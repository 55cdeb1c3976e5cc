"""The task against NumPy in float64: the softmax that all of a user's ratings share, its gradient, and what it estimates."""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_recommenders.tasks import base

from transforms.train.shared_softmax import SharedSoftmax, log_normalizers

WHOSE = np.array([0, 0, 0, 1, 2, 2, 3], np.int32)


class Case(NamedTuple):
    """What the task is given, but for `WHOSE`."""

    queries: np.ndarray
    rated: np.ndarray
    candidates: np.ndarray
    rated_bias: np.ndarray
    candidate_bias: np.ndarray
    rated_log_probability: np.ndarray
    candidate_log_probability: np.ndarray


def case_of(seed: int = 0, num_candidates: int = 11, scale: float = 1.0, dim: int = 3) -> Case:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(scale=scale, size=shape).astype(np.float32)

    rated = len(WHOSE)
    return Case(
        draw(4, dim),
        draw(rated, dim),
        draw(num_candidates, dim),
        draw(rated),
        draw(num_candidates),
        -np.abs(draw(rated)) - 1,
        -np.abs(draw(num_candidates)) - 1,
    )


def loss_of(case: Case) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns the task's loss, and its gradients by queries, rated and candidates."""
    vectors = [tf.Variable(each) for each in case[:3]]
    with tf.GradientTape() as tape:
        queries, rated, candidates = vectors
        loss = SharedSoftmax()(
            queries,
            rated,
            tf.constant(WHOSE),
            candidates,
            rated_bias=tf.constant(case.rated_bias),
            candidate_bias=tf.constant(case.candidate_bias),
            rated_log_probability=tf.constant(case.rated_log_probability),
            candidate_log_probability=tf.constant(case.candidate_log_probability),
        )
    return loss, [tf.convert_to_tensor(each) for each in tape.gradient(loss, vectors)]


def by_hand(case: Case) -> tuple[float, list[np.ndarray]]:
    """Returns the same in float64, a rating at a time: the softmax of the user over the candidates and the rated item."""
    queries, rated, candidates, bias, candidate_bias, log_q, candidate_log_q = (each.astype(float) for each in case)
    gradients = [np.zeros_like(each) for each in (queries, rated, candidates)]
    losses = []
    for at, user in enumerate(WHOSE):
        of_candidates = np.exp(candidates @ queries[user] + candidate_bias - candidate_log_q)
        score = rated[at] @ queries[user] + bias[at]
        own = np.exp(score - log_q[at])
        total = of_candidates.sum() + own
        losses.append(np.log(total / len(candidates)) - score)
        softmax, of_own = of_candidates / total / len(WHOSE), (own / total - 1) / len(WHOSE)
        gradients[0][user] += softmax @ candidates + of_own * rated[at]
        gradients[1][at] += of_own * queries[user]
        gradients[2] += softmax[:, np.newaxis] * queries[user]
    return float(np.mean(losses)), gradients


@pytest.mark.parametrize("num_candidates", [1, 2, 11, 500])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_loss_and_gradient_equal_the_formula(num_candidates: int, scale: float) -> None:
    case = case_of(num_candidates=num_candidates, scale=scale)
    loss, gradients = loss_of(case)
    expected, by = by_hand(case)
    assert loss.shape == ()
    assert loss.numpy() == pytest.approx(expected, rel=1e-5)
    for found, wanted in zip(gradients, by, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_normalizers_and_their_gradient_equal_the_formula() -> None:
    case = case_of(3)
    weights = np.random.default_rng(1).normal(size=4)
    queries, candidates = tf.Variable(case.queries), tf.Variable(case.candidates)
    with tf.GradientTape() as tape:
        found = log_normalizers(queries, candidates, tf.constant(case.candidate_bias))
        loss = tf.reduce_sum(found * tf.constant(weights, tf.float32))
    by_queries, by_candidates = tape.gradient(loss, [queries, candidates])
    logits = case.queries.astype(float) @ case.candidates.T.astype(float) + case.candidate_bias
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.log(np.exp(logits).sum(axis=1)), rtol=1e-6)
    np.testing.assert_allclose(by_queries, weights[:, np.newaxis] * (softmax @ case.candidates), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_candidates, softmax.T @ (weights[:, np.newaxis] * case.queries), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_large_scores_stay_finite(offset: float) -> None:
    """Their exponentials are not, in 32 bits; what is added to all scores alike changes nothing."""
    case = case_of()
    shifted = case._replace(rated_bias=case.rated_bias + offset, candidate_bias=case.candidate_bias + offset)
    (loss, gradients), (plain, expected) = loss_of(shifted), loss_of(case)
    assert loss.numpy() == pytest.approx(plain.numpy(), abs=1e-3)
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-4)


NUM_ITEMS = 40


def whole_catalogue(copies: int) -> tuple[Case, np.ndarray, np.ndarray]:
    """Returns a case where every item is a candidate `copies` times, of the exact probability; what was rated; the items."""
    rng = np.random.default_rng(7)
    items, queries = rng.normal(size=(NUM_ITEMS, 3)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    bias = rng.normal(size=NUM_ITEMS).astype(np.float32)
    rated = rng.integers(0, NUM_ITEMS, len(WHOSE))
    log_q = np.full(NUM_ITEMS, -np.log(NUM_ITEMS), np.float32)
    all_items = np.tile(np.arange(NUM_ITEMS), copies)
    return (
        Case(queries, items[rated], items[all_items], bias[rated], bias[all_items], log_q[rated], log_q[all_items]),
        rated,
        items.astype(float),
    )


def multinomial(case: Case, rated: np.ndarray, items: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the exact negative log-likelihood of what was rated, and its gradient by queries."""
    scores = case.queries.astype(float) @ items.T + case.candidate_bias[:NUM_ITEMS]
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    gradient = np.zeros((4, 3))
    np.add.at(gradient, WHOSE, (softmax[WHOSE] @ items - items[rated]) / len(WHOSE))
    return float(-np.log(softmax[WHOSE, rated]).mean()), gradient


def test_with_the_whole_catalogue_for_candidates_the_loss_is_the_multinomial_likelihood_but_for_the_own_item() -> None:
    """The rated item counts once more than it is: exactly so with one copy, and ever less with more."""
    case, rated, items = whole_catalogue(1)
    exact, gradient = multinomial(case, rated, items)
    scores = case.queries.astype(float) @ items.T + case.candidate_bias
    with_own = np.exp(scores).sum(axis=1)[WHOSE] + np.exp(scores[WHOSE, rated])
    assert loss_of(case)[0].numpy() == pytest.approx((np.log(with_own) - scores[WHOSE, rated]).mean(), rel=1e-6)
    differences = [loss_of(whole_catalogue(copies)[0])[0].numpy() - exact for copies in (1, 10, 100)]
    assert differences[0] > 5 * differences[1] > 25 * differences[2] > 0
    loss, (by_queries, *_) = loss_of(whole_catalogue(1_000)[0])
    assert loss.numpy() == pytest.approx(exact, abs=5e-4)
    np.testing.assert_allclose(by_queries, gradient, atol=5e-4)


def test_without_the_own_item_the_likelihood_is_exact() -> None:
    """An own item of no weight (one that is certain to be drawn, with a score far below) leaves the catalogue's normaliser."""
    case, rated, items = whole_catalogue(1)
    exact, _ = multinomial(case, rated, items)
    alone = case._replace(rated_log_probability=np.full(len(WHOSE), 200, np.float32))
    # With log q of 200 the own item's weight is e^-200.
    assert loss_of(alone)[0].numpy() == pytest.approx(exact, rel=1e-6)


def test_candidates_that_are_drawn_by_popularity_estimate_the_same() -> None:
    """Ten thousand candidates, drawn as often as q says and corrected for it."""
    case, rated, items = whole_catalogue(1)
    exact, _ = multinomial(case, rated, items)
    rng = np.random.default_rng(2)
    q = rng.dirichlet(np.full(NUM_ITEMS, 5.0))
    drawn = rng.choice(NUM_ITEMS, 20_000, p=q)
    log_q = np.log(q).astype(np.float32)
    sampled = case._replace(
        candidates=case.candidates[drawn],
        candidate_bias=case.candidate_bias[drawn],
        candidate_log_probability=log_q[drawn],
        rated_log_probability=log_q[rated],
    )
    assert loss_of(sampled)[0].numpy() == pytest.approx(exact, abs=0.03)


def test_it_is_a_task_of_tensorflow_recommenders() -> None:
    assert isinstance(SharedSoftmax(), base.Task)
