"""First vectors against NumPy's own singular value decomposition, and what there is to say of tiny, full and empty matrices."""

import numpy as np
import pyarrow as pa
import pytest

from transforms.train.rows import TrainingRows
from transforms.train.spectral import LENGTH, Start, spectral_start

GROUPS = 4


def rows_of_matrix(matrix: np.ndarray) -> TrainingRows:
    user, item = (codes.astype(np.int32) for codes in np.nonzero(matrix))
    users, items = ([f"{kind}{at:05d}" for at in range(count)] for kind, count in zip("ui", matrix.shape, strict=True))
    return TrainingRows(pa.array(users), pa.array(items), user, item)


def gapped(num_users: int = 240, num_items: int = 120) -> np.ndarray:
    """Returns who rated what where users of each of some tastes rate nearly all of its items: as many large singular values."""
    rng = np.random.default_rng(0)
    same = np.arange(num_users)[:, None] % GROUPS == np.arange(num_items)[None, :] % GROUPS
    # Tastes of different strength, so that no two singular values are alike.
    keen = 0.95 - 0.1 * (np.arange(num_users)[:, None] % GROUPS)
    return rng.random(same.shape) < np.where(same, keen, 0.02)


def by_numpy(matrix: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns left vectors, singular values and right vectors of the normalised matrix, and the items' weights."""
    user_weight, item_weight = (1 / np.sqrt(np.maximum(1, matrix.sum(axis=axis))) for axis in (1, 0))
    left, values, right = np.linalg.svd(user_weight[:, None] * matrix * item_weight, full_matrices=False)
    return left[:, :dim], values[:dim], right[:dim].T, item_weight


def length_of(vectors: np.ndarray, counts: np.ndarray) -> float:
    """Returns the root of the mean square over the ratings."""
    return float(np.sqrt(counts @ (vectors.astype(float) ** 2).sum(axis=1) / counts.sum()))


def scaled(vectors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return vectors * (LENGTH / length_of(vectors, counts))


def expected_start(matrix: np.ndarray, dim: int) -> Start:
    left, values, right, item_weight = by_numpy(matrix, dim)
    of_users, of_items = matrix.sum(axis=1), matrix.sum(axis=0)
    return Start(
        scaled(left * np.sqrt(values), of_users),
        scaled(right * np.sqrt(values), of_items),
        scaled(right / np.sqrt(values) * item_weight[:, None], of_items),
    )


def test_the_vectors_are_numpys_up_to_signs() -> None:
    matrix = gapped()
    values = np.linalg.svd(gapped() / np.sqrt(np.outer(matrix.sum(axis=1), matrix.sum(axis=0))), compute_uv=False)
    assert values[GROUPS] < 0.6 * values[GROUPS - 1], "there is a gap"
    found, expected = spectral_start(rows_of_matrix(matrix), GROUPS, seed=1), expected_start(matrix, GROUPS)
    signs = np.sign((found.users * expected.users).sum(axis=0))
    for name in Start._fields:
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == np.float32
        # One turn of signs makes all three alike: users, items and what is rated belong together.
        np.testing.assert_allclose(ours * signs, theirs, atol=0.01)
    np.testing.assert_allclose(found.users @ found.items.T, expected.users @ expected.items.T, atol=0.01)
    np.testing.assert_allclose(found.rated @ found.items.T, expected.rated @ expected.items.T, atol=0.01)


def test_the_span_is_that_of_the_first_singular_vectors() -> None:
    matrix = gapped()
    found, (left, _, right, _) = spectral_start(rows_of_matrix(matrix), GROUPS, seed=3), by_numpy(matrix, GROUPS)
    for vectors, exact in ((found.users, left), (found.items, right)):
        basis, _ = np.linalg.qr(vectors.astype(float))
        cosines = np.linalg.svd(basis.T @ exact, compute_uv=False)
        assert cosines.min() > 0.9999


def test_the_mean_of_what_a_user_rated_points_where_the_user_does() -> None:
    """That is what a tower of histories begins with: the same as the user's own vector, up to a factor a user."""
    matrix = gapped()
    start = spectral_start(rows_of_matrix(matrix), GROUPS, seed=1)
    means = (matrix @ start.rated) / matrix.sum(axis=1, keepdims=True)
    cosines = (means * start.users).sum(axis=1) / np.linalg.norm(means, axis=1) / np.linalg.norm(start.users, axis=1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("dim", [1, 3, 8, 40])
def test_all_begin_at_one_length_over_the_ratings(dim: int) -> None:
    matrix = gapped()
    start = spectral_start(rows_of_matrix(matrix), dim, seed=0)
    for vectors, axis in ((start.users, 1), (start.items, 0), (start.rated, 0)):
        assert vectors.shape == (matrix.shape[1 - axis], dim)
        assert length_of(vectors, matrix.sum(axis=axis)) == pytest.approx(LENGTH, rel=0.01)


MATRICES = {
    "one user of one item": np.ones((1, 1)),
    "one user": np.ones((1, 9)),
    "one item": np.ones((9, 1)),
    "everybody rated everything": np.ones((20, 30)),
    "many rated everything": np.ones((700, 400)),
    "three worlds apart": np.kron(np.eye(3), np.ones((10, 7))),
    "each user an item of its own": np.eye(12),
    "two items": np.tile([[1, 0], [0, 1], [1, 1]], (8, 1)),
}
RANKS = dict(zip(MATRICES, (1, 1, 1, 1, 1, 3, 12, 2), strict=True))


@pytest.mark.parametrize("dim", [1, 4, 16, 64])
@pytest.mark.parametrize("name", MATRICES)
def test_dimensions_that_a_small_matrix_does_not_fill_begin_small_and_by_chance(name: str, dim: int) -> None:
    matrix = MATRICES[name]
    start = spectral_start(rows_of_matrix(matrix), dim, seed=5)
    rank = min(RANKS[name], dim)
    for vectors, num_rows in zip(start, (matrix.shape[0], *[matrix.shape[1]] * 2), strict=True):
        assert vectors.shape == (num_rows, dim)
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
        padding = vectors[:, rank:]
        assert (np.abs(padding) <= 0.05).all()
        assert (padding != 0).all(), "a dimension that is zero in both towers would never learn"
    exact = expected_start(matrix, rank)
    if RANKS[name] <= dim:
        np.testing.assert_allclose(
            start.users[:, :rank] @ start.items[:, :rank].T, exact.users @ exact.items.T, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("dim", [4, 20])
def test_users_and_items_without_a_row_begin_at_zero(dim: int) -> None:
    matrix = gapped(40, 12)
    matrix[[0, 7, 39]] = False
    matrix[:, [3, 11]] = False
    start = spectral_start(rows_of_matrix(matrix), dim, seed=0)
    for vectors, has_rows in zip(start, (matrix.any(axis=1), *[matrix.any(axis=0)] * 2), strict=True):
        assert (vectors[~has_rows] == 0).all()
        assert (vectors[has_rows] != 0).any(axis=1).all()


def test_who_has_no_row_changes_nothing_for_the_others() -> None:
    matrix = gapped()
    more = np.vstack([np.zeros((1, matrix.shape[1]), bool), matrix, np.zeros((2, matrix.shape[1]), bool)])
    alone, among = (spectral_start(rows_of_matrix(each), GROUPS, seed=0) for each in (matrix, more))
    np.testing.assert_allclose(among.users[1:-2] @ among.items.T, alone.users @ alone.items.T, atol=0.01)


@pytest.mark.parametrize("shape", [(240, 120), (2_000, 500)])
def test_the_bits_follow_from_the_rows_and_the_seed(shape: tuple[int, int]) -> None:
    rows = rows_of_matrix(gapped(*shape))
    first, again = (spectral_start(rows, 16, seed=2) for _ in range(2))
    assert [each.tobytes() for each in first] == [each.tobytes() for each in again]
    other = spectral_start(rows, 16, seed=3)
    assert first.users.tobytes() != other.users.tobytes()
