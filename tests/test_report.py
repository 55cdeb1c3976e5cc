"""The report on a release says what the manifest says and stands alone; nothing that it shows can become part of the page."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import report, run
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.lifecycle.verify import verify_release
from schemas.printable import printable
from schemas.release_manifest import release_in
from schemas.workspace import Workspace
from tests.made_data import ODD_IDS, write_items, write_ratings
from tests.made_releases import signed
from transforms.charts.markup import Html, foreign, tag
from transforms.evaluate.describe_table import DATASETS
from transforms.evaluate.verdicts import GATES
from transforms.report.charts import Shares, bins_of, gini, recall_panels, short
from transforms.report.facts import Report
from transforms.report.page import SECTIONS, render
from transforms.train.curves import CurveRow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

CURVE: list[CurveRow] = [
    {"phase": "search", "epoch": 1, "loss": 5.5, "recall_at_100": 0.25, "ndcg_at_10": 0.125},
    {"phase": "search", "epoch": 2, "loss": 4.5, "recall_at_100": 0.5, "ndcg_at_10": 0.25},
]

Job = tuple[Path, list[str]]


class Page(HTMLParser):
    """What a browser finds in a page: elements, in order, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def marks_of_charts(self) -> Iterator[int]:
        """Yields how many points, bars and lines each chart has."""
        number = None
        for name, attributes in self.tags:
            if name == "svg":
                if number is not None:
                    yield number
                number = 0
            elif name in ("circle", "rect", "path") and "mark" in attributes.get("fill", "") + attributes.get("stroke", ""):
                number = (number or 0) + 1
        if number is not None:
            yield number


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two releases of odd users and items, the second beside the first, and the flags that made it."""
    folder = tmp_path_factory.mktemp("report")
    flags = [f"--ratings={write_ratings(folder)}", f"--items={write_items(folder)}", f"--output={folder / 'out'}"]
    flags += [
        "--dim=8",
        "--l2=0.1",
        "--epochs=12",
        "--learning_rate=0.03",
        "--batch_size=64",
        "--num_buckets=2",
        "--report_users=60",
    ]
    assert run_command(run.main, [*flags, "--k=9"]) == OK
    assert run_command(run.main, [*flags, "--k=10"]) == OK
    return folder / "out", [*flags, "--k=10"]


@pytest.fixture
def job(made: Job, tmp_path: Path) -> Job:
    """A copy of the output, and the flags."""
    output, flags = made
    shutil.copytree(output, tmp_path / "out")
    return tmp_path / "out", [f"--output={tmp_path / 'out'}" if flag.startswith("--output=") else flag for flag in flags]


def release_of(output: Path) -> dict[str, Any]:
    return json.loads((output / json.loads((output / "LATEST").read_text())["manifest"]).read_text())


def page_of(output: Path) -> str:
    return (output / release_of(output)["report"]["path"]).read_text()


def described_of(output: Path) -> dict[str, list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    folder = output / release_of(output)["stages"]["judge"]["folder"]
    return {name: pq.read_table(folder / name / "part-000000.parquet").to_pylist() for name in DATASETS}


# What becomes HTML.


@given(st.text())
def test_text_comes_back_from_the_page_as_it_was_and_makes_no_element(text: str) -> None:
    page = Page(tag("p", text, title=text))
    assert page.text == printable(text, "\n")
    if all(each.isprintable() for each in text):
        assert page.text == text
    ((name, attributes),) = page.tags
    assert (name, attributes["title"]) == ("p", page.text)


def test_only_what_was_made_as_html_is_html() -> None:
    assert (
        tag("p", "<b>", Html("<i>x</i>"), class_="a", aria_label='"')
        == '<p class="a" aria-label="&quot;">&lt;b&gt;<i>x</i></p>'
    )
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert foreign("a\u202eb\nc") == "<bdi>a b c</bdi>", "no character turns the rest of the page around"
    assert len(Page(foreign("x" * 10_000)).text) == 80


# The numbers behind the charts.


def test_shares_and_gini_are_those_of_the_items_one_by_one() -> None:
    rng = np.random.default_rng(0)
    counts, listings = rng.integers(0, 9, 200), rng.integers(0, 50, 200)
    rows = [
        {"train_count": int(n), "items": int((counts == n).sum()), "listings": int(listings[counts == n].sum())}
        for n in np.unique(counts)
    ]
    shares = Shares.of(rows)
    order = np.argsort(-counts, kind="stable")
    for n in range(9):
        # At the end of a group of equally popular items their order does not matter.
        size = int((counts >= n).sum())
        found = shares.at(size / 200)
        assert found == pytest.approx(
            (counts[order[:size]].sum() / counts.sum(), listings[order[:size]].sum() / listings.sum())
        )
    # The mean absolute difference of all pairs, as a share of twice the mean.
    expected = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert gini([row["train_count"] for row in rows], [row["items"] for row in rows]) == pytest.approx(expected)
    assert gini([7], [100]) == pytest.approx(0)
    assert gini([0, 5], [999, 1]) == pytest.approx(0.999)
    assert gini([0], [3]) == 0


def test_bins_double() -> None:
    bins = bins_of([0, 1, 2, 3, 4, 9], [5, 1, 1, 1, 1, 2])
    assert [(each.low, each.high, each.total) for each in bins] == [(0, 0, 5), (1, 1, 1), (2, 3, 2), (4, 7, 1), (8, 15, 2)]
    assert [each.name for each in bins][:3] == ["0", "1", "2 to 3"]
    assert bins_of([], []) == []


def test_short_numbers() -> None:
    assert [short(number) for number in (0, 950, 1234, 35_000, 4_100_000, 2e9)] == ["0", "950", "1.2k", "35k", "4.1M", "2.0G"]


def test_recall_is_drawn_against_leaves_and_cost_and_the_choice_is_marked() -> None:
    def point(leaves: int | None, factor: float, recall: float, cost: float) -> dict[str, Any]:
        search = {"leaves_to_search": leaves, "reorder_per_neighbor": factor, "exact": leaves is None}
        return search | {"recall": recall, "lower_bound": recall - 0.01, "cost": cost}

    curve = [point(5, 1.0, 0.8, 10), point(9, 1.0, 0.9, 20), point(9, 2.0, 0.97, 30), point(None, 1.0, 1.0, 900)]
    search = {"leaves_to_search": 9, "reorder_per_neighbor": 2.0, "exact": False}
    by_leaves, by_cost = recall_panels(curve, search, target=0.95, k=10)
    assert by_leaves.x.label.startswith("leaves")
    assert by_cost.x.label.startswith("cost")
    points = {
        (x, y) for marks in by_leaves.marks if marks.label.startswith("reorder") for x, y in zip(marks.x, marks.y, strict=True)
    }
    assert points == {(5, 0.8), (9, 0.9), (9, 0.97)}
    (chosen,) = [marks for marks in by_cost.marks if marks.label == "chosen"]
    assert (list(chosen.x), list(chosen.y)) == ([30], [0.97])
    assert recall_panels([], search, 0.95, 10) == []


# The page.


def test_the_page_of_a_release_has_every_section_and_every_number(made: Job) -> None:
    output, _ = made
    release, page = release_of(output), Page(page_of(output))
    assert [each["id"] for name, each in page.tags if name == "section"] == list(SECTIONS)
    ids = {each["id"] for _, each in page.tags if "id" in each}
    assert all(each["href"][1:] in ids for name, each in page.tags if name == "a")
    assert all(number > 0 for number in page.marks_of_charts())
    assert sum(name == "figure" for name, _ in page.tags) == sum(name == "svg" for name, _ in page.tags) >= 6
    quality = release["evaluated"]["metrics"]["quality"]["means"]
    for means in (
        quality,
        release["evaluated"]["metrics"]["popularity"]["means"],
        release["evaluated"]["metrics"]["recent_popularity"]["means"],
        release["last"]["evaluation"]["quality"]["means"],
    ):
        assert all(f"{value:.4f}" in page.texts for name, value in means.items() if name in quality)
    assert all(name in page.texts and gate["reason"] in page.text for name, gate in release["gates"].items())
    assert "the last release was evaluated in another way" in page.text.lower(), "k is another"
    assert f"beside release {release['last']['release']}" in page.text
    for name, stage in release["stages"].items():
        assert {name, stage["fingerprint"]} <= set(page.texts)


def test_odd_titles_and_ids_are_shown_and_are_no_markup(made: Job) -> None:
    output, _ = made
    html, described = page_of(output), described_of(output)
    page = Page(html)
    assert not {"script", "b", "img", "iframe"} & {name for name, _ in page.tags}
    assert len(described["example_users"]) == 60
    for user in ODD_IDS:
        assert Page(foreign(user)).text in page.texts
    titles = {each["title"] for user in described["example_users"] for each in user["recommendations"]}
    assert "Title of <script>alert(1)</sc <b>é</b>" in titles
    assert all(Page(foreign(title)).text in page.texts for title in titles)


def test_the_page_stands_alone(made: Job) -> None:
    html = page_of(made[0])
    page = Page(html)
    for name, attributes in page.tags:
        assert name not in ("link", "script", "img", "base", "object", "form")
        assert not any(each.startswith("on") or each in ("src", "style", "srcset") for each in attributes)
        assert attributes.get("href", "#").startswith("#")
    (policy,) = [each["content"] for name, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "url(" not in html
    assert "@import" not in html
    assert "prefers-color-scheme:dark" in html
    assert "@media print" in html
    assert len(html) < 2_000_000


def test_charts_have_names_and_tables_have_headings(made: Job) -> None:
    page = Page(page_of(made[0]))
    for name, attributes in page.tags:
        if name == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if name == "th":
            assert attributes["scope"] in ("col", "row")
    assert sum(name == "caption" for name, _ in page.tags) == sum(name == "thead" for name, _ in page.tags) > 5


def changed(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Returns a copy of a manifest with another value at a path such as 'metrics/users'."""
    copy = json.loads(json.dumps(manifest))
    at = copy
    *names, last = path.split("/")
    for name in names:
        at = at[name]
    at[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("status", "failed", "failed its gates"),
        ("evaluated/metrics/quality/users", 0, "Nothing is held out"),
        ("last", None, "nothing to compare with"),
        ("metrics/recall_against_exact", {"mean": None, "standard_error": None}, "Search"),
        ("gates/order/status", "failed", f"{len(GATES) - 1} passed, 1 failed"),
        ("gates/order/forced", "it is <fine>", "; overridden: it is <fine>"),
        ("stages/ingest/metrics/ratings_read/reasons", {"empty user_id": {"count": 1234, "example": "x"}}, "1,234"),
    ],
)
def test_the_page_says_what_the_manifest_says(made: Job, path: str, value: Any, words: str) -> None:
    manifest = release_of(made[0])
    if path == "last":
        manifest["stages"]["judge"]["metrics"]["table"]["overlap"] = None
    for gate in manifest["gates"].values():
        gate["status"] = "passed"
    assert words in Page(render(Report(release_in(changed(manifest, path, value)), [("x", CURVE)], described_of(made[0])))).text


