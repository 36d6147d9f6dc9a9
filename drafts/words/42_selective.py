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
#| default_exp selective

# %% [markdown]
# # Selective edits
#
# > One prompt for the subject, another for what is around it, lines that are kept, and the same look in every frame.

# %% [markdown]
# A picture of the product is there, and it is nearly right. *Another product in the same hand. The same product on another ground. Both, and the outlines as they were. And the same again in the next frame.* An image model that is given a prompt changes the whole picture; cutting out two of its pictures and gluing them together shows where the glue is.
#
# This page edits **selectively**. A mask says where the subject is. One prompt speaks to what is inside, and what is outside stays as it was, to the bit. Or a second prompt speaks to the outside, and both are fused *while* the picture is drawn, so that there is no glue. Lines of the old picture can be kept. And frames of a clip can look at the first one, so that they agree.

# %%
#| export
import hashlib
import importlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment_video.core import Refused, file_hash, random_generator, write_json
from alignment_video.editing import Box, _sized, boxes_around, local_mean, mask_at, native_size, soft_edge, wide_edge
from alignment_video.local_edit import pasted
from alignment_video.masks import THRESHOLD, MaskProvider, ask, hysteresis, to_mask
from alignment_video.pictures import read_mask, read_picture
from alignment_video.regions import Recording, Region, record_guest, region_guest, sharing_guest
from alignment_video.sampling import (
    Branch,
    Features,
    Guest,
    Hole,
    Network,
    Schedule,
    Start,
    common_noise,
    denoise,
    features_of,
    hole_of,
    latent_mask,
)
from alignment_video.stimuli import signed, versions
from alignment_video.video import VideoWriter, probe, read_frames, save_picture

if TYPE_CHECKING:
    from torch import Tensor

    from alignment_video.backbone import Backbone, Text

Array = NDArray[Any]

# %%
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import torch
from fastcore.test import expect_fail, test_close, test_eq

from alignment_video import selective
from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import Backbone, _diffusers, write_untrained
from alignment_video.world import PRODUCT, Ad, Scene, still

# %%
#| label: fig-selective-first
#| fig-cap: "A scene that no training saw, edited three ways. With one prompt everything outside the dashed line's soft edge is the original's, to the bit."
#| fig-alt: "Four small pictures: the original; the same with another product in the same place and on the same ground; the first product's place taken by another on another ground; the original's product drawn anew on another ground with its outlines kept."
torch.set_num_threads(1)
backbone = Backbone.from_pretrained("mini-words", device="cpu")
quick = selective.Selecting(steps=12)


def room_around(mask, more=0.1):
    """A square with room for any product where this one is."""
    x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
    reach, square = round(max(wide, high) * (0.5 + more)), np.zeros(mask.shape, bool)
    row, column = y + high // 2, x + wide // 2
    square[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = True
    return square


def bare(axis, picture, title):
    axis.imshow(picture, cmap="gray")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


drawn = still(36_400_016, (96, 96), prominence=0.8)
scene, subject, square = drawn.image, drawn.mask, room_around(drawn.mask)
one = selective.select(backbone, scene, "a hat", mask=square, settings=quick)
both = selective.select(backbone, scene, "a hat", "beach", mask=square, settings=quick)
kept = selective.select(
    backbone, scene, f"a {drawn.keyword}", "wood", mask=subject,
    structure=selective.Structure(where="inside"), settings=quick,
)  # fmt: skip
fig, axes = plt.subplots(1, 4, figsize=(8.4, 2.5), layout="constrained")
bare(axes[0], scene, f"the original:\na {drawn.keyword}")
bare(axes[1], one.picture, "inside “a hat”\noutside untouched")
bare(axes[2], both.picture, "inside “a hat”\noutside “beach”")
bare(axes[3], kept.picture, f"inside “a {drawn.keyword}”, its\nlines kept, outside “wood”")
axes[0].contour(square, [0.5], colors="white", linewidths=1, linestyles="dashed")
plt.show()

# %%
test_eq(int((one.picture != scene)[one.soft[0] == 0].sum()), 0)  # outside the soft edge: to the bit
assert (one.picture != scene)[square].mean() > 0.5
print(one, both, sep="\n")

# %% [markdown]
# *Look at* what is around the square in the second picture: every pixel of it is the original's, and the assertion counts the exceptions. The pictures are small and simple because the model is: **mini-words**, an inpainting model of 11 MB that [knows fourteen products and ten places](97_mini_words.ipynb). Everything on this page works the same with a large model; at the end of the page is how.
#
# ## Settings
#
# What decides how a selection is drawn, in one frozen object, which is written beside every result.

# %%
#| export
FUSIONS = ("latent", "alpha")


@dataclass(frozen=True)
class Selecting:
    """How a selection is drawn."""

    steps: int = 20
    guidance: float = 3.0  # how far the prompts are followed; large models are used to 7.5
    strength: float | None = None  # the share of the steps that is run; None: all with an inpainting model, else 0.8
    scheduler: str = "ddim"
    fusion: str = "latent"  # two prompts: both in every step, or ("alpha") two pictures joined at the end
    edge: int = 16  # two prompts: their soft edge reaches this part of the shorter side to both sides
    context: float = 2.0  # one prompt: what is looked at is so many times as large as the subject
    room: float = 0.0  # the mask is made wider by this share of its longer side
    side: int = 0  # the shorter side at which is drawn, in pixels; 0: that with which the model was trained
    sharing: float = 1.0  # how far frames look at the first one; 0: not at all
    keep_colour: bool = True  # frames: the product's mean colour changes as it did in the original
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise Refused(f"fusion {self.fusion!r}: use {' or '.join(FUSIONS)}")
        told = (
            ("guidance", self.guidance, 1, math.inf), ("edge", self.edge, 2, 256), ("context", self.context, 1, math.inf),
            ("room", self.room, 0, 1), ("sharing", self.sharing, 0, math.inf),
        )  # fmt: skip
        for name, value, least, most in told:
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not least <= value <= most:
                raise Refused(
                    f"{name} {value!r}: use a number from {least:g} {'on' if most == math.inf else f'to {most:g}'}"
                )
        if isinstance(self.side, bool) or not isinstance(self.side, int) or self.side < 0:
            raise Refused(f"side {self.side!r}: use a whole number of pixels, or 0 for the model's own")
        self.schedule(True)  # refuses steps, a strength or a scheduler that are none

    def schedule(self, fills: bool) -> Schedule:
        """The steps that are run, by an inpainting model or a plain one."""
        usual = 1.0 if fills else 0.8
        return Schedule(self.steps, usual if self.strength is None else self.strength, self.scheduler)


# %%
test_eq(Selecting().schedule(True).run, 20)
test_eq(Selecting().schedule(False).run, 16)
for wrong, line in (
    ({"fusion": "glue"}, "use latent or alpha"),
    ({"guidance": 0.5}, "guidance 0.5: use a number from 1 on"),
    ({"room": 2}, "room 2: use a number from 0 to 1"),
    ({"sharing": float("nan")}, "sharing nan"),
    ({"strength": 0}, "strength 0"),
    ({"steps": 0}, "steps 0"),
    ({"side": -8}, "side -8: use a whole number of pixels"),
):
    with expect_fail(Refused, line):
        Selecting(**wrong)


# %% [markdown]
# ## What goes in
#
# A picture, or frames of a clip, of any size. A mask of its size, or a keyword, for which the [mask model](12_masks.ipynb) looks. And prompts. Everything that cannot be meant is refused before any model runs, in one line that names the thing, the value and the way out.
#
# A prompt that is longer than the text encoder reads (77 tokens, two of which mark its ends) loses its last words. That must not happen in silence: `fitted` gives back what is kept and what is cut, and warns.

# %%
#| export
def fitted(backbone: "Backbone", prompt: str) -> tuple[str, str]:
    """What of a prompt the text encoders read, and what is cut off; a cut is warned of."""
    from alignment_video.backbone import _cut_off, _silent

    cut = ""
    with _silent():
        for tokenizer, encoder in zip(backbone.tokenizers, backbone.text_encoders, strict=True):
            most = min(encoder.config.max_position_embeddings, tokenizer.model_max_length)
            if len(tokenizer(prompt).input_ids) > most:
                cut = max(cut, _cut_off(tokenizer, prompt, most), key=len)
    if not cut:
        return prompt, ""
    warnings.warn(f"prompt {prompt[:40]!r}… is longer than the model reads; this is cut off: {cut!r}", stacklevel=2)
    return prompt[: -len(cut)].strip(), cut


def _prompts(inside: Any, outside: Any, negative: Any) -> dict[str, str]:
    """The prompts by name, each of which says something."""
    given = {"inside": inside} | ({} if outside is None else {"outside": outside})
    for name, prompt in given.items():
        if not isinstance(prompt, str) or not prompt.strip():
            way_out = "say what is to be there" if name == "inside" else "say what is to be there, or leave it out"
            raise Refused(f"{name} prompt {prompt!r:.60} says nothing; {way_out}")
    if not isinstance(negative, str):
        raise Refused(f"negative prompt {negative!r:.60}: give text, '' for none")
    if outside is not None and inside.split() == outside.split():
        raise Refused(f"inside and outside are the same prompt, {inside!r:.60}; give two, or only the one inside")
    return {**given, "negative": negative}


def _frames(source: Any) -> Array:
    """Frames N×H×W×3, of a picture one."""
    frames = np.asarray(source)
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-1] != 3 or not frames.size:
        raise Refused(
            f"source of {frames.dtype} {frames.shape}: give a picture H×W×3, or frames N×H×W×3 of one size, in uint8"
        )
    if frames.ndim == 4 and len(frames) < 2:
        raise Refused("a clip of 1 frame: nothing has to agree with it; give the frame as a picture, H×W×3")
    return frames if frames.ndim == 4 else frames[None]


