"""Replacing a thing in a video: what must stay, what must be refused, and the same code on other models."""

import json
from fractions import Fraction

import numpy as np
import pytest

from alignment_video import local_edit
from alignment_video.backbone import Backbone, write_untrained
from alignment_video.core import Refused, file_hash
from alignment_video.editing import Box
from alignment_video.local_edit import (
    Place,
    Replacing,
    edit_scene,
    find_thing,
    pasted,
    place_of,
    rendered,
    scenes_of,
)
from alignment_video.video import VideoWriter, film, probe, read_clip, sound_packets
from alignment_video.world import Ad

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = Replacing(steps=2, spacing=12)


class Marks:
    """A masker that finds a thing where it is told to: a square that moves to the right, in some scenes."""

    name = "marks"

    def __init__(self, seen=lambda picture: True, side=0.3):
        self.seen, self.side = seen, side

    def probabilities(self, pictures, keywords):
        return [self.map(picture) for picture in pictures]

    def map(self, picture):
        high, wide = picture.shape[:2]
        found = np.full((high, wide), 0.1, np.float32)
        if self.seen(picture):
            top, left = round(0.3 * high), round(0.3 * wide)
            found[top : top + max(2, round(self.side * high)), left : left + max(2, round(self.side * wide))] = 0.9
        return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Stable Diffusion 1.5's blocks and layers, an eighth as wide, with random numbers."""
    folder = tmp_path_factory.mktemp("sd15") / "sd"
    return Backbone.from_pretrained(write_untrained(folder, "sd15"), device="cpu")


@pytest.fixture(scope="module")
def small(plain):
    plain.unet.register_to_config(sample_size=8)  # 64 pixels, so that it takes seconds
    return plain


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "two.mp4"
    film(Ad(36_461_000, size=(96, 128), seconds=1.6, scenes=2), path)
    return path


@pytest.mark.parametrize("start", ["inverted", "noised", "noise"])
def test_a_plain_model_runs_the_same_code(small, clip, tmp_path, start):
    settings = Replacing(steps=2, spacing=12, start=start)
    made = local_edit.replace(clip, "candle", "mug", tmp_path / "new.mp4", small, Marks(), settings)
    info, own = probe(made.film), probe(clip)
    assert (info.frames, info.width, info.height, info.rate) == (own.frames, own.width, own.height, own.rate)
    assert [packet[1:] for packet in sound_packets(made.film)] == [packet[1:] for packet in sound_packets(clip)]
    facts = json.loads(made.manifest.read_text(encoding="utf-8"))
    assert facts["film"]["sha256"] == file_hash(made.film) and facts["source"]["sha256"] == file_hash(clip)
    assert facts["settings"]["start"] == start and all(scene["keyframes"] for scene in facts["scenes"])


def test_a_scene_without_the_thing_stays(small, clip):
    first, second = scenes_of(clip)
    frames = read_clip(clip)
    seen = find_thing(clip, first, Marks(), "candle", FEW)[0]
    scene = edit_scene(clip, first, seen, small, "candle", "mug", FEW)
    for frame, picture, where in rendered(clip, [scene]):
        assert np.array_equal(frame.image, frames[frame.index])
        assert np.array_equal(picture[~where], frame.image[~where])
        assert where.any() == (frame.index < second.start)
        assert where.mean() < 0.6


@pytest.mark.parametrize("background", [False, True])
def test_keyframes_are_what_was_painted(small, clip, background):
    settings = Replacing(steps=2, spacing=12, background=background)
    shot = scenes_of(clip)[0]
    seen = find_thing(clip, shot, Marks(), "candle", settings)[0]
    scene = edit_scene(clip, shot, seen, small, "candle", "mug", settings)
    for hole, thing in zip(scene.place.holes, scene.place.things, strict=True):
        assert (hole & (thing > 0)).any() == (not background)
        assert (hole | (thing == 0)).all() != background
    pictures = {frame.index: picture for frame, picture, _ in rendered(clip, [scene], background=background)}
    for t, box, key in zip(scene.place.frames, scene.place.boxes, scene.keys, strict=True):
        again = pasted(read_clip(clip, [t])[0], box, key.made, key.soft, shot.share(t))[0]
        assert np.array_equal(again, pictures[t])


def test_nobody_finds_it(small, clip, tmp_path):
    out = tmp_path / "new.mp4"
    with pytest.raises(
        Refused, match=r"'candle' is in no scene \(most likely 0.10, where it would take 0.5; see .*new_not_found.png"
    ):
        local_edit.replace(clip, "candle", "mug", out, small, Marks(lambda picture: False), FEW)
    assert not out.exists() and (tmp_path / "new_not_found.png").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["new_not_found.png"]


def test_a_clip_of_one_frame(small, tmp_path):
    path = tmp_path / "one.mp4"
    with VideoWriter(path, rate=Fraction(24)) as writer:
        writer.write(Ad(36_461_001, size=(96, 96), seconds=1, scenes=1).draw(0)[0])
    made = local_edit.replace(path, "candle", "mug", tmp_path / "new.mp4", small, Marks(), FEW)
    assert probe(made.film).frames == 1 and made.facts["scenes"][0]["keyframes"] == [0]


