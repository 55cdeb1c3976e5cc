"""Flags become settings; every mistake is one line that names the value, the rule and the repair."""

import argparse
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from pipelines import releases
from pipelines.cli import flags_page
from pipelines.cli.config import parse_command
from pipelines.cli.options import OneLineParser, ShortlistOptions
from pipelines.cli.read_flags import settings_of_job
from pipelines.lifecycle import show
from schemas.errors import InputError
from transforms.search.scann_index import BuildSettings
from transforms.search.search import SearchSettings

OUTPUT = ["--output", "/tmp/out"]


def test_defaults_and_values_reach_the_settings() -> None:
    settings, _ = parse_command(
        [*OUTPUT, "--ratings=r.csv", "--columns", "user_id=uid, item_id=iid", "--k=7", "--num_shards", "3"], ""
    )
    assert settings.ingest.ratings == "r.csv"
    assert settings.ingest.columns == {"user_id": "uid", "item_id": "iid"}
    assert (settings.recommend.k, settings.index.num_shards) == (7, 3)
    assert (settings.ingest.split.split, settings.ingest.split.holdout) == ("random", 0.2)


@pytest.mark.parametrize(("split", "holdout"), [("random", 0.2), ("temporal", 0.1), ("last", 1), ("none", 0)])
def test_each_split_has_its_own_default_holdout(split: str, holdout: float) -> None:
    assert parse_command([*OUTPUT, "--split", split], "")[0].ingest.split.holdout == holdout


def test_a_config_gives_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("k: 20\ndim: 8\ncolumns: {user_id: uid}\nrecommend_seen: true\nverbose: false\nitems: null\n")
    settings, _ = parse_command([*OUTPUT, "--config", str(config), "--dim=16"], "")
    assert (settings.recommend.k, settings.training.dim, settings.recommend.recommend_seen) == (20, 16, True)
    assert settings.ingest.columns == {"user_id": "uid"}
    assert not settings.verbose


