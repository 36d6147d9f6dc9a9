"""Training and editing at 512 px on a graphics card, against the library's ControlNet and the card's own ceiling.

python bench/gpu.py                        Stable Diffusion 1.5 at full width in 16 bits, random weights: nothing is
                                           downloaded; about five minutes; figures under data/evidence
python bench/gpu.py --miniatures FOLDER    also trains the miniatures there (--minutes 30)
python bench/gpu.py --tiny                 the same steps at a tiny size, also without a card; its figures say nothing
Weights are random: time does not depend on them. Both sides share U-Net, VAE, size, steps and solver, and run in turns.
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import (
    ARCHITECTURES,
    Backbone,
    _diffusers,
    _narrow,
    _new_text,
    _silent,
    add_noise,
    explain_memory,
    target,
)
from alignment_video.core import Refused, write_json
from alignment_video.sampling import Features, Guidance, Schedule, Start, _scheduler, common_noise, denoise

root = Path(__file__).resolve().parents[1]
KNOWN = {"U-Net, a sample and step": 0.803, "ControlNet, a step": 0.283, "adapter, once": 0.058, "VAE": 3.6}  # TFLOP
GUIDANCE, STRENGTH = 7.5, 0.8


class Sizes:
    """How large everything is."""

    def __init__(self, tiny: bool, asked: argparse.Namespace):
        self.narrower, self.side, self.steps = (16, 64, 3) if tiny else (1, 512, 50)
        self.batch, self.frames = (1, 1) if tiny else (asked.batch, asked.frames)
        self.seconds, self.square = (0.1, 256) if tiny else (asked.seconds, 8192)
        self.channels = 16 if tiny else 96
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16


class Clock:
    """Seconds and the most memory of a piece of work, with the card's queue emptied before and after."""

    def __init__(self, device):
        self.card = device.type == "cuda"

    def __enter__(self):
        if self.card:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.begun = time.perf_counter()
        return self

    def __exit__(self, *error):
        if self.card:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.begun
        self.memory = torch.cuda.max_memory_allocated() / 2**30 if self.card else None


def random_model(sizes):
    """Stable Diffusion 1.5 with random weights, made on the device itself."""
    config, library = ARCHITECTURES["sd15"], _diffusers()
    with torch.device(sizes.device):
        torch.manual_seed(0)
        unet = library.UNet2DConditionModel(**_narrow(config["unet"], sizes.narrower))
        vae = library.AutoencoderKL(**_narrow(config["vae"], sizes.narrower))
        tokenizer, text = _new_text(config["texts"][0], sizes.narrower, pooled=False)
    parts = [part.to(sizes.device, sizes.dtype) for part in (unet, vae, text)]
    return Backbone(parts[0], parts[1], [tokenizer], [parts[2]], config["scheduler"], "random", untrained=True)


