"""Chooses the weight of L2 and the dimensions on the validation slice, by a few short trainings.

Which L2 is best depends on the ratings: too little and what is rare is learned by heart, too much and everybody gets what is
popular. So a few weights are tried from the usual one on, uphill. Then, where there are ratings enough, twice the dimensions
are tried with the best of them, and with the next: they cost twice the time and must show that they are worth it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transforms.train.settings import L2_OF, TrainingSettings
from transforms.train.validation import Quality

L2_TRIED = (0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45)
"""In steps of about 1.6."""

WORTH_TWICE = 0.01
"""The share by which twice the dimensions must be better."""

ROWS_FOR_TWICE = 200_000
"""Fewer ratings than these do not fill twice the dimensions, and are not asked."""

WORTH_CLOSED_FORM = 0.01
"""The share by which the closed form must be better than what is trained: the trainings that it is compared with are short."""

FAR_BETTER = 0.03
"""Where it is better by such a share, neither less L2 nor twice the dimensions are tried."""

WORTH_LESS_L2 = 0.003
"""The share by which less L2 must be better: what is learned by heart shows late, and these trainings are short."""

SEARCH_ROWS = 500_000
"""The most rows that a choice is made by: of some users, but all of theirs."""


@dataclass(frozen=True)
class Candidate:
    """One way to train, or not to.

    Attributes:
      dim: of the vectors.
      l2: the weight of the penalty.
      popularity_exponent: of the closed form (`transforms.train.closed_form`); None where the towers are trained.
    """

    dim: int
    l2: float
    popularity_exponent: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def is_closed_form(self) -> bool:
        """Whether nothing is trained."""
        return self.popularity_exponent is not None


@dataclass(frozen=True)
class CandidateResult:
    """What a candidate is worth on the validation slice.

    Attributes:
      candidate: it.
      recall_at_100: a mean over the users.
      ndcg_at_10: likewise.
    """

    candidate: Candidate
    recall_at_100: float
    ndcg_at_10: float

    @property
    def means(self) -> Quality:
        """The two of them."""
        return Quality(self.recall_at_100, self.ndcg_at_10)

    @property
    def quality(self) -> float:
        """What is to be as high as can be."""
        return self.recall_at_100 + self.ndcg_at_10

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {**self.candidate.to_json(), "recall_at_100": self.recall_at_100, "ndcg_at_10": self.ndcg_at_10}

    @staticmethod
    def of(told: dict[str, Any]) -> "CandidateResult":
        """Reads what `to_json` returned."""
        return CandidateResult(
            Candidate(told["dim"], told["l2"], told.get("popularity_exponent")), told["recall_at_100"], told["ndcg_at_10"]
        )


def dimensions_to_try(settings: TrainingSettings, num_rows: int) -> list[int]:
    """Returns the dimensions to choose from: those that are given, or the usual ones and, where rows are many, twice those."""
    twice = settings.dim is None and num_rows >= ROWS_FOR_TWICE
    return [settings.dimensions, *([2 * settings.dimensions] if twice else [])]


def is_better(closed: CandidateResult | None, trained: Sequence[CandidateResult], worth: float) -> bool:
    """Tells whether the closed form is better by a share `worth` than all that was trained; not where either is missing."""
    return closed is not None and bool(trained) and all(closed.quality > each.quality * (1 + worth) for each in trained)


def next_candidate(settings: TrainingSettings, results: Sequence[CandidateResult], num_rows: int) -> Candidate | None:
    """Returns what to try next, given what is known; None where that is enough.

    Args:
      settings: what is given in them is not tried.
      results: in the order in which they were tried.
      num_rows: how many ratings there are.
    """
    known = {each.candidate: each.quality for each in results}
    dim = settings.dimensions
    candidate = _next_l2(settings, known, dim)
    if candidate or settings.dim is not None or num_rows < ROWS_FOR_TWICE:
        return candidate
    best = best_result([each for each in results if each.candidate.dim == dim]).candidate
    twice = Candidate(2 * dim, best.l2)
    if twice not in known:
        return twice
    more = next((l2 for l2 in L2_TRIED if l2 > best.l2), None)
    if settings.l2 is not None or more is None or known[twice] <= known[best] * (1 + WORTH_TWICE):
        return None
    stronger = Candidate(2 * dim, more)
    return None if stronger in known else stronger


def _next_l2(settings: TrainingSettings, known: dict[Candidate, float], dim: int) -> Candidate | None:
    """Returns the next weight of L2 with some dimensions: uphill from the usual one, first to what is more."""
    if settings.l2 is not None:
        given = Candidate(dim, settings.l2)
        return None if given in known else given
    usual = L2_TRIED.index(L2_OF[settings.user_tower])
    for step, worth in ((1, 0.0), (-1, WORTH_LESS_L2)):
        place, best = usual, -math.inf
        while 0 <= place < len(L2_TRIED):
            candidate = Candidate(dim, L2_TRIED[place])
            if candidate not in known:
                return candidate
            if known[candidate] <= best * (1 + worth):
                break
            best, place = known[candidate], place + step
        if step > 0 and place > usual + 1:
            return None  # More was better than the usual, so less is not.
    return None


def best_result(results: Sequence[CandidateResult]) -> CandidateResult:
    """Returns the best result; one of less L2, or of more dimensions, only where it is clearly better."""
    best = results[0]
    for each in sorted(results, key=lambda each: (each.candidate.dim, -each.candidate.l2)):
        is_larger, is_less = each.candidate.dim > best.candidate.dim, each.candidate.l2 < best.candidate.l2
        worth = WORTH_TWICE if is_larger else WORTH_LESS_L2 if is_less else 0.0
        if each.quality > best.quality * (1 + worth):
            best = each
    return best