def test_a_config_may_hold_the_output_and_beam_options(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(f"output: {tmp_path}\ndirect_num_workers: 2\n")
    settings, options = parse_command(["--config", str(config)], "")
    assert settings.output == str(tmp_path)
    assert options.view_as(DirectOptions).direct_num_workers == 2


def test_a_job_is_known_by_what_was_asked_for_wherever_that_stood(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("ratings: r.csv\nk: 20\ncolumns: {user_id: uid}\nfeatures: {g: {kind: text}}\nrefit: true\nseed: 7\n")
    given = ["--as_of=2026-11-24", "--l2=0.5", "--dim=32", "--recency=on", "--force=users=meant", "--json", "--verbose"]
    settings, _ = parse_command([*OUTPUT, "--config", str(config), *given, "--reuse_model_from=LATEST", "--tune_soar=yes"], "")
    assert settings.job == {
        "ratings": "r.csv",
        "k": 20,
        "columns": "user_id=uid",
        "features": '{"g": {"kind": "text"}}',
        "refit": True,
        "seed": 7,
        "as_of": "2026-11-24",
        "l2": 0.5,
        "dim": 32,
        "recency": "on",
        "tune_soar": "yes",
    }
    again = settings_of_job(json.loads(json.dumps(settings.job)), "/tmp/out")
    gates = replace(settings.gates, forced={})
    assert again == replace(settings, json=False, verbose=False, gates=gates, reuse_model_from=None)
    forced = settings_of_job(settings.job, "/tmp/out", force=["items=too"], reuse_model_from="a")
    assert (forced.gates.forced, forced.reuse_model_from) == ({"items": "too"}, "a")


def test_a_job_is_asked_for_again_as_far_as_its_flags_are_known() -> None:
    assert parse_command([*OUTPUT, "--k=5"], "")[0].job is None
    with pytest.raises(InputError, match="the job was given --kk, which this version does not know: run its command"):
        settings_of_job({"ratings": "r.csv", "kk": 5}, "/tmp/out")


@pytest.mark.parametrize("flags", [[], ["--runner", "DirectRunner"]])
def test_no_runner_means_the_in_process_one(flags: list[str]) -> None:
    assert parse_command([*OUTPUT, *flags], "")[1].view_as(StandardOptions).runner == "FnApiRunner"


def test_another_runner_is_left_alone() -> None:
    assert parse_command([*OUTPUT, "--runner", "FlinkRunner"], "")[1].view_as(StandardOptions).runner == "FlinkRunner"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no output root: give --output DIR"),
        ([*OUTPUT, "--num_shard=3"], "unknown flag --num_shard: did you mean --num_shards"),
        ([*OUTPUT, "--qqqqqqqq"], "unknown flag --qqqqqqqq: see --help"),
        ([*OUTPUT, "--layout=wide"], "layout must be one of nested, long, got 'wide': change --layout"),
        ([*OUTPUT, "--as_of=today"], "--as_of takes a date or a time, got 'today': write it as --as_of 2026-11-24"),
        ([*OUTPUT, "--as_of=0001-01-01T00:00+10:00"], "--as_of takes a date or a time, got '0001-01-01T00:00"),
        ([*OUTPUT, "--k=ten"], "argument --k: invalid int value: 'ten'"),
        ([*OUTPUT, "--k=0"], "k must be at least 1, got 0: raise --k"),
        ([*OUTPUT, "--num_shards=0"], "num_shards must be at least 1, got 0"),
        ([*OUTPUT, "--max_shard_bytes=5"], "max_shard_bytes must be at least 1 MiB, got 5"),
        ([*OUTPUT, "--leaves=0"], "the number of leaves must be at least 1, got 0: raise it"),
        ([*OUTPUT, "--index_kind=forest"], "the kind of index must be one of exact, hashed, tree, got 'forest'"),
        ([*OUTPUT, "--leaves_to_search=5"], "leaves_to_search alone says too little of a search: give --reorder_per_neighbor"),
        ([*OUTPUT, "--reorder_per_neighbor=0.5"], "reorder per neighbor must be a number from 1 on, got 0.5"),
        ([*OUTPUT, "--num_buckets=0"], "num_buckets must be 1 to 1,000,000, got 0"),
        ([*OUTPUT, "--num_buckets=1000001"], "num_buckets must be 1 to 1,000,000, got 1000001"),
        ([*OUTPUT, "--block_items="], "--block_items is empty, and must name a list of items: give it, or leave --block_items"),
        ([*OUTPUT, "--config="], "--config is empty, and must name a YAML file of flags"),
        ([*OUTPUT, "--force=="], "--force takes the name of a gate and a reason, got '=': write it as --force GATE=REASON"),
        ([*OUTPUT, "--users", ""], "--users is empty, and must name a list of users"),
        ([*OUTPUT, "--max_rejected_fraction=2"], "max_rejected_fraction must be between 0 and 1, got 2"),
        ([*OUTPUT, "--columns=user_id"], "--columns takes role=column pairs, got 'user_id'"),
        ([*OUTPUT, "--columns=user_id=a,user_id=b"], r"names the column of user_id twice \('a' and 'b'\)"),
        ([*OUTPUT, "--rating_range=5"], "rating_range must be LOW,HIGH, got '5'"),
        ([*OUTPUT, "--rating_range=5,1"], "rating_range must go from low to high"),
        ([*OUTPUT, "--timestamp_unit=h"], "timestamp_unit must be one of s, ms, us, ns, got 'h'"),
        ([*OUTPUT, "--rating_range=0,inf"], "rating_range must be two finite numbers"),
        ([*OUTPUT, "--split=last", "--holdout=inf"], "whole number of items for --split last, got inf"),
        ([*OUTPUT, "--min_rating=nan"], "min_rating must be a finite number, got nan"),
        ([*OUTPUT, "--recency_half_life_days=0"], "recency_half_life_days must be a number above 0, got 0"),
        ([*OUTPUT, "--runner=FooRunner"], "there is no runner 'FooRunner'"),
        ([*OUTPUT, "--config=/tmp"], "the config /tmp cannot be read"),
        (["--output=/tmp/a[1]"], r"has a '\[', which means a pattern"),
        (["--output=zz://a"], "is on no file system that is installed"),
        ([*OUTPUT, "--split=weekly"], "split must be one of"),
        ([*OUTPUT, "--user_tower=magic"], r"user_tower must be one of id, history, id\+history, got 'magic'"),
        ([*OUTPUT, "--dim=0"], "dim must be between 1 and 4096, got 0"),
        ([*OUTPUT, "--config=/no/such.yaml"], "the config /no/such.yaml does not exist"),
    ],
)
def test_mistakes_are_named(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_command(flags, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-24", datetime(2026, 11, 24, tzinfo=UTC)),
        ("2026-11-24T05:06:07", datetime(2026, 11, 24, 5, 6, 7, tzinfo=UTC)),
        ("2026-11-24T05:06:07Z", datetime(2026, 11, 24, 5, 6, 7, tzinfo=UTC)),
        ("2026-11-24T05:06:07+02:00", datetime(2026, 11, 24, 3, 6, 7, tzinfo=UTC)),
    ],
)
def test_the_date_of_a_job_is_in_utc(text: str, expected: datetime) -> None:
    as_of = parse_command([*OUTPUT, f"--as_of={text}"], "")[0].recommend.as_of
    assert as_of == expected
    assert as_of is not None
    assert as_of.isoformat() == expected.isoformat()