def test_what_came_in_is_first_and_what_failed_is_before_it_with_what_to_run_next(made: Job) -> None:
    manifest = release_of(made[0])
    page = Page(render(Report(release_in(manifest))))
    assert "It is not served" not in page.text
    assert page.text.index("What came in") < page.text.index("Held-out quality")
    last = manifest["last"]["release"]
    assert f"Beside release {last}" in page.text
    assert [row["release"] for row in manifest["last"]["past"]] == [last]
    assert "The last of 2 releases is this one" in page.text
    for name, found in (("overlap", "--min_overlap 0.02"), ("order", None)):
        manifest["gates"][name] |= {"status": "failed", "reason": f"it is <{name}>", "allow": found}
    page = Page(render(Report(release_in(manifest | {"status": "failed"}))))
    assert f"It is not served: 2 of {len(GATES)} gates failed." in page.text
    words = ["overlap: it is <overlap>", "run the same command again with --min_overlap 0.02 --force order=REASON"]
    places = [page.text.index(each) for each in (*words, "Recall of the index", "Beside release")]
    assert places == sorted(places)
    table = page.text[page.text.index("verdictfoundlimitwhy") :]
    assert table.index("overlapfailed") < table.index("users_oncepassed")


def test_a_release_of_an_earlier_version_has_a_page_too(made: Job) -> None:
    manifest = release_of(made[0])
    manifest["last"] = {name: manifest["last"][name] for name in ("release", "users", "items", "evaluation")}
    for gate in manifest["gates"].values():
        del gate["allow"]
    page = Page(render(Report(release_in(manifest))))
    assert "What came in" in page.text
    assert "This is the first release." not in page.text


