# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%
#| default_exp selections

# %% [markdown]
# # How often selective edits are right
#
# > On scenes that nothing was trained or tuned on: are both prompts obeyed, is the seam small, do lines hold, does the colour stay?

# %% [markdown]
# [Page 42](42_selective.ipynb) edits a picture with a prompt for the inside of a mask and another for the outside, and shows examples. Examples can be chosen. Here the same is done to scenes taken as they come, and judges that never saw an edit say what they see: one [names the product](91_mini_diffusion.ipynb), the other [names the place](97_mini_words.ipynb) from what is beside the product. One command measures all of it and keeps what it found, with the command and the date.

# %%
#| export
import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from alignment_video.core import Refused, random_generator, write_json
from alignment_video.mini_diffusion import Recogniser
from alignment_video.mini_words import draw_crops, name_place, other_places, replacements
from alignment_video.selective import FUSIONS, Selected, Selecting, Structure, edge_f1, edges, seam, select
from alignment_video.world import PLACES, PRODUCT, PRODUCTS, Scene

if TYPE_CHECKING:
    from alignment_video.backbone import Backbone

Array = NDArray[Any]

# %%
import json

import pandas as pd
import torch
from fastcore.test import expect_fail, test_eq

from alignment_video.backbone import Backbone

# %% [markdown]
# ## Two prompts
#
# Each scene gets another product inside, in a square around its own, and another place outside, both drawn by lot. An edit is right if the first judge names the product that was asked for *and* the second the place. Chance is one in fourteen, times one in ten. Both ways to join the prompts are tried, on the same scenes and with the same noise, and the [seam](42_selective.ipynb) of both is measured against the same two pictures.

# %%
#| export
FIRST = 36_450_000  # of the scenes that are measured; nothing was trained on them, and nothing tuned
Judges = tuple[Recogniser, Recogniser]  # one names products, the other places


def two_prompts(
    backbone: "Backbone", judges: Judges, count: int, first: int = FIRST, settings: Selecting = Selecting()
) -> list[dict[str, Any]]:
    """For each scene and way to join two prompts: what the judges name, and the energy of the seam."""
    crops = draw_crops(first, count)
    holes, products = replacements(crops)
    rows = list[dict[str, Any]]()
    for i, (picture, hole, product, place) in enumerate(
        zip(crops["picture"], holes, products, other_places(crops), strict=True)
    ):
        own = replace(settings, seed=int(crops["seed"][i]))  # noise of its own
        made = {
            way: select(backbone, picture, f"a {product}", place, mask=hole, settings=replace(own, fusion=way))
            for way in FUSIONS
        }
        row: dict[str, Any] = {"seed": int(crops["seed"][i]), "product": product, "place": place}
        alone = [each[0] for each in made["alpha"].alone]
        for way, each in made.items():
            seen = judges[0].name([each.picture], [crops["mask"][i]])[0][0]
            around = name_place(judges[1], each.pictures, hole[None])[0][0]
            energy = seam(each.picture, hole, alone, settings.edge)
            row[way] = {"product": seen, "place": around, "right": seen == product and around == place, "seam": round(energy, 1)}
        rows.append(row)
    return rows


# %% [markdown]
# ## Lines
#
# Each scene is drawn anew as a whole, its own product inside and its own place outside, with its edges as a control and without, and F1 of the edges is measured in both.

# %%
#| export
def with_lines(
    backbone: "Backbone", count: int, first: int = FIRST, settings: Selecting = Selecting(), model: Any = "mini-edges"
) -> list[dict[str, Any]]:
    """For each scene: how well edges agree with those of the original, with the control and without."""
    crops, rows = draw_crops(first, count), list[dict[str, Any]]()
    for i, (picture, mask) in enumerate(zip(crops["picture"], crops["mask"], strict=True)):
        prompts = f"a {PRODUCTS[crops['product'][i]]}", PLACES[crops["place"][i]]
        row: dict[str, Any] = {"seed": int(crops["seed"][i])}
        own = replace(settings, seed=row["seed"])
        for name, structure in {"with control": [Structure(model=model)], "without control": []}.items():
            made = select(backbone, picture, *prompts, mask=mask, structure=structure, settings=own)
            row[name] = round(edge_f1(edges(made.picture), edges(picture)), 4)
        rows.append(row)
    return rows


