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
#| default_exp mini_words

# %% [markdown]
# # A miniature that draws what words say
#
# > How the small inpainting model was trained that replaces one product by another: its crops, its holes, an adapter for edges, and a second judge.

# %% [markdown]
# The [miniature Stable Diffusion](91_mini_diffusion.ipynb) draws places from words. Products it does not draw: something stands in the middle, and hardly anybody would call it a mug. For turning attention up and down that is enough, since the product is there already. To put a bracelet where a necklace was, it is not.
#
# This page trains a second miniature for that, from the first. It has the same autoencoder, the same text encoder and the same U-Net, but for one thing: it is an **inpainting** model. Beside the noisy latents its U-Net reads where a hole is, and the picture around it. So it need not invent the whole scene, and all that it learns goes into what was asked for. Stable Diffusion has such models as well, in the same form.

# %%
import tempfile

import matplotlib.pyplot as plt
import torch
from fastcore.test import expect_fail, test_close, test_eq

from alignment_video.adapter import ControlAdapter
from alignment_video.core import weights

# %%
#| export
import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from zipfile import BadZipFile, ZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment_video.backbone import Backbone, _diffusers, add_noise, as_pictures, as_tensor, noise_schedule
from alignment_video.core import Refused, atomic_path, random_generator, write_json
from alignment_video.mini_diffusion import (
    _MARGIN,
    NOISE,
    SIDE,
    Recipe,
    Recogniser,
    Run,
    _drawn_prompts,
    _fill,
    _read,
    _standard,
    _velocity,
    _window,
    place_of,
    save_pipeline,
    world_prompts,
)
from alignment_video.sampling import Guidance, Hole, Schedule, Start, denoise, features_of, hole_of
from alignment_video.world import PLACES, PRODUCTS, still

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]

# %% [markdown]
# ## Crops and holes
#
# An editor looks at a part of a frame around the product, not at the frame. So do the training pictures: stills of 128 pixels, cut to a square between 1.2 and 2.6 times the product's box, shifted, and brought to 64 pixels. Products are then large enough to be drawn by latents a quarter as wide. They are of prominence 0.35 and more; what nobody sees, nobody can learn to draw.
#
# A hole around a product must not tell what it was. Later the hole is cut around a necklace, and a mug is asked for; a model that had only seen holes of the product's own form would look at the form and not at the word. So holes are squares, ellipses, or another product's silhouette laid over this one; wider than needed, shifted, with bays closed.

# %%
#| export
TRAINING_SEEDS, HELD_OUT_SEEDS = 32_000_000, 33_000_000  # of the stills; no other page draws from these
MEASURED_SEEDS, STILLS = 33_500_000, 4000
KINDS = ("inside", "inside too", "outside")
_PARTS = ("picture", "mask", "product", "place", "seed", "hole", "latents", "around")


