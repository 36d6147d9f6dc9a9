"""One training step against the library's: that of its ControlNet example, on the same models and batch.

python bench/training.py           a quarter of the width of Stable Diffusion 1.5, 128 px: about a minute on two cores
python bench/training.py --half    half the width, 256 px: several minutes
Weights are random: time does not depend on them. Both sides run in turns; the VAE has the layers of the real one.
"""

import json
import sys
import tempfile
import time

import numpy as np
import torch

from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import ARCHITECTURES, Backbone, _diffusers, _narrow, write_untrained
from alignment_video.controls import CAP, _packed_sample, collate
from alignment_video.core import TrainingConfig
from alignment_video.training import Trainer, batch_of, cache_latents, draws_of

BATCH, RUNS = 2, 3


class Noise:
    """Examples of any size."""

    def __init__(self, count, side):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def set_epoch(self, epoch):
        pass

    def compact(self, index):
        dice = np.random.default_rng(index)
        mask = np.zeros((self.side, self.side), np.uint8)
        mask[self.side // 4 : self.side // 2, self.side // 4 : self.side // 2] = 255
        planes = {"picture": dice.integers(0, 256, (self.side, self.side, 3)).astype(np.uint8), "mask": mask,
                  "attention": (0.1 + mask / 400).astype(np.float32)}  # fmt: skip
        facts = {"keyword": "mug", "video_id": f"v{index}", "scene_number": 1}
        return facts | _packed_sample(planes, {**facts, "alignment": 0.4}, 1.5, CAP, {f"v{index}": 1.0})


def backbone_of(narrower):
    """An untrained Stable Diffusion 1.5, its VAE as deep as the real one."""
    with tempfile.TemporaryDirectory() as folder:
        write_untrained(f"{folder}/sd", "sd15", narrower=narrower)
        made = Backbone.from_pretrained(f"{folder}/sd", device="cpu")
    vae = _diffusers().AutoencoderKL(**_narrow(ARCHITECTURES["sd15"]["vae"], narrower))
    return Backbone(made.unet, vae, made.tokenizers, made.text_encoders, made.scheduler_config, "bench", untrained=True)


def library_step(backbone):
    """The step of the library's own example for ControlNet training: everything is encoded anew."""
    library = _diffusers()
    net = library.ControlNetModel.from_unet(backbone.unet, conditioning_channels=2).train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-5)
    noise_schedule = library.DDPMScheduler.from_config(backbone.scheduler_config)
    tokenizer, encoder = backbone.tokenizers[0], backbone.text_encoders[0]

    def step(batch):
        latents = backbone.vae.encode(batch["picture"]).latent_dist.sample() * backbone.scaling_factor
        ids = tokenizer(["a mug"] * len(latents), padding="max_length", max_length=77, return_tensors="pt").input_ids
        hidden = encoder(ids)[0]
        noise, steps = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),))
        noisy = noise_schedule.add_noise(latents, noise, steps)
        down, middle = net(noisy, steps, hidden, batch["control"], return_dict=False)
        said = backbone.unet(noisy, steps, hidden, down_block_additional_residuals=down,
                             mid_block_additional_residual=middle, return_dict=False)[0]  # fmt: skip
        torch.nn.functional.mse_loss(said, noise).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(weight.numel() for weight in net.parameters())


def in_turns(*works):
    """Seconds of each, the best of several turns."""
    took = [[] for _ in works]
    for turn in range(RUNS + 1):
        for times, work in zip(took, works, strict=True):
            start = time.perf_counter()
            work()
            if turn:  # the first warms up
                times.append(time.perf_counter() - start)
    return [min(times) for times in took]


def main() -> None:
    """One JSON line a measurement."""
    narrower, side = (2, 256) if "--half" in sys.argv[1:] else (4, 128)
    backbone = backbone_of(narrower)
    theirs, their_size = library_step(backbone)
    settings = {"batch_size": BATCH, "walk_steps": [4, 4], "warmup_steps": 0}
    trainers = {}
    for name, weight in (("noise", 0.0), ("whole", 2.0)):
        adapter = ControlAdapter.from_unet(backbone, base_channels=96 // narrower)
        trainers[name] = Trainer(backbone, adapter, TrainingConfig(lambda_consistency=weight, **settings))
    with tempfile.TemporaryDirectory() as folder:
        data = cache_latents(backbone, Noise(BATCH, side), folder)
        compact = collate([data.compact(i) for i in range(BATCH)])

        def ours(name):
            batch = batch_of(backbone, data, compact)  # what a step reads from the disk is part of the step
            draws = draws_of([(0, 0, i) for i in range(BATCH)], batch["latents"], trainers[name].config)
            trainers[name].step([(batch, draws)])

        batch = batch_of(backbone, data, compact)
        mine, library, whole = in_turns(lambda: ours("noise"), lambda: theirs(batch), lambda: ours("whole"))
    shape = f"U-Net of {sum(p.numel() for p in backbone.unet.parameters()) / 1e6:.0f}M, {side} px, batch {BATCH}"
    sizes = f"adapter {sum(p.numel() for p in adapter.parameters()) / 1e6:.1f}M, ControlNet {their_size / 1e6:.0f}M"

    def say(what, **figures):
        print(json.dumps({"bench": "training", "what": what, "of": f"{shape}, {sizes}", **figures}), flush=True)

    say("a step of noise loss with latents from the disk, against the library's ControlNet step",
        ours_s=round(mine, 2), theirs_s=round(library, 2), ratio=round(library / mine, 2), target=2)  # fmt: skip
    say("the same with the counterfactual half (two walks of 4 steps, two decodings), against the noise loss alone",
        whole_s=round(whole, 2), noise_s=round(mine, 2), times=round(whole / mine, 2))  # fmt: skip


if __name__ == "__main__":
    main()
