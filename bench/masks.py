"""How many pictures a second the masker answers, singly and in batches, and what a study costs beside the model."""

import json
import os
import tempfile
from collections.abc import Sequence

import numpy as np
from _measure import best
from PIL import Image

from alignment_video.core import Study
from alignment_video.masks import KeywordMasker, make_masks
from alignment_video.world import still

SCENES, HEIGHT, WIDTH = 48, 480, 270


class Nothing:
    """A provider that takes no time."""

    name = "nothing"

    def probabilities(self, pictures: Sequence[np.ndarray], keywords: Sequence[Sequence[str]]) -> list[np.ndarray]:
        return [np.full((len(w), *p.shape[:2]), 0.6, np.float32) for p, w in zip(pictures, keywords, strict=True)]


def main() -> None:
    """One JSON line a measurement."""
    import torch

    masker = KeywordMasker.from_pretrained("mini", device="cpu")
    scenes = [still(64_000_000 + i, (HEIGHT, WIDTH)) for i in range(SCENES)]
    pictures, words = [s.image for s in scenes], [s.keyword for s in scenes]
    masker.probabilities(pictures[:2], words[:2])
    rates = {}
    for batch in (1, 8):
        masker.batch_size = batch
        rates[batch] = SCENES / best(lambda: masker.probabilities(pictures, words))
        line = {"bench": "masks", "what": f"mini, {WIDTH}x{HEIGHT}, batch {batch}"}
        line |= {"pictures a second": round(rates[batch], 1), "ratio to batch 1": round(rates[batch] / rates[1], 2)}
        print(json.dumps(line | {"threads": torch.get_num_threads(), "cores": os.cpu_count()}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(folder)
        for number, picture in enumerate(pictures, 1):
            path = study.scene_picture("7000", number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path, quality=95)
        study.keywords.write_text("video_id,keyword\n7000,ring\n")
        made = best(lambda: make_masks(study, Nothing(), force=True))
        again = best(lambda: make_masks(study, Nothing()))
    for what, took, target in [
        ("a study, without the model", made, ">= 50"),
        ("a study that is done", again, ">= 1000"),
    ]:
        line = {"bench": "masks", "what": what, "scenes a second": round(SCENES / took), "target": target}
        print(json.dumps(line | {"cores": os.cpu_count()}), flush=True)


if __name__ == "__main__":
    main()