def test_what_is_not_known_is_said_to_be_unknown(made: Job) -> None:
    page = Page(render(Report(release_in(release_of(made[0])))))
    assert "Nothing is known of what is in the lists." in page.text
    assert "Nothing is known of the users." in page.text


def test_a_refit_shows_both_trainings(made: Job) -> None:
    manifest = release_of(made[0])
    manifest["evaluated"] |= {"stages": manifest["stages"], "refitted": True}
    page = Page(render(Report(release_in(manifest), [("evaluated", CURVE), ("published", CURVE)])))
    assert {"evaluated", "published", "train (before the refit)"} <= set(page.texts)
    assert "the model before the refit" in page.text


# The command.


def told(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_command(report.main, flags)
    captured = capsys.readouterr()
    return code, captured.out.strip(), captured.err.strip()


def test_a_report_that_is_gone_or_altered_is_made_again_as_it_was(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    output, _ = job
    path = output / release_of(output)["report"]["path"]
    page = path.read_bytes()
    assert told(capsys, f"--output={output}") == (OK, str(path), "")
    path.unlink()
    assert told(capsys, f"--output={output}") == (OK, str(path), "")
    assert path.read_bytes() == page
    path.write_bytes(page + b"<p>")
    assert told(capsys, f"--output={output}") == (OK, str(path), "")
    assert path.read_bytes() == page
    to = output / "elsewhere" / "fresh.html"
    assert told(capsys, f"--output={output}", f"--to={to}") == (OK, str(to), "")
    assert to.read_bytes() == page
    (other,) = [each for each in output.glob("releases/*/report.html") if each != path]
    assert told(capsys, f"--output={output}", f"--release={other.parent.name}") == (OK, str(other), "")


def test_verify_names_a_report_that_is_not_as_it_was_written(job: Job) -> None:
    output, _ = job
    workspace, release = Workspace(str(output)), release_of(output)
    path = output / release["report"]["path"]
    assert verify_release(workspace, release_in(release)).problems == ()
    page = path.read_bytes()
    path.write_bytes(page.replace(b"<html", b"<HTML", 1))
    assert verify_release(workspace, release_in(release)).problems == (f"{path} has other contents than were written",)
    path.write_bytes(page + b"x")
    assert verify_release(workspace, release_in(release)).problems == (
        f"{path} has {len(page) + 1:,} bytes, {len(page):,} were written",
    )
    path.unlink()
    assert verify_release(workspace, release_in(release)).problems == (f"{path} is gone",)


def test_a_report_of_another_version_is_not_replaced(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    output, _ = job
    manifest = output / json.loads((output / "LATEST").read_text())["manifest"]
    release = json.loads(manifest.read_text())
    path = output / release["report"]["path"]
    manifest.write_text(json.dumps(signed(changed(release, "report/sha256", "0" * 64))))
    code, _, error = told(capsys, f"--output={output}")
    assert (code, error) == (
        MISTAKE,
        f"error: {path} is gone or altered, and this version of the program makes another: use the version that published "
        f"release {release['release']}, or write a new one elsewhere with --to FILE",
    )
    old = changed(release, "stages/judge", None)
    del old["stages"]["judge"]
    manifest.write_text(json.dumps(signed(old)))
    code, _, error = told(capsys, f"--output={output}", f"--to={output / 'x.html'}")
    assert code == MISTAKE
    assert error.endswith("was made by a program without gates, which measured too little for a report: publish again")
    manifest.write_text(json.dumps(signed(changed(release, "report", None))))
    code, _, error = told(capsys, f"--output={output}")
    assert (code, error) == (
        MISTAKE,
        f"error: release {release['release']} was published without a report: make one with --to FILE",
    )


def test_mistakes_are_named_in_one_line(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    output, flags = job
    assert told(capsys, f"--output={output / 'nothing'}")[::2] == (
        MISTAKE,
        f"error: nothing is served below {output / 'nothing'}: name a release with --release, or run python -m pipelines.run "
        "first",
    )
    code, _, error = told(capsys, f"--output={output}", "--release=none")
    assert code == MISTAKE
    assert error.startswith("error: there is no release 'none' below")
    code, _, error = told(capsys, f"--output={output}", f"--to={output / 'LATEST' / 'x.html'}")
    assert code == MISTAKE
    assert error.endswith("choose another place with --to FILE")
    folder = output / release_of(output)["stages"]["train"]["folder"]
    (folder / "curves.json").write_text("{")
    code, _, error = told(capsys, f"--output={output}", f"--to={output / 'x.html'}")
    assert code == MISTAKE
    assert error.startswith(f"error: {folder / 'curves.json'} is gone or damaged (")
    assert error.endswith("delete the folder of its stage and run the same command again")
    capsys.readouterr()
    assert run_command(run.main, [*flags, "--report_users=101"]) == MISTAKE
    assert "report_users must be between 0 and 100, got 101: change --report_users" in capsys.readouterr().err


# A browser.


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Opens a page in headless Chromium; returns the document as it is then, and what went to the console."""
    assert CHROMIUM
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_the_page_and_runs_nothing(made: Job, tmp_path: Path) -> None:
    path = made[0] / release_of(made[0])["report"]["path"]
    document, console = browse(path, tmp_path / "profile")
    assert console == []
    page, written = Page(document), Page(path.read_text())
    assert [each["id"] for name, each in page.tags if name == "section"] == list(SECTIONS)
    assert list(page.marks_of_charts()) == list(written.marks_of_charts())
    assert [name for name, _ in page.tags] == [name for name, _ in written.tags], "the browser had nothing to mend"
    assert not any(name == "script" for name, _ in page.tags)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_browser_would_tell_of_a_script(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><p id=x></p><script>console.log('it ran'); x.textContent = 'by a script'</script>")
    document, console = browse(bad, tmp_path / "profile")
    assert len(console) == 1
    assert "it ran" in console[0]
    assert "by a script" in document
