"""The report on a release: one HTML page that stands alone, with no script and nothing from any network.

Everything it says comes from the release's manifest and from files that the manifest names, so the same release gives the same
page, byte for byte. Each chart has its numbers beside it as a table. The colours follow the reader's light or dark theme, and
those of a chart stay apart for colour-blind readers; on paper it is black on white.
"""

from collections.abc import Iterator

from schemas.release_manifest import CarriedLists, Release
from schemas.words import counted
from transforms.charts.markup import Html, foreign, join, tag
from transforms.evaluate.arrivals import arrivals_from, arrivals_of, lines_of, moment
from transforms.evaluate.gates import ways_on
from transforms.report.charts import (
    Scores,
    Shares,
    bins_of,
    bins_panel,
    gini,
    past_panels,
    popularity_panel,
    quality_panel,
)
from transforms.report.facts import Report
from transforms.report.how_made import footer, search, stages, training
from transforms.report.numbers import (
    NOTHING,
    Row,
    count_of,
    figure_of,
    item_of,
    median_of,
    named,
    number_of,
    numbers_of,
    shown_metrics,
    split_in_words,
    table_of,
    tile,
    time_of,
)
from transforms.report.past import row_of
from transforms.report.style import STYLE
from transforms.search.ranking_metrics import compared_metrics

SECTIONS = {
    "arrivals": "What came in",
    "quality": "Quality",
    "past": "The last releases",
    "gates": "Gates",
    "items": "What is recommended",
    "users": "Users",
    "search": "Search",
    "training": "Training",
    "stages": "Stages",
}
"""The sections: their anchors and headings, in order."""

_TOP_SHARES = (0.001, 0.01, 0.1, 0.5)


def render(report: Report) -> str:
    """Returns the page."""
    release = report.release
    bodies = {
        "arrivals": _arrivals(release),
        "quality": _quality(release),
        "past": _past(release),
        "gates": _gates(release),
        "items": _items(report),
        "users": _users(report),
        "search": search(release),
        "training": training(report),
        "stages": stages(release),
    }
    links = [tag("a", heading, href=f"#{anchor}") for anchor, heading in SECTIONS.items()]
    sections = [
        tag(
            "section",
            tag("h2", heading, id=f"{anchor}-heading"),
            *bodies[anchor],
            id=anchor,
            aria_labelledby=f"{anchor}-heading",
        )
        for anchor, heading in SECTIONS.items()
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Release {release.name}"),
        tag("style", Html(STYLE)),
    )
    body = tag("body", _header(release), tag("nav", *links, aria_label="Sections"), tag("main", *sections), footer(release))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _header(release: Release) -> Html:
    status = release.status
    word = {"passed": "passed its gates", "failed": "failed its gates"}.get(status, status)
    lines = [
        f"{counted(release.rows, 'user')}, made {time_of(release.created_at)}, "
        f"judged {time_of(release.judged_at) if release.judged_at else NOTHING}"
    ]
    if release.before:
        lines.append(f", beside release {release.before.release}")
    if release.base:
        lines.append(f". {_kept(release.base)}")
    return tag(
        "header",
        tag("h1", "Release ", tag("span", release.name, class_="name"), " ", tag("span", word, class_=f"chip {status}")),
        tag("p", *lines, class_="soft"),
        *_failed(release),
        tag("div", *_tiles(release), class_="tiles"),
    )


def _failed(release: Release) -> Iterator[Html]:
    """Yields what kept the release from being served, and what to run next; nothing where nothing did."""
    failed = {name: gate for name, gate in release.gates.items() if gate.status == "failed"}
    if not failed:
        return
    last = release.compared_with.release if release.compared_with else None
    diff = f"python -m pipelines.releases diff {last} {release.name} --output DIR"
    steps = [
        tag("li", "If the data is wrong, correct it and run the same command again: different data makes a new run."),
        tag("li", "If all is as it should be, run the same command again with ", tag("code", " ".join(ways_on(failed))), "."),
    ]
    if last:
        steps.insert(0, tag("li", "Look what has changed: ", tag("code", diff)))
    yield tag(
        "div",
        tag("strong", f"It is not served: {len(failed)} of {len(release.gates)} gates failed."),
        tag("ul", *(tag("li", tag("strong", name), ": ", gate.reason) for name, gate in failed.items())),
        tag("strong", "What to run next"),
        tag("ul", *steps),
        class_="failed-gates",
    )


def _arrivals(release: Release) -> Iterator[Html]:
    last = release.before
    then = arrivals_from(last.arrivals) if last else None
    rows = [[each.name, each.now, each.then, each.change] for each in lines_of(arrivals_of(release.stages), then)]
    if last:
        yield tag("p", f"Beside release {last.release}, which was served when this one was judged.", class_="soft")
    else:
        yield tag("p", "This is the first release: there is nothing to compare it with.", class_="soft")
    yield table_of(["what", "this release", "last", "change"], rows, "What came in", words=(3,))