# %%
long = "a mug " * 60 + "with a gold rim"
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    start, cut = fitted(backbone, long)
print(str(told[0].message)[:110], "…")
test_eq(f"{start} {cut}", long)
assert cut.endswith("with a gold rim") and len(backbone.encode_text(start)) == 1
test_eq(fitted(backbone, "a mug"), ("a mug", ""))
for wrong, line in (
    ({"inside": " "}, "inside prompt ' ' says nothing; say what is to be there"),
    ({"inside": "a mug", "outside": ""}, "or leave it out"),
    ({"inside": "a mug", "outside": "a  mug "}, "inside and outside are the same prompt"),
    ({"inside": "a mug", "negative": None}, "negative prompt None"),
):
    with expect_fail(Refused, line):
        selective.select(backbone, scene, **{"mask": square, **wrong})
with expect_fail(Refused, "a clip of 1 frame"):
    selective.select(backbone, scene[None], "a mug", mask=square)
with expect_fail(Refused, "give a picture H×W×3"):
    selective.select(backbone, scene / 255, "a mug", mask=square)


# %%
#| export
def _masks(frames: Array, mask: Any, keyword: str | None, masker: MaskProvider | None) -> Array:
    """Where the subject is, N×H×W, given or looked for; nowhere, or everywhere, is refused."""
    if (mask is None) == (keyword is None):
        raise Refused("subject: give a mask or a keyword, one of them")
    found = _looked_for(frames, str(keyword), masker) if mask is None else _given(frames, mask)
    if not found.any():
        raise Refused("mask is empty: there is nothing inside for the prompt; look at the mask")
    if found.all():
        raise Refused("mask is on every pixel: there is no outside; give a narrower one")
    return found


def _given(frames: Array, mask: Any) -> Array:
    planes = np.asarray(mask)
    planes = planes[None] if planes.ndim == 2 else planes
    high, wide = frames.shape[1:3]
    if planes.ndim != 3 or planes.shape[1:] != (high, wide) or len(planes) not in (1, len(frames)):
        raise Refused(f"mask of {planes.shape}: give {high}×{wide}, the size of the picture, or {len(frames)} of them")
    return np.broadcast_to(planes > (0.5 if planes.dtype.kind == "f" else 0), frames.shape[:3])


def _looked_for(frames: Array, keyword: str, masker: MaskProvider | None) -> Array:
    if not keyword.strip():
        raise Refused("keyword is empty; name the subject, or give a mask")
    if masker is None:
        from alignment_video.masks import KeywordMasker

        masker = KeywordMasker.from_pretrained("mini")
    maps = [planes[0] for planes in ask(masker, list(frames), [keyword] * len(frames))]
    found = np.stack([to_mask(maps[0])] if len(maps) == 1 else hysteresis(maps))
    if not found.any():
        most = max(float(each.max()) for each in maps)
        raise Refused(
            f"keyword {keyword!r} is found nowhere (at most {most:.2f}, {THRESHOLD:g} is needed); name the subject in "
            "other words, or give a mask"
        )
    return found


def widened(mask: Array, room: float) -> Array:
    """The mask and what is no further from it than a share of its longer side."""
    reach = round(room * max(cv2.boundingRect(mask.astype(np.uint8))[2:]))
    if not reach:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc) > 0)


# %%
for wrong, line in (
    ({}, "give a mask or a keyword"),
    ({"mask": square, "keyword": "mug"}, "one of them"),
    ({"mask": square[:50]}, "mask of (1, 50, 96): give 96×96"),
    ({"mask": square & False}, "mask is empty"),
    ({"mask": square | True}, "mask is on every pixel"),
    ({"keyword": " "}, "keyword is empty"),
):
    with expect_fail(Refused, line):
        selective.select(backbone, scene, "a mug", **wrong)
with expect_fail(Refused, "keyword 'headphones' is found nowhere"):
    selective.select(backbone, scene, "a hat", keyword="headphones")
assert widened(subject, 0.1).sum() > subject.sum() and (widened(subject, 0.1) >= subject).all()
test_eq(widened(subject, 0), subject)


# %% [markdown]
# ## Where it is drawn
#
# A large picture is not shrunk to the model's size and blown up again: what is outside would be lost. As on [the page about editing a frame](32_editing.ipynb), only a box around the subject goes to the model, at the size that it was trained with; the boxes of a clip have one size and follow their subject. If there is a prompt for the outside as well, the whole picture is drawn, and then it has the detail that the model has.

# %%
#| export
@dataclass(frozen=True, eq=False)
class _Views:
    """What the model sees of each frame, at its own size, and where that was."""

    pictures: Array  # N×h×w×3
    masks: Array  # N×h×w
    boxes: Sequence[Box]
    whole: bool  # whether all of it is drawn

    def __len__(self) -> int:
        return len(self.pictures)


