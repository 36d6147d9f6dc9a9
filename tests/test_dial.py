"""What page 92 cannot hold: dials whose answer is known, bad input, and figures that stand beside each other."""

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from alignment_video import dial as page
from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import Backbone
from alignment_video.core import Refused
from alignment_video.dial import (
    FIRST_SCENE,
    GAINS,
    PARTS,
    RULES,
    Dial,
    Editing,
    Scenes,
    as_much,
    calibrate,
    calibrated_shares,
    changed,
    compare_trainings,
    curve,
    encode_with,
    held_out_scenes,
    lead,
    lead_by_rule,
    main,
    mean_interval,
    photometric,
    placebo_effect,
    prove,
    reach,
    reached_shares,
    responses,
    rivals,
    strongest,
)
from alignment_video.mini_diffusion import ADAPTER, HELD_OUT_SEEDS, MEASURED_SEEDS, TRAINING_SEEDS, write_stills

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes():
    return held_out_scenes(6)


@pytest.fixture(scope="module")
def backbone():
    return Backbone.from_pretrained("mini", device="cpu")


class Turned:
    """A dial whose edit is known: a picture that is as bright as the gain says, and `seen` sees exactly that."""

    def __init__(self, scenes, exponent=1.0, most=np.inf):
        self.scenes, self.exponent, self.most, self.masks = scenes, exponent, most, scenes.masks
        self.edits = 0

    def edit(self, gains, scale=1.0):
        self.edits += 1
        found = np.minimum(np.broadcast_to(gains, len(self.scenes)) ** self.exponent, self.most)
        return np.broadcast_to(found[:, None, None, None], (len(self.scenes), 64, 64, 3))


def seen(pictures, masks):
    return pictures[:, 0, 0, 0].astype(float)


def test_held_out_scenes_are_nobody_elses(scenes):
    used = [TRAINING_SEEDS, HELD_OUT_SEEDS, MEASURED_SEEDS]
    assert all(first + 600_000 <= FIRST_SCENE for first in used)
    assert [s.seed for s in scenes.stills] == sorted({s.seed for s in scenes.stills})
    assert min(s.seed for s in scenes.stills) >= FIRST_SCENE and (scenes.masks.sum((1, 2)) >= 40).all()


def test_an_adapter_that_says_nothing_turns_nothing(scenes, backbone):
    """The proof can fail: with an adapter at its beginning every ratio is 1, and nothing is changed."""
    adapter = ControlAdapter.from_unet(backbone, **ADAPTER)
    dial = Dial(backbone, adapter, Scenes.of(scenes.stills[:2]), Editing(steps=5))
    by = {"contrast": page.judges()["contrast"]}
    table = responses(dial, (0.5, 2.0), by)
    assert (table["ratio"] == 1).all() and (table["change"] == 0).all()
    found = curve(table)
    assert (found["right way"] == 0).all() and (found["low"] == 1).all()


def test_a_control_is_what_the_pages_before_make(scenes, backbone):
    adapter = ControlAdapter.load("mini", backbone)
    for source in ("heatmap", "scalar"):
        dial = Dial(backbone, adapter, scenes, Editing(source))
        one, other = dial.control(1.0), dial.control(1.5)
        assert one.shape == (6, 2, 64, 64) and torch.equal(one[:, 0], torch.from_numpy(scenes.masks).float())
        inside = torch.from_numpy(scenes.masks)
        assert (other[:, 1][inside] >= one[:, 1][inside]).all() and not torch.equal(one, other)


def test_one_gain_for_each_scene_is_the_same_as_one_at_a_time(scenes, backbone):
    few = Scenes.of(scenes.stills[:2])
    dial = Dial(backbone, ControlAdapter.load("mini", backbone), few, Editing(steps=5))
    both = dial.edit(np.array([0.5, 1.5]))
    for i, gain in enumerate((0.5, 1.5)):
        apart = np.abs(both[i].astype(int) - dial.edit(gain)[i])
        assert apart.max() <= 1


@pytest.mark.parametrize("rule", RULES.values(), ids=[*RULES])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 3.0])
def test_a_rule_stays_inside(scenes, factor, rule):
    shown = photometric(scenes.pictures, scenes.masks, factor, rule)
    for mask, before, after in zip(scenes.masks, scenes.pictures, shown, strict=True):
        outside = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
        assert np.array_equal(before[outside], after[outside])
    if factor == 1:
        assert np.abs(shown.astype(int) - scenes.pictures).max() <= 1


