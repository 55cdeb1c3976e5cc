"""Every command that README.md and docs/ show does what it is shown for: it is run as it stands there, a process each.

Each block of commands gets a copy of one small folder: sources, a finished output under each name that the pages use, `python`.
"""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pytest
import yaml

from pipelines.cli.config import parse_command
from pipelines.cli.options import ShortlistOptions
from schemas.storage import read_json
from tests.made_data import write_csv
from tests.made_releases import write_release
from transforms.train.search_space import trials_of
from transforms.train.settings import TrainingSettings

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OUTPUTS = ("output/mine", "output/ml-100k", "output/nightly")
MOVIELENS = "data/recbole/dataset_example/ml-100k"
OLDER = "20260101T000000Z"
"""How the name of a release begins that is in every output beside the served one."""

PLACEHOLDERS: Mapping[str, str] = {
    "DIR": "output/mine",
    "USER": "42",
    "ID": "42",
    "RELEASE": "$(cd output/ml-100k/releases && echo " + OLDER + "*)",
    "LAST": "LATEST",
    "FAILED": "$(cd output/nightly/releases && echo " + OLDER + "*)",
    "OUTPUT": "output/mine",
    "NAME": "$(cd output/mine/releases && echo " + OLDER + "*)",
    "…": "*",
    "/srv/shortlist": ".",
    # Twenty trials do what two do.
    "--num_trials 20": "--num_trials 2",
}
"""What stands in a command for something else, and what for; other words in capitals fail."""

NOT_RUN: Mapping[str, str] = {
    "pip": "installs packages: what it names has to be a file, or pinned in requirements-benchmarks.txt",
    "shortlist": "is there once the package is installed: tests/test_packaging.py installs it, and calls what it has",
    "docker": "needs an image from another registry, and the page says that it was not run",
    "curl": "asks that container",
    "tensorboard": "serves until it is stopped: it is asked for its flags",
    "make": "installs, downloads or tests everything: make is asked what it would do",
    "benchmarks": "takes minutes: it is asked for its flags, and those of the page have to be among them",
}
"""Programs that are not run, each with the reason, and what is looked at instead."""

TRAINS_AGAIN: Mapping[str, str] = {
    "python -m pipelines.run --ratings ratings.parquet --output output/mine --export_saved_model": (
        "a training of its own; what is exported is what the next line of the page exports"
    ),
    "python -m pipelines.run --ratings data/ratings/until=2026-11-20 --items data/items.parquet "
    "--output output/backfill/2026-11-20 --split temporal --refit": "two trainings of its own; its flags are parsed",
}
"""Jobs that differ from README's by what they train alone, each with the reason why its flags are parsed, and no more."""

AS_ANOTHER: Mapping[tuple[str, str], str] = {
    ("inputs.md", "python -m pipelines.run --check"): "operations.md gives it the flags that it needs",
    ("daily.md", "python -m pipelines.run --config job.yaml --reuse_model_from LATEST"): "operations.md has it for the week",
    ("operations.md", "python -m pipelines.run --config job.yaml"): "the night's command, which would train here",
    ("operations.md", "python -m pipelines.releases forget --user ID --output output/nightly"): "releases.md forgets too",
}
"""Commands that are not run here, since another page's or line's is the same in all that takes long."""

OTHER_TESTS: Mapping[tuple[str, str], str] = {
    ("data-contract.md", "python"): "tests/test_readers.py",
    ("data-contract.md", "python hash"): "tests/test_contract.py",
    ("data-contract.md", "sql"): "",  # BigQuery: the page says that this was not run.
    ("data-contract.md", "python nested"): "tests/test_readers.py",
    ("data-contract.md", "python long"): "tests/test_readers.py",
    ("runners.md", "text prism"): "tests/test_remote.py",
}
"""Blocks that another test runs."""


class Block(NamedTuple):
    """Some commands of a page, which belong together."""

    page: str
    line: int
    language: str
    text: str


