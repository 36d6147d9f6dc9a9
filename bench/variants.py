"""How fast variants are planned for 59,000 videos at once, and how fast their heatmaps are written."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from _measure import best

from alignment_video.core import Study
from alignment_video.outcomes import VARIANTS, bulk_scenes
from alignment_video.pictures import write_map, write_mask
from alignment_video.variants import plan_variants, write_heatmaps, write_plan

VIDEOS, SCENES, SIDE, DRAWN = 59_000, 176_000, 512, 96


def one_by_one(scenes: pd.DataFrame, videos: list[str]) -> list[pd.DataFrame]:
    """What a loop over videos does: its rows are looked for, and copied and multiplied for each variant."""
    made = []
    for video in videos:
        own = scenes[scenes["video_id"] == video].sort_values("scene_number").reset_index(drop=True)
        third = len(own) // 3
        spans = {"early": (0, third), "middle": (third, 2 * third), "late": (2 * third, len(own)), "all": (0, len(own))}
        for name, (window, kind) in VARIANTS.items():
            rows, (low, high) = own.copy(), spans.get(window, (0, 0))
            alpha = {"boost": 1.5, "reduction": 0.5}.get(kind, 1.0)
            rows.loc[low : high - 1, "alignment"] *= alpha
            made.append(rows.assign(variant=name, alignment=rows["alignment"].clip(0, 1)))
    return made


def write_scenes(study: Study) -> pd.DataFrame:
    """Masks and maps of scenes at 512 by 512, as validation would list them."""
    rng, rows = np.random.default_rng(0), []
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for i in range(DRAWN):
        video, number = str(1000 + i // 6), i % 6 + 1
        attention = np.exp(-((x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2) / 0.05).astype(np.float32)
        mask = (x - rng.uniform(0.2, 0.8)) ** 2 + (y - 0.5) ** 2 < 0.02
        files = write_mask(study.mask(video, number), mask), write_map(study.heatmap(video, number, ".png"), attention)
        paths = (path.relative_to(study.root).as_posix() for path in files)
        share = float(attention[mask].sum() / attention.sum())
        names = ("video_id", "scene_number", "alignment", "keyword_mask_path", "attention_heatmap_path")
        rows.append(dict(zip(names, (video, number, share, *paths), strict=True)))
    return pd.DataFrame(rows)


def main() -> None:
    """One JSON line a measurement."""
    scenes = bulk_scenes(VIDEOS, seed=1, scenes=(3, 3)).head(SCENES)
    cores = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder))
        seconds = best(lambda: write_plan(study, plan_variants(scenes)))
        some = scenes["video_id"].unique().tolist()[:: VIDEOS // 20][:20]
        loop = best(lambda: one_by_one(scenes, some), 1) / len(some) * scenes["video_id"].nunique()
        line = {
            "what": f"seven variants of {len(scenes):,} scenes, planned and written as CSV and Parquet",
            "seconds": round(seconds, 2), "target": "< 5 s", "one video at a time, nothing written, s": round(loop),
            "ratio": round(loop / seconds),
        }  # fmt: skip
        print(json.dumps({"bench": "variants"} | line | cores))
        drawn = write_scenes(study)
        plan = plan_variants(drawn)
        seconds = best(lambda: write_heatmaps(study, drawn, plan))
        line = {
            "what": f"heatmaps of {DRAWN} scenes in seven variants, {SIDE} px, written to disk",
            "scenes a second": round(DRAWN / seconds), "files a second, with links": round(7 * DRAWN / seconds),
            "target": ">= 100 scenes a second",
        }  # fmt: skip
        print(json.dumps({"bench": "variants"} | line | cores))


if __name__ == "__main__":
    main()
