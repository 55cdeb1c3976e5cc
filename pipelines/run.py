"""Runs the whole job: `python -m pipelines.run --ratings URI --items URI --output DIR`.

Ratings in, the top-k of every user out: ingest, lists, train, embed, index, recommend, judge, publish. A stage that is done is
skipped. With --refit, the stages up to recommend run twice: see `pipelines.refit`; with --export_saved_model, the published
table's model and index become one SavedModel too.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import embed, export, index, ingest, judge, lists, logs, recommend, results, train
from pipelines.check import check_job
from pipelines.command import Output, run_command, verdict_on
from pipelines.judge import last_table
from pipelines.lease import LEFT_SECS, Held
from pipelines.logs import LOGGER
from pipelines.progress import Progress
from pipelines.publish import READERS, AnotherPublished, Done, Made, Outcome, publish
from pipelines.refit import check_same_sources, settings_of_refit
from pipelines.reuse import kept_model, with_base
from pipelines.settings import Settings, parse_command
from pipelines.stage import Stage, run_stage
from schemas.errors import GatesFailed, InputError
from schemas.manifest import StageManifest
from schemas.release import read_latest, read_release
from schemas.storage import check_writable
from schemas.workspace import Workspace

STAGES: Mapping[str, ModuleType] = {
    "ingest": ingest,
    "lists": lists,
    "train": train,
    "embed": embed,
    "index": index,
    "recommend": recommend,
}
"""The stages that make a table, in order; each module's `stage(settings, done)` says what it needs and how to build it."""

COMMANDS = (*STAGES, "judge", "publish")


def nothing_made(settings: Settings) -> Made:
    """Returns a job that has not begun: two chains of stages to fill, or one that is both."""
    evaluated: Done = {}
    return Made(evaluated, {} if settings.refit else evaluated, settings.base)


def chains(settings: Settings, made: Made) -> Iterator[tuple[Settings, Done]]:
    """Yields each chain with its settings; the second only exists with --refit, and needs what the first one found.

    Where a model is kept that was refitted, it has been evaluated, and the second is all there is.
    """
    if not (settings.base and settings.refit):
        yield settings, made.evaluated
    if settings.refit:
        yield settings_of_refit(settings, made.evaluated), made.published


def judges(settings: Settings, made: Made) -> Iterator[tuple[Done, Stage]]:
    """Yields each chain and what judges its table; only the one to be published is compared with the last release's."""
    if made.evaluated and made.refitted:
        yield made.evaluated, judge.stage(settings, made.evaluated, None)
    last = last_table(Workspace(settings.output), made.published["recommend"])
    evaluated = made.evaluated["judge"] if made.evaluated and made.refitted else None
    yield made.published, judge.stage(settings, made.published, last, evaluated)


def run_stages(
    names: Sequence[str], settings: Settings, made: Made, options: PipelineOptions, lease: Held | None = None
) -> None:
    """Runs stages of the chains that are not done, and adds their manifests; the lease keeps what they have made."""
    workspace, progress = Workspace(settings.output), Progress()
    for ask, done in chains(settings, made):
        if made.evaluated and done is not made.evaluated:
            LOGGER.info("refit: the same again, the holdout included")
        for name in names:
            if name == "train" and ask.base:
                done[name] = kept_model(settings, ask.base, done["ingest"])
                progress.skipped(name, f"kept from release {ask.base.release}")
                continue
            stage = STAGES[name].stage(ask, done)
            if name == "ingest":
                lists.resolve_lists(ask.lists)  # Nobody should hear that a list is not there once the ratings have been read.
            done[name] = run_stage(stage, workspace, options, progress, lease)
            if name in READERS and done is not made.evaluated and name in made.evaluated:
                check_same_sources(made.evaluated[name], done[name])


def run_judges(settings: Settings, made: Made, options: PipelineOptions, lease: Held | None = None) -> None:
    """Judges the finished tables, and adds the manifests of that; the lease keeps the table that they are compared with."""
    workspace = Workspace(settings.output)
    last = last_table(workspace, made.published["recommend"])
    if lease and last:
        lease.use(dict.fromkeys(map(workspace.stage_of, last.topk)))
    for done, stage in judges(settings, made):
        done["judge"] = run_stage(stage, workspace, options, Progress(), lease)


