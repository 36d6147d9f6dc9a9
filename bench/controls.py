"""How many samples a second the data set gives with two workers, by source and format, and what each stage costs."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from alignment_video.controls import GAINS, Augmentation, SceneDataModule, SceneDataset, collate, prepare
from alignment_video.core import Study, load_config
from alignment_video.pictures import read_map, read_mask, read_picture, write_map, write_mask
from alignment_video.video import save_picture
from alignment_video.world import PRODUCT, Ad, viewers_attention

SCENES, SAMPLES, WORKERS = 48, 768, 2
FORMATS = [("map16", "heatmap, 16-bit PNG"), ("map8", "heatmap, 8-bit JPG"), ("map8", "scalar")]
COLUMNS = ["picture", "mask", "map16", "map8"]


def best(work: Callable[[], object], runs: int = 5) -> float:
    """Processor seconds of the fastest run, so that other work on the machine counts little."""
    took = []
    for _ in range(runs):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


def spent(loader: Any) -> float:
    """Processor seconds that this process and the loader's workers have used so far."""
    tick = os.sysconf("SC_CLK_TCK")
    pids = [worker.pid for worker in loader._iterator._workers] if loader._iterator else []
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return time.process_time() + sum(int(field[11]) + int(field[12]) for field in fields) / tick


def write_scenes(study: Study, size: tuple[int, int]) -> pd.DataFrame:
    """Scenes of synthetic ads: JPG pictures, PNG masks, and each map as 16-bit PNG and as 8-bit JPG."""
    rows: list[dict[str, object]] = []
    seed = 0
    while len(rows) < SCENES:
        ad, seed = Ad(seed, size=size, seconds=3, scenes=3), seed + 1
        for index, start in enumerate(ad.starts):
            image, front = ad.draw(start + 8)
            kinds = [layer.kind for layer in ad.scenes[index].layers]
            mask = np.take(np.array(kinds) == PRODUCT, front)
            attention = viewers_attention(front, kinds, float(ad.scenes[index].prominence[8]))
            name = ad.video_id, index + 1
            files = [study.scene_picture(*name), study.mask(*name)]
            files += [study.heatmap(*name, suffix) for suffix in (".png", ".jpg")]
            save_picture(files[0], image)
            write_mask(files[1], mask)
            write_map(files[2], attention)
            save_picture(files[3], np.round(attention * 255).astype(np.uint8))
            paths = {key: path.relative_to(study.root).as_posix() for key, path in zip(COLUMNS, files, strict=True)}
            rows.append({"video_id": ad.video_id, "keyword": ad.keyword, "alignment": 0.3} | paths)
    table = pd.concat(
        [pd.DataFrame(rows)] * (SAMPLES // len(rows)), ignore_index=True
    )  # files are read again and again
    return table.assign(scene_number=table.groupby("video_id").cumcount() + 1)


def rows_for(table: pd.DataFrame, heatmap: str) -> pd.DataFrame:
    names = {"picture": "scene_picture_path", "mask": "keyword_mask_path", heatmap: "attention_heatmap_path"}
    return table.rename(columns=names)


def rate(module: SceneDataModule, floats: bool) -> tuple[float, float]:
    """Samples a second of the faster of two epochs after one to start the workers, and processor ms a sample."""
    rates, costs, loader = [], [], module.train_loader()
    for epoch in range(3):
        module.set_epoch(epoch)
        start, before, seen = time.perf_counter(), spent(loader), 0
        for batch in module.batches("train") if floats else loader:
            seen += len(batch["keyword"])
        if epoch:
            rates.append(seen / (time.perf_counter() - start))
            costs.append(1000 * (spent(loader) - before) / seen)
    return max(rates), min(costs)


def stages(study: Study, rows: pd.DataFrame, scales: dict[str, float]) -> dict[str, float]:
    """Milliseconds a sample, one thread, stage by stage."""
    some = [row for _, row in rows.head(SCENES).iterrows()]
    dataset = SceneDataset(study, rows, augment=Augmentation(), gains=GAINS, scales=scales)
    plain = SceneDataset(study, rows, scales=scales)
    samples = [dataset.compact(number) for number in range(8)]
    batch = collate(samples)
    found = {
        "picture": best(lambda: [read_picture(study.root / row.scene_picture_path) for row in some]) / SCENES,
        "mask": best(lambda: [read_mask(study.root / row.keyword_mask_path) for row in some]) / SCENES,
        "heatmap": best(lambda: [read_map(study.root / row.attention_heatmap_path) for row in some]) / SCENES,
        "whole sample": best(lambda: [plain.compact(number) for number in range(SCENES)]) / SCENES,
        "whole sample, augmented": best(lambda: [dataset.compact(number) for number in range(SCENES)]) / SCENES,
        "collate": best(lambda: collate(samples)) / len(samples),
        "to floats": best(lambda: prepare(batch)) / len(samples),
    }
    return {name: round(1000 * seconds, 2) for name, seconds in found.items()}


def main() -> None:
    """One JSON line a measurement."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for size, target in (((512, 512), ">= 400"), ((910, 512), None)):
        with tempfile.TemporaryDirectory() as folder:
            study = Study(Path(folder))
            table = write_scenes(study, size)
            scales = {str(video_id): 1.0 for video_id in table["video_id"].unique()}
            (study.root / "data").mkdir(exist_ok=True)
            study.attention_scales.write_text(json.dumps({"scales": scales}))
            for heatmap, title in (
                ("map16", "heatmap, 16-bit PNG"),
                ("map8", "heatmap, 8-bit JPG"),
                ("map8", "scalar"),
            ):
                rows = rows_for(table, heatmap)
                about = {"bench": "controls", "what": f"{title}, files {size[1]}x{size[0]}, samples 512x512"}
                if title != "scalar":
                    print(json.dumps(about | {"ms a sample": stages(study, rows, scales)}), flush=True)
                source = title.split(",")[0]
                config = load_config(
                    overrides=[
                        f"data.source={source}",
                        f"data.num_workers={WORKERS}",
                        "data.train_fraction=1",
                        "training.batch_size=16",
                    ]
                )
                module = SceneDataModule(study, config, rows)
                (compact, cost), (floats, cost_floats) = rate(module, False), rate(module, True)
                line = {
                    "samples a second": round(compact), "processor ms a sample": round(cost, 2),
                    "as floats, samples a second": round(floats), "as floats, processor ms": round(cost_floats, 2),
                    "workers": WORKERS, "cores": os.cpu_count(),
                }  # fmt: skip
                if target:
                    line["target"] = target
                print(json.dumps(about | line), flush=True)


if __name__ == "__main__":
    main()
