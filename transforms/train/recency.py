"""Adds recent popularity to the score: an item's bias, how much of it is recent, and how much affinity counts beside it.

Towers learn how much more likely a user takes an item than people do on average. With the log of the item's share of all
ratings as its bias, a score is the log of how likely this user takes it, up to a constant:

    score(user, item) = affinity_weight x <user, item> + bias(item)
    bias(item)        = log(share of all ratings) + recency x log(share of recent ratings / share of all ratings)

Recent ratings count half for every half-life before the last one. A recency of 1 puts recent popularity in the place of
that of all time, which is what the rule of Bayes asks for when popularity drifts and tastes stay; a weight below 1 says that
tastes learned of the past hold less well in the future. Both, and the half-life, are chosen on validation.

A bias is one more dimension of an item's vector, where every user has a 1: the score is still an inner product.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

MODES = ("auto", "on", "off")

DAY_SECONDS = 86_400
AFFINITY_WEIGHTS = (1.0, 0.75, 0.5)
RECENCIES = (1.0, 0.5)
HALF_LIVES = (1.0, 2.0, 0.5, 4.0, 0.25)
"""What is tried, half-lives as multiples of the one that was asked for; of equals, the first is taken."""

_LATEST = 0.999
"""The quantile of the times that is taken for the end."""

_SHRINKAGE = 0.1
"""As many recent ratings more than there are, and as many more than are expected, has every item: a few say little."""


@dataclass(frozen=True)
class Blend:
    """How a score is made.

    Attributes:
      affinity_weight: the factor of the towers' inner product.
      recency: the weight of log(share of recent ratings / share of all ratings).
      half_life_days: how long it takes for a rating to count half; None where recency is 0.
    """

    affinity_weight: float = 1.0
    recency: float = 0.0
    half_life_days: float | None = None


_FORMER_NAME = "taste"
"""What `affinity_weight` is called in the manifests of earlier releases."""


def blend_of(report: Mapping[str, Any]) -> Blend:
    """Returns the blend that train's metrics tell of."""
    said = {"affinity_weight": report[_FORMER_NAME], **report} if _FORMER_NAME in report else report
    return Blend(*(said[each.name] for each in fields(Blend)))


PLAIN = Blend()
"""Affinity and the popularity of all time."""


class RatedItems(NamedTuple):
    """Which item was rated when.

    Attributes:
      item: [n] int32 codes.
      timestamp: [n] int64, seconds; None where there are no times.
      num_items: codes are 0 to num_items - 1.
    """

    item: np.ndarray
    timestamp: np.ndarray | None
    num_items: int

    @property
    def counts(self) -> np.ndarray:
        """[num_items] int64: each item's ratings."""
        return np.bincount(self.item, minlength=self.num_items)


def recent_counts(rated: RatedItems, half_life_secs: float) -> np.ndarray:
    """Returns [num_items] float64: each item's ratings, each counted half for every half-life before the last ones.

    Those are the latest thousandth; they count in full. So a few times that lie far ahead make nothing else old.
    """
    if rated.timestamp is None or not len(rated.item):
        return rated.counts.astype(np.float64)
    age = np.maximum(0, np.quantile(rated.timestamp, _LATEST, method="higher") - rated.timestamp)
    return np.bincount(rated.item, 0.5 ** (age / half_life_secs), minlength=rated.num_items)


def log_drift(counts: np.ndarray, recent: np.ndarray) -> np.ndarray:
    """Returns the log of each item's share of recent ratings over its share of all, shrunk to 0 where that says little.

    An item of `count` of N ratings can expect count x R / N of R recent ones. What was seen over what was expected is the
    maximum-likelihood estimate of the drift; with `_SHRINKAGE` added to both it is the mean of the Gamma posterior whose prior
    has a mean of 1 (DuMouchel 1999, "Bayesian data mining in large frequency tables"). An item without ratings has no drift.

    Args:
      counts: [num_items] of all ratings.
      recent: [num_items] float64, of recent ones.
    """
    expected = counts * (recent.sum() / max(1, counts.sum()))
    return np.log((recent + _SHRINKAGE) / (expected + _SHRINKAGE))


