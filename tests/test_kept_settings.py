"""The settings that a training chose, kept the night after: when they hold, when not, and the whole job of two nights."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import run
from pipelines.cli.command import OK, run_command
from pipelines.cli.config import parse_command
from pipelines.engine.stage import Chain, Stage
from pipelines.job.refit import settings_of_refit
from pipelines.stages import train
from pipelines.stages.kept_settings import MOST_GROWTH, with_kept_settings
from pipelines.stages.outputs import TrainOutputs
from schemas.manifest import StageManifest, as_json
from schemas.release import read_latest, read_release
from schemas.release_manifest import Release
from schemas.storage import WrittenFile
from schemas.workspace import Workspace
from tests.made_data import ratings, write_csv, write_items
from transforms.train.recency import PLAIN, Blend
from transforms.train.settings import TrainingSettings

ASKED = TrainingSettings(learning_rate=0.02)
CHOSEN = {"dim": 128, "l2": 0.3}
BLEND = Blend(0.75, 1.0, 3.5)
ROWS = 1_000


def manifest_of(stage: str, **facts: Any) -> StageManifest:
    made: dict[str, Any] = {
        "fingerprint": "0",
        "folder": f"stages/{stage}-0",
        "digest": "0",
        "settings": {},
        "inputs": {},
        "sources": [],
        "files": [],
        "metrics": {},
        "versions": {},
        "started_at": "",
        "finished_at": "",
    }
    return StageManifest(stage=stage, **(made | facts))


def ingested_of(num_rows: int = ROWS, digest: str = "1") -> StageManifest:
    """Returns what is read on a night: training rows in two files, and some that are held out."""
    files = [("interactions/holdout/a", 7), ("interactions/train/a", num_rows - 3), ("interactions/train/b", 3)]
    return manifest_of("ingest", digest=digest, files=[WrittenFile(path, rows, 1, f"{digest}{path}") for path, rows in files])


def trained_of(training: TrainingSettings, data: str, num_rows: int = ROWS, **outputs: Any) -> StageManifest:
    """Returns what a training leaves; it chose what was left open."""
    chosen = {name: value if getattr(training, name) is None else getattr(training, name) for name, value in CHOSEN.items()}
    found = {"dim": chosen["dim"] + 1, "epochs": 6, "recency": asdict(training.blend or BLEND), "settings": chosen} | outputs
    return manifest_of(
        "train",
        settings=as_json(asdict(training)),
        inputs={"ingest": {"digest": data}},
        metrics={"train_rows": num_rows},
        outputs=found,
    )


class Served:
    """A release, as far as it is looked at."""

    def __init__(self, trained: StageManifest | None, evaluated: StageManifest | None = None) -> None:
        self.stages = {"train": trained} if trained else {}
        self.evaluated = type("Evaluated", (), {"stages": {"train": evaluated}})() if evaluated else None


def release_of(trained: StageManifest | None, evaluated: StageManifest | None = None) -> Release:
    return Served(trained, evaluated)  # type: ignore[return-value]


FIRST_NIGHT = release_of(trained_of(ASKED, "monday"))


def kept(
    asked: TrainingSettings = ASKED, data: str = "tuesday", num_rows: int = ROWS, last: Release | None = FIRST_NIGHT
) -> bool:
    """Tells whether the settings of the last release are kept; they are all, or none."""
    found = with_kept_settings(asked, ingested_of(num_rows), data, last)
    if found == asked:
        return False
    assert found.chosen_by is not None
    assert found == replace(asked, dim=128, l2=0.3, blend=BLEND, chosen_by=found.chosen_by)
    return True


def test_other_ratings_are_trained_on_with_the_settings_that_were_chosen() -> None:
    assert kept()
    found = with_kept_settings(ASKED, ingested_of(), "tuesday", FIRST_NIGHT)
    assert (found.dim, found.l2, found.blend) == (128, 0.3, BLEND)
    assert not found.leaves_open
    assert found.chosen_by is not None
    assert (found.chosen_by.data, found.chosen_by.rows) == ("monday", ROWS)


def test_the_very_ratings_that_were_chosen_by_find_the_training_that_did() -> None:
    assert not kept(data="monday")


def test_without_a_release_all_is_chosen() -> None:
    assert not kept(last=None)
    assert not kept(last=release_of(None))


@pytest.mark.parametrize(
    "change",
    [
        {"user_tower": "history"},
        {"learning_rate": 0.01},
        {"dim": 32},
        {"l2": 0.1},
        {"recency": "off"},
        {"epochs": 3},
        {"seed": 1},
        {"validation": "temporal"},
        {"validation_fraction": 0.2},
        {"half_life_days": 3.0},
        {"batch_size": 64},
        {"mixed_negatives": 5},
    ],
)
def test_who_asks_for_something_else_has_it_chosen_anew(change: dict[str, Any]) -> None:
    assert not kept(replace(ASKED, **change))


@pytest.mark.parametrize(
    ("num_rows", "is_kept"),
    [
        (ROWS, True),
        (round(ROWS * MOST_GROWTH), True),
        (round(ROWS * MOST_GROWTH) + 1, False),
        (round(ROWS / MOST_GROWTH), True),
        (round(ROWS / MOST_GROWTH) - 1, False),
    ],
)
def test_with_many_more_ratings_or_many_fewer_all_is_chosen_anew(num_rows: int, is_kept: bool) -> None:
    assert kept(num_rows=num_rows) == is_kept


def test_what_leaves_nothing_open_is_as_it_was_asked_for() -> None:
    given = replace(ASKED, dim=8, l2=0.1, recency="off")
    last = release_of(trained_of(given, "monday"))
    assert with_kept_settings(given, ingested_of(), "tuesday", last) == given


def test_an_earlier_program_has_chosen_nothing_to_keep() -> None:
    trained = trained_of(ASKED, "monday")
    outputs = {name: value for name, value in trained.outputs.items() if name != "settings"}
    assert not kept(last=release_of(replace(trained, outputs=outputs)))


def test_of_a_release_that_was_refitted_it_is_the_evaluated_training_that_chose() -> None:
    settings, _ = parse_command(["--output=out"], "")
    evaluated = trained_of(ASKED, "monday")
    refitted = settings_of_refit(replace(settings, training=ASKED), {"train": evaluated}).training
    assert (refitted.dim, refitted.l2, refitted.blend, refitted.epochs) == (128, 0.3, BLEND, 6)
    assert not refitted.leaves_open
    last = release_of(trained_of(refitted, "all of monday"), evaluated)
    assert kept(last=last)
    assert not kept(data="monday", last=last)
    # The training that is published has all that it needs.
    assert with_kept_settings(refitted, ingested_of(), "all of tuesday", last) == refitted


def test_the_third_night_keeps_the_first_nights_choice() -> None:
    """And goes by its ratings, however little they grow from one night to the next."""
    second = with_kept_settings(ASKED, ingested_of(1_500), "tuesday", FIRST_NIGHT)
    of_second = release_of(trained_of(second, "tuesday", 1_500))
    third = with_kept_settings(ASKED, ingested_of(1_900), "wednesday", of_second)
    assert third == second
    # The second night once more finds its own training, and the first night's its own.
    assert with_kept_settings(ASKED, ingested_of(1_500), "tuesday", of_second) == second
    assert with_kept_settings(ASKED, ingested_of(), "monday", of_second) == ASKED
    assert not kept(data="thursday", num_rows=2_100, last=of_second)
    assert not kept(replace(ASKED, seed=1), data="wednesday", last=of_second)


def test_a_choice_that_was_made_anew_is_kept_in_its_turn() -> None:
    again = release_of(trained_of(ASKED, "thursday", 2_100))
    found = with_kept_settings(ASKED, ingested_of(4_000), "friday", again)
    assert found.chosen_by is not None
    assert (found.chosen_by.data, found.chosen_by.rows) == ("thursday", 2_100)


def test_the_stage_trains_with_what_was_kept() -> None:
    settings, _ = parse_command(["--output=out", "--learning_rate=0.02"], "")
    ingested = replace(ingested_of(), settings={"split": {"split": "random"}, "recency_half_life_days": 7.0})
    alone = train.plan(Chain(settings, {"ingest": ingested}))
    assert isinstance(alone, Stage)
    assert alone.settings["dim"] is None
    last = release_of(trained_of(replace(settings.training, validation="random"), "monday"))
    stage = train.plan(Chain(settings, {"ingest": ingested}, last=last))
    assert isinstance(stage, Stage)
    assert {name: stage.settings[name] for name in CHOSEN} == CHOSEN
    assert stage.settings["blend"] == asdict(BLEND)
    assert stage.job.settings.dim == 128
    assert stage.fingerprint != alone.fingerprint


QUICK = ["--dim=8", "--epochs=4", "--batch_size=64", "--k=6", "--num_shards=2", "--num_buckets=2", "--min_lift=0"]
HEADER = ["user_id", "item_id", "rating", "timestamp"]
MORE = [("u3", "i2", 5.0, 1_600_000_100), ("u5", "i7", 4.0, 1_600_000_200), ("new", "i3", 4.0, 1_600_000_300)]


def release_served(output: Path) -> Release:
    workspace = Workspace(str(output))
    latest = read_latest(workspace)
    assert latest is not None
    return read_release(workspace, latest)


def curves_of(output: Path, trained: StageManifest) -> dict[str, Any]:
    return json.loads((output / trained.folder / "curves.json").read_text())


def phases_of(output: Path, trained: StageManifest) -> set[str]:
    return {row["phase"] for row in curves_of(output, trained)["epochs"]}


@pytest.mark.slow
@pytest.mark.parametrize("refit", [False, True])
def test_the_second_night_trains_once_with_the_settings_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refit: bool
) -> None:
    output = tmp_path / "out"
    path = write_csv(tmp_path / "ratings.csv", HEADER, ratings())
    flags = [*QUICK, f"--ratings={path}", f"--items={write_items(tmp_path)}", f"--output={output}"]
    flags += ["--refit", "--split=temporal"] if refit else []

    def night(*more: str) -> tuple[str, Release]:
        capsys.readouterr()
        assert run_command(run.main, [*flags, *more]) == OK
        return capsys.readouterr().err, release_served(output)

    def evaluated_training(release: Release) -> StageManifest:
        return release.evaluated.stages["train"] if refit and release.evaluated else release.stages["train"]

    _, first = night()
    chose = evaluated_training(first)
    searched = phases_of(output, chose) - {"full"}
    assert len(searched) >= 3
    assert chose.settings["l2"] is chose.settings["chosen_by"] is None
    if refit:
        assert phases_of(output, first.stages["train"]) == {"full"}

    write_csv(path, HEADER, [*ratings(), *MORE])
    _, second = night()
    found, trained = TrainOutputs.of(chose), evaluated_training(second)
    assert phases_of(output, trained) == phases_of(output, second.stages["train"]) == {"full"}
    assert trained.settings["l2"] == found.settings["l2"]
    assert trained.settings["dim"] == found.settings["dim"] == 8
    assert TrainOutputs.of(trained).recency == found.recency
    assert trained.settings["chosen_by"]["rows"] == chose.metrics["train_rows"]
    assert trained.settings["chosen_by"]["data"] == chose.inputs["ingest"]["digest"]
    assert TrainOutputs.of(second.stages["train"]).settings == found.settings

    # The same once more: everything is done, and it is the same release.
    said, again = night()
    assert again.name == second.name
    assert said.count("done before") == (16 if refit else 8)
    assert "train: started" not in said

    # Another night: still the first one's choice; other flags: a choice of their own.
    shutil.copytree(output, tmp_path / "copy")
    write_csv(path, HEADER, [*ratings(), *MORE, ("u9", "i9", 3.0, 1_600_000_400)])
    _, third = night()
    assert phases_of(output, evaluated_training(third)) == {"full"}
    assert evaluated_training(third).settings["chosen_by"] == trained.settings["chosen_by"]
    _, other = night("--seed=5")
    assert len(phases_of(output, evaluated_training(other))) >= 4
    assert evaluated_training(other).settings["chosen_by"] is None


def test_a_blend_that_was_kept_is_that_of_the_release() -> None:
    plain = release_of(trained_of(ASKED, "monday", recency=asdict(PLAIN)))
    assert with_kept_settings(ASKED, ingested_of(), "tuesday", plain).blend == PLAIN
