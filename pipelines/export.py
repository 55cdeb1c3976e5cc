"""Writes the model and the index of the newest table as one SavedModel, which takes ids and answers with lists."""

import sys
from collections.abc import Sequence

from pipelines.cli.command import run_command
from pipelines.engine.lease import LeaseHolder
from pipelines.engine.progress import Progress
from pipelines.engine.stage import run_stage
from pipelines.job.chains import chains
from pipelines.job.finished import finished_before, keep_finished
from pipelines.job.prepare import prepare
from pipelines.stages.export import plan
from schemas.storage import join
from schemas.workspace import Workspace
from transforms.serving.export import MODEL


def main(argv: Sequence[str]) -> None:
    """Exports the newest table's model, or that of the run with these flags where --ratings is among them."""
    job, options = prepare(argv, str(__doc__))
    workspace = Workspace(job.settings.output)
    with LeaseHolder(workspace, "export") as lease:
        made = finished_before("judge", job, "export")
        keep_finished(workspace, made, lease)
        *_, chain = chains(job, made)
        manifest = run_stage(plan(chain), workspace, options, Progress(), lease)
    print(join(workspace.root, manifest.folder, MODEL))


if __name__ == "__main__":
    sys.exit(run_command(main))
