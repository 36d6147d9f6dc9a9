"""The design: against the simulated experiment and other programs, at its edges, and on films as they are made."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from alignment_video import design
from alignment_video.batch import Here, Task, run_videos
from alignment_video.core import Refused, Study, study_config
from alignment_video.design import (
    Beliefs,
    CreativeLimits,
    Platform,
    ad_name,
    assign,
    beyond_limits,
    bound,
    design_on,
    equivalence_impressions,
    equivalence_power,
    fit_many,
    impressions_for,
    one_video_power,
    own_bounds,
    plan,
    power_of,
    preregistration,
    read_ad_name,
    read_creative,
    read_preregistration,
    returning_users,
    simulated_power,
    unlike,
    upload_sheet,
    video_rates,
    videos_for,
    write_preregistration,
    write_upload_sheet,
)
from alignment_video.outcomes import (
    VARIANTS,
    Effects,
    achieved_alignment,
    bulk_scenes,
    simulate_summary,
    true_rates,
    user_inflation,
)
from alignment_video.rates import equivalence
from alignment_video.unbroken import BY_RULE, small_study
from alignment_video.video import STIMULUS, transcode

AD = Beliefs(0.042, 0.1)
MANY = replace(AD, videos=24, effect_sd=0.1, inflation=1.36)


# --- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, arms", [(10, 2), (8, 7)])
def test_the_simulated_experiment_keeps_the_promise(number, arms):
    """Videos with effects, industries and contrasts of their own, users who come back; power as it was planned."""
    experiments = 400 if arms == 7 else 900
    effects = Effects()
    names = ["baseline", "full_boost"] if arms == 2 else list(VARIANTS)
    achieved = achieved_alignment(bulk_scenes(number * experiments, seed=3, scenes=(3, 5)))
    achieved = achieved[achieved["variant"].isin(names)].reset_index(drop=True)
    truth = true_rates(achieved, effects, seed=1)["click"].to_numpy().reshape(-1, arms)
    base, boosted = truth[:, 0], truth[:, names.index("full_boost")]
    beliefs = Beliefs(
        float(base.mean()),
        float(boosted.mean() / base.mean() - 1),
        arms,
        videos=number,
        effect_sd=float(np.log(boosted / base).std()),
        inflation=user_inflation(effects, float(base.mean())),
    )
    impressions = math.ceil(impressions_for(beliefs))
    rows = simulate_summary(achieved, effects, impressions, seed=1)
    counts = [rows[name].to_numpy(float).reshape(experiments, number, arms) for name in ("clicks", "impressions")]
    found, covariance = fit_many(*counts)
    t = np.abs(found) / np.sqrt(np.einsum("eaa->ea", covariance))
    limits = own_bounds(covariance, number - 1)[:, None] if arms > 2 else stats.t(number - 1).isf(0.025)
    power = (t > limits)[:, names.index("full_boost") - 1].mean()
    assert abs(power - 0.8) < 0.02 + 2 * math.sqrt(0.16 / experiments), power


def test_the_fit_is_the_one_of_pyfixest():
    pyfixest = pytest.importorskip("pyfixest")
    rng = np.random.default_rng(0)
    impressions = np.round(4_000 * np.exp(0.2 * rng.normal(size=(1, 12, 7))))
    clicks = rng.poisson(
        impressions * 0.04 * np.exp(0.3 * rng.normal(size=(1, 12, 1)) + 0.1 * rng.normal(size=(1, 12, 7)))
    )
    effects, covariance = fit_many(clicks.astype(float), impressions)
    table = pd.DataFrame(
        {
            "video": np.repeat([f"v{number}" for number in range(12)], 7),
            "arm": np.tile([f"a{number}" for number in range(7)], 12),
            "clicks": clicks.ravel(),
            "offset": np.log(impressions.ravel()),
        }
    )
    fit = pyfixest.fepois("clicks ~ i(arm, ref='a0') | video", table, offset="offset", vcov={"CRV1": "video"})
    assert np.allclose(effects[0], fit.coef(), atol=1e-6)
    assert np.allclose(np.sqrt(np.diag(covariance[0])), fit.se(), rtol=1e-4)


@pytest.mark.parametrize(
    "number, lift, impressions", [(4, 0.4, 8_000), (6, 0.25, 8_000), (16, 0.1, 20_000), (60, 0.06, 3_000)]
)
def test_the_formula_holds_from_few_videos_to_many(number, lift, impressions):
    beliefs = replace(MANY, videos=number, lift=lift)
    assert abs(simulated_power(beliefs, impressions, 1_500, seed=2) - power_of(beliefs, impressions)) < 0.03


def test_a_formula_without_the_weights_or_the_degrees_of_freedom_would_be_noticed(monkeypatch):
    """The tolerance above is fine enough to tell a wrong formula from the right one."""
    beliefs = replace(MANY, videos=8, lift=0.2)
    right, simulated = power_of(beliefs, 6_000), simulated_power(beliefs, 6_000, 1_500, seed=2)
    assert abs(right - simulated) < 0.03
    monkeypatch.setattr(design, "bound", lambda *_: 2.567)  # as if the videos were many
    assert abs(power_of(beliefs, 6_000) - simulated) > 0.1
    monkeypatch.undo()
    assert abs(power_of(replace(beliefs, inflation=1.0), 6_000) - simulated) > 0.03


def test_power_is_of_the_chance_under_no_effect_alpha_at_most():
    nothing = replace(MANY, lift=1e-9, effect_sd=0.1)
    assert simulated_power(nothing, 6_000, 800, seed=1) < 0.05 / 6 + 0.01  # each of six, together 5 %
    assert power_of(nothing, 6_000) < 0.05 / 6 + 0.01


def test_power_grows_with_everything_that_should_help():
    powers = [power_of(MANY, n) for n in (500, 2_000, 8_000, 1e6, math.inf)]
    assert powers == sorted(powers) and powers[-1] < 1
    assert power_of(replace(MANY, videos=48), 4_000) > power_of(MANY, 4_000)
    assert power_of(replace(MANY, effect_sd=0.2), 4_000) < power_of(MANY, 4_000)
    assert power_of(replace(MANY, rate_sd=0.8), 4_000) < power_of(MANY, 4_000)
    assert power_of(replace(MANY, arms=2), 4_000) > power_of(MANY, 4_000)
    assert power_of(MANY, 4_000, ads=2) < power_of(MANY, 4_000)
    fewer = replace(AD, lift=-0.1)
    assert 0.9 < impressions_for(fewer) / impressions_for(AD) < 1  # fewer clicks scatter less
    assert power_of(replace(MANY, lift=-0.1), 8_000) > power_of(MANY, 8_000)  # a larger step on the logarithm


def test_the_placebo_as_the_analysis_tests_it():
    """The design reckons with 1/1.1 to 1.1, the test with 0.9 to 1/0.9: what is promised is kept, and more."""
    number = math.ceil(equivalence_impressions(AD))
    clicks = np.random.default_rng(4).binomial(number, 0.042, (2, 2_000))
    shown = np.mean([equivalence((int(a), number), (int(b), number)).verdict == "equivalent" for a, b in clicks.T])
    assert shown > 0.8
    assert abs(shown - equivalence_power(AD, number, -math.log(0.9))) < 0.025


def test_rates_stay_rates():
    assert video_rates(0.97, 0.5, 50).max() < 1
    assert power_of(Beliefs(0.9, 0.05, videos=12, effect_sd=0.02), 5_000) > 0.5
    assert one_video_power(AD, 1e12) == 1
    assert power_of(replace(MANY, effect_sd=0), math.inf) == 1


def test_the_number_of_videos_is_the_least():
    for beliefs, impressions in ((MANY, 5_000), (replace(MANY, lift=0.5), 50_000), (replace(MANY, effect_sd=0.0), 200)):
        number = videos_for(beliefs, 0.8, impressions)
        assert power_of(replace(beliefs, videos=number), impressions) >= 0.8
        assert number == 2 or power_of(replace(beliefs, videos=number - 1), impressions) < 0.8
    with pytest.raises(Refused, match="more than"):
        videos_for(replace(MANY, lift=0.001), 0.8, 10)


def test_a_bound_for_each_layout():
    assert bound(6, ads=2) > bound(6, ads=5) > bound(6)
    assert bound(6, 0.1) < bound(6) and bound(6, control=0.5) < bound(6)
    assert bound(6, videos=6) > bound(6, videos=7) > bound(6, videos=30) > bound(6)


# --- where it can be run ----------------------------------------------------------------------------------------------


def test_layouts_count_every_ad_and_every_day():
    seven = design_on("own", MANY, daily=100_000)
    assert (seven.tests, seven.ads, seven.total) == (24, 7 * 24, 7 * 24 * seven.per_cell)
    assert seven.days == math.ceil(seven.total / 100_000)
    pairs = design_on("tiktok", MANY, daily=10**9)
    assert (pairs.tests, pairs.ads, pairs.total) == (6 * 24, 12 * 24, 12 * 24 * pairs.per_cell)
    assert pairs.days == 7  # a test lasts a week at least
    turns = design_on("tiktok", MANY, daily=10**9, in_turn=True)
    assert turns.days == 42
    larger = design_on("own", replace(AD, control=2.5))
    assert larger.total == math.ceil(larger.per_cell * 8.5)
    with pytest.raises(Refused, match="a test of 1 ads"):
        design_on(Platform("nowhere", ads=1), AD)
    with pytest.raises(Refused, match="not feasible: 12 videos"):
        design_on("cells", replace(MANY, videos=12))


def test_a_plan_for_two_arms_has_no_placebo_and_no_share():
    text = str(plan(0.042, 0.1, arms=2))
    assert "37,513" in text and "placebo" not in text and "baseline gets" not in text


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"baseline_rate": True}, "baseline rate True"),
        ({"baseline_rate": None}, "baseline rate None"),
        ({"lift": math.inf}, "lift inf"),
        ({"lift": "10%"}, "lift '10%'"),
        ({"lift": -1}, "lift -1"),
        ({"arms": "7"}, "arms '7'"),
        ({"power": math.nan}, "power nan"),
        ({"videos": 1.5}, "videos 1.5"),
        ({"effect_sd": -0.1}, "effect_sd -0.1"),
        ({"rate_sd": 30}, "rate_sd 30"),
        ({"inflation": math.nan}, "inflation nan"),
        ({"daily": -5}, "daily -5"),
        ({"margin": 0}, "margin 0"),
    ],
)
def test_what_no_plan_can_be_made_of_is_one_line(wrong, words):
    with pytest.raises(Refused) as refused:
        plan(**{"baseline_rate": 0.042, "lift": 0.1} | wrong)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_numpy_numbers_are_numbers():
    assert plan(np.float64(0.042), np.float32(0.1)).per_arm == pytest.approx(55_531, abs=2)
    assert returning_users(0.042, np.int64(4)) == returning_users(0.042, 4)


# --- who sees what ----------------------------------------------------------------------------------------------------


def test_assignment_is_the_same_for_ever():
    """Fixed once: a change of the method would move the users of running experiments."""
    people = ["u1", "u2", "u3", "7", "7228023352396971801", "ü"]
    assert assign(people, "pilot", salt="k7").tolist() == FIXED
    assert assign([7, 7228023352396971801], "pilot", salt="k7").tolist() == FIXED[3:5]
    assert assign(pd.Series(people, dtype="string"), "pilot", salt="k7").tolist() == FIXED
    assert assign((person for person in people), "pilot", salt="k7").tolist() == FIXED
    table = assign(people, "pilot", ads=["a", "b"], salt="k7", latin_square=True)
    assert table.loc["u1"].tolist() == FIXED_SQUARE and list(table.index) == people


FIXED = ["reduction", "early_boost", "placebo", "late_boost", "late_boost", "early_boost"]
FIXED_SQUARE = ["early_boost", "placebo"]


def test_shares_are_kept_and_uneven_ones_move_few():
    users = np.arange(50_000)
    even = assign(users, "e", ["a", "b", "c"])
    uneven = assign(users, "e", ["a", "b", "c"], [0.4, 0.3, 0.3])
    assert abs((uneven == "a").mean() - 0.4) < 0.01
    moved = even != uneven
    assert set(uneven[moved]) == {"a"} and moved.mean() < 0.08
    rounded = assign(users[:10], "e", list(VARIANTS), [0.1429] * 7)
    assert rounded.tolist() == assign(users[:10], "e", list(VARIANTS)).tolist()


@pytest.mark.parametrize("number", [2, 4, 6, 7, 9])
def test_a_square_of_any_size_balances(number):
    names = [f"v{place}" for place in range(number)]
    table = assign(
        np.arange(6_000), "e", names, ads=[str(ad) for ad in range(2 * number)], latin_square=True
    ).to_numpy()
    for half in (table[:, :number], table[:, number:]):
        assert (np.sort(half.astype(str), axis=1) == names).all()
    for column in table.T:
        assert stats.chisquare(pd.Series(column).value_counts()).pvalue > 1e-4


# --- what is uploaded -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Study, str]:
    """A study with one ad and its seven films, as the editor makes them."""
    study = small_study(tmp_path_factory.mktemp("design") / "study", 1, BY_RULE)
    name = next(study.videos.glob("*.mp4")).stem
    task = Task(str(study.root), study_config(study))
    assert [one.state for one in run_videos(task, [name], Here(task))] == ["made"]
    return study, name


@pytest.fixture
def study(made, tmp_path) -> SimpleNamespace:
    root = Study(shutil.copytree(made[0].root, tmp_path / "study"))
    return SimpleNamespace(study=root, name=made[1], film=lambda variant: root.stimulus(made[1], variant))


SMALL = CreativeLimits("small", width=16, height=16, seconds=(0.1, 60), kbps=1)


def test_the_sheet_of_films_as_the_editor_makes_them(study, tmp_path):
    sheet = upload_sheet(study.study, "pilot", [study.name], SMALL)
    assert sheet["variant"].tolist() == list(VARIANTS)
    own = [text.removeprefix("shape ") for text in sheet["creative_check"]]
    assert all("not 1:1" in text and ";" not in text for text in own)  # the shape, and nothing else
    assert [read_ad_name(name).variant for name in sheet["ad_name"]] == list(VARIANTS)
    assert all(row.ad_name.endswith(row.sha256[:8]) for row in sheet.itertuples())
    back = pd.read_csv(write_upload_sheet(tmp_path / "sheet.csv", sheet), dtype=str, keep_default_na=False)
    assert back["video_id"].tolist() == [study.name] * 7 and set(back["ad_id"]) == {""}
    with pytest.raises(Refused, match="name at least one"):
        upload_sheet(study.study, "pilot", study.name)
    with pytest.raises(Refused, match="alignment-video edit"):
        upload_sheet(study.study, "pilot", ["7000000000000000000"])
    study.film("reduction").unlink()
    with pytest.raises(Refused, match="is not there"):
        upload_sheet(study.study, "pilot", [study.name])


def test_films_of_one_edit_are_alike_and_any_other_is_not(study, tmp_path):
    films = {name: read_creative(study.film(name)) for name in VARIANTS}
    assert set(map(tuple, unlike(films).values())) == {()}
    mute = {name: replace(one, encoder="") for name, one in films.items()}
    assert set(map(tuple, unlike(mute).values())) == {()}  # their bitrates are alike as well
    other = tmp_path / "other.mp4"
    transcode(study.film("full_boost"), other, encoding=replace(STIMULUS, preset="fast", lookahead=10))
    told = unlike(films | {"full_boost": read_creative(other)})["full_boost"]
    assert len(told) == 1 and told[0].startswith("encoder settings: ")
    partly = unlike(films | {"full_boost": replace(films["full_boost"], encoder="")})["full_boost"]
    assert partly == ["encoder settings: not told, the baseline's are"]


def test_names_that_cannot_be_read_back_are_not_written():
    for experiment, video, variant in (("a__vid-b", "7", "x"), ("a", "7__var-x", "y"), ("a", "7", "x__a-00000000")):
        with pytest.raises(Refused, match="two ways"):
            ad_name(experiment, video, variant, "0" * 64)
    name = ad_name("a-b_c.1", "7_8", "early_boost", "abcdef01" + "0" * 56)
    assert read_ad_name(name) == ("a-b_c.1", "7_8", "early_boost", "abcdef01")
    for wrong in ("exp-a__vid-7__var-x__a-0000000", "exp-a__vid-7__var-x__a-000000000", "EXP", "", math.nan):
        with pytest.raises(Refused, match="is not of the form"):
            read_ad_name(wrong)


def test_each_limit_by_itself(study):
    film = read_creative(study.film("baseline"))
    fits = replace(film, width=540, height=960, duration=10.0, size=1_000_000)
    assert beyond_limits(fits) == []
    for change, words in (
        ({"width": 539}, "539x960 pixels"),
        ({"width": 720}, "shape 720:960, not 9:16"),
        ({"duration": 4.9}, "4.9 s long"),
        ({"duration": 61.0, "size": 5_000_000}, "61.0 s long"),
        ({"size": 500_000_001}, "500 MB, at most"),
        ({"size": 600_000}, "480 kbit/s, at least 516"),
        ({"pixels": "yuv444p"}, "yuv444p, not h264"),
        ({"sound": ""}, "sound missing"),
        ({"sound": "mp3 44100 Hz, 2 channels"}, "sound mp3"),
    ):
        told = beyond_limits(replace(fits, **change))
        assert len(told) == 1 and words in told[0], (change, told)


# --- what was promised ------------------------------------------------------------------------------------------------


def test_any_edit_of_a_promise_is_noticed(tmp_path):
    path = tmp_path / "promise.json"
    told = write_preregistration(path, preregistration(plan(0.042, 0.2), "pilot", note=np.float64(1.5)))
    assert told["note"] == 1.5 and told["assignment"]["method"] == "platform"
    plain = json.loads(path.read_text())
    for number, (name, value) in enumerate(plain.items()):
        other = tmp_path / f"{number}.json"
        other.write_text(json.dumps(plain | {name: "something else"}))
        with pytest.raises(Refused):
            read_preregistration(other)
        assert value != "something else"
    for number, content in enumerate(("", "[]", "{}", '{"sha256": 1, "schema": []}', "\x00")):
        other = tmp_path / f"broken {number}.json"
        other.write_text(content)
        with pytest.raises(Refused):
            read_preregistration(other)
    with pytest.raises(Refused, match="is not there"):
        read_preregistration(tmp_path / "none.json")
    with pytest.raises(Refused, match="JSON cannot hold"):
        write_preregistration(tmp_path / "nan.json", preregistration(plan(0.042, 0.2), "pilot", note=math.nan))
    assert not (tmp_path / "nan.json").exists()


def test_a_promise_about_a_study_names_its_films(study, tmp_path):
    told = preregistration(plan(0.042, 0.2), "pilot", study.study, [study.name], metrics=("ctr", "watch_time"))
    assert set(told["manifests"]) == {study.name}
    assert [row["primary"] for row in told["hypotheses"] if row["question"] == "placebo"] == [True, False]
    several = preregistration(plan(0.042, 0.2, videos=12, effect_sd=0.1), "pilot")
    assert several["models"]["lift"].startswith("Poisson") and several["models"]["adjustment"].startswith("largest")
