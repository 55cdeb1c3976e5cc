"""A job that is killed, at any moment and however often, ends in the table of a job that nobody disturbed.

The process group gets SIGKILL; nothing is tidied up. `make test-kill` kills thirty times instead of six; SHORTLIST_KILL_SEED
draws other moments. A moment is tied to what can be seen on the disk, so that a slow machine is hit in every stage as well.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import run as whole_job
from pipelines.cli.command import OK, TERMINATED, run_command
from tests.latest_reader import LatestReader, digest_of_table
from tests.made_data import write_items, write_ratings
from transforms.train.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

ROOT = Path(__file__).parent.parent
SEED = int(os.environ.get("SHORTLIST_KILL_SEED", "20261124"))
KILLS = int(os.environ.get("SHORTLIST_KILLS", "6"))
KILLS_AN_OUTPUT = 6
STEPS = ("ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge", "publish")
NUM_USERS = 60
PATIENCE_SECONDS = 300.0
"""A run that takes so long hangs."""
POLL_SECONDS = 0.002


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a job of seconds, whose training keeps a checkpoint every few steps."""
    folder = tmp_path_factory.mktemp("kill")
    return [
        f"--ratings={write_ratings(folder)}",
        f"--items={write_items(folder)}",
        "--dim=8",
        "--epochs=12",
        "--l2=0.1",
        "--checkpoint_secs=0",
        "--batch_size=16",
        "--k=10",
        "--num_shards=2",
        "--num_buckets=2",
        "--min_lift=0",
    ]


def living_in(group: int) -> list[int]:
    """Returns the processes of a group; those that have ended, and that nobody has asked how, do not count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


class Run:
    """A job in a process group of its own, watched from outside: by what it says, and by the files that it finishes."""

    def __init__(self, flags: Sequence[str], output: Path) -> None:
        self._output = output
        self._written = {step: self._files(step) for step in STEPS}
        self._before = {step: len(files) for step, files in self._written.items()}
        self._log = output.with_suffix(".log")
        self.started = time.monotonic()
        with self._log.open("w") as log:  # A file: a pipe that nobody reads fills up, and stops the job.
            command = [sys.executable, "-m", "pipelines.run", *flags, f"--output={output}"]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def has_begun(self, step: str) -> bool:
        """Tells whether the job has come to a step that was not done."""
        if step != "publish":
            return f" {step}: started" in self.said
        return " judge: done before" in self.said or any(
            path.endswith("/manifest.json") for path, _ in self._look_at("judge")[self._before["judge"] :]
        )

    def num_written(self, step: str) -> int:
        """Returns how many of a step's files this job has finished, those replaced counted again, as far as anybody saw it."""
        return len(self._look_at(step)) - self._before[step]

    def _look_at(self, step: str) -> list[tuple[str, int]]:
        known = self._written[step]
        known += [file for file in self._files(step) if file not in known]
        return known

    def _files(self, step: str) -> list[tuple[str, int]]:
        """Returns the finished files of a step, each with its time of change."""
        found = []
        for pattern in ("releases/*/*", "LATEST") if step == "publish" else (f"stages/{step}-*/**/*",):
            for path in self._output.glob(pattern):
                with suppress(FileNotFoundError):  # Files come and go.
                    if path.suffix != ".tmp" and path.is_file():
                        found.append((str(path), path.stat().st_mtime_ns))
        return found

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE_SECONDS) -> bool:
        """Waits for a moment, or for the end of the run; returns whether it has ended."""
        late = time.monotonic() + seconds
        while self.process.poll() is None and not until() and time.monotonic() < late:
            time.sleep(POLL_SECONDS)
        return self.process.poll() is not None

    def kill(self) -> None:
        """Kills all that the job consists of, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> None:
        """Asks the job's own process, and no other, to stop, and waits until it has."""
        self.process.send_signal(signal.SIGTERM)
        assert self.wait(), f"the job does not stop: {self.said}"

    def check_nothing_is_left(self) -> None:
        """Checks that every process of the job's group ends, soon if not at once."""
        late = time.monotonic() + 30
        while living_in(self.process.pid) and time.monotonic() < late:
            time.sleep(0.1)
        assert not living_in(self.process.pid)

    def check_ended_well(self) -> None:
        """Waits for the end of a run that has to end well."""
        assert self.wait(), f"the job hangs: {self.said}"
        assert self.process.returncode == OK, self.said


