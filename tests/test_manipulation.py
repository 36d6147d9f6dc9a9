"""The check of finished films: what it says of good ones, of spoilt ones and of bad input; calibration."""

import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_stimuli import BY_RULE, PROGRAM, RULE, make, world_study

from alignment_video.core import CheckConfig, Config, Refused, Study, load_config, locked, study_config, write_json
from alignment_video.manipulation import (
    achieved,
    calibrate,
    calibrate_ad,
    calibrated,
    check_films,
    claims_of,
    judges_of,
    keep_calibration,
    spoil,
    wishes_of,
    write_check,
)
from alignment_video.stimuli import FILM, Edits, make_stimuli, prepare, read_manifest, signed
from alignment_video.tables import read_table
from alignment_video.variants import plan_study, read_plan, write_plan
from alignment_video.video import LOSSLESS, STIMULUS, VideoWriter, probe, read_frames


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Study, str]:
    study, ad = world_study(tmp_path_factory.mktemp("world") / "study", size=(192, 108))
    make(study, ad.video_id, lossless=True)
    return study, ad.video_id


@pytest.fixture
def world(original, tmp_path) -> tuple[Study, str]:
    """A copy of the study, to be spoilt."""
    shutil.copytree(original[0].root, tmp_path / "study")
    return Study(tmp_path / "study"), original[1]


def sign(study: Study, video_id: str, **changes) -> None:
    """A manifest that says what is there now, as whoever made the films would write it."""
    from alignment_video.core import file_hash

    manifest = json.loads(study.manifest(video_id).read_text())
    for row in manifest["stimuli"]:
        for file in (row, *([row["lossless"]] if "lossless" in row else [])):
            if (study.root / file["path"]).is_file():
                file["sha256"] = file_hash(study.root / file["path"])
    write_json(study.manifest(video_id), signed(manifest | changes))


def without_lossless(study: Study, video_id: str) -> None:
    manifest = json.loads(study.manifest(video_id).read_text())
    for row in manifest["stimuli"]:
        row.pop("lossless", None)
    write_json(study.manifest(video_id), signed(manifest))


def write(study: Study, video_id: str, path: Path, images, encoding=STIMULUS, **how) -> None:
    like = how.pop("like", probe(study.video(video_id)))
    with VideoWriter(path, like=like, encoding=encoding, **({"sound_from": study.video(video_id)} | how)) as writer:
        for image, frame in zip(images, read_frames(study.video(video_id)), strict=False):
            writer.write(image, frame.time, frame.duration)


def verdicts(check) -> dict[str, str]:
    return dict(zip(check.films["variant"], check.films["verdict"], strict=True))


def reason(check, variant: str) -> str:
    return str(check.films.set_index("variant").loc[variant, "reason"])


@pytest.mark.parametrize("lossless", [True, False])
def test_good_films_do_not_fail(world, lossless):
    study, video_id = world
    if not lossless:
        without_lossless(study, video_id)
    found = check_films(study, video_id)
    assert "fail" not in verdicts(found).values() and verdicts(found)["baseline"] == "pass"
    scenes = found.scenes
    assert len(scenes) == 7 * 3 and (scenes["looks"] == 3).all()
    asked = scenes[scenes["region"] == "product"]
    assert (np.sign(np.log(asked["ratio"])) == np.sign(np.log(asked["asked"]))).all()
    still = scenes[(scenes["region"] == "") & (scenes["variant"] != "baseline")]
    if lossless:
        assert (scenes["differing"] == 0).all() and (still["ratio"] == 1).all() and (still["change"] == 0).all()
    else:
        assert scenes["differing"].isna().all() and any("encoded films" in note for note in found.notes)
        assert np.allclose(still["ratio"], 1, atol=0.02)
    assert (scenes["elsewhere"] < 6).all() and (found.films["cast"] < 0.25).all()


def test_what_is_kept(world):
    study, video_id = world
    found = check_films(study, video_id)
    for _ in range(2):  # again: the study's table has each ad once
        paths = write_check(study, found)
    assert all(path.is_file() for path in paths)
    table = read_table(study.achieved)
    assert len(table) == 7 and set(table["video_id"]) == {video_id}
    assert table.set_index("variant")["ratio"]["full_boost"] > 1 > table.set_index("variant")["ratio"]["reduction"]
    assert np.allclose(table["ratio"], achieved(found)["ratio"])
    page = study.check(video_id, ".html").read_text()
    assert "http" not in page and "<script" not in page and page.count('class="verdict') == 7 + 21
    assert '<span class="verdict' in found._repr_html_()


