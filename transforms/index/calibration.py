"""Calibrates the search of an index: finds the cheapest settings that still find enough of what an exact search finds.

Nothing is guessed and nothing is rebuilt. A sample of real users is searched as it will be served (the same requests, widths
and certificate, from `transforms.search.search`), with one setting after another, and the lists are compared with exact ones:

    sample ──> exact lists from each shard ──> the truth
    sample ──> settings to try ──> answers from each shard ──> certain rows, the others are asked for again ──> recall, cost
                      └──────────────────── from coarse to fine, a few times ─────────────────────────────────────┘

Each shard is measured by whoever loads it; only the sample and the answers travel. `calibrate` goes this way in one process
and `CalibrateSearch` on many workers, with the same functions and so with the same result.

A setting is good enough if the lower bound of its recall is: mean - 1.645 s / sqrt(n), where s is the standard deviation of
the recall over the n users of the sample; the true mean lies above it 95 times in 100. The cheapest of these is chosen by
what it has to score and not by the clock, so that the same index and users always give the same settings. The seconds that
it took are reported beside its cost. Exact search is one of the settings: it finds everything, and is chosen where it is the
cheapest, or where nothing cheaper finds enough.
"""

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from schemas.embeddings import SHARD_ITEMS
from schemas.flags import Rule, check_value
from transforms.search.list_settings import ListSettings
from transforms.search.ranking_metrics import MeanOfRows, recall_of_rows
from transforms.search.scann_index import ShardPlan
from transforms.search.search import (
    MAX_ROUNDS,
    Answer,
    Request,
    SearchCounters,
    SearchSettings,
    Shard,
    first_requests,
    search_block,
    settle,
)
from transforms.search.top_k import Lists, codes_of, merge

NUM_USERS = 1_000
"""With so many, the standard error of a recall of 0.95 is about 0.002."""
TARGET_RECALL = 0.95
RECALL = Rule("above 0 and at most 1", lambda value: 0 < value <= 1)
"""What a recall to reach may be."""
REORDER_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.5, 7.0, 10.0)

PHASES = 3
"""Coarse settings are tried first; see `new_trials`."""
ROUNDS = MAX_ROUNDS - 1  # The last round is exact, and the exact lists are known.
_QUANTILE = 1.645  # Of the normal distribution, 95 %.
_HALVINGS = 7  # From all leaves down to about 1 % of them.
_STEPS_A_HALVING = 4
_REPEATS = 3
_REPEATED_BELOW_SEC = 0.2

# Costs, in roughly scored vectors (1.1 ns each with 64 dimensions, on one core), fitted to the CPU time of shards of 25 k to
# 1.7 M vectors.
_COST_OF_LEAF = 2.5
_COST_OF_OPENING = 100.0
_COST_OF_REORDERING = {"hashed": 50.0, "tree": 75.0}
_COST_OF_NEIGHBOR = 55.0
_COST_OF_SCANNING = 1.65
_COST_OF_EXACT_NEIGHBOR = 200.0

EXACT_SHARDS = "every shard is searched exactly"
"""A fact that leaves nothing to calibrate."""

_EXACT = SearchSettings(exact=True)
ITEMS = pa.schema([SHARD_ITEMS.field("item_id"), SHARD_ITEMS.field("code")])


@dataclass(frozen=True)
class CalibrationSettings:
    """What the search must find, and what is tried.

    Attributes:
      k: items a user.
      recommend_seen: whether a list may hold items that the user has seen.
      target_recall: the share of the exact list that must be found, on average over users, at least.
      num_users: in the sample, at most.
      reorder_factors: what `SearchSettings.reorder_per_neighbor` may become, ascending.
    """

    k: int
    recommend_seen: bool = False
    target_recall: float = TARGET_RECALL
    num_users: int = NUM_USERS
    reorder_factors: tuple[float, ...] = REORDER_FACTORS

    def __post_init__(self) -> None:
        check_value("target_recall", self.target_recall, RECALL, "target_recall")

    @property
    def lists(self) -> ListSettings:
        """What the lists hold, however they are searched for."""
        return ListSettings(k=self.k, recommend_seen=self.recommend_seen, search=SearchSettings(), checked_fraction=0.0)


@dataclass(frozen=True)
class UserSample:
    """Users to search for."""

    queries: np.ndarray
    """[num_users, dim] float32: their vectors."""
    excluded: Lists
    """num_users lists: what they must not get."""

    def __len__(self) -> int:
        return len(self.queries)


