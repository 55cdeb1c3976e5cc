"""Shows how far a run has come: a line a stage on a terminal, plain log lines elsewhere; all on standard error."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from apache_beam.metrics import MetricsFilter
from apache_beam.runners.runner import PipelineResult, PipelineState
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipelines.cli.logs import LOGGER
from schemas.words import counted
from transforms.io.progress import NAMESPACE, WORKER_PROGRESS

_REFRESH_SECONDS = 0.2
_LOG_SECONDS = 30.0
_COUNT_SECONDS = 2.0


def describe(blocks: int, rows: int, seconds: float, note: str = "") -> str:
    """Returns '12 blocks  98,304 rows  49,152 rows/s', as much of it as there is to say."""
    words = [f"{seconds:.1f} s"]
    if blocks:
        words += [counted(blocks, "block"), counted(rows, "row"), f"{rows / max(seconds, 1e-3):,.0f} rows/s"]
    if note:
        words.append(note)
    return "  ".join(words)


class Progress:
    """Reports the stages of one run, one after the other."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._terminal = self._console.is_terminal and not self._console.is_dumb_terminal

    def skipped(self, stage: str, what: str) -> None:
        """Says that a stage was finished before."""
        self._say(stage, f"done before: {what}", "cyan", "=")

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Shows a stage while it runs, and how it ended."""
        WORKER_PROGRESS.reset()
        started = time.monotonic()
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stage, started, stop), daemon=True)
        watcher.start()
        try:
            yield
        except BaseException:
            stop.set()
            watcher.join()
            self._say(stage, f"failed after {time.monotonic() - started:.1f} s", "red", "x")
            raise
        stop.set()
        watcher.join()
        self._say(stage, self._now(started), "green", "+")

    def _watch(self, stage: str, started: float, stop: threading.Event) -> None:
        if self._terminal:
            with Live(console=self._console, transient=True, refresh_per_second=1 / _REFRESH_SECONDS) as live:
                while not stop.wait(_REFRESH_SECONDS):
                    live.update(self._line(stage, self._now(started), "yellow", "…"))
            return
        LOGGER.info("%s: started", stage)
        while not stop.wait(_LOG_SECONDS):
            LOGGER.info("%s: %s", stage, self._now(started))

    def _now(self, started: float) -> str:
        return describe(WORKER_PROGRESS.blocks, WORKER_PROGRESS.rows, time.monotonic() - started, WORKER_PROGRESS.note)

    def _say(self, stage: str, text: str, style: str, mark: str) -> None:
        if self._terminal:
            self._console.print(self._line(stage, text, style, mark))
        else:
            LOGGER.info("%s: %s", stage, text)
        sys.stderr.flush()

    @staticmethod
    def _line(stage: str, text: str, style: str, mark: str) -> Text:
        return Text.assemble((f"{mark} ", style), (f"{stage:<10}", "bold"), text)


def follow(result: PipelineResult) -> None:
    """Waits for a pipeline that runs elsewhere, and takes its counts into the tally as they come.

    One thread waits, once: a portable runner's result reads its streams anew each time that it is asked to wait. Where this
    thread is interrupted, as by Ctrl-C, the pipeline is cancelled.

    Raises:
      RuntimeError: if the pipeline does not end well.
    """
    waiting = _Waiting(result)
    waiting.start()
    try:
        while waiting.is_alive():
            waiting.join(_COUNT_SECONDS)
            take_counts(result)
    except BaseException:
        with suppress(Exception):  # What was interrupted is what is to be told.
            result.cancel()
        raise
    if waiting.error:
        raise waiting.error
    if waiting.state != PipelineState.DONE:
        raise RuntimeError(f"the runner ended in state {waiting.state}")


class _Waiting(threading.Thread):
    """Waits for a pipeline's end, and keeps the state that it ended in, or what was raised."""

    def __init__(self, result: PipelineResult) -> None:
        super().__init__(daemon=True)
        self._result = result
        self.state: str | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.state = self._result.wait_until_finish()
        except BaseException as error:
            self.error = error


def take_counts(result: PipelineResult) -> None:
    """Takes a pipeline's counts into the tally, which never goes back; a runner that does not tell them is none the worse."""
    ours = MetricsFilter().with_namespace(NAMESPACE)
    try:
        if hasattr(result, "_metrics"):
            result._metrics = None  # A portable result keeps its first answer for good.
        counters = result.metrics().query(ours)["counters"]
    except Exception as error:
        LOGGER.debug("the runner tells no counts: %s", error)
        return
    for counter in counters:
        name = counter.key.metric.name
        if name in ("blocks", "rows") and counter.result:
            setattr(WORKER_PROGRESS, name, max(getattr(WORKER_PROGRESS, name), counter.result))