@contextmanager
def running(flags: Sequence[str], output: Path) -> Iterator[Run]:
    """Starts a job; whatever happens, none of it is left."""
    run = Run(flags, output)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.kill()


@dataclass(frozen=True)
class Undisturbed:
    """What a run that nobody disturbs makes, and when.

    Attributes:
      digest: of the rows of its table.
      files: the name and SHA-256 of each of the table's files.
      before: seconds until the first step begins.
      times: for each step the seconds, from its beginning, at which each of its files was there; the first is 0, the beginning.
    """

    digest: str
    files: list[tuple[str, str]]
    before: float
    times: Mapping[str, Sequence[float]]

    def seconds_from(self, step: str) -> float:
        """Returns the time of a run that has yet to do a step and all after it."""
        return self.before + sum(self.times[each][-1] for each in STEPS[STEPS.index(step) :])


@dataclass(frozen=True)
class Moment:
    """When to kill: so many files into a step, and then some seconds later; without a step, seconds after the job's start."""

    step: str | None
    num_written: int
    seconds: float

    def wait_for(self, run: Run) -> bool:
        """Returns whether the run has ended before."""
        if self.step and run.wait(until=lambda: self._is_reached(run)):
            return True
        return run.wait(seconds=self.seconds)

    def _is_reached(self, run: Run) -> bool:
        assert self.step
        return run.has_begun(self.step) and run.num_written(self.step) >= self.num_written


def draw_moment(chance: random.Random, step: str | None, left: str, undisturbed: Undisturbed) -> Moment:
    """Draws a moment in a step, or at any time.

    Half of those in a step are uniform over its files: between two of them it may last microseconds. Half are uniform over its
    time, counted from the last file that was there by then.

    Args:
      chance: draws.
      step: the step; None for any time.
      left: the first step that the job has yet to do.
      undisturbed: how long all takes.
    """
    if step is None:
        return Moment(None, 0, chance.uniform(0, undisturbed.seconds_from(left)))
    times = undisturbed.times[step]
    if chance.random() < 0.5:
        return Moment(step, chance.randrange(len(times)), 0.0)
    at = chance.uniform(0, times[-1])
    num_written = bisect_right(times, at) - 1
    return Moment(step, num_written, at - times[num_written])


def draw_steps(chance: random.Random, count: int) -> list[str | None]:
    """Draws the steps in which one output is to be killed, in the job's order, and puts one kill at any time among them."""
    steps: list[str | None] = [*sorted(chance.sample(STEPS, count - 1), key=STEPS.index)]
    steps.insert(chance.randrange(count), None)
    return steps


