"""What a stage hands on is typed, and checked as it is read."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from pipelines.engine.outputs import Outputs
from pipelines.stages.outputs import CalibrateOutputs, IndexOutputs, IngestOutputs, TrainOutputs
from schemas.errors import InputError
from schemas.manifest import StageManifest
from transforms.search.search import SearchSettings
from transforms.train.recency import Blend

FOUND = {"search": asdict(SearchSettings(7, 2.0)), "calibration": {"recall": 0.97}}


def told(outputs: dict[str, Any], metrics: dict[str, Any]) -> StageManifest:
    return StageManifest("calibrate", "f1", "stages/calibrate-f1/attempt-0", "d", {}, {}, [], [], metrics, {}, "", "", outputs)


def test_some_metrics_are_handed_on_as_they_were_meant() -> None:
    outputs = CalibrateOutputs.among(FOUND)
    assert outputs.keys() == {"search"}
    assert CalibrateOutputs.of(told(outputs, {})) == CalibrateOutputs(search=SearchSettings(7, 2.0))


def test_manifests_of_earlier_programs_have_them_among_their_metrics() -> None:
    assert CalibrateOutputs.of(told({}, FOUND)) == CalibrateOutputs.of(told(CalibrateOutputs.among(FOUND), {}))


def test_what_may_be_missing_has_a_value_all_the_same() -> None:
    manifest = told({"dim": 65, "epochs": 4, "recency": asdict(Blend(0.5, 1.0, 7.0))}, {})
    assert TrainOutputs.of(manifest) == TrainOutputs(65, 4, Blend(0.5, 1.0, 7.0), (), {})
    with_features = replace(manifest, outputs={**manifest.outputs, "feature_columns": ["genres"]})
    assert TrainOutputs.of(with_features).feature_columns == ("genres",)
    with_settings = replace(manifest, outputs={**manifest.outputs, "settings": {"dim": 64, "l2": 0.12}})
    assert TrainOutputs.of(with_settings).settings == {"dim": 64, "l2": 0.12}
    assert IngestOutputs.of(told({"num_buckets": 2, "newest_timestamp": None}, {})).newest_timestamp is None


@pytest.mark.parametrize(
    ("kind", "outputs", "message"),
    [
        (IndexOutputs, {"num_shards": 0}, "num_shards must be a whole number, 1 or more, got 0"),
        (CalibrateOutputs, {"other": 2}, "search is missing"),
        (CalibrateOutputs, {"search": {"leaves": 3}}, "leaves"),
    ],
)
def test_what_is_no_output_is_named_with_the_folder_to_delete(
    kind: type[Outputs], outputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"^calibrate f1 does not say .*{message}.*: delete stages/calibrate-f1 and run"):
        kind.of(told(outputs, {}))