def _views(backbone: "Backbone", frames: Array, masks: Array, whole: bool, settings: Selecting = Selecting()) -> _Views:
    high, wide = frames.shape[1:3]
    boxes = [Box(0, 0, high, wide)] * len(frames) if whole else boxes_around(list(masks), settings.context)
    side = settings.side or int(backbone.unet.config.sample_size) * backbone.factor
    multiple = int(backbone.factor * 2 ** (len(backbone.unet.config.down_block_types) - 1))
    size = native_size(boxes[0].height, boxes[0].width, side, multiple)
    pictures = [_sized(np.ascontiguousarray(box.cut(each)), size) for each, box in zip(frames, boxes, strict=True)]
    small = [
        mask_at(box.cut(mask), size) if mask.any() else np.zeros(size, bool)
        for mask, box in zip(masks, boxes, strict=True)
    ]
    return _Views(np.stack(pictures), np.stack(small), boxes, whole)


# %%
views = selective._views(backbone, scene[None], square[None], False)
test_eq(views.pictures.shape, (1, 64, 64, 3))
test_eq(
    selective._views(backbone, np.zeros((1, 480, 270, 3), np.uint8), np.ones((1, 480, 270), bool), True).pictures.shape[
        1:3
    ],
    (112, 64),
)


# %% [markdown]
# ## Lines that are kept
#
# A prompt says *what*; where the handle of the mug goes it does not say. Lines do. Two ways to find them need no weights: **edges** (Canny's detector: one pixel wide, wherever the brightness jumps) and **lineart** (the difference of two blurs, which is large along thin dark lines and rims; it keeps how strong a line is). Any detector of the package *controlnet_aux* can be named instead, if it is installed: `aux:HEDdetector`.

# %%
#| export
def edges(picture: Array, low: int = 60, high: int = 140, blur: float = 0.7) -> NDArray[np.float32]:
    """1 where the brightness of a picture (uint8, H×W×3) jumps, in lines one pixel wide (Canny)."""
    grey = cv2.GaussianBlur(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY), (0, 0), blur)
    return (cv2.Canny(grey, low, high) > 0).astype(np.float32)


def lineart(picture: Array, fine: float = 0.8, gain: float = 12.0) -> NDArray[np.float32]:
    """0 to 1: how much darker a picture is here than just around, as pencil lines are (a difference of Gaussians)."""
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    near, far = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (fine, 1.6 * fine))
    return np.asarray(np.tanh(gain * np.clip(far - near - 0.01, 0, None)), np.float32)


LINES: dict[str, Callable[[Array], NDArray[np.float32]]] = {"edges": edges, "lineart": lineart}


def lines_of(kind: str, pictures: Array) -> NDArray[np.float32]:
    """The lines of pictures (N×h×w×3), N×h×w from 0 to 1."""
    if kind in LINES:
        return np.stack([LINES[kind](picture) for picture in pictures])
    if not kind.startswith("aux:"):
        raise Refused(
            f"structure {kind!r} is not known; use {', '.join(LINES)}, or aux:NAME for a detector of controlnet_aux"
        )
    detect, size = _detector(kind[4:]), pictures.shape[1:3]
    return np.stack([_as_plane(detect(picture), size) for picture in pictures])


def _detector(name: str) -> Any:
    """A detector of controlnet_aux, with its weights if it has any."""
    try:
        package = importlib.import_module("controlnet_aux")
    except ImportError:
        raise Refused(
            f"structure 'aux:{name}' needs a package: pip install controlnet_aux; or use {', '.join(LINES)}"
        ) from None
    kind = getattr(package, name, None)
    if not callable(kind):
        known = ", ".join(each for each in dir(package) if each.endswith(("etector", "Detector")))
        raise Refused(f"structure 'aux:{name}': controlnet_aux has no {name}; it has {known}")
    return kind.from_pretrained("lllyasviel/Annotators") if hasattr(kind, "from_pretrained") else kind()


def _as_plane(found: Any, size: tuple[int, ...]) -> NDArray[np.float32]:
    """What a detector gives (a picture of whatever size and kind) as a plane from 0 to 1."""
    plane = np.asarray(found)
    plane = plane.max(2) if plane.ndim == 3 else plane
    plane = plane.astype(np.float32) / (255 if plane.dtype == np.uint8 else 1)
    return np.clip(_sized(plane, (int(size[0]), int(size[1]))), 0, 1)


# %%
#| label: fig-selective-lines
#| fig-cap: "The first scene and its lines, at its own size: Canny's edges, and lineart."
#| fig-alt: "A small scene, and two pictures with white lines on black: thin lines at every jump of brightness, and softer ones along dark rims."
fig, axes = plt.subplots(1, 3, figsize=(6.3, 2.3), layout="constrained")
for axis, (name, picture) in zip(
    axes, {"picture": scene, **{kind: lines_of(kind, scene[None])[0] for kind in LINES}}.items(), strict=True
):
    bare(axis, picture, name)
plt.show()

# %%
step = np.full((32, 32, 3), 40, np.uint8)
step[:, 16:] = 200
test_eq(edges(step).sum(1), np.ones(32))  # one line, one pixel wide
test_eq(edges(step * 0), np.zeros((32, 32)))
drawing = np.full((32, 32, 3), 230, np.uint8)
drawing[:, 15:17] = 30
line = lineart(drawing)
test_eq(set(line[10].argsort()[-2:].tolist()), {15, 16})
assert line.max() > 0.9 and line[:, :10].max() == 0
with expect_fail(Refused, "structure 'sketch' is not known; use edges, lineart"):
    lines_of("sketch", scene[None])

# %% [markdown]
# A **structure** says which lines, which model reads them, and where they hold: everywhere, inside, outside, or in a mask of their own. Several can be given at once, each with its place. The model is the project's own small adapter for edges (`mini-edges`), any `ControlAdapter` in a folder, or a ControlNet of diffusers, named as on the hub: `lllyasviel/control_v11p_sd15_canny`, `lllyasviel/control_v11p_sd15_lineart`.

# %%
#| export
PLACES_OF_LINES = ("all", "inside", "outside")


@dataclass(frozen=True, eq=False)
class Structure:
    """Lines that the result is to follow, what reads them, and where they hold."""

    lines: Any = "edges"  # a name, or lines from 0 to 1, H×W or N×H×W, of the picture's size
    model: Any = "mini-edges"  # a name or folder, or a ControlAdapter or ControlNetModel
    where: Any = "all"  # "inside", "outside", or a mask H×W or N×H×W of the picture's size
    scale: float = 1.0
    when: tuple[float, float] = (0.0, 1.0)  # from which share of the steps to which

    def __post_init__(self) -> None:
        if isinstance(self.where, str) and self.where not in PLACES_OF_LINES:
            raise Refused(f"structure: where={self.where!r}; use {', '.join(PLACES_OF_LINES)}, or a mask")
        if isinstance(self.lines, str) and self.lines not in LINES and not self.lines.startswith("aux:"):
            lines_of(self.lines, np.zeros((0, 1, 1, 3), np.uint8))  # says what is known

    @property
    def told(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "lines": self.lines if isinstance(self.lines, str) else "given",
            "model": self.model if isinstance(self.model, str | Path) else type(self.model).__name__,
            "where": self.where if isinstance(self.where, str) else "mask", "scale": self.scale, "when": list(self.when),
        }  # fmt: skip


def structure_model(backbone: "Backbone", model: Any) -> Any:
    """What reads lines for this backbone: an adapter, or a ControlNet."""
    from alignment_video.adapter import ControlAdapter
    from alignment_video.backbone import _ask_hub, _diffusers, read_model

    if not isinstance(model, str | Path):
        return model
    name = str(model)
    if name.startswith("mini") or (
        (Path(name) / "config.json").is_file() and _class_of(Path(name)) == "ControlAdapter"
    ):
        return ControlAdapter.load(name, backbone)
    if not Path(name).is_dir():
        try:
            name = str(_ask_hub(name, "config.json", "name 'mini-edges', a folder, or a ControlNet of the hub") or name)
        except Refused as error:
            raise Refused(f"structure model {name!r}: {error}") from None
    return read_model(_diffusers().ControlNetModel, name, None, backbone.dtype).to(backbone.device).eval()