def _past(release: Release) -> Iterator[Html]:
    rows = [*(release.before.past if release.before else ()), row_of(release)]
    if len(rows) < 2:
        yield tag("p", "Nothing is known of releases before this one.")
        return
    k = release.evaluated.split.get("k") if release.evaluated else None
    metrics = {name: named(name) for name in (compared_metrics(k) if k else ())}
    yield tag("p", f"The last of {len(rows):,} releases is this one; the others were served before it, one after the other.")
    panels = past_panels(rows, metrics, next(iter(metrics), ""))
    yield tag("div", *(figure_of(panel) for panel in panels), class_="figures")
    heads = ["release", "made", "ratings", "users", "items", "newest rating", *metrics.values()]
    table = [
        [
            row["release"],
            time_of(row["created_at"]),
            *(count_of(row[name]) for name in ("ratings", "users", "items")),
            moment(row["newest"]),
            *(number_of(row["quality"].get(name)) for name in metrics),
        ]
        for row in rows[::-1]
    ]
    yield numbers_of(heads, table)


def _kept(base: CarriedLists) -> str:
    """Returns what was kept of the release that this one builds on."""
    model = f"The model is that of release {base.release}"
    if base.why_nobody:
        return f"{model}; all lists are new, since {base.why_nobody}."
    why = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in base.new_lists.items() if count)
    return f"{model}; {base.carried:,} of {base.users:,} lists were copied from it" + (
        f", the others are new ({why})." if why else "."
    )


def _tiles(release: Release) -> Iterator[Html]:
    table, evaluated = release.stages["judge"].metrics["table"], release.evaluated
    if evaluated and evaluated.quality["users"]:
        quality = evaluated.quality
        for metric in compared_metrics(evaluated.split["k"]):
            note = ""
            popular = evaluated.metrics["popularity"]["means"][metric]
            if popular:
                note = f"{quality['means'][metric] / popular:.2f} times popularity"
            yield tile(named(metric), f"{quality['means'][metric]:.3f}", note)
    recall = release.metrics["recall_against_exact"]
    if recall["mean"] is not None:
        yield tile("Recall of the index", f"{recall['mean']:.3f}", "against exact search")
    eligible = table["items_eligible"]
    share = f"{100 * table['items_listed'] / eligible:.0f} %" if eligible else NOTHING
    yield tile("Items in a list", share, f"{table['items_listed']:,} of {eligible:,}")
    if table["overlap"]:
        yield tile("Same as last time", f"{table['overlap']['mean_jaccard']:.2f}", f"mean Jaccard@{table['overlap']['k']}")
    else:
        yield tile("Same as last time", NOTHING, "nothing to compare with")


def _quality(release: Release) -> Iterator[Html]:
    evaluated, last = release.evaluated, release.before
    if evaluated is None or not evaluated.quality["users"]:
        yield tag("p", "Nothing is held out, so nothing is measured here: see --split and --refit.")
        return
    metrics, quality = evaluated.metrics, evaluated.quality
    about = f"Mean over {counted(quality['users'], 'user')} with held-out items ({split_in_words(evaluated.split)})."
    refitted = bool(evaluated.stages) if evaluated.refitted is None else evaluated.refitted
    if refitted:
        about += " They are those of the model before the refit, which has not learned from what is held out."
    if refitted and release.base:
        about += " It was evaluated when the model that is kept was trained."
    yield tag("p", about)
    then = last.evaluation if last and last.evaluation["quality"]["users"] else None
    same = then is not None and then["split"] == evaluated.split
    if then and not same:
        yield tag("p", "The last release was evaluated in another way, so its numbers are not comparable.", class_="soft")
    scored = [Scores("this release", quality["means"], quality["standard_errors"])]
    if then:
        scored.append(Scores("last release", then["quality"]["means"], then["quality"]["standard_errors"]))
    else:
        scored.append(Scores("", {}, {}))
    scored += [
        Scores(name, metrics[column]["means"], metrics[column]["standard_errors"])
        for name, column in (("popularity", "popularity"), ("recent popularity", "recent_popularity"))
    ]
    shown = {name: named(name) for name in shown_metrics(quality["means"])}
    rows = []
    for name, value in quality["means"].items():
        error, before = quality["standard_errors"].get(name), scored[1].means.get(name)
        change = f"{value - before:+.4f}" if same and before is not None else NOTHING
        others = [each.means.get(name) for each in scored[2:]]
        rows.append(
            [
                named(name),
                number_of(value),
                number_of(error, "±"),
                number_of(before),
                change,
                *(number_of(each) for each in others),
            ]
        )
    heads = ["metric", "this release", "error", "last", "change", "popularity", "recent"]
    chart = figure_of(quality_panel(scored, shown), width=300)
    yield tag("div", chart, table_of(heads, rows, "Held-out metrics"), class_="figures")