def crop_around(rng: np.random.Generator, picture: Array, mask: Array) -> tuple[Array, Array]:
    """A square around the product, 1.2 to 2.6 times its box and shifted, at the miniature's size."""
    x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
    least, most = max(wide, high), min(picture.shape[:2])
    side = int(np.clip(round(least * rng.uniform(1.2, 2.6)), least, most))
    left, top = (
        int(np.clip(round(first + size / 2 - side / 2 + rng.uniform(-0.4, 0.4) * (side - size)), 0, whole - side))
        for first, size, whole in ((x, wide, picture.shape[1]), (y, high, picture.shape[0]))
    )
    part = slice(top, top + side), slice(left, left + side)
    share = cv2.resize(mask[part].astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.resize(picture[part], (SIDE, SIDE), interpolation=cv2.INTER_AREA), share >= 0.5


def _grown(mask: Array, reach: int) -> Array:
    """The mask and all that is no further than so many pixels from it."""
    shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(mask.astype(np.uint8), shape) > 0


def _closed(mask: Array, reach: int = 9) -> Array:
    """The mask without bays and gaps that are narrower than so many pixels to both sides."""
    far = np.pad(_grown(np.pad(mask, reach), reach), 1)
    return ~_grown(~far, reach)[reach + 1 : -reach - 1, reach + 1 : -reach - 1]


def square_around(mask: Array, times: float = 1.1, shift: tuple[float, float] = (0.0, 0.0)) -> Array:
    """A square around the mask's box, so many times its longer side."""
    x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
    reach = max(wide, high) * times / 2
    rows, columns = np.indices(mask.shape)
    down, right = rows - (y + high / 2 - 0.5 + shift[0] * reach), columns - (x + wide / 2 - 0.5 + shift[1] * reach)
    return np.asarray(np.maximum(abs(down), abs(right)) <= reach)


def _ellipse_around(mask: Array, times: float) -> Array:
    x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
    rows, columns = np.indices(mask.shape)
    down, right = (rows - (y + high / 2 - 0.5)) / high, (columns - (x + wide / 2 - 0.5)) / wide
    return np.asarray(down**2 + right**2 <= times**2 / 2)


def _moved_onto(mask: Array, other: Array, times: float) -> Array:
    """Another product's silhouette, brought to the longer side of this one's box."""
    x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
    left, top, broad, tall = cv2.boundingRect(other.astype(np.uint8))
    scale = times * max(wide, high) / max(broad, tall)
    middle = x + wide / 2 - scale * (left + broad / 2), y + high / 2 - scale * (top + tall / 2)
    move = np.array([[scale, 0, middle[0]], [0, scale, middle[1]]])
    return cv2.warpAffine(other.astype(np.float32), move, mask.shape[::-1]) >= 0.5


def hole_around(rng: np.random.Generator, mask: Array, other: Array) -> Array:
    """Where a product is to be drawn: room for it, in a shape that does not tell what it is."""
    kind, times = rng.random(), rng.uniform(1.0, 1.5)
    if kind < 0.4:
        room = square_around(mask, times, tuple(rng.uniform(-0.1, 0.1, 2)))
    elif kind < 0.55:
        room = _ellipse_around(mask, times)
    else:
        room = _moved_onto(mask, other, times)
    return np.asarray(_closed(_grown(room | _grown(mask, 1), int(rng.integers(0, 4)))))


def hole_outside(rng: np.random.Generator, mask: Array) -> Array:
    """Where a background is to be drawn: all but the product and a little around it."""
    return ~_grown(mask, int(rng.integers(0, 5)))


# %%
#| export
def draw_crops(first: int, count: int, size: int = 128, least: int = 80) -> dict[str, Array]:
    """Crops of stills, with two holes around the product and one outside it."""
    cv2.setNumThreads(1)
    rows, other = dict[str, list[Any]](), None
    for seed in range(first, first + count):
        rng = random_generator("crop", seed)
        drawn = still(seed, (size, size), prominence=rng.uniform(0.35, 0.95))
        if not drawn.mask.any():
            continue
        picture, mask = crop_around(rng, drawn.image, drawn.mask)
        if mask.sum() < least:
            continue
        silhouette = mask if other is None else other
        holes = [hole_around(rng, mask, silhouette), hole_around(rng, mask, silhouette), hole_outside(rng, mask)]
        found = picture, mask, PRODUCTS.index(drawn.keyword), PLACES.index(place_of(seed)), seed, np.stack(holes)
        for name, value in zip(_PARTS, found, strict=False):
            rows.setdefault(name, []).append(value)
        other = mask
    if not rows:
        raise Refused(f"no product is seen in the {count} stills from {first} on; draw more")
    return {name: np.stack(values) for name, values in rows.items()}


# %% [markdown]
# Each crop gets two holes around its product, and a third one that is everything *but* the product, for drawing backgrounds.

# %%
#| label: fig-mini-words-holes
#| fig-cap: Held-out crops (above), and below each of them the three holes that it comes with.
#| fig-alt: Eight small scenes with a product in the middle. Under each, the same scene with a grey shape over the product, with another grey shape, and with everything grey but the product. The shapes are squares, ovals and blobs.
torch.set_num_threads(1)
crops = draw_crops(HELD_OUT_SEEDS, 24)
fig, axes = plt.subplots(4, 8, figsize=(9.6, 4.9), layout="constrained")
for column, (picture, holes) in enumerate(zip(crops["picture"][:8], crops["hole"], strict=False)):
    shown = [picture, *(np.where(hole[..., None], np.uint8(127), picture) for hole in holes)]
    for axis, each in zip(axes[:, column], shown, strict=True):
        axis.imshow(each)
        axis.set_axis_off()

# %% [markdown]
# *Look at* the second and third row: what was there can at times be guessed from the size of a hole, but hardly from its form.

# %%
covered = crops["hole"][:, :2] & crops["mask"][:, None]
test_eq(
    covered.sum((2, 3)), np.repeat(crops["mask"].sum((1, 2))[:, None], 2, 1)
)  # the product is in the hole, all of it
assert not (crops["hole"][:, 2] & crops["mask"]).any()  # and not in the third one
assert (crops["hole"][:, :2].mean((2, 3)) > 1.15 * crops["mask"].mean((1, 2))[:, None]).all()
with expect_fail(Refused, "no product is seen in the 2 stills"):
    draw_crops(HELD_OUT_SEEDS, 2, least=5000)


# %% [markdown]
# The autoencoder's part of the work is done once: the latents of each crop, and for each hole the latents of the crop with grey in the hole. That is what the U-Net will read.

# %%
#| export
def encode_crops(backbone: Backbone, crops: Mapping[str, Array]) -> dict[str, Array]:
    """The crops with their latents, and for each hole what is around it."""
    import torch

    holes = list[Hole]()
    with torch.inference_mode():
        pictures = as_tensor(crops["picture"])
        latents = backbone.encode(pictures, batch_size=32)
        for kind in range(len(KINDS)):
            holes.append(hole_of(backbone, pictures, crops["hole"][:, kind, None].astype(np.float32)))
    return {
        **crops,
        "hole": np.stack([hole.mask[:, 0].cpu().numpy() > 0.5 for hole in holes], 1),
        "around": np.stack([hole.around.cpu().half().numpy() for hole in holes], 1),
        "latents": latents.cpu().half().numpy(),
    }


def _is_there(path: Path) -> bool:
    """Whether a file of crops is there to its end."""
    try:
        with ZipFile(path) as file:
            return {f"{name}.npy" for name in _PARTS} <= set(file.namelist())
    except (OSError, BadZipFile):
        return False


def write_crops(folder: str | Path, count: int, first: int = TRAINING_SEEDS, each: int = 1000) -> list[Path]:
    """Crops and their latents, in files of a thousand stills; what is there is not made again."""
    backbone = Backbone.from_pretrained("mini", "cpu")
    starts = range(first, first + count, each)
    paths = [Path(folder) / f"{start:08d}-{min(each, first + count - start)}.npz" for start in starts]
    for start, path in zip(starts, paths, strict=True):
        if not _is_there(path):
            found = encode_crops(backbone, draw_crops(start, min(each, first + count - start)))
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **found)  # type: ignore[arg-type]
    return paths


