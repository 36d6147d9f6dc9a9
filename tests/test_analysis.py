"""The analysis where a page cannot go: through the command line, on random tables, and beside another library."""

import json
import math
import re
import warnings
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats

from alignment_video import analysis as page
from alignment_video.analysis import analyse, checks_of_lifts, differences, fit_within, lifts
from alignment_video.cli import main
from alignment_video.core import Refused, Study, write_json
from alignment_video.outcomes import VARIANTS
from alignment_video.rates import Effect
from alignment_video.results import METRICS, Results, results_of
from alignment_video.stimuli import SCHEMA, signed

SEVEN = [*VARIANTS]
DOSES = {"baseline": 0.3, "early_boost": 0.36, "middle_boost": 0.35, "late_boost": 0.37, "full_boost": 0.45,
         "reduction": 0.24, "placebo": 0.301}  # fmt: skip


def table_of(
    videos: int = 8, variants: list[str] = SEVEN, impressions: int = 2_000, seed: int = 0, dose: float = 0.5
) -> pd.DataFrame:
    """Summary rows in which attention does something."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"video_id": np.repeat([f"v{n}" for n in range(videos)], len(variants))})
    rows["variant"] = variants * videos
    rows["impressions"] = rng.integers(impressions // 2, impressions * 2, len(rows))
    level = np.repeat(rng.uniform(0.7, 1.3, videos), len(variants))
    lift = np.exp(dose * (rows["variant"].map(DOSES).fillna(0.3) / 0.3 - 1))
    rows["clicks"] = rng.binomial(rows["impressions"], 0.05 * lift * level)
    return rows


def everything(videos: int, seed: int = 0) -> pd.DataFrame:
    """The same with all that a summary may hold."""
    rows, rng = table_of(videos, seed=seed), np.random.default_rng(seed)
    rows["conversions"] = rng.binomial(rows["clicks"], 0.1)
    rows["engagements"] = rng.binomial(rows["impressions"], 0.03)
    rows["watch_time"] = rng.gamma(50, 0.1, len(rows)).round(3)
    rows["alignment"] = rows["variant"].map(DOSES) * rng.uniform(0.97, 1.03, len(rows))
    place = rows["video_id"].str[1:].astype(int)
    return rows.assign(industry=np.where(place % 2, "Beauty", "Food"), contrast=0.2 + 0.01 * place, brightness=0.5)


def numbers(effects: list[Effect]) -> np.ndarray:
    return np.array([[e.estimate, e.ci_low, e.ci_high, e.p, e.p_adjusted] for e in effects])


def strict(text: str) -> list[dict[str, object]]:
    """JSON without NaN and Infinity."""

    def no(word: str) -> NoReturn:
        raise AssertionError(f"{word} in JSON")

    return json.loads(text, parse_constant=no)


def sound(effects: tuple[Effect, ...] | list[Effect]) -> None:
    """What holds for every answer to everything."""
    strict(json.dumps([effect.row() for effect in effects], allow_nan=False))
    for effect in effects:
        where = f"{effect.metric} {effect.question} {effect.variant} {effect.term}: {effect}"
        if math.isfinite(effect.ci_low) and effect.question != "new video":
            assert effect.ci_low <= effect.estimate + 1e-12 and effect.estimate <= effect.ci_high + 1e-12, where
        assert not effect.p < 0 and not effect.p > 1, where
        assert not effect.p_adjusted < effect.p - 1e-12, where
        assert not effect.p_adjusted > 1, where
        assert len(effect.warnings) == len({*effect.warnings}), where


# bad input, through the command line

ONE, TWO = "7228023352396971801", "6795171976400027653"
HEAD = "video_id,variant,impressions,clicks\n"
GOOD = "".join(f"{video},{name},1000,{40 + n}\n" for n, video in enumerate((ONE, TWO)) for name in SEVEN)


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, what is printed, and what goes to standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    told = capsys.readouterr()
    return int(end.value.code or 0), told.out, told.err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that is refused."""
    code, _, line = call(capsys, *words)
    assert code == 1 and line.startswith("alignment-video: ") and line.count("\n") == 1 and "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (GOOD.replace("baseline", "hook"), "'baseline'.*hook"),
        (GOOD.replace("early_boost,1000,40", "early_boost,1000,1001"), f"{ONE}, early_boost.*1,001 clicks"),
        (GOOD.replace(f"{TWO},placebo,1000,41", f"{TWO},placebo,1000,-1"), f"{TWO}, placebo.*'-1' is below zero"),
        (GOOD.replace(f"{TWO},placebo,1000,41", f"{TWO},placebo,-1000,41"), f"{TWO}, placebo.*impressions '-1000'"),
        (GOOD.replace("full_boost,1000,40", "full_boost,1000,4.5"), "full_boost.*'4.5' is no whole number"),
        ("".join(f"{ONE}{n},baseline,1000,40\n" for n in range(3)), "one variant only"),
        (GOOD + f"{ONE},placebo,1000,55\n", f"video {ONE}, placebo: two rows that differ"),
        (GOOD.replace(ONE, "7.228023352396972e+18"), "7.228023352396972e.18' was damaged"),
        (GOOD.replace(ONE, f"{ONE}.0"), f"{ONE}.0.* was damaged"),
        (GOOD.replace("full_boost", "hook/../1"), "hook/../1"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(content: str, names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.csv"
    path.write_text(HEAD + content)
    assert re.search(names, refused(capsys, "analyze", path))
    assert [each.name for each in tmp_path.iterdir()] == ["results.csv"]  # no half of a report


def test_other_things_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, days = tmp_path / "results.csv", tmp_path / "days.csv"
    path.write_text(HEAD + GOOD)
    rows = [row.removesuffix("\n") for row in GOOD.splitlines()]
    zones = [f"{row},2024-05-01T00:00{zone}" for zone in ("+01:00", "-05:00") for row in rows]
    days.write_text("\n".join([f"{HEAD.strip()},day", *zones, ""]))
    assert "time zones" in refused(capsys, "analyze", days)
    (tmp_path / "empty.csv").write_bytes(b"")
    assert "empty.csv: the file is empty" in refused(capsys, "analyze", tmp_path / "empty.csv")
    assert "none.csv" in refused(capsys, "analyze", tmp_path / "none.csv")
    assert "--out" in refused(capsys, "analyze", path, "--out", days)
    assert "days.csv" in refused(capsys, "analyze", path, "--out", days / "report")
    assert "'reach'" in refused(capsys, "analyze", path, "--metric", "reach")
    assert "watch" in refused(capsys, "analyze", path, "--metric", "watch_time")
    assert "campaign" in refused(capsys, "analyze", path, "--only", "campaign")
    assert "nowhere" in refused(capsys, "analyze", path, "--study", tmp_path / "nowhere")
    frame = pd.read_csv(path, dtype={"video_id": "float64"})
    frame.to_parquet(tmp_path / "results.parquet")
    assert "damaged" in refused(capsys, "analyze", tmp_path / "results.parquet")
    (tmp_path / "promise.json").write_text("{}")
    assert "promise.json" in refused(capsys, "analyze", path, "--preregistration", tmp_path / "promise.json")


def test_a_variant_that_the_manifest_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, study = tmp_path / "results.csv", Study(tmp_path / "study")
    path.write_text(HEAD + GOOD.replace("placebo", "hook"))
    for video in (ONE, TWO):
        films = [{"variant": name} for name in SEVEN]
        write_json(study.manifest(video), signed({"schema": SCHEMA, "stimuli": films}))
    line = refused(capsys, "analyze", path, "--study", study.root)
    assert f"variant 'hook' of video {ONE} is not in its manifest" in line


# input that is odd, said, and analysed


def test_a_study_is_analysed_by_the_metrics_that_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, results = Study(tmp_path / "study"), tmp_path / "results.csv"
    study.root.mkdir()
    everything(3).drop(columns="engagements").to_csv(results, index=False)
    five = {"ctr", "cvr_impressions", "cvr_clicks", "watch_time", "engagement"}
    for named, kept in (("", five - {"engagement"}), ("[ctr, engagement]", {"ctr"}), ("[engagement]", set())):
        if named:
            study.config.write_text(f"evaluation:\n  metrics: {named}\n", encoding="utf-8")
        code, told, line = call(capsys, "analyze", results, "--study", study.root)
        if not kept:
            assert code == 1 and "evaluation.metrics engagement: the results have ctr, cvr_impressions" in line
            continue
        effects = strict((study.report / "effects.json").read_text())
        assert code == 0 and {effect["metric"] for effect in effects} - {""} == kept
        assert ("evaluation.metrics does not name it: cvr_impressions, cvr_clicks, watch_time" in told) == bool(named)
    assert call(capsys, "analyze", results, "--study", study.root, "--metric", "watch_time", "--cut-at-length")[0] == 0


def odd(name: str) -> tuple[pd.DataFrame, str]:
    """A table, and what has to be said of it."""
    rows = table_of(4)
    late = rows["variant"] == "late_boost"
    if name == "one video":
        return rows.head(7), "from one ad nothing follows for another"
    if name == "an arm without clicks":
        return rows.assign(clicks=rows["clicks"].where(~late, 0)), "late.boost has none"
    if name == "an arm without clicks in one video":
        return rows.assign(clicks=rows["clicks"].where(~late, 0)).head(7), "late.boost has none"
    if name == "a placebo without clicks":
        return rows.assign(clicks=rows["clicks"].where(rows["variant"] != "placebo", 0)), "placebo.*none"
    if name == "a baseline without clicks in one video":
        return rows.assign(clicks=rows["clicks"].where(rows.index != 7, 0)), r"baseline.*(none|no click|without)"
    if name == "a baseline without clicks in the only video":
        return rows.assign(clicks=rows["clicks"].where(rows.index != 0, 0)).head(7), "the baseline has none"
    if name == "a row with totals":
        total = pd.DataFrame([("Total", "", rows["impressions"].sum(), rows["clicks"].sum())], columns=[*rows])
        return pd.concat([rows, total]), "1 row with totals left out"
    if name == "a row twice":
        return pd.concat([rows, rows.tail(1)]), "the same as a row before it; kept once"
    if name == "an arm that a video lacks":
        return rows[~late | rows["video_id"].isin(["v0", "v1", "v2"])], "late.boost is in 3 videos only"
    if name == "an arm in one video":
        return rows[~late | (rows["video_id"] == "v1")], "late.boost is in one of the videos only"
    if name == "a video without baseline":
        return rows.drop(index=14), "video v2 has no baseline"
    assert name == "rates that disagree"
    return rows.assign(CTR="9.9%"), "'CTR': 28 of 28 rows disagree"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name",
    [
        "one video", "an arm without clicks", "an arm without clicks in one video", "a placebo without clicks",
        "a baseline without clicks in one video", "a baseline without clicks in the only video", "a row with totals",
        "a row twice", "an arm that a video lacks", "an arm in one video", "a video without baseline",
        "rates that disagree",
    ],
)  # fmt: skip
def test_odd_tables_are_analysed_and_it_is_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, words = odd(name)
    table.to_csv(tmp_path / "results.csv", index=False)
    code, told, line = call(capsys, "analyze", tmp_path / "results.csv", "--metric", "ctr")
    assert (code, line) == (0, "")
    assert re.search(words, told, re.IGNORECASE), told
    written = (tmp_path / "report" / "report.html").read_text()
    plain = re.sub("<style>.*?</style>", "", written, flags=re.DOTALL).replace("&#x27;", "'")
    assert re.search(words, plain, re.IGNORECASE), name
    effects = strict((tmp_path / "report" / "effects.json").read_text())
    assert {"lift"} <= {effect["question"] for effect in effects}
    assert len(pd.read_csv(tmp_path / "report" / "effects.csv")) == len(effects)


def test_only_what_was_clicked_in_its_own_video_is_compared() -> None:
    """One video is left for conversions per click: the other's rows are not mixed in."""
    rows = table_of(2, ["baseline", "full_boost", "placebo"]).assign(conversions=12)
    rows.loc[3, ["clicks", "conversions"]] = 0
    found = {effect.variant: effect for effect in lifts(results_of(rows), "cvr_clicks")}
    clicks = rows["clicks"].tolist()
    assert found["full_boost"].estimate == pytest.approx(clicks[0] / clicks[1] - 1, rel=1e-12)
    assert found["full_boost"].n_videos == 1 and any("left out" in text for text in found["full_boost"].warnings)


def test_another_variant_is_no_baseline() -> None:
    rows = everything(9)
    hook = rows[rows["variant"] == "full_boost"].assign(variant="hook", clicks=lambda t: t["clicks"] * 2)
    hook["conversions"] = 0
    one, two = analyse(results_of(rows), ["ctr"]), analyse(results_of(pd.concat([rows, hook])), ["ctr"])
    (first,), (second,) = ([e for e in a.of("dose") if e.term == "only through attention"] for a in (one, two))
    assert (second.estimate, second.p) == pytest.approx((first.estimate, first.p), rel=1e-7)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "change",
    [
        {"conversions": 0}, {"conversions": "clicks"}, {"clicks": "impressions"}, {"clicks": 1}, {"engagements": 3_000},
        {"watch_time": 0.0}, {"alignment": 0.0}, {"alignment": 0.3}, {"alignment": 1.0},
        {"impressions": 1, "clicks": 1},
        {"impressions": 1, "clicks": 0}, {"industry": ""}, {"industry": "one"}, {"contrast": 0.5}, {"contrast": np.nan},
        {"alignment": np.nan},
    ],
)  # fmt: skip
def test_tables_without_spread_end_in_answers_or_in_one_line(change: dict[str, object]) -> None:
    for videos in (1, 3) if {"clicks", "conversions", "alignment"} & {*change} else (3,):
        in_answers_or_in_one_line(everything(videos), change)


