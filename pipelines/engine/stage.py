"""Runs one stage: skips it when it is done, gives it a folder of its own, and writes its manifest when all else is there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.cli.settings import Settings
from pipelines.engine.fingerprint import code_version, package_versions, versions
from pipelines.engine.lease import LeaseHolder, time_in
from pipelines.engine.outputs import Outputs
from pipelines.engine.progress import Progress, follow
from schemas.manifest import StageManifest, check_complete, digest_of, fingerprint_of, write_manifest
from schemas.release_manifest import Release
from schemas.stage_files import SUMMARY, TENSORBOARD
from schemas.storage import WrittenFile, delete, delete_folder, join, list_files, read_json
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.io.write import WriteSummary

PROVED_AS_LOADED = ("user_tower", "item_tower", "shards")
"""Datasets that a worker hashes as it loads them. All else that a stage reads is hashed before the stage begins."""

Reports = Sequence[beam.PCollection]
"""What a stage's `build` returns: collections of WrittenFile and of dicts of metrics."""


StageJob = TypeVar("StageJob")
"""What a stage works on: a frozen dataclass, each stage's own."""

ManifestsByName = dict[str, StageManifest]


@dataclass(frozen=True)
class Chain:
    """Stages that build on each other, up to a table.

    Attributes:
      settings: what was asked for.
      done: those that are finished, by name; each that is made is added.
      base: the release whose model is kept, if one is.
      last: the release that is served, if there is one.
    """

    settings: Settings
    done: ManifestsByName = field(default_factory=dict)
    base: Release | None = None
    last: Release | None = None


@dataclass(frozen=True)
class Kept:
    """A stage that is not made, but kept from a release."""

    manifest: StageManifest
    release: str


@dataclass(frozen=True)
class StageDefinition:
    """A kind of stage.

    Attributes:
      name: 'ingest', 'train', and so on.
      module: the one whose code, with what it imports, is part of the fingerprint.
      plan: given a chain with all that the stage needs, says what is to be made, or what is kept instead.
      build: adds the stage's steps to a pipeline, given the folder to write to and the job.
      outputs: what of its metrics later stages go by.
    """

    name: str
    module: str
    plan: "Callable[..., Stage | Kept]"
    build: "Callable[[beam.Pipeline, str, Any], Reports]"
    outputs: type[Outputs] = Outputs


@dataclass(frozen=True)
class Stage(Generic[StageJob]):
    """Everything that decides what a stage makes.

    Attributes:
      definition: which stage it is.
      settings: what the stage was told, as JSON; only what changes its result.
      inputs: the finished stages that it reads.
      reads: which datasets of each of them, where not all: what a stage does not read cannot make it run again.
      sources: the files from outside that it reads.
      job: what it works on.
      prove: called before the stage begins; raises InputError if what it reads beside its inputs is not as it was written.
      check: given the metrics and the attempt's folder when the pipeline is done, raises InputError if they will not do.
    """

    definition: StageDefinition
    settings: Mapping[str, Any]
    inputs: Mapping[str, StageManifest]
    job: StageJob
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sources: Sequence[Mapping[str, Any]] = ()
    prove: Callable[[], None] = field(default=lambda: None)
    check: Callable[[Mapping[str, Any], str], None] = field(default=lambda metrics, folder: None)

    @property
    def name(self) -> str:
        """'ingest', 'train', and so on."""
        return self.definition.name

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what decides the result: name, code, packages, settings, what is read of inputs, sources."""
        return fingerprint_of(
            {
                "stage": self.name,
                "code": code_version(self.definition.module),
                "packages": package_versions(self.definition.module),
                "settings": self.settings,
                "inputs": {name: facts["digest"] for name, facts in self.lineage.items()},
                "sources": list(self.sources),
            }
        )

    @property
    def lineage(self) -> dict[str, dict[str, Any]]:
        """What was read of each input: the input's fingerprint, the datasets, and the digest of their contents."""
        return {
            name: {
                "fingerprint": manifest.fingerprint,
                "datasets": list(self.reads.get(name, [])),
                "digest": manifest.digest_of_datasets(self.reads.get(name, [])),
            }
            for name, manifest in self.inputs.items()
        }


