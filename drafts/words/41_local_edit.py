# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%
#| default_exp local_edit

# %% [markdown]
# # Replacing a thing in a video
#
# > Somebody says "perfume", somebody says "hat", and the video shows a hat where the bottle was. Everything around it is the same to the bit.

# %% [markdown]
# To learn what a product does for an ad, show the same ad with another product: same scene, same camera, same music. Filmed twice, nothing is ever quite the same. Here only the product is painted anew, by a diffusion model that is told what to paint, and the rest of the video stays as it is.
#
# Painting every frame by itself would flicker: each frame's hat would be another hat. So a few keyframes are painted, all with the looks of one of them, and the frames between follow the motion of the original video. This page goes through it step by step. It uses the models that come with the package, which know fourteen drawn products at 64×64 pixels; real videos need real models, which are named in the same places.

# %%
#| export
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment_video.core import Refused, file_hash, write_json
from alignment_video.editing import Box, _sized, boxes_around, mask_at, native_size, soft_edge
from alignment_video.flow import DIS, Flow, _way_back, choose_keyframes, look_up, routes
from alignment_video.masks import THRESHOLD, MaskProvider, ask, hysteresis, smooth_probabilities
from alignment_video.regions import Recording, Region, record_guest, region_guest, sharing_guest
from alignment_video.sampling import (
    Guidance,
    Hole,
    Schedule,
    Start,
    common_noise,
    denoise,
    hole_of,
    invert,
    latent_mask,
)
from alignment_video.scenes import find_scenes
from alignment_video.stimuli import FILM, TRACK_SIDE, Shot, Steps, _small, product_motion, versions
from alignment_video.video import Frame, VideoWriter, grid, probe, read_clip, read_frames, save_picture

if TYPE_CHECKING:
    from torch import Tensor

    from alignment_video.backbone import Backbone, Text

# %%
import json
import tempfile

import matplotlib.pyplot as plt
from fastcore.test import expect_fail, test_eq

from alignment_video.backbone import Backbone
from alignment_video.flow import flicker
from alignment_video.masks import KeywordMasker
from alignment_video.mini_diffusion import Recogniser
from alignment_video.video import film, sound_packets
from alignment_video.world import Ad

# %%
from alignment_video import local_edit

folder = tempfile.TemporaryDirectory()
clip = Path(folder.name) / "perfume.mp4"
ad = Ad(36_460_001, size=(128, 128), seconds=1.5, scenes=1)
film(ad, clip)
backbone, masker = (
    Backbone.from_pretrained("mini-words", device="cpu"),
    KeywordMasker.from_pretrained("mini", device="cpu"),
)
where_it_is = local_edit.Replacing(prompt="a {}, beach", around="beach", seed=1)  # it helps to say what is around
made = local_edit.replace(clip, "perfume", "hat", clip.with_name("hat.mp4"), backbone, masker, where_it_is)
print(str(made).replace(f"{folder.name}/", ""))


# %%
#| label: fig-replaced
#| fig-cap: "A clip of 36 frames, of which eight are shown. Above as it was; below, the perfume replaced by a hat. Keyframes were painted, the others were carried along the motion of the original."
#| fig-alt: "Two rows of eight small pictures. Above, a grey bottle on a beach, before the sea, which moves a little to the left. Below, the same scene with a purple hat in the bottle's place; everything around it is the same as above."
def rows(*clips, count=8):
    """Clips below each other, a few frames of each."""
    shown = np.linspace(0, len(clips[0]) - 1, count).astype(int)
    fig, axes = plt.subplots(
        len(clips), count, figsize=(9, 9 / count * len(clips)), layout="constrained", squeeze=False
    )
    for line, frames in zip(axes, clips, strict=True):
        for axis, t in zip(line, shown, strict=True):
            axis.imshow(frames[t])
            axis.axis("off")
    return fig


before, after = read_clip(clip), read_clip(made.film)
rows(before, after)
plt.show()

# %% [markdown]
# *Look at* the rim of the painted part. The model sees and paints a square around the bottle, at 64 pixels, where the ground behind it has to be made up as well. With real weights the same square has 512 pixels.
#
# ## What can be set
#
# The last seven switches are the ingredients of the method. Each can be left out, to see what it does; [the evidence](99_replacements.ipynb) has a table of it.

# %%
#| export
STARTS = ("auto", "noise", "noised", "inverted")