def in_answers_or_in_one_line(rows: pd.DataFrame, change: dict[str, object]) -> None:
    for name, value in change.items():
        rows[name] = rows[value] if isinstance(value, str) and value in rows else value
    for name, of in (("clicks", "impressions"), ("conversions", "clicks")):
        rows[name] = np.minimum(rows[name], rows[of])
    results, touched = results_of(rows), {name.replace("watch_time", "watch_sum") for name in change}
    metrics = [name for name in results.metrics if touched & {*METRICS[name]}] or ["ctr"]
    try:
        analysis = analyse(results, metrics[:2])
    except Refused as error:
        assert "\n" not in str(error)
        return
    sound(analysis.effects)


@pytest.mark.parametrize("variant", ["early_boost", "full_boost", "reduction", "placebo"])
@pytest.mark.parametrize("column", ["clicks", "alignment", "row"])
def test_each_arm_may_be_empty(column: str, variant: str) -> None:
    rows = everything(3)
    arm = rows["variant"] == variant
    if column == "row":
        rows = rows[~arm]
    else:
        rows.loc[arm, ["clicks", "conversions"] if column == "clicks" else [column]] = (
            0 if column == "clicks" else np.nan
        )
    analysis = analyse(results_of(rows), ["ctr"])
    sound(analysis.effects)
    assert len(analysis.of("lift")) == 6 - (column == "row")