@pytest.mark.parametrize(
    ("words", "out", "message"),
    [
        (("mug", " MUG "), "new.mp4", "both are the same"),
        (("", "mug"), "new.mp4", "the thing to replace is ''"),
        (("mug", "  "), "new.mp4", "the new thing is '  '"),
        (("candle", "mug"), "new.gif", "ends in .mp4"),
        (("candle", "mug " * 90), "new.mp4", "would be lost"),
    ],
)
def test_words_and_names_that_cannot_be(small, clip, tmp_path, words, out, message):
    with pytest.raises(Refused, match=message):
        local_edit.replace(clip, *words, tmp_path / out, small, Marks(), FEW)
    assert not [*tmp_path.glob("*.mp4")]


def test_not_over_the_video_itself(small, clip):
    with pytest.raises(Refused, match="that is the video itself"):
        local_edit.replace(clip, "candle", "mug", clip, small, Marks(), FEW)


@pytest.mark.parametrize("name", ["hat_comparison.mp4", "hat.mp4"])
def test_no_output_goes_over_the_video(tmp_path, name):
    (tmp_path / name).write_bytes(b"film")
    with pytest.raises(Refused, match="that is the video itself"):
        local_edit.check_asked(tmp_path / name, "mug", "hat", tmp_path / "hat.mp4")


def test_braces_in_a_prompt():
    for wrong in ("a {} {x}", "a {{}}", "a hat", "a {} {"):
        with pytest.raises(Refused, match="in which the new thing is put"):
            Replacing(prompt=wrong)
    assert Replacing(prompt=local_edit.usual_prompt("a {odd} place")).told("hat") == "a hat, a {odd} place"


def test_what_is_seen_too_briefly_is_said_so(tmp_path):
    picture, map = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 0.97, np.float32)
    said = local_edit._not_found("mug", (0.97, picture, map), tmp_path / "hat.mp4")
    assert said.startswith("'mug' is seen too briefly to be followed (0.97 in one keyframe")
    assert (tmp_path / "hat_not_found.png").is_file()


def test_masks_on_everything(small, clip, tmp_path):
    class Everything(Marks):
        def map(self, picture):
            return np.ones(picture.shape[:2], np.float32)

    with pytest.raises(Refused, match="every pixel"):
        local_edit.replace(clip, "candle", "mug", tmp_path / "new.mp4", small, Everything(), FEW)
    with pytest.raises(Refused, match="no pixel"):
        local_edit.replace(
            clip, "candle", "beach", tmp_path / "new.mp4", small, Everything(), Replacing(steps=2, background=True)
        )


def test_a_thing_that_nearly_fills_the_frame_keeps_what_is_around_it():
    mask = np.zeros((64, 64), bool)
    mask[2:62, 4:60] = True
    (hole,) = place_of(local_edit.Seen((0,), [mask], 0), (128, 128), 64, 8).holes
    assert hole[2:62, 4:60].all() and not hole.all()


def test_boxes_lie_between_those_of_the_keyframes():
    boxes = (Box(0, 0, 40, 40), Box(10, 20, 40, 40))
    empty = np.zeros((4, 4), bool)
    place = Place((4, 14), boxes, (empty, empty), (empty, empty), (4, 4), 0)
    assert place.around(4) == (0, 0, 0.0) and place.around(14)[:2] == (1, 1)
    assert place.around(9) == (0, 1, 0.5) and place.box(9) == Box(5, 10, 40, 40)
    assert place.around(2)[2] == 0.0 and place.around(20)[2] in (0.0, 1.0)


def test_what_is_laid_over_a_frame():
    image = np.full((60, 80, 3), 100, np.uint8)
    made, soft = np.full((8, 8, 3), 200, np.float32), np.zeros((8, 8), np.float32)
    soft[2:6, 2:6] = 1
    found, where = pasted(image, Box(10, 20, 32, 32), made, soft)
    assert np.array_equal(found[~where], image[~where]) and (found[22:30, 32:40] == 200).all()
    half, _ = pasted(image, Box(10, 20, 32, 32), made, soft, 0.5)
    assert (half[22:30, 32:40] == 150).all()
    none, nowhere = pasted(image, Box(10, 20, 32, 32), made, np.zeros_like(soft))
    assert np.array_equal(none, image) and not nowhere.any()


def test_the_hole_follows_the_thing():
    masks = [np.zeros((60, 80), bool) for _ in range(3)]
    for number, mask in enumerate(masks):
        mask[20:32, 10 + 10 * number : 22 + 10 * number] = True
    seen = local_edit.Seen((0, 8, 16), masks, 1)
    place = place_of(seen, (240, 320), 64, 8)
    assert place.native == (64, 64) and len({(box.height, box.width) for box in place.boxes}) == 1
    lefts = [box.left for box in place.boxes]
    assert lefts == sorted(lefts) and lefts[-1] - lefts[0] > 40
    for hole, thing in zip(place.holes, place.things, strict=True):
        assert hole[thing > 0].all() and not hole[[0, -1]].any() and not hole[:, [0, -1]].any()