class ExactLists(NamedTuple):
    """What one shard is, and holds for the sample."""

    shard: int
    plan: ShardPlan
    keys: np.ndarray
    """[num_users, k] uint64: the best items of the shard."""
    seconds: float
    """What finding them took."""


@dataclass(frozen=True)
class Truth:
    """What is compared with."""

    plans: Sequence[ShardPlan]
    codes: np.ndarray
    """[num_users, k] int64: the best items of all shards, -1 after the last."""
    seconds: float
    """What finding them took, in all shards."""

    @property
    def counted(self) -> np.ndarray:
        """[num_users] bool: who has a recall, because there is an item to be found."""
        return self.codes[:, 0] >= 0


@dataclass(frozen=True)
class SearchTrial:
    """Settings that are being tried."""

    settings: SearchSettings
    requests: Sequence[Request]
    """What is still to be answered, none of it exact."""
    recalls: np.ndarray
    """[num_users] float64: of the rows that have been settled; 1 of those that are searched exactly."""
    counters: SearchCounters
    cost: float = 0.0
    """Of all users in all shards so far, in roughly scored vectors."""
    seconds: float = 0.0
    """What that took, the shards one after the other."""


class ShardAnswers(NamedTuple):
    """What one shard answers to the requests of a trial."""

    shard: int
    answers: Sequence[Answer]
    seconds: float


@dataclass(frozen=True)
class TrialResult:
    """Settings that have been tried: a point of the curve."""

    settings: SearchSettings
    recall: float
    standard_error: float
    """Of the recall; infinite for fewer than two users."""
    cost: float
    """Of a user, in roughly scored vectors."""
    seconds: float
    """What searching for the whole sample took, the shards one after the other."""
    rows_widened: int
    rows_exact: int

    @property
    def lower_bound(self) -> float:
        """What the true recall is above, 95 times in 100."""
        return self.recall - _QUANTILE * self.standard_error

    @property
    def order(self) -> tuple[float, int, float]:
        """Sorts the cheapest first, and equal ones always alike."""
        return self.cost, self.settings.leaves_to_search or 0, self.settings.reorder_per_neighbor


@dataclass(frozen=True)
class Calibration:
    """What was found."""

    search: SearchSettings
    reason: str
    """A sentence."""
    num_users: int
    """Users whose lists were compared."""
    curve: Sequence[TrialResult]
    """All that was tried, the cheapest first."""


def cost_of_row(plan: ShardPlan, width: int, exact: bool, settings: SearchSettings) -> float:
    """Returns about what one row of a request costs in one shard, in roughly scored vectors.

    Args:
      plan: what the shard is.
      width: how many items it is asked for.
      exact: whether nothing may be missed.
      settings: of the search.
    """
    width = min(width, plan.num_vectors)
    if exact or plan.kind == "exact":
        return _COST_OF_SCANNING * plan.num_vectors + _COST_OF_EXACT_NEIGHBOR * width
    scored = float(plan.num_vectors)
    if plan.kind == "tree":
        opened = min(plan.num_leaves, settings.leaves_to_search or plan.num_leaves)
        scored = _COST_OF_LEAF * plan.num_leaves + _COST_OF_OPENING * opened
        scored += plan.leaves_a_vector * opened / plan.num_leaves * plan.num_vectors
    reordered = min(plan.num_vectors, math.ceil(width * settings.reorder_per_neighbor))
    return scored + _COST_OF_REORDERING[plan.kind] * reordered + _COST_OF_NEIGHBOR * width


def find_exact(number: int, shard: Shard, sample: UserSample, k: int) -> ExactLists:
    """Finds the best items of one shard for each user of the sample."""
    few = np.arange(min(1, len(sample)))
    search_block([shard], sample.queries[few], sample.excluded.take(few), k, _EXACT)  # The first time, vectors are copied.
    started = time.perf_counter()
    keys, _ = search_block([shard], sample.queries, sample.excluded, k, _EXACT)
    return ExactLists(number, shard.index.plan, keys, time.perf_counter() - started)


def truth_of(of_shards: Iterable[ExactLists], k: int) -> Truth:
    """Merges the exact lists of all shards, in any order."""
    of_shards = sorted(of_shards, key=lambda each: each.shard)
    keys = merge(np.concatenate([each.keys for each in of_shards], axis=1), k)
    return Truth([each.plan for each in of_shards], codes_of(keys), sum(each.seconds for each in of_shards))