def read_crops(folder: str | Path) -> dict[str, Array]:
    """All crops of a folder, in the order of their seeds."""
    paths = sorted(Path(folder).glob("[!.]*.npz"))
    if not paths:
        raise Refused(f"{folder}: no files with crops; draw them with write_crops")
    parts = list[dict[str, Array]]()
    for path in paths:
        if not _is_there(path):
            raise Refused(f"{path}: not whole; write_crops draws it again")
        with np.load(path, allow_pickle=False) as file:
            parts.append({name: file[name] for name in _PARTS})
    return {name: np.concatenate([part[name] for part in parts]) for name in _PARTS}


# %%
home = tempfile.TemporaryDirectory()
folder = Path(home.name)
paths = write_crops(folder / "crops", 24, HELD_OUT_SEEDS, each=12)
paths[1].write_bytes(paths[1].read_bytes()[:1000])
with expect_fail(Refused, "not whole; write_crops draws it again"):
    read_crops(folder / "crops")
write_crops(folder / "crops", 24, HELD_OUT_SEEDS, each=12)
few = read_crops(folder / "crops")
print({name: (str(part.dtype), part.shape) for name, part in few.items()})
test_eq(few["seed"], crops["seed"])
with expect_fail(Refused, "no files with crops; draw them with write_crops"):
    read_crops(folder / "nothing")

# %% [markdown]
# ## Nine channels
#
# The first layer of the U-Net gets five channels more: the hole, and four of the latents around it. Their weights begin at zero, so the new U-Net begins as the old one and loses nothing of what that had learnt.
#
# In training, a fifth of the samples has a hole that is everything, so that the model can also draw with nothing given; a fifth draws the background; the others draw the product. Prompts are those of the first miniature, halves and none included. The text encoder stays as it is.
#
# The loss is the squared error of the velocity. It counts a tenth outside the hole, where there is nothing to invent, and twice on the product. Timesteps are drawn with more weight on noisy ones, where shapes are decided.

# %%
#| export
WORDS = Recipe(3000, batch_size=16, learning_rate=8e-4, warm=100, decay=0.01)
_EVERYTHING, _OUTSIDE = 0.2, 0.2  # how often all is drawn, and the background; else it is the product


def inpainting_unet(unet: Any) -> Any:
    """A copy of a U-Net that also reads a hole and what is around it; at first it does not listen."""
    import torch

    found, old, more = deepcopy(unet), unet.conv_in, unet.config.in_channels + 1
    wide = torch.nn.Conv2d(old.in_channels + more, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : old.in_channels] = old.weight
    wide.bias = deepcopy(old.bias)
    found.conv_in = wide.to(old.weight)
    found.register_to_config(in_channels=old.in_channels + more)
    return found


def _drawn_kinds(rng: np.random.Generator, count: int, everything: float = _EVERYTHING) -> Array:
    """For each of so many samples: 0 or 1 for a hole around the product, 2 for one outside, 3 for everything."""
    chance = rng.random(count)
    return np.select([chance < everything, chance < everything + _OUTSIDE], [3, 2], rng.integers(0, 2, count))


def _of_kinds(crops: Mapping[str, Array], chosen: Array, kinds: Array, grey: Array) -> tuple[Array, Array]:
    """The holes and what is around them, of the kinds that were drawn."""
    some, all_of_it = np.minimum(kinds, 2), (kinds == 3)[:, None, None, None]
    hole = crops["hole"][chosen, some][:, None] | all_of_it
    return hole.astype(np.float32), np.where(all_of_it, grey, crops["around"][chosen, some]).astype(np.float32)


def _asked(rng: np.random.Generator, crops: Mapping[str, Array], chosen: Array, kinds: Array) -> Array:
    """Numbers of prompts; half of those for a product's hole say only the product, since the place can be seen."""
    prompts = _drawn_prompts(rng, crops["product"][chosen], crops["place"][chosen])
    alone = (kinds < 2) & (rng.random(len(chosen)) < 0.5)
    return np.where(alone, len(PRODUCTS) * len(PLACES) + crops["product"][chosen].astype(int), prompts)


def _weights_of(hole: "Tensor", product: "Tensor") -> "Tensor":
    """How much each place counts: little outside the hole, twice as much where the product is drawn."""
    weight = 0.1 + hole * (1 + product)
    return weight / weight.mean((1, 2, 3), keepdim=True)