def _class_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name"))
    except (ValueError, AttributeError, OSError):
        return ""


# %%
#| export
@dataclass(frozen=True, eq=False)
class _Lines:
    """A structure made ready: its model, and its lines and its place at the model's size."""

    structure: Structure
    model: Any
    lines: NDArray[np.float32]  # N×h×w
    where: NDArray[np.float32] | None

    def control(self, backbone: "Backbone", rows: Sequence[int]) -> Any:
        """What the loop is given for some of the frames."""
        import torch

        planes = torch.from_numpy(self.lines[list(rows)])[:, None].to(backbone.device)
        mask = None if self.where is None else torch.from_numpy(self.where[list(rows)])[:, None].to(backbone.device)
        how: dict[str, Any] = {"scale": self.structure.scale, "mask": mask, "when": self.structure.when}
        if hasattr(self.model, "features"):
            found: Features = features_of(backbone, self.model, planes, **how)
            return found
        channels = getattr(getattr(self.model, "config", None), "conditioning_channels", 3)
        return Network(self.model, planes.expand(-1, channels, -1, -1), **how)


def _ready(backbone: "Backbone", structure: Structure, frames: Array, views: _Views) -> _Lines:
    """The lines of a structure in the views of frames."""
    if isinstance(structure.lines, str):
        lines = lines_of(structure.lines, views.pictures)
    else:
        lines = np.clip(_cut(structure.lines, frames, views, "structure: lines"), 0, 1)
    where = None
    if not isinstance(structure.where, str):
        where = _cut(structure.where, frames, views, "structure: where")
    elif structure.where != "all":
        where = (views.masks if structure.where == "inside" else ~views.masks).astype(np.float32)
    return _Lines(structure, structure_model(backbone, structure.model), lines, where)