# few videos


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("videos", [2, 3, 4, 5, 6])
def test_few_videos(videos: int) -> None:
    analysis = analyse(results_of(everything(videos)), ["ctr", "watch_time"])
    sound(analysis.effects)
    for effect in analysis.of("lift"):
        assert any(f"only {videos} videos" in text for text in effect.warnings) == (videos < 6)
        assert effect.n_videos == videos and math.isfinite(effect.ci_low)
    signs = [e for e in analysis.of("check of lift", "ctr") if e.method.startswith("signs")]
    assert all(effect.p >= 2 / 2**videos - 0.02 for effect in signs)
    assert bool(analysis.of("new video", "ctr")) == (videos > 2) == bool(signs)


def test_two_videos_that_agree_are_not_certain() -> None:
    rows = pd.DataFrame(
        {"video_id": ["a", "a", "b", "b"], "variant": ["baseline", "full_boost"] * 2, "impressions": 1_000}
    )
    for clicks in ([40, 44, 40, 44], [40, 40, 40, 40], [40, 44, 80, 88]):
        (effect,) = lifts(results_of(rows.assign(clicks=clicks)))
        assert effect.verdict == "not shown" and not effect.ci_high - effect.ci_low < 0.4, effect


@pytest.mark.parametrize(("have", "of"), [(2, 12), (3, 12), (6, 12)])
def test_an_arm_that_few_videos_have_is_not_found_by_chance(have: int, of: int) -> None:
    """No effect, but one that varies between videos: at most five percent are found, as is promised."""
    found, runs, rng = 0, 50, np.random.default_rng(have)
    rows = table_of(of, ["baseline", "full_boost", "late_boost"], dose=0)
    rows = rows[(rows["variant"] != "late_boost") | (rows["video_id"].str[1:].astype(int) < have)]
    results = results_of(rows)
    for _ in range(runs):
        own = np.where(rows["variant"] == "baseline", 0, rng.normal(0, 0.1, len(rows)))
        clicks = rng.poisson(results.cells["impressions"] * 0.05 * np.exp(own))
        varied = Results(**{**vars(results), "cells": results.cells.assign(clicks=clicks)})
        found += {effect.variant: effect for effect in lifts(varied)}["late_boost"].p < 0.05
    assert found <= stats.binom.isf(0.001, runs, 0.06), found / runs


