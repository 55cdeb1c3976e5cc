"""The models that Shortlist is measured against: popularity, item-kNN, EASE, implicit ALS and iALS.

Each learns from the same (user, item) pairs as the towers and scores every item for every user. Those with settings are
tuned on a validation slice of the training pairs, one setting after the other (`tune`); none ever sees the test.
SciPy and `implicit` are needed for them, and for nothing else of the project: see requirements-benchmarks.txt.
"""

import importlib
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.judging import Pairs, Scorer
from schemas.errors import InputError

DAY_SECONDS = 86_400
_ROWS_AT_ONCE = 4_096

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Anchor:
    """A model to be measured against.

    Attributes:
      name: as in the table.
      fit: (pairs, settings, seed) -> scorer.
      needs: the package it needs beside the project's own.
      space: what `tune` tries for each setting; the first value of each is where it begins.
      by_chance: whether the seed changes the result.
    """

    name: str
    fit: Callable[[Pairs, Settings, int], Scorer]
    needs: str | None = None
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    by_chance: bool = False


def check_installed(anchors: Sequence[Anchor]) -> None:
    """Raises InputError if a package that one of the anchors needs is not installed."""
    for anchor in anchors:
        try:
            if anchor.needs:
                importlib.import_module(anchor.needs)
        except ImportError as error:
            raise InputError(
                f"{anchor.name} needs the package {anchor.needs} ({error}): pip install -r requirements-benchmarks.txt, "
                "or leave it out with --models"
            ) from error


def tune(anchor: Anchor, quality: Callable[[Settings], float]) -> tuple[dict[str, Any], float]:
    """Tries each setting's values in turn, keeping the best of each, until a whole round brings nothing better.

    Args:
      anchor: whose space to search.
      quality: how good settings are on the validation slice; higher is better.

    Returns:
      The best settings found, and their quality.
    """
    tried: dict[tuple, float] = {}

    def once(settings: dict[str, Any]) -> float:
        key = tuple(settings.items())
        if key not in tried:
            tried[key] = quality(settings)
        return tried[key]

    best = {name: values[0] for name, values in anchor.space.items()}
    reached = once(best)
    while True:
        before = reached
        for name, values in anchor.space.items():
            for value in values:
                candidate = best | {name: value}
                if once(candidate) > reached:
                    best, reached = candidate, once(candidate)
        if reached <= before:
            return best, reached


def matrix_of(pairs: Pairs) -> Any:
    """Returns pairs as SciPy CSR, [num_users, num_items] float32 of ones."""
    sparse = importlib.import_module("scipy.sparse")
    ones = np.ones(len(pairs.user), np.float32)
    return sparse.csr_matrix((ones, (pairs.user, pairs.item)), shape=(pairs.num_users, pairs.num_items))


def fit_popularity(pairs: Pairs, settings: Settings, seed: int) -> Scorer:
    """Scores an item by how many pairs it has."""
    return _same_for_all(pairs.counts_of_items)


def fit_recent_popularity(pairs: Pairs, settings: Settings, seed: int) -> Scorer:
    """Scores an item by its pairs, each counted half for every `half_life_days` before the latest pair."""
    age = (pairs.time.max(initial=0) - pairs.time) / (settings["half_life_days"] * DAY_SECONDS)
    return _same_for_all(np.bincount(pairs.item, 0.5**age, minlength=pairs.num_items))


def _same_for_all(scores: np.ndarray) -> Scorer:
    return lambda users: np.broadcast_to(scores.astype(np.float32), (len(users), len(scores)))