def _cut(planes: Any, frames: Array, views: _Views, name: str) -> NDArray[np.float32]:
    """Planes of the frames' size, as the model sees them."""
    planes = np.asarray(planes)
    planes = planes[None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or planes.shape[1:] != frames.shape[1:3] or len(planes) not in (1, len(frames)):
        raise Refused(
            f"{name} of {planes.shape}: give planes of the picture's size, {frames.shape[1]}×{frames.shape[2]}"
        )
    whole, size = np.broadcast_to(planes.astype(np.float32), frames.shape[:3]), views.masks.shape[1:]
    return np.stack(
        [_sized(np.ascontiguousarray(box.cut(each)), size) for each, box in zip(whole, views.boxes, strict=True)]
    )


# %% [markdown]
# How well a picture follows lines is measured by the lines that it has itself. **F1** is between 0 and 1: the share of its lines that were asked for, and the share of those asked for that it has, in one number. A line that is one pixel away counts as the same.

# %%
#| export
def edge_f1(found: Array, wanted: Array, within: int = 1) -> float:
    """How well lines agree (H×W or N×H×W, true where there is one), 0 to 1; so many pixels away is the same."""
    one, other = (
        np.atleast_3d(np.asarray(each) > 0.5) if np.ndim(each) != 2 else (np.asarray(each) > 0.5)[None]
        for each in (found, wanted)
    )
    if one.shape != other.shape:
        raise Refused(f"lines of {np.shape(found)} and {np.shape(wanted)}: bring them to one size")
    disc = np.ones((2 * within + 1, 2 * within + 1), np.uint8)
    shares = []
    for mine, theirs in ((one, other), (other, one)):
        near = np.stack([cv2.dilate(each.astype(np.uint8), disc) > 0 for each in theirs])
        shares.append((mine & near).sum() / max(1, mine.sum()))
    precision, recall = shares
    return float(2 * precision * recall / max(1e-9, precision + recall))


# %%
wanted = edges(scene)
test_eq(edge_f1(wanted, wanted), 1.0)
test_close(edge_f1(np.roll(wanted, 1, 1), wanted), 1.0, 0.06)
assert edge_f1(np.roll(wanted, 5, 1), wanted) < 0.8
test_eq(edge_f1(wanted * 0, wanted), 0.0)
with expect_fail(Refused, "bring them to one size"):
    edge_f1(wanted, wanted[:50])
with expect_fail(Refused, "structure 'sketch' is not known"):
    Structure("sketch")
with expect_fail(Refused, "where='middle'; use all, inside, outside"):
    Structure(where="middle")
with expect_fail(Refused, "structure: lines of (1, 5, 5)"):
    selective.select(backbone, scene, "a mug", mask=square, structure=selective.Structure(np.ones((5, 5))))
with expect_fail(Refused, "structure 'aux:HEDdetector' needs a package"):  # it is not installed where this page is made
    selective.select(backbone, scene, "a mug", mask=square, structure=selective.Structure("aux:HEDdetector"))


# %% [markdown]
# ## One step, two prompts
#
# A diffusion model draws in steps; at each it is asked what it would take away as noise. With two prompts it is asked twice, and the answers are **weighted by the mask**: inside counts the answer to the one, outside the answer to the other, and along a soft edge both. Then the step is done *once*, with the fused answer, and at the next both prompts look at the same half-finished picture. That is why light, ground and rims come to agree, which two finished pictures never do. The loop of [page 31](31_sampling.ipynb) can do this already: branches have maps as weights. Nothing is added to it here.

# %%
#| export
@dataclass(frozen=True, eq=False)
class _Said:
    """A prompt that the model is asked with, and where its answer counts."""

    name: str
    text: "Text"
    share: "Tensor | None" = None  # N×1×h×w, of latents; None: everywhere


def _branches(
    said: Sequence[_Said], negative: "Text", guidance: float, rows: Sequence[int], controlled: bool
) -> list[Branch]:
    """The questions of a step; their weights sum to one at every place."""
    found = [
        Branch(each.name, each.text, controlled, guidance if each.share is None else guidance * each.share[list(rows)])
        for each in said
    ]
    return found if guidance == 1 else [Branch("negative", negative, controlled, 1 - guidance), *found]


def _shares(backbone: "Backbone", masks: Array, edge: int) -> "Tensor":
    """How far latent pixels are inside, N×1×h×w: a soft edge, averaged over each."""
    import torch

    soft = torch.from_numpy(np.stack([wide_edge(mask, edge) for mask in masks]))[:, None]
    return torch.nn.functional.avg_pool2d(soft, backbone.factor).to(backbone.device)


# %%
inside_share = selective._shares(backbone, views.masks, 16)
test_eq(tuple(inside_share.shape), (1, 1, 16, 16))
print("one row of latents through the middle:", *(f"{share:.2f}" for share in inside_share[0, 0, 8].tolist()))


# %% [markdown]
# ## Frames that agree
#
# Drawn one by one, the mug of the second frame is another mug. Three things tie frames together: they begin with **the same noise**; their boxes show the subject in the same place; and every frame but the first **looks at the first**, whose attention layers were recorded ([page 40](40_regions.ipynb)), inside at its inside and outside at its outside.

# %%
#| export
@dataclass(frozen=True, eq=False)
class _Work:
    """Everything that is the same for all frames."""

    backbone: "Backbone"
    views: _Views
    negative: "Text"
    lines: Sequence[_Lines]
    settings: Selecting
    first: int  # the frame that the others look at
    tell: "Callable[[int, int], None] | None"

    def draw(self, said: Sequence[_Said]) -> Array:
        """All frames as the model draws them, N×h×w×3."""
        count = len(self.views)
        if count == 1 or not self.settings.sharing:
            return self._run(said, range(count))
        others, recording = [i for i in range(count) if i != self.first], Recording()
        apart = all(self._has_sides(rows) for rows in ([self.first], others))
        first = self._run(said, [self.first], [record_guest(recording)], apart)
        rest = self._run(said, others, [sharing_guest(recording, scale=self.settings.sharing)], apart)
        return np.stack([first[0] if i == self.first else rest[others.index(i)] for i in range(count)])

    def _has_sides(self, rows: Sequence[int]) -> bool:
        masks = self.views.masks[list(rows)]
        return bool(masks.any() and not masks.all())

    def _run(
        self, said: Sequence[_Said], rows: Sequence[int], guests: Sequence[Guest] = (), apart: bool = False
    ) -> Array:
        import torch

        from alignment_video.backbone import as_pictures, as_tensor

        backbone, settings, rows = self.backbone, self.settings, list(rows)
        pictures, schedule = as_tensor(self.views.pictures[rows]), settings.schedule(self.backbone.fills)
        inside = torch.from_numpy(self.views.masks[rows].astype(np.float32))[:, None]
        inside = torch.ones_like(inside) if self.views.whole else inside
        noise = common_noise(backbone, *pictures.shape[2:], settings.seed, "select")
        blank = backbone.fills and schedule.run == schedule.steps
        start = Start(backbone.encode(pictures), noise, blank=blank)
        if apart:
            sides = torch.from_numpy(self.views.masks[rows].astype(np.float32))[:, None]
            region = Region(sides, said[0].text)
            guests = [region_guest(backbone, region, leak=1.0, cross=False), *guests]  # it says what the sides are
        hole: Hole | None = hole_of(backbone, pictures, inside) if backbone.fills else None
        controls = [each.control(backbone, rows) for each in self.lines]
        latents = denoise(
            backbone, start, said[0].text, schedule=schedule, controls=controls, guests=guests, hole=hole,
            branches=_branches(said, self.negative, settings.guidance, rows, bool(controls)),
            edit=None if self.views.whole else latent_mask(backbone, inside, 0).round(),
            batch_size=settings.batch_size, progress=self.tell,
        )  # fmt: skip
        made: Array = as_pictures(backbone.decode(latents))
        return made


# %% [markdown]
# Does the *colour* stay? Every redrawn frame has its own small error, and over a pair it shows as a shift. So it is measured: the mean colour of the product changes by something from one frame to the next in the **original** too (light, shadow), and the edited pair should change by just that. What is missing to it is the **drift**. It is reported as it was drawn, and then bounded: the inside of a frame is moved in colour, as one, until its mean has changed as the original's did. `keep_colour=False` leaves that out.

# %%
#| export
def mean_colour(picture: Array, mask: Array) -> NDArray[np.float64]:
    """The mean of red, green and blue (0 to 255) in a mask."""
    return np.asarray(picture[np.asarray(mask) > 0.5].mean(0, dtype=np.float64))


def moved_colour(picture: Array, mask: Array, soft: Array, wanted: Array) -> Array:
    """A picture whose mean colour in a mask is the wanted one; it is moved as far as `soft` says, 0 to 1."""
    told, found = picture.astype(np.float32), picture
    told += random_generator("colour").uniform(-0.5, 0.5, picture.shape).astype(np.float32)  # or all round the same way
    for _ in range(16):  # what is cut off at black and white is made up for
        missing = wanted - mean_colour(found, mask)
        if np.abs(missing).max() < 0.005:
            break
        told += soft[..., None] * missing.astype(np.float32)
        found = np.where(soft[..., None] > 0, np.rint(np.clip(told, 0, 255)), picture).astype(np.uint8)
    return found


@dataclass(frozen=True)
class Drift:
    """How a product's mean colour changed from the first frame to another: in the original, as drawn, as given out."""

    frame: int
    original: tuple[float, ...]
    drawn: tuple[float, ...]
    final: tuple[float, ...]

    def off(self, what: str = "final") -> float:
        """By how much the change misses the original's, in grey levels."""
        return float(np.linalg.norm(np.subtract(getattr(self, what), self.original)))

    def share(self, what: str = "final") -> float:
        """The same as a share of the original's change."""
        return self.off(what) / max(float(np.linalg.norm(self.original)), 1e-9)


def _bound(
    frames: Array, masks: Array, pictures: Array, soft: Array, first: int, move: bool
) -> tuple[Array, list[Drift]]:
    """The pictures with their colour bounded, and how each drifted."""
    found, drifts = pictures.copy(), list[Drift]()
    start, made = mean_colour(frames[first], masks[first]), mean_colour(pictures[first], masks[first])
    for i in range(len(frames)):
        if i == first or not masks[i].any():
            continue
        change = mean_colour(frames[i], masks[i]) - start
        if move:
            found[i] = moved_colour(pictures[i], masks[i], soft[i], made + change)
        ways = (change, *(mean_colour(each[i], masks[i]) - made for each in (pictures, found)))
        drifts.append(Drift(i, *(tuple(np.round(way, 3).tolist()) for way in ways)))
    return found, drifts


# %%
warm = np.clip(scene + np.array([9.0, 2.0, -6.0]), 0, 255).astype(np.uint8)
back = moved_colour(warm, subject, soft_edge(subject), mean_colour(scene, subject))
test_close(mean_colour(back, subject), mean_colour(scene, subject), 0.05)
test_eq(back[soft_edge(subject) == 0], warm[soft_edge(subject) == 0])
bounded, (drift,) = selective._bound(
    np.stack([scene, scene]),
    np.stack([subject] * 2),
    np.stack([scene, warm]),
    np.stack([soft_edge(subject)] * 2),
    0,
    True,
)
print(f"drift as drawn: {drift.off('drawn'):.1f} grey levels; as given out: {drift.off():.2f}")
test_eq(bounded[0], scene)

# %% [markdown]
# ## The edit
#
# All of it in one function. What it gives back has the pictures, where they may differ from the source (`soft`), the lines that were followed, the drift, what no prompt had room for, and a description that says all that decided it: prompts, settings, the hash of the source and of the result, the models' fingerprints and the versions of the libraries.

# %%
#| export
SCHEMA = "alignment_video selection 1"


@dataclass(frozen=True, eq=False)
class Selected:
    """Edited pictures, and all that is known of how they came about."""

    pictures: Array  # N×H×W×3
    source: Array  # N×H×W×3
    masks: Array  # N×H×W, where the subject is
    soft: Array  # N×H×W: where it is 0, a picture is its source to the bit
    lines: Sequence[Array] = ()  # of each structure N×h×w, at the model's size
    alone: Sequence[Array] = ()  # fusion "alpha": the two edits before they were joined
    drift: Sequence[Drift] = ()
    cut: Mapping[str, str] = field(default_factory=dict)  # of each prompt what the model did not read
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def picture(self) -> Array:
        """The first picture."""
        found: Array = self.pictures[0]
        return found

    @property
    def differing(self) -> int:
        """How many pixels outside the soft edge differ from the source: none."""
        return int(((self.pictures != self.source).any(-1) & (self.soft == 0)).sum())

    def describe(self) -> dict[str, Any]:
        """What was made, of what and how; signed with its own hash."""
        told = {
            "schema": SCHEMA, **self.facts, "cut": dict(self.cut),
            "source": {"frames": len(self.source), "size": list(self.source.shape[1:3]), "sha256": _hash(self.source)},
            "mask": {"sha256": _hash(self.masks), "coverage": round(float(self.masks.mean()), 5)},
            "result": {"sha256": _hash(self.pictures), "untouched": int((self.soft == 0).sum()), "differing": self.differing},
            "drift": [asdict(each) for each in self.drift], "versions": versions(),
        }  # fmt: skip
        return signed(told)

    def __repr__(self) -> str:
        count, (high, wide) = len(self.pictures), self.pictures.shape[1:3]
        said = f"inside {self.facts.get('inside')!r}, outside {self.facts.get('outside') or 'untouched'!r}"
        drift = f", colour drift {max(each.off() for each in self.drift):.2f}" if self.drift else ""
        return f"Selected({count} × {high}×{wide}, {said}, {self.differing} pixels differ outside{drift})"


def _hash(planes: Array) -> str:
    return hashlib.sha256(str(planes.shape).encode() + np.ascontiguousarray(planes).tobytes()).hexdigest()


# %%
#| export
def select(
    backbone: "Backbone", source: Any, inside: str, outside: str | None = None, *, mask: Any = None,
    keyword: str | None = None, masker: MaskProvider | None = None, structure: Structure | Sequence[Structure] = (),
    negative: str = "", settings: Selecting = Selecting(), progress: Callable[[int, int], None] | None = None,
) -> Selected:  # fmt: skip
    """A picture, or frames, with the subject drawn from one prompt, and what is around it from another, or untouched."""
    prompts, frames = _prompts(inside, outside, negative), _frames(source)
    structures = (structure,) if isinstance(structure, Structure) else tuple(structure)
    for number, each in enumerate(structures):
        if not isinstance(each, Structure):
            raise Refused(f"structure {number} is of type {type(each).__name__}; write Structure('edges')")
    masks = _masks(frames, mask, keyword, masker)
    rooms = np.stack([widened(each, settings.room) for each in masks])
    fits = {name: fitted(backbone, prompt) for name, prompt in prompts.items()}
    texts = {name: backbone.encode_text(kept, negative=name == "negative") for name, (kept, _) in fits.items()}
    views = _views(backbone, frames, rooms, outside is not None, settings)
    lines = [_ready(backbone, each, frames, views) for each in structures]
    first = next(i for i, each in enumerate(rooms) if each.any())
    work = _Work(backbone, views, texts["negative"], lines, settings, first, progress)
    drawn, alone = _drawn(work, texts)
    soft = np.stack([_soft(room, box, views.whole) for room, box in zip(rooms, views.boxes, strict=True)])
    pictures, *before = (_laid(frames, views, soft, each) for each in (drawn, *alone))
    drift: list[Drift] = []
    if len(frames) > 1:
        reach = np.stack([wide_edge(room, settings.edge) for room in rooms]) if views.whole else soft
        pictures, drift = _bound(frames, masks, pictures, reach, first, settings.keep_colour)
    facts = _facts(backbone, prompts, keyword, lines, settings)
    cut = {name: lost for name, (_, lost) in fits.items() if lost}
    return Selected(pictures, frames, masks, soft, [each.lines for each in lines], before, drift, cut, facts)


def _drawn(work: _Work, texts: "Mapping[str, Text]") -> tuple[Array, list[Array]]:
    """The frames at the model's size; and, if two edits were joined, those two."""
    if "outside" not in texts:
        return work.draw([_Said("inside", texts["inside"])]), []
    if work.settings.fusion == "latent":
        share = _shares(work.backbone, work.views.masks, work.settings.edge)
        return work.draw([_Said("inside", texts["inside"], share), _Said("outside", texts["outside"], 1 - share)]), []
    inside, outside = (work.draw([_Said(name, texts[name])]) for name in ("inside", "outside"))
    return blended(inside, outside, work.views.masks, work.settings.edge), [inside, outside]


def blended(inside: Array, outside: Array, masks: Array, edge: int = 16) -> Array:
    """Two edits of the same pictures (N×h×w×3) joined along the mask's soft edge, as pictures are glued together."""
    soft = np.stack([wide_edge(mask, edge) for mask in masks])[..., None]
    return np.asarray(np.rint(soft * inside.astype(np.float32) + (1 - soft) * outside), np.uint8)


def _soft(room: Array, box: Box, whole: bool) -> NDArray[np.float32]:
    """Where a frame may differ: everywhere, or the mask and its soft edge."""
    found = np.full(room.shape, float(whole), np.float32)
    if not whole and room.any():
        box.cut(found)[:] = soft_edge(box.cut(room))
    return found


def _laid(frames: Array, views: _Views, soft: Array, drawn: Array) -> Array:
    """The frames with what was drawn in its place."""
    each = zip(frames, views.boxes, drawn.astype(np.float32), soft, strict=True)
    return np.stack([pasted(frame, box, made, box.cut(edge))[0] for frame, box, made, edge in each])


def _facts(
    backbone: "Backbone", prompts: Mapping[str, str], keyword: str | None, lines: Sequence[_Lines], settings: Selecting
) -> dict[str, Any]:
    """What decided the result, in words and numbers."""
    from alignment_video.training import fingerprint

    model = {"name": Path(backbone.name).name, "fingerprint": fingerprint(backbone), "fills": backbone.fills}
    told = [{**each.structure.told, "fingerprint": fingerprint(each.model)} for each in lines]
    return {**prompts, "keyword": keyword, "settings": asdict(settings), "backbone": model, "structure": told}


# %% [markdown]
# ### On a frame of any size
#
# A frame of 480 × 270 pixels. The subject is found by its keyword; the letters and lights around it stay.

# %%
#| label: fig-selective-frame
#| fig-cap: "A frame of 480 × 270 pixels; its subject, found by a keyword, is drawn anew. On the right, what changed."
#| fig-alt: "Three upright pictures: a scene with a product; the same scene with another product in its place; a black picture in which only a patch around the product is not black."
ad = Ad(36_400_000)
t = ad.starts[1] + 8
frame = ad.draw(t)[0]
made = select(backbone, frame, "a perfume", keyword=ad.keyword, settings=Selecting(steps=12, room=0.12))
fig, axes = plt.subplots(1, 3, figsize=(6.3, 3.9), layout="constrained")
bare(axes[0], frame, f"the original: a {ad.keyword}")
bare(axes[1], made.picture, "inside “a perfume”")
bare(axes[2], np.abs(made.picture.astype(int) - frame).max(-1), "what changed")
plt.show()
print(made)

# %%
test_eq(made.differing, 0)
test_eq(made.picture[made.soft[0] == 0], frame[made.soft[0] == 0])
told = made.describe()
print({name: told[name] for name in ("inside", "keyword", "backbone")})
test_eq(
    select(backbone, frame, "a perfume", keyword=ad.keyword, settings=Selecting(steps=12, room=0.12)).describe(), told
)


# %% [markdown]
# The same call gives the same bytes, and so the same description, to the last hash.
#
# ## How visible is the seam?
#
# Where two edits meet, there may be a step in colour or brightness that neither of them has there. A **seam** is measured as that: all along the mask's rim, the mean colour just inside is compared with that just outside; the square of the step is its *energy*. Three things must not count. The product may touch the rim, and of course it has another colour than the ground: so the *typical* place along the rim is taken, the median, and not the mean. Pictures have steps of their own: so the energy that the two edits, each for itself, have along the same rim is taken away. And a blur hides a step without mending it: so the pixels of the soft edge are left out on both sides. What is left is what joining added. 0 is nothing; below 0 the rim is smoother than in either.

# %%
#| export
def seam(picture: Array, mask: Array, alone: Sequence[Array] = (), edge: int = 16) -> float:
    """The energy of the step in colour across a mask's rim (grey levels squared), beyond that of the pictures `alone`."""
    mask = np.asarray(mask) > 0.5
    soft = wide_edge(mask, edge)
    rim, inside, outside = (soft > 0.25) & (soft < 0.75), (soft > 0.99) & mask, (soft < 0.01) & ~mask
    part = max(1, edge // 2)  # a window that reaches beyond the soft edge to both sides
    side = 2 * max(1, round(min(mask.shape) / part)) + 1
    for near in (inside, outside):
        rim &= cv2.blur(near.astype(np.float32), (side, side)) > 0
    if not rim.any():
        raise Refused(
            f"seam: a mask of {mask.shape} on {mask.mean():.0%} of the pixels has no rim between two sides; use a finer edge"
        )

    def energy(each: Array) -> float:
        planes = each.astype(np.float32)
        step = local_mean(planes, inside, part) - local_mean(planes, outside, part)
        return float(np.median((step[rim] ** 2).mean(1)))

    return energy(picture) - (float(np.mean([energy(each) for each in alone])) if len(alone) else 0.0)


# %%
flat = np.full((64, 64, 3), 120, np.uint8)
middle = np.zeros((64, 64), bool)
middle[18:46, 18:46] = True
lighter = np.where(middle[..., None], flat + 20, flat).astype(np.uint8)
test_close(seam(lighter, middle), 400, 1)
test_close(seam(flat, middle), 0, 1e-6)
test_close(seam(lighter, middle, [lighter, lighter]), 0.0, 1e-6)  # a step that the pictures have themselves is no seam
hidden = blended(flat[None] + np.uint8(20), flat[None], middle[None])[0]
test_close(seam(hidden, middle, [flat, flat]), 400, 10)  # and a blur does not hide one
with expect_fail(Refused, "seam: a mask of (64, 64) on 0%"):
    seam(flat, middle & False)

# %% [markdown]
# Now both ways to join two prompts, on the same scenes, with the same noise: fused in every step, and drawn apart and glued along the same soft edge.

# %%
#| label: fig-selective-seam
#| fig-cap: "Two prompts, “a lipstick” inside and a place outside. Above, fused in every step; below, two finished pictures joined along the same soft edge. Under each, the energy of its seam."
#| fig-alt: "Two rows of four small scenes with a lipstick on different grounds. In the upper row the ground goes on up to the lipstick; in the lower row the lipstick sits in a patch of another ground."
places, seeds = ("beach", "wood", "bricks", "leaves"), (36_400_012, 36_400_027, 36_400_028, 36_400_016)
pairs, seams = [], []
for seed, place in zip(seeds, places, strict=True):
    given = still(seed, (64, 64), prominence=0.8)
    around = room_around(given.mask)
    ways = {
        way: select(backbone, given.image, "a lipstick", place, mask=around, settings=Selecting(steps=12, fusion=way))
        for way in FUSIONS
    }
    alone = [each[0] for each in ways["alpha"].alone]
    pairs.append([each.picture for each in ways.values()])
    seams.append([seam(each.picture, around, alone) for each in ways.values()])
fig, axes = plt.subplots(2, 4, figsize=(7.4, 4.3), layout="constrained")
for column, (pictures, energies) in enumerate(zip(pairs, seams, strict=True)):
    for row, (picture, energy) in enumerate(zip(pictures, energies, strict=True)):
        bare(axes[row, column], picture, f"{places[column]}: {energy:.0f}")
plt.show()
table = pd.DataFrame(seams, columns=["fused", "glued"], index=places).round(-1).astype(int)
table

# %%
fused, glued = np.mean(seams, 0)
print(f"mean energy of the seam: fused {fused:.0f}, glued {glued:.0f}")
assert fused < glued

# %% [markdown]
# *Look at* the ground right beside the lipstick. Glued, the lipstick brings its own patch of ground along; fused, the ground goes on up to the lipstick.
#
# ## Do the lines hold?
#
# The first scene drawn anew as a whole, once with its edges as a control and once without, and the edges of the results against those asked for.

# %%
#| label: fig-selective-structure
#| fig-cap: "The edges of a scene; the scene drawn anew with them as a control, everywhere and inside only, and without."
#| fig-alt: "Four small pictures: white edges on black, a scene whose outlines follow them, one in which only the product does, and one that does not."
small = still(36_400_016, (64, 64), prominence=0.8)
adapter = ControlAdapter.load("mini-edges", backbone)
ways = {
    "everywhere": [Structure(model=adapter)],
    "inside only": [Structure(model=adapter, where="inside")],
    "no lines": [],
}
results = {
    name: select(backbone, small.image, f"a {small.keyword}", "bricks", mask=small.mask, structure=how, settings=quick)
    for name, how in ways.items()
}
asked = edges(small.image)
fig, axes = plt.subplots(1, 4, figsize=(8.4, 2.4), layout="constrained")
bare(axes[0], asked, "edges")
scores = {}
for axis, (name, each) in zip(axes[1:], results.items(), strict=True):
    scores[name] = edge_f1(edges(each.picture), asked)
    bare(axis, each.picture, f"{name}: F1 {scores[name]:.2f}")
plt.show()

# %%
assert scores["everywhere"] > scores["no lines"] + 0.1
both_at_once = select(
    backbone, small.image, f"a {small.keyword}", "bricks", mask=small.mask, settings=quick,
    structure=[Structure(model=adapter, where="inside"), Structure(model=adapter, where="outside")],
)  # fmt: skip
score = edge_f1(edges(both_at_once.picture), asked)
print(f"two structures at once, one inside and one outside: F1 {score:.2f}")
assert score > scores["no lines"] + 0.1

# %% [markdown]
# ## The same in the next frame
#
# Two frames of a scene that moves, half a second apart. The prompt also says what the product stands before, so that the ground inside the mask fits. The product is drawn anew in both: once each for itself, and once with the second looking at the first.

# %%
#| label: fig-selective-pair
#| fig-cap: "Two frames of a moving scene, and their product drawn anew: each for itself, and with the second frame looking at the first."
#| fig-alt: "Two rows of three pictures: the original pair, a pair in which the product differs from frame to frame, and a pair in which it looks the same."
film = Scene("pair", 36_400_063, size=(96, 96), frames=13, rate=24, keyword="bottle", prominence=0.8)
shots = [film.draw(t) for t in (0, 12)]
clip = np.stack([picture for picture, _ in shots])
product = np.stack([np.take([layer.kind == PRODUCT for layer in film.layers], front) for _, front in shots])
where = np.stack([room_around(each) for each in product])
ways = {"apart": Selecting(steps=12, sharing=0, keep_colour=False), "together": Selecting(steps=12)}
clips = {name: select(backbone, clip, "a lipstick, bricks", mask=where, settings=how) for name, how in ways.items()}
fig, axes = plt.subplots(2, 3, figsize=(6.3, 4.4), layout="constrained")
for column, (name, pictures) in enumerate(
    {"original": clip, **{name: each.pictures for name, each in clips.items()}}.items()
):
    for row in (0, 1):
        bare(axes[row, column], pictures[row], f"{name}, frame {12 * row}")
plt.show()
for name, each in clips.items():
    print(
        f"{name}: the colour's change misses the original's by {each.drift[0].off('drawn'):.1f} as drawn, {each.drift[0].off():.2f} as given out"
    )

# %%
assert clips["together"].drift[0].share() < 0.1
for each in clips.values():
    test_eq(each.differing, 0)

# %% [markdown]
# ## Files
#
# `select_file` reads a picture or a video, edits it and writes the result under its name when it is whole: a picture as PNG or JPEG, a video as MP4 with its sound. Beside it lies the description, as JSON. In a shell: `alignment-video select picture.png --inside "a mug" --outside beach --keyword shoe --structure edges --out result.png`.
#
# Every frame of a clip is drawn, so this is for pairs and short clips; a long video is edited at a few keyframes, from which motion carries the rest.

# %%
#| export
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MOST_FRAMES = 300


def select_file(
    source: str | Path, inside: str, outside: str | None = None, *, out: str | Path, structure: Any = None,
    keyword: str | None = None, mask: Any = None, model: Any = "mini-words", device: str = "auto", masker: Any = None,
    negative: str = "", settings: Selecting = Selecting(), progress: Callable[[int, int], None] | None = None,
) -> Selected:  # fmt: skip
    """Edit a picture or a video; the result, and `.json` beside it with its description, appear when they are whole."""
    from alignment_video.backbone import Backbone
    from alignment_video.masks import KeywordMasker

    source, out = Path(source), Path(out)
    video = source.suffix.lower() not in _PICTURES
    _check_out(source, out, video)
    _prompts(inside, outside, negative)
    structures = _structures(structure)
    frames = _read_video(source) if video else read_picture(source)
    mask = read_mask(mask) if isinstance(mask, str | Path) else mask
    backbone = model if isinstance(model, Backbone) else Backbone.from_pretrained(str(model), device=device)
    finder = KeywordMasker.from_pretrained(masker, device) if isinstance(masker, str | Path) else masker
    found = select(
        backbone, frames, inside, outside, mask=mask, keyword=keyword, masker=finder, structure=structures,
        negative=negative, settings=settings, progress=progress,
    )  # fmt: skip
    out.with_suffix(".json").unlink(missing_ok=True)  # it would tell of another result
    _write_video(source, out, found.pictures) if video else save_picture(out, found.picture)
    files = {name: {"name": path.name, "sha256": file_hash(path)} for name, path in (("from", source), ("file", out))}
    write_json(out.with_suffix(".json"), signed({**found.describe(), **files}))
    return found


def _structures(structure: Any) -> tuple[Structure, ...]:
    """None, a name, a Structure, or several."""
    given = () if structure is None else (structure,) if isinstance(structure, str | Structure) else tuple(structure)
    return tuple(each if isinstance(each, Structure) else Structure(each) for each in given)


def _check_out(source: Path, out: Path, video: bool) -> None:
    """The result has a name of its own, of a kind that can be written."""
    if not source.is_file():
        raise Refused(f"{source}: there is no such file")
    kinds = (".mp4",) if video else (".png", ".jpg", ".jpeg")
    if out.suffix.lower() not in kinds:
        raise Refused(
            f"{out}: the result of a {'video' if video else 'picture'} is written as {' or '.join(kinds)}; name it so"
        )
    if out.resolve() == source.resolve():
        raise Refused(f"{out}: this is the source itself; give the result another name")


def _read_video(source: Path) -> Array:
    count = probe(source).frames
    if not 2 <= count <= MOST_FRAMES:
        way_out = "save it as a picture" if count < 2 else f"cut out a part of at most {MOST_FRAMES}"
        raise Refused(f"{source}: a clip of {count} frame{'s' * (count != 1)}, and every frame is drawn; {way_out}")
    return np.stack([frame.image for frame in read_frames(source)])


def _write_video(source: Path, out: Path, pictures: Array) -> None:
    """The pictures with the times and the sound of their source."""
    info = probe(source)
    with VideoWriter(out, like=info, sound_from=source if info.has_sound else None) as writer:
        for frame, picture in zip(read_frames(source), pictures, strict=True):
            writer.write(picture, frame.time, frame.duration)


# %%
with tempfile.TemporaryDirectory() as folder:
    from_file, to_file = Path(folder) / "scene.png", Path(folder) / "result.png"
    save_picture(from_file, scene)
    found = select_file(from_file, "a hat", "beach", mask=square, out=to_file, model=backbone, settings=quick)
    test_eq(read_picture(to_file), both.picture)
    note = json.loads(to_file.with_suffix(".json").read_text(encoding="utf-8"))
    test_eq(note["file"]["sha256"], file_hash(to_file))
    test_eq(signed(note)["sha256"], note["sha256"])
    print(sorted(path.name for path in Path(folder).iterdir()))
    for wrong, line in (
        ({"out": "result.gif"}, "written as .png or .jpg or .jpeg"),
        ({"out": from_file}, "this is the source itself"),
        ({"source": "nowhere.png"}, "there is no such file"),
        ({"structure": "sketch"}, "structure 'sketch' is not known"),
    ):
        with expect_fail(Refused, line):
            select_file(
                **{"source": from_file, "inside": "a mug", "mask": square, "out": to_file, "model": backbone, **wrong}
            )

# %% [markdown]
# ## A large model
#
# | what | name it, for example | |
# |---|---|---|
# | an inpainting model (it reads the hole, and what is around it) | `stable-diffusion-v1-5/stable-diffusion-inpainting`, `stabilityai/stable-diffusion-2-inpainting` | `model=` |
# | a plain one (it starts from the noised picture: `strength`) | `stable-diffusion-v1-5/stable-diffusion-v1-5` | `model=` |
# | edges | `lllyasviel/control_v11p_sd15_canny` | `Structure("edges", …)` |
# | lineart | `lllyasviel/control_v11p_sd15_lineart` | `Structure("aux:LineartDetector", …)` or `Structure("lineart", …)` |
# | a mask model | `CIDAS/clipseg-rd64-refined` | `masker=` |
#
# Nothing on this page was measured with them. That the same code runs with their kind of network is tested: below with Stable Diffusion 1.5's own blocks and layers, an eighth as wide and untrained, and a ControlNet of the same make. What it draws is noise, and is not shown.

# %%
with tempfile.TemporaryDirectory() as folder:
    large = Backbone.from_pretrained(write_untrained(folder, "sd15"), device="cpu")
net = _diffusers().ControlNetModel.from_unet(large.unet)
few = Selecting(steps=2, strength=1.0, side=64)
for prompts in (("a gold watch",), ("a gold watch", "a beach at noon")):
    rough = select(
        large, small.image, *prompts, mask=small.mask, settings=few,
        structure=[Structure("edges", net, "inside"), Structure("lineart", net, "outside", scale=0.5)],
    )  # fmt: skip
    test_eq(rough.differing, 0)
    test_eq(rough.picture.shape, small.image.shape)
print(large.fills, [entry["model"] for entry in rough.facts["structure"]])

# %% [markdown]
# ## What this page does not do
#
# * It replaces no product in a whole video. That is [a page of its own](41_local_edit.ipynb), which edits keyframes and lets motion carry them.
# * It finds no seam that a person would find and the measure would not. Read the number as *less than*, not as *invisible*.
# * A bounded colour is a moved mean. A product that was drawn differently in two frames stays different; the sharing is there for that, and it is not perfect.
# * The miniature draws fourteen products and ten places, at 64 pixels. How often its results are what was asked for is measured on held-out scenes in [the evidence](98_selections.ipynb).