def new_trials(
    phase: int, truth: Truth, sample: UserSample, tried: Sequence[TrialResult], ask: CalibrationSettings
) -> list[SearchTrial]:
    """Chooses what to try next, in a fixed order.

    Recall grows with the number of leaves, and with the reorder size. So nothing is tried that costs as much as what is known
    to be enough, nor what has fewer leaves and a smaller reorder size than what is known to be too little. What is left is
    small if the phases go from coarse to fine:

    0. all leaves, half of them, a quarter and so on, each with the largest reorder size that can pay;
    1. the fewest leaves that were enough, with all reorder sizes;
    2. all numbers of leaves with all reorder sizes.

    Without a tree, phase 0 tries all reorder sizes.
    """
    if all(plan.kind == "exact" for plan in truth.plans) or not truth.counted.any():
        return []
    exact = start_trial(_EXACT, truth, sample, ask.k)
    first = [] if phase else [exact]
    if ask.target_recall == 1:
        return first
    limit = cheapest(tried, ask).cost * len(sample) if tried else exact.cost
    enough = [each.settings for each in tried if is_enough(each, ask) and each.settings.leaves_to_search]
    too_little = [each.settings for each in tried if not is_enough(each, ask)]
    done = {each.settings for each in tried}

    def promising(leaves: int | None) -> list[SearchTrial]:
        """Returns trials of so many leaves, the largest reorder size first."""
        settings = [SearchSettings(leaves, factor) for factor in reversed(ask.reorder_factors)]
        chosen = [each for each in settings if each not in done and not any(_is_within(each, other) for other in too_little)]
        return [trial for each in chosen if (trial := start_trial(each, truth, sample, ask.k)).cost < limit]

    num_leaves = max(plan.num_leaves for plan in truth.plans)
    ladder = [max(1, round(num_leaves / 2 ** (step / _STEPS_A_HALVING))) for step in range(_HALVINGS * _STEPS_A_HALVING + 1)]
    if num_leaves == 1:
        return first if phase else first + promising(None)
    if phase == 0:
        return first + [trial for leaves in sorted(set(ladder[::_STEPS_A_HALVING])) for trial in promising(leaves)[:1]]
    if not enough:
        return []
    if phase == 1:
        return promising(min(each.leaves_to_search or 0 for each in enough))
    return [trial for leaves in sorted(set(ladder)) for trial in promising(leaves)]


def _is_within(settings: SearchSettings, other: SearchSettings) -> bool:
    """Tells whether settings open no more leaves and reorder no more than others do."""
    return (settings.leaves_to_search or 0) <= (other.leaves_to_search or 0) and (
        settings.reorder_per_neighbor <= other.reorder_per_neighbor
    )


def start_trial(settings: SearchSettings, truth: Truth, sample: UserSample, k: int) -> SearchTrial:
    """Returns a trial with the requests that serving would begin with."""
    requests = first_requests(sample.queries, sample.excluded, k, truth.plans, settings.exact)
    return _ask(SearchTrial(settings, (), np.ones(len(sample)), SearchCounters()), requests, truth, is_first=True)


def _ask(trial: SearchTrial, requests: Sequence[Request], truth: Truth, is_first: bool) -> SearchTrial:
    """Adds what some requests cost, and leaves those to be answered that are not exact: of the others the answer is known."""
    counters, cost, seconds = replace(trial.counters), trial.cost, trial.seconds
    for request in requests:
        num_rows = len(request.rows)
        counters.add(request, is_first)
        cost += num_rows * sum(cost_of_row(plan, request.shard_width, request.exact, trial.settings) for plan in truth.plans)
        seconds += num_rows * truth.seconds / len(truth.codes) if request.exact else 0.0
    waiting = [request for request in requests if not request.exact]
    return replace(trial, requests=waiting, counters=counters, cost=cost, seconds=seconds)


def answer_trial(number: int, shard: Shard, trial: SearchTrial) -> ShardAnswers:
    """Answers the requests of a trial from one shard; quick searches are timed a few times."""
    seconds: list[float] = []
    while len(seconds) < _REPEATS and sum(seconds) < _REPEATED_BELOW_SEC:
        started = time.perf_counter()
        answers = [shard.answer(request, trial.settings) for request in trial.requests]
        seconds.append(time.perf_counter() - started)
    return ShardAnswers(number, answers, statistics.median(seconds))


def settle_trial(trial: SearchTrial, of_shards: Iterable[ShardAnswers], truth: Truth, sample: UserSample) -> SearchTrial:
    """Judges the rows that the answers of all shards make certain; what is asked for the others is left to be answered."""
    of_shards = list(of_shards)
    recalls = trial.recalls.copy()
    following = []
    for position, request in enumerate(trial.requests):
        answers = [each.answers[position] for each in of_shards]
        keys, certain = settle(request, answers, sample.excluded.take(request.rows), truth.codes.shape[1])
        judged = certain & truth.counted[request.rows]
        recalls[request.rows[judged]] = recall_of_rows(codes_of(keys[judged]), truth.codes[request.rows[judged]])
        if not certain.all():
            following.append(request.next(~certain))
    seconds = trial.seconds + sum(each.seconds for each in of_shards)
    return _ask(replace(trial, recalls=recalls, seconds=seconds), following, truth, is_first=False)