def test_five_ways_to_go_wrong_are_caught_each_with_its_reason(world):
    study, video_id = world
    expected = spoil(study, video_id)
    found = check_films(study, video_id)
    for name, line in expected.items():
        assert verdicts(found)[name] == "fail" and line in reason(found, name), reason(found, name)
    assert {name for name, verdict in verdicts(found).items() if verdict == "fail"} == {*expected}
    assert "crf=18.0" in reason(found, "full_boost")
    assert (
        sum("quality" in why for why in found.films["reason"]) == 1
        and sum("cast" in why for why in found.films["reason"]) == 1
    )


def test_one_pixel_of_a_lossless_film_is_enough(world):
    study, video_id = world
    path = study.lossless(video_id, "full_boost")
    images = [frame.image for frame in read_frames(path)]
    images[5] = images[5].copy()
    images[5][0, 0] ^= 1
    write(study, video_id, path, images, LOSSLESS)
    sign(study, video_id)
    found = check_films(study, video_id)
    assert verdicts(found)["full_boost"] == "fail"
    assert "scene 1: 1 pixels differ from the ad's outside its region" in reason(found, "full_boost")
    assert sum(verdict == "fail" for verdict in verdicts(found).values()) == 1


def test_a_scene_moved_the_wrong_way_fails(world):
    study, video_id = world
    write(
        study,
        video_id,
        study.stimulus(video_id, "full_boost"),
        [f.image for f in read_frames(study.lossless(video_id, "full_boost"))],
    )
    manifest = json.loads(study.manifest(video_id).read_text())
    row = next(row for row in manifest["stimuli"] if row["variant"] == "full_boost")
    for scene in row["scenes"]:  # as if a reduction had been asked for
        scene["gain"], scene["alpha"], scene["alignment_target"] = 0.5, 0.5, scene["alignment_target"] / 3
    write_json(study.manifest(video_id), signed(manifest))
    found = check_films(study, video_id)
    assert verdicts(found)["full_boost"] == "fail" and "did not go the way it was asked" in reason(found, "full_boost")


@pytest.mark.parametrize("kind", ["silent", "short", "smaller", "missing", "torn", "changed", "late", "no lossless"])
def test_files_that_are_not_as_they_should(world, kind):
    study, video_id = world
    path = study.stimulus(video_id, "placebo")
    images = [frame.image for frame in read_frames(study.lossless(video_id, "placebo"))]
    lines = {
        "silent": "its sound is not the ad's", "short": f"{len(images) - 3} frames, the ad {len(images)}",
        "smaller": "96x180 pixels, the ad 108x192", "missing": "is not there", "torn": "",
        "changed": "is not the file that the manifest describes", "late": "at other times than the ad's",
        "no lossless": "is not the lossless film that the manifest describes",
    }  # fmt: skip
    if kind == "silent":
        write(study, video_id, path, images, sound_from=None)
    elif kind == "short":
        write(study, video_id, path, images[:-3])
    elif kind == "smaller":
        write(study, video_id, path, [cv2.resize(image, (96, 180)) for image in images])
    elif kind == "missing":
        path.unlink()
    elif kind == "torn":
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "changed":
        path.write_bytes(path.read_bytes() + b"\0")
    elif kind == "late":
        with VideoWriter(path, rate=25, sound_from=study.video(video_id)) as writer:
            for image in images:
                writer.write(image)
    else:
        study.lossless(video_id, "placebo").unlink()
    if kind not in ("changed", "no lossless"):
        sign(study, video_id)
    found = check_films(study, video_id)
    assert verdicts(found)["placebo"] == "fail" and lines[kind] in reason(found, "placebo"), reason(found, "placebo")
    assert [name for name, verdict in verdicts(found).items() if verdict == "fail"] == ["placebo"]


def test_a_film_damaged_in_the_middle_is_named_and_the_others_are_measured(world):
    study, video_id = world
    path = study.stimulus(video_id, "late_boost")
    content = bytearray(path.read_bytes())
    middle = content.find(b"mdat") + (len(content) - content.find(b"mdat")) // 3
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(bytes(content))
    sign(study, video_id)
    found = check_films(study, video_id)
    assert verdicts(found)["late_boost"] == "fail"
    assert "fail" not in [verdict for name, verdict in verdicts(found).items() if name != "late_boost"]