# users


def log_of(users: int, each: int, seed: int) -> pd.DataFrame:
    """One row an impression, of users who differ in what they do."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"user_id": np.repeat([f"u{n}" for n in range(3 * users)], each), "video_id": ONE})
    rows["variant"] = np.repeat(np.resize(["baseline", "full_boost", "placebo"], 3 * users), each)
    habit = np.repeat(rng.beta(1, 3, (3 * users, 3)), each, axis=0)
    rows["clicked"] = (rng.random(len(rows)) < habit[:, 0]).astype(int)
    rows["converted"] = rows["clicked"] * (rng.random(len(rows)) < habit[:, 1])
    rows["engaged"] = (rng.random(len(rows)) < habit[:, 2]).astype(int)
    rows["watch_time"] = rng.gamma(2, 1 + 8 * habit[:, 2]).round(4)
    return rows


def summary_of(log: pd.DataFrame) -> pd.DataFrame:
    names = {"clicked": "clicks", "converted": "conversions", "engaged": "engagements"}
    grouped = log.groupby(["video_id", "variant"], sort=False)
    rows = grouped[[*names]].sum().rename(columns=names).assign(impressions=grouped.size())
    return rows.assign(watch_time=grouped["watch_time"].mean()).reset_index()


@pytest.mark.parametrize("metric", list(METRICS))
def test_users_who_do_not_come_back(metric: str) -> None:
    log = log_of(4_000, 1, seed=1)
    by_user, by_sum = (lifts(results_of(table), metric) for table in (log, summary_of(log)))
    for ours, plain in zip(by_user, by_sum, strict=True):
        assert ours.variant == plain.variant and ours.estimate == pytest.approx(plain.estimate, rel=1e-12, abs=1e-13)
        assert math.isfinite(ours.ci_low)
        if metric == "watch_time":
            assert math.isnan(plain.ci_low) and plain.warnings
            groups = [log.loc[log["variant"] == name, "watch_time"] for name in ("baseline", ours.variant)]
            error = math.sqrt(sum(g.var() / len(g) / g.mean() ** 2 for g in groups))
            middle = math.log(groups[1].mean() / groups[0].mean())
            expected = [math.expm1(middle - 1.959964 * error), math.expm1(middle + 1.959964 * error)]
        else:
            expected = [plain.ci_low, plain.ci_high]
        assert np.diff([ours.ci_low, ours.ci_high]) == pytest.approx(np.diff(expected), rel=0.02)
        assert [ours.ci_low, ours.ci_high] == pytest.approx(expected, abs=0.02 * np.ptp(expected))
        assert metric == "watch_time" or ours.p == pytest.approx(plain.p, abs=0.02)


@pytest.mark.parametrize("metric", list(METRICS))
def test_users_who_come_back_widen_the_interval(metric: str) -> None:
    log = log_of(700, 6, seed=2)
    strangers = log.assign(user_id=[f"w{n}" for n in range(len(log))])
    by_user, by_row = (lifts(results_of(table), metric) for table in (log, strangers))
    by_sum = lifts(results_of(summary_of(log)), metric)
    for ours, rows, plain in zip(by_user, by_row, by_sum, strict=True):
        assert ours.estimate == pytest.approx(rows.estimate, rel=1e-12) == pytest.approx(plain.estimate, rel=1e-9)
        width = [effect.ci_high - effect.ci_low for effect in (ours, rows, plain)]
        assert width[0] > 1.05 * width[1]
        assert metric == "watch_time" or width[0] > 1.05 * width[2]


def test_of_several_videos_users_and_sums_agree() -> None:
    log = pd.concat([log_of(300, 2, seed).assign(video_id=f"v{seed}") for seed in range(4)])
    for metric in METRICS:
        by_user, by_sum = (numbers(lifts(results_of(table), metric)) for table in (log, summary_of(log)))
        assert np.allclose(by_user, by_sum, rtol=1e-7, atol=1e-9), metric


# what must not matter

small = st.fixed_dictionaries({"videos": st.integers(1, 6), "seed": st.integers(0, 10**6)})


@settings(max_examples=8, deadline=None)
@given(shape=small, factor=st.integers(2, 50), place=st.integers(0, 5))
def test_a_constant_factor_to_the_impressions_of_a_video(shape: dict[str, int], factor: int, place: int) -> None:
    rows = table_of(shape["videos"] + 1, seed=shape["seed"])
    more = rows["impressions"].where(
        rows["video_id"] != f"v{place % (shape['videos'] + 1)}", rows["impressions"] * factor
    )
    one, two = (numbers(lifts(results_of(table))) for table in (rows, rows.assign(impressions=more)))
    assert np.allclose(one, two, rtol=1e-7, atol=1e-9)


def in_order(analysis: page.Analysis) -> list[Effect]:
    """Answers by name; flipped signs hang on chance, which is drawn by row."""
    kept = [effect for effect in analysis.effects if not effect.method.startswith("signs")]
    return sorted(kept, key=lambda e: (e.metric, e.question, e.variant, e.term, e.method))


@settings(max_examples=2, deadline=None)
@given(shape=small, order=st.integers(0, 10**6))
def test_order_and_names_of_rows(shape: dict[str, int], order: int) -> None:
    rows = everything(shape["videos"], shape["seed"])
    shuffled = rows.sample(frac=1, random_state=order)
    names = {name: f"ad {n} of $x$ <{order}>" for n, name in enumerate(rows["video_id"].unique())}
    first = analyse(results_of(rows), ["ctr", "watch_time"])
    for other in (shuffled, rows.assign(video_id=rows["video_id"].map(names))):
        again = analyse(results_of(other), ["ctr", "watch_time"])
        one, two = in_order(first), in_order(again)
        assert [(e.question, e.variant, e.term, e.verdict) for e in one] == [
            (e.question, e.variant, e.term, e.verdict) for e in two
        ]
        assert np.allclose(numbers(one), numbers(two), rtol=1e-6, atol=1e-8, equal_nan=True)


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate], derandomize=True)
@given(
    counts=st.lists(st.tuples(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20),
    variants=st.lists(st.sampled_from([*SEVEN, "hook"]), min_size=2, max_size=8, unique=True),
    dosed=st.booleans(),
)
def test_any_table_ends_in_answers_or_in_one_line(
    counts: list[tuple[int, float, float]], variants: list[str], dosed: bool
) -> None:
    variants = ["baseline", *[name for name in variants if name != "baseline"]]
    rows = [
        (
            f"v{n // len(variants)}",
            variants[n % len(variants)],
            shown,
            int(shown * rate**3),
            int(shown * rate**3 * part),
        )
        for n, (shown, rate, part) in enumerate(counts)
    ]
    table = pd.DataFrame(rows, columns=["video_id", "variant", "impressions", "clicks", "conversions"])
    if dosed:
        table["alignment"] = table["variant"].map({**DOSES, "hook": 0.5})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            analysis = analyse(results_of(table))
    except Refused as error:
        assert "\n" not in str(error)
        return
    sound(analysis.effects)


@pytest.mark.parametrize("adjust", page.ADJUSTMENTS)
def test_adjusted_p_values(adjust: str) -> None:
    for videos in (1, 5, 14):
        effects = lifts(results_of(table_of(videos, seed=videos)), adjust=adjust)
        plain, adjusted = numbers(effects)[:, 3:].T
        assert (adjusted >= plain).all() and (np.diff(adjusted[np.argsort(plain)]) >= 0).all()
        assert (adjusted > plain).any() == (adjust != "none")


# beside another library


def uneven() -> pd.DataFrame:
    """Cells of very different sizes, and arms that some videos lack."""
    rows = table_of(14, seed=3)
    rng = np.random.default_rng(3)
    rows["impressions"] *= rng.integers(1, 9, len(rows))
    rows["clicks"] = rng.binomial(rows["impressions"], rng.uniform(0.02, 0.09, len(rows)))
    rows["dose"] = rows["variant"].map(DOSES) / 0.3 - 1 + rng.normal(0, 0.02, len(rows))
    gone = rng.random(len(rows)) < 0.2
    return rows[~gone | (rows["variant"] == "baseline")].assign(offset=lambda t: np.log(t["impressions"]))


def theirs(rows: pd.DataFrame, formula: str, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and clustered standard errors (CRV1) by pyfixest."""
    pyfixest = pytest.importorskip("pyfixest")
    fit = pyfixest.fepois(
        f"clicks ~ {formula} | video_id", rows, vcov={"CRV1": "video_id"}, offset="offset", iwls_tol=1e-12
    )
    found = fit.tidy()
    return found.loc[names, "Estimate"].to_numpy(), found.loc[names, "Std. Error"].to_numpy()