def words_loss(
    run: Run, unet: Any, texts: "Tensor", grey: Array, crops: Mapping[str, Array], adapter: Any = None
) -> Any:
    """What a step of training asks: the velocity in noisy latents, given a hole, what is around it, and a prompt."""
    import torch
    from torch.nn.functional import max_pool2d

    schedule, device = noise_schedule(NOISE), run.device
    small = device.type == "cpu" and torch.cpu._is_amx_tile_supported()

    def given(values: Array) -> "Tensor":
        return torch.from_numpy(values.astype(np.float32)).to(device)

    def loss_of(rng: np.random.Generator, count: int) -> "Tensor":
        chosen = rng.integers(len(crops["seed"]), size=count)
        kinds = _drawn_kinds(rng, count, _EVERYTHING if adapter is None else 0.5)
        hole, around = map(given, _of_kinds(crops, chosen, kinds, grey))
        prompts = _asked(rng, crops, chosen, kinds)
        steps = torch.from_numpy((len(schedule) * rng.random(count) ** 0.75).astype(np.int64))
        clean = given(crops["latents"][chosen])
        noise = given(rng.standard_normal(clean.shape, np.float32))
        noisy, wanted = (make(clean, noise, steps, schedule) for make in (add_noise, _velocity))
        weight = _weights_of(hole, max_pool2d(given(crops["mask"][chosen, None]), 4))
        more = _residuals(adapter, rng, crops["picture"][chosen], device) if adapter is not None else {}
        with torch.autocast("cpu", torch.bfloat16, enabled=small):
            read = torch.cat([noisy, hole, around], 1)
            found = unet(read, steps.to(device), texts[torch.from_numpy(prompts)].to(device), **more).sample
        return ((found.float() - wanted).square() * weight).mean()

    return loss_of


def _texts_and_grey(backbone: Backbone) -> "tuple[Tensor, Array]":
    """All prompts as the U-Net reads them, and the latents of nothing but grey."""
    import torch

    with torch.no_grad():
        grey = backbone.encode(torch.zeros(1, 3, SIDE, SIDE)).cpu().numpy()
        return backbone.encode_text(world_prompts()).hidden, grey


def train_words(
    folder: str | Path, recipe: Recipe = WORDS, *, begin: str | Path | None = None, device: str = "auto",
    name: str = "words", say: Callable[[str], None] | None = None,
) -> Path:  # fmt: skip
    """Train, or go on training, on the crops of a folder; in `folder`/`name` is a whole pipeline in the end."""
    folder, backbone = Path(folder), Backbone.from_pretrained("mini", device, dtype="float32")
    crops, (texts, grey) = read_crops(folder / "crops"), _texts_and_grey(backbone)
    begun = backbone.unet if begin is None else _read(_diffusers().UNet2DConditionModel, Path(begin) / "unet")
    unet = begun if begun.config.in_channels > 4 else inpainting_unet(begun)
    run = Run(folder / f"{name}.pt", [_quick(unet).requires_grad_(True).train()], recipe, device)
    run.train(words_loss(run, unet, texts, grey, crops), say)
    _fill(run.parts, run.average)
    noise = _diffusers().DDPMScheduler(**NOISE)
    return save_pipeline(folder / name, unet, backbone.vae, backbone.text_encoders[0], backbone.tokenizers[0], noise)


def _quick(unet: Any) -> Any:
    """On a CPU the fused attention is slow to go back through, in 16 bits above all."""
    if unet.device.type == "cpu":
        unet.set_attn_processor(_diffusers().models.attention_processor.AttnProcessor())
    return unet


# %%
backbone = Backbone.from_pretrained("mini", device="cpu")
wide = inpainting_unet(backbone.unet)
new = Backbone(wide, backbone.vae, backbone.tokenizers, backbone.text_encoders, backbone.scheduler_config)
latents, text = torch.from_numpy(few["latents"][:2].astype(np.float32)), backbone.encode_text("a mug")
hole = torch.cat([torch.ones(2, 1, 16, 16), torch.from_numpy(few["around"][:2, 0].astype(np.float32))], 1)
test_close(new.predict(latents, 500, text, hole=hole), backbone.predict(latents, 500, text), eps=1e-4)
print(f"{backbone.unet.config.in_channels} channels before, {wide.config.in_channels} now; fills holes: {new.fills}")

kinds = _drawn_kinds(np.random.default_rng(0), 10_000)
print("product, product, background, everything:", [f"{(kinds == kind).mean():.2f}" for kind in range(4)])
place = train_words(folder, Recipe(2, batch_size=4), device="cpu")
print(sorted(path.name for path in place.iterdir()))
assert Backbone.from_pretrained(place, device="cpu").fills


# %% [markdown]
# Two steps teach nothing, and are here to show the way. The folder is a pipeline folder like the first miniature's, with a wider U-Net in it.
#
# ## The shipped weights
#
# `mini-words` is such a folder from a longer run. To see what it can do, the product of a held-out crop is covered by a square and another product is asked for. `fill` does that with the project's one [loop](31_sampling.ipynb).

