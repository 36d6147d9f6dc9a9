"""Plans of variants: what a notebook cell is too small for."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_video import variants as page
from alignment_video.controls import target_alignment
from alignment_video.core import ExperimentsConfig, Refused, Study
from alignment_video.outcomes import VARIANTS, achieved_alignment
from alignment_video.pictures import read_map, write_map, write_mask
from alignment_video.tables import write_table
from alignment_video.variants import Condition, conditions_of, distinct_edits, plan_variants, write_heatmaps


def ads(counts: list[int], seed: int = 0) -> pd.DataFrame:
    rng, rows = np.random.default_rng(seed), []
    for i, count in enumerate(counts):
        ends = np.cumsum(rng.uniform(0.5, 3, count))
        rows.append(
            pd.DataFrame({
                "video_id": f"{7_000_000_000_000_000_000 + i}", "scene_number": np.arange(1, count + 1),
                "start_time": np.r_[0, ends[:-1]], "end_time": ends, "alignment": rng.uniform(0, 1, count),
            })
        )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(3, 14), min_size=1, max_size=6), st.sampled_from(page.SOURCES), st.integers(0, 99))
def test_many_videos_at_once_are_each_as_alone(counts: list[int], source: str, seed: int) -> None:
    """A plan of many is the plans of each; every target is what page 15 says, and outside windows nothing changes."""
    scenes = ads(counts, seed)
    mixed = plan_variants(scenes.sample(frac=1, random_state=seed), source=source).table
    for video_id, part in scenes.groupby("video_id"):
        alone = plan_variants(part, source=source).table
        pd.testing.assert_frame_equal(mixed[mixed["video_id"] == video_id].reset_index(drop=True), alone)
    cap = 1.0 if source == "scalar" else 0.95
    for row in mixed.itertuples():
        assert row.alignment_target == pytest.approx(target_alignment(row.alignment_source, row.alpha, cap), abs=1e-9)
    assert (mixed.loc[~mixed["in_window"], "gain"] == 1).all()
    still = mixed["gain"] == 1
    assert (mixed.loc[still, "alignment_target"] == mixed.loc[still, "alignment_source"]).all()


def test_windows_are_those_of_the_simulated_outcomes() -> None:
    scenes = ads([3, 4, 5, 8, 11]).assign(contrast=0.5, brightness=0.5, industry="Beauty")
    table = plan_variants(scenes, source="scalar").table
    ours = table.groupby(["video_id", "variant"], observed=True, sort=False)["alignment_target"].mean()
    theirs = achieved_alignment(scenes).set_index(["video_id", "variant"])["alignment"]
    assert [*VARIANTS] == [*table["variant"].cat.categories]
    np.testing.assert_allclose(ours.loc[theirs.index], theirs, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 99), st.sampled_from(["early", "0.2-0.7", "1s-2.5s", "1.3s-"]))
def test_parts_of_cut_scenes_fill_the_ad(count: int, seed: int, window: str) -> None:
    """Whatever is cut, parts follow each other without a gap, and the window takes as long as it should."""
    scenes = ads([count], seed)
    conditions = [Condition("baseline"), Condition("one", window, 1.5)]
    table = plan_variants(scenes, conditions, by="time").table.query("variant == 'one'")
    assert table["start_time"].iloc[0] == 0 and table["end_time"].iloc[-1] == scenes["end_time"].iloc[-1]
    assert (table["start_time"].to_numpy()[1:] == table["end_time"].to_numpy()[:-1]).all()
    assert table.groupby("scene_number")["part"].apply(lambda part: part.tolist() == [*range(1, len(part) + 1)]).all()
    long = scenes["end_time"].iloc[-1]
    spans = {"early": (0, long / 3), "0.2-0.7": (0.2 * long, 0.7 * long), "1s-2.5s": (1, 2.5), "1.3s-": (1.3, long)}
    low, high = spans[window]
    inside = table[table["in_window"]]
    took = (inside["end_time"] - inside["start_time"]).sum()
    assert took == pytest.approx(max(0, min(high, long) - min(low, long)), abs=2 * page._NEAR + 1e-9)


def test_a_variant_of_its_own_beside_the_seven() -> None:
    conditions = conditions_of(ExperimentsConfig(custom=["hook 0s-1s 1.8", "aside 0.5-1 1.4 beside"]))
    table = plan_variants(ads([6]), conditions).table
    assert table["variant"].nunique() == 9
    assert set(table[table["variant"] == "aside"].query("in_window")["region"]) == {"beside"}
    assert table[table["variant"] == "aside"].eval("alignment_target == alignment_source").all()


def test_bad_ads_are_left_out_by_name_and_the_others_stay() -> None:
    good, bad = ads([5, 5]), ads([5, 5, 5, 5], seed=1)
    bad["video_id"] = "9" + bad["video_id"]
    ids = bad["video_id"].unique()
    bad.loc[bad["video_id"] == ids[0], "alignment"] = [0.1, 0.2, -0.1, 0.3, 0.4]
    bad.loc[bad["video_id"] == ids[1], "scene_number"] = [1, 2, 2, 3, 4]
    bad.loc[bad["video_id"] == ids[2], "alignment"] = np.nan
    bad = bad.drop(bad.index[bad["video_id"] == ids[3]][2:])
    plan = plan_variants(pd.concat([good, bad]))
    assert set(plan.left_out["video_id"]) == set(ids) and plan.left_out["reason"].str.len().gt(10).all()
    pd.testing.assert_frame_equal(plan.table, plan_variants(good).table)
    timeless = good.assign(start_time=np.nan)
    assert len(plan_variants(timeless).left_out) == 0
    assert plan_variants(timeless, by="time").left_out["reason"].str.contains("without times").all()


def base(**more) -> pd.DataFrame:
    times = {"start_time": range(6), "end_time": range(1, 7)}
    return pd.DataFrame(
        {"video_id": "1", "scene_number": range(1, 7), "alignment": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]} | times | more
    )


def test_the_baseline_comes_first_whatever_the_settings_say(tmp_path) -> None:
    study, scenes = study_of(tmp_path)
    plan = plan_variants(scenes, conditions_of(ExperimentsConfig(variants=["early_boost", "baseline"])))
    assert plan.table["variant"].cat.categories[0] == "baseline" and len(write_heatmaps(study, scenes, plan)) == 0
    for path, row in zip(page.heatmap_paths(plan.table), plan.table.itertuples(), strict=True):
        assert (f"/{row.variant}/" in path) == (row.variant == "baseline" or row.alpha != 1)


def test_what_cannot_change_is_no_edit() -> None:
    """At the cap, or without any attention, a scene stays as it is in every variant, and the notes say so."""
    scenes = base(alignment=[1, 0.97, 0.5, 0, 0, 1])
    for source in page.SOURCES:
        table = plan_variants(scenes, source=source).table.query("region == 'product'")
        assert ((table["alignment_target"] != table["alignment_source"]) == (table["gain"] != 1)).all(), source
    nothing = plan_variants(base(alignment=0.0), source="scalar")
    assert set(nothing.notes["variant"]) == {"early_boost", "middle_boost", "late_boost", "full_boost", "reduction"}
    capped = plan_variants(base(alignment=0.97)).notes.query("variant == 'full_boost'")["note"].tolist()
    assert len(capped) == 2 and "baseline again" in capped[0] and "all that the gain asks for: 6" in capped[1]


def test_questions_of_ones_own_change_no_other_number() -> None:
    alone = plan_variants(base(), source="scalar")
    more = conditions_of(ExperimentsConfig(custom=["hook 0s-0.5s 1.8", "two 0.2s-5.4s 1.2", "three 0.45s-0.7s 2"]))
    both = plan_variants(base(), more, source="scalar")
    old, new = (page.statistics(each.table).astype({"variant": str}).set_index("variant") for each in (alone, both))
    pd.testing.assert_frame_equal(new.loc[old.index], old)
    hook = both.table.query("variant == 'hook' and in_window")
    assert (hook["end_time"].max(), hook["start_time"].min()) == (0.5, 0.0)
    assert new.loc["hook", "mean"] == pytest.approx((0.5 * 0.2 * 1.8 + 0.5 * 0.2 + 0.3 + 0.4 + 0.5 + 0.6 + 0.7) / 6)


def test_short_ads_and_whole_seconds() -> None:
    take = pd.DataFrame(
        {"video_id": ["1"], "scene_number": [1], "alignment": [0.4], "start_time": [0], "end_time": [1]}
    )
    for long in (1, 0.25):
        table = plan_variants(take.assign(end_time=long), by="time").table
        assert table.query("variant == 'early_boost'")["in_window"].tolist() == [True, False, False]
    text = base().astype({"start_time": str, "end_time": str})
    pd.testing.assert_frame_equal(plan_variants(text).table, plan_variants(base()).table)


@pytest.mark.parametrize(
    "more, reason",
    [
        ({"video_id": "../../etc"}, "name no folder"),
        ({"alignment": "0,2"}, "no number from 0 to 1"),
        ({"scene_number": [1, 1.5, 2, 3, 4, 5]}, "without a whole number"),
        ({"start_time": range(5, -1, -1), "end_time": range(6, 0, -1)}, "do not follow"),
    ],
)
def test_odd_ads_are_left_out(more, reason: str) -> None:
    plan = plan_variants(base(**more), by="time")
    assert len(plan.table) == 0 and reason in plan.left_out["reason"].iloc[0]


def test_a_plan_of_other_files_is_refused_and_leaves_nothing_old(tmp_path) -> None:
    study, scenes = study_of(tmp_path)
    assert len(write_heatmaps(study, scenes, plan_variants(scenes))) == 0
    other = scenes.assign(alignment=scenes["alignment"] + 0.1)
    failed = write_heatmaps(study, scenes, plan_variants(other))
    assert len(failed) == 3 and failed["reason"].str.contains("run validate and variants again").all()
    assert not [*study.variants.rglob("*.png")]
    assert len(write_heatmaps(study, scenes.head(2), plan_variants(scenes))) == 0
    with pytest.raises(Refused, match="run validate again"):
        write_heatmaps(study, scenes.assign(keyword_mask_path=None), plan_variants(scenes))


def study_of(folder, count: int = 3) -> tuple[Study, pd.DataFrame]:
    study, rows, rng = Study(folder), [], np.random.default_rng(0)
    for number in range(1, count + 1):
        attention = rng.random((24, 16), np.float32) * 0.7 / number
        mask = np.zeros((24, 16), np.uint8)
        mask[8:14, 4:11] = 1
        write_map(study.heatmap("7", number, ".png"), attention)
        write_mask(study.mask("7", number), mask)
        kept = read_map(study.heatmap("7", number, ".png")).astype(float)
        rows.append({
            "video_id": "7", "scene_number": number, "keyword": "ring", "alignment": kept[mask > 0].sum() / kept.sum(),
            "scene_picture_path": "x.jpg", "keyword_mask_path": str(study.mask("7", number).relative_to(study.root)),
            "attention_heatmap_path": str(study.heatmap("7", number, ".png").relative_to(study.root)),
        })  # fmt: skip
    return study, pd.DataFrame(rows)


def test_heatmaps_keep_their_scale_and_are_rewritten(tmp_path) -> None:
    """A second plan replaces the first one's files, also those that were links to each other."""
    study, scenes = study_of(tmp_path)
    assert len(write_heatmaps(study, scenes, plan_variants(scenes))) == 0
    again = plan_variants(scenes, conditions_of(ExperimentsConfig(boost_alpha=1.2)))
    assert len(write_heatmaps(study, scenes, again)) == 0
    base, more = (read_map(study.variant_heatmap("7", name, 1)) for name in ("baseline", "early_boost"))
    np.testing.assert_allclose(base, read_map(study.heatmap("7", 1, ".png")), atol=1e-4)
    np.testing.assert_allclose(more[8:14, 4:11] / base[8:14, 4:11], 1.2, atol=2e-3)
    assert more.sum() == pytest.approx(base.sum(), rel=1e-4)
    assert not [*study.root.rglob("*.part*")]


def test_a_scene_without_its_files_is_named(tmp_path) -> None:
    study, scenes = study_of(tmp_path)
    study.mask("7", 2).unlink()
    write_mask(study.mask("7", 3), np.ones((5, 16), np.uint8))
    failed = write_heatmaps(study, scenes, plan_variants(scenes))
    assert failed["scene_number"].tolist() == [2, 3] and "run validate again" in failed["reason"].iloc[1]
    assert study.variant_heatmap("7", "late_boost", 1).is_file()


def test_a_study_of_which_no_ad_can_take_part(tmp_path) -> None:
    study, scenes = study_of(tmp_path, 2)
    write_table(study.valid_scenes, scenes)
    with pytest.raises(Refused, match="no video can take part; the first: 7, fewer than 3 scenes"):
        page.plan_study(study)
    plan, valid = page.plan_study(study, ExperimentsConfig(variants=["baseline", "full_boost"]))
    assert len(plan.table) == 4 and len(valid) == 2 and distinct_edits(plan.table) == 4
