"""One program calls all commands by name, and is to each what `python -m` is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import __version__
from pipelines.cli.command import MISTAKE, OK
from pipelines.shortlist import COMMANDS, main

PIPELINES = Path(__file__).parent.parent / "pipelines"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=PIPELINES.parent, capture_output=True, text=True, timeout=600, check=False
    )


def test_the_commands_are_all_the_modules_that_run_as_one() -> None:
    runnable = {path.stem for path in PIPELINES.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    assert runnable == {*COMMANDS, "shortlist"}
    assert len(set(COMMANDS)) == len(COMMANDS)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_says_in_a_line_what_each_command_does(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == OK
    shown = dict(re.findall(r"^  (\w+)  +(\S.*)$", capsys.readouterr().out, re.MULTILINE))
    assert list(shown) == list(COMMANDS)
    assert shown["run"] == "Runs the whole job"
    for name, purpose in shown.items():
        assert (PIPELINES / f"{name}.py").read_text().startswith(f'"""{purpose}')
        assert "python -m" not in purpose


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == OK
    assert capsys.readouterr().out == f"shortlist {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["recomend"], "there is no command 'recomend': did you mean recommend or embed?"),
        (["Run", "--help"], "there is no command 'Run': did you mean run?"),
        (["qqq"], f"there is no command 'qqq': give one of {', '.join(COMMANDS)}"),
        (["\x1b[2J"], f"there is no command '\\x1b[2J': give one of {', '.join(COMMANDS)}"),
        (["shortlist"], f"there is no command 'shortlist': give one of {', '.join(COMMANDS)}"),
        ([], f"no command: give one of {', '.join(COMMANDS)}: see --help"),
        (["--k=5"], "the command comes first, then its flags, got '--k=5': write it as shortlist run --k=5"),
    ],
)
def test_what_is_no_command_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == MISTAKE
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"error: {said}\n")


@pytest.mark.parametrize(
    "flags",
    [
        ["run", "--ratings=none.csv", "--output=OUT"],
        ["index", "--output=OUT"],
        ["releases", "nothing", "--output=OUT"],
        ["report", "--outptu=OUT"],
    ],
    ids=lambda flags: flags[0],
)
def test_a_command_ends_and_says_the_same_by_its_name_as_by_its_module(flags: list[str], tmp_path: Path) -> None:
    name, *flags = [flag.replace("OUT", str(tmp_path / "out")) for flag in flags]
    by_module = run_python("-m", f"pipelines.{name}", *flags)
    by_name = run_python("-m", "pipelines.shortlist", name, *flags)
    assert by_module.returncode == MISTAKE
    assert (by_name.returncode, by_name.stdout, by_name.stderr) == (by_module.returncode, by_module.stdout, by_module.stderr)


def test_the_help_of_a_command_shows_how_it_was_called() -> None:
    assert run_python("-m", "pipelines.shortlist", "lookup", "--help").stdout.startswith("usage: shortlist lookup ")
    assert run_python("-m", "pipelines.shortlist", "releases", "gc", "-h").stdout.startswith("usage: shortlist releases gc ")
    assert run_python("-m", "pipelines.lookup", "--help").stdout.startswith("usage: python -m pipelines.lookup ")


def test_what_needs_no_command_imports_none() -> None:
    code = """
import sys
from pipelines.shortlist import main
main(["--help"]), main(["nothing"])
print(*sorted({"apache_beam", "pyarrow", "numpy", "tensorflow", "scann"} & sys.modules.keys()))
"""
    assert run_python("-c", code).stdout.splitlines()[-1] == ""


def test_what_a_module_exits_with_is_returned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = ["lookup", f"--output={tmp_path}", "--user=1"]
    before = sys.argv
    monkeypatch.delitem(sys.modules, "pipelines.lookup", raising=False)
    assert main(flags) == MISTAKE
    assert sys.argv is before
