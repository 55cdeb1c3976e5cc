"""Runs the whole job: `python -m pipelines.run --ratings URI --items URI --output DIR`.

Ratings in, the top-k of every user out: ingest, train, embed, index, recommend, publish. A stage that is done is skipped.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import embed, index, ingest, logs, recommend, results, train
from pipelines.command import run_command
from pipelines.progress import Progress
from pipelines.publish import publish
from pipelines.settings import Settings, parse_command
from pipelines.stage import run_stage
from schemas.errors import InputError
from schemas.manifest import StageManifest
from schemas.storage import check_writable
from schemas.workspace import Workspace

STAGES: Mapping[str, ModuleType] = {
    "ingest": ingest,
    "train": train,
    "embed": embed,
    "index": index,
    "recommend": recommend,
}
"""The stages that compute, in order; each module's `stage(settings, done)` says what it needs and how to build it."""

Done = dict[str, StageManifest]


def run(settings: Settings, options: PipelineOptions, progress: Progress) -> Done:
    """Runs every stage that is not done, and returns all their manifests."""
    workspace = Workspace(settings.output)
    done: Done = {}
    for name, module in STAGES.items():
        done[name] = run_stage(module.stage(settings, done), workspace, options, progress)
    return done


def finished_before(name: str, settings: Settings) -> Done:
    """Returns the finished stages that the stage `name` builds on.

    With --ratings they are those of exactly these settings, so that a scheduler can give every task the same flags. Without,
    they are those that led to the newest finished stage before it.

    Raises:
      InputError: if one is not finished.
    """
    workspace = Workspace(settings.output)
    before = list(STAGES)[: [*STAGES, "publish"].index(name)]
    done: Done = {}
    if settings.ingest.ratings:
        for each in before:
            manifest = workspace.read(each, STAGES[each].stage(settings, done).fingerprint)
            if manifest is None:
                raise InputError(
                    f"{name} needs {each}, which is not done for these settings: "
                    f"run python -m pipelines.{each} with the same flags"
                )
            done[each] = manifest
        return done
    newest = workspace.finished(before[-1])
    if not newest:
        raise InputError(
            f"{name} needs {before[-1]}, which is not done below {workspace.root}: run python -m pipelines.{before[-1]}"
        )
    _add_with_inputs(newest[-1], workspace, done)
    return {each: done[each] for each in before}


def _add_with_inputs(manifest: StageManifest, workspace: Workspace, done: Done) -> None:
    """Adds a stage and all that led to it; what does not belong together is refused."""
    done[manifest.stage] = manifest
    inputs = {name: done.get(name) or workspace.read(name, facts["fingerprint"]) for name, facts in manifest.inputs.items()}
    for name, found in inputs.items():
        facts = manifest.inputs[name]
        if found is None or found.digest_of_datasets(facts["datasets"]) != facts["digest"]:
            raise InputError(
                f"{manifest.stage} {manifest.fingerprint} was made from another {name} than there is now: "
                f"run python -m pipelines.{manifest.stage} again"
            )
    # Direct inputs come before those of inputs: a stage may be older than a stage before it, where that made the same again.
    new = [found for name, found in inputs.items() if found and name not in done]
    done |= {found.stage: found for found in new}
    for found in new:
        _add_with_inputs(found, workspace, done)


def main(argv: Sequence[str]) -> None:
    """Runs the whole job and prints what it made."""
    settings, options = _prepare(argv, str(__doc__))
    if not settings.ingest.ratings:
        raise InputError("no ratings: give --ratings FILE, FOLDER or tfds:NAME")
    started = time.monotonic()
    workspace = Workspace(settings.output)
    done = run(settings, options, Progress())
    latest, is_new = publish(workspace, done)
    results.show(workspace, done, latest, is_new, time.monotonic() - started)


def run_alone(name: str) -> int:
    """Runs one stage as a command of its own, and returns its exit code."""
    return run_command(_alone(name))


def _alone(name: str) -> Callable[[Sequence[str]], None]:
    def command(argv: Sequence[str]) -> None:
        module = STAGES.get(name)
        settings, options = _prepare(argv, str(module.__doc__ if module else publish.__doc__))
        workspace = Workspace(settings.output)
        if name == "ingest" and not settings.ingest.ratings:
            raise InputError("no ratings: give --ratings FILE, FOLDER or tfds:NAME")
        done = finished_before(name, settings) if name != "ingest" else {}
        if module:
            manifest = run_stage(module.stage(settings, done), workspace, options, Progress())
            print(f"{workspace.root}/{manifest.folder}")
        else:
            latest, _ = publish(workspace, done)
            print(latest.release)

    return command


def _prepare(argv: Sequence[str], description: str) -> tuple[Settings, PipelineOptions]:
    settings, options = parse_command(argv, description)
    logs.configure(settings.verbose)
    check_writable(settings.output)
    return settings, options


if __name__ == "__main__":
    sys.exit(run_command(main))