# %%
#| export
def fill(
    backbone: Backbone, pictures: Array, masks: Array, prompts: Sequence[str], *, controls: Any = (),
    seed: int | str = 0, steps: int = 20, guidance: float = 3.0, batch_size: int = 8,
) -> Array:  # fmt: skip
    """Pictures (uint8) with what a mask (N×H×W) covers drawn anew from words; around it they stay, bit for bit."""
    import torch

    if not backbone.fills:
        raise Refused(f"backbone {backbone.name!r} is no inpainting model; name one, for example 'mini-words'")
    shape = (backbone.latent_channels, *backbone.check_size(*pictures.shape[1:3]))
    noise = [random_generator("fill", seed, i).standard_normal(shape, np.float32) for i in range(len(pictures))]
    with torch.inference_mode():
        found = denoise(
            backbone,
            Start(noise=torch.from_numpy(np.stack(noise)), blank=True),
            backbone.encode_text(prompts),
            backbone.encode_text("", negative=True),
            guidance=Guidance(guidance),
            schedule=Schedule(steps, 1.0),
            controls=controls,
            hole=hole_of(backbone, as_tensor(pictures), masks[:, None].astype(np.float32)),
            batch_size=batch_size,
        )
        drawn = as_pictures(backbone.decode(found))
    return np.where(masks[..., None], drawn, pictures)


# %%
#| export
def replacements(crops: Mapping[str, Array], times: float = 1.15) -> tuple[Array, list[str]]:
    """For each crop a square hole around its product, and another product's name to draw there."""
    holes = np.stack([square_around(mask, times) for mask in crops["mask"]])
    moves = [int(random_generator("another product", int(seed)).integers(1, len(PRODUCTS))) for seed in crops["seed"]]
    found = (crops["product"].astype(int) + moves) % len(PRODUCTS)
    return holes, [PRODUCTS[i] for i in found]


def other_places(crops: Mapping[str, Array]) -> list[str]:
    """For each crop the name of another place."""
    moves = [int(random_generator("another place", int(seed)).integers(1, len(PLACES))) for seed in crops["seed"]]
    return [PLACES[i] for i in (crops["place"].astype(int) + moves) % len(PLACES)]


def _share(found: Sequence[tuple[str, float]], wanted: Sequence[str]) -> float:
    return round(float(np.mean([name == word for (name, _), word in zip(found, wanted, strict=True)])), 3)


def words_figures(
    backbone: Backbone, recogniser: Recogniser, judge: Recogniser, crops: Mapping[str, Array], guidance: float = 3.0
) -> dict[str, Any]:
    """How often judges name what was asked for: another product, another place, and both one after the other."""
    pictures, masks = crops["picture"], crops["mask"]
    holes, products = replacements(crops)
    places, outside = other_places(crops), ~np.stack([_grown(mask, 2) for mask in masks])
    drawn = fill(backbone, pictures, holes, [f"a {product}" for product in products], guidance=guidance)
    moved = fill(backbone, pictures, outside, places, guidance=guidance, seed=1)
    both = fill(backbone, drawn, ~holes, places, guidance=guidance, seed=2)
    was, lay = [PRODUCTS[i] for i in crops["product"]], [PLACES[i] for i in crops["place"]]
    named, seen = recogniser.name(list(both), list(masks)), name_place(judge, both, holes)
    right = [(a[0] == b, c[0] == d) for a, b, c, d in zip(named, products, seen, places, strict=True)]
    return {
        "crops": len(masks),
        "originals": {"product": _share(recogniser.name(list(pictures), list(masks)), was),
                      "place": _share(name_place(judge, pictures, masks), lay)},
        "another product": _share(recogniser.name(list(drawn), list(masks)), products),
        "another place": _share(name_place(judge, moved, masks), places),
        "both": {"product": round(float(np.mean([a for a, _ in right])), 3),
                 "place": round(float(np.mean([b for _, b in right])), 3),
                 "product and place": round(float(np.mean([a and b for a, b in right])), 3)},
    }  # fmt: skip


def edges_figures(
    backbone: Backbone, adapter: Any, crops: Mapping[str, Array], guidance: float = 3.0
) -> dict[str, Any]:
    """How well edges of drawn pictures agree with those asked for, with the adapter and without it."""
    import torch

    pictures, everything = crops["picture"], np.ones_like(crops["mask"])
    prompts = [f"a {PRODUCTS[i]}, {PLACES[j]}" for i, j in zip(crops["product"], crops["place"], strict=True)]
    control = edges_of(pictures)
    given = features_of(backbone, adapter, torch.from_numpy(control[:, None].astype(np.float32)))
    found: dict[str, Any] = {"crops": len(pictures)}
    for name, controls in {"with control": [given], "without control": []}.items():
        drawn = fill(backbone, pictures, everything, prompts, controls=controls, guidance=guidance)
        found[name] = round(float(edge_agreement(edges_of(drawn), control).mean()), 3)
    return found


# %%
backbone = Backbone.from_pretrained("mini-words", device="cpu")
place = Path(weights("mini-words", "backbone"))
sizes = {
    part: sum(file.stat().st_size for file in (place / part).iterdir()) / 1e6
    for part in ("unet", "vae", "text_encoder")
}
print({part: f"{size:.1f} MB" for part, size in sizes.items()})
test_eq((backbone.fills, backbone.untrained, backbone.prediction_type), (True, False, "v_prediction"))
holes, products = replacements(crops)
drawn = fill(backbone, crops["picture"][:8], holes[:8], [f"a {product}" for product in products[:8]], steps=12)
test_eq(drawn[~holes[:8]], crops["picture"][:8][~holes[:8]])