def run_stage(
    stage: Stage | Kept, workspace: Workspace, options: PipelineOptions, progress: Progress, lease: LeaseHolder | None = None
) -> StageManifest:
    """Runs a stage, unless it is done and its files are there, and returns its manifest. Either way its metrics are checked.

    Of one that is kept from a release, the manifest is there.

    An attempt writes to a folder that no other attempt knows. The manifest says which attempt is the stage's; where two
    runs race, the first manifest stays and the later run takes it over.
    """
    if isinstance(stage, Kept):
        progress.skipped(stage.manifest.stage, f"kept from release {stage.release}")
        return stage.manifest
    fingerprint = stage.fingerprint
    if lease:
        lease.use([workspace.stage(stage.name, fingerprint)])
    done = workspace.read(stage.name, fingerprint)
    if done:
        check_complete(workspace.root, done)
        stage.check(done.metrics, join(workspace.root, done.folder))
        progress.skipped(stage.name, summary_of(done))
        return done
    folder = workspace.new_attempt(stage.name, fingerprint)
    started_at = now()
    with progress.running(stage.name):
        for name, datasets in stage.reads.items():
            check_complete(workspace.root, stage.inputs[name], [each for each in datasets if each not in PROVED_AS_LOADED])
        stage.prove()
        summary = run_pipeline(stage, join(workspace.root, folder), options)
        stage.check(summary["metrics"], join(workspace.root, folder))
    files = [WrittenFile(**file) for file in summary["files"]]
    delete_unlisted(join(workspace.root, folder), files)
    manifest = StageManifest(
        stage=stage.name,
        fingerprint=fingerprint,
        folder=folder,
        digest=digest_of(files),
        settings=stage.settings,
        inputs=stage.lineage,
        sources=stage.sources,
        files=files,
        metrics=summary["metrics"],
        outputs=stage.definition.outputs.among(summary["metrics"]),
        versions=versions(),
        started_at=started_at,
        finished_at=now(),
    )
    other = workspace.read(stage.name, fingerprint)
    if other:
        delete_folder(join(workspace.root, folder))
        return other
    write_manifest(workspace.manifest(stage.name, fingerprint), manifest)
    return workspace.read(stage.name, fingerprint) or manifest


def delete_unlisted(attempt: str, files: Sequence[WrittenFile]) -> None:
    """Deletes what an attempt's folder holds beside its files, its summary and TensorBoard's logs.

    A bundle that was tried again may have left a file under a name that the second try did not write: who reads the whole
    folder would find its rows twice.
    """
    listed = {join(attempt, file.path) for file in files} | {join(attempt, SUMMARY)}
    logs = join(attempt, TENSORBOARD, "")
    for found in list_files(join(attempt, "**")):
        if found.path not in listed and not found.path.startswith(logs):
            delete(found.path)


def run_pipeline(stage: Stage, attempt: str, options: PipelineOptions) -> Mapping[str, Any]:
    """Runs a stage's pipeline to its end, and returns what its workers reported: {'files': […], 'metrics': {…}}."""
    pipeline = beam.Pipeline(options=options)
    reports = stage.definition.build(pipeline, attempt, stage.job)
    _ = reports | "GatherReports" >> beam.Flatten() | "WriteSummary" >> WriteSummary(attempt)
    follow(pipeline.run())
    return read_json(join(attempt, SUMMARY))


def summary_of(manifest: StageManifest) -> str:
    """Returns a few words on what a stage made."""
    size = sum(file.bytes for file in manifest.files)
    return f"{counted(len(manifest.files), 'file')}, {size / 1e6:.1f} MB, {manifest.finished_at}"


def now() -> str:
    """Returns the time: UTC, ISO 8601, to the millisecond."""
    return time_in(0)
