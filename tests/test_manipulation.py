"""The check of finished films: what it says of good ones, of spoilt ones and of bad input; calibration."""

import json
import math
import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from test_stimuli import BY_RULE, PROGRAM, RULE, make, world_study

from alignment_video import manipulation
from alignment_video.core import (
    CheckConfig,
    Config,
    Refused,
    Study,
    load_config,
    locked,
    study_config,
    write_json,
)
from alignment_video.manipulation import (
    Wish,
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
from alignment_video.stimuli import FILM, Edits, editor_of, make_stimuli, prepare, read_manifest, signed
from alignment_video.tables import read_table, write_table
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
    assert len(table) == 4 and edits.asked == table["edits"].sum()
    reached = table[table["reached"]]
    assert len(reached) >= 2 and (np.abs(np.log(reached["ratio"] / reached["asked"])) <= np.log(1.05)).all()
    again = calibrate(job, other := Edits(study, RULE), judges_of(study, video_id, Config())[0][0])
    assert other.made == 0 and again.equals(table)  # also what it cost
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


class Scene:
    """A scene whose ratio and lost edges follow from the dose by rule: what calibration is to cope with."""

    def __init__(self, got, lost=lambda dose: 0.0, turns=(1.0, 0.8), base_shown=False):
        self.got, self.lost, self.asked = got, lost, []
        editor = SimpleNamespace(turns=dict(zip(("control", "strength"), turns, strict=False)))
        self.job = SimpleNamespace(base_shown=base_shown, editor=editor)

    def at(self, x, dose):
        assert dose.gain == pytest.approx(math.exp(x), abs=1e-4)
        self.asked.append(dose)
        return manipulation._Tried(x, self.got(dose), self.lost(dose), dose)


def searched(scene: Scene, ratio: float, **settings):
    settings = {"controls": [1.5, 2.0], "strengths": [0.9]} | settings
    return manipulation._searched(scene, Wish(1, 2.0 if ratio > 1 else 0.5, ratio), CheckConfig(**settings))


def moves(control=0.0, strength=0.0, most=0.4):
    """Half of what is asked, up to a limit; and a share more for each half more control, each tenth more strength."""

    def got(dose):
        plain = min(most, 0.5 * abs(math.log(dose.gain)))
        more = control * ((dose.control or 1) - 1) / 0.5 + strength * ((dose.strength or 0.8) - 0.8) / 0.1
        return math.copysign(plain * (1 + more), math.log(dose.gain))

    return got


def test_where_a_gain_is_enough_nothing_else_is_turned():
    found = searched(scene := Scene(moves(control=1.0)), 1.4)
    assert found["reached"] and found["turned"] == "gain" and not any(dose.named for dose in scene.asked)
    assert np.isnan(found["control_guidance"]) and np.isnan(found["edit_strength"])


@pytest.mark.parametrize("ratio", [1.8, 1 / 1.8])
def test_beyond_the_gain_control_and_then_strength_as_far_as_they_are_worth_it(ratio):
    found = searched(scene := Scene(moves(control=1.0)), ratio)  # control at 1.5 does twice as much: too much
    assert found["reached"] and found["turned"] == "gain, control guidance" and found["control_guidance"] == 1.5
    assert abs(math.log(found["found"])) < abs(math.log(3)) and np.isnan(found["edit_strength"])
    assert found["tries"] == len(scene.asked) <= 6 and found["found"] == round(found["found"], 4)
    found = searched(scene := Scene(moves(control=0.1, strength=0.1)), ratio**2, most_edits=12)
    assert not found["reached"] and found["ended"] == "out of reach"
    assert found["turned"] == "gain, control guidance, edit strength"
    assert (found["control_guidance"], found["edit_strength"]) == (2.0, 0.9)
    found = searched(scene := Scene(moves(control=0.005, strength=0.1)), ratio**2, most_edits=12)
    assert found["turned"] == "gain, edit strength" and [dose.control for dose in scene.asked if dose.named] == [
        1.5,
        None,
    ]
    found = searched(scene := Scene(moves(control=0.005, strength=0.005)), ratio**2, most_edits=12)
    assert found["turned"] == "gain" and np.isnan(found["control_guidance"])  # less than one per cent is not worth it


def test_a_dose_that_costs_the_product_its_edges_is_not_used():
    dear = lambda dose: 0.1 + (0.4 if dose.control else 0.0)  # noqa: E731
    found = searched(scene := Scene(moves(control=0.3), dear), 1.8, strengths=[])
    assert found["turned"] == "gain" and found["edges_lost"] == pytest.approx(0.1)
    with_gain = lambda dose: 0.2 * abs(math.log(dose.gain)) + (0.05 if dose.control else 0.0)  # noqa: E731
    found = searched(scene := Scene(moves(control=0.4), with_gain), 1.8, strengths=[], most_edits=12)
    tried = [dose.gain for dose in scene.asked if dose.control]
    assert found["turned"] == "gain, control guidance" and found["edges_lost"] <= 0.25
    assert tried[0] == max(tried) > found["found"]  # at a smaller gain it can be paid for
    assert searched(Scene(moves(control=1.0), lambda dose: 0.9), 1.8)["turned"] == "gain"


def test_what_bounds_the_search():
    for most in range(1, 8):
        found = searched(scene := Scene(moves(control=0.1, strength=0.1)), 3.0, most_edits=most)
        assert len(scene.asked) == found["tries"] <= most
    assert found["ended"] == "out of reach"
    assert searched(Scene(moves(control=0.1, strength=0.1)), 3.0, most_edits=3)["ended"] == "stopped"
    for scene in (
        Scene(moves(control=1.0), turns=()),  # an editor that has a gain alone
        Scene(moves(control=1.0), turns=(2.0, 0.9)),  # settings that are as far already
        Scene(moves(control=1.0), base_shown=True),  # a baseline that would differ by more than the gain
        Scene(lambda dose: -moves()(dose)),  # a scene that goes the other way
    ):
        assert np.isnan(searched(scene, 1.8)["control_guidance"]) and not any(dose.named for dose in scene.asked)
    off = searched(scene := Scene(moves(control=1.0)), 1.8, controls=[], strengths=[])
    assert off["turned"] == "gain" and off["ended"] == "out of reach" and not any(dose.named for dose in scene.asked)


def test_the_editor_by_rule_offers_no_more_than_the_gain(world):
    study, video_id = world
    far = [calibration(study, video_id, 4.0, 0.8, **more)[-1] for more in ({}, {"controls": [], "strengths": []})]
    one, other = (table.drop(columns="edits") for table in far)
    assert one.equals(other) and set(one["turned"]) <= {"gain", ""}


def test_plans_get_what_was_found_and_older_tables_still_hold(world):
    study, video_id = world
    plan, _, _, table = calibration(study, video_id, 1.1, 0.8)
    own = calibrated(plan.table, table)
    assert [*own.columns] == [*plan.table.columns]  # where nothing but the gain was turned, plans are as they were
    old = table.drop(columns=["control_guidance", "edit_strength", "turned", "edges_lost"])
    assert calibrated(plan.table, old).equals(own)
    first = table.index[table["scene"] == 2][0]
    more = table.assign(control_guidance=np.where(table.index == first, 1.5, np.nan))
    told = calibrated(plan.table, more)
    gain = plan.table["gain"] == table["gain"][first]
    here = gain & (plan.table["scene_number"] == 2)
    assert (told.loc[here, "control_guidance"] == 1.5).all() and told.loc[~here, "control_guidance"].isna().all()
    assert "edit_strength" not in told and told["gain"].equals(own["gain"])
    assert (
        calibrated(told.assign(gain=plan.table["gain"]), old)["control_guidance"].isna().all()
    )  # found anew, all three
    write_table(study.calibration, old.assign(video_id="7000000000"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = study_config(study, ["experiments.boost_alpha=1.1", "experiments.reduction_alpha=0.8"])
        keep_calibration(study, calibrate_ad(study, video_id, plan.table, RULE, config)[1])
    both = read_table(study.calibration)
    assert set(both["video_id"]) == {"7000000000", video_id} and both.loc[: len(old) - 1, "turned"].eq("").all()
    assert calibrated(plan.table, both).equals(own)


def test_calibration_with_the_miniature_goes_further_where_no_gain_is_enough(tmp_path):
    """One wish that no gain reaches: the films are then made with what was found, and the manifest says it."""
    told = "model: {sd_model_name: mini}\nvideo_editing: {adapter: mini, num_inference_steps: 10}\n"
    study, ad = world_study(tmp_path / "study", seed=36_100_006, settings=told, size=(192, 108))
    config = study_config(study, ["experiments.reduction_alpha=0.3", "check.controls=[1.5]", "check.gains=[0.4, 3.0]"])
    config.experiments.variants = ["baseline", "reduction"]
    plan, _ = plan_study(study, config.experiments)
    editor = editor_of(study, config)
    own, table = calibrate_ad(study, ad.video_id, plan.table, editor, config)
    keep_calibration(study, table)
    row = table.iloc[0]
    assert row["turned"].startswith("gain, control guidance") and row["control_guidance"] == 1.5
    assert not row["reached"] and row["edges_lost"] <= config.check.edges_lost
    job = prepare(study, ad.video_id, plan.table, editor, config.video_editing)
    only = replace(config.check, controls=[], strengths=[])
    alone = calibrate(job, Edits(study, editor), judges_of(study, ad.video_id, config)[0][0], only)
    assert row["ratio"] < 0.99 * alone["ratio"][0]
    manifest = make_stimuli(study, ad.video_id, own, editor, config.video_editing)
    scene = manifest["stimuli"][1]["scenes"][row["scene"] - 1]
    assert (scene["gain"], scene["control_guidance"]) == (row["found"], 1.5)
    assert read_table(study.calibration)["control_guidance"].iloc[0] == 1.5


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
    with pytest.raises(Refused, match=r"check.strengths=1.5 is above 1"):
        load_config(overrides=["check.strengths=[0.9, 1.5]"])
    assert load_config(overrides=["check.controls=[]"]).check.controls == []
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


def test_the_evidence_of_more_than_the_gain_is_what_its_rows_say():
    from alignment_video.checks import FIRST_BEYOND, summary_beyond

    told = json.loads(Path("data/evidence/doses.json").read_text())
    assert sorted({row["seed"] for row in told["wishes"]}) == [*range(FIRST_BEYOND, FIRST_BEYOND + 6)]
    assert json.loads(json.dumps(summary_beyond(told["wishes"]))) == told["summary"]