@pytest.mark.parametrize("what", ["versions", "dose", "bent"])
def test_regression_within_videos_is_theirs(what: str) -> None:
    rows = uneven()
    if what == "versions":
        names = SEVEN[1:]
        x = (rows["variant"].to_numpy()[:, None] == np.array(names)).astype(float)
        rows = rows.join(pd.DataFrame(x, rows.index, names))
    else:
        rows, names = rows.assign(square=rows["dose"] ** 2), ["dose", "square"][: 1 + (what == "bent")]
        x = rows[names].to_numpy()
    ours = fit_within(rows["clicks"], rows["impressions"], x, rows["video_id"], names)
    values, errors = theirs(rows, " + ".join(names), names)
    assert np.allclose(ours.values, values, rtol=1e-6, atol=1e-8)
    assert np.allclose(ours.errors, errors, rtol=1e-5), ours.errors / errors


def test_dose_slope_is_theirs() -> None:
    rows = table_of(10, seed=4)
    rows["alignment"] = rows["variant"].map(DOSES) * np.random.default_rng(4).uniform(0.95, 1.05, len(rows))
    base = rows[rows["variant"] == "baseline"].set_index("video_id")["alignment"]
    rows = rows.assign(dose=rows["alignment"] / rows["video_id"].map(base) - 1, offset=np.log(rows["impressions"]))
    slope = page.dose_response(results_of(rows.drop(columns=["dose", "offset"])))[0]
    (value,), (error,) = theirs(rows, "dose", ["dose"])
    half = stats.t(9).isf(0.025) * error
    assert (slope.estimate, slope.ci_low, slope.ci_high) == pytest.approx((value, value - half, value + half), rel=1e-5)


