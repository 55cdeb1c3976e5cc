"""Finds the finished stages that a command builds on."""

from pipelines.cli.settings import Settings
from pipelines.engine.lease import LeaseHolder
from pipelines.engine.stage import Kept, ManifestsByName, Stage
from pipelines.job.chains import COMMANDS, STAGES, chains, judges, no_stages_yet
from pipelines.job.prepare import Job
from pipelines.job.publishing import READERS, JobStages
from pipelines.stages import ingest, lists
from schemas.errors import InputError
from schemas.manifest import StageManifest
from schemas.workspace import Workspace


def finished_before(name: str, job: Job, asker: str = "") -> JobStages:
    """Returns the finished stages that the stage `name` builds on; `asker` is who builds on them, if not that stage.

    With --ratings they are those of exactly these settings, so that a scheduler can give every task the same flags. Without,
    they are those that led to the newest finished stage before it.

    Raises:
      InputError: if one is not finished, or others are to be forgotten now than when the sources were read.
    """
    settings, workspace = job.settings, Workspace(job.settings.output)
    before = COMMANDS[: COMMANDS.index(name)]
    asker = asker or name
    if settings.ingest.ratings:
        made = no_stages_yet(job)
        for chain in chains(job, made):
            for each in before:
                if each in STAGES:
                    chain.done[each] = _finished(workspace, STAGES[each].plan(chain), asker)
        for done, stage in judges(job, made) if "judge" in before else ():
            done["judge"] = _finished(workspace, stage, asker)
        return made
    if settings.refit or job.base:
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
        return JobStages(published, published)
    judged = workspace.read("judge", evaluated)
    if judged is None:
        raise InputError(
            f"the evaluation that belongs to the newest table is gone (judge {evaluated}): run python -m pipelines.run again"
        )
    return JobStages(_with_inputs(judged, workspace), published)


def _newest_lists(workspace: Workspace, settings: Settings, done: ManifestsByName) -> StageManifest:
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


def keep_finished(workspace: Workspace, made: JobStages, lease: LeaseHolder) -> None:
    """Adds finished stages to the lease, so that `gc` does not delete them.

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


def _finished(workspace: Workspace, stage: Stage | Kept, name: str) -> StageManifest:
    if isinstance(stage, Kept):
        return stage.manifest
    manifest = workspace.read(stage.name, stage.fingerprint)
    if manifest is None:
        raise InputError(
            f"{name} needs {stage.name}, which is not done for these settings: "
            f"run python -m pipelines.{stage.name} with the same flags"
        )
    return manifest


def _with_inputs(manifest: StageManifest, workspace: Workspace) -> ManifestsByName:
    """Returns a stage and all that led to it, in order."""
    done: ManifestsByName = {}
    _add_with_inputs(manifest, workspace, done)
    return {each: done[each] for each in COMMANDS if each in done}


def _add_with_inputs(manifest: StageManifest, workspace: Workspace, done: ManifestsByName) -> None:
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
