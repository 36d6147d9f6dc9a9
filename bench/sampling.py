"""Editing one frame against the library's ControlNet pipeline; the loop's own time; batches against one by one.

python bench/sampling.py            half the width of Stable Diffusion 1.5, 256 px, 20 steps: six minutes on two cores
python bench/sampling.py --full     the whole width (12 GB of memory, half an hour)
Weights are random: time does not depend on them. Both sides share U-Net, VAE, steps, size and solver, and run in turns.
"""

import json
import sys
import tempfile
import time

import torch

from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import Backbone, _diffusers, write_untrained
from alignment_video.sampling import Features, Guidance, Schedule, Start, _scheduler, common_noise, denoise

SIDE, STEPS, RUNS = 256, 20, 2


def in_turns(*works, runs=RUNS):
    """Seconds of each, the best of several turns; the machine is the same for all of them."""
    took = [[] for _ in works]
    for work in works:
        work()
    for _ in range(runs):
        for times, work in zip(took, works, strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return [min(times) for times in took]


def controlnet_pipeline(backbone):
    library = _diffusers()
    pipeline = library.StableDiffusionControlNetImg2ImgPipeline(
        vae=backbone.vae, unet=backbone.unet, text_encoder=None, tokenizer=None, feature_extractor=None,
        controlnet=library.ControlNetModel.from_unet(backbone.unet).eval(), safety_checker=None,
        scheduler=_scheduler("ddim", backbone.scheduler_config), requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def own_share(backbone, work):
    """The share of the time that is not spent in the U-Net."""
    inside, forward = [0.0], backbone.unet.forward

    def timed(*args, **given):
        start = time.perf_counter()
        found = forward(*args, **given)
        inside[0] += time.perf_counter() - start
        return found

    backbone.unet.forward = timed
    try:
        shares = []
        for _ in range(RUNS):
            inside[0], start = 0.0, time.perf_counter()
            work()
            shares.append(1 - inside[0] / (time.perf_counter() - start))
        return min(shares)
    finally:
        backbone.unet.forward = forward


def main() -> None:
    """One JSON line a measurement."""
    narrower = 1 if "--full" in sys.argv[1:] else 2
    with tempfile.TemporaryDirectory() as folder:
        write_untrained(folder, "sd15", narrower=narrower)
        backbone = Backbone.from_pretrained(folder, device="cpu")
    adapter, pipeline = (
        ControlAdapter.from_unet(backbone.unet, factor=backbone.factor).eval(),
        controlnet_pipeline(backbone),
    )
    text, negative = backbone.encode_text("a mug"), backbone.encode_text("")
    picture = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    control, edges = torch.rand(1, 2, SIDE, SIDE), torch.rand(1, 3, SIDE, SIDE)
    noise, schedule = common_noise(backbone, SIDE, SIDE, 0), Schedule(STEPS, 1.0)

    def ours(guidance):
        start = Start(backbone.encode(picture), noise)
        found = denoise(backbone, start, text, negative, guidance=guidance, schedule=schedule,
                        controls=[Features(adapter.features(control))])  # fmt: skip
        return backbone.decode(found)

    def theirs():
        return pipeline(prompt_embeds=text.hidden, negative_prompt_embeds=negative.hidden, image=(picture + 1) / 2,
                        control_image=edges, strength=1.0, num_inference_steps=STEPS, guidance_scale=7.5,
                        output_type="pt")  # fmt: skip

    width = f"U-Net of {sum(p.numel() for p in backbone.unet.parameters()) / 1e6:.0f}M"

    def say(what, **figures):
        told = {"bench": "sampling", "what": what, "of": f"{width}, {SIDE} px, {STEPS} steps"}
        print(json.dumps(told | figures), flush=True)

    mine, library, third = in_turns(lambda: ours(Guidance(7.5)), theirs, lambda: ours(Guidance(7.5, 1.5)))
    say("one frame edited, against the library's ControlNet image-to-image", ours_s=round(mine, 2),
        theirs_s=round(library, 2), ratio=round(library / mine, 2), target=1.25)  # fmt: skip
    say("three branches (control guidance) against two", ratio=round(third / mine, 2))

    start = Start(backbone.encode(picture), noise)
    features = Features(adapter.features(control))

    def loop():
        return denoise(backbone, start, text, negative, schedule=schedule, controls=[features])

    say("time of the loop outside the U-Net", share=round(own_share(backbone, loop), 4), target=0.05)

    eight = Start(torch.cat([start.frame] * 8), noise)
    small = Schedule(2, 1.0)

    def batch(count):
        return denoise(backbone, eight, text, negative, schedule=small, controls=[features], batch_size=count)

    whole, single = in_turns(lambda: batch(8), lambda: batch(1), runs=1)
    say("eight items in one batch, against one by one", ratio=round(single / whole, 2))


if __name__ == "__main__":
    main()