def fenced(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield Block(page.name, text.count("\n", 0, found.start()) + 2, found[1], found[2])


def inline(page: Path) -> Iterator[Block]:
    """Yields the commands that stand in the running text; several that are alike, once."""
    text = re.sub(
        r"^```.*?^```", lambda fence: "\n" * fence[0].count("\n"), page.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    for found in re.finditer(r"`([^`]+)`", text):
        words = " ".join(found[1].split())
        if re.match(r"(taskset .*)?(\.venv/bin/)?python -m |make |pip install |shortlist |tensorboard ", words):
            yield Block(page.name, text.count("\n", 0, found.start()) + 1, "sh", words)


def commands_of(block: Block) -> list[str]:
    """Returns the commands of a block, one each, without comments and without the time of a crontab."""
    lines = block.text.replace("\\\n", " ").splitlines()
    lines = [" ".join(re.sub(r"\s#\s.*", "", line).split()) for line in lines]
    return [re.sub(r"^\d+ \d+ \S+ \S+ \S+ (?=cd )", "", line) for line in lines if line]


def is_crontab(block: Block) -> bool:
    return block.language == "" and re.match(r"\d+ \d+ \S+ \S+ \S+ ", block.text) is not None


def shell_blocks() -> list[Block]:
    found, seen = [], set()
    for page in PAGES:
        for block in [*(each for each in fenced(page) if each.language == "sh" or is_crontab(each)), *inline(page)]:
            if block.text not in seen:
                found.append(block)
            seen.add(block.text)
    return found


def words_of(command: str) -> list[str]:
    """Returns the words of a command that start a program, without what goes before it."""
    words = shlex.split(command.rpartition("&& ")[2].partition(" >>")[0])
    if words[0] in ("taskset", "flock"):
        words = words[3:]
    return words


def program_of(command: str) -> str:
    """Returns 'pipelines.run', 'benchmarks', 'make' and so on."""
    words = words_of(command)
    if Path(words[0]).name == "python" and words[1] == "-m":
        return "benchmarks" if words[2].startswith("benchmarks.") else words[2]
    return words[0]


def substituted(command: str) -> str:
    for name, value in PLACEHOLDERS.items():
        edge = r"(?![\w.])" if name.isalpha() else ""
        command = re.sub(rf"(?<![\w$]){re.escape(name)}{edge}", value.replace("\\", r"\\"), command)
    return command


def is_named_only(command: str) -> bool:
    """Tells whether the text names a command, and says nothing of what to give it."""
    return program_of(command).startswith("pipelines.") and "--" not in command


def run_of(block: Block) -> list[str]:
    """Returns the commands of a block that are run."""
    return [
        command
        for command in dict.fromkeys(commands_of(block))
        if program_of(command) not in NOT_RUN
        and command not in TRAINS_AGAIN
        and (block.page, command) not in AS_ANOTHER
        and not is_named_only(command)
    ]


def distinct(blocks: list[Block]) -> list[Block]:
    """Returns the blocks that have a command to run which none before them has."""
    found, seen = [], set[str]()
    for block in blocks:
        commands = set(map(substituted, run_of(block)))
        if not commands <= seen:
            found.append(block)
        seen |= commands
    return found


RUN_BLOCKS = distinct(shell_blocks())
COMMANDS = [command for block in shell_blocks() for command in commands_of(block)]


def write_sources(folder: Path) -> None:
    """Writes ratings and items under each name that the pages use; users of one half like items of the same half."""
    users, items = ["42", "405", "196", "22", *map(str, range(1, 37))], ["50", "i17", *map(str, range(101, 219))]
    chance = np.random.default_rng(0)
    rows = []
    for at, user in enumerate(users):
        likes = np.where(np.arange(len(items)) % 2 == at % 2, 10.0, 1.0)
        rows += [
            (user, items[number], int(chance.integers(1, 6)), int(chance.integers(1_600_000_000, 1_700_000_000)))
            for number in chance.choice(len(items), 24, replace=False, p=likes / likes.sum())
        ]
    titles = [(item, f"Title {item}") for item in items]
    write_csv(folder / "ratings.csv", ["user_id", "item_id", "rating", "timestamp"], rows)
    write_csv(folder / "items.csv", ["item_id", "title"], titles)
    # As published splits are: a file to learn from, and one to judge by.
    pairs = sorted({(user, item) for user, item, *_ in rows})
    for name, some in {"train": pairs[::2], "test": pairs[1::2]}.items():
        text = "\n".join(["user_id\titem_id", *map("\t".join, some)])
        (folder / f"{name}.tsv.gz").write_bytes(gzip.compress(f"{text}\n".encode()))
    (folder / MOVIELENS).mkdir(parents=True)
    duckdb.sql(f"COPY (FROM '{folder}/ratings.csv') TO '{folder}/ratings.parquet'")
    duckdb.sql(f"COPY (FROM '{folder}/ratings.csv') TO '{folder}/data/ratings.parquet'")
    for name, header, lines in (
        ("inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", rows),
        ("item", "item_id:token\tmovie_title:token_seq", titles),
    ):
        text = "\n".join([header, *("\t".join(map(str, line)) for line in lines)])
        (folder / MOVIELENS / f"ml-100k.{name}").write_text(text + "\n")


def shell(folder: Path, command: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sources, and the finished output of README's own run under each name of an output."""
    folder = tmp_path_factory.mktemp("docs")
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    write_sources(folder)
    (job,) = [each for each in COMMANDS if each.startswith("python -m pipelines.run") and each.endswith("--k 50")]
    done = shell(folder, job)
    assert done.returncode == 0, done.stderr
    write_release(str(folder / "output/mine"), 1, {"42": ["50", "i17"], "405": ["101", "102"]}, k=2, serve=False)
    for output in OUTPUTS[1:]:
        shutil.copytree(folder / "output/mine", folder / output)
    # The night's job is README's here, so that it finds all done.
    words = shlex.split(job)
    settings = {name.lstrip("-"): value for name, value in zip(words[3::2], words[4::2], strict=True)}
    (folder / "job.yaml").write_text(yaml.safe_dump(settings | {"output": "output/nightly"}))
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same folder, to do anything with."""
    folder = tmp_path / "docs"
    shutil.copytree(finished, folder)
    return folder


@pytest.mark.parametrize("block", RUN_BLOCKS, ids=[f"{block.page}:{block.line}" for block in RUN_BLOCKS])
def test_commands_do_what_they_are_shown_for(block: Block, copied: Path) -> None:
    for command in run_of(block):
        line = substituted(command)
        unknown = [word for word in re.findall(r"(?<![\w$.=-])[A-Z]{2,}\b", line) if word != "LATEST"]
        assert not unknown, f"{command!r} has {unknown}: say in PLACEHOLDERS what that stands for"
        done = shell(copied, line)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{logs_in(copied)}"
    if block.page == "serving.md":
        run_serving_example(copied)


def logs_in(folder: Path) -> str:
    return "".join(path.read_text()[-2000:] for path in folder.glob("*.log"))


def run_serving_example(folder: Path) -> None:
    """Runs the page's Python on the model that its commands have made."""
    (code,) = [block.text for block in fenced(ROOT / "docs" / "guides" / "serving.md") if block.language == "python"]
    (model,) = (folder / "output" / "mine" / "stages").glob("export-*/attempt-*/saved_model/1")
    path = str(model.relative_to(folder))
    code = re.sub(r'"output/mine/[^"]*"', repr(path), code) + "\nassert user_answers['item_id'].shape[0] == 2\n"
    code = code.replace("recommend(user_id=", "user_answers = recommend(user_id=")
    done = shell(folder, f"TF_USE_LEGACY_KERAS=1 python -c {shlex.quote(code)}")
    assert done.returncode == 0, done.stderr


def test_every_exception_is_one_and_has_a_reason() -> None:
    programs = {program_of(command) for command in COMMANDS}
    assert set(NOT_RUN) <= programs, "a program that no page names needs no exception"
    assert {*TRAINS_AGAIN, *(command for _, command in AS_ANOTHER)} <= set(COMMANDS), (
        "a command that no page has needs no exception"
    )
    strange = {each for each in programs - set(NOT_RUN) if not each.startswith("pipelines.")}
    assert not strange, f"nothing says how to check {strange}: run it, or say in NOT_RUN why not"


@pytest.mark.parametrize("command", list(TRAINS_AGAIN))
def test_the_flags_of_other_jobs_will_do(command: str) -> None:
    settings, _ = parse_command(words_of(command)[3:], "")
    assert settings.ingest.ratings


def test_make_knows_its_targets(copied: Path) -> None:
    targets = sorted({word for command in COMMANDS if program_of(command) == "make" for word in words_of(command)[1:]})
    assert {"run", "test", "data"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "python -m" in done.stdout


def test_what_pip_is_told_to_install_is_pinned() -> None:
    pins = (ROOT / "requirements-benchmarks.txt").read_text().splitlines()
    for command in COMMANDS:
        if program_of(command) == "pip":
            for word in words_of(command)[2:]:
                assert word in (*pins, ".", "-r", "-c") or (ROOT / word).is_file(), word


def test_tensorboard_takes_its_flag() -> None:
    assert {" ".join(words_of(each)[:2]) for each in COMMANDS if program_of(each) == "tensorboard"} == {"tensorboard --logdir"}
    code = "from tensorboard.plugins.core import core_plugin; import argparse;"
    code += (
        "parser = argparse.ArgumentParser(); core_plugin.CorePluginLoader().define_flags(parser); print(parser.format_help())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--logdir" in done.stdout, done.stderr


def test_what_is_not_run_takes_the_flags_that_the_pages_give_it() -> None:
    """One process asks all of them, since most of what that costs is to import TensorFlow."""
    lines = [words_of(command)[2:] for command in COMMANDS if program_of(command) == "benchmarks" or is_named_only(command)]
    modules = sorted({words[0] for words in lines})
    assert len([name for name in modules if name.startswith("benchmarks.")]) >= 9
    code = (
        "import runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv = [name, '--help']\n"
        "    print('MODULE', name, flush=True)\n"
        "    try:\n"
        "        runpy.run_module(name, run_name='__main__', alter_sys=True)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, end.code\n"
        "    else:\n"
        "        raise AssertionError(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    helps = dict(each.split("\n", 1) for each in done.stdout.split("MODULE ")[1:])
    ours = {f"--{name}" for name in ShortlistOptions([]).get_all_options()}
    for module, *flags in lines:
        for flag in (each for each in flags if each.startswith("--")):
            assert re.search(rf"{flag}\b", helps[module]) or flag in ours, f"{module} knows no {flag}"


def test_every_other_block_is_run_here_or_elsewhere(finished: Path) -> None:
    for page in PAGES:
        for block in fenced(page):
            if block.language == "sh" or is_crontab(block):
                continue
            where = f"{block.page}:{block.line}"
            if block.language == "yaml":
                check_yaml(block, finished)
            elif block.language == "sql" and block.page == "operations.md":
                run_sql(block, finished)
            elif block.language == "python" and block.page == "serving.md":
                continue  # It is run with the commands before it.
            elif block.language == "":
                assert not re.search(r"^(python|pip|make)\b", block.text, re.MULTILINE), f"{where} has commands: mark it as sh"
            else:
                assert (block.page, block.language) in OTHER_TESTS, f"{where}: nothing runs this {block.language}"
    for (_, language), test in OTHER_TESTS.items():
        assert not test or language.split()[0] in (ROOT / test).read_text()


def check_yaml(block: Block, finished: Path) -> None:
    found = yaml.safe_load(block.text)
    if block.page == "sweep.md":
        assert trials_of(found, TrainingSettings(), 2 if "low" in block.text else None, block.page)
    else:
        path = str(finished / f"{block.page}-{block.line}.yaml")
        Path(path).write_text(block.text)
        parse_command([f"--config={path}", *([] if "output" in found else ["--output=output/mine"])], "")


def run_sql(block: Block, finished: Path) -> None:
    (finished / "data" / "ratings" / "until=2026-11-20").mkdir(parents=True, exist_ok=True)
    sql = re.sub(r"'(data/[^']*)'", lambda found: f"'{finished}/{found[1]}'", block.text)
    written = f"{finished}/data/ratings/until=2026-11-20/ratings.parquet"
    meant = f"FROM '{finished}/ratings.parquet' WHERE timestamp < epoch(TIMESTAMP '2026-11-21')"
    with duckdb.connect() as connection:
        connection.execute(sql)
        found = [connection.execute(f"SELECT count(*) {rows}").fetchall() for rows in (f"FROM '{written}'", meant)]
    assert found[0] == found[1]


def test_the_finished_outputs_serve_the_same(finished: Path) -> None:
    """Or else commands would be run on another output than the pages mean."""
    assert len({str(read_json(str(finished / output / "LATEST"))) for output in OUTPUTS}) == 1