# %%
#| label: fig-mini-words-replaced
#| fig-cap: Held-out crops, the square that is cut into each, and what was drawn there for the words above; 12 steps, guidance 3.
#| fig-alt: Three rows of eight small scenes. Above, scenes with a product. In the middle, a grey square over the product. Below, another product in its place, softer than the world's own but to be recognised.
fig, axes = plt.subplots(3, 8, figsize=(9.6, 3.9), layout="constrained")
for column in range(8):
    picture = crops["picture"][column]
    cut = np.where(holes[column][..., None], np.uint8(127), picture)
    for axis, each in zip(axes[:, column], (picture, cut, drawn[column]), strict=True):
        axis.imshow(each)
        axis.set_axis_off()
    axes[0, column].set_title(PRODUCTS[crops["product"][column]], fontsize=8)
    axes[2, column].set_title(f"“a {products[column]}”", fontsize=8)

# %% [markdown]
# *Look at* the forms: they are those of the words. Colours run into each other more than in the world's own products, and the ground beside the product is only roughly that of the scene.

# %%
with expect_fail(Refused, "is no inpainting model; name one, for example 'mini-words'"):
    fill(Backbone.from_pretrained("mini", device="cpu"), crops["picture"][:1], holes[:1], ["a mug"])

# %% [markdown]
# ## Two judges
#
# Who judges must have had no part in the training. For products that is the recogniser of the first miniature's page. For places there is a second one: the same small network, which sees the picture with grey in the product's box, and names the place around it. It learnt from stills of its own, with boxes of many sizes, lighter and darker, blurred and noisy.

# %%
#| export
JUDGE_SEEDS = 32_500_000  # of the stills that the judge of places learns from
JUDGE = Recipe(1000, batch_size=48, learning_rate=3e-3, warm=100, average=0.99)


def beside_box(pictures: Array, masks: Array) -> Array:
    """The pictures with grey in the box of the product: what a judge of places may see."""
    found = pictures.copy()
    for picture, mask in zip(found, masks, strict=True):
        x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
        picture[y : y + high, x : x + wide] = 127
    return found


def name_place(judge: Recogniser, pictures: Array, masks: Array) -> list[tuple[str, float]]:
    """For each picture and product's mask: the place around the product's box, and how probable it is."""
    return judge.name(list(beside_box(pictures, masks)), [_middle(picture) for picture in pictures])


def _middle(picture: Array) -> Array:
    """The mask whose window, with the recogniser's margin, is the whole picture."""
    mask, side = np.zeros(picture.shape[:2], bool), min(picture.shape[:2])
    edge = round(side * _MARGIN / (1 + 2 * _MARGIN))
    mask[edge : side - edge, edge : side - edge] = True
    return mask


def _place_views(rng: np.random.Generator, crops: Mapping[str, Array], count: int) -> tuple[Array, Array]:
    """Crops as a judge of places sees them: a box in grey, lighter or darker, some blurred, noisy or mirrored."""
    chosen, views = rng.integers(len(crops["seed"]), size=count), list[Array]()
    for i in chosen:
        hidden = square_around(crops["mask"][i], rng.uniform(0.8, 1.5), tuple(rng.uniform(-0.3, 0.3, 2)))
        hidden = hidden if rng.random() < 0.5 else crops["mask"][i]
        found: Array = crops["picture"][i].astype(np.float32) * rng.uniform(0.8, 1.2) + rng.uniform(-15, 15)
        if rng.random() < 0.5:
            found = cv2.GaussianBlur(found, (0, 0), rng.uniform(0.3, 1.2))
        if rng.random() < 0.3:
            found = found + rng.normal(0, rng.uniform(1, 6), found.shape).astype(np.float32)
        seen = beside_box(np.clip(found, 0, 255)[None], hidden[None])[0]
        seen = _window(seen, _middle(seen))
        views.append(seen[:, ::-1] if rng.random() < 0.5 else seen)
    return np.stack(views), crops["place"][chosen].astype(np.int64)


def train_place_judge(
    folder: str | Path, recipe: Recipe = JUDGE, count: int = 6000, *, device: str = "auto",
    say: Callable[[str], None] | None = None,
) -> Recogniser:  # fmt: skip
    """Train, or go on training, a recogniser of places, on stills of its own; it is in `folder`/places."""
    import torch
    from torch.nn.functional import cross_entropy

    folder, judge = Path(folder), Recogniser(words=PLACES, device=device)
    run = Run(folder / "places.pt", [judge.layers.train()], recipe, device)
    crops = draw_crops(JUDGE_SEEDS, count)

    def loss_of(rng: np.random.Generator, count: int) -> "Tensor":
        views, places = _place_views(rng, crops, count)
        found = judge.layers(_standard(torch.from_numpy(views).permute(0, 3, 1, 2).to(run.device)))
        return cross_entropy(found.float(), torch.from_numpy(places).to(run.device), label_smoothing=0.05)

    run.train(loss_of, say)
    _fill(run.parts, run.average)
    judge.layers.eval()
    judge.save_pretrained(folder / "places")
    return judge