def test_bad_input_is_refused_in_one_line(world, original):
    study, video_id = world
    text = study.manifest(video_id).read_text()
    study.manifest(video_id).write_text(text.replace('"full_boost"', '"half_boost"', 1))
    with pytest.raises(Refused, match="was changed after it was written"):
        check_films(study, video_id)
    study.manifest(video_id).write_text(text)
    with pytest.raises(Refused, match=r"manifest.json is not there; run 'alignment-video edit'"):
        check_films(study, "7000000000")
    labels = study.region_labels(video_id).read_bytes()
    study.region_labels(video_id).unlink()
    with pytest.raises(Refused, match="nobody knows where films may differ"):
        check_films(study, video_id)
    study.region_labels(video_id).write_bytes(labels)
    study.video(video_id).write_bytes(study.video(video_id).read_bytes() + b"\0")
    with pytest.raises(Refused, match="is not the ad that the films were made of"):
        check_films(study, video_id)


def test_judges(world):
    study, video_id = world
    config = Config()
    config.check.second = "contrast"
    judges, notes = judges_of(study, video_id, config)
    assert [judge.name for judge in judges] == ["contrast", "spectral"] and "made the maps" in notes[0]
    config.check.second = "predictor"
    judges, notes = judges_of(study, video_id, config)
    assert [judge.name for judge in judges] == ["contrast", "predictor"] and not notes
    text = study.attention_table.read_text()
    study.attention_table.write_text(text.replace(",contrast,", ",csv,", 1))
    judges, notes = judges_of(study, video_id, Config())
    assert judges[0].name == "contrast" and "attention came from contrast and csv" in notes[0]
    study.attention_table.unlink()
    assert "attention came from maps of your own" in judges_of(study, video_id, Config())[1][0]


def test_scenes_in_parts_and_own_variants(tmp_path):
    told = 'experiments: {windows: time, variants: [baseline, full_boost], custom: ["hook 0s-1.2s 1.8"]}\n' + BY_RULE
    study, ad = world_study(tmp_path / "s", seed=36_100_009, scenes=2, settings=told, size=(192, 108))
    make(study, ad.video_id)
    claims = [claim for claim in claims_of(read_manifest(study, ad.video_id)) if claim.variant == "hook"]
    assert len(claims) > 2 and {claim.region for claim in claims} == {"product", ""}
    for claim in claims:
        assert all(claim.first <= t < claim.stop for t in claim.looks)
    found = check_films(study, ad.video_id)
    assert "fail" not in verdicts(found).values(), found.films["reason"].tolist()


def calibration(study: Study, video_id: str, boost: float, reduction: float, **settings):
    plan, _ = plan_study(
        study,
        load_config(
            overrides=[f"experiments.boost_alpha={boost}", f"experiments.reduction_alpha={reduction}"]
        ).experiments,
    )
    job, edits = prepare(study, video_id, plan.table, RULE), Edits(study, RULE)
    judge = judges_of(study, video_id, Config())[0][0]
    return plan, job, edits, calibrate(job, edits, judge, CheckConfig(**settings))


def test_calibration_reaches_what_is_asked_or_says_how_far_it_got(world):
    study, video_id = world
    plan, job, edits, table = calibration(study, video_id, 1.1, 0.8)
    assert [tuple(row) for row in table[["scene", "gain"]].to_numpy()] == [(w.scene, w.gain) for w in wishes_of(job)]
    assert len(table) == 4 and edits.made == table["edits"].sum()
    reached = table[table["reached"]]
    assert len(reached) >= 2 and (np.abs(np.log(reached["ratio"] / reached["asked"])) <= np.log(1.05)).all()
    again = calibrate(job, other := Edits(study, RULE), judges_of(study, video_id, Config())[0][0])
    assert other.made == 0 and again.drop(columns="edits").equals(table.drop(columns="edits"))
    _, _, _, far = calibration(study, video_id, 4.0, 0.8)
    short = far[far["asked"] > 1.5]
    assert (
        len(short)
        and not short["reached"].any()
        and (short["ratio"] < short["asked"]).all()
        and (short["found"] <= 3).all()
    )
    _, _, _, few = calibration(study, video_id, 1.1, 0.8, most_edits=1)
    assert (few["tries"] == 1).all()
    own = calibrated(plan.table, table)
    gains = own.set_index(["variant", "scene_number"])["gain"]
    for row in table.to_dict("records"):
        if row["gain"] > 1:
            assert gains["full_boost", row["scene"]] == gains["placebo", row["scene"]] == row["found"]
    assert (gains["baseline"] == 1).all() and own["alignment_target"].equals(plan.table["alignment_target"])