def test_how_to_build_and_search_an_index_can_be_given() -> None:
    flags = ["--leaves=30", "--no_soar", "--quantization_threshold=0.3", "--leaves_to_search=7", "--reorder_per_neighbor=2"]
    index = parse_command([*OUTPUT, *flags], "")[0].index
    assert index.build == BuildSettings(None, 30, 0.3, soar=False)
    assert index.search == SearchSettings(7, 2.0)
    default = parse_command(OUTPUT, "")[0].index
    assert (default.build, default.search) == (BuildSettings(), None)


def test_words_that_yaml_takes_for_true_and_false_are_values(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("recency: off\ntune_soar: no\n")
    settings = parse_command([*OUTPUT, f"--config={config}"], "")[0]
    assert settings.training.recency == "off"
    assert settings.tune.soar == "no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- k", "must be a mapping of flags to values, got list"),
        ("k: [", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("dim: true", "dim in the config .* takes a value, got true: repair it, or quote it"),
        ("config: other.yaml", "the config .* names another config \\('other.yaml'\\): put its flags into this one"),
        ("ratings: [a.csv, b.csv]", "ratings in the config .* takes one value, got a list: name a folder or a glob"),
        ("dim: [32, 64]", "dim in the config .* takes one value, got a list: give one"),
        ("nun_shards: 3", "in the config .*job.yaml: unknown flag --nun_shards: did you mean --num_shards"),
        ("k: 0", "in the config .*job.yaml: k must be at least 1, got 0: raise --k"),
        ("k: many", "in the config .*job.yaml: argument --k: invalid int value: 'many'"),
        ("index_kind: forest", "in the config .*job.yaml: the kind of index must be one of"),
        ("k: 5\nseed: 1\nk: 6", "the config .*job.yaml has k twice, on lines 1 and 3: keep one"),
        ("columns:\n  user_id: a\n  user_id: b", "the config .*job.yaml has user_id twice, on lines 2 and 3: keep one"),
        ('refit: "yes"', "refit in the config .*job.yaml is true or false, got 'yes': write refit: true, without quotes"),
        ('refit: "no"', "refit in the config .*job.yaml is true or false, got 'no': write refit: false, without quotes"),
        ("refit: 0", "refit in the config .*job.yaml is true or false, got 0: write refit: false, without quotes"),
        ("refit: 1", "refit in the config .*job.yaml is true or false, got 1: write refit: true"),
    ],
)
def test_a_bad_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(text)
    with pytest.raises(InputError, match=message):
        parse_command([*OUTPUT, f"--config={config}"], "")


