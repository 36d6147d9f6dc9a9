"""How long one meaning map takes, against the published way of making its patches; how many scenes a second."""

import json
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
from _measure import best
from PIL import Image

from alignment_video.attention import (
    ContrastScorer,
    Patches,
    attention_map,
    average_patches,
    finish,
    geometry_of,
    make_attention,
)
from alignment_video.core import Study
from alignment_video.world import Ad

SIZE, SAMPLE = (910, 512), 8


def disc_in_picture(patches: Patches, i: int) -> np.ndarray:
    """A mask as large as the picture for one patch, from the distance of every pixel."""
    y, x = np.ogrid[: patches.size[0], : patches.size[1]]
    return np.sqrt((x - patches.x[i]) ** 2 + (y - patches.y[i]) ** 2) <= patches.radius[i]


def cut_one_by_one(picture: np.ndarray, patches: Patches, chosen: range, folder: Path) -> None:
    """The published way: for each patch a mask and a picture of full size, its box searched, a PNG written."""
    for i in chosen:
        mask = disc_in_picture(patches, i)
        patch = np.zeros_like(picture)
        patch[mask] = picture[mask]
        inside = np.argwhere(mask)
        (top, left), (bottom, right) = inside.min(0), inside.max(0)
        Image.fromarray(patch[top : bottom + 1, left : right + 1]).save(folder / f"{i}.png")


def average_one_by_one(patches: Patches, scores: np.ndarray, chosen: range) -> np.ndarray:
    """The published way: one masked addition a patch."""
    total, count = np.zeros(patches.size), np.zeros(patches.size)
    for i in chosen:
        mask = disc_in_picture(patches, i)
        total[mask] += scores[i]
        count[mask] += 1
    return total / np.maximum(count, 1)


def main() -> None:
    """One JSON line a measurement."""
    picture = cv2.resize(Ad(4).draw(30)[0], SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    scorer, geometry = ContrastScorer(), geometry_of("authors")
    patches = geometry.patches(SIZE)
    scores = scorer.scores(picture, patches)
    whole = best(lambda: attention_map(picture, scorer), 7)
    averaging = best(lambda: average_patches(patches, scores), 7)
    finishing = best(lambda: finish(average_patches(patches, scores)), 7) - averaging
    some = range(0, len(patches), SAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        cutting = best(lambda: cut_one_by_one(picture, patches, some, Path(folder)), 1) * len(patches) / len(some)
        slow = best(lambda: average_one_by_one(patches, scores, some), 1) * len(patches) / len(some)
        study = Study(folder)
        for number in range(1, 41):
            path = study.scene_picture("a", number)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
        speed = {n: 40 / best(lambda n=n: make_attention(study, workers=n, force=True), 2) for n in (1, 2)}
        again = best(lambda: make_attention(study), 2)
    place = {"bench": "attention", "cores": os.cpu_count()}
    what = f"one meaning map, {SIZE[1]}x{SIZE[0]}, {len(patches)} patches, contrast"
    line = {"what": what, "ms": round(1000 * whole, 1), "target": "< 150"}
    line |= {"patches one by one, s": round(cutting, 1), "ratio": round(cutting / whole)}
    print(json.dumps(place | line), flush=True)
    line = {
        "what": "averaging scores over pixels",
        "ms": round(1000 * averaging, 1),
        "one by one, ms": round(1000 * slow),
    }
    print(json.dumps(place | line | {"ratio": round(slow / averaging)}), flush=True)
    line = {"what": "smooth, gamma, normalise", "ms": round(1000 * finishing, 1)}
    print(json.dumps(place | line), flush=True)
    line = {"what": "scenes a second, JPEG to 16-bit PNG", "one thread": round(speed[1], 1), "two": round(speed[2], 1)}
    print(json.dumps(place | line), flush=True)
    line = {"what": "scenes a second, all made already", "a second": round(40 / again)}
    print(json.dumps(place | line), flush=True)


if __name__ == "__main__":
    main()