def test_leaving_out_one_video_at_a_time_is_close_to_doing_it() -> None:
    rows = table_of(9, seed=6)
    x = (rows["variant"].to_numpy()[:, None] == np.array(SEVEN[1:])).astype(float)
    video = rows["video_id"].to_numpy()
    arguments = [rows["clicks"].to_numpy(), rows["impressions"].to_numpy(), x, video]
    fit = fit_within(*arguments, SEVEN[1:], jackknife=True)
    without = [fit_within(*(a[video != name] for a in arguments), SEVEN[1:]).values for name in np.unique(video)]
    moved = np.array(without) - fit.values
    assert np.allclose(fit.errors, np.sqrt((moved**2).sum(axis=0) * 8 / 9), rtol=0.05)


def test_differences_are_the_paired_mean_when_cells_are_equal() -> None:
    rows = table_of(8, ["baseline", "full_boost"], seed=5).assign(impressions=3_000)
    (effect,) = differences(results_of(rows))
    rates = rows.pivot(index="video_id", columns="variant", values="clicks") / 3_000
    gap = rates["full_boost"] - rates["baseline"]
    assert effect.estimate == pytest.approx(gap.mean(), rel=1e-10)
    assert effect.ci_low < gap.mean() < effect.ci_high


@pytest.mark.parametrize("videos", [2, 30])
def test_balance_of_what_an_edit_may_change_is_the_paired_t(videos: int) -> None:
    rows, rng = everything(videos, seed=2), np.random.default_rng(3)
    rows["contrast"] += np.where(rows["variant"] == "baseline", 0, rng.normal(0.02, 0.01, len(rows)).clip(0.001))
    results = results_of(rows)
    found, wide = page.mediators(results), rows.pivot(index="video_id", columns="variant", values="contrast")
    assert [effect.variant for effect in found] == [name for name in SEVEN if name != "baseline"]
    sound(found)
    for effect in found:
        theirs, unit = stats.ttest_rel(wide[effect.variant], wide["baseline"]), wide["baseline"].std()
        low, high = theirs.confidence_interval()
        wanted = [(wide[effect.variant] - wide["baseline"]).mean() / unit, low / unit, high / unit, theirs.pvalue]
        assert [effect.estimate, effect.ci_low, effect.ci_high, effect.p] == pytest.approx(wanted, rel=1e-9)
        assert effect.more["own_unit"] == pytest.approx(wanted[0] * unit) and effect.n_videos == videos
    assert analyse(results, ["ctr"]).of("balance") == found
    assert not analyse(results_of(everything(3)), ["ctr"]).of("balance")


