"""Towers without any training: a truncated singular value decomposition of the ratings, scaled by the popularity of items.

The vectors are those that training begins with (`transforms.train.spectral`), and each item's is multiplied by its number of
ratings to some power. It is the model of Nikolakopoulos et al. 2019, "EigenRec: generalizing PureSVD for effective and
efficient top-N recommendations". Where ratings come close to a matrix of low rank (people like a few of a few dozen tastes),
it is better than what is trained from there, and takes seconds. A user's vector is the mean of vectors of what the user rated
but for its length, which changes no order, so a tower by history gives the same lists.

There is no bias: popularity is in the length of the items' vectors.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from transforms.train.choose_settings import WORTH_TWICE, Candidate, CandidateResult, dimensions_to_try
from transforms.train.fit import make_model
from transforms.train.rows import TrainingRows
from transforms.train.settings import TrainingSettings
from transforms.train.spectral import Start, spectral_start
from transforms.train.validation import Validation, quality_of

if TYPE_CHECKING:
    from transforms.train.towers import TwoTowers

EXPONENTS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Powers of the number of ratings that are tried."""


def scaled_start(rows: TrainingRows, dim: int, exponent: float, seed: int) -> Start:
    """Returns the vectors of the closed form; an item without a rating has the zero vector.

    Args:
      rows: what to learn from.
      dim: of the vectors.
      exponent: the power of an item's number of ratings by which its vector is multiplied.
      seed: of the decomposition.
    """
    return scale_items(spectral_start(rows, dim, seed), rows.rated.counts, exponent)


def scale_items(start: Start, counts: np.ndarray, exponent: float) -> Start:
    """Multiplies the items' vectors by the share of ratings ([num_items] counts) to some power, 1 for the mean item."""
    shares = counts / max(1.0, float(counts.mean()))
    return start._replace(items=(start.items * (shares**exponent)[:, np.newaxis]).astype(np.float32))


def closed_form_results(rows: TrainingRows, settings: TrainingSettings, validation: Validation) -> list[CandidateResult]:
    """Returns what the closed forms to choose from are worth on the validation slice, those of fewer dimensions first.

    Args:
      rows: what to learn from.
      settings: what is given in them is not tried.
      validation: what to measure on.
    """
    exponents = EXPONENTS if settings.popularity_exponent is None else (settings.popularity_exponent,)
    found = []
    for dim in dimensions_to_try(settings, len(rows.user)):
        start = spectral_start(rows, dim, settings.seed)
        for exponent in exponents:
            items = scale_items(start, rows.rated.counts, exponent).items
            # The last dimension keeps items that no row has out of all lists.
            never = np.where(rows.rated.counts > 0, np.float32(0), np.float32(-np.inf))[:, np.newaxis]
            users = np.hstack([start.users[validation.users], np.ones((len(validation.users), 1), np.float32)])
            quality = quality_of(users, np.hstack([items, never]), validation)
            found.append(CandidateResult(Candidate(dim, settings.l2_weight, exponent), *quality))
    return found


def best_closed_form(results: Sequence[CandidateResult]) -> CandidateResult:
    """Returns the best of `closed_form_results`; one of more dimensions only where it is clearly better."""
    best = results[0]
    for each in results[1:]:
        worth = WORTH_TWICE if each.candidate.dim > best.candidate.dim else 0.0
        if each.quality > best.quality * (1 + worth):
            best = each
    return best


def closed_form_model(rows: TrainingRows, settings: TrainingSettings, candidate: Candidate) -> "TwoTowers":
    """Returns towers that hold the closed form."""
    assert candidate.popularity_exponent is not None
    model = make_model(rows, settings, candidate.dim)
    start = scaled_start(rows, candidate.dim, candidate.popularity_exponent, settings.seed)
    model.user_tower.begin(start)
    model.item_tower.begin(start)
    return model
