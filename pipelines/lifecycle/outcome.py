"""Publishes, and prints the outcome: as text, and with --json as one line for programs, also after an error."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.cli.command import Output, verdict_on
from pipelines.cli.settings import Settings
from pipelines.job.publishing import JobStages, Outcome
from pipelines.lifecycle import results
from schemas.errors import GatesFailed
from schemas.workspace import Workspace


@contextmanager
def telling_programs(settings: Settings) -> Iterator[None]:
    """Prints, with --json, what went wrong."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if settings.json:
            code, messages = verdict_on(error)
            print(json.dumps({"exit_status": code, "error": " ".join(messages)}), flush=True)
        raise


def make_and_tell(settings: Settings, started: float, make: Callable[[], tuple[JobStages, Outcome]]) -> None:
    """Publishes and prints the results: for people, and with --json for programs, whatever happens."""
    with telling_programs(settings):
        made, outcome = make()
    workspace, seconds = Workspace(settings.output), time.monotonic() - started
    try:
        results.show(workspace, made, outcome, seconds, Output(highlight=False, stderr=settings.json))
        if settings.json:
            print(json.dumps(results.summary(workspace, made, outcome, seconds)), flush=True)
    except BrokenPipeError:
        if not outcome.failed:
            raise
    if outcome.failed:
        raise GatesFailed(outcome.failed)