def test_balance_of_few_equal_or_missing_values() -> None:
    rows = everything(3)
    boosted = rows["variant"] == "full_boost"
    rows.loc[boosted, "contrast"] += 0.1  # in all videos the same: no spread, and no interval
    found = {effect.variant: effect for effect in page.mediators(results_of(rows))}
    assert found["full_boost"].verdict.startswith("changed") and math.isnan(
        found["full_boost"].ci_low + found["full_boost"].p
    )
    assert found["placebo"].verdict == "much the same" and found["placebo"].estimate == 0
    some = rows.assign(contrast=rows["contrast"].where(~boosted | (rows["video_id"] == "v0")))
    found = {effect.variant: effect for effect in page.mediators(results_of(some))}
    assert (found["full_boost"].n_videos, found["full_boost"].verdict) == (1, "not clear")
    for few in (rows[rows["video_id"] == "v1"], rows.assign(contrast=0.2 + 0.1 * boosted)):
        with pytest.raises(
            Refused, match=r"balance of contrast: videos whose baselines have one: [13], and they do not differ"
        ):
            page.mediators(results_of(few))
        assert any("balance of contrast" in reason for reason in analyse(results_of(few), ["ctr"]).skipped)


def test_checks_need_little_memory_and_time_for_many_videos() -> None:
    """Not quadratic in videos: four times as many take less than ten times as long."""
    import time

    took = []
    for videos in (400, 1_600):
        results = results_of(table_of(videos, seed=7))
        start = time.process_time()
        checks_of_lifts(results)
        took.append(time.process_time() - start)
    assert took[1] < 10 * max(took[0], 0.1), took


def test_leaving_out_one_of_many_videos_is_what_it_is_of_few() -> None:
    rng = np.random.default_rng(5)
    parts = rng.normal(size=(120, 4, 3))
    breads, scores = np.einsum("bki,bkj->bij", parts, parts), rng.normal(size=(120, 3))
    many = page._without_one(breads.sum(axis=0), breads, scores)
    exact = (np.linalg.pinv(breads.sum(axis=0) - breads) @ scores[:, :, None])[:, :, 0]
    assert np.allclose(many, exact, rtol=1e-9)
    breads[0], breads[1:, 2], breads[1:, :, 2] = np.eye(3), 0, 0  # one coefficient rests on the first video alone
    alone = page._without_one(breads.sum(axis=0), breads, scores)
    exact = (np.linalg.pinv(breads.sum(axis=0) - breads) @ scores[:, :, None])[:, :, 0]
    assert np.isfinite(alone).all() and np.allclose(alone, exact, rtol=1e-6)
