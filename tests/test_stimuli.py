"""Whole ads: every frame, killed and locked runs, odd films, options, and what bad input gets."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from alignment_video.attention import make_attention
from alignment_video.core import Refused, Study, VideoEditingConfig, load_config, locked, write_json, write_text
from alignment_video.editing import STILL, Box, Dose, PhotometricEditor
from alignment_video.pictures import write_mask
from alignment_video.scenes import cut_videos, read_scenes
from alignment_video.stimuli import (
    Asked,
    Edits,
    Part,
    Shot,
    Site,
    Steps,
    editor_of,
    edits_needed,
    find_aside,
    forecast,
    make_edits,
    make_stimuli,
    missing_edits,
    prepare,
    product_motion,
    read_manifest,
    read_shots,
    render,
    signed,
    verify,
)  # fmt: skip
from alignment_video.tables import read_table, write_table
from alignment_video.validation import validate
from alignment_video.variants import plan_study, read_plan, write_plan
from alignment_video.video import VideoWriter, film, probe, read_frames, read_timeline, sound_packets
from alignment_video.world import Ad, truth_of

PROGRAM = str(Path(sys.executable).with_name("alignment-video"))
RULE = PhotometricEditor(side=64)
BY_RULE = "video_editing: {editor: photometric}\n"


def plan_it(study: Study, settings: str = BY_RULE) -> pd.DataFrame:
    """Attention, validation and plan of a study with scenes and masks."""
    make_attention(study)
    validate(study)
    write_text(study.config, settings)
    plan, _ = plan_study(study, load_config(study.config).experiments)
    write_plan(study, plan)
    return plan.table


def world_study(root: Path, seed: int = 36_100_005, scenes: int = 3, settings: str = BY_RULE, **ad) -> tuple[Study, Ad]:
    """A study of one small ad whose masks are those that were drawn."""
    study, one = Study(root), Ad(seed, **{"size": (128, 80), "seconds": 2.4, "scenes": scenes} | ad)
    film(one, study.video(one.video_id))
    write_text(study.keywords, f"_id,keyword_list[0]\n{one.video_id},{one.keyword}\n")
    cut_videos(study, [study.video(one.video_id)])
    truth = truth_of(one)
    for scene in read_scenes(study).to_dict("records"):
        write_mask(study.mask(one.video_id, scene["scene_number"]), truth.mask(int(scene["picture_frame"])))
    plan_it(study, settings)
    return study, one


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Study, str]:
    study, ad = world_study(tmp_path_factory.mktemp("world") / "study")
    return study, ad.video_id


@pytest.fixture
def world(original, tmp_path) -> tuple[Study, str]:
    """A copy of the study, to be spoilt."""
    shutil.copytree(original[0].root, tmp_path / "study")
    return Study(tmp_path / "study"), original[1]


def make(study: Study, video_id: str, **how):
    settings = VideoEditingConfig(**how.pop("settings", {}))
    return make_stimuli(study, video_id, read_plan(study), how.pop("editor", RULE), settings, **how)


def rendered(study: Study, video_id: str, **settings):
    job = prepare(study, video_id, read_plan(study), RULE, VideoEditingConfig(**settings))
    edits = Edits(study, RULE)
    make_edits(job, edits)
    return job, list(render(job, edits))


def test_all_frames_times_and_sound_and_again_nothing(world):
    study, video_id = world
    made = make(study, video_id)
    source = study.video(video_id)
    for row in made["stimuli"]:
        path = study.root / row["path"]
        assert read_timeline(path) == read_timeline(source) and sound_packets(path) == sound_packets(source)
        assert (probe(path).width, probe(path).codec, probe(path).pixels) == (80, "h264", "yuv420p")
        assert path.read_bytes()[4:8] == b"ftyp" and path.read_bytes().find(b"moov") < path.read_bytes().find(b"mdat")
    assert verify(study, video_id) == 11 and len(made["stimuli"]) == 7
    times = {path: path.stat().st_mtime_ns for path in study.outputs.rglob("*") if path.is_file()}
    assert make(study, video_id) == made
    assert {path: path.stat().st_mtime_ns for path in study.outputs.rglob("*") if path.is_file()} == times


def test_only_what_is_missing_is_made(world):
    study, video_id = world
    some = make(study, video_id, variants=["baseline", "full_boost"])
    assert [row["variant"] for row in some["stimuli"]] == ["baseline", "full_boost"]
    first = study.stimulus(video_id, "full_boost").stat().st_mtime_ns
    every = make(study, video_id)
    assert len(every["stimuli"]) == 7 and study.stimulus(video_id, "full_boost").stat().st_mtime_ns == first
    study.stimulus(video_id, "placebo").unlink()
    assert make(study, video_id) == every and verify(study, video_id) == 11
    assert study.stimulus(video_id, "full_boost").stat().st_mtime_ns == first
    write_text(study.config, 'experiments: {custom: ["hook 0s-1s 1.8"]}\n' + BY_RULE)
    plan, _ = plan_study(study, load_config(study.config).experiments)
    write_plan(study, plan)
    hooked = make(study, video_id, variants=["hook"])  # planned later: the seven are still what they were
    assert (
        len(hooked["stimuli"]) == 8
        and verify(study, video_id) == 12
        and study.stimulus(video_id, "full_boost").stat().st_mtime_ns == first
    )
    seeded = make(study, video_id, settings={"keyframe_interval": 6})  # another setting: all again
    assert seeded != every and study.stimulus(video_id, "full_boost").stat().st_mtime_ns != first


def test_the_film_of_regions_is_that_of_all_variants_whatever_is_made(world, tmp_path):
    study, video_id = world
    other = Study(tmp_path / "other")
    shutil.copytree(study.root, other.root)
    make(study, video_id, variants=["early_boost"])
    alone = study.regions(video_id).read_bytes()
    make(study, video_id)
    make(other, video_id)
    assert study.regions(video_id).read_bytes() == alone == other.regions(video_id).read_bytes()
    first = study.stimulus(video_id, "full_boost").stat().st_mtime_ns
    for path in (study.comparison(video_id), study.regions(video_id), study.region_labels(video_id)):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + b"!")
        with pytest.raises(Refused, match="is not the file that"):
            verify(study, video_id)
        make(study, video_id)
        assert path.read_bytes() == whole and verify(study, video_id) == 11
        again = study.stimulus(video_id, "full_boost").stat().st_mtime_ns
        assert (again == first) == (path == study.comparison(video_id))  # a lost film of regions is rendered with all
        path.unlink()
        make(study, video_id)
        assert path.read_bytes() == whole


def test_a_lossless_film_of_one_variant_leaves_the_others_in_the_manifest(world):
    study, video_id = world
    make(study, video_id)
    made = make(study, video_id, variants=["placebo"], lossless=True)
    assert {row["variant"] for row in made["stimuli"] if "lossless" in row} == {"placebo"}
    assert len(made["stimuli"]) == 7 and verify(study, video_id) == 12
    shutil.rmtree(study.outputs / "edits")  # what is done needs none
    study.comparison(video_id).unlink()
    assert make(study, video_id) == made


def test_films_of_other_scene_borders_are_made_again(world):
    study, video_id = world
    before = make(study, video_id)
    scenes = pd.read_csv(study.scene_table, dtype={"video_id": str})
    scenes.loc[0, "picture_frame"] += 1
    scenes.to_csv(study.scene_table, index=False)
    assert make(study, video_id)["inputs"]["scenes"] != before["inputs"]["scenes"]


def test_no_room_for_a_placebo_is_said(tmp_path):
    study, ad = world_study(tmp_path / "study", size=(128, 80))
    for scene in read_scenes(study).to_dict("records"):
        mask = np.zeros((128, 80), np.uint8)
        mask[8:-8, 8:-8] = 1
        write_mask(study.mask(ad.video_id, scene["scene_number"]), mask)
    plan_it(study)
    made = make(study, ad.video_id)
    assert all(scene["beside"] is None for scene in made["scenes"])
    placebo = next(row for row in made["stimuli"] if row["variant"] == "placebo")
    assert not any("strength" in scene for scene in placebo["scenes"])


def test_variants_differ_where_they_should_and_nowhere_else(world):
    job, frames = rendered(*world)
    truth = {shot.number: shot for shot in job.shots}
    seen = dict.fromkeys(job.variants, 0)
    for frame, pictures, regions, _ in frames:
        inside = np.any([np.zeros(frame.image.shape[:2], bool), *regions.values()], 0)
        for name, picture in pictures.items():
            differs = (picture != frame.image).any(2)
            assert not (differs & ~inside).any()
            seen[name] += int(differs.sum())
        early, full = (pictures[name] for name in ("early_boost", "full_boost"))
        assert np.array_equal(early, full if frame.index < truth[1].stop else frame.image)
        product, aside = (regions.get(name) for name in ("product", "beside"))
        if product is not None and aside is not None:
            assert not (product & aside).any() and np.array_equal(pictures["placebo"][product], frame.image[product])
    assert seen["baseline"] == 0 and all(count > 0 for name, count in seen.items() if name != "baseline")
    assert seen["full_boost"] == seen["early_boost"] + seen["middle_boost"] + seen["late_boost"]


def test_a_placebo_follows_its_place_and_is_not_shown_where_nothing_can_be_followed():
    rng, wall = (
        np.random.default_rng(3),
        cv2.resize(np.random.default_rng(1).integers(0, 255, (30, 60, 3), np.uint8), (480, 240)),
    )
    still = [wall[20:200, 100 + 2 * t : 220 + 2 * t] for t in range(16)]  # the camera goes by, two pixels a frame
    mask = np.zeros((180, 120), bool)
    mask[70:110, 20:50] = True
    shot = Shot(1, 0, 16, (0, 15), 8, "mug", 0.3, ())
    for frames, seen in ((still, 1.0), ([*still[:10], *rng.integers(0, 255, (6, 180, 120, 3), np.uint8)], 0.0)):
        steps = Steps.of(frames)
        followed = product_motion(steps, mask, 8)
        places = (0, 8, 15)
        packed = tuple(np.packbits(cv2.resize(followed.masks[t].astype(np.uint8), (120, 180))) for t in places)
        boxes, attention = (Box(0, 0, 180, 120),) * 3, np.zeros((64, 64), np.float32)
        aside = find_aside(shot, Site(places, packed, (180, 120), boxes, (64, 64), attention, 1), steps, followed.masks)
        assert aside is not None and aside.shown[8] == pytest.approx(seen, abs=0.4) and aside.shown[0] == 1
        assert aside.shown[-1] == pytest.approx(seen, abs=0.01)
        there = [np.argwhere(aside.fetch(aside.mask.astype(np.float32), t) > 0.5).mean(0) for t in (0, 8)]
        assert there[0] - there[1] == pytest.approx([0, 16], abs=2)


def test_the_manifest_says_where_placebos_are_and_how_strong(world):
    made = make(*world)
    places = [scene["beside"] for scene in made["scenes"] if "beside" in scene]
    assert len(places) == 3
    for place in places:
        assert len(place["shown"]) == len(place["coverage"]) > 1 and all(0 <= share <= 1 for share in place["shown"])
    rows = {row["variant"]: row["scenes"] for row in made["stimuli"]}
    assert not any("strength" in scene for scene in rows["full_boost"])
    for scene in rows["placebo"]:
        assert 0 < scene["strength"]["placebo"] <= 1.1 * scene["strength"]["edit"]


@pytest.mark.parametrize(
    "settings",
    [
        {"carry": "change"}, {"carry": "pixels"}, {"carry": "pixels", "baseline": "untouched"}, {"consistency": "none"},
        {"consistency": "patch"}, {"context": 1.0}, {"keyframe_interval": 1}, {"fade": 0.0},
    ],
)  # fmt: skip
def test_each_setting_gives_a_whole_ad(world, settings):
    study, video_id = world
    job, frames = rendered(study, video_id, **settings)
    assert len(frames) == probe(study.video(video_id)).frames
    assert all(
        picture.dtype == np.uint8 and picture.shape == frame.image.shape
        for frame, made, *_ in frames
        for picture in made.values()
    )
    base = sum(int((made["baseline"] != frame.image).sum()) for frame, made, *_ in frames)
    assert (base > 0) == (settings == {"carry": "pixels"})  # by the same process, or untouched
    if settings.get("consistency") == "none":
        assert job.keyframes == sum(shot.clear[1] - shot.clear[0] + 1 for shot in job.shots)


def test_windows_by_time_cut_scenes_and_come_in_softly(tmp_path):
    told = 'experiments: {windows: time, custom: ["hook 0s-1.2s 1.8", "both 0.5s-2s 1.5 beside"]}\n' + BY_RULE
    study, ad = world_study(tmp_path / "s", seed=36_100_009, scenes=2, settings=told)
    job, frames = rendered(study, ad.video_id)
    assert {"hook", "both"} < set(job.variants) and max(len(shot.parts) for shot in job.shots) > 1
    change = [np.abs(made["hook"].astype(int) - frame.image).sum() for frame, made, *_ in frames]
    last = max(t for t, value in enumerate(change) if value)
    assert abs(last + 1 - 1.2 * ad.rate) <= 3 and change[last] < 0.5 * max(change[last - 6 : last])
    jumps = np.abs(np.diff(change[last - 6 : last + 2]))
    assert jumps.max() < 0.6 * max(change)


def test_a_variant_alone_needs_fewer_edits(world):
    study, video_id = world
    plan = read_plan(study)
    every, one = (prepare(study, video_id, plan, RULE, variants=names) for names in ((), ["early_boost"]))
    assert edits_needed(one) < edits_needed(every) / 2 and set(every.variants) > {"early_boost"}
    make_edits(one, edits := Edits(study, RULE))
    assert edits.made == edits_needed(one) and missing_edits(every, edits) == edits_needed(every) - edits.made
    alone, together = (
        [each.pictures["early_boost"] for each in render(job, edits)] for job in (one, _made(every, edits))
    )
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def _made(job, edits):
    make_edits(job, edits)
    return job


def test_edits_are_on_disk_scene_by_scene(world):
    """Stopped while the last scene is edited, a run has lost nothing of the scenes before, however large a batch is."""
    study, video_id = world
    job, calls = prepare(study, video_id, read_plan(study), RULE), []

    class Stopping(PhotometricEditor):
        def edit(self, views, gain):
            if views[0].name[1] == job.shots[-1].number:
                raise KeyboardInterrupt
            calls.append(len(views))
            return super().edit(views, gain)

    edits = Edits(study, Stopping(side=64), batch_size=1000)
    with pytest.raises(KeyboardInterrupt):
        make_edits(job, edits)
    assert len(list(study.edits.rglob("*.png"))) == sum(calls) == edits.made > 0
    told = []
    make_edits(job, Edits(study, RULE), lambda stage, done, total: told.append((done, total)))
    assert told[-1] == (edits_needed(job) - edits.made,) * 2 and [done for done, _ in told] == sorted(
        done for done, _ in told
    )


def test_a_run_that_was_stopped_gives_the_same_edits_to_the_last_bit(world, tmp_path):
    """What a processor adds up together decides the last bits, so batches are the same whatever is there already."""
    study, video_id = world
    write_text(study.config, "model: {sd_model_name: mini}\nvideo_editing: {adapter: mini, num_inference_steps: 2}\n")
    config = load_config(study.config)
    editor = editor_of(study, config)

    def edits_of(root):
        return {path.name: path.read_bytes() for path in Study(root).edits.rglob("*.png")}

    job = prepare(study, video_id, read_plan(study), editor, config.video_editing)
    make_edits(job, Edits(study, editor))
    whole = edits_of(study.root)
    assert len(whole) == edits_needed(job)
    for number, path in enumerate(sorted(study.edits.rglob("*.png"))):
        if number % 3:
            path.unlink()
    make_edits(job, again := Edits(study, editor))
    assert edits_of(study.root) == whole and 0 < again.made < len(whole)


def test_shares_and_fades():
    parts = Part(0, 10, {"a": Asked("product", Dose(1.5))}), Part(10, 20, {"a": Asked("product", STILL)})
    shot = Shot(1, 0, 20, (4, 15), 8, "mug", 0.3, parts)
    assert [shot.at(t, 4)["a"][1] for t in (0, 5, 6, 9)] == [1.0, 1.0, 0.8, 0.2]
    assert shot.share(4) == shot.share(15) == 1 and 0 < shot.share(0) < shot.share(3) < 1 > shot.share(19) > 0
    assert shot.asks == {Asked("product", Dose(1.5))}


def film_like(path: Path, frames, rate=24, **how) -> None:
    with VideoWriter(path, rate=rate, **how) as writer:
        for number, image in enumerate(frames):
            times = how.get("times")
            writer.write(image, *([times[number]] if times else []))


@pytest.mark.parametrize("kind", ["ntsc, odd size", "variable rate", "silent, one scene cut thrice"])
def test_odd_films(tmp_path, kind):
    study, ad = Study(tmp_path / "s"), Ad(36_100_005, size=(131, 81), seconds=2.4, scenes=3)
    path = study.video(ad.video_id)
    rate = Fraction(30000, 1001) if kind.startswith("ntsc") else 24
    sound = None if kind.startswith("silent") else (np.zeros((48_000, 2), np.float32), 48_000)
    with VideoWriter(path, rate=rate, sound=sound) as writer:
        at = Fraction(0)
        for number, image in enumerate(ad.play()):
            writer.write(image, *([at] if kind.startswith("variable") else []))
            at += Fraction(1 + number % 3, 24)
    write_text(study.keywords, f"_id,keyword_list[0]\n{ad.video_id},{ad.keyword}\n")
    cut_videos(study, [path])
    truth = truth_of(ad)
    for scene in read_scenes(study).to_dict("records"):
        write_mask(study.mask(ad.video_id, scene["scene_number"]), truth.mask(int(scene["picture_frame"])))
    plan_it(study)
    for row in make(study, ad.video_id, lossless=True)["stimuli"]:
        made = study.root / row["path"]
        assert read_timeline(made).ticks == read_timeline(path).ticks and sound_packets(made) == sound_packets(path)
        info = probe(made)
        assert (info.width, info.height, info.has_sound) == (81, 131, sound is not None)
    _, frames = rendered(study, ad.video_id)
    kept = list(read_frames(study.lossless(ad.video_id, "full_boost")))
    assert all(np.array_equal(one.image, made["full_boost"]) for one, (_, made, *_) in zip(kept, frames, strict=True))
    study.lossless(ad.video_id, "placebo").unlink()  # asked for no longer: the film is made again, without it
    rows = {row["variant"]: row for row in make(study, ad.video_id)["stimuli"]}
    assert "lossless" not in rows["placebo"] and "lossless" in rows["full_boost"] and verify(study, ad.video_id)


def test_the_forecast_counts_what_is_missing(world):
    study, video_id = world
    job, edits = prepare(study, video_id, read_plan(study), RULE), Edits(study, RULE)
    told = forecast(job, edits)
    assert told.missing == told.edits == edits_needed(job) == missing_edits(job, edits) and told.seconds > 0
    assert str(7 * job.keyframes) in str(told) and "them there" not in str(told)
    make_edits(job, edits)
    assert edits.made == told.edits and forecast(job, edits).missing == 0
    assert told.edits < 7 * job.keyframes / 2


def test_edits_are_named_by_everything_that_decides_them(world):
    study, video_id = world
    job = prepare(study, video_id, read_plan(study), RULE)
    shot = job.shots[0]
    site = job.sites[shot.number]
    frame = next(read_frames(study.video(video_id))).image
    view = job.view(shot, site, 0, frame)
    from dataclasses import replace

    keys = {
        Edits(study, editor).key(each, gain)
        for editor, each, gain in [
            (RULE, view, 1.5), (RULE, view, 1.25), (PhotometricEditor(side=64, sharpness=1), view, 1.5),
            (RULE, replace(view, keyword="x"), 1.5), (RULE, replace(view, name=("y",)), 1.5),
            (RULE, replace(view, alignment=0.5), 1.5), (RULE, replace(view, mask=~view.mask), 1.5),
            (RULE, replace(view, picture=255 - view.picture), 1.5),
            (RULE, replace(view, attention=view.attention + 1), 1.5),
        ]
    }  # fmt: skip
    assert len(keys) == 9 and Edits(study, RULE).key(view, 1.5) in keys


def test_names_of_edits_at_a_gain_alone_are_what_they_were(world):
    """Whoever has edits on disk keeps them: the hash of what was asked before there were doses."""
    import hashlib

    study, video_id = world
    job = prepare(study, video_id, read_plan(study), RULE)
    view = job.view(job.shots[0], job.sites[1], 0, next(read_frames(study.video(video_id))).image)
    for gain in (1.0, 1.5):
        whole = hashlib.sha256(json.dumps(["alignment_video edits 1", RULE.settings()], sort_keys=True).encode())
        whole.update(json.dumps([gain, view.alignment, view.keyword, view.name, view.mask.shape]).encode())
        for plane in (view.picture, view.mask, view.attention):
            whole.update(np.ascontiguousarray(plane).tobytes())
        assert Edits(study, RULE).key(view, Dose(gain)) == Edits(study, RULE).key(view, gain) == whole.hexdigest()[:32]
    doses = [
        Dose(1.5),
        Dose(1.5, 2.0),
        Dose(1.5, 1.5),
        Dose(1.5, None, 0.9),
        Dose(1.5, 2.0, 0.9),
        Dose(1.0, 2.0),
        STILL,
    ]
    assert len({Edits(study, RULE).key(view, dose) for dose in doses}) == len(doses)


def dosed(plan: pd.DataFrame, asked=("full_boost", "placebo"), **columns) -> pd.DataFrame:
    """A plan in which scene 2 of some variants asks for more than a gain."""
    here = plan["variant"].isin(asked) & (plan["scene_number"] == 2)
    return plan.assign(**{name: np.where(here, value, np.nan) for name, value in columns.items()})


def test_a_plan_may_ask_for_more_than_a_gain(world):
    study, video_id = world
    write_text(study.config, "model: {sd_model_name: mini}\nvideo_editing: {adapter: mini, num_inference_steps: 4}\n")
    config, plan = load_config(study.config), read_plan(study)
    editor, some = editor_of(study, config), ["baseline", "middle_boost", "full_boost", "placebo"]
    plain = make_stimuli(study, video_id, plan, editor, config.video_editing, some)
    empty = dosed(plan, (), control_guidance=1.0, edit_strength=1.0)  # the columns are there, and say nothing
    assert make_stimuli(study, video_id, empty, editor, config.video_editing, some) == plain
    more = dosed(plan, control_guidance=2.0, edit_strength=1.0)
    job = prepare(study, video_id, more, editor, config.video_editing, some)
    assert job.doses(job.shots[1]) == [STILL, Dose(1.5), Dose(1.5, 2.0, 1.0)]
    assert job.edited(job.shots[1]) == [STILL, Dose(1.0, 2.0, 1.0), Dose(1.5), Dose(1.5, 2.0, 1.0)]
    assert missing_edits(job, edits := Edits(study, editor)) == 2 * sum(bool(mask.any()) for mask in job.sites[2].masks)
    made = make_stimuli(study, video_id, more, editor, config.video_editing, some)
    rows = {row["variant"]: row for row in made["stimuli"]}
    before = {row["variant"]: row for row in plain["stimuli"]}
    assert all(rows[name] == before[name] for name in ("baseline", "middle_boost"))
    for name in ("full_boost", "placebo"):
        assert rows[name]["sha256"] != before[name]["sha256"]
        for scene, old in zip(rows[name]["scenes"], before[name]["scenes"], strict=True):
            told = {"control_guidance": 2.0, "edit_strength": 1.0} if scene["scene"] == 2 else {}
            assert {key: scene[key] for key in scene if key not in ("strength", *told)} == {
                key: old[key] for key in old if key != "strength"
            }
            assert {key: scene[key] for key in told} == told
    assert rows["placebo"]["scenes"][1]["strength"] != before["placebo"]["scenes"][1]["strength"]
    assert (
        missing_edits(job, edits) == 0
        and make_stimuli(study, video_id, more, editor, config.video_editing, some) == made
    )


def test_doses_that_cannot_be_had_are_refused_by_name(world):
    study, video_id = world
    plan = read_plan(study)
    with pytest.raises(Refused, match="control guidance 2: the photometric editor has a gain alone"):
        make_stimuli(study, video_id, dosed(plan, control_guidance=2.0), RULE)
    with pytest.raises(
        Refused, match=f"plan: full_boost, scene {video_id}/2: strength 1.5: use a number above 0, up to 1"
    ):
        read_shots(study, dosed(plan, ["full_boost"], edit_strength=1.5), video_id)
    words = plan.assign(control_guidance="", edit_strength=None)  # empty, as whoever reads a table as text has it
    assert read_shots(study, words, video_id) == read_shots(study, plan, video_id)
    still = dosed(plan, ["baseline"], control_guidance=2.0)  # nothing is asked, so nothing else counts
    assert read_shots(study, still, video_id) == read_shots(study, plan, video_id)


def test_the_manifest_says_what_was_asked(world):
    rows = {row["variant"]: row["scenes"] for row in make(*world)["stimuli"]}
    plan = read_plan(world[0]).set_index(["variant", "scene_number"])
    for name, scenes in rows.items():
        for scene in scenes:
            asked = plan.loc[(name, scene["scene"])]
            assert (scene["window"], scene["alpha"], scene["gain"]) == (asked["window"], asked["alpha"], asked["gain"])
            assert scene["alignment_target"] == asked["alignment_target"]


def test_a_manifest_of_another_version_is_refused_by_name_and_made_again(world):
    study, video_id = world
    made = make(study, video_id)
    edits = {path: path.stat().st_mtime_ns for path in study.edits.rglob("*.png")}
    write_json(study.manifest(video_id), signed(made | {"schema": "alignment_video stimuli 2"}))
    with pytest.raises(Refused, match="is of another version"):
        verify(study, video_id)
    assert make(study, video_id) == made
    assert {path: path.stat().st_mtime_ns for path in study.edits.rglob("*.png")} == edits


# --- bad input --------------------------------------------------------------------------------------------------------


def test_scenes_missing_from_the_tables(world):
    study, video_id = world
    scenes = read_table(study.scene_table)
    write_table(study.scene_table, scenes[scenes["scene_number"] != 2])
    with pytest.raises(
        Refused, match=f"video {video_id}: scene 2 of the plan is not in .*; run 'alignment-video scenes'"
    ):
        make(study, video_id)
    with pytest.raises(Refused, match="video 70000: it is not planned"):
        read_shots(study, read_plan(study), "70000")


def test_another_film_under_the_same_name(world):
    study, video_id = world
    film(Ad(8, size=(128, 80), seconds=3), study.video(video_id))
    with pytest.raises(Refused, match="it is another video now"):
        make(study, video_id)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.ones((80, 128)), "scene .*/1: mask is 128x80 pixels, the frame 80x128: it belongs to another video"),
        (np.ones((128, 80)), "scene .*/1: mask covers 100% of the frame"),
        (np.zeros((128, 80)), "scene .*/1: mask is empty"),
    ],
)
def test_masks_that_cannot_be_used_are_named(world, mask, said):
    study, video_id = world
    write_mask(study.mask(video_id, 1), mask)
    with pytest.raises(Refused, match=said):
        make(study, video_id)
    assert not list(study.stimuli.glob("*")) if study.stimuli.is_dir() else True


def test_a_lost_mask_and_a_lost_film(world):
    study, video_id = world
    study.mask(video_id, 2).unlink()
    with pytest.raises(Refused, match=r"Scene-002-01.png is not there; run masks"):
        make(study, video_id)
    study.video(video_id).unlink()
    with pytest.raises(Refused, match="mp4 is not there"):
        make(study, video_id)


def test_nothing_asked_of_any_scene(world):
    study, video_id = world
    plan = read_plan(study)
    with pytest.raises(Refused, match="no variant changes any of its scenes"):
        make_stimuli(study, video_id, plan.assign(gain=1.0), RULE)


def test_settings_without_a_model(world):
    study, _ = world
    with pytest.raises(Refused, match=r"no adapter in .*: train one .*video_editing.editor=photometric"):
        editor_of(study, load_config())
    with pytest.raises(Refused, match=r"raft"):
        make(study, world[1], settings={"consistency": "raft", "flow_weights": "nowhere.pth"})


def test_a_manifest_edited_by_hand(world):
    study, video_id = world
    make(study, video_id)
    path = study.manifest(video_id)
    content = json.loads(path.read_text())
    content["stimuli"][1]["scenes"][0]["gain"] = 1.1
    path.write_text(json.dumps(content))
    with pytest.raises(Refused, match=r"manifest.json was changed after it was written; run 'alignment-video edit'"):
        verify(study, video_id)
    for junk in ("[]", "{}", "no json", '{"sha256": 3}'):
        path.write_text(junk)
        with pytest.raises(Refused, match=r"manifest.json"):
            read_manifest(study, video_id)
    done = subprocess.run([PROGRAM, "verify", "--study", str(study.root)], capture_output=True, text=True)
    assert done.returncode == 1 and "manifest.json" in done.stderr and done.stderr.count("\n") == 1
    assert make(study, video_id)["stimuli"] and verify(study, video_id) == 11  # made again


def test_verify_names_the_first_file_that_differs(world):
    study, video_id = world
    make(study, video_id, variants=["baseline", "placebo"])
    with study.stimulus(video_id, "placebo").open("ab") as file:
        file.write(b"!")
    done = subprocess.run([PROGRAM, "verify", "--study", str(study.root)], capture_output=True, text=True)
    assert done.returncode == 1 and f"{video_id}_placebo.mp4 is not the file" in done.stderr


def edit(study: Study, **how) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, "edit", "--study", str(study.root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


def test_a_second_run_is_told_who_works(world):
    study, _ = world
    with locked(study, "edit"):
        second = edit(study)
        _, said = second.communicate(timeout=60)
    assert (
        second.returncode == 1 and f"'edit' (process {os.getpid()}) is at work in it" in said and said.count("\n") == 1
    )


def test_a_killed_run_goes_on(world, tmp_path):
    study, video_id = world
    shutil.copytree(study.root, tmp_path / "other")
    other = Study(tmp_path / "other")
    make(other, video_id, editor=PhotometricEditor())
    first, deadline = edit(study), time.monotonic() + 90
    while not list(study.stimuli.glob(".*.part.mp4")):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not list(study.stimuli.glob("[!.]*")) and not study.manifest(video_id).exists()
    made = {path: path.stat().st_mtime_ns for path in study.edits.rglob("*.png")}
    again = edit(study)
    said, wrong = again.communicate(timeout=120)
    assert again.returncode == 0 and "stimuli of 58 frames: 7;" in said, wrong
    assert made and {path: path.stat().st_mtime_ns for path in study.edits.rglob("*.png")} == made  # none twice
    assert read_manifest(study, video_id)["stimuli"] == read_manifest(other, video_id)["stimuli"]  # to the byte


def test_a_full_disk_leaves_no_half_film(world):
    study, _ = world
    full = edit(study, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)))
    said, wrong = full.communicate(timeout=120)
    assert full.returncode == 1 and wrong.count("\n") <= 2 and "Traceback" not in wrong, (said, wrong)
    assert not list(study.stimuli.glob("*.mp4")) and not list(study.stimuli.glob(".*"))


def test_a_folder_that_cannot_be_written(world):
    study, _ = world
    study.stimuli.parent.mkdir(exist_ok=True)
    study.stimuli.write_text("a file where a folder should be")
    done = edit(study)
    _, wrong = done.communicate(timeout=60)
    assert done.returncode == 1 and "videos" in wrong and "Traceback" not in wrong, wrong


CLIPS = Path(__file__).parents[2] / "shared" / "data" / "real_clips"


@pytest.mark.parametrize(
    ("name", "ellipse"), [("wolf", (236, 190, 120, 125)), ("person_960x506_25fps", (313, 165, 140, 165))]
)
def test_real_clips(tmp_path, name, ellipse):
    """Footage of a camera, with a mask drawn by hand in the scene's picture: followed, edited by rule, carried."""
    if not (CLIPS / f"{name}.mp4").is_file():
        pytest.skip("the real clips are not on this machine")
    study = Study(tmp_path / "study")
    study.videos.mkdir(parents=True)
    short = study.video("clip")
    with VideoWriter(short, like=probe(CLIPS / f"{name}.mp4")) as writer:
        for frame in read_frames(CLIPS / f"{name}.mp4", 0, 40):
            writer.write(frame.image, frame.time, frame.duration)
    write_text(study.keywords, "_id,keyword_list[0]\nclip,face\n")
    scene = cut_videos(study, [short]).table.iloc[0]
    frames = [frame.image for frame in read_frames(short)]
    mask = np.zeros(frames[0].shape[:2], np.uint8)
    cv2.ellipse(mask, ellipse[:2], ellipse[2:], 0, 0, 360, 1, -1)
    write_mask(study.mask("clip", 1), mask)
    plan_it(study, "experiments: {windows: time}\n" + BY_RULE)
    job, made = rendered(study, "clip")
    assert len(made) == len(frames) and scene["end_frame"] == len(frames)
    area = [np.unpackbits(mask).sum() for mask in job.sites[1].masks]
    assert min(area) > 0.6 * max(area)  # nothing crumbles
    edited = [each.pictures["full_boost"] for each in made]
    for picture, (frame, _, regions, _) in zip(edited, made, strict=True):
        differs = (picture != frame.image).any(2)
        assert differs.any() and not (differs & ~regions["product"]).any()
    steps = [[np.abs(one.astype(int) - other).mean() for one, other in pairwise(film)] for film in (frames, edited)]
    assert max(np.array(steps[1]) / np.array(steps[0])) < 1.6  # no frame jumps out of the row
