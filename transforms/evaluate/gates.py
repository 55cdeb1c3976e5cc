"""Decides whether a table may be published: one gate for each promise, with what was found, the rule, and the repair.

Gates judge facts that the stages have reported; nothing is read here. A gate that does not apply says why it was skipped; one
that should apply and cannot be asked fails. Each can be overridden by its name, with a reason that stays in the release's
manifest, and says with which value of which flag it would have passed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from schemas.words import are, counted, have
from transforms.evaluate.arrivals import moment, share_of
from transforms.evaluate.findings import FAULTS
from transforms.evaluate.verdicts import (
    ERRORS,
    FAILED,
    FORCED,
    Gate,
    GateInputs,
    GateSettings,
    at_least,
    at_most,
    down,
    make_gate,
    skipped_gate,
    up,
)
from transforms.search.ranking_metrics import compared_metrics

_ALIKE = 0.2
"""Two releases are unlike where a number that decides how hard the task is differs by more than so much of it."""

_DAY_SECONDS = 86_400


def judge_release(facts: GateInputs, settings: GateSettings) -> list[Gate]:
    """Returns the verdict of every gate, in the order of GATES."""
    gates = [*_integrity(facts), *(judge(facts, settings) for judge in _JUDGES)]
    return [
        replace(gate, status=FORCED, forced=settings.forced[gate.name])
        if gate.status == FAILED and gate.name in settings.forced
        else gate
        for gate in gates
    ]


def gates_as_json(gates: list[Gate]) -> dict[str, dict[str, Any]]:
    """Returns gates as a manifest keeps them, by name."""
    return {gate.name: {name: value for name, value in asdict(gate).items() if name != "name"} for gate in gates}


def failures(gates: list[Gate]) -> list[str]:
    """Returns a line for each gate that failed: value, rule, repair, and how to go on if all is as it should be."""
    return [
        f"gate {gate.name} failed: {gate.reason}; {way_on(gate.name, gate.allow)}" for gate in gates if gate.status == FAILED
    ]


def way_on(name: str, allow: str | None) -> str:
    """Returns what to run next if what made a gate fail was meant."""
    force = f"--force {name}=REASON"
    return f"if that is meant, run the same command again with {f'{allow} or ' if allow else ''}{force}"


def ways_on(gates: Mapping[str, Gate]) -> list[str]:
    """Returns flags with which all gates would have passed, given the gates by name.

    Where several gates name the same flag, the value is the one that is enough for all of them.
    """
    limits: dict[str, str] = {}
    forced = []
    for name, gate in gates.items():
        if gate.status != FAILED:
            continue
        flag, _, value = (gate.allow or "").partition(" ")
        if not flag:
            forced.append(f"--force {name}=REASON")
        elif flag in limits:
            limits[flag] = (max if flag.startswith("--max") else min)(limits[flag], value, key=float)
        else:
            limits[flag] = value
    return [*(f"{flag} {value}" for flag, value in limits.items()), *forced]


def _integrity(facts: GateInputs) -> Iterator[Gate]:
    for name, rule in FAULTS.items():
        count = facts.table["faults"][name]
        example = f", such as {facts.table['examples'][name]}" if count else ""
        users, verb = counted(facts.table["users_expected"], "user"), "breaks" if count == 1 else "break"
        found = f"{count:,} of {users} {verb} the rule that {rule}{example}"
        repair = "the table is damaged or a defect made it; delete the folder of its recommend stage and run again"
        yield make_gate(name, not count, count, 0, found, repair)


def _recall_against_exact(facts: GateInputs, settings: GateSettings) -> Gate:
    name, mean, error = "recall_against_exact", facts.recall["mean"], facts.recall["standard_error"]
    if error is None:
        return skipped_gate(name, "fewer than two lists were compared with exact search")
    passed = mean + ERRORS * error >= facts.target_recall
    found = f"recall against exact search is {mean:.4f} ± {error:.4f}, it must reach {facts.target_recall:g}"
    repair = (
        "the index was calibrated on users unlike these; delete the folder of the index stage to calibrate anew, or lower "
        "--target_recall"
    )
    return make_gate(name, passed, mean, facts.target_recall, found, repair)


def unlike(facts: GateInputs) -> list[str]:
    """Returns in which ways a release and the last one are so unlike that numbers of both are hard to compare, in words."""
    last = facts.last
    if last is None:
        return []
    mine, theirs = facts.evaluation, last.evaluation
    counts: list[tuple[str, int | None, int | None]] = [
        ("items to recommend", last.items, facts.table["items_eligible"]),
        ("users", last.users, facts.table["users"]),
        ("users with held-out items", theirs.quality["users"], mine.quality["users"]),
        ("ratings", last.arrivals.ratings, facts.arrivals.ratings),
    ]
    found = [
        f"{then:,} {what} then, {now:,} now"
        for what, then, now in counts
        if then and now is not None and abs(now - then) > _ALIKE * then
    ]
    if None not in (facts.k, last.k) and facts.k != last.k:
        found.append(f"k {last.k} then, {facts.k} now")
    if mine.quality["users"] and theirs.quality["users"]:
        found += [
            f"{name.replace('_', ' ')} {theirs.split.get(name)} then, {mine.split[name]} now"
            for name in mine.split
            if name != "k" and mine.split[name] != theirs.split.get(name)
        ]
    return found


def _but_unlike(facts: GateInputs) -> str:
    """Returns a clause that says so where a comparison is one of unlike things; nothing where it is not."""
    found = unlike(facts)
    return f"; unlike things are compared: {', '.join(found)}" if found else ""


def _quality(facts: GateInputs, settings: GateSettings) -> Gate:
    name, mine, last = "quality", facts.evaluation, facts.last
    if not mine.quality["users"]:
        return skipped_gate(name, "nothing is held out")
    if last is None:
        return skipped_gate(name, "there is no release before this one")
    theirs = last.evaluation
    if mine.split != theirs.split:
        other = [key for key in mine.split if mine.split[key] != theirs.split.get(key)]
        return skipped_gate(name, f"release {last.release} was evaluated with another {', '.join(other)}: not comparable")
    if min(mine.quality["users"], theirs.quality["users"]) < 2:
        return skipped_gate(name, "fewer than two users have held-out items")
    words, worst, passed = [], 0.0, True
    for metric in compared_metrics(mine.split["k"]):
        now, then = mine.quality["means"][metric], theirs.quality["means"][metric]
        noise = ERRORS * math.hypot(*(each.quality["standard_errors"][metric] for each in (mine, theirs)))
        drop = (then - now) / then if then else 0.0
        worst = max(worst, drop)
        passed &= drop <= settings.max_quality_drop or then - now <= noise
        words.append(f"{metric} is {now:.4f}, in release {last.release} {then:.4f} (two standard errors: {noise:.4f})")
    found = f"{'; '.join(words)}; the drop may be {settings.max_quality_drop:g} of it{_but_unlike(facts)}"
    repair = "look for what changed in the data and in the training curves"
    return make_gate(name, passed, worst, settings.max_quality_drop, found, repair, f"--max_quality_drop {up(worst)}")


def _popularity(facts: GateInputs, settings: GateSettings) -> Gate:
    name, words, lowest, passed = "popularity", [], math.inf, True
    if not facts.evaluation.quality["users"]:
        return skipped_gate(name, "nothing is held out")
    users = min(found["users"] for found in facts.against_popularity.values())
    if users < 2:
        return skipped_gate(name, "fewer than two users have a list of their own and held-out items")
    for metric, found in facts.against_popularity.items():
        mean, popular, noise = found["mean"], found["popularity"], ERRORS * found["standard_error"]
        passed &= mean >= settings.min_lift * popular - noise
        lowest = min(lowest, mean / popular if popular else math.inf)
        words.append(f"{metric} is {mean:.4f}, by popularity {popular:.4f} (two standard errors: {noise:.4f})")
    found_all = (
        f"{'; '.join(words)}, of the {users:,} users with lists of their own; it must be {settings.min_lift:g} times that"
    )
    if settings.min_lift and not any(found["mean"] or found["popularity"] for found in facts.against_popularity.values()):
        found_all = (
            f"the lists of the {users:,} users with lists of their own have nothing that is held out, nor has popularity"
        )
        repair = "nothing shows that the lists are any good; look whether they are empty, and at the split"
        return make_gate(name, False, 0.0, settings.min_lift, found_all, repair, "--min_lift 0")
    value = lowest if math.isfinite(lowest) else None
    repair = "popularity alone is better; look at the times, --min_rating and the training curves"
    return make_gate(name, passed, value, settings.min_lift, found_all, repair, f"--min_lift {down(value or 0.0)}")


def _coverage(facts: GateInputs, settings: GateSettings) -> Gate:
    listed, reachable = facts.table["items_listed"], min(facts.table["items_eligible"], facts.table["pairs"])
    if not reachable:
        found = f"no list has an item, and {facts.table['items_eligible']:,} items may be recommended"
        repair = "look at --block_items, --allow_items and --exclude"
        return at_least("coverage", "min_coverage", 0.0, settings.min_coverage, found, repair)
    share = listed / reachable
    found = (
        f"{listed:,} of the {reachable:,} items that could be listed are ({share:.4f}), it must be {settings.min_coverage:g} "
        "or more"
    )
    repair = "everyone gets the same few items; look at --l2 and the training curves"
    return at_least("coverage", "min_coverage", share, settings.min_coverage, found, repair)


def _empty_lists(facts: GateInputs, settings: GateSettings) -> Gate:
    empty, users, limit = facts.table["lists_empty"], facts.table["users"], settings.max_empty_lists
    lists, items = counted(users, "list"), counted(facts.table["items_eligible"], "item")
    found = f"{empty:,} of {lists} {are(empty)} empty ({share_of((empty, users)):.4f}), at most {limit:g} of them may be"
    repair = f"nothing is left for them of {items} that may be recommended; look at --block_items, --allow_items and --exclude"
    return at_most("empty_lists", "max_empty_lists", share_of((empty, users)), limit, found, repair)


def _short_lists(facts: GateInputs, settings: GateSettings) -> Gate:
    short, users, limit = facts.table["lists_short"], facts.table["users"], settings.max_short_lists
    asked = min(facts.k or facts.table["items"], facts.table["items"])
    found = (
        f"{short:,} of {counted(users, 'list')} {have(short)} less than half of {counted(asked, 'item')} "
        f"({share_of((short, users)):.4f}), at most "
        f"{limit:g} of them may"
    )
    repair = (
        f"{counted(facts.table['items_eligible'], 'item')} may be recommended; look at --block_items, --allow_items and "
        "--exclude, or "
        "lower --k"
    )
    return at_most("short_lists", "max_short_lists", share_of((short, users)), limit, found, repair)


def _overlap(facts: GateInputs, settings: GateSettings) -> Gate:
    overlap = facts.table["overlap"]
    if overlap is None or facts.last is None:
        return skipped_gate("overlap", "there is no release before this one")
    mean = overlap["mean_jaccard"]
    found = (
        f"lists of {counted(overlap['users_in_both'], 'user')} share {mean:.4f} (mean Jaccard@{overlap['k']}) with those of "
        f"release {facts.last.release}, it must be {settings.min_overlap:g} or more{_but_unlike(facts)}"
    )
    repair = "the data, the ids or the model are others than last time"
    return at_least("overlap", "min_overlap", mean, settings.min_overlap, found, repair)


def _histories(facts: GateInputs, settings: GateSettings) -> Gate:
    name, last, limit = "histories", facts.last, settings.min_history_kept
    if last is None:
        return skipped_gate(name, "there is no release before this one")
    found = facts.table["histories"]
    if found is None:
        why = last.users_gone or "they were not compared"
        text = f"what the users of release {last.release} had rated cannot be compared with what they have rated now ({why})"
        return make_gate(name, not limit, None, limit, text, "bring the files back from a copy", "--min_history_kept 0")
    if not found["users_then"]:
        return skipped_gate(name, f"no user of release {last.release} had rated anything")
    users, then = found["users_in_both"], found["users_then"]
    mean = found["mean_kept"] * users / then  # Whoever is not there any more has kept nothing.
    text = (
        f"of what {counted(then, 'user')} had rated in release {last.release}, {mean:.4f} is still theirs, it must be "
        f"{limit:g} or more; {users:,} of them {are(users)} still there"
        if users
        else f"nobody of {counted(then, 'user')} who had rated something in release {last.release} is there any more"
    )
    repair = "look whether ids of users or items were permuted, numbered anew or written in another way, or ratings are missing"
    return at_least(name, "min_history_kept", mean, limit, text, repair)


def _rejected(facts: GateInputs, settings: GateSettings) -> Gate:
    shares = {dataset: count / rows if rows else 0.0 for dataset, (count, rows) in facts.rejected.items()}
    worst = max(shares, key=lambda dataset: shares[dataset])
    count, rows = facts.rejected[worst]
    limit, verb = settings.max_rejected_fraction, "was" if count == 1 else "were"
    found = f"{count:,} of {counted(rows, 'row')} of the {worst} {verb} rejected, at most {limit:g} of them may be"
    repair = "correct the source (ingest keeps what it rejected, with reasons)"
    return at_most("rejected", "max_rejected_fraction", shares[worst], limit, found, repair)


def _repeated(facts: GateInputs, settings: GateSettings) -> Gate:
    name, last, limit = "repeated", facts.last, settings.max_repeated_rise
    if last is None:
        return skipped_gate(name, "there is no release before this one")
    now, then = facts.arrivals.share_repeated, last.arrivals.share_repeated
    if now is None or then is None:
        return skipped_gate(name, f"release {last.release} does not say how many of its ratings were repeated")
    count, rows = facts.arrivals.repeated or (0, 0)
    found = (
        f"{count:,} of {counted(rows, 'rating')} {'repeats' if count == 1 else 'repeat'} another one of the same user and item "
        f"({now:.4f}), in release {last.release} it "
        f"was {then:.4f}; the share may rise by {limit:g}"
    )
    repair = "look whether a part of the ratings was loaded twice"
    return at_most(name, "max_repeated_rise", max(0.0, now - then), limit, found, repair)


def _ratings(facts: GateInputs, settings: GateSettings) -> Gate:
    name, last = "ratings", facts.last
    if last is None:
        return skipped_gate(name, "there is no release before this one")
    now, then = facts.arrivals.ratings, last.arrivals.ratings
    if not now or not then:
        return skipped_gate(name, f"release {last.release} does not say how many ratings it was made of")
    if now < then:
        return _shrunk(name, ("rating", "ratings"), now, then, facts, settings)
    growth = now / then - 1
    found = (
        f"there are {now:,} ratings, in release {last.release} there were {then:,}; at most {settings.max_growth:g} of them "
        "more may come in"
    )
    repair = "look whether a part of the ratings was loaded more than once"
    return at_most(name, "max_growth", growth, settings.max_growth, found, repair)


def _newest(facts: GateInputs, settings: GateSettings) -> Gate:
    name, last, limit = "newest", facts.last, settings.max_days_older
    if last is None:
        return skipped_gate(name, "there is no release before this one")
    now, then = facts.arrivals.newest, last.arrivals.newest
    if then is None:
        return skipped_gate(name, f"the ratings of release {last.release} have no times")
    if now is None:
        found = f"no rating has a time, and the newest of release {last.release} is of {moment(then)}"
        return make_gate(
            name, False, None, limit, found, "nobody can tell how old they are; name their times with --columns timestamp=…"
        )
    days = max(0.0, (then - now) / _DAY_SECONDS)
    found = (
        f"the newest rating is of {moment(now)}, that of release {last.release} of {moment(then)}; it may be {limit:g} days "
        "older"
    )
    if days > limit and facts.arrivals.forgotten != last.arrivals.forgotten:
        return skipped_gate(name, f"{found}; but others are to be forgotten now than then, and the newest may have been theirs")
    return at_most(name, "max_days_older", days, limit, found, "this is an older snapshot of the ratings; give the newest one")


def _users(facts: GateInputs, settings: GateSettings) -> Gate:
    return _shrunk("users", ("user", "users"), facts.table["users"], facts.last.users if facts.last else None, facts, settings)


def _items(facts: GateInputs, settings: GateSettings) -> Gate:
    eligible = facts.table["items_eligible"]
    words = ("item to recommend", "items to recommend")
    return _shrunk("items", words, eligible, facts.last.items if facts.last else None, facts, settings)


def _shrunk(name: str, words: tuple[str, str], now: int, then: int | None, facts: GateInputs, settings: GateSettings) -> Gate:
    """Judges how much less there is of what two words name, the second where it is several."""
    if then is None or facts.last is None:
        return skipped_gate(name, "there is no release before this one")
    shrunk = max(0.0, 1 - now / then) if then else 0.0
    found = (
        f"there {are(now)} {counted(now, *words)}, in release {facts.last.release} there were {then:,}; at most "
        f"{settings.max_shrink:g} of them may be gone"
    )
    return at_most(name, "max_shrink", shrunk, settings.max_shrink, found, "check that the sources and lists are whole")


def _withdrawn(facts: GateInputs, settings: GateSettings) -> Gate:
    found = facts.withdrawn or "this table was never rolled back"
    repair = "correct the data or the settings; or serve it after all, with python -m pipelines.releases rollback and its name"
    return make_gate("withdrawn", facts.withdrawn is None, None, None, found, repair)


_JUDGES = (
    _recall_against_exact,
    _quality,
    _popularity,
    _coverage,
    _empty_lists,
    _short_lists,
    _overlap,
    _histories,
    _rejected,
    _repeated,
    _ratings,
    _newest,
    _users,
    _items,
    _withdrawn,
)