def _gates(release: Release) -> Iterator[Html]:
    gates = release.gates
    counts = {
        status: sum(gate.status == status for gate in gates.values()) for status in ("passed", "failed", "forced", "skipped")
    }
    yield tag("p", ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "None were asked.")
    rows = []
    order = {"failed": 0, "forced": 1}
    for name, gate in sorted(gates.items(), key=lambda each: order.get(each[1].status, 2)):
        reason: str = gate.reason
        if gate.forced:
            reason = join([gate.reason, "; overridden: ", foreign(gate.forced)])
        rows.append(
            [
                name,
                tag("span", gate.status, class_=f"chip {gate.status}"),
                number_of(gate.value),
                number_of(gate.limit),
                reason,
            ]
        )
    yield table_of(["gate", "verdict", "found", "limit", "why"], rows, "Gates", words=(1, 4))


def _items(report: Report) -> Iterator[Html]:
    rows = report.described.get("items_by_popularity", ())
    num_items, places = sum(row["items"] for row in rows), sum(row["listings"] for row in rows)
    if not places:
        yield tag("p", "Nothing is known of what is in the lists.")
        return
    shares, spread = Shares.of(rows), report.described["items_by_listings"]
    listed = num_items - sum(row["items"] for row in spread if not row["listings"])
    fair = gini([row["train_count"] for row in rows], [row["items"] for row in rows])
    even = gini([row["listings"] for row in spread], [row["items"] for row in spread])
    yield tag(
        "p",
        f"{places:,} places in lists go to {listed:,} of the catalogue's {num_items:,} items. How unevenly, as a Gini "
        f"coefficient (0: all items alike; 1: one has everything): {even:.2f}, and {fair:.2f} for the interactions that were "
        "learned from.",
    )
    bins = bins_of([row["listings"] for row in spread], [row["items"] for row in spread])
    yield tag(
        "div",
        figure_of(popularity_panel(shares, num_items)),
        figure_of(bins_panel("How many lists an item is in", bins, "lists", "items")),
        class_="figures",
    )
    of_top = [
        [f"{100 * top:g} %", f"{max(1, round(top * num_items)):,}", *(f"{100 * share:.1f} %" for share in shares.at(top))]
        for top in _TOP_SHARES
        if top * num_items >= 1
    ]
    yield table_of(["most popular", "items", "of the interactions", "of the places in lists"], of_top, "Concentration")
    yield numbers_of(["lists", "items"], [[each.name, f"{each.total:,}"] for each in bins])
    top_rows = [
        [
            item_of(row),
            f"{row['listings']:,}",
            f"{100 * row['listings'] / max(1, report.release.rows):.0f} %",
            f"{row['train_count']:,}",
        ]
        for row in report.described["top_items"]
    ]
    yield tag("h3", "Most recommended")
    yield table_of(["item", "lists", "of all lists", "training positives"], top_rows, "Most recommended items")


def _users(report: Report) -> Iterator[Html]:
    rows = report.described.get("users_by_history", ())
    if not rows:
        yield tag("p", "Nothing is known of the users.")
        return
    sources: dict[str, int] = {}
    for row in rows:
        sources[row["source"]] = sources.get(row["source"], 0) + row["users"]
    total = sum(sources.values())
    words = ", ".join(f"{count:,} {source or 'of no source'}" for source, count in sorted(sources.items()))
    yield tag("p", f"{total:,} lists: {words}. Half of the users have at least {median_of(rows):,} training positives.")
    bins = bins_of([row["history_length"] for row in rows], [row["users"] for row in rows])
    yield figure_of(bins_panel("How long histories are", bins, "training positives", "users"), width=420)
    yield numbers_of(["training positives", "users"], [[each.name, f"{each.total:,}"] for each in bins])
    examples = report.described["example_users"]
    if examples:
        yield tag("h3", "A few of them")
        yield tag(
            "p",
            "Chosen by a hash of the id. A mark (✓) is on items that were held out of the history: the user did come to them.",
            class_="soft",
        )
        yield tag("div", *(_example(user) for user in examples), class_="examples")


def _example(user: Row) -> Html:
    latest = [tag("li", item_of(each)) for each in user["history"]]
    listed = [
        tag(
            "tr",
            tag("td", str(rank), class_="soft"),
            tag("td", item_of(each), *([tag("span", " ✓", class_="hit", title="held out")] if each["is_held_out"] else [])),
            tag("td", NOTHING if each["score"] is None else f"{each['score']:.2f}", class_="number"),
        )
        for rank, each in enumerate(user["recommendations"], 1)
    ]
    held_out = f", {user['held_out']:,} held out" if user["held_out"] else ""
    return tag(
        "article",
        tag("h4", "User ", foreign(user["user_id"]), " ", tag("span", user["source"], class_="chip")),
        tag("div", f"Latest of {user['history_length']:,} in the history{held_out}", class_="soft"),
        tag("ul", *latest) if latest else tag("p", "none", class_="soft"),
        tag("div", "Recommended, with scores", class_="soft"),
        tag("div", tag("table", tag("tbody", *listed)), class_="wide"),
    )
