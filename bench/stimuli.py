"""Seven variants of an ad against the loops that they replace; what fewer steps give; memory for a long ad.

python bench/stimuli.py             half the width of Stable Diffusion 1.5, 256 px, 10 steps: ten minutes on two cores
python bench/stimuli.py --memory    a minute of 1080 x 1920 beside a quarter of it, without a model: half an hour
Weights of the first are random: time does not depend on them. Check results are measured with the miniatures.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from _measure import best
from sampling import controlnet_pipeline

from alignment_video.adapter import ControlAdapter
from alignment_video.attention import make_attention
from alignment_video.backbone import Backbone, as_tensor, write_untrained
from alignment_video.core import Study, VideoEditingConfig, write_text
from alignment_video.dial import Dial, Editing, held_out_scenes, judges
from alignment_video.editing import AdapterEditor, Editor, PhotometricEditor, View
from alignment_video.pictures import write_mask
from alignment_video.sampling import Guidance, Schedule
from alignment_video.scenes import cut_videos, read_scenes
from alignment_video.stimuli import Edits, Job, edits_needed, make_edits, make_stimuli, prepare, render
from alignment_video.validation import validate
from alignment_video.variants import plan_study, write_plan
from alignment_video.video import VideoWriter
from alignment_video.world import SOUND_RATE, Ad, soundtrack, truth_of

SIDE, STEPS = 256, 10


class Small(AdapterEditor):
    """The editor at another size than its backbone's own."""

    side = SIDE


def a_study(folder: str, enlarged: int = 1, **how):
    """A study of one ad of the world, with the masks that were drawn; its frames enlarged."""
    study, ad = Study(Path(folder) / "study"), Ad(36_300_000, **how)
    sound = soundtrack(ad.seed, ad.frames / ad.rate), SOUND_RATE
    with VideoWriter(study.video(ad.video_id), rate=ad.rate, sound=sound) as writer:
        for image in ad.play():
            writer.write(cv2.resize(image, None, fx=enlarged, fy=enlarged) if enlarged > 1 else image)
    write_text(study.keywords, f"_id,keyword_list[0]\n{ad.video_id},{ad.keyword}\n")
    cut_videos(study, [study.video(ad.video_id)])
    truth = truth_of(ad)
    for scene in read_scenes(study).to_dict("records"):
        mask = truth.mask(int(scene["picture_frame"])).astype(np.uint8)
        write_mask(study.mask(ad.video_id, scene["scene_number"]), np.repeat(np.repeat(mask, enlarged, 0), enlarged, 1))
    make_attention(study)
    validate(study)
    plan, _ = plan_study(study)
    write_plan(study, plan)
    return study, ad, plan.table


def seeds_edit(editor: AdapterEditor, view: View):
    """One edit as the seeds make it: the library's pipeline with a ControlNet, one frame and one variant at a time."""
    backbone, pipeline = editor.backbone, controlnet_pipeline(editor.backbone)
    picture, text = (as_tensor(view.picture) + 1) / 2, backbone.encode_text("a mug")
    negative = backbone.encode_text("")
    return lambda: pipeline(
        prompt_embeds=text.hidden, negative_prompt_embeds=negative.hidden, image=picture, control_image=picture,
        strength=editor.schedule.strength, num_inference_steps=STEPS, guidance_scale=7.5, output_type="pt",
    )  # fmt: skip


def whole(job: Job, plan: pd.DataFrame, editor: Editor) -> float:
    """Seconds for all of an ad's edits and frames, from nothing."""
    start = time.perf_counter()
    again = prepare(job.study, job.video_id, plan, editor)
    edits = Edits(job.study, editor)
    make_edits(again, edits)
    for _ in render(again, edits):
        pass
    return time.perf_counter() - start


def say(what: str, **figures: object) -> None:
    print(json.dumps({"bench": "stimuli", "what": what} | figures), flush=True)


