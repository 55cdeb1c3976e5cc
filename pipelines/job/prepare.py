"""What every command of a job begins with: its flags, a look at the output, and the model that is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.cli import logs
from pipelines.cli.config import parse_command
from pipelines.cli.settings import Settings
from pipelines.job.reuse import find_base
from schemas.errors import InputError
from schemas.release import read_latest, read_release
from schemas.release_manifest import Release
from schemas.storage import check_writable
from schemas.workspace import Workspace


@dataclass(frozen=True)
class Job:
    """What was asked for.

    Attributes:
      settings: as the flags say.
      base: the release whose model is kept, read from where it lies; None trains.
      last: the release that is served; None where there is none.
    """

    settings: Settings
    base: Release | None = None
    last: Release | None = None


def check_ratings(settings: Settings) -> None:
    if not settings.ingest.ratings:
        raise InputError("no ratings: give --ratings FILE, FOLDER or tfds:NAME")


def refuse_check(settings: Settings) -> None:
    """Raises InputError if a command was asked to check that does its work whatever it is asked."""
    if settings.check:
        raise InputError("--check looks at a whole job: give it to python -m pipelines.run, or leave it out")


def prepare(argv: Sequence[str], description: str, can_check: bool = False) -> tuple[Job, PipelineOptions]:
    settings, options = parse_command(argv, description)
    logs.configure(settings.verbose)
    if not can_check:
        refuse_check(settings)
    check_writable(settings.output)
    workspace = Workspace(settings.output)
    latest = read_latest(workspace)
    return Job(settings, find_base(settings), read_release(workspace, latest) if latest else None), options
