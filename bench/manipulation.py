"""What the check of finished films costs beside making them, and what calibration costs in edits.

python bench/manipulation.py    one ad of the world, the miniature at 10 steps and at the default 50: two minutes
"""

import json
import shutil
import tempfile
import time
from pathlib import Path

import torch

from alignment_video.core import Config, VideoEditingConfig
from alignment_video.films import mini_editor, world_study
from alignment_video.manipulation import calibrate, check_films, judges_of
from alignment_video.stimuli import Edits, make_stimuli, prepare


def timed(work) -> tuple[float, object]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def main() -> None:
    """Make, check and calibrate; the check is run twice, since the first time also loads what it measures with."""
    with tempfile.TemporaryDirectory() as folder:
        study, ad, plan = world_study(36_300_050, Path(folder) / "ads")
        check_films_of = lambda: check_films(study, ad.video_id, Config())  # noqa: E731
        for steps in (10, VideoEditingConfig().num_inference_steps):
            for lossless in (False, True):
                editor = mini_editor(steps)
                shutil.rmtree(study.outputs / "edits", ignore_errors=True)
                shutil.rmtree(study.stimuli, ignore_errors=True)
                making, _ = timed(
                    lambda editor=editor, lossless=lossless: make_stimuli(
                        study, ad.video_id, plan, editor, VideoEditingConfig(), lossless=lossless
                    )
                )
                check_films_of()
                checking, _ = timed(check_films_of)
                told = {
                    "making": round(making, 1),
                    "checking": round(checking, 1),
                    "share": round(checking / making, 2),
                }
                what = f"seven films of {ad.frames} frames, {steps} steps, {'lossless' if lossless else 'encoded'}"
                print(
                    json.dumps({"bench": "manipulation", "what": what} | told | {"target": "0.2 at most"}), flush=True
                )
        editor = mini_editor(10)
        job, edits = prepare(study, ad.video_id, plan, editor, VideoEditingConfig()), Edits(study, editor)
        seconds, table = timed(lambda: calibrate(job, edits, judges_of(study, ad.video_id, Config())[0][0]))
        told = {
            "wishes": len(table),
            "edits": int(table["edits"].sum()),
            "tries": round(float(table["tries"].mean()), 1),
        }
        print(json.dumps({"bench": "manipulation", "what": "calibration"} | told | {"seconds": round(seconds, 1)}))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