def fit_item_knn(pairs: Pairs, settings: Settings, seed: int) -> Scorer:
    """Scores an item by its BM25 similarity to those of the user, over each item's `neighbors` nearest (package implicit)."""
    neighbors = importlib.import_module("implicit.nearest_neighbours")
    matrix = matrix_of(pairs)
    model = neighbors.BM25Recommender(K=settings["neighbors"], K1=settings["k1"], B=settings["b"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About the layout that it turned the matrix into itself.
        model.fit(matrix, show_progress=False)
    similarity = model.similarity.tocsr()
    return lambda users: (matrix[users] @ similarity).toarray().astype(np.float32)


def fit_ease(pairs: Pairs, settings: Settings, seed: int) -> Scorer:
    """Scores with the item-item regression of EASE (Steck 2019), whose solution is closed: B = I - P diag(1 / diag P)."""
    lapack = importlib.import_module("scipy.linalg.lapack")
    matrix = matrix_of(pairs)
    gram = (matrix.T @ matrix).toarray()
    gram[np.diag_indices_from(gram)] += settings["l2"]
    # By its Cholesky factor, in a third of the time that a general inverse takes; LAPACK fills one triangle.
    factor, _ = lapack.spotrf(gram, lower=True, overwrite_a=True)
    triangle, _ = lapack.spotri(factor, lower=True, overwrite_c=True)
    inverse = np.tril(triangle) + np.tril(triangle, -1).T
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return lambda users: matrix[users] @ weights


def fit_implicit_als(pairs: Pairs, settings: Settings, seed: int) -> Scorer:
    """Scores with the factors of weighted matrix factorisation (Hu et al. 2008), as the package implicit learns them."""
    als = importlib.import_module("implicit.als")
    threads = importlib.import_module("threadpoolctl")
    # It has threads of its own, which BLAS's would fight; so its documentation asks for OPENBLAS_NUM_THREADS=1.
    with threads.threadpool_limits(1, "blas"):
        model = als.AlternatingLeastSquares(**settings, random_state=seed)
        model.fit(matrix_of(pairs), show_progress=False)
    return inner_products(model.user_factors, model.item_factors)


def fit_ials(pairs: Pairs, settings: Settings, seed: int) -> Scorer:
    """Scores with iALS as Rendle et al. (2021) set it up: the regularisation of a row grows with how often it occurs.

    The loss is the sum over observed pairs of (score - 1)^2, plus `unobserved` times the sum over all pairs of score^2, plus
    for each user its squared length times `l2` * (its pairs + `unobserved` * num_items) ^ `power`, and for each item likewise.
    `l2` is meant for a power of 1, and scaled for others so that the mean weight stays.
    """
    matrix, rng = matrix_of(pairs), np.random.default_rng(seed)
    dim = settings["dim"]
    users, items = (rng.normal(0, 0.1 / np.sqrt(dim), (size, dim)).astype(np.float32) for size in matrix.shape)
    transposed = matrix.T.tocsr()
    threads = importlib.import_module("threadpoolctl")
    with threads.threadpool_limits(1, "blas"):  # The matrices are small.
        for _ in range(settings["epochs"]):
            users = _solve(matrix, items, settings)
            items = _solve(transposed, users, settings)
    return inner_products(users, items)


def _solve(matrix: Any, others: np.ndarray, settings: Settings) -> np.ndarray:
    """Returns the best vectors of the matrix's rows, given those of its columns: [num_rows, dim] float32."""
    num_columns, dim = others.shape
    everywhere = settings["unobserved"] * (others.T @ others)
    frequency = np.diff(matrix.indptr) + settings["unobserved"] * num_columns
    weights = frequency ** settings["power"]
    weights *= settings["l2"] * frequency.mean() / weights.mean()
    solved = np.empty((matrix.shape[0], dim), np.float32)
    for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
        part = matrix[start : start + _ROWS_AT_ONCE]
        left = np.broadcast_to(everywhere, (part.shape[0], dim, dim)).copy()
        # A row at a time: each has its own columns, and one product of theirs is all that it takes.
        for row, (first, last) in enumerate(itertools.pairwise(part.indptr.tolist())):
            observed = others[part.indices[first:last]]
            left[row] += observed.T @ observed
        left[:, np.arange(dim), np.arange(dim)] += weights[start : start + len(left), np.newaxis]
        solved[start : start + len(left)] = np.linalg.solve(left, (part @ others)[:, :, np.newaxis])[:, :, 0]
    return solved


def inner_products(users: np.ndarray, items: np.ndarray) -> Scorer:
    """Returns a scorer of [num_users, dim] and [num_items, dim] vectors."""
    return lambda chosen: users[chosen] @ items.T


POPULARITY = Anchor("popularity", fit_popularity)
RECENT_POPULARITY = Anchor("recent popularity", fit_recent_popularity, space={"half_life_days": [7, 1, 2, 4, 14, 30, 60, 120]})

ANCHORS = (
    POPULARITY,
    RECENT_POPULARITY,
    Anchor(
        "item-kNN BM25",
        fit_item_knn,
        needs="implicit",
        space={"neighbors": [100, 20, 50, 200, 400], "k1": [1.2, 0.3, 3, 10, 30, 100], "b": [0.2, 0, 0.5, 0.8]},
    ),
    Anchor("EASE", fit_ease, needs="scipy", space={"l2": [300, 10, 30, 100, 200, 500, 1000, 2000]}),
    Anchor(
        "implicit ALS",
        fit_implicit_als,
        needs="implicit",
        space={
            "regularization": [20, 1, 3, 6, 10, 25, 30, 40, 60],
            "alpha": [4, 1, 2, 3, 6, 10, 20],
            "factors": [64, 24, 32, 48, 96, 128],
            "iterations": [15, 8, 30],
        },
        by_chance=True,
    ),
    Anchor(
        "iALS",
        fit_ials,
        needs="scipy",
        space={
            "l2": [0.03, 0.01, 0.02, 0.05, 0.1],
            "unobserved": [0.1, 0.03, 0.06, 0.2, 0.4],
            "power": [1, 0.5, 0],
            "dim": [32, 24, 48, 64],
            "epochs": [16, 8],
        },
        by_chance=True,
    ),
)