@pytest.mark.parametrize("rule", RULES.values(), ids=[*RULES])
@pytest.mark.parametrize("more", [True, False])
def test_a_rule_changes_as_much_as_it_is_told(scenes, more, rule):
    change = np.linspace(0.01, 0.05, len(scenes))
    shown = as_much(scenes.pictures, scenes.masks, change, more, rule)
    np.testing.assert_allclose(changed(shown, scenes.pictures, scenes.masks), change, atol=0.004)


def test_what_a_rule_cannot_change_it_leaves(scenes):
    """More change than there is room for: as much as can be, and no error."""
    shown = as_much(scenes.pictures, scenes.masks, 0.9, False)
    furthest = photometric(scenes.pictures, scenes.masks, 0.0)
    assert np.abs(shown.astype(int) - furthest).max() <= 1


def test_change_counts_beside_the_mask_as_well(scenes):
    shown = scenes.pictures.copy()
    shown[:, 0, 0] = 255 - shown[:, 0, 0]  # a corner where no product is
    assert not scenes.masks[:, 0, 0].any() and (changed(shown, scenes.pictures, scenes.masks) > 0).all()


def test_the_curve_of_known_ratios():
    table = pd.DataFrame({
        "judge": ["one"] * 8, "scene": [*range(4)] * 2, "gain": [0.5] * 4 + [2.0] * 4,
        "ratio": [0.4, 0.5, 0.6, 1.1, 1.5, 2.0, 2.5, 0.9],
    })  # fmt: skip
    found = curve(table).set_index("gain")
    assert found.loc[0.5, "ratio"] == pytest.approx(0.65) and found.loc[2.0, "ratio"] == pytest.approx(1.725)
    assert (found["right way"] == 0.75).all() and (found["low"] < found["ratio"]).all()


def test_a_lead_points_away_from_one():
    ours = pd.DataFrame(
        {"judge": "one", "scene": [0, 1] * 2, "gain": [0.5] * 2 + [2.0] * 2, "ratio": [0.4, 0.6, 1.5, 1.7]}
    )
    rule = ours.assign(ratio=[0.5, 0.75, 1.2, 1.36], rule="strong")[::-1]  # in another order
    weak = rule.assign(ratio=1.0, rule="weak")
    found = lead(ours, pd.concat([weak, rule])).set_index("gain")
    assert set(found["rule"]) == {"strong"}
    assert found["further by"].tolist() == pytest.approx([np.log(1.25)] * 2)
    behind = lead(rule.drop(columns="rule"), ours.assign(rule="other"))
    assert (behind["further by"] < 0).all() and (behind["relative"] < 1).all()


def test_one_edit_has_to_do_for_all_judges():
    """Behind each judge's favourite rule, and ahead of either rule over both."""
    frame = pd.DataFrame({"judge": ["one", "one", "two", "two"], "scene": [0, 1] * 2, "gain": 2.0})
    ours = frame.assign(ratio=[1.5, 1.4, 1.4, 1.5])
    rules = [frame.assign(ratio=ratio, rule=name) for name, ratio in (("A", [1.6, 1.6, 1, 1]), ("B", [1, 1, 1.6, 1.6]))]
    rival = pd.concat(rules)
    assert (lead(ours, rival)["relative"] < 1).all()
    found = lead_by_rule(ours, rival.iloc[::-1]).set_index("rule")
    assert {*found.index} == {"A", "B"} and (found["low"] > 0).all()
    assert found["ours"].to_numpy() == pytest.approx(np.log([1.5 * 1.4] * 2) / 2)
    assert found["relative"].to_numpy() == pytest.approx([np.log(1.5 * 1.4) / np.log(1.6)] * 2)


def test_the_interval_holds_what_it_says():
    """Of 200 samples about 95 % have an interval that holds the true mean."""
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(200):
        _, low, high = mean_interval(rng.normal(1, 0.3, 40), seed=i, resamples=400)
        inside += low <= 1 <= high
    assert 180 <= inside <= 199
    assert mean_interval([1.0, 2.0], 3) == mean_interval([1.0, 2.0], 3)