# %%
train_place_judge(folder, Recipe(2, batch_size=4), count=8, device="cpu")
recogniser = Recogniser.from_pretrained("mini", device="cpu")
judge = Recogniser.from_pretrained("mini-places", device="cpu")
found = name_place(judge, crops["picture"], crops["mask"])
right = [place == PLACES[i] for (place, _), i in zip(found, crops["place"], strict=True)]
print(f"{sum(right)} of {len(right)} places named rightly, with the product's box hidden")
assert np.mean(right) >= 0.8
whole = beside_box(crops["picture"], np.ones_like(crops["mask"]))  # nothing but grey
print("when all is hidden, every picture is called", {place for place, _ in name_place(judge, whole, crops["mask"])})
test_eq(len({place for place, _ in name_place(judge, whole, crops["mask"])}), 1)
named = recogniser.name(list(drawn), list(crops["mask"][:8]))
print("asked for", products[:8])
print("named    ", [name for name, _ in named])

# %%
#| label: fig-mini-words-places
#| fig-cap: Above, held-out crops. Below, the same products with another place drawn around them, and the place that was asked for; 12 steps, guidance 3.
#| fig-alt: Two rows of eight small scenes. The products are the same above and below; the ground behind them has become another one.
outside = ~np.stack([_grown(mask, 2) for mask in crops["mask"][:8]])
moved = fill(backbone, crops["picture"][:8], outside, other_places(crops)[:8], steps=12)
fig, axes = plt.subplots(2, 8, figsize=(9.6, 2.7), layout="constrained")
for axis, picture in zip(axes.flat, [*crops["picture"][:8], *moved], strict=True):
    axis.imshow(picture)
    axis.set_axis_off()
for axis, place in zip(axes[1], other_places(crops), strict=False):
    axis.set_title(place, fontsize=8)

# %% [markdown]
# ## Edges as a control
#
# An edit that keeps the structure of a picture is told its edges. The adapter is the project's own [ControlAdapter](21_adapter.ipynb) with one channel, trained on the finished U-Net, which stays as it is. A tenth of the controls is left empty. Whether the result obeys is measured by the edges themselves: F1 of the edges found in the result against those asked for, where an edge one pixel away is the same one.

# %%
#| export
EDGES: dict[str, Any] = {
    "base_channels": 32, "channel_mult": [1, 2, 3], "num_res_blocks": 1, "attention_resolutions": [2, 1],
}  # fmt: skip
LINES = Recipe(1200, batch_size=16, warm=100, average=0.998)


def edges_of(pictures: Array) -> Array:
    """The edges of pictures (uint8, N×H×W×3): true where Canny's detector finds one."""
    grey = [cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (0, 0), 0.7) for picture in pictures]
    return np.stack([cv2.Canny(picture, 60, 140) > 0 for picture in grey])


def _residuals(adapter: Any, rng: np.random.Generator, pictures: Array, device: Any) -> dict[str, Any]:
    """What the adapter adds to the U-Net for the pictures' edges; a tenth of them is left out."""
    import torch

    edges = edges_of(pictures) & (rng.random(len(pictures)) >= 0.1)[:, None, None]
    down, middle = adapter(torch.from_numpy(edges[:, None].astype(np.float32)).to(device))
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def train_edges(
    folder: str | Path, recipe: Recipe = LINES, *, begin: str | Path | None = None, device: str = "auto",
    say: Callable[[str], None] | None = None,
) -> Path:  # fmt: skip
    """Train, or go on training, an adapter for edges on the finished U-Net; it is in `folder`/edges."""
    from alignment_video.adapter import ControlAdapter

    folder = Path(folder)
    backbone = Backbone.from_pretrained(folder / "words" if begin is None else begin, device, dtype="float32")
    crops, (texts, grey) = read_crops(folder / "crops"), _texts_and_grey(backbone)
    adapter = ControlAdapter.from_unet(backbone, 1, **EDGES)
    run, unet = Run(folder / "edges.pt", [adapter.train()], recipe, device), _quick(backbone.unet)
    run.train(words_loss(run, unet, texts, grey, crops, adapter), say)
    _fill(run.parts, run.average)
    return adapter.cpu().half().save(folder / "edges")


def edge_agreement(found: Array, control: Array, within: int = 1) -> Array:
    """F1 of each picture's edges (N×H×W) against those asked for; an edge a pixel away is the same one."""
    shares = list[Array]()
    for one, other in ((found, control), (control, found)):
        near = np.stack([_grown(each, within) for each in other])
        shares.append((one & near).sum((1, 2)) / np.maximum(1, one.sum((1, 2))))
    return 2 * shares[0] * shares[1] / np.maximum(1e-9, shares[0] + shares[1])


# %%
train_edges(folder, Recipe(2, batch_size=4), device="cpu")
adapter = ControlAdapter.load("mini-edges", backbone)
count = sum(weight.numel() for weight in adapter.parameters())
print(f"{count:,} numbers; reads {adapter.config['control_channels']} channel")
control = edges_of(crops["picture"][:8])
given = features_of(backbone, adapter, torch.from_numpy(control[:, None].astype(np.float32)))
prompts = [f"a {PRODUCTS[i]}, {PLACES[j]}" for i, j in zip(crops["product"][:8], crops["place"][:8], strict=True)]
everything = np.ones_like(control)
results = [fill(backbone, crops["picture"][:8], everything, prompts, steps=12, controls=c) for c in ([given], [])]
scores = [edge_agreement(edges_of(result), control).mean() for result in results]
print(f"F1 of the edges: {scores[0]:.2f} with the control, {scores[1]:.2f} without")
assert scores[0] > scores[1] + 0.1
test_eq(edge_agreement(control, control), np.ones(8))
test_eq(edge_agreement(np.roll(control, 1, 1), control) > 0.95, np.ones(8, bool))  # a pixel away is near enough

