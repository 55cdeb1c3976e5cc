"""The package that workers get holds the three packages, and nothing of the project speaks of one machine."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_source_distribution_holds_all_modules_of_the_three_packages(tmp_path: Path) -> None:
    # What Beam does with --setup_file ./setup.py, in a copy, since setuptools leaves a folder behind.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "pipelines", "transforms", "schemas", "tests"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy)], check=True)
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (archive,) = tmp_path.glob("shortlist-*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("pipelines", "transforms", "schemas")
        for path in (ROOT / folder).glob("*.py")
    }
    assert modules <= held


def test_every_pinned_version_is_exact_and_fits_the_packages_own_bounds() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==\S+", line) for line in lines)
    pinned = dict(line.split("==") for line in lines)
    for name, version in {
        "apache-beam": "2.77",
        "tensorflow": "2.20",
        "scann": "1.4.2",
        "pyarrow": "25",
        "numpy": "2.4",
    }.items():
        assert pinned[name].startswith(version)
    assert not any(name.startswith("torch") or name == "recbole" for name in pinned)


def test_flags_in_the_documentation_exist() -> None:
    from pipelines.settings import OneLineParser, ShortlistOptions

    parser = OneLineParser()
    ShortlistOptions._add_argparse_args(parser)
    known = {name for action in parser._actions for name in action.option_strings}
    for command in [*(ROOT / "benchmarks").rglob("*.py"), ROOT / "pipelines/releases.py"]:
        known |= set(re.findall(r'add_argument\(\s*"(--\w+)"', command.read_text()))
    # Those of Beam, git, TensorBoard and tools.
    known |= {
        "--runner",
        "--flink_master",
        "--setup_file",
        "--direct_running_mode",
        "--direct_num_workers",
        "--user",
        "--top",
        "--release",
        "--to",
        "--logdir",
    }
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_]*", page.read_text()))
        assert mentioned <= known, page.name


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
