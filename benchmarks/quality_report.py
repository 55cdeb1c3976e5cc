"""Turns what `benchmarks.quality` measured into figures, a Markdown table and a chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.judging import METRICS, OBJECTIVE, Judged
from transforms.charts.draw import GREY, Axis, Marks, Panel, draw

SHOWN = ("recall@10", "recall@20", "recall@50", "recall@100", "ndcg@10", "ndcg@20", "mrr")
COMPARED = PLOTTED = ("recall@100", "ndcg@10")
OURS = "Shortlist, "
"""Begins the name of each of our own rows."""


@dataclass(frozen=True)
class Row:
    """A model's results.

    Attributes:
      name: as in the table.
      settings: those it was trained with.
      validation: Recall@100 + NDCG@10 on its validation slice; None where nothing was tuned.
      seconds: to tune, to fit and to judge.
      by_seed: what was judged, for each seed.
    """

    name: str
    settings: Mapping[str, Any]
    validation: float | None
    seconds: float
    by_seed: Sequence[Judged]


def figures(rows: Sequence[Row], users: np.ndarray) -> dict[str, Any]:
    """Returns every figure of a group of users, as JSON.

    Args:
      rows: the models'.
      users: [num_judged] bool: who is in the group.
    """
    of_users = {row.name: np.mean([judged.of_users[users] for judged in row.by_seed], axis=0) for row in rows}
    anchors = [row.name for row in rows if not row.name.startswith(OURS)]
    places = [METRICS.index(name) for name in OBJECTIVE]
    best = max(anchors, key=lambda name: of_users[name][:, places].sum(axis=1).mean(), default=None)
    return {
        "users": int(users.sum()),
        "best_anchor": best,
        "models": [
            {
                "name": row.name,
                "settings": dict(row.settings),
                "validation": row.validation,
                "seconds": round(row.seconds, 1),
                "means": dict(zip(METRICS, of_users[row.name].mean(axis=0).tolist(), strict=True)),
                "standard_errors": dict(zip(METRICS, error_of_mean(of_users[row.name]), strict=True)),
                "means_of_seeds": [
                    dict(zip(METRICS, judged.of_users[users].mean(axis=0).tolist(), strict=True)) for judged in row.by_seed
                ],
                "standard_errors_over_seeds": dict(
                    zip(METRICS, error_of_mean(np.array([j.of_users[users].mean(axis=0) for j in row.by_seed])), strict=True)
                ),
                "coverage@100": float(np.mean([judged.coverage for judged in row.by_seed])),
                "against_best_anchor": difference(of_users[row.name], of_users[best]) if best else None,
            }
            for row in rows
        ],
    }


def error_of_mean(values: np.ndarray) -> list[float | None]:
    """Returns the standard error of the mean of each column of [n, m] float64; None with fewer than two rows."""
    if len(values) < 2:
        return [None] * values.shape[1]
    return (values.std(axis=0, ddof=1) / np.sqrt(len(values))).tolist()


def difference(ours: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Returns how far one model is above another, user by user, so that what users have in common cancels out."""
    gained = ours - others
    return {
        name: {"mean": float(gained[:, METRICS.index(name)].mean()), "standard_error": error}
        for name, error in zip(METRICS, error_of_mean(gained), strict=True)
        if name in COMPARED
    }


def table_of(group: Mapping[str, Any]) -> str:
    """Returns a group's figures as a Markdown table."""
    best = group["best_anchor"]
    head = ["model", *(shown_name(name) for name in SHOWN), "coverage@100"]
    head += [f"{shown_name(name)} against {best}" for name in COMPARED] if best else []
    lines = [head, ["---"] * len(head)]
    for model in group["models"]:
        cells = [model["name"]]
        cells += [with_error(model["means"][name], model["standard_errors"][name]) for name in SHOWN]
        cells.append(f"{model['coverage@100']:.2f}")
        if best:
            gained = model["against_best_anchor"]
            cells += [
                "" if model["name"] == best else with_error(gained[name]["mean"], gained[name]["standard_error"], "+")
                for name in COMPARED
            ]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shown_name(metric: str) -> str:
    """Returns a metric as people write it: Recall@100, NDCG@10, MRR."""
    name, at, cutoff = metric.partition("@")
    return {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR"}[name] + at + cutoff


def with_error(value: float, error: float | None, sign: str = "") -> str:
    """Returns '.7239 ± .0061'."""
    digits = f"{value:{sign}.4f}".replace("0.", ".", 1)
    return digits if error is None else f"{digits} ± {f'{error:.4f}'.replace('0.', '.', 1)}"


def chart_of(result: Mapping[str, Any]) -> str:
    """Returns an SVG: each model's Recall@100 and NDCG@10 over the users with training ratings, with standard errors."""
    models = result["groups"][0]["models"]
    ours = [index for index, model in enumerate(models) if model["name"].startswith(OURS)]
    anchors = [index for index in range(len(models)) if index not in ours]

    def marks_of(metric: str, rows: list[int], label: str, color: int) -> Marks:
        means = [models[index]["means"][metric] for index in rows]
        errors = [models[index]["standard_errors"][metric] or 0.0 for index in rows]
        names = [models[index]["name"] for index in rows]
        tips = [f"{each}: {with_error(*figure)}" for each, *figure in zip(names, means, errors, strict=True)]
        return Marks(means, rows, label, color, errors, tips=tips)

    panels = [
        Panel(
            shown_name(metric),
            [marks_of(metric, anchors, "others, tuned", GREY), marks_of(metric, ours, "Shortlist", 0)],
            y=Axis(names=[model["name"] if at == 0 else "" for model in models]),
        )
        for at, metric in enumerate(PLOTTED)
    ]
    note = f"mean over {result['groups'][0]['users']:,} users and {len(result['seeds'])} seeds, with standard errors over users"
    return draw(f"{result['title']}", panels, note=note)