def speed() -> None:
    """Against the seeds' loop, keyframe by keyframe, and against editing every frame."""
    with tempfile.TemporaryDirectory() as folder:
        write_untrained(f"{folder}/sd", "sd15", narrower=2)
        backbone = Backbone.from_pretrained(f"{folder}/sd", device="cpu")
        adapter = ControlAdapter.from_unet(backbone.unet, factor=backbone.factor).eval()
        study, ad, plan = a_study(folder, size=(480, 270), seconds=3, scenes=3)
        plain = Small(backbone, adapter, schedule=Schedule(STEPS, 0.8))
        guided = replace(plain, guidance=Guidance(7.5))
        job = prepare(study, ad.video_id, plan, plain)
        shot = job.shots[0]
        view = job.view(shot, job.sites[shot.number], 0, np.zeros((480, 270, 3), np.uint8))
        loop = seeds_edit(plain, view)
        loop()
        took = [best(loop, 1)]  # and again after each of ours, since machines change
        keyframes, made = job.keyframes, edits_needed(job)
        for name, editor in (("equal guidance, 7.5", guided), ("ours as it comes, without text guidance", plain)):
            start = time.perf_counter()
            make_edits(prepare(study, ad.video_id, plan, editor), Edits(study, editor))
            ours = time.perf_counter() - start
            took.append(best(loop, 1))
            one = sum(took[-2:]) / 2
            say(
                f"seven variants, all {keyframes} keyframes, against the seeds' {7 * keyframes} edits ({name})",
                seconds=round(ours, 1), edits=made, loop_seconds=round(7 * keyframes * one, 1),
                ratio=round(7 * keyframes * one / ours, 1), target="4, at equal steps and without propagation",
            )  # fmt: skip
        before = best(lambda: plain.edit([view], 1.5), 1)
        ours = whole(job, plan, replace(plain, seed=1))
        alone = (before + best(lambda: plain.edit([view], 1.5), 1)) / 2
        say(
            f"seven variants of {ad.frames} frames, carried, against editing every frame of each",
            seconds=round(ours, 1), loop_seconds=round(7 * ad.frames * alone, 1),
            ratio=round(7 * ad.frames * alone / ours, 1), target=20,
        )  # fmt: skip


def fewer_steps(count: int = 48) -> None:
    """Check results of solvers and steps: what became of alignment, and how long it took."""
    backbone = Backbone.from_pretrained("mini", device="cpu")
    adapter, scenes, by = ControlAdapter.load("mini", backbone), held_out_scenes(count, 35_800_000), judges()
    for solver, steps in (("ddim", 50), ("dpm++", 20), ("ddim", 20), ("dpm++", 10), ("ddim", 10)):
        dial = Dial(backbone, adapter, scenes, Editing(steps=steps, scheduler=solver))
        start = time.perf_counter()
        base, low, high = (dial.edit(gain) for gain in (1.0, 0.5, 1.5))
        seconds = time.perf_counter() - start
        ratios = {
            name: [
                round(float(np.mean(look(shown, scenes.masks) / look(base, scenes.masks))), 3) for shown in (low, high)
            ]
            for name, look in by.items()
        }
        say(f"{solver}, {steps} steps: alignment at gain 0.5 and 1.5", seconds=round(seconds, 1), **ratios)


def long_ad(seconds: int) -> None:
    """Make an ad's stimuli by rule, and print the peak of this process."""
    with tempfile.TemporaryDirectory() as folder:
        study, ad, plan = a_study(folder, 4, size=(480, 270), seconds=seconds, scenes=max(3, seconds // 5))
        start = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        make_stimuli(study, ad.video_id, plan, PhotometricEditor(), VideoEditingConfig())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"before": before, "peak": peak, "frames": ad.frames, "took": time.perf_counter() - start}))


def memory() -> None:
    """The peak for a minute of 1080 x 1920 beside that for a quarter."""
    told = {}
    for seconds in (15, 60):
        done = subprocess.run(
            [sys.executable, __file__, "--long", str(seconds)], check=True, stdout=subprocess.PIPE, text=True
        )
        told[seconds] = json.loads(done.stdout)
    short, long = told[15], told[60]
    say(
        "peak MB of making seven variants of 1080 x 1920, by rule",
        minute=round(long["peak"]), quarter=round(short["peak"]),
        frames=long["frames"], seconds=round(long["took"]), ratio=round(long["peak"] / short["peak"], 2), target="flat",
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    if "--long" in sys.argv:
        long_ad(int(sys.argv[-1]))
    elif "--memory" in sys.argv:
        memory()
    else:
        speed()
        fewer_steps()