@pytest.mark.parametrize("exponent", [0.4, 1.0, 1.7])
def test_calibration_finds_the_gain(scenes, exponent):
    wanted = np.array([0.6, 0.8, 1.0, 1.1, 1.2, 1.3])
    dial = Turned(scenes, exponent)
    found = calibrate(dial, wanted, seen, rounds=10)
    np.testing.assert_allclose(found["reached"], wanted, rtol=0.02)
    np.testing.assert_allclose(found["gain"], wanted ** (1 / exponent), rtol=0.04)
    assert dial.edits == 11  # ten rounds, and the edit at gain 1


def test_calibration_of_what_cannot_be_reached_gives_the_nearest(scenes):
    found = calibrate(Turned(scenes, 1.0, most=1.2), 1.5, seen)
    np.testing.assert_allclose(found["reached"], 1.2)


def test_shares_of_a_dial_that_is_known(scenes, monkeypatch):
    bounds = pd.DataFrame({"least": [0.5] * 5 + [0.99], "most": [2.0] * 5 + [1.01]})
    monkeypatch.setattr(page, "reach", lambda scenes, judge: bounds)
    monkeypatch.setattr(page, "kept_of", lambda *_: pd.DataFrame({"edges lost": np.zeros(6)}))
    found = reached_shares(Turned(scenes, 0.5), seen, (0.25, 4.0))
    assert found["least"]["capped"] == pytest.approx(1) and found["most"]["at least half"] == 1
    assert found["least"]["scenes with room"] == found["most"]["scenes with room"] == 5
    assert found["least"]["share"] == pytest.approx(1) and found["most"]["share"] == pytest.approx(1)
    half = reached_shares(Turned(scenes, 0.25), seen, (0.25, 4.0))
    assert half["least"]["share"] == pytest.approx(0.5) and half["most"]["achieved"] == pytest.approx(2**0.5)
    within = calibrated_shares(Turned(scenes, 1.0), {"one": seen, "two": seen})
    assert within["most"]["within"] == 1 and within["most"]["two"] == pytest.approx(2**0.5, rel=0.05)
    assert calibrated_shares(Turned(scenes, 1.0, most=1.05), {"one": seen})["most"]["within"] == 0
    still = calibrated_shares(Turned(scenes, 0.0), {"one": seen})  # a dial that does nothing comes near no wish
    assert still["most"]["within"] == still["least"]["within"] == 0 and still["most"]["scenes"] == 5


def test_reach_is_room_both_ways(scenes):
    bounds = reach(scenes, page.judges()["contrast"])
    assert (bounds["least"] <= 1).all() and (bounds["most"] >= 1).all()


def test_a_placebo_by_rule_is_as_strong_as_it_is_said(scenes, backbone):
    dial = Dial(backbone, ControlAdapter.load("mini", backbone), Scenes.of(scenes.stills[:3]), Editing(steps=5))
    found = placebo_effect(dial, {"contrast": page.judges()["contrast"]}).set_index("edit")
    assert found.loc["on the product", "share"] == 1 and len(found) == 4
    strong = found["change"].filter(like="as strong")
    assert (strong <= found.loc["on the product", "change"] * 1.1).all() and (strong > 0).all()


def test_an_encoding_is_what_the_adapter_sees(backbone):
    torch.manual_seed(0)
    given = {}
    adapter = ControlAdapter.from_unet(backbone, **{**ADAPTER, "sees_frame": False})
    encode_with(adapter, "divided by its maximum")
    adapter.stem.register_forward_pre_hook(lambda module, seen: given.update(seen=seen[0]))
    control = torch.rand(2, 2, 64, 64)
    control[:, 1] *= 0.5
    adapter.features(control)
    assert torch.equal(given["seen"][:, 0], control[:, 0])
    torch.testing.assert_close(given["seen"][:, 1].amax((1, 2)), torch.ones(2))
    assert float(control[:, 1].max()) <= 0.5  # what was given is not changed