def flops(work):
    """Floating-point operations of a piece of work, counted, in TFLOP."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


def best(work, device, runs=2):
    """Seconds and memory of the fastest of several runs, after one that does not count."""
    work()
    clocks = []
    for _ in range(runs):
        with Clock(device) as clock:
            work()
        clocks.append(clock)
    return min(clocks, key=lambda clock: clock.seconds)


def ceiling(sizes):
    """TFLOP/s of a large product of matrices: what the card gives at best."""
    a, b = (torch.randn(sizes.square, sizes.square, device=sizes.device, dtype=sizes.dtype) for _ in range(2))
    times = 20

    def work():
        for _ in range(times):
            a @ b

    return times * 2 * sizes.square**3 / best(work, sizes.device).seconds / 1e12


class Training:
    """Steps of training a control on a frozen backbone by the noise loss, from latents that were encoded once."""

    def __init__(self, backbone, sizes, latents, text, module, residuals, channels):
        self.backbone, self.sizes, self.latents, self.text, self.residuals = backbone, sizes, latents, text, residuals
        self.module = module.to(sizes.device, torch.float32).train().requires_grad_(True)
        self.optimiser = torch.optim.AdamW(self.module.parameters(), lr=1e-5)
        self.control = torch.rand(sizes.batch, channels, sizes.side, sizes.side, device=sizes.device)
        self.losses = []

    def loss(self):
        count, place = self.sizes.batch, self.sizes.device
        chosen = torch.randint(len(self.latents), (count,))
        clean, steps = self.latents[chosen], torch.randint(1000, (count,))
        noise, known = torch.randn_like(clean), self.backbone.alphas_cumprod
        noisy = add_noise(clean, noise, steps, known)
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            residuals = self.residuals(self.module, noisy, steps.to(place), self.text, self.control)
        found = self.backbone.predict(noisy, steps.to(place), self.text, residuals)
        return (found - target(clean, noise, steps, known)).square().mean()

    def step(self):
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.losses.append(loss.detach())

    def run(self):
        """Steps for so many seconds, and what they cost."""
        work = flops(lambda: self.loss().backward())
        for _ in range(3):
            self.step()
        done = 0
        with Clock(self.sizes.device) as clock:
            while time.perf_counter() - clock.begun < self.sizes.seconds:
                self.step()
                done += 1
                if done % 8 == 0 and clock.card:
                    torch.cuda.synchronize()  # or the queue would run ahead of the clock
        if not bool(torch.stack(self.losses).isfinite().all()):
            raise Refused("a loss is no number; the run says nothing")
        count = done * self.sizes.batch
        return {"images_s": count / clock.seconds, "memory_gib": clock.memory, "tflop_s": done * work / clock.seconds,
                "tflop_an_image": work / self.sizes.batch, "steps": done}  # fmt: skip


def ours(module, noisy, steps, text, control):
    return module(control)


def theirs(module, noisy, steps, text, control):
    return module(noisy, steps, text.hidden.to(noisy.dtype), control, return_dict=False)


def training(backbone, sizes, say):
    """An adapter's training step against a ControlNet's."""
    count = 2 * sizes.batch
    pictures = torch.rand(count, 3, sizes.side, sizes.side, device=sizes.device) * 2 - 1
    with Clock(sizes.device) as clock:
        latents = backbone.encode(pictures).clone()
    say("encoding, once for all epochs", images_s=count / clock.seconds)
    text = backbone.encode_text("a mug").rows(sizes.batch)
    adapter = ControlAdapter.from_unet(backbone.unet, factor=backbone.factor, base_channels=sizes.channels)
    net = _diffusers().ControlNetModel.from_unet(backbone.unet)
    found = {}
    for name, module, residuals, channels in (("adapter", adapter, ours, 2), ("ControlNet", net, theirs, 3)):
        found[name] = Training(backbone, sizes, latents, text, module, residuals, channels).run()
        say(f"training, {name}", **found[name])
    say("training, adapter against ControlNet", ratio=found["adapter"]["images_s"] / found["ControlNet"]["images_s"])
    return adapter.to(sizes.dtype).eval().requires_grad_(False), net.to(sizes.dtype).eval().requires_grad_(False)


def pipeline_of(backbone, net):
    library = _diffusers()
    pipeline = library.StableDiffusionControlNetImg2ImgPipeline(
        vae=backbone.vae, unet=backbone.unet, text_encoder=None, tokenizer=None, feature_extractor=None,
        controlnet=net, safety_checker=None, requires_safety_checker=False,
        scheduler=_scheduler("ddim", backbone.scheduler_config),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def editing(backbone, sizes, adapter, net, say):
    """Frames edited by the one loop, against the library's ControlNet image-to-image pipeline."""
    for count in sorted({1, sizes.frames}):
        with torch.inference_mode():
            mine, library = both_ways(backbone, sizes, adapter, net, count)
            work = flops(mine) / count
            clocks = {"one loop": best(mine, sizes.device), "ControlNet pipeline": best(library, sizes.device)}
        for name, clock in clocks.items():
            more = {"tflop_s": count * work / clock.seconds, "tflop_an_image": work} if name == "one loop" else {}
            say(f"editing, {name}, {count} at a time", images_s=count / clock.seconds, memory_gib=clock.memory, **more)
        ratio = clocks["ControlNet pipeline"].seconds / clocks["one loop"].seconds
        say(f"editing against the ControlNet pipeline, {count} at a time", ratio=ratio)


