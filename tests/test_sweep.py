"""The sweep, as its users run it: judged on validation alone, deterministic, failures recorded, the winner fed to a run."""

import json
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines import run, sweep
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.cli.config import parse_command
from schemas.trials import DONE, FAILED
from schemas.workspace import Workspace
from tests.made_data import write_csv, write_ratings
from transforms.report.trials_chart import chart_of
from transforms.train import trials
from transforms.train.rows import TrainingRows, read_rows
from transforms.train.training import train
from transforms.train.trials import Result, Trial, ranked, row_of

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

QUICK = ["--dim=8", "--l2=0.1", "--epochs=2", "--batch_size=64", "--num_buckets=2", "--seed=7"]
TRIALS = "[{dim: 4}, {learning_rate: 1e30}, {dim: 12, l2: 0.01}]"


def run_sweep(*flags: str) -> int:
    return run_command(sweep.main, [*QUICK, *flags])


def swept(output: Path) -> list[dict]:
    manifest = Workspace(str(output)).finished("sweep")[-1]
    return [row for path in manifest.paths(str(output), "trials") for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a finished sweep of three trials, one of which diverges; and its flags."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "trials.yaml").write_text(TRIALS)
    flags = [f"--ratings={write_ratings(folder)}", f"--trials={folder / 'trials.yaml'}"]
    assert run_sweep(*flags, f"--output={folder / 'out'}") == OK
    return folder, flags


def test_trials_are_ranked_and_a_diverging_one_is_recorded_with_the_reason(job: tuple[Path, list[str]]) -> None:
    rows = swept(job[0] / "out")
    assert [row["status"] for row in rows] == [DONE, DONE, FAILED]
    assert rows[0]["quality"] >= rows[1]["quality"]
    assert rows[2]["trial"] == 2
    assert "must be finite" in rows[2]["reason"]
    assert "lower --learning_rate, which is 1e+30" in rows[2]["reason"]
    assert rows[2]["quality"] is rows[2]["epochs"] is None
    assert {(row["setting_dim"], row["setting_l2"], row["setting_epochs"]) for row in rows} == {
        (4, 0.1, 2),
        (8, 0.1, 2),
        (12, 0.01, 2),
    }


def test_a_trials_quality_is_that_of_training_on_the_training_rows_alone(job: tuple[Path, list[str]]) -> None:
    output = str(job[0] / "out")
    (ingested,) = Workspace(output).finished("ingest")
    settings = replace(parse_command([*QUICK, f"--output={output}"], "")[0].training, include_validation=False)
    for row in swept(job[0] / "out")[:2]:
        asked = replace(settings, dim=row["setting_dim"], l2=row["setting_l2"])
        trained = train(read_rows(ingested.paths(output, "interactions/train")), asked)
        assert (row["recall_at_100"], row["ndcg_at_10"]) == trained.quality
        assert row["epochs"] == trained.num_epochs
    manifest = Workspace(output).finished("sweep")[-1]
    assert manifest.inputs["ingest"]["datasets"] == ["interactions/train"], "what is held out cannot be read"


def test_the_same_sweep_is_skipped_and_made_anew_it_has_the_same_bytes(job: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, flags = job
    (before,) = Workspace(str(folder / "out")).finished("sweep")
    assert run_sweep(*flags, f"--output={folder / 'out'}") == OK
    assert len(Workspace(str(folder / "out")).finished("sweep")) == 1
    assert run_sweep(*flags, f"--output={tmp_path}") == OK
    (again,) = Workspace(str(tmp_path)).finished("sweep")
    assert again.digest == before.digest
    assert again.fingerprint == before.fingerprint


def test_a_wider_sweep_trains_only_what_is_new(
    job: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flags = job
    shutil.copytree(folder / "out", tmp_path / "out")
    (tmp_path / "wider.yaml").write_text("[{dim: 6}, {dim: 4}, {dim: 12, l2: 0.01}]")
    trained: list[int] = []

    def run_trial(rows: TrainingRows, trial: Trial, num_trials: int) -> Result:
        trained.append(trial.number)
        return Result(DONE, 1.0, None, 0.0, 0.0, 1)

    monkeypatch.setattr(trials, "run_trial", run_trial)
    assert run_sweep(flags[0], f"--trials={tmp_path / 'wider.yaml'}", f"--output={tmp_path / 'out'}") == OK
    assert trained == [1]
    assert {row["setting_dim"] for row in swept(tmp_path / "out")} == {4, 6, 12}


def test_the_winners_settings_are_what_a_run_with_its_config_trains_with(job: tuple[Path, list[str]]) -> None:
    folder, flags = job
    manifest = Workspace(str(folder / "out")).finished("sweep")[0]
    config = folder / "out" / manifest.folder / "winner.yaml"
    (table,) = (pq.read_table(path).to_pylist() for path in manifest.paths(str(folder / "out"), "trials"))
    best = {name.removeprefix("setting_"): value for name, value in table[0].items() if name.startswith("setting_")}
    best = {name: value for name, value in best.items() if value is not None}  # What was not given is not in the config.
    assert yaml.safe_load(config.read_text()) == best
    assert run_command(run.main, [flags[0], f"--output={folder / 'out'}", f"--config={config}", "--seed=7", "--k=5"]) == OK
    trained = Workspace(str(folder / "out")).finished("train")[-1].settings
    assert {name: trained[name] for name in best} == best


def test_the_table_is_printed_with_the_settings_that_differ_and_the_commands_to_go_on(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, flags = job
    capsys.readouterr()
    assert run_sweep(*flags, f"--output={folder / 'out'}") == OK
    out = capsys.readouterr().out
    assert "3 trials by Recall@100 + NDCG@10 on the validation slice" in out
    assert "learning_rate 1e+30" in " ".join(out.replace("│", " ").split())
    assert "trial 2 failed: the " in out
    assert "epochs 2" not in " ".join(out.replace("│", " ").split()), "all trials have as many"
    assert "-m pipelines.run --output" in out
    assert "winner.yaml" in out


def test_the_chart_shows_every_trial_in_a_panel_a_differing_setting(job: tuple[Path, list[str]]) -> None:
    manifest = Workspace(str(job[0] / "out")).finished("sweep")[0]
    root = ET.parse(job[0] / "out" / "stages" / f"sweep-{manifest.fingerprint}" / "trials.svg").getroot()
    texts = [each.text for each in root.iter() if each.text]
    assert {"dim", "l2", "learning_rate"} <= set(texts)
    assert "epochs" not in texts
    assert len([each for each in texts if each.startswith("trial ")]) == 3 * 3


def test_without_a_file_settings_are_drawn_and_the_first_trial_is_the_flags_own(tmp_path: Path) -> None:
    flags = [f"--ratings={write_ratings(tmp_path)}", f"--output={tmp_path}/out", "--num_trials=2", "--epochs=1"]
    assert run_sweep(*flags) == OK
    first, second = sorted(swept(tmp_path / "out"), key=lambda row: row["trial"])
    assert (first["setting_dim"], first["setting_learning_rate"]) == (8, 0.01)
    assert first["setting_learning_rate"] != second["setting_learning_rate"]


def test_equal_trials_go_by_number_and_the_table_knows_no_clock() -> None:
    settings = parse_command(["--output=x"], "")[0].training
    made = [(Trial(number, settings, ""), Result(DONE, number, None, 0.5, 0.25, 3)) for number in (2, 1)]
    assert [trial.number for trial, _ in ranked(made)] == [1, 2]
    assert row_of(*made[0])["quality"] == 0.75
    assert "seconds" not in row_of(*made[0])
    assert ET.fromstring(chart_of([row_of(*each) for each in made])) is not None, (
        "nothing differs: no panel, and still a document"
    )


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    good = f"--ratings={write_ratings(folder)}"
    (folder / "bad.yaml").write_text("{dim: [")
    (folder / "typo.yaml").write_text("{dims: [4]}")
    (folder / "diverging.yaml").write_text("[{learning_rate: 1e30}, {learning_rate: 1e31}]")
    few = write_csv(folder / "few.csv", ["user_id", "item_id"], [("u", "i"), ("v", "i")])
    return {
        "no file": ([good, f"--trials={folder}/none.yaml"], "none.yaml do not exist: check --trials"),
        "no YAML": ([good, f"--trials={folder}/bad.yaml"], "bad.yaml are not YAML"),
        "typing error": ([good, f"--trials={folder}/typo.yaml"], "typo.yaml has an unknown setting 'dims': did you mean dim?"),
        "no trials": ([good, "--num_trials=0"], "num_trials must be at least 1, got 0: raise --num_trials"),
        "nothing to judge by": ([good, "--validation_fraction=0"], "trials are judged on a validation slice"),
        "too few ratings": ([f"--ratings={few}", "--split=none"], "there is no validation slice to judge trials on, of 2"),
        "all diverge": ([good, f"--trials={folder}/diverging.yaml"], "all 2 trials failed, trial 1 since the"),
        "no ingest": ([f"--output={folder}/other"], "needs ingest, which is not done"),
    }


def test_every_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (flags, words) in bad_inputs(tmp_path).items():
        capsys.readouterr()
        assert run_sweep(f"--output={tmp_path}/out", *flags) == MISTAKE, name
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert words in line, name
    assert not Workspace(f"{tmp_path}/out").finished("sweep")
    assert json.loads(next(iter((tmp_path / "out" / "trials").glob("*.json"))).read_text())["status"] == FAILED