# %% [markdown]
# ## Pairs of frames
#
# Two frames of a moving scene, half a second apart, of 160 × 120 pixels; another product is drawn into both. The change of the product's mean colour from one frame to the other is held against the original pair's: as drawn, apart and with the second frame looking at the first, and as given out, when it is bounded.

# %%
#| export
def moving_pair(seed: int) -> tuple[Array, Array, str]:
    """Two frames of a scene, half a second apart, with the product's masks; and another product's name."""
    rng = random_generator("pair", seed)
    product, move = int(rng.integers(len(PRODUCTS))), int(rng.integers(1, len(PRODUCTS)))
    scene = Scene("pair", seed, size=(160, 120), frames=13, rate=24, keyword=PRODUCTS[product], prominence=0.7)
    drawn = [scene.draw(t) for t in (0, 12)]
    masks = [np.take([layer.kind == PRODUCT for layer in scene.layers], front) for _, front in drawn]
    return np.stack([picture for picture, _ in drawn]), np.stack(masks), PRODUCTS[(product + move) % len(PRODUCTS)]


def frame_pairs(
    backbone: "Backbone", recogniser: Recogniser, count: int, first: int = FIRST, settings: Selecting = Selecting()
) -> list[dict[str, Any]]:
    """For each pair: the original's change of colour, and by which share of it the edited pairs' miss it."""
    rows = list[dict[str, Any]]()
    for seed in range(first, first + count):
        frames, masks, product = moving_pair(seed)
        if not masks.any((1, 2)).all():
            continue
        own = replace(settings, room=0.1, seed=seed)
        made = {
            name: select(backbone, frames, f"a {product}", mask=masks, settings=how)
            for name, how in {"together": own, "apart": replace(own, sharing=0)}.items()
        }
        rows.append({"seed": seed, "product": product} | {name: _pair(each, recogniser, product) for name, each in made.items()})
    return rows


def _pair(made: Selected, recogniser: Recogniser, product: str) -> dict[str, Any]:
    drift = made.drift[0]
    named = [name == product for name, _ in recogniser.name(list(made.pictures), list(made.masks))]
    return {
        "original": round(float(np.linalg.norm(drift.original)), 3), "drawn": round(drift.share("drawn"), 4),
        "final": round(drift.share(), 4), "levels": round(drift.off(), 3), "named": sum(named) / len(named),
        "differing": made.differing,
    }  # fmt: skip


# %% [markdown]
# ## What it comes to