def test_trainings_go_on_where_they_stopped(tmp_path, scenes):
    for part, first in (("train", TRAINING_SEEDS), ("held_out", HELD_OUT_SEEDS)):
        write_stills(tmp_path / "stills" / part, 12, first)
    few, by = Scenes.of(scenes.stills[:2]), {"contrast": page.judges()["contrast"]}
    names = ("heatmap, log density", "frame not shown", "scalar", "noise loss alone")
    found = compare_trainings(tmp_path, few, by, (1, 2), names)
    assert [*found["training"]] == [*names] and found.notna().all().all()
    weights = sorted(tmp_path.glob("adapter_compared_*/*.safetensors"))
    before = {path: path.read_bytes() for path in weights}
    histories = {path: path.read_bytes() for path in tmp_path.glob("training_*/history.jsonl")}
    pd.testing.assert_frame_equal(compare_trainings(tmp_path, few, by, (1, 2), names), found)
    assert {path: path.read_bytes() for path in weights} == before and len(weights) == 4
    assert {path: path.read_bytes() for path in histories} == histories
    assert not json.loads((tmp_path / "adapter_compared_frame_not_shown/config.json").read_text())["sees_frame"]


def test_parts_stand_beside_each_other(tmp_path, monkeypatch):
    file = tmp_path / "dial.json"
    monkeypatch.setattr(page, "compare_editings", lambda *given: pd.DataFrame([{"editing": "as it is", "x": 1 / 3}]))
    monkeypatch.setattr(page, "proof", lambda dial, by, whole: {"dose": pd.DataFrame([{"whole": whole}])})
    monkeypatch.setattr(
        page,
        "held_out_scenes",
        lambda count, first: SimpleNamespace(masks=np.zeros((1, 4, 4)), pictures=np.zeros((1, 4, 4, 3), np.uint8)),
    )
    for part in ("editings", "heatmap"):
        main([part, str(file), "--scenes", "1"])
    kept = json.loads(file.read_text())
    assert [*kept] == ["editings", "heatmap"] and kept["editings"]["figures"] == [{"editing": "as it is", "x": 0.3333}]
    assert kept["heatmap"]["figures"] == {"dose": [{"whole": True}]}
    assert kept["heatmap"]["first seed"] != kept["editings"]["first seed"]  # what chooses proves nothing
    assert kept["heatmap"]["command"] == f"python -m alignment_video.dial heatmap {file} --scenes 1"


@pytest.mark.parametrize(
    "words",
    [
        "",
        "turn x.json",
        "heatmap",
        "heatmap x --scenes -1",
        "heatmap x --threads 0",
        "heatmap x --scenes 0",
        "heatmap x --scenes many",
    ],
)
def test_words_that_mean_nothing_are_refused(words):
    with pytest.raises(Refused) as error:
        main(words.split())
    assert "\n" not in str(error.value)


def test_trainings_need_a_folder(tmp_path):
    with pytest.raises(Refused, match="a folder with stills/train"):
        prove(tmp_path / "x.json", "trainings", 1)
    assert not (tmp_path / "x.json").exists()


def test_the_evidence_is_whole():
    """Every part is there, of as many scenes as were asked for, and says how it was made."""
    evidence = json.loads(Path("data/evidence/dial.json").read_text())
    assert {*evidence} == {*PARTS}
    for part, facts in evidence.items():
        assert facts["command"].startswith(f"python -m alignment_video.dial {part} ") and facts["date"] >= "2026-11-21"
    proved = evidence["heatmap"]["figures"]
    assert evidence["heatmap"]["scenes"] >= 300 and evidence["heatmap"]["first seed"] == FIRST_SCENE
    assert len(proved["dose"]) == len(proved["lead"]) == 3 * len(GAINS)
    assert len(proved["rival"]) == 3 * len(GAINS) * len(RULES)


def test_rivals_change_as_much_as_the_dial_did(scenes):
    by = {"contrast": page.judges()["contrast"]}
    made = pd.DataFrame({
        "judge": "contrast", "gain": np.repeat([0.5, 1.5], len(scenes)), "scene": [*range(len(scenes))] * 2,
        "change": 0.03, "ratio": 1.0,
    })  # fmt: skip
    found = rivals(SimpleNamespace(scenes=scenes), made, by)
    np.testing.assert_allclose(found["change"], 0.03, atol=0.004)
    means = found.groupby(["gain", "rule"])["ratio"].mean()
    assert (means[0.5] < 1).all() and (means[1.5] > 1).all() and len(means) == 2 * len(RULES)
    best = strongest(found).groupby("gain")["ratio"].mean()
    assert best[0.5] == pytest.approx(means[0.5].min()) and best[1.5] == pytest.approx(means[1.5].max())
