"""Measures how long things take, side by side: medians, so that one disturbance moves nothing."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

Work = Callable[[], object]
K = TypeVar("K")
T = TypeVar("T")


def seconds_of(work: Work, repeats: int = 5) -> float:
    """Returns the median time of `repeats` runs."""
    return statistics.median(_seconds(work) for _ in range(repeats))


def interleaved(works: Mapping[str, Work], repeats: int = 3) -> dict[str, float]:
    """Returns the median time of each, in seconds: all are run once, then all again, so that a slow minute hits them all."""
    return in_turns({name: partial(_seconds, work) for name, work in works.items()}, repeats)


def wall_and_cpu(works: Mapping[K, Work], repeats: int) -> dict[K, tuple[float, float]]:
    """Returns the medians of the wall and of the CPU seconds of each, in turns likewise."""
    found: list[dict[K, tuple[float, float]]] = []
    for _ in range(repeats):
        found.append({})
        for name, work in works.items():
            cpu = time.process_time()
            wall = _seconds(work)
            found[-1][name] = wall, time.process_time() - cpu
    return {name: tuple(map(statistics.median, zip(*(each[name] for each in found), strict=True))) for name in works}


def _seconds(work: Work) -> float:
    return timed(work)[1]


def in_turns(measures: Mapping[str, Callable[[], float]], repeats: int = 3) -> dict[str, float]:
    """Returns the median of what each measures, in turns likewise."""
    found = [{name: measure() for name, measure in measures.items()} for _ in range(repeats)]
    return {name: statistics.median(each[name] for each in found) for name in measures}


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Returns what `work` returns, and the seconds it took."""
    started = time.perf_counter()
    made = work()
    return made, time.perf_counter() - started


def num_threads() -> int:
    """Returns how many processors this process may use, and so how many threads everything measured gets."""
    return len(os.sched_getaffinity(0))