# %%
#| export
def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def summary(
    prompts: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Shares and means over all scenes."""
    ways = {
        way: {
            "product": _mean([row[way]["product"] == row["product"] for row in prompts]),
            "place": _mean([row[way]["place"] == row["place"] for row in prompts]),
            "both": _mean([row[way]["right"] for row in prompts]), "seam": _mean([row[way]["seam"] for row in prompts]),
        }
        for way in FUSIONS
    }  # fmt: skip
    lower = _mean([row["latent"]["seam"] < row["alpha"]["seam"] for row in prompts])
    drift = {
        name: {
            "drawn, median share": round(float(np.median([row[name]["drawn"] for row in pairs])), 4),
            "final, median share": round(float(np.median([row[name]["final"] for row in pairs])), 4),
            "within a tenth": _mean([row[name]["final"] <= 0.1 for row in pairs]),
            "within a tenth, as drawn": _mean([row[name]["drawn"] <= 0.1 for row in pairs]),
            "named": _mean([row[name]["named"] for row in pairs]),
            "differing outside": sum(row[name]["differing"] for row in pairs),
        }
        for name in ("together", "apart")
    }
    f1 = {name: _mean([row[name] for row in lines]) for name in ("with control", "without control")}
    counts = {"scenes": len(prompts), "with lines": len(lines), "pairs": len(pairs)}
    return {**counts, "two prompts": ways, "seam lower when fused": lower, "edges, F1": f1, "pairs of frames": drift}


def prove(
    path: str | Path, count: int = 100, first: int = FIRST, device: str = "auto", settings: Selecting = Selecting()
) -> dict[str, Any]:
    """Measure on scenes, and keep what was found with the command that found it."""
    from alignment_video.backbone import Backbone

    backbone = Backbone.from_pretrained("mini-words", device, dtype="float32")
    judges = Recogniser.from_pretrained("mini", device), Recogniser.from_pretrained("mini-places", device)
    prompts = two_prompts(backbone, judges, count, first, settings)
    lines = with_lines(backbone, count // 2, first, settings)
    pairs = frame_pairs(backbone, judges[0], count // 4, first, settings)
    command = f"python -m alignment_video.selections data/evidence/{Path(path).name} --scenes {count}"
    found = {
        "command": command, "date": datetime.now(UTC).date().isoformat(), "device": str(backbone.device), "first seed": first,
        "summary": summary(prompts, lines, pairs), "two prompts": prompts, "with lines": lines, "pairs of frames": pairs,
    }  # fmt: skip
    write_json(path, found)
    return found


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m alignment_video.selections", description="Measure selective edits of held-out scenes."
    )
    parser.add_argument("file", help="JSON file to write")
    parser.add_argument("--scenes", type=int, default=100, help="with two prompts; half as many with lines, a quarter as pairs")
    parser.add_argument("--device", default="auto")
    told = parser.parse_args(words)
    if told.scenes < 4:
        raise Refused(f"--scenes {told.scenes}: use 4 or more, so that there is a pair of frames")
    prove(told.file, told.scenes, device=told.device)
    raise SystemExit(0)


# %%
#| export
#| eval: false
if __name__ == "__main__":
    main()

# %% [markdown]
# On two scenes, in a few steps, so that this page is quick: what a row looks like. What two scenes say is chance.

# %%
torch.set_num_threads(1)
backbone = Backbone.from_pretrained("mini-words", device="cpu", dtype="float32")
judges = Recogniser.from_pretrained("mini", "cpu"), Recogniser.from_pretrained("mini-places", "cpu")
few = Selecting(steps=8)
prompts = two_prompts(backbone, judges, 2, 36_440_000, few)
lines, pairs = with_lines(backbone, 1, 36_440_000, few), frame_pairs(backbone, judges[0], 1, 36_440_000, few)
print({key: prompts[0][key] for key in ("seed", "product", "place")})
whole = summary(prompts, lines, pairs)
test_eq(list(whole)[:3], ["scenes", "with lines", "pairs"])
test_eq([whole["pairs of frames"][name]["differing outside"] for name in ("together", "apart")], [0, 0])
frames, masks, product = moving_pair(36_440_000)
test_eq((frames.shape, masks.shape), ((2, 160, 120, 3), (2, 160, 120)))
with expect_fail(Refused, "--scenes 2: use 4 or more"):
    main(["evidence.json", "--scenes", "2"])

# %% [markdown]
# ## What was found
#
# The command that was run, and what it found; every row is kept in the same file.

# %%
found = json.loads(Path("../data/evidence/selective.json").read_text(encoding="utf-8"))
print(found["command"], found["date"], sep="\n")
whole = found["summary"]
pd.DataFrame(whole["two prompts"]).T.assign(seam=lambda table: table["seam"].round(0).astype(int)).round(2)

# %%
print(f"the seam is lower when fused: in {whole['seam lower when fused']:.0%} of {whole['scenes']} scenes")
print(f"edges, F1: {whole['edges, F1']['with control']:.2f} with the control, {whole['edges, F1']['without control']:.2f} without")
pd.DataFrame(whole["pairs of frames"]).T.round(2)

# %% [markdown]
# *Read it so.* PAGE_FIGURES
#
# ## What this page does not do
#
# * It says nothing about photographs, people or a large model. The judges know fourteen products and ten places, and so does the model.
# * A judge is wrong sometimes: on untouched originals too ([the recogniser's page](91_mini_diffusion.ipynb) says how often).
# * It does not ask whether an edit is beautiful.
