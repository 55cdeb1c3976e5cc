"""Timing: medians, and turns."""

import time

from benchmarks.timing import in_turns, seconds_of, timed


def test_turns_are_taken_and_medians_count() -> None:
    order: list[str] = []
    values = {"a": iter([1.0, 100.0, 3.0]), "b": iter([5.0, 4.0, 6.0])}

    def measure(name: str) -> float:
        order.append(name)
        return next(values[name])

    found = in_turns({"a": lambda: measure("a"), "b": lambda: measure("b")}, repeats=3)
    assert order == ["a", "b"] * 3
    assert found == {"a": 3.0, "b": 5.0}


def test_time_is_what_has_passed() -> None:
    def work() -> str:
        time.sleep(0.02)
        return "made"

    made, seconds = timed(work)
    assert made == "made"
    assert seconds >= 0.02
    assert seconds_of(work, repeats=3) >= 0.02
