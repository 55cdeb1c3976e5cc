"""Counts the blocks that pass, for those who watch: as Beam counters on any runner, and in a tally for an in-process one."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

NAMESPACE = "shortlist"


@dataclass
class Tally:
    """What has passed since the last `reset`. Only ever shown, never used."""

    blocks: int = 0
    rows: int = 0
    note: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, rows: int) -> None:
        with self._lock:
            self.blocks += 1
            self.rows += rows

    def say(self, note: str) -> None:
        """Sets a short text that is shown beside the counts, such as the epoch."""
        self.note = note

    def reset(self) -> None:
        with self._lock:
            self.blocks, self.rows, self.note = 0, 0, ""


WORKER_PROGRESS = Tally()
"""Of this process."""


class _CountBlock(beam.DoFn):
    def __init__(self) -> None:
        super().__init__()
        self._blocks = Metrics.counter(NAMESPACE, "blocks")
        self._rows = Metrics.counter(NAMESPACE, "rows")

    def process(self, element: Any) -> Iterator[Any]:
        block = element[1] if isinstance(element, tuple) else element
        self._blocks.inc()
        self._rows.inc(block.num_rows)
        WORKER_PROGRESS.add(block.num_rows)
        yield element


@dataclass
class CountBlocks(beam.PTransform):
    """Passes blocks on, placed or keyed ones too, unchanged, and counts them."""

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, blocks: beam.PCollection) -> beam.PCollection:
        return blocks | "CountBlock" >> beam.ParDo(_CountBlock()).with_output_types(blocks.element_type)
