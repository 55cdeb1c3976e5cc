"""Work that is done elsewhere: how it is waited for, and what its runner is told; the whole job on Prism where there is one."""

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apache_beam.options.pipeline_options import StandardOptions, WorkerOptions
from apache_beam.runners.runner import PipelineState

from pipelines import run
from pipelines.cli.command import OK, run_command
from pipelines.cli.config import absolute, parse_command, runner_options_of
from pipelines.engine import progress
from schemas.errors import InputError
from tests.made_data import write_ratings
from transforms.io.progress import WORKER_PROGRESS


class Elsewhere:
    """A result as a portable runner gives it: it can be waited for once, and keeps the first counts that it is asked for."""

    def __init__(self, state: str = PipelineState.DONE, error: Exception | None = None) -> None:
        self._metrics: Any = None
        self._state, self._error = state, error
        self.ended = threading.Event()
        self.waits: list[int | None] = []
        self.asked = 0
        self.is_cancelled = False

    def wait_until_finish(self, duration: int | None = None) -> str:
        self.waits.append(duration)
        assert self.ended.wait(30)
        if self._error:
            raise self._error
        return self._state

    def metrics(self) -> Any:
        if self._metrics is None:
            self.asked += 1
            key = SimpleNamespace(metric=SimpleNamespace(name="rows"))
            self._metrics = {"counters": [SimpleNamespace(key=key, result=10 * self.asked)]}
            if self.asked == 3:
                self.ended.set()
        return SimpleNamespace(query=lambda _: self._metrics)

    def cancel(self) -> None:
        self.is_cancelled = True
        self.ended.set()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_COUNT_SECONDS", 0.01)
    WORKER_PROGRESS.reset()


def test_it_is_waited_for_once_and_counted_all_the_while() -> None:
    result = Elsewhere()
    progress.follow(result)  # type: ignore[arg-type]
    assert result.waits == [None]
    assert result.asked >= 3
    assert WORKER_PROGRESS.rows >= 30


@pytest.mark.parametrize("state", [PipelineState.FAILED, PipelineState.CANCELLED])
def test_an_end_that_is_not_well_is_an_error(state: str) -> None:
    with pytest.raises(RuntimeError, match=rf"^the runner ended in state {state}$"):
        progress.follow(Elsewhere(state))  # type: ignore[arg-type]


def test_what_the_waiting_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="a worker died"):
        progress.follow(Elsewhere(error=ValueError("a worker died")))  # type: ignore[arg-type]


def test_a_runner_without_counts_is_waited_for_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Elsewhere()

    def metrics() -> Any:
        result.ended.set()
        raise NotImplementedError("this runner counts nothing")

    monkeypatch.setattr(result, "metrics", metrics)
    progress.follow(result)  # type: ignore[arg-type]


def test_an_interrupted_wait_cancels_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Elsewhere()

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "take_counts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        progress.follow(result)  # type: ignore[arg-type]
    assert result.is_cancelled


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("out", "{here}/out"),
        ("../other/ratings/", "{above}/other/ratings/"),
        ("parts/*.csv", "{here}/parts/*.csv"),
        ("/data/out", "/data/out"),
        ("s3://bucket/out", "s3://bucket/out"),
        ("tfds:movielens/100k-ratings", "tfds:movielens/100k-ratings"),
        (None, None),
    ],
)
def test_paths_mean_the_same_wherever_a_worker_runs(given: str | None, expected: str | None) -> None:
    here = Path.cwd()
    assert absolute(given) == (expected.format(here=here, above=here.parent) if expected else None)


def test_a_runner_elsewhere_gets_absolute_paths_options_of_its_own_and_a_level_that_it_knows() -> None:
    flags = ["--output=out", "--ratings=r.csv", "--block_items=b.csv"]
    settings, options = parse_command(
        [*flags, "--runner=PortableRunner", "--job_endpoint=localhost:1", "--runner_option", "checkpointing_interval=60000"], ""
    )
    here = Path.cwd()
    assert (settings.output, settings.ingest.ratings) == (f"{here}/out", f"{here}/r.csv")
    assert settings.lists.block_items == f"{here}/b.csv"
    assert settings.job is not None
    assert "runner_option" not in settings.job
    assert options.view_as(WorkerOptions).default_sdk_harness_log_level == "ERROR"
    told = options.get_all_options(retain_unknown_options=True, drop_default=True)
    assert str(told["checkpointing_interval"]) == "60000"

    settings, options = parse_command(flags, "")
    assert (settings.output, settings.ingest.ratings) == ("out", "r.csv")
    assert options.view_as(StandardOptions).runner == "FnApiRunner"


@pytest.mark.parametrize("text", ["checkpointing_interval", "--parallelism=2", "=2", "a b=2"])
def test_a_runner_option_is_a_name_and_a_value(text: str) -> None:
    with pytest.raises(InputError, match=r"^--runner_option takes the name of an option .*: write it as --runner_option NAME"):
        runner_options_of([text])


PRISM = os.environ.get("SHORTLIST_PRISM") or shutil.which("prism") or str(Path.home() / "go/bin/prism")


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["fused", "by_shard"])
def test_prism_makes_the_same_table(tmp_path: Path, plan: str) -> None:
    if not Path(PRISM).exists():
        pytest.skip("there is no prism: go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0")
    ratings = write_ratings(tmp_path)
    flags = [f"--ratings={ratings}", "--dim=8", "--l2=0.1", "--epochs=2", "--min_lift=0", "--k=5", "--num_shards=3"]
    digests = []
    for name, runner in (("here", []), ("prism", ["--runner=PrismRunner", f"--prism_location={PRISM}"])):
        output = tmp_path / name
        assert run_command(run.main, [*flags, f"--plan={plan}", f"--output={output}", *runner]) == OK, name
        digests.append([path.read_bytes() for path in sorted(output.glob("stages/recommend-*/*/topk/*.parquet"))])
    assert digests[0]
    assert digests[0] == digests[1]
