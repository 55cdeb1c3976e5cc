"""What is installed and what workers get holds the three packages and works; nothing of the project speaks of one machine."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines import __version__
from pipelines.cli.command import MISTAKE, OK
from pipelines.shortlist import COMMANDS
from schemas.storage import read_json
from tests.made_data import write_items, write_ratings

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("pipelines", "transforms", "schemas")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {"test": "requirements-dev.txt", "benchmarks": "requirements-benchmarks.txt", "spark": "requirements-spark.txt"}
"""Where the packages of an extra are pinned."""


def modules() -> set[str]:
    """Returns the files of all modules of the three packages, however deep."""
    return {str(path.relative_to(ROOT)) for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with what is not to be packaged, since setuptools leaves folders behind where it builds."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in (*PACKAGES, "tests", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_source_distribution_holds_all_modules_of_the_three_packages(copy: Path, tmp_path: Path) -> None:
    # What Beam does with --setup_file ./setup.py.
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (archive,) = tmp_path.glob("shortlist-*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert modules() <= held


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` builds first."""
    folder = tmp_path_factory.mktemp("wheel")
    # The network is not needed: setuptools is among what TensorFlow requires.
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(folder), str(copy)],
        check=True,
        capture_output=True,
    )
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_the_modules_of_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    described = {name for name in held if name.startswith(f"shortlist-{__version__}.dist-info/")}
    assert held - described == modules()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of a new environment with the wheel, which sees the packages that the tests' environment has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    pinned = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    Path(sysconfig.get_path("purelib", vars=paths), "pinned.pth").write_text("\n".join(pinned) + "\n")
    scripts = Path(sysconfig.get_path("scripts", vars=paths))
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python")]
    # An installation of the project in the tests' environment is neither enough nor to be touched.
    install = ["install", "--ignore-installed", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    return scripts


def run_installed(installed: Path, cwd: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(installed / command[0]), *command[1:]],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_installed_program_knows_its_commands_and_its_version(installed: Path, tmp_path: Path) -> None:
    found = run_installed(installed, tmp_path, "python", "-c", "import pipelines; print(pipelines.__file__)")
    assert Path(found.stdout).is_relative_to(installed.parent)
    shown = run_installed(installed, tmp_path, "shortlist", "--help")
    assert (shown.returncode, shown.stderr) == (OK, "")
    assert [line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)
    assert run_installed(installed, tmp_path, "shortlist", "--version").stdout == f"shortlist {__version__}\n"
    unknown = run_installed(installed, tmp_path, "shortlist", "repotr")
    assert (unknown.returncode, unknown.stdout) == (MISTAKE, "")
    assert unknown.stderr == "error: there is no command 'repotr': did you mean report or export?\n"


def test_the_installed_program_runs_the_whole_job_from_another_folder(installed: Path, tmp_path: Path) -> None:
    write_ratings(tmp_path)
    write_items(tmp_path)
    (tmp_path / "job.yaml").write_text("dim: 8\nepochs: 2\nk: 5\nnum_shards: 2\nnum_buckets: 2\nmin_lift: 0\n")
    job = ["shortlist", "run", "--config=job.yaml", "--ratings=ratings.csv", "--items=items.csv", "--output=out"]
    made = run_installed(installed, tmp_path, *job)
    assert made.returncode == OK, made.stderr
    latest = read_json(str(tmp_path / "out" / "LATEST"))
    rows = [row for path in latest["topk"] for row in pq.read_table(tmp_path / "out" / path).to_pylist()]
    assert len({row["user_id"] for row in rows}) == len(rows) == 60
    assert all(len(row["recommendations"]) == 5 for row in rows)

    again = run_installed(installed, tmp_path, *job, PYTHONPROFILEIMPORTTIME="1")
    assert again.returncode == OK, again.stderr
    imported = {line.rpartition("|")[2].strip() for line in again.stderr.splitlines() if line.startswith("import time:")}
    assert "apache_beam" in imported
    assert not {"tensorflow", "tf_keras", "scann"} & imported
    assert read_json(str(tmp_path / "out" / "LATEST"))["topk"] == latest["topk"]

    shown = run_installed(installed, tmp_path, "shortlist", "lookup", "--output=out", "--user=u3", "--top=2")
    assert (shown.returncode, shown.stderr) == (OK, "")
    assert "user u3" in shown.stdout
    mistake = run_installed(installed, tmp_path, "shortlist", "lookup", "--output=out", "--user=nobody")
    assert mistake.returncode == MISTAKE
    assert mistake.stderr.startswith("error: user 'nobody' is not in release")
    assert mistake.stderr.count("\n") == 1


def test_tensorboard_starts_with_what_is_installed() -> None:
    # It imports pkg_resources, which setuptools no longer has, and a new environment of Python 3.12 would get the newest.
    subprocess.run([sys.executable, "-c", "import tensorboard.default"], check=True, capture_output=True)


def pins_of(name: str) -> dict[str, str]:
    """Returns the version that a file of requirements has of each package."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith(("#", "-r"))]
    assert all(re.fullmatch(r"[\w.-]+==\S+", line) for line in lines), name
    named = [line.split("==") for line in lines]
    pins: dict[str, str] = {canonicalize_name(package): version for package, version in named}
    assert len(pins) == len(named), name
    return pins


def test_every_pinned_version_is_exact_and_fits_the_packages_own_bounds() -> None:
    pinned = pins_of("requirements.txt")
    for bound in map(Requirement, PROJECT["dependencies"]):
        assert bound.specifier.contains(pinned[canonicalize_name(bound.name)]), bound
    assert not any(name.startswith("torch") or name == "recbole" for name in pinned)


def test_every_extra_is_pinned_within_its_bounds_and_no_two_files_differ() -> None:
    extras = {name: list(map(Requirement, bounds)) for name, bounds in PROJECT["optional-dependencies"].items()}
    for extra, name in PINS.items():
        pinned = pins_of(name)
        for bound in extras[extra]:
            assert bound.specifier.contains(pinned[canonicalize_name(bound.name)]), bound
    # Object stores need what Beam says that they need, of the Beam that is installed anyway.
    for extra in extras.keys() - PINS.keys():
        assert [(bound.name, bound.extras, str(bound.specifier)) for bound in extras[extra]] == [("apache-beam", {extra}, "")]
    everywhere: dict[str, str] = {}
    for name in ("requirements.txt", *PINS.values()):
        for package, version in pins_of(name).items():
            assert everywhere.setdefault(package, version) == version, (name, package)


def test_every_package_that_is_imported_is_required() -> None:
    imported = set()
    for path in modules():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    required = {canonicalize_name(Requirement(each).name) for each in PROJECT["dependencies"]}
    distributions = packages_distributions()
    for name in imported - set(PACKAGES) - sys.stdlib_module_names:
        assert required & set(map(canonicalize_name, distributions[name])), name


def test_flags_in_the_documentation_exist() -> None:
    from pipelines.cli.options import OneLineParser, ShortlistOptions

    parser = OneLineParser()
    ShortlistOptions._add_argparse_args(parser)
    known = {name for action in parser._actions for name in action.option_strings}
    for command in [*(ROOT / "benchmarks").rglob("*.py"), ROOT / "pipelines/releases.py"]:
        known |= set(re.findall(r'add_argument\(\s*"(--\w+)"', command.read_text()))
    # Those of Beam, git, TensorBoard and tools.
    known |= {
        "--runner",
        "--prism_location",
        "--setup_file",
        "--direct_running_mode",
        "--direct_num_workers",
        "--user",
        "--top",
        "--why",
        "--release",
        "--to",
        "--logdir",
    }
    for page in PAGES:
        mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_]*", page.read_text()))
        assert mentioned <= known, page.name


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_files_that_the_pages_name_are_there() -> None:
    for page in PAGES:
        for named in re.findall(r"`((?:pipelines|transforms|schemas|tests|examples)/[\w/.-]+)", page.read_text()):
            assert "NAME" in named or (ROOT / named).exists(), f"{page.name}: {named}"
