"""The train stage: what it takes over from ingest."""

import pytest

from pipelines.cli.config import parse_command
from pipelines.engine.stage import Chain, Stage
from pipelines.stages import train
from schemas.manifest import StageManifest


@pytest.mark.parametrize(
    ("split", "validation"), [("random", "random"), ("temporal", "temporal"), ("last", "last"), ("none", "temporal")]
)
def test_validation_is_like_the_holdout_whatever_the_flags_of_this_command(split: str, validation: str) -> None:
    settings, _ = parse_command(["--output=out", "--split=random", "--recency_half_life_days=9"], "")
    ingested = StageManifest(
        stage="ingest",
        fingerprint="0",
        folder="stages/ingest-0",
        digest="0",
        settings={"split": {"split": split}, "recency_half_life_days": 3.0},
        inputs={},
        sources=[],
        files=[],
        metrics={},
        versions={},
        started_at="",
        finished_at="",
    )
    training = train.training_of(settings, ingested)
    assert (training.validation, training.half_life_days) == (validation, 3.0)
    stage = train.plan(Chain(settings, {"ingest": ingested}))
    assert isinstance(stage, Stage)
    assert stage.settings["validation"] == validation
