"""Editing a frame: sizes, boxes, layers, placebos, and what bad input gets."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_video.adapter import ControlAdapter
from alignment_video.attention import ContrastScorer, alignment, attention_map
from alignment_video.backbone import Backbone
from alignment_video.core import Refused
from alignment_video.editing import (
    AdapterEditor,
    Dose,
    PhotometricEditor,
    View,
    beside,
    boxes_around,
    check_mask,
    contrasted,
    edit_frame,
    layers_of,
    native_size,
    photometric,
    placebo_layers,
    placebo_of,
    shown,
    soft_edge,
    still_layers,
    view_of,
    wide_edge,
)  # fmt: skip
from alignment_video.sampling import Schedule
from alignment_video.world import Still, still

RULE = PhotometricEditor()


@pytest.fixture(scope="module")
def scene() -> Still:
    return still(35_700_001, (96, 64), "mug", 0.5)


@pytest.fixture(scope="module")
def mini() -> AdapterEditor:
    backbone = Backbone.from_pretrained("mini", device="cpu")
    return AdapterEditor(backbone, ControlAdapter.load("mini", backbone), schedule=Schedule(4, 0.8))


def view(scene: Still, mask: np.ndarray | None = None) -> View:
    return View(
        scene.image, scene.mask if mask is None else mask, np.full(scene.mask.shape, 0.1, np.float32), 0.3, "mug"
    )


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(24, 90), st.integers(24, 90)), context=st.floats(1, 4), smooth=st.floats(0, 3),
    places=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80), st.integers(1, 20)), min_size=1, max_size=6),
)  # fmt: skip
def test_boxes_lie_inside_have_one_size_and_hold_their_product(size, context, smooth, places):
    masks = []
    for top, left, side in places:
        mask = np.zeros(size, bool)
        mask[top : top + side, left : left + side] = True  # may lie outside: a product out of sight
        masks.append(mask)
    if not any(mask.any() for mask in masks):
        with pytest.raises(Refused, match="no product in any"):
            boxes_around(masks, context, smooth)
        return
    boxes = boxes_around(masks, context, smooth)
    assert len(boxes) == len(masks) and len({(box.height, box.width) for box in boxes}) == 1
    for box, mask in zip(boxes, masks, strict=True):
        assert box.cut(mask).shape == (box.height, box.width)
        assert box.top >= 0 and box.left >= 0 and box.cut(mask).sum() == mask.sum()


def test_a_box_follows_smoothly():
    masks = []
    for t in range(9):
        mask = np.zeros((200, 200), bool)
        jitter = 3 * (-1) ** t
        mask[90 + jitter : 110 + jitter, 20 + 15 * t : 40 + 15 * t] = True
        masks.append(mask)
    tops = [box.top for box in boxes_around(masks, 3.0, 2.0)]
    assert np.abs(np.diff(tops)).max() <= 2  # the product trembles by 6
    lefts = [box.left for box in boxes_around(masks, 3.0)]
    assert lefts == sorted(lefts) and lefts[-1] - lefts[0] > 80


@pytest.mark.parametrize(
    ("size", "side", "multiple", "wanted"),
    [
        ((100, 100), 64, 16, (64, 64)),
        ((1920, 1080), 512, 64, (896, 512)),
        ((30, 400), 64, 16, (64, 848)),
        ((5, 5), 8, 8, (8, 8)),
    ],
)
def test_native_sizes(size, side, multiple, wanted):
    assert native_size(*size, side, multiple) == wanted


@pytest.mark.parametrize("size", [(96, 64), (193, 129), (384, 256), (97, 65)])
@pytest.mark.parametrize("carry", ["tone", "change", "pixels"])
def test_any_size_and_the_rest_stays_to_the_bit(scene, size, carry):
    frame = cv2.resize(scene.image, size[::-1], interpolation=cv2.INTER_CUBIC)
    mask = cv2.resize(scene.mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    made = edit_frame(frame, mask, RULE, 1.5, carry=carry)
    reach = 2 * max(1, round(min(size) / 64)) + 1
    near = cv2.dilate(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
    assert made.shape == frame.shape and (made != frame)[mask > 0].mean() > 0.5
    assert np.array_equal(made[~near], frame[~near])
    assert np.array_equal(edit_frame(frame, mask, RULE, 1.0, carry="tone"), frame)


def test_the_dial_turns_on_a_frame_six_times_as_large(mini):
    picture = still(35_700_003, (384, 256), prominence=0.5)
    attention = attention_map(picture.image, ContrastScorer()).map

    def found(gain):
        edited = edit_frame(picture.image, picture.mask, mini, gain, attention, picture.keyword)
        return alignment(attention_map(edited, ContrastScorer()).map, picture.mask)

    low, same, high = (found(gain) for gain in (0.5, 1.0, 1.5))
    assert low < 0.85 * same and high > 1.03 * same


def test_same_noise_whatever_the_batch(mini, scene):
    small = [
        View(
            cv2.resize(scene.image, (64, 64)), cv2.resize(scene.mask.astype(np.uint8), (64, 64)) > 0,
            np.zeros((64, 64), np.float32), 0.3, word, ("7", number),
        )
        for number, word in ((1, "mug"), (2, "shoe"))
    ]  # fmt: skip
    both, alone = mini.edit(small, 1.5), mini.edit(small[1:], 1.5)
    assert np.abs(both[1].astype(int) - alone[0]).max() <= 1  # rounding of another batch
    assert np.abs(both[0].astype(int) - both[1]).max() > 3
    assert mini.settings() == AdapterEditor(mini.backbone, mini.adapter, schedule=Schedule(4, 0.8)).settings()
    assert mini.settings() != AdapterEditor(mini.backbone, mini.adapter, schedule=Schedule(5, 0.8)).settings()


def test_views_of_different_doses_are_as_each_by_itself(mini, scene):
    """Guidance and schedule are one for all that goes through the loop together; so views are grouped, and put back."""
    small = View(
        cv2.resize(scene.image, (64, 64)), cv2.resize(scene.mask.astype(np.uint8), (64, 64)) > 0,
        np.full((64, 64), 0.1, np.float32), 0.3, "mug", ("7", 1),
    )  # fmt: skip
    doses = [
        Dose(3.0),
        Dose(3.0, control=2.0),
        1.0,
        Dose(3.0, strength=0.5),
        Dose(1.0, control=2.0),
        Dose(3.0, 2.0, 0.5),
    ]
    made = mini.edit([small] * len(doses), doses)
    for picture, dose in zip(made, doses, strict=True):
        assert np.abs(picture.astype(int) - mini.edit([small], dose)[0]).max() <= 1, dose
    assert len({picture.tobytes() for picture in made}) == len(doses)
    as_settings = mini.edit([small] * 2, Dose(3.0, strength=mini.schedule.strength))
    assert np.array_equal(as_settings, mini.edit([small] * 2, 3.0))
    asked, there = (3.0, Dose(3.0, 2.0), Dose(1.0, 2.0, 0.5)), np.full(scene.mask.shape, 0.1, np.float32)
    frame = [edit_frame(scene.image, scene.mask, mini, dose, there) for dose in asked]
    assert (frame[0] != frame[1]).any() and np.array_equal(frame[2], scene.image)
    with pytest.raises(Refused, match="of 4 steps leaves 0 steps"):
        mini.edit([small], Dose(3.0, strength=0.1))


@pytest.mark.parametrize(
    ("dose", "said"),
    [
        ((-1.0,), "gain -1.0: use a number from 0 on"), ((float("nan"),), "gain nan"), (("2",), "gain '2'"),
        ((2.0, 0.0), "control guidance 0.0: use a number above 0"), ((2.0, float("inf")), "control guidance inf"),
        ((2.0, "1.5"), "control guidance '1.5'"), ((2.0, None, 0.0), "strength 0.0"),
        ((2.0, None, 1.2), "strength 1.2: use a number above 0, up to 1"), ((None,), "gain None"),
        ((True,), "gain True"),
    ],
)  # fmt: skip
def test_doses_that_are_none(dose, said):
    with pytest.raises(Refused, match=said):
        Dose(*dose)


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(0.3, 3), seed=st.integers(35_710_000, 35_710_040))
def test_photometric_goes_the_way_of_the_gain(gain, seed):
    picture = still(seed, (64, 64))
    if not picture.mask.any():
        return
    seen = View(picture.image, picture.mask, np.zeros((64, 64), np.float32))
    made = RULE.edit([seen], gain)[0]
    assert np.array_equal(made[~seen.mask], seen.picture[~seen.mask])
    wanted = np.sign(gain - 1)
    apart = [
        np.abs(p[seen.mask].mean(0) - np.median(p[~seen.mask], 0)).sum()
        for p in (seen.picture.astype(float), made.astype(float))
    ]
    assert np.isfinite(apart).all() and (abs(gain - 1) < 0.05 or (made != seen.picture).any() or wanted == 0)


def test_each_measure_of_the_rule_does_its_own():
    picture = np.full((64, 64, 3), 90, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:44, 20:44] = True
    picture[mask] = (160, 120, 100)
    picture[20:44:2, 20:44] += 12  # fine stripes
    grey = photometric(picture, mask, saturation=0)
    assert np.ptp(grey[mask].mean(0)) < 0.3 * np.ptp(picture[mask].mean(0))
    plain = photometric(picture, mask, sharpness=0)
    assert plain[24:40, 30, 0].std() < 0.35 * picture[24:40, 30, 0].std()
    lighter = photometric(picture, mask, lightness=1.5)
    assert lighter[mask].mean() > picture[mask].mean() + 8
    assert np.array_equal(photometric(picture, mask), picture)


def test_layers_of_nothing_change_nothing(scene):
    seen, soft = view(scene), soft_edge(scene.mask)
    assert np.array_equal(shown(scene.image, soft, [still_layers((8, 8))])[0], scene.image)
    same = layers_of([seen], scene.image[None], scene.image[None])
    assert np.array_equal(shown(scene.image, soft, [*same])[0], scene.image)
    strong = layers_of([seen], scene.image[None], RULE.edit([seen], 2.0))
    made = shown(scene.image, soft, [*strong])[0]
    assert np.array_equal(made[soft == 0], scene.image[soft == 0]) and (made != scene.image).any()


def test_beside_is_as_large_where_there_is_room():
    corner, middle, edge = (np.zeros((64, 64), bool) for _ in range(3))
    corner[5:20, 5:15] = middle[20:44, 20:44] = edge[40:, 40:] = True
    for mask, share in ((corner, 1), (middle, 0.7), (edge, 1)):
        found = beside(mask)
        assert not (found & mask).any() and np.array_equal(found, beside(mask)) and found.sum() >= share * mask.sum()
        assert cv2.connectedComponents(found.astype(np.uint8))[0] == 2
    gap = beside(corner, 6)
    near = cv2.dilate(corner.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
    assert gap.any() and not (gap & near).any()
    assert not beside(np.ones((64, 64), bool)).any()  # no room at all


def test_a_placebo_is_as_strong_as_asked_or_as_the_place_allows(scene):
    def change(seen, amount):
        made = contrasted(seen.picture, wide_edge(seen.mask), [placebo_layers(seen, placebo_of(seen, amount))])[0]
        assert np.array_equal(made[wide_edge(seen.mask) == 0], seen.picture[wide_edge(seen.mask) == 0])
        return np.abs(made.astype(float) - seen.picture)[seen.mask].mean() / 255 if seen.mask.any() else 0

    seen = view(scene, beside(scene.mask, 2))
    told = [change(seen, amount) for amount in (0.01, 0.02, 0.9)]
    assert told == sorted(told) and told[0] == pytest.approx(0.01, rel=0.15) and told[2] < 0.6
    assert placebo_of(seen, 0.9).more == 1  # at most twice the contrast, and none
    empty = View(np.full((64, 64, 3), 128, np.uint8), np.eye(64) > 0, np.zeros((64, 64), np.float32))
    assert change(empty, 0.1) == 0  # an empty wall stays one


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((96, 64)), "mask is empty"),
        (np.ones((96, 64)), "mask covers 100% of the frame"),
        (np.ones((64, 96)), "mask is 96x64 pixels, the frame 64x96: it belongs to another video"),
        (np.ones((3, 96, 64)), "it belongs to another video"),
    ],
)
def test_masks_that_cannot_be_used(mask, said):
    with pytest.raises(Refused, match=said):
        check_mask(mask, (96, 64))


def test_attention_of_another_video(scene):
    with pytest.raises(Refused, match="attention is 96x64 pixels, the frame 64x96"):
        edit_frame(scene.image, scene.mask, RULE, 1.5, np.ones((64, 96)))
    with pytest.raises(Refused, match="gain -1"):
        edit_frame(scene.image, scene.mask, RULE, -1)


def test_a_product_thinner_than_a_pixel_is_not_lost():
    mask = np.zeros((400, 400), bool)
    mask[200, 100:300] = True
    box = boxes_around([mask])[0]
    assert view_of(np.zeros((400, 400, 3), np.uint8), mask, None, box, (64, 64)).mask.sum() >= 20