def test_a_mistake_in_a_flag_is_not_laid_to_the_config(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("output: out\nk: 5\n")
    with pytest.raises(InputError, match=r"^k must be at least 1, got 0"):
        parse_command([f"--config={config}", "--k=0"], "")
    with pytest.raises(InputError, match=r"^dim must be between"):
        parse_command([f"--config={config}", "--dim=0"], "")
    config.write_text("k: 0\n")
    assert parse_command([*OUTPUT, f"--config={config}", "--k=7"], "")[0].recommend.k == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ratings=a", "--ratings=b"], r"--ratings is given twice \('a' and 'b'\), and one is read: give a folder or a glob"),
        (["--ratings", "a", "--k=5", "--ratings=a"], r"--ratings is given twice \('a' and 'a'\)"),
        (["--block_items=a", "--block_items=b", "--block_items=c"], r"--block_items is given 3 times \('a' and 'b' and 'c'\)"),
        (
            ["--columns=user_id=a", "--columns=item_id=b"],
            "--columns is given twice .* one counts: put all into one, with commas",
        ),
        (["--config=a", "--config=b"], "--config is given twice .* one is read: give one"),
    ],
)
def test_a_flag_that_is_read_once_is_not_taken_twice(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_command([*OUTPUT, *flags], "")


def test_of_other_flags_the_last_one_counts_and_that_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("k: 9\nratings: a\nforce: {overlap: why}\n")
    flags = [*OUTPUT, f"--config={config}", "--k=5", "--k", "6", "--seed=1", "--seed=1", "--runner=X", "--runner=DirectRunner"]
    settings, _ = parse_command([*flags, "--ratings=b", "--force=users=so", "--force=items=so"], "")
    assert settings.recommend.k == 6
    assert settings.ingest.ratings == "b"
    assert set(settings.gates.forced) == {"overlap", "users", "items"}
    assert capsys.readouterr().err.splitlines() == [
        "warning: --k is given as 5, then 6: the last one counts",
        "warning: --runner is given as X, then DirectRunner: the last one counts",
    ]


def options_with_defaults() -> list[tuple[str, argparse.ArgumentParser, argparse.Action]]:
    """Every flag that has a default, of every command."""
    whole = OneLineParser(prog="run")
    ShortlistOptions._add_argparse_args(whole)
    parsers = {"run": whole}
    for action in releases.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers |= action.choices
    return [
        (name, parser, action)
        for name, parser in parsers.items()
        for action in parser._actions
        if action.default not in (None, False, "", argparse.SUPPRESS, parser) and action.default != [] and action.dest != "help"
    ]


def test_help_names_every_default() -> None:
    found = options_with_defaults()
    assert len(found) > 30
    for name, parser, action in found:
        flag = action.option_strings[0] if action.option_strings else action.dest
        shown = parser._get_formatter()._expand_help(action)
        value = action.default
        words = f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, int) and value >= 1 << 30:
            words = f"{value >> 30} GiB"
        said = f"default {words}" in shown or (words == show.LATEST and "by default" in shown)
        assert said, f"{name}: {flag} does not say that its default is {words}: {shown}"


def test_the_page_of_flags_is_what_the_parser_says() -> None:
    page = flags_page.PAGE.read_text(encoding="utf-8")
    assert page == flags_page.rendered(), "run python -m pipelines.cli.flags_page"
    parser = argparse.ArgumentParser(add_help=False)
    ShortlistOptions._add_argparse_args(parser)
    flags = [option for action in parser._actions for option in action.option_strings]
    assert len(flags) > 60
    assert [flag for flag in flags if f"\n| `{flag}" not in page] == []