def both_ways(backbone, sizes, adapter, net, count):
    """The same frames, prompt, steps and solver, edited here and by the library."""
    pipeline, schedule = pipeline_of(backbone, net), Schedule(sizes.steps, STRENGTH)
    noise = common_noise(backbone, sizes.side, sizes.side, 0)
    text, negative = backbone.encode_text("a mug"), backbone.encode_text("")
    rows = [each.hidden.to(sizes.dtype).expand(count, -1, -1) for each in (text, negative)]
    picture, control, edges = (torch.rand(count, n, sizes.side, sizes.side, device=sizes.device) for n in (3, 2, 3))

    def mine():
        start = Start(backbone.encode(picture * 2 - 1, batch_size=count), noise)
        latents = denoise(backbone, start, text, negative, guidance=Guidance(GUIDANCE), schedule=schedule,
                          controls=[Features(adapter.features(control))], batch_size=count)  # fmt: skip
        return backbone.decode(latents, batch_size=count)

    def library():
        return pipeline(
            prompt_embeds=rows[0], negative_prompt_embeds=rows[1], image=picture, control_image=edges,
            strength=STRENGTH, num_inference_steps=sizes.steps, guidance_scale=GUIDANCE, output_type="pt",
        )  # fmt: skip

    return mine, library


def miniatures(folder, minutes, say):
    """The recipe of the miniatures, trained there; what was trained before goes on."""
    from alignment_video.mini_diffusion import make

    with Clock(torch.device("cpu")) as clock:
        make(folder, minutes, "auto", processes=8, say=lambda line: print(line, file=sys.stderr))
    figures = json.loads((Path(folder) / "figures.json").read_text(encoding="utf-8"))
    say("miniatures trained", seconds=clock.seconds, decibels=figures["backbone"]["decibels"],
        named_rightly=figures["recogniser"]["named rightly"])  # fmt: skip


def rounded(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(arguments):
    """One JSON line a measurement, and all of them in a dated file."""
    parser = argparse.ArgumentParser("gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=60, help="of each training (60)")
    parser.add_argument("--batch", type=int, default=8, help="samples in a training step (8)")
    parser.add_argument("--frames", type=int, default=8, help="frames edited at a time (8)")
    parser.add_argument("--miniatures", type=Path, help="also train the miniatures in this folder")
    parser.add_argument("--minutes", type=float, default=30, help="for the miniatures (30)")
    parser.add_argument("--out", type=Path, help="the file of figures (data/evidence/gpu-DATE.json)")
    asked = parser.parse_args(arguments)
    if not asked.tiny and not torch.cuda.is_available():
        print(
            json.dumps({"bench": "gpu", "what": "refused: no CUDA device here; use one, or --tiny to see that it runs"})
        )
        return
    sizes = Sizes(asked.tiny, asked)
    device = torch.cuda.get_device_name() if sizes.device.type == "cuda" else "cpu"
    told, lines = {"device": device, "torch": torch.__version__, "tiny": asked.tiny}, list[dict[str, object]]()
    width = f" / {sizes.narrower}" if asked.tiny else ""
    size = f"Stable Diffusion 1.5{width}, {sizes.side} px, {sizes.steps} steps x {STRENGTH}"

    def say(what, **figures):
        line = {"bench": "gpu", "what": what, "of": size, **{key: rounded(value) for key, value in figures.items()}}
        if top and "tflop_s" in line:
            line["share_of_ceiling"] = rounded(figures["tflop_s"] / top)
        lines.append(line)
        print(json.dumps(line), flush=True)

    top = 0.0
    with explain_memory(batch=sizes.batch, frames=sizes.frames), _silent():
        top = ceiling(sizes)
        say("ceiling: products of large matrices", tflop_per_s=top)
        backbone = random_model(sizes)
        adapter, net = training(backbone, sizes, say)
        editing(backbone, sizes, adapter, net, say)
    if not asked.tiny:
        run = Schedule(sizes.steps, STRENGTH).run
        whole = 2 * run * KNOWN["U-Net, a sample and step"] + KNOWN["adapter, once"] + KNOWN["VAE"]
        say("known beforehand, TFLOP", **KNOWN, edit=whole)
    if asked.miniatures:
        miniatures(asked.miniatures, asked.minutes, say)
    now = datetime.now(UTC)
    file = asked.out or (None if asked.tiny else root / f"data/evidence/gpu-{now:%Y-%m-%d}.json")
    if file:
        write_json(
            file,
            {
                **told,
                "date": f"{now:%Y-%m-%d}",
                "command": "python bench/gpu.py " + " ".join(arguments),
                "lines": lines,
            },
        )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Refused as error:
        sys.exit(str(error))