def run(settings: Settings, options: PipelineOptions, lease: Held | None = None) -> Made:
    """Runs every stage that is not done, and returns all their manifests; with a lease, nobody deletes them meanwhile."""
    workspace = Workspace(settings.output)
    latest = read_latest(workspace)
    if latest:
        read_release(workspace, latest)  # What is published must be understood before anything can be put in its place.
    made = nothing_made(settings)
    if settings.base and lease:
        keep_finished(workspace, Made({}, dict(settings.base.stages)), lease)
    run_stages(list(STAGES), settings, made, options, lease)
    run_judges(settings, made, options, lease)
    if settings.export_saved_model:
        *_, (ask, done) = chains(settings, made)
        done["export"] = run_stage(export.stage(ask, done), workspace, options, Progress(), lease)
    return made


def publish_when_judged(settings: Settings, made: Made, options: PipelineOptions, lease: Held | None = None) -> Outcome:
    """Publishes a table; where another run has published in the meantime, the table is first compared with that one."""
    while True:
        try:
            return publish(Workspace(settings.output), made, settings.gates, settings.job, lease)
        except AnotherPublished:
            run_judges(settings, made, options, lease)


def finished_before(name: str, settings: Settings, asker: str = "") -> Made:
    """Returns the finished stages that the stage `name` builds on; `asker` is who builds on them, if not that stage.

    With --ratings they are those of exactly these settings, so that a scheduler can give every task the same flags. Without,
    they are those that led to the newest finished stage before it.

    Raises:
      InputError: if one is not finished, or others are to be forgotten now than when the sources were read.
    """
    workspace = Workspace(settings.output)
    before = COMMANDS[: COMMANDS.index(name)]
    asker = asker or name
    if settings.ingest.ratings:
        made = nothing_made(settings)
        for ask, done in chains(settings, made):
            for each in before:
                if each == "train" and ask.base:
                    done[each] = kept_model(settings, ask.base, done["ingest"])
                elif each in STAGES:
                    done[each] = _finished(workspace, STAGES[each].stage(ask, done), asker)
        for done, stage in judges(settings, made) if "judge" in before else ():
            done["judge"] = _finished(workspace, stage, asker)
        return made
    if settings.refit or settings.base:
        flag = "--refit" if settings.refit else "--reuse_model_from"
        raise InputError(f"to {asker} with {flag}, all stages must be known: give --ratings and all other flags again")
    # What does not read the lists does not wait for them; what does may find them made before or after the index.
    last = next(each for each in reversed(before) if each != "lists")
    newest = workspace.finished(last)
    if not newest:
        raise InputError(f"{asker} needs {last}, which is not done below {workspace.root}: run python -m pipelines.{last}")
    published = _with_inputs(newest[-1], workspace)
    if name == "recommend":
        published["lists"] = _newest_lists(workspace, settings, published)
    for reader in READERS:
        if reader in published:
            ingest.check_forgotten(workspace.root, published[reader])
    evaluated = newest[-1].settings["evaluated"] if name == "publish" else None
    if evaluated is None:
        return Made(published, published)
    judged = workspace.read("judge", evaluated)
    if judged is None:
        raise InputError(
            f"the evaluation that belongs to the newest table is gone (judge {evaluated}): run python -m pipelines.run again"
        )
    return Made(_with_inputs(judged, workspace), published)


def _newest_lists(workspace: Workspace, settings: Settings, done: Done) -> StageManifest:
    """Returns the newest lists for what ingest has read; where flags name lists, those."""
    named = [source.description() for source in lists.resolve_lists(settings.lists).given.values()]
    for found in reversed(workspace.finished("lists")):
        facts = found.inputs["ingest"]
        of_ingest = done["ingest"].digest_of_datasets(facts["datasets"]) == facts["digest"]
        if of_ingest and (not named or named == list(found.sources)):
            return found
    raise InputError(
        f"recommend needs lists, which is not done for the newest ingest{' and the lists that are named' if named else ''}: "
        "run python -m pipelines.lists with the same flags"
    )


def keep_finished(workspace: Workspace, made: Made, lease: Held) -> None:
    """Takes finished stages into use, so that nobody deletes them.

    Raises:
      InputError: if one has just been deleted.
    """
    stages = [*made.evaluated.values(), *made.published.values()]
    lease.use(dict.fromkeys(workspace.stage(each.stage, each.fingerprint) for each in stages))
    for each in stages:
        if workspace.read(each.stage, each.fingerprint) is None:
            raise InputError(
                f"{workspace.stage(each.stage, each.fingerprint)} has been deleted since this command began: "
                f"run python -m pipelines.{each.stage} again"
            )