def test_calibrated_films_are_what_was_asked(world):
    study, video_id = world
    config = study_config(study, ["experiments.boost_alpha=1.1", "experiments.reduction_alpha=0.8"])
    plan, _ = plan_study(study, config.experiments)
    own, table = calibrate_ad(study, video_id, plan.table, RULE, config)
    keep_calibration(study, table)
    keep_calibration(study, table)  # an ad's earlier rows are replaced
    assert len(read_table(study.calibration)) == len(table)
    make_stimuli(study, video_id, own, RULE, lossless=True)
    scenes = check_films(study, video_id).scenes
    both = scenes[scenes["region"] == "product"].merge(table, on=["scene"], suffixes=("", " wished"))
    both = both[np.isclose(both["asked"], both["asked wished"]) & both["reached"]]
    assert len(both) and (np.abs(np.log(both["ratio"] / both["asked"])) <= np.log(1.1)).all()


def command(study: Study, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([PROGRAM, *words, "--study", str(study.root)], capture_output=True, text=True, check=False)


def test_the_command(world):
    study, video_id = world
    done = command(study, "check")
    assert done.returncode == 0 and done.stdout.startswith(f"{video_id}: 7 films: ") and not done.stderr
    assert study.check(video_id, ".html").is_file() and study.achieved.is_file()
    spoil(study, video_id)
    done = command(study, "check", "--video", video_id)
    assert done.returncode == 1 and done.stderr.startswith("alignment-video: 5 films must not be used: ")
    assert len(done.stderr.splitlines()) == 1 and "middle_boost: fail: scene 2: nothing was changed" in done.stdout
    with locked(study, "edit"):
        done = command(study, "check")
    assert done.returncode == 1 and "is at work in it; wait for its end, or stop it" in done.stderr
    done = command(study, "check", "--video", "7000000000")
    assert done.returncode == 1 and "manifest.json is not there" in done.stderr
    shutil.rmtree(study.variants / video_id)
    done = command(study, "check")
    assert done.returncode == 1 and "no manifest in it; make the stimuli first" in done.stderr


def test_edit_calibrated_by_command(world):
    study, video_id = world
    study.config.write_text(study.config.read_text() + "experiments: {boost_alpha: 1.1, reduction_alpha: 0.8}\n")
    plan, _ = plan_study(study, study_config(study).experiments)
    write_plan(study, plan)
    done = command(study, "edit", "--calibrate")
    assert done.returncode == 0 and "ratios reached" in done.stdout, done.stderr
    table = read_table(study.calibration)
    gains = {scene["gain"] for row in read_manifest(study, video_id)["stimuli"] for scene in row["scenes"]}
    assert gains == {1.0, *table["found"]} and read_plan(study)["gain"].isin([1, 1.1, 0.8]).all()


def test_another_film_under_the_name_beside_its_own_lossless_one(world):
    """The upload is what counts: a lossless file beside it says nothing of it."""
    study, video_id = world
    shutil.copy(study.stimulus(video_id, "baseline"), study.stimulus(video_id, "middle_boost"))
    sign(study, video_id)
    found = check_films(study, video_id)
    assert [name for name, verdict in verdicts(found).items() if verdict == "fail"] == ["middle_boost"]
    assert "the encoded film does not show what its lossless one does" in reason(found, "middle_boost")


@pytest.mark.parametrize("lossless", [True, False])
def test_pixels_carried_with_an_edited_baseline(tmp_path, lossless):
    told = "video_editing: {editor: photometric, carry: pixels}\n"
    study, ad = world_study(tmp_path / "s", settings=told, size=(192, 108))
    make(study, ad.video_id, settings={"carry": "pixels"}, lossless=lossless)
    found = check_films(study, ad.video_id)
    assert "fail" not in verdicts(found).values(), found.films["reason"].tolist()


def test_few_films_are_held_against_the_ad_and_it_is_said(world, tmp_path):
    study, video_id = world
    without_lossless(study, video_id)
    manifest = json.loads(study.manifest(video_id).read_text())
    for keep in (["full_boost"], ["baseline", "full_boost"]):
        some = manifest | {"stimuli": [row for row in manifest["stimuli"] if row["variant"] in keep]}
        write_json(study.manifest(video_id), signed(some))
        found = check_films(study, video_id)
        assert "fail" not in verdicts(found).values(), found.films["reason"].tolist()
        assert f"only {len(keep)} films" in " ".join(found.notes)
        assert ("no baseline among the films" in " ".join(found.notes)) == (len(keep) == 1)
    images = [
        frame.image.astype(int) + np.array([0, 0, 3]) for frame in read_frames(study.lossless(video_id, "full_boost"))
    ]
    path = study.stimulus(video_id, "full_boost")
    write(study, video_id, path, [np.clip(image, 0, 255).astype(np.uint8) for image in images])
    sign(study, video_id)
    found = check_films(study, video_id)
    assert "a colour cast: blue is +" in reason(found, "full_boost") and verdicts(found)["baseline"] != "fail"


def test_no_film_at_all_is_one_line(world):
    study, video_id = world
    for row in json.loads(study.manifest(video_id).read_text())["stimuli"]:
        (study.root / row["path"]).unlink()
    with pytest.raises(Refused, match=r"none of its 7 films can be measured; the first: .* is not there"):
        check_films(study, video_id)


def test_a_cast_in_one_scene_alone(world):
    study, video_id = world
    without_lossless(study, video_id)
    claim = next(c for c in claims_of(read_manifest(study, video_id)) if c.variant == "placebo" and c.scene == 2)
    images = [frame.image.astype(int) for frame in read_frames(study.lossless(video_id, "placebo"))]
    for t in range(claim.first, claim.stop):
        images[t] = np.clip(images[t] + np.array([2, 0, 0]), 0, 255)
    path = study.stimulus(video_id, "placebo")
    write(study, video_id, path, [image.astype(np.uint8) for image in images], FILM)
    sign(study, video_id)
    found = check_films(study, video_id)
    assert verdicts(found)["placebo"] == "fail" and "scene 2: a colour cast" in reason(found, "placebo")


def test_an_alignment_of_nothing_and_a_cap_are_no_error(world):
    study, video_id = world
    manifest = json.loads(study.manifest(video_id).read_text())
    for row in manifest["stimuli"]:
        for scene in row["scenes"]:
            if row["variant"] == "reduction" and scene["gain"] != 1:
                scene["alignment_target"] = 0.0
            if row["variant"] == "full_boost":
                scene["alignment_target"] *= 1.004 / 1.5
    write_json(study.manifest(video_id), signed(manifest))
    found = check_films(study, video_id)
    assert verdicts(found)["reduction"] == "weak" and verdicts(found)["full_boost"] == "weak"
    assert write_check(study, found)[0].is_file()


def test_gains_of_calibration_have_to_lie_on_both_sides(world):
    study, video_id = world
    with pytest.raises(Refused, match=r"check.gains=\[1.5, 3.0\]; the first has to be below 1"):
        calibration(study, video_id, 1.1, 0.8, gains=[1.5, 3.0])
    done = command(study, "edit", "--calibrate", "--dry-run")
    assert done.returncode == 1 and "leave out one of them" in done.stderr


def test_the_evidence_is_what_its_rows_say():
    from alignment_video.checks import FIRST_AD, summary

    told = json.loads(Path("data/evidence/checks.json").read_text())
    assert [ad["seed"] for ad in told["ads"]] == [*range(FIRST_AD, FIRST_AD + 20)]
    again, kept = json.loads(json.dumps(summary(told["ads"]))), told["summary"]
    for name in ("differing", "verdicts", "caught", "false alarms"):
        assert again[name] == kept[name]
    for one, other in zip(again["effects"], kept["effects"], strict=True):
        assert one["what"] == other["what"] and one["ratio"] == pytest.approx(other["ratio"], rel=1e-6)
    for one, other in zip(again["calibration"], kept["calibration"], strict=True):
        assert [side["reached"] for side in one["sides"]] == [side["reached"] for side in other["sides"]]
