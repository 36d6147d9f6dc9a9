"""How close the shipped attention predictor comes to the truth on scenes it never saw, and how fast it is.

prediction.py                    measure; one JSON line a result
prediction.py --write            measure, and write data/evidence/mini_predictor.json
prediction.py --train FOLDER     train it again, as the shipped one was (about ten minutes on one core)
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from _measure import best

from alignment_video.attention import ContrastScorer, attention_map
from alignment_video.core import weights, write_json
from alignment_video.prediction import (
    AttentionPredictor,
    WorldPairs,
    average_map,
    correlation,
    distribution,
    held_out,
    train_predictor,
)
from alignment_video.world import PRODUCT, PRODUCTS, Ad, Scene, viewers_attention

PAIRS, STEPS, SHAPE, DATE = 7000, 2400, (480, 270), "2026-11-21"
EVIDENCE = Path(__file__).resolve().parents[1] / "data" / "evidence" / "mini_predictor.json"


def train(folder: str) -> None:
    """The recipe of the shipped weights."""
    began = time.process_time()
    world = WorldPairs(PAIRS)
    pairs = [(picture, looks.astype(np.float16)) for picture, looks in (world[i] for i in range(PAIRS))]
    made = train_predictor(pairs, STEPS, checkpoint=Path(folder) / "training.pt")
    made.predictor.save_pretrained(folder)
    (Path(folder) / "training.pt").unlink()
    took = round((time.process_time() - began) / 60, 1)
    print(json.dumps({"bench": "prediction", "what": "training", "loss": np.mean(made.losses[-100:]), "minutes": took}))


Scenes = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]  # picture, true map, product mask


def one_still(seed: int, prominence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scene of the world by its seed; training used seeds from 100,000 on."""
    keyword = PRODUCTS[seed % len(PRODUCTS)]
    scene = Scene("still", seed, size=SHAPE, frames=1, keyword=keyword, prominence=prominence)
    picture, front = scene.draw(0)
    kinds = np.array([layer.kind for layer in scene.layers])
    return picture, viewers_attention(front, kinds, prominence), np.take(kinds == PRODUCT, front)


def ad_frames(count: int) -> Scenes:
    """The middle frame of each scene of the first ads."""
    for seed in range(count):
        ad = Ad(seed, size=SHAPE)
        for i, (start, end) in enumerate(zip(ad.starts, [*ad.starts[1:], ad.frames], strict=True)):
            middle = (start + end) // 2
            (picture, front), kinds = ad.draw(middle), np.array([layer.kind for layer in ad.scenes[i].layers])
            level = ad.scenes[i].prominence[middle - ad._first[i]] if ad.scenes[i].keyword else np.nan
            yield picture, viewers_attention(front, kinds, float(level)), np.take(kinds == PRODUCT, front)


def alignments(make: Callable[[np.ndarray], np.ndarray], seeds: range, levels: tuple[float, ...]) -> np.ndarray:
    """Alignment of each scene at each prominence: (scene, level, (true, by this maker))."""
    found = []
    for seed in seeds:
        for level in levels:
            picture, true, mask = one_still(seed, level)
            found.append([float(distribution(values)[mask].sum()) for values in (true, make(picture))])
    return np.array(found).reshape(len(seeds), len(levels), 2)


def measure(write: bool) -> None:
    """One JSON line a result."""
    predictor, contrast = AttentionPredictor.from_pretrained("mini", device="cpu"), ContrastScorer()
    average = average_map((WorldPairs(400)[i][1] for i in range(400)), SHAPE)
    makers = {
        "average map of the training scenes": lambda picture: average,
        "contrast scorer of page 13": lambda picture: attention_map(picture, contrast).map,
        "predictor": lambda picture: predictor.predict([picture])[0],
    }
    sets = {
        "150 stills": [one_still(seed, 0.1 + 0.1 * (seed % 9)) for seed in range(150)],
        "scenes of 25 ads": list(ad_frames(25)),
    }
    found, levels = {}, (0.1, 0.3, 0.5, 0.7, 0.9)
    for name, scenes in sets.items():
        table = held_out(makers, scenes, average).round(4)
        found[name] = table.reset_index().to_dict("records")
        for row in found[name]:
            print(json.dumps({"bench": "prediction", "what": f"{row['map']}, {name} never seen", **row}), flush=True)
    response = {}
    for name in list(makers)[1:]:
        curves = alignments(makers[name], range(300, 360), levels)
        means = {"true": curves[..., 0].mean(0).round(3).tolist(), "found": curves[..., 1].mean(0).round(3).tolist()}
        rising = float((curves[:, -1, 1] > curves[:, 0, 1]).mean())
        together = float(correlation(curves[..., 0], curves[..., 1]))
        response[name] = {**means, "scenes that rise": round(rising, 3), "r with the truth": round(together, 3)}
        print(json.dumps({"bench": "prediction", "what": f"prominence {levels}, {name}", **response[name]}), flush=True)
    torch.set_num_threads(1)
    for shape in (SHAPE, (910, 512)):
        picture = cv2.resize(sets["150 stills"][0][0], shape[::-1])
        alone, rival = (best(partial(makers[name], picture)) for name in list(makers)[:0:-1])
        line = {
            "bench": "prediction",
            "what": f"one map, {shape[1]}x{shape[0]}, one thread",
            "ms": round(1000 * alone, 1),
        }
        line |= {"target": "< 150 ms", "contrast, ms": round(1000 * rival, 1), "ratio": round(rival / alone, 2)}
        print(json.dumps(line | {"cores": os.cpu_count()}), flush=True)
    if write:
        size = sum(path.stat().st_size for path in Path(weights("mini", "predictor")).iterdir())
        made = {
            "parameters": predictor.parameters,
            "bytes": size,
            "pairs": PAIRS,
            "steps": STEPS,
            "first seed": 100_000,
        }
        facts = {"command": "python bench/prediction.py --write", "date": DATE, "predictor": made, "held_out": found}
        write_json(EVIDENCE, {**facts, "prominence": {"levels": levels, **response}})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"] and len(sys.argv) == 3:
        train(sys.argv[2])
    else:
        measure("--write" in sys.argv)