def _finished(workspace: Workspace, stage: Stage, name: str) -> StageManifest:
    manifest = workspace.read(stage.name, stage.fingerprint)
    if manifest is None:
        raise InputError(
            f"{name} needs {stage.name}, which is not done for these settings: "
            f"run python -m pipelines.{stage.name} with the same flags"
        )
    return manifest


def _with_inputs(manifest: StageManifest, workspace: Workspace) -> Done:
    """Returns a stage and all that led to it, in order."""
    done: Done = {}
    _add_with_inputs(manifest, workspace, done)
    return {each: done[each] for each in COMMANDS if each in done}


def _add_with_inputs(manifest: StageManifest, workspace: Workspace, done: Done) -> None:
    """Adds a stage and all that led to it; what does not belong together is refused."""
    done[manifest.stage] = manifest
    inputs = {name: done.get(name) or workspace.read(name, facts["fingerprint"]) for name, facts in manifest.inputs.items()}
    for name, found in inputs.items():
        facts = manifest.inputs[name]
        if found is None or found.digest_of_datasets(facts["datasets"]) != facts["digest"]:
            raise InputError(
                f"{manifest.stage} {manifest.fingerprint} was made from another {name} than there is now: run python -m "
                f"pipelines.{manifest.stage} again, or, where a model was kept, give --ratings and all other flags again"
            )
    # Direct inputs come before those of inputs: a stage may be older than a stage before it, where that made the same again.
    new = [found for name, found in inputs.items() if found and name not in done]
    done |= {found.stage: found for found in new}
    for found in new:
        _add_with_inputs(found, workspace, done)


def main(argv: Sequence[str]) -> None:
    """Runs the whole job and prints what it made.

    Raises:
      GatesFailed: if the table must not be published.
    """
    settings, options = _prepare(argv, str(__doc__))
    started = time.monotonic()
    if settings.check:
        with _telling_programs(settings):
            _check_ratings(settings)
            check_job(settings, options)
        return

    def make() -> tuple[Made, Outcome]:
        _check_ratings(settings)
        with Held(Workspace(settings.output), "run") as lease:
            made = run(settings, options, lease)
            return made, publish_when_judged(settings, made, options, lease)

    _make_and_tell(settings, started, make)


def _check_ratings(settings: Settings) -> None:
    if not settings.ingest.ratings:
        raise InputError("no ratings: give --ratings FILE, FOLDER or tfds:NAME")


@contextmanager
def _telling_programs(settings: Settings) -> Iterator[None]:
    """Prints, with --json, what went wrong."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if settings.json:
            code, messages = verdict_on(error)
            print(json.dumps({"exit_status": code, "error": " ".join(messages)}), flush=True)
        raise


def _make_and_tell(settings: Settings, started: float, make: Callable[[], tuple[Made, Outcome]]) -> None:
    """Publishes and prints the results: for people, and with --json for programs, whatever happens."""
    with _telling_programs(settings):
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


def run_alone(name: str) -> int:
    """Runs one stage as a command of its own, and returns its exit code."""
    return run_command(_alone(name))


def _alone(name: str) -> Callable[[Sequence[str]], None]:
    def command(argv: Sequence[str]) -> None:
        module = judge if name == "judge" else STAGES.get(name, sys.modules[publish.__module__])
        settings, options = _prepare(argv, str(module.__doc__))
        started = time.monotonic()
        if name == "publish":
            _make_and_tell(settings, started, lambda: _publish(settings))
            return
        if name == "ingest":
            _check_ratings(settings)
        workspace = Workspace(settings.output)
        with Held(workspace, name, LEFT_SECS) as lease:
            made = finished_before(name, settings) if name != "ingest" else nothing_made(settings)
            keep_finished(workspace, made, lease)
            if name == "judge":
                run_judges(settings, made, options, lease)
            else:
                run_stages([name], settings, made, options, lease)
        print(f"{settings.output}/{made.published[name].folder}")

    return command


def _publish(settings: Settings) -> tuple[Made, Outcome]:
    workspace = Workspace(settings.output)
    with Held(workspace, "publish") as lease:
        made = finished_before("publish", settings)
        keep_finished(workspace, made, lease)
        return made, publish(workspace, made, settings.gates, settings.job, lease)


def _prepare(argv: Sequence[str], description: str) -> tuple[Settings, PipelineOptions]:
    settings, options = parse_command(argv, description)
    logs.configure(settings.verbose)
    check_writable(settings.output)
    return with_base(settings), options


if __name__ == "__main__":
    sys.exit(run_command(main))