def judge_trial(trial: SearchTrial, truth: Truth) -> TrialResult:
    """Returns what a trial has found, when nothing is left to be answered."""
    mean = MeanOfRows()
    estimate = mean.extract_output(mean.add_input(mean.create_accumulator(), trial.recalls[truth.counted]))
    return TrialResult(
        settings=trial.settings,
        recall=estimate.mean,
        standard_error=0.0 if trial.settings.exact else estimate.standard_error,
        cost=trial.cost / len(trial.recalls),
        seconds=trial.seconds,
        rows_widened=trial.counters.rows_widened,
        rows_exact=trial.counters.rows_exact,
    )


def is_enough(tried: TrialResult, ask: CalibrationSettings) -> bool:
    """Tells whether settings find enough."""
    return tried.settings.exact or tried.lower_bound >= ask.target_recall


def cheapest(tried: Sequence[TrialResult], ask: CalibrationSettings) -> TrialResult:
    """Returns the cheapest of the settings that find enough, exact search among them."""
    return min((each for each in tried if is_enough(each, ask)), key=lambda each: each.order)


def conclude(truth: Truth, tried: Sequence[TrialResult], ask: CalibrationSettings) -> Calibration:
    """Chooses, and says why."""
    if not tried:
        is_exact = all(plan.kind == "exact" for plan in truth.plans)
        return nothing_to_calibrate(EXACT_SHARDS if is_exact else "no user of the sample has a vector and an item to find")
    curve = sorted(tried, key=lambda each: each.order)
    best = cheapest(curve, ask)
    others = [each for each in curve if not each.settings.exact]
    target = f"recall@{ask.k} of {ask.target_recall:g}"
    if not best.settings.exact:
        reason = f"the cheapest of {len(curve)} settings that is sure of a {target}: {_recall_of(best)}"
    elif ask.target_recall == 1:
        reason = f"only exact search is sure of a {target}"
    elif others and not any(is_enough(each, ask) for each in others):
        nearest = max(others, key=lambda each: each.lower_bound)
        reason = f"no approximate search is sure of a {target} and costs less than an exact one: at best {_recall_of(nearest)}"
    else:
        reason = f"exact search costs less than any approximate one that is sure of a {target}"
    return Calibration(best.settings, reason, int(truth.counted.sum()), curve)


def nothing_to_calibrate(fact: str) -> Calibration:
    """Returns settings that will do, and the fact that makes it so."""
    return Calibration(SearchSettings(), f"{fact}: there is nothing to calibrate", 0, ())


def _recall_of(tried: TrialResult) -> str:
    return f"{tried.recall:.4f}, with a lower bound of {tried.lower_bound:.4f}"


def calibrate(shards: Sequence[Shard], sample: UserSample, ask: CalibrationSettings) -> Calibration:
    """Finds the cheapest search settings that find enough.

    Args:
      shards: all of them.
      sample: the users that are searched for.
      ask: what must be found.
    """
    truth = truth_of([find_exact(number, shard, sample, ask.k) for number, shard in enumerate(shards)], ask.k)
    tried: list[TrialResult] = []
    for phase in range(PHASES):
        for trial in new_trials(phase, truth, sample, tuple(tried), ask):
            for _ in range(ROUNDS):
                answers = [answer_trial(number, shard, trial) for number, shard in enumerate(shards) if trial.requests]
                trial = settle_trial(trial, answers, truth, sample)
            tried.append(judge_trial(trial, truth))
    return conclude(truth, tried, ask)


def calibration_report(found: Calibration, ask: CalibrationSettings) -> dict[str, Any]:
    """Returns what was found as a report, for the manifest; JSON has no infinity."""
    curve = []
    for each in found.curve:
        point = asdict(each.settings) | {name: value for name, value in asdict(each).items() if name != "settings"}
        point["lower_bound"] = each.lower_bound
        curve.append({name: value if math.isfinite(value or 0) else None for name, value in point.items()})
    return {
        "search": asdict(found.search),
        "calibration": {
            "target_recall": ask.target_recall,
            "k": ask.k,
            "users": found.num_users,
            "reason": found.reason,
            "curve": curve,
        },
    }
