"""The workspace: where everything lies below the output root.

LATEST                                    the pointer to the release that is served, written last
forgotten.json                            the users and items that every run leaves out
releases/<release>/manifest.json          what the release is made of
releases/<release>/report.html            the same as a page, with charts
releases/<release>/curves.svg             how its training went
stages/<stage>-<fingerprint>/
    manifest.json                         written last: the stage is finished, and which attempt did it
    attempt-<id>/…                        one attempt's files; attempts never share a folder
    checkpoints/…                         (train) where a retried training goes on
    trials.svg                            (sweep, tune) its table as a chart
leases/<id>.json                          which folders a running command uses
withdrawn/<release>.json                  that a release was rolled back, and why
trials/<fingerprint>.json                 (sweep) what one trial found, whichever sweep asked for it
"""

import uuid
from dataclasses import dataclass

from schemas.errors import InputError
from schemas.manifest import StageManifest, read_manifest
from schemas.names import NAME
from schemas.stage_files import CURVES_CHART, TRIALS_CHART
from schemas.storage import join, list_files


def stage_folder_of(attempt: str) -> str:
    """Returns the folder of the stage that the folder of an attempt lies in, whatever the root."""
    return attempt.rpartition("/")[0]


@dataclass(frozen=True)
class Workspace:
    """The paths of one output root, which may be a local folder or a URI."""

    root: str

    @property
    def latest(self) -> str:
        return join(self.root, "LATEST")

    @property
    def forgotten(self) -> str:
        return join(self.root, "forgotten.json")

    def release(self, release: str) -> str:
        """Returns a release's folder, relative to the root."""
        return f"releases/{release}"

    def release_manifest(self, release: str) -> str:
        """Returns a release's manifest, relative to the root."""
        return f"{self.release(release)}/manifest.json"

    def release_report(self, release: str) -> str:
        """Returns a release's report, relative to the root."""
        return f"{self.release(release)}/report.html"

    def release_curves(self, release: str) -> str:
        """Returns the chart of a release's training, relative to the root."""
        return f"{self.release(release)}/{CURVES_CHART}"

    def stage(self, name: str, fingerprint: str) -> str:
        """Returns a stage's folder, relative to the root."""
        return f"stages/{name}-{fingerprint}"

    def trials_chart(self, name: str, fingerprint: str) -> str:
        """Returns the chart of a stage that tries things, relative to the root; the command draws it at the end."""
        return f"{self.stage(name, fingerprint)}/{TRIALS_CHART}"

    def relative(self, path: str) -> str:
        """Returns a path below the root, relative to it."""
        return path[len(join(self.root, "x")) - 1 :]

    @staticmethod
    def stage_of(path: str) -> str:
        """Returns the folder of the stage that a path, relative to the root, lies in."""
        return "/".join(path.split("/")[:2])

    @staticmethod
    def attempt_of(path: str) -> str:
        """Returns the folder of the attempt at a stage that a path, relative to the root, lies in."""
        return "/".join(path.split("/")[:3])

    @staticmethod
    def checkpoints_beside(attempt: str) -> str:
        """Returns where the attempts at a stage keep checkpoints, given the folder of one, root included."""
        return f"{stage_folder_of(attempt)}/checkpoints"

    def release_of(self, path: str) -> str:
        """Returns the name of the release whose manifest, or whose withdrawal, lies at a path, root included."""
        return self.relative(path).split("/")[1].removesuffix(".json")

    def manifest(self, name: str, fingerprint: str) -> str:
        return join(self.root, self.stage(name, fingerprint), "manifest.json")

    def new_attempt(self, name: str, fingerprint: str) -> str:
        """Returns a folder, relative to the root, that no other attempt uses."""
        return f"{self.stage(name, fingerprint)}/attempt-{uuid.uuid4().hex[:12]}"

    @staticmethod
    def lease(lease: str) -> str:
        """Returns where a lease is written, relative to the root."""
        return f"leases/{lease}.json"

    @staticmethod
    def withdrawal(release: str) -> str:
        """Returns where it is kept that a release was rolled back, relative to the root."""
        return f"withdrawn/{release}.json"

    @staticmethod
    def trial(fingerprint: str) -> str:
        """Returns where a trial's result is kept, relative to the root."""
        return f"trials/{fingerprint}.json"

    def read(self, name: str, fingerprint: str) -> StageManifest | None:
        """Returns a stage's manifest, or None where it is not finished.

        Raises:
          InputError: if its fingerprint is none, or its manifest cannot be used.
        """
        if not NAME.matches(fingerprint):
            raise InputError(
                f"the fingerprint of {name} must be {NAME.what}, got {fingerprint!r}: run python -m pipelines.run again"
            )
        return read_manifest(self.manifest(name, fingerprint))

    def finished(self, name: str) -> list[StageManifest]:
        """Returns the finished runs of a stage, oldest first."""
        found = [read_manifest(file.path) for file in list_files(join(self.root, "stages", f"{name}-*", "manifest.json"))]
        return sorted((manifest for manifest in found if manifest), key=lambda manifest: manifest.finished_at)