@dataclass(frozen=True)
class Replacing:
    """How a thing is replaced. What begins with a yes can be left out, to see what it does."""

    prompt: str = "a {}"  # what the model is told of the new thing
    around: str = ""  # what it is told of everything else, such as the place
    steps: int = 20
    scheduler: str = "ddim"
    guidance: float = 3.0
    start: str = "auto"  # noise for an inpainting model, else the inverted frame
    strength: float = 1.0  # the share of the steps that is run, for a noised or an inverted frame
    wide: float = 1.2  # the hole's side, as a multiple of the thing's longer side
    context: float = 2.0  # the side of what the model sees, as a multiple of the thing's longer side
    spacing: int = 8  # keyframes are at most so many frames apart
    motion: float = 0.1  # and the thing moves at most so far between them, in shorter sides of the frame
    background: bool = False  # replace what is around the thing, and keep the thing
    words_apart: bool = True  # pixels inside and outside see their own words only
    pixels_apart: bool = True  # and look at their own side only
    shared: bool = True  # later keyframes look at the first one
    matched: bool = True  # and take over its statistics
    blended: bool = True  # outside, the latents are the frame's own after each step
    carried: bool = True  # frames between keyframes follow the video's motion; else each is painted by itself
    seed: int = 0

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise Refused(f"start {self.start!r}: use {', '.join(STARTS)}")
        if "{}" not in self.prompt:
            raise Refused(f"prompt {self.prompt!r}: it has no {{}} in which the new thing is put")
        for name, least in (("wide", 1.0), ("context", 1.0), ("spacing", 1), ("motion", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
                raise Refused(f"{name} {value!r}: use a number from {least:g} on")
        if not self.wide <= self.context:
            raise Refused(f"wide {self.wide:g}, context {self.context:g}: the hole is to lie in what the model sees")
        Schedule(self.steps, self.strength, self.scheduler)

    def told(self, thing: str) -> str:
        """The prompt for a thing."""
        return self.prompt.format(thing)


def check_asked(video: str | Path, one: str, other: str, out: str | Path) -> tuple[str, str, Path, Path]:
    """Look at what is asked before any model is loaded."""
    video, out = Path(video), Path(out)
    if not video.is_file():
        raise Refused(f"{video}: there is no such file; check the name")
    if out.suffix.lower() != ".mp4":
        raise Refused(f"{out}: name a file that ends in .mp4")
    if out.resolve() == video.resolve():
        raise Refused(f"{out}: that is the video itself; name another file")
    for name, words in (("the thing to replace", one), ("the new thing", other)):
        if not isinstance(words, str) or not words.strip():
            raise Refused(f"{name} is {words!r}: name it, such as 'mug'")
    one, other = one.strip(), other.strip()
    if one.casefold() == other.casefold():
        raise Refused(f"{one!r} by {other!r}: both are the same; name another thing to put in its place")
    return one, other, video, out


# %%
for wrong, line in (
    ({"start": "anything"}, "use auto, noise, noised, inverted"),
    ({"prompt": "a hat"}, "no {} in which the new thing is put"),
    ({"wide": 3.0}, "the hole is to lie in what the model sees"),
    ({"spacing": 0}, "use a number from 1 on"),
):
    with expect_fail(Refused, line):
        Replacing(**wrong)
with expect_fail(Refused, "both are the same"):
    check_asked(clip, "Mug", "mug ", "new.mp4")
with expect_fail(Refused, "the new thing is ''"):
    check_asked(clip, "mug", "", "new.mp4")


# %% [markdown]
# ## Where the thing is
#
# The masker of [page 12](12_masks.ipynb) is asked for the thing in three pictures of each scene. Where it is most likely, it is followed through the scene: keyframes are nowhere further apart than the thing moves a tenth of the frame, and it is asked for again in each of them. A thing that is missing in one keyframe and there in its neighbours is filled in; one that shows up in a single keyframe is taken for an error.

# %%
#| export
class Seen(NamedTuple):
    """A thing in the keyframes of a scene."""

    frames: tuple[int, ...]
    masks: list[NDArray[np.bool_]]  # on small pictures
    at: int  # which of the keyframes the others take their looks from


def scenes_of(path: str | Path) -> list[Shot]:
    """The scenes of a video, with nothing asked of them."""
    rows = find_scenes(path).to_dict("records")
    mixed = [0 if row["transition"] == "cut" else int(row["transition_frames"]) for row in rows] + [0]
    found = []
    for place, row in enumerate(rows):
        start, stop, picture = (int(row[name]) for name in ("start_frame", "end_frame", "picture_frame"))
        clear = start + -(-mixed[place] // 2), stop - 1 - -(-mixed[place + 1] // 2)
        clear = clear if clear[0] <= picture <= clear[1] else (picture, picture)
        found.append(Shot(place + 1, start, stop, clear, picture, "", math.nan, ()))
    return found


def find_thing(
    path: str | Path, shot: Shot, masker: MaskProvider, word: str, settings: Replacing = Replacing()
) -> tuple[Seen | None, NDArray[np.uint8], NDArray[np.float32]]:
    """Where a thing is in a scene's keyframes, or nothing; and the picture in which it is most likely, with its map."""
    first, last = shot.clear
    looks = sorted({first, shot.picture_frame, last})
    pictures = [_small(frame.image, TRACK_SIDE) for frame in read_frames(path, first, last + 1, set(looks))]
    maps = [answer[0] for answer in ask(masker, pictures, [word] * len(pictures))]
    best = max(range(len(looks)), key=lambda place: float(maps[place].max()))
    if not maps[best].max() > THRESHOLD:
        return None, pictures[best], maps[best]
    steps = Steps.of(frame.image for frame in read_frames(path, first, last + 1))
    far = product_motion(steps, _sized(maps[best], steps.size) > THRESHOLD, looks[best] - first).far
    spacing = settings.spacing if settings.carried else 1
    keys = choose_keyframes(far, first, last, spacing, settings.motion or 1e-6, [looks[best]])
    small = [_small(frame.image, TRACK_SIDE) for frame in read_frames(path, first, last + 1, set(keys))]
    smooth = smooth_probabilities([answer[0] for answer in ask(masker, small, [word] * len(small))])
    masks = hysteresis(smooth) if len(smooth) > 2 else [each > THRESHOLD for each in smooth]
    if not any(mask.any() for mask in masks):
        return None, pictures[best], maps[best]
    at = min((n for n, mask in enumerate(masks) if mask.any()), key=lambda n: abs(keys[n] - looks[best]))
    return Seen(tuple(keys), masks, at), pictures[best], maps[best]


# %%
shot = scenes_of(clip)[0]
seen, picture, likely = find_thing(clip, shot, masker, "perfume")
print(f"frames {seen.frames}, looks from frame {seen.frames[seen.at]}")
nothing, picture, likely = find_thing(clip, shot, masker, "sunglasses")
print(f"sunglasses: most likely {likely.max():.2f}")
assert nothing is None and all(mask.any() for mask in seen.masks)


# %% [markdown]
# ## The hole
#
# What is painted must have room for the new thing, and must not tell its shape: a hole in the form of a bottle would be filled with a bottle. So the hole is a square around the thing, of one size in the whole scene, which follows the thing smoothly. Around it lies what the model sees and does not change. With `background` it is the other way round: the thing stays, with a narrow rim, and the hole is everything else.

# %%
#| export
@dataclass(frozen=True, eq=False)
class Place:
    """Where in each keyframe is painted: what the model sees, and the hole in it."""

    frames: tuple[int, ...]
    boxes: tuple[Box, ...]
    holes: tuple[NDArray[np.bool_], ...]  # of the boxes, at the size at which is painted
    things: tuple[NDArray[np.float32], ...]  # the thing's own mask there, by whose motion it is carried
    native: tuple[int, int]
    at: int

    def around(self, t: int) -> tuple[int, int, float]:
        """Which keyframes are before and after a frame, and how far it is on the way from one to the other."""
        after = min(int(np.searchsorted(self.frames, t)), len(self.frames) - 1)
        before = after if self.frames[after] <= t else max(after - 1, 0)
        long = self.frames[after] - self.frames[before]
        return before, after, min(max((t - self.frames[before]) / long, 0.0), 1.0) if long else 0.0

    def box(self, t: int) -> Box:
        """The box in a frame, on the way between those of the keyframes around it."""
        before, after, share = self.around(t)
        one, other = self.boxes[before], self.boxes[after]
        top, left = (round(a + share * (b - a)) for a, b in ((one.top, other.top), (one.left, other.left)))
        return dataclasses.replace(one, top=top, left=left)


def _scaled(box: Box, scale: tuple[float, float], size: tuple[int, int]) -> Box:
    """A box of a small picture in a large one."""
    height, width = min(size[0], round(box.height * scale[0])), min(size[1], round(box.width * scale[1]))
    top, left = min(round(box.top * scale[0]), size[0] - height), min(round(box.left * scale[1]), size[1] - width)
    return Box(max(top, 0), max(left, 0), height, width)


def _at_size(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    return np.ascontiguousarray(_sized(values, size))


def place_of(seen: Seen, size: tuple[int, int], side: int, multiple: int, settings: Replacing = Replacing()) -> Place:
    """Boxes and holes for frames of a size, and a model that likes pictures of a shorter side."""
    small = seen.masks[0].shape
    scale = size[0] / small[0], size[1] / small[1]
    if settings.background:
        boxes = [Box(0, 0, *size)] * len(seen.masks)
        native = native_size(*size, side, multiple)
    else:
        boxes = [_scaled(box, scale, size) for box in boxes_around(seen.masks, settings.context)]
        native = native_size(boxes[0].height, boxes[0].width, side, multiple)
    rims = [_scaled(box, scale, size) for box in boxes_around(seen.masks, settings.wide)]
    holes, things = [], []
    for mask, box, rim in zip(seen.masks, boxes, rims, strict=True):
        own = box.cut(cv2.resize(mask.astype(np.float32), size[::-1]))
        thing = mask_at(own, native) if own.max() > 0.5 else np.zeros(native, bool)
        if settings.background:
            hole = ~(cv2.dilate(thing.astype(np.uint8), np.ones((3, 3))) > 0)
        else:
            whole = np.zeros(size, np.float32)
            rim.cut(whole)[:] = 1
            hole = mask_at(box.cut(whole), native)
        if hole.all() or not hole.any():
            raise Refused(
                f"hole: it is on {'every pixel' if hole.any() else 'no pixel'} of what the model sees; "
                "use more context, or less wide"
            )
        holes.append(hole)
        things.append(thing.astype(np.float32))
    return Place(seen.frames, tuple(boxes), tuple(holes), tuple(things), native, seen.at)


# %%
#| label: fig-replaced-holes
#| fig-cap: "What the model is given of three keyframes: the part of the frame that it sees, the hole in it (grey), and, right, the hole when the background is to be replaced."
#| fig-alt: "Four square pictures. Three show parts of the clip with a grey square where the bottle was; in the fourth the bottle is there and all around it is grey."
size = before.shape[1:3]
place, other = (place_of(seen, size, 64, 16, Replacing(background=background)) for background in (False, True))
fig, axes = plt.subplots(1, 4, figsize=(9, 2.4), layout="constrained")
for axis, (where, number) in zip(axes, [(place, 0), (place, 2), (place, -1), (other, 0)], strict=True):
    crop = _at_size(where.boxes[number].cut(before[where.frames[number]]), where.native)
    axis.imshow(np.where(where.holes[number][..., None], 128, crop))
    axis.axis("off")
plt.show()
for hole, thing in zip(place.holes, place.things, strict=True):
    assert (hole | (thing == 0)).all()  # nothing of the thing is left outside
with expect_fail(Refused, "use more context, or less wide"):
    place_of(seen._replace(masks=[np.ones_like(mask) for mask in seen.masks]), size, 64, 16)


# %% [markdown]
# ## Painting
#
# The model hears two things at once. Pixels in the hole hear "a hat" and pixels around it hear nothing, or what `around` says: [regions](40_regions.ipynb) route the words, and keep either side from looking at the other. One keyframe is painted first, and what its attention layers read is recorded. The other keyframes look at the recording too, inside at inside and outside at outside, and take over its statistics: so they show the same hat. All begin with the same noise, which by itself makes them much alike. After each step the latents outside the hole are set to the frame's own.
#
# An inpainting model begins with noise alone, since it sees what lies around. A plain Stable Diffusion does not: it begins with the noise that the frame came from (inversion), or with the noised frame.

# %%
#| export
def paint(
    backbone: "Backbone", pictures: Sequence[NDArray[np.uint8]], holes: Sequence[NDArray[np.bool_]], one: str,
    other: str, settings: Replacing = Replacing(), at: int = 0, name: tuple[str | int, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:  # fmt: skip
    """Keyframes, all of one size, with another thing in their holes: number `at` first, and the others after its looks."""
    import torch

    from alignment_video.backbone import as_pictures, as_tensor

    job = _Painting.of(backbone, as_tensor(list(pictures)), np.stack(holes), one, other, settings, name)
    first, recording = [at], Recording(device="cpu")
    rest = [row for row in range(len(pictures)) if row != at]
    alone = bool(rest) and settings.shared
    told = _Told(progress, len(first) + len(rest))
    latents = {at: job.run(first, [record_guest(recording)] if alone else [], told)[0]}
    if rest:
        shared = [sharing_guest(recording, adain=settings.matched)] if alone else []
        latents |= dict(zip(rest, job.run(rest, shared, told), strict=True))
    return as_pictures(backbone.decode(torch.stack([latents[row] for row in range(len(pictures))])))


class _Told:
    """Progress in pictures, of a loop that tells it in steps of a batch."""

    def __init__(self, progress: Callable[[int, int], None] | None, pictures: int):
        self.progress, self.pictures, self.done = progress, pictures, 0

    def __call__(self, rows: int) -> Callable[[int, int], None]:
        def step(done: int, steps: int) -> None:
            if done == steps:
                self.done = min(self.done + rows, self.pictures)
                if self.progress:
                    self.progress(self.done, self.pictures)

        return step


@dataclass(frozen=True, eq=False)
class _Painting:
    """What a run of the loop over keyframes is given."""

    backbone: "Backbone"
    frames: "Tensor"  # latents
    masks: "Tensor"  # of the holes, N×1×h×w of latents
    hole: Hole | None
    texts: dict[str, "Text"]
    settings: Replacing
    noise: "Tensor"

    @classmethod
    def of(
        cls, backbone: "Backbone", pictures: "Tensor", holes: NDArray[np.bool_], one: str, other: str,
        settings: Replacing, name: tuple[str | int, ...],
    ) -> "_Painting":  # fmt: skip
        import torch

        pictures = pictures.to(backbone.device)
        planes = torch.from_numpy(holes[:, None].astype(np.float32))
        high, wide = pictures.shape[2:]
        asked = {"new": settings.told(other), "old": settings.told(one), "around": settings.around}
        texts = {key: backbone.encode_text(words) for key, words in asked.items()}
        texts["negative"] = backbone.encode_text("", negative=True)
        return cls(
            backbone, backbone.encode(pictures), latent_mask(backbone, planes, 0).round().to(backbone.device),
            hole_of(backbone, pictures, planes) if backbone.fills else None, texts, settings,
            common_noise(backbone, high, wide, settings.seed, *name),
        )  # fmt: skip

    def run(self, rows: list[int], guests: list[Any], told: _Told) -> "Tensor":
        """The latents of some keyframes."""
        own, settings = self.settings, self.settings
        schedule = Schedule(own.steps, own.strength, own.scheduler)
        hole = None if self.hole is None else Hole(self.hole.mask[rows], self.hole.around[rows])
        if own.words_apart or own.pixels_apart:
            region = Region(self.masks[rows], self.texts["new"])
            leak = 0.0 if own.pixels_apart else 1.0
            guests = [region_guest(self.backbone, region, leak=leak, cross=own.words_apart), *guests]
        text = self.texts["around" if own.words_apart else "new"]
        return denoise(
            self.backbone, self._start(rows, schedule, hole), text, self.texts["negative"],
            guidance=Guidance(own.guidance), schedule=schedule, edit=self.masks[rows] if settings.blended else None,
            guests=guests, hole=hole, progress=told(len(rows)),
        )  # fmt: skip

    def _start(self, rows: list[int], schedule: Schedule, hole: Hole | None) -> Start:
        """Where the loop begins: noise alone, the noised frame, or the noise that the frame came from."""
        kind = self.settings.start
        if kind == "auto":
            kind = "noise" if self.backbone.fills else "inverted"
        frames = self.frames[rows]
        if kind == "inverted":
            how: dict[str, Any] = {"guidance": Guidance(1.0), "schedule": schedule, "hole": hole}
            return Start(path=invert(self.backbone, frames, self.texts["old"], **how))
        return Start(frames, self.noise, blank=kind == "noise")


# %%
crops = [_at_size(box.cut(before[t]), place.native) for t, box in zip(place.frames, place.boxes, strict=True)]
together = paint(backbone, crops, place.holes, "perfume", "hat", at=place.at)
alone = paint(backbone, crops, place.holes, "perfume", "hat", Replacing(shared=False), at=place.at)


def colours(pictures):
    """By how much the mean colour in the hole varies between keyframes, in 255ths."""
    return float(np.stack([p[hole].mean(0) for p, hole in zip(pictures, place.holes, strict=True)]).std(0).mean())


def apart(pictures):
    """How far the pixels in the hole are from those of the keyframe that was painted first, in 255ths."""
    first, hole = pictures[place.at].astype(float), place.holes[place.at]
    return float(np.mean([np.abs(p - first)[hole].mean() for n, p in enumerate(pictures) if n != place.at]))


judge = Recogniser.from_pretrained("mini", device="cpu")
words = [word for word, _ in judge.name(list(together), list(place.holes))]
print(f"the judge sees {', '.join(words)}")
print(
    f"colours vary by {colours(together):.1f} with shared looks, {colours(alone):.1f} without, {colours(crops):.1f} in the original"
)
print(f"pixels are apart by {apart(together):.1f} with shared looks, {apart(alone):.1f} without")
test_eq(len(together), len(place.frames))
assert words.count("hat") >= len(words) - 1
assert colours(together) < colours(alone) and apart(together) < apart(alone)

# %%
#| label: fig-replaced-shared
#| fig-cap: "The keyframes as painted: above with shared looks, below each by itself, from the same noise."
#| fig-alt: "Two rows of small pictures of hats. In the upper row all show the same purple hat; in the lower row the first two have another form than the rest."
rows(together, alone, count=len(crops))
plt.show()


# %% [markdown]
# ## Between the keyframes
#
# A frame between two keyframes gets what was painted in both, each carried along the motion of the *original* video, and mixed by how near they are. The new thing has a shape of its own, so it cannot follow the motion of each pixel: it moves as the old thing did as a whole ([page 33](33_flow.ipynb)). A new background follows the motion of every pixel of the old one.
#
# Where nothing is laid over a frame, it is not touched.

# %%
#| export
class Painted(NamedTuple):
    """A keyframe: the part of it that the model saw, what it made of it, and where."""

    crop: NDArray[np.uint8]
    made: NDArray[np.float32]
    soft: NDArray[np.float32]
    thing: NDArray[np.float32]


def lay(
    place: Place, keys: Sequence[Painted], frame: Frame, flow: Flow, background: bool = False
) -> tuple[Box, NDArray[np.float32], NDArray[np.float32]]:
    """What is laid over a frame: where, the pixels, and how much of them, at the size at which was painted."""
    before, after, share = place.around(frame.index)
    box = place.box(frame.index)
    if place.frames[after] == frame.index:
        return box, keys[after].made, keys[after].soft
    crop = _at_size(box.cut(frame.image), place.native)
    held = [keys[before]] if before == after else [keys[before], keys[after]]
    much = [1.0] if before == after else [1 - share, share]
    planes = [np.concatenate([key.made * key.soft[..., None], key.soft[..., None]], 2) for key in held]
    if background:
        total = routes(crop, [key.crop for key in held], much, flow).fetch(planes)
    else:
        ways = [_way_back(crop, key.crop, key.thing, flow) for key in held]
        total = np.sum(
            [part * look_up(plane, way) for part, plane, way in zip(much, planes, ways, strict=True)], 0, np.float32
        )
    soft = np.clip(total[..., 3], 0, 1)
    soft = np.where(soft < 1 / 64, 0, soft)
    made = np.asarray(total[..., :3] / np.maximum(total[..., 3:], 1e-6), np.float32)
    return box, made, soft.astype(np.float32)


def pasted(
    image: NDArray[np.uint8], box: Box, made: NDArray[np.float32], soft: NDArray[np.float32], share: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A frame with pixels laid over a part of it, and where that is; everywhere else it is the same to the bit."""
    found, where = image.copy(), np.zeros(image.shape[:2], bool)
    size = box.height, box.width
    much = share * _sized(soft, size)[..., None]
    crop, inside = box.cut(image).astype(np.float32), much[..., 0] > 0
    told = np.rint(np.clip(crop + much * (_sized(made, size) - crop), 0, 255)).astype(np.uint8)
    box.cut(found)[inside] = told[inside]
    box.cut(where)[:] = inside
    return found, where


# %% [markdown]
# ## A whole video
#
# Scenes that do not show the thing stay as they are. Where two scenes are mixed, as much is laid over a frame as there is of the scene. Frames are read and written one by one, so a long video takes no more memory than its keyframes.

# %%
#| export
class Edited(NamedTuple):
    """A scene whose thing was replaced."""

    shot: Shot
    place: Place
    keys: list[Painted]


def edit_scene(
    path: str | Path, shot: Shot, seen: Seen, backbone: "Backbone", one: str, other: str,
    settings: Replacing = Replacing(), progress: Callable[[int, int], None] | None = None,
) -> Edited:  # fmt: skip
    """Paint the keyframes of a scene."""
    frames = {
        frame.index: frame.image for frame in read_frames(path, seen.frames[0], seen.frames[-1] + 1, set(seen.frames))
    }
    size = next(iter(frames.values())).shape[:2]
    side = int(backbone.unet.config.sample_size) * backbone.factor
    place = place_of(seen, (size[0], size[1]), side, backbone.factor * _halvings(backbone), settings)
    crops = [_at_size(box.cut(frames[t]), place.native) for t, box in zip(place.frames, place.boxes, strict=True)]
    name = (Path(path).name, shot.number)
    made = paint(backbone, crops, place.holes, one, other, settings, place.at, name, progress)
    keys = [
        Painted(crop, new.astype(np.float32), soft_edge(hole), thing)
        for crop, new, hole, thing in zip(crops, made, place.holes, place.things, strict=True)
    ]
    return Edited(shot, place, keys)


def _halvings(backbone: "Backbone") -> int:
    """What latents have to be multiples of: the U-Net halves them so often."""
    return int(2 ** (len(backbone.unet.config.block_out_channels) - 1))


def rendered(
    path: str | Path, scenes: Sequence[Edited], flow: Flow | None = None, background: bool = False
) -> Iterator[tuple[Frame, NDArray[np.uint8], NDArray[np.bool_]]]:
    """Every frame of a video, what becomes of it, and where it is not what it was."""
    flow, by_frame = flow or DIS(), {t: scene for scene in scenes for t in range(scene.shot.start, scene.shot.stop)}
    for frame in read_frames(path):
        scene = by_frame.get(frame.index)
        if scene is None:
            yield frame, frame.image, np.zeros(frame.image.shape[:2], bool)
            continue
        box, made, soft = lay(scene.place, scene.keys, frame, flow, background)
        yield frame, *pasted(frame.image, box, made, soft, scene.shot.share(frame.index))


# %%
changed = 0
scene = edit_scene(clip, shot, seen, backbone, "perfume", "hat")
for frame, picture, where in rendered(clip, [scene]):
    test_eq(picture[~where], frame.image[~where])
    changed += int((picture != frame.image).any(-1).sum())
print(f"{changed / before[..., 0].size:.0%} of all pixels changed, none outside the painted part")
assert changed

# %% [markdown]
# ## The film, and what is said about it
#
# `replace` writes the film with the original's times and sound, a comparison of both side by side, and a manifest: what was asked, with which models, which keyframes were painted, and the hash of each file.

# %%
#| export
SCHEMA = "alignment_video replacement 1"


@dataclass(frozen=True)
class Replaced:
    """What was written."""

    film: Path
    comparison: Path
    manifest: Path
    facts: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        scenes, keys = self.facts["scenes"], sum(len(scene["keyframes"]) for scene in self.facts["scenes"])
        changed = sum(bool(scene["keyframes"]) for scene in scenes)
        return f"{self.film}: {self.facts['replaced']} by {self.facts['by']} in {changed} of {len(scenes)} scenes, {keys} keyframes painted"


def replace(
    video: str | Path, one: str, other: str, out: str | Path, backbone: "Backbone", masker: MaskProvider,
    settings: Replacing = Replacing(), flow: Flow | None = None, progress: Callable[[str, int, int], None] | None = None,
) -> Replaced:  # fmt: skip
    """A video with one thing replaced by another: the film, a comparison with the original, and a manifest."""
    one, other, video, out = check_asked(video, one, other, out)
    scenes, shots = list[Edited](), scenes_of(video)
    most: tuple[float, Any, Any] = (-1.0, None, None)
    for shot in shots:
        if progress:
            progress("looking for " + one, shot.number, len(shots))
        seen, picture, map = find_thing(video, shot, masker, one, settings)
        most = max(most, (float(map.max()), picture, map), key=lambda each: each[0])
        if seen is not None:
            step = (
                (lambda done, count, number=shot.number: progress(f"painting scene {number}", done, count))
                if progress
                else None
            )
            scenes.append(edit_scene(video, shot, seen, backbone, one, other, settings, step))
    if not scenes:
        raise Refused(_not_found(one, most, out))
    info, flow = probe(video), flow or DIS()
    with VideoWriter(out, like=info, encoding=FILM, sound_from=video) as writer:
        for frame, picture, _ in rendered(video, scenes, flow, settings.background):
            writer.write(picture, frame.time, frame.duration)
            if progress:
                progress("writing", frame.index + 1, info.frames)
    beside = out.with_name(f"{out.stem}_comparison.mp4")
    grid([video, out], [one, other if not settings.background else f"around: {other}"], beside, columns=2)
    facts = _facts(video, out, beside, one, other, shots, scenes, backbone, masker, settings, flow)
    return Replaced(out, beside, write_json(out.with_suffix(".json"), facts), facts)


def _not_found(word: str, most: tuple[float, NDArray[np.uint8], NDArray[np.float32]], out: Path) -> str:
    """Where the thing was most likely, as a picture beside the file that was asked for; and the line that says so."""
    best, picture, map = most
    heat = cv2.cvtColor(cv2.applyColorMap((255 * map).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    shown = save_picture(out.with_name(f"{out.stem}_not_found.png"), np.hstack([picture, heat]))
    return f"{word!r} is in no scene (most likely {best:.2f}, where it would take {THRESHOLD:g}; see {shown}); name it otherwise, or another thing"


def _facts(
    video: Path, out: Path, beside: Path, one: str, other: str, shots: Sequence[Shot], scenes: Sequence[Edited],
    backbone: "Backbone", masker: MaskProvider, settings: Replacing, flow: Flow,
) -> dict[str, Any]:  # fmt: skip
    """The manifest: what was made, of what, and how."""

    def file(path: Path) -> dict[str, str]:
        return {"path": path.name, "sha256": file_hash(path)}

    done = {scene.shot.number: scene for scene in scenes}
    return {
        "schema": SCHEMA, "source": file(video), "film": file(out), "comparison": file(beside), "replaced": one,
        "by": other, "settings": asdict(settings), "backbone": backbone.name, "masker": masker.name, "flow": flow.name,
        "scenes": [
            {
                "scene": shot.number, "start": shot.start, "stop": shot.stop,
                "keyframes": list(done[shot.number].place.frames) if shot.number in done else [],
                "native": list(done[shot.number].place.native) if shot.number in done else [],
            }
            for shot in shots
        ],
        "versions": versions(),
    }  # fmt: skip


# %%
facts = json.loads(made.manifest.read_text(encoding="utf-8"))
print({key: facts[key] for key in ("schema", "replaced", "by", "backbone", "masker", "flow")})
test_eq(file_hash(made.film), facts["film"]["sha256"])
test_eq([packet[1:] for packet in sound_packets(made.film)], [packet[1:] for packet in sound_packets(clip)])
test_eq(probe(made.film).frames, probe(clip).frames)
flickers = flicker(list(after), list(before))
print(f"flicker {flickers.ratio:.2f} times the original's")
with expect_fail(Refused, "'sunglasses' is in no scene"):
    local_edit.replace(clip, "sunglasses", "hat", clip.with_name("no.mp4"), backbone, masker)
assert clip.with_name("no_not_found.png").is_file() and not clip.with_name("no.mp4").exists()

# %% [markdown]
# ## The background instead
#
# The same with inside and outside swapped: the bottle stays, and what is around it becomes a city. The whole frame is painted at the model's size, so it is as coarse as that.

# %%
#| label: fig-replaced-background
#| fig-cap: "Above the clip, below the bottle before a city."
#| fig-alt: "Two rows of eight small pictures. Above, a bottle on a beach; below, the same bottle before a city at night, which is blurred."
swapped = Replacing(prompt="a perfume, {}", background=True)
city = local_edit.replace(clip, "perfume", "city", clip.with_name("city.mp4"), backbone, masker, swapped)
rows(before, read_clip(city.film))
plt.show()

# %% [markdown]
# ## Real videos
#
# ```python
# backbone = Backbone.from_pretrained("stable-diffusion-v1-5/stable-diffusion-inpainting")
# masker = KeywordMasker.from_pretrained("CIDAS/clipseg-rd64-refined")
# replace("ad.mp4", "necklace", "bracelet", "ad_bracelet.mp4", backbone, masker, Replacing(guidance=7.5, steps=30))
# ```
#
# Nothing on this page has been tried with these weights: they are the documented way, through the same code.
#
# ## What this page does not do
#
# * It does not follow two things of the same name apart: all of them are one mask, and one hole.
# * What hides the thing in the original does not hide the new one.
# * Shadows and reflections of the old thing that lie outside the hole stay.
# * The new thing moves as the old one did. One that ought to move differently does not.
# * It paints a square of ground with the new thing, and the ground is only as good as the model.