def item_bias(rated: RatedItems, blend: Blend) -> np.ndarray:
    """Returns [num_items] float32: the log of each item's share of the ratings over the mean share of rated items.

    An item without ratings has 0: until there are some, its share can only be expected to be the mean.
    """
    counts = rated.counts
    bias = np.log(np.maximum(counts, 1))
    if blend.half_life_days is not None:
        recent = recent_counts(rated, blend.half_life_days * DAY_SECONDS)
        bias += blend.recency * log_drift(counts, recent)
    return np.where(counts > 0, bias - np.log(np.exp(bias[counts > 0]).mean()), 0).astype(np.float32)


def lift_items(vectors: np.ndarray, affinity_weight: float, bias: np.ndarray) -> np.ndarray:
    """Returns [num_items, dim + 1] float32: vectors times affinity_weight, then the bias.

    Their inner products with lifted users are the scores.

    Args:
      vectors: [num_items, dim] float32.
      affinity_weight: see Blend.
      bias: [num_items] float32.
    """
    return np.concatenate([vectors * np.float32(affinity_weight), bias[:, np.newaxis]], axis=1)


def lift_users(vectors: np.ndarray) -> np.ndarray:
    """Returns [num_users, dim + 1] float32: [num_users, dim] float32 vectors, then 1."""
    return np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], axis=1)


def blends_to_try(half_life_days: float, weights: Sequence[float] = AFFINITY_WEIGHTS) -> Iterator[Blend]:
    """Yields every combination, `PLAIN` (or, without its weight, the nearest to it) first."""
    for recency in (0.0, *RECENCIES):
        for half_life in [half_life_days * multiple for multiple in HALF_LIVES] if recency else [None]:
            for weight in weights:
                yield Blend(weight, recency, half_life)


class BlendResult(NamedTuple):
    """A blend, and what it is worth on validation.

    Attributes:
      blend: what was tried.
      recall: [num_users] float64, at 100.
      ndcg: [num_users] float64, at 10.
    """

    blend: Blend
    recall: np.ndarray
    ndcg: np.ndarray

    @property
    def quality(self) -> np.ndarray:
        """[num_users] float64: what is to be as high as can be."""
        return self.recall + self.ndcg

    @property
    def means(self) -> dict[str, float]:
        """Recall and NDCG, means over the users."""
        return {"recall_at_100": float(self.recall.mean()), "ndcg_at_10": float(self.ndcg.mean())}


class Choice(NamedTuple):
    """Which blend was chosen.

    Attributes:
      chosen: it.
      why: in a few words.
      tried: all, the first one being what the others must beat.
    """

    chosen: BlendResult
    why: str
    tried: Sequence[BlendResult]

    def report(self) -> dict[str, Any]:
        """Returns what train's metrics say of it."""
        return {
            **asdict(self.chosen.blend),
            **self.chosen.means,
            "why": self.why,
            "validation_users": len(self.chosen.recall),
            "candidates": [{**asdict(tried.blend), **tried.means} for tried in self.tried],
        }


def choose(tried: Sequence[BlendResult]) -> Choice:
    """Chooses the blend with the best mean quality, or the first where that is not better by more than two standard errors.

    The error is that of the mean, over the same users, of the difference between the two. It is two, not one, since the best
    of so many is better than the first by some luck, too.
    """
    means = [float(each.quality.mean()) for each in tried]
    best = tried[int(np.argmax(means))]
    gain = best.quality - tried[0].quality
    error = float(gain.std(ddof=1) / math.sqrt(len(gain))) if len(gain) > 1 else math.inf
    said = f"better than {_words(tried[0].blend)} by {gain.mean():.4f} with a standard error of {error:.4f}"
    if gain.mean() > 2 * error:
        return Choice(best, said, tried)
    if best is tried[0]:
        return Choice(best, "nothing that was tried is better", tried)
    return Choice(tried[0], f"{_words(best.blend)} is not clearly better: {said}", tried)


def _words(blend: Blend) -> str:
    half_life = "" if blend.half_life_days is None else f", half-life {blend.half_life_days:g} days"
    return f"affinity weight {blend.affinity_weight:g}, recency {blend.recency:g}{half_life}"