# %%
#| label: fig-mini-words-edges
#| fig-cap: Edges of held-out crops, and pictures drawn from noise and a prompt (not shown) with these edges as a control, and without.
#| fig-alt: Three rows of eight. White edges on black; small scenes whose outlines follow the edges; small scenes with the same product and place that do not.
fig, axes = plt.subplots(3, 8, figsize=(9.6, 3.9), layout="constrained")
for row, pictures in zip(axes, (control, *results), strict=True):
    for axis, picture in zip(row, pictures, strict=True):
        axis.imshow(picture, cmap="gray")
        axis.set_axis_off()


# %% [markdown]
# ## One command
#
# `make` does everything in its order and goes on when it was stopped; `measure` writes the figures of the shipped weights.

# %%
#| eval: false
# in a shell:
# python -m alignment_video.mini_words make FOLDER
# python -m alignment_video.mini_words measure data/evidence/mini_words.json --stills 100

# %%
#| export
class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; use make FOLDER, or measure FILE")


def _parser() -> argparse.ArgumentParser:
    parser = _Arguments("mini_words")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    kinds = parser.add_subparsers(dest="kind", required=True)
    making = kinds.add_parser("make")
    making.add_argument("folder")
    making.add_argument("--stills", type=int, default=STILLS)
    making.add_argument("--steps", type=int)
    measuring = kinds.add_parser("measure")
    measuring.add_argument("file")
    measuring.add_argument("--stills", type=int, default=100)
    return parser


def make(
    folder: str | Path, count: int = STILLS, steps: int | None = None, device: str = "auto",
    say: Callable[[str], None] | None = print,
) -> Path:  # fmt: skip
    """Everything on this page in its order; stopped and called again, it goes on."""
    folder = Path(folder)
    recipes = [recipe if steps is None else replace(recipe, steps=steps) for recipe in (WORDS, LINES, JUDGE)]
    write_crops(folder / "crops", count)
    train_words(folder, recipes[0], device=device, say=say)
    train_edges(folder, recipes[1], device=device, say=say)
    train_place_judge(folder, recipes[2], count, device=device, say=say)
    return folder


def measure(file: str | Path, count: int = 100, device: str = "auto") -> dict[str, Any]:
    """The figures of the shipped weights, beside what is in the file already."""
    from alignment_video.adapter import ControlAdapter

    file = Path(file)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    crops, backbone = draw_crops(MEASURED_SEEDS, count), Backbone.from_pretrained("mini-words", device, dtype="float32")
    judges = Recogniser.from_pretrained("mini", device), Recogniser.from_pretrained("mini-places", device)
    figures = {"first still": MEASURED_SEEDS, **words_figures(backbone, *judges, crops)}
    figures["edges, F1"] = edges_figures(backbone, ControlAdapter.load("mini-edges", backbone), crops)
    command = f"python -m alignment_video.mini_words measure {file} --stills {count}"
    write_json(file, {**known, "measured with": command, "date": f"{datetime.now(UTC):%Y-%m-%d}", "held out": figures})
    return figures


def main(arguments: Sequence[str]) -> None:
    """`make FOLDER`, or `measure FILE`."""
    asked = _parser().parse_args(arguments)
    if min(asked.threads, asked.stills, getattr(asked, "steps", None) or 1) < 1:
        raise Refused("threads, stills and steps: use numbers above 0")
    import torch

    torch.set_num_threads(asked.threads)
    if asked.kind == "make":
        print(make(asked.folder, asked.stills, asked.steps, asked.device).name)
    else:
        print(json.dumps(measure(asked.file, asked.stills, asked.device)))


# %%
#| export
#| eval: false
if __name__ == "__main__":
    import sys

    try:
        main(sys.argv[1:])
    except Refused as error:
        sys.exit(str(error))

# %%
with expect_fail(Refused, "invalid choice: 'train'"):
    main(["train", "folder"])
with expect_fail(Refused, "use make FOLDER"):
    main([])
with expect_fail(Refused, "use numbers above 0"):
    main(["measure", "file", "--stills", "0"])
evidence = json.loads(Path("../data/evidence/mini_words.json").read_text(encoding="utf-8"))
for key, value in evidence["training"].items():
    print(f"{key}: {value}")

# %%
figures = evidence["held out"]
for key, value in figures.items():
    print(f"{key}: {value}")
home.cleanup()

# %% [markdown]
# The words are followed: nearly every new product is named rightly, and when product and place are both new, drawn one after the other, both judges agree in nine of ten. That is what the miniature is for. It says little about how good the pictures look, and the pictures above say more: soft, with colours that run.
#
# The edges are followed as well, though not to the letter. Without a control F1 is far from 0, since with so many edges in so small a picture some always lie near each other; the difference is what counts.
#
# ## What this page does not do
#
# * It makes no model for real pictures. There are inpainting models for those, in the same form; name one.
# * It does not keep anything of the old product. What an edit takes over from it (its size, its place) is the editor's business.
# * It does not promise the same weights on another machine, nor that `make` ends where the shipped weights did.
# * The miniature knows fourteen products and ten places. For other words it draws something, and says nothing.