@pytest.fixture(scope="module")
def yesterday(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with a release to serve while the job is killed; the job shares none of its stages."""
    output = tmp_path_factory.mktemp("yesterday") / "out"
    assert run_command(whole_job.main, [*flags, f"--output={output}", "--seed=1", "--k=8", "--epochs=2"]) == OK
    return output


@pytest.fixture(scope="module")
def undisturbed(flags: list[str], yesterday: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    output = copy_of(yesterday, tmp_path_factory.mktemp("undisturbed"))
    begun: dict[str, float] = {}
    times: dict[str, list[float]] = {}

    def look() -> bool:
        now = time.monotonic()
        for step in STEPS:
            if step not in begun and run.has_begun(step):
                begun[step], times[step] = now, [0.0]
            if step in begun:
                times[step] += [now - begun[step]] * (run.num_written(step) + 1 - len(times[step]))
        return False

    with running(flags, output) as run:
        run.wait(until=look)
        look()  # The last steps may have come and gone since the last time.
        run.check_ended_well()
    assert list(begun) == list(STEPS)
    return Undisturbed(digest_of(output), files_of(output), begun["ingest"] - run.started, times)


def copy_of(output: Path, folder: Path) -> Path:
    return shutil.copytree(output, folder / "out")


def latest_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "LATEST").read_text())


def digest_of(output: Path) -> str:
    return digest_of_table(output, latest_of(output))[0]


def files_of(output: Path) -> list[tuple[str, str]]:
    """Returns the name and SHA-256 of each file of the table that is served."""
    return [(Path(each).name, hashlib.sha256((output / each).read_bytes()).hexdigest()) for each in latest_of(output)["topk"]]


def stages_of(output: Path, yesterday: Path) -> dict[str, Path]:
    """Returns the folders of the stages that were begun since yesterday, by name."""
    begun = [path for path in output.glob("stages/*") if not (yesterday / "stages" / path.name).exists()]
    return {path.name.rpartition("-")[0]: path for path in begun}


def step_left(output: Path, yesterday: Path) -> str | None:
    """Returns the first step that is not done, None where all are."""
    begun = stages_of(output, yesterday)
    finished = [step for step in STEPS if step in begun and (begun[step] / "manifest.json").exists()]
    assert finished == list(STEPS[: len(finished)])
    if len(finished) < len(STEPS) - 1:
        return STEPS[len(finished)]
    return "publish" if latest_of(output) == latest_of(yesterday) else None


def epochs_kept(output: Path) -> int:
    """Returns how many epochs are done in the checkpoint of a training, 0 where there is none."""
    checkpoints = [read_checkpoint(str(path)) for path in output.glob("stages/train-*/checkpoints/*.npz")]
    return max((len(each.progress.curve) for each in checkpoints if each), default=0)


def test_a_job_killed_again_and_again_ends_in_the_same_table(
    flags: list[str], yesterday: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    hit: Counter[str] = Counter()
    served = {digest_of(yesterday), undisturbed.digest}
    outputs = readings = goes_on_from = 0
    while hit.total() < KILLS:
        outputs += 1
        output = copy_of(yesterday, tmp_path / f"{outputs}")
        steps = draw_steps(chance, min(KILLS_AN_OUTPUT, KILLS - hit.total()))
        for step in (*steps, "end"):
            left = step_left(output, yesterday)
            with LatestReader(output, NUM_USERS) as reader, running(flags, output) as run:
                if step == "end" or left is None:
                    run.check_ended_well()
                    break
                aim = max(step, left, key=STEPS.index) if step else None  # A kill at any time may have come later than planned.
                if draw_moment(chance, aim, left, undisturbed).wait_for(run):
                    run.check_ended_well()
                    break
                run.kill()
            readings += reader.readings
            hit[step_left(output, yesterday) or "after"] += 1
            assert set(reader.digests.values()) <= served
            if step_left(output, yesterday) in ("ingest", "train"):
                goes_on_from = epochs_kept(output)
        assert set(reader.digests.values()) <= served
        assert digest_of(output) == undisturbed.digest
        assert files_of(output) == undisturbed.files
        trained = stages_of(output, yesterday)["train"]
        assert json.loads((trained / "manifest.json").read_text())["metrics"]["resumed_epochs"] == goes_on_from
        assert not list(trained.glob("checkpoints/*"))
    print(f"{hit.total()} kills survived (seed {SEED}): {dict(hit)}; {outputs} outputs, one table; {readings} times read")


@pytest.mark.parametrize(
    ("moment", "workers"),
    [
        (Moment("train", 3, 0.0), []),
        (Moment("publish", 0, 0.0), []),
        (Moment("train", 0, 5.0), ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]),
    ],
    ids=["training", "publishing", "training in processes of its own"],
)
def test_a_job_that_is_told_to_stop_says_so_and_goes_on_later(
    moment: Moment, workers: list[str], flags: list[str], yesterday: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    output = copy_of(yesterday, tmp_path)
    with running([*flags, *workers], output) as run:
        if not moment.wait_for(run):
            run.terminate()
        # Publishing may have been quicker.
        assert run.process.returncode in ((TERMINATED, OK) if moment.step == "publish" else (TERMINATED,)), run.said
        run.check_nothing_is_left()
    if run.process.returncode == TERMINATED:
        stopped = [line for line in run.said.splitlines() if "error:" in line]
        assert stopped == ["error: stopped; what was finished is kept, run the same command again to go on"]
        assert "Traceback" not in run.said
    assert digest_of(output) in {digest_of(yesterday), undisturbed.digest}
    if moment.step == "train":
        assert latest_of(output) == latest_of(yesterday)
    with running(flags, output) as again:
        again.check_ended_well()
    assert files_of(output) == undisturbed.files
