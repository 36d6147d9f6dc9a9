"""The loop against the library's pipelines, and what must hold of it whatever the weights: exact backgrounds, controls
at every step, batches that do not matter, inversion that leads back."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import (
    ARCHITECTURES,
    Backbone,
    Text,
    _diffusers,
    as_pictures,
    as_tensor,
    on_meta,
    write_untrained,
)
from alignment_video.controls import apply_gain, heatmap_control
from alignment_video.core import Refused
from alignment_video.sampling import (
    SCHEDULERS,
    Branch,
    Features,
    Guest,
    Guidance,
    Hole,
    Network,
    Schedule,
    Start,
    _scheduler,
    common_noise,
    denoise,
    features_of,
    hole_of,
    invert,
    latent_mask,
    other_attention,
)
from alignment_video.world import still

STEPS = 6
NOISE = 1e-4  # float noise: latents have values up to about ten


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for architecture in ("sd15", "sd21", "sdxl"):
        found[architecture] = tmp_path_factory.mktemp(architecture)
        write_untrained(found[architecture], architecture)
    return found


@pytest.fixture(scope="module")
def backbones(folders):
    return {architecture: Backbone.from_pretrained(folder, device="cpu") for architecture, folder in folders.items()}


@pytest.fixture(scope="module")
def sd15(backbones):
    return backbones["sd15"]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(net, seed=1):
    """The zero convolutions of an adapter or a ControlNet, no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in net.named_parameters():
        if "controlnet_" in name or name.startswith("zero"):
            weight.data.normal_(0, 0.2, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def adapter(sd15):
    return filled(ControlAdapter.from_unet(sd15.unet, base_channels=16))


def pipeline_of(backbone, kind, net=None, text_to_image=False):
    """The library's pipeline on the same weights, with its own loop."""
    library = _diffusers()
    parts = {"vae": backbone.vae, "unet": backbone.unet, "scheduler": _scheduler(kind, backbone.scheduler_config)}
    parts |= {"text_encoder": backbone.text_encoders[0], "tokenizer": backbone.tokenizers[0], "feature_extractor": None}
    if net is not None:
        parts["controlnet"] = net
    if backbone.kind == "sdxl":
        parts |= {"text_encoder_2": backbone.text_encoders[1], "tokenizer_2": backbone.tokenizers[1]}
        parts |= {"force_zeros_for_empty_prompt": backbone.zeros_for_empty, "add_watermarker": False}
        name = "StableDiffusionXLControlNetImg2ImgPipeline" if net is not None else "StableDiffusionXLImg2ImgPipeline"
    else:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
        name = "StableDiffusionPipeline" if text_to_image else "StableDiffusionImg2ImgPipeline"
        name = "StableDiffusionControlNetImg2ImgPipeline" if net is not None else name
    pipeline = getattr(library, name)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(backbone, kind, strength, guidance, latents, net=None, picture=None, negative="blurred"):
    """What the library's pipeline makes of the latents, with the noise of seed 5."""
    asked = {"prompt": ["a mug"] * len(latents)}
    if negative is not None:
        asked["negative_prompt"] = [negative] * len(latents)
    if net is not None:
        asked |= {"control_image": picture, "controlnet_conditioning_scale": 0.7}
    generator = torch.Generator().manual_seed(5)
    return pipeline_of(backbone, kind, net)(
        image=latents, strength=strength, num_inference_steps=STEPS, guidance_scale=guidance, generator=generator,
        output_type="latent", **asked,
    ).images  # fmt: skip


def texts(backbone):
    return backbone.encode_text("a mug"), backbone.encode_text("blurred")


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("architecture", ["sd15", "sd21"])
def test_image_to_image_equals_the_librarys(backbones, architecture, kind):
    backbone, latents, noise = backbones[architecture], random(2, 4, 8, 8, seed=3), random(2, 4, 8, 8, seed=5)
    assert backbone.prediction_type == {"sd15": "epsilon", "sd21": "v_prediction"}[architecture]
    for strength, guidance in ((0.34, 7.5), (0.8, 7.5), (1.0, 3.0), (0.8, 1.0)):
        expected = theirs(backbone, kind, strength, guidance, latents)
        found = denoise(
            backbone, Start(latents, noise), *texts(backbone), schedule=Schedule(STEPS, strength, kind),
            guidance=Guidance(guidance),
        )  # fmt: skip
        assert (found - expected).abs().max() < NOISE, (strength, guidance)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("architecture", ["sd15", "sd21"])
def test_a_controlnet_equals_the_librarys(backbones, architecture, kind):
    backbone, latents, noise = backbones[architecture], random(2, 4, 8, 8, seed=3), random(2, 4, 8, 8, seed=5)
    net = filled(_diffusers().ControlNetModel.from_unet(backbone.unet))
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    for strength, guidance in ((0.8, 7.5), (0.5, 1.0)):
        expected = theirs(backbone, kind, strength, guidance, latents, net, picture)
        how = {"schedule": Schedule(STEPS, strength, kind), "guidance": Guidance(guidance)}
        found = denoise(backbone, Start(latents, noise), *texts(backbone), controls=[Network(net, picture, 0.7)], **how)
        without = denoise(backbone, Start(latents, noise), *texts(backbone), **how)
        assert (found - expected).abs().max() < NOISE, (strength, guidance)
        assert (found - without).abs().max() > 0.1, "the ControlNet does nothing: the test would prove nothing"


@pytest.mark.parametrize("kind", ["ddim", "euler"])
def test_sdxl_equals_the_librarys(backbones, kind):
    backbone, latents, noise = backbones["sdxl"], random(2, 4, 8, 8, seed=3), random(2, 4, 8, 8, seed=5)
    schedule = Schedule(STEPS, 0.8, kind)
    found = denoise(backbone, Start(latents, noise), *texts(backbone), schedule=schedule)
    assert (found - theirs(backbone, kind, 0.8, 7.5, latents)).abs().max() < NOISE
    net = filled(_diffusers().ControlNetModel.from_unet(backbone.unet))
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with_net = denoise(
        backbone, Start(latents, noise), *texts(backbone), schedule=schedule, controls=[Network(net, picture, 0.7)]
    )
    assert (with_net - theirs(backbone, kind, 0.8, 7.5, latents, net, picture)).abs().max() < NOISE
    assert (with_net - found).abs().max() > 0.1
    text, nothing = backbone.encode_text("a mug"), backbone.encode_text("", negative=True)
    unguided = denoise(backbone, Start(latents, noise), text, nothing, schedule=schedule)
    assert (unguided - theirs(backbone, kind, 0.8, 7.5, latents, negative=None)).abs().max() < NOISE


def test_noise_alone_equals_text_to_image(sd15):
    noise = random(1, 4, 8, 8, seed=5)
    for kind in SCHEDULERS:
        expected = pipeline_of(sd15, kind, text_to_image=True)(
            "a mug", negative_prompt="blurred", num_inference_steps=STEPS, latents=noise, output_type="latent"
        ).images
        found = denoise(sd15, Start(noise=noise, blank=True), *texts(sd15), schedule=Schedule(STEPS, 1.0, kind))
        assert (found - expected).abs().max() < NOISE, kind


@pytest.fixture(scope="module")
def filling(sd15):
    """An untrained inpainting model: the U-Net reads nine channels."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        unet = _diffusers().UNet2DConditionModel.from_config({**sd15.unet.config, "in_channels": 9})
    return Backbone(unet, sd15.vae, sd15.tokenizers, sd15.text_encoders, sd15.scheduler_config, "nine", untrained=True)


def test_filling_a_hole_equals_the_librarys(filling):
    pictures = as_tensor([still(36_400_000, (64, 64)).image])
    mask, noise = torch.zeros(64, 64), random(1, 4, 8, 8, seed=5)
    mask[20:44, 12:40] = 1
    hole = hole_of(filling, pictures, mask)
    parts = {"vae": filling.vae, "unet": filling.unet, "tokenizer": filling.tokenizers[0], "feature_extractor": None}
    parts |= {"text_encoder": filling.text_encoders[0], "safety_checker": None, "requires_safety_checker": False}
    for kind in ("ddim", "dpm++"):
        pipeline = _diffusers().StableDiffusionInpaintPipeline(
            scheduler=_scheduler(kind, filling.scheduler_config), **parts
        )
        pipeline.set_progress_bar_config(disable=True)
        expected = pipeline(
            "a mug", negative_prompt="blurred", image=pictures, mask_image=torch.repeat_interleave(
                torch.repeat_interleave(hole.mask, 8, 2), 8, 3), masked_image_latents=hole.around, height=64, width=64,
            strength=1.0, num_inference_steps=STEPS, latents=noise, output_type="latent",
        ).images  # fmt: skip
        how = {"schedule": Schedule(STEPS, 1.0, kind), "hole": hole}
        found = denoise(filling, Start(noise=noise, blank=True), *texts(filling), **how)
        assert (found - expected).abs().max() < NOISE, kind


def test_a_hole_is_grey_to_the_rim_and_one_row_stands_for_all(filling):
    pictures = as_tensor([still(36_400_000 + i, (64, 64)).image for i in range(3)])
    mask = torch.zeros(3, 1, 64, 64)
    mask[0, :, 30, 30] = mask[1, :, 8:17, 40:48] = mask[2] = 1
    hole = hole_of(filling, pictures, mask)
    assert hole.mask.flatten(1).sum(1).tolist() == [1, 2, 64]
    inside = torch.repeat_interleave(torch.repeat_interleave(hole.mask, 8, 2), 8, 3)
    assert torch.equal(hole.around, filling.encode(torch.where(inside > 0, torch.zeros(()), pictures)))
    text, start = filling.encode_text("a mug"), Start(noise=random(1, 4, 8, 8), blank=True)
    how = {"guidance": Guidance(1.0), "schedule": Schedule(3, 1.0)}
    together = denoise(filling, start, text, hole=hole, batch_size=2, **how)
    for row in range(3):
        one = Hole(hole.mask[row : row + 1], hole.around[row : row + 1])
        assert (denoise(filling, start, text, hole=one, **how) - together[row]).abs().max() < NOISE


def test_holes_that_cannot_be(filling, sd15):
    pictures, text = torch.zeros(1, 3, 64, 64), filling.encode_text("a mug")
    hole, start = hole_of(filling, pictures, torch.ones(64, 64)), Start(noise=random(1, 4, 8, 8), blank=True)
    how = {"guidance": Guidance(1.0), "schedule": Schedule(3, 1.0)}
    for backbone, given, message in (
        (filling, None, "fills holes, and none is given"),
        (sd15, hole, "is no inpainting model"),
        (filling, hole.mask, "make it with hole_of"),
        (filling, hole_of(filling, torch.zeros(1, 3, 32, 32), torch.ones(32, 32)), r"hole, mask: \(4, 4\)"),
    ):
        with pytest.raises(Refused, match=message):
            denoise(backbone, start, text, hole=given, **how)
    with pytest.raises(Refused, match="give one of their size"):
        hole_of(filling, pictures, torch.ones(32, 32))


def test_strength_runs_the_last_steps(sd15):
    for kind in SCHEDULERS:
        whole = Schedule(10, 1.0, kind).begin(sd15)[1]
        for strength, run in ((0.1, 1), (0.29, 2), (0.8, 8), (1.0, 10)):
            timesteps = Schedule(10, strength, kind).begin(sd15)[1]
            assert torch.equal(timesteps, whole[10 - run :])


def test_latents_are_never_clipped(sd15):
    config = sd15.scheduler_config | {"clip_sample": True}
    assert not _scheduler("ddim", config).config.clip_sample


def features(adapter, rows=1, seed=7, **more):
    return Features(
        adapter.features(torch.rand(rows, 2, 64, 64, generator=torch.Generator().manual_seed(seed))), **more
    )


def test_a_batch_of_eight_is_eight_batches_of_one(sd15, adapter):
    latents, noise = random(8, 4, 8, 8, seed=3), common_noise(sd15, 64, 64, "same")
    prompt = sd15.encode_text([f"picture {i}" for i in range(8)])
    edit = (random(8, 1, 8, 8, seed=9) > 0).float()
    net = filled(_diffusers().ControlNetModel.from_unet(sd15.unet))
    picture = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    controls = [features(adapter, 8, mask=edit), Network(net, picture, 0.5, mask=edit)]
    for guidance in (Guidance(3.0), Guidance(3.0, 2.0), Guidance(1.0, 2.0)):
        how = {"guidance": guidance, "schedule": Schedule(4, 0.75, "dpm++"), "controls": controls, "edit": edit}
        at_once, in_threes, one_by_one = (
            denoise(sd15, Start(latents, noise), prompt, sd15.encode_text(""), batch_size=size, **how)
            for size in (8, 3, 1)
        )
        assert max((at_once - other).abs().max() for other in (in_threes, one_by_one)) < NOISE
        assert (at_once[0] - at_once[1]).abs().max() > 0.1


def test_the_control_is_there_at_every_step(sd15, adapter):
    """A list that the U-Net empties would leave the second step without a control; so would a wrong window."""
    seen = []

    def spy(module, args, given):
        down, middle = given["down_block_additional_residuals"], given["mid_block_additional_residual"]
        seen.append((len(down), [float(level.abs().sum()) for level in [*down, middle]]))

    handle = sd15.unet.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        latents, noise = random(1, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
        how = {"schedule": Schedule(STEPS, 1.0), "guidance": Guidance(1.0)}
        denoise(sd15, Start(latents, noise), *texts(sd15), controls=[features(adapter)], **how)
    finally:
        handle.remove()
    assert len(seen) == STEPS
    assert all(count == 12 and min(sums) > 0 for count, sums in seen)
    assert all(sums == seen[0][1] for _, sums in seen)
    # and each of those steps matters: a control that stops after the first gives another picture
    whole, first_only = (
        denoise(sd15, Start(latents, noise), *texts(sd15), controls=[features(adapter, when=(0.0, last))], **how)
        for last in (1.0, 1 / STEPS)
    )
    assert (whole - first_only).abs().max() > 0.01


def test_the_librarys_other_way_empties_its_list(sd15):
    """Why the loop passes tuples: this is what it would walk into."""
    text = sd15.encode_text("a mug").hidden
    channels = sd15.unet.config.block_out_channels
    given = [torch.ones(1, width, 8 // 2**i, 8 // 2**i) for i, width in enumerate(channels)]
    with torch.no_grad():
        sd15.unet(random(1, 4, 8, 8), 10, text, down_intrablock_additional_residuals=given)
    assert given == []


def test_absent_controls_are_absent_to_the_bit(sd15, adapter):
    latents, noise = random(1, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    schedule = Schedule(STEPS, 0.8)
    without = denoise(sd15, Start(latents, noise), *texts(sd15), schedule=schedule)
    nothing = torch.zeros(1, 1, 64, 64)
    for control, guidance in (
        (features(adapter, scale=0.0), Guidance()),
        (features(adapter, mask=nothing), Guidance()),
        (features(adapter), Guidance(7.5, 0.0)),
        (
            Features(ControlAdapter.from_unet(sd15.unet, base_channels=16).features(torch.rand(1, 2, 64, 64))),
            Guidance(),
        ),
    ):
        found = denoise(
            sd15, Start(latents, noise), *texts(sd15), schedule=schedule, guidance=guidance, controls=[control]
        )
        assert torch.equal(found, without)
    present = denoise(sd15, Start(latents, noise), *texts(sd15), schedule=schedule, controls=[features(adapter)])
    assert (present - without).abs().max() > 0.1


def test_control_guidance_is_the_third_branch(sd15, adapter):
    """Against the rule written out with three calls of the U-Net."""
    latents, noise, control = random(1, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5), features(adapter)
    schedule, (text, negative) = Schedule(1, 1.0), texts(sd15)
    scheduler, timesteps = schedule.begin(sd15)
    noisy = Start(latents, noise).first(scheduler, timesteps)
    with torch.no_grad():
        plain, without = (sd15.predict(noisy, timesteps[0], each) for each in (text, negative))
        controlled = sd15.predict(noisy, timesteps[0], text, control.given)
        other = features(adapter, seed=8)
        baseline = sd15.predict(noisy, timesteps[0], text, other.given)
    for chosen, nearer, of in (
        (Guidance(5.0, 2.0), control, without + 5 * (plain - without) + 2 * (controlled - plain)),
        (Guidance(5.0, 5.0), control, without + 5 * (controlled - without)),
        (Guidance(1.0, 2.0), control, plain + 2 * (controlled - plain)),
        (Guidance(1.0, 2.0), Features(control.given, without=other.given), baseline + 2 * (controlled - baseline)),
    ):
        expected = scheduler.step(of, timesteps[0], noisy, return_dict=False)[0]
        found = denoise(
            sd15, Start(latents, noise), text, negative, guidance=chosen, schedule=schedule, controls=[nearer]
        )
        assert (found - expected).abs().max() < NOISE


def test_weights_may_be_maps(sd15):
    """Two prompts, each in its half of the picture: what regions are made of."""
    latents, noise = random(1, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    text, negative = texts(sd15)
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    schedule = Schedule(1, 1.0)
    both = [Branch("left", text, False, left), Branch("right", negative, False, 1 - left)]
    found = denoise(sd15, Start(latents, noise), text, branches=both, schedule=schedule)
    alone = [
        denoise(sd15, Start(latents, noise), each, schedule=schedule, guidance=Guidance(1.0))
        for each in (text, negative)
    ]
    assert (found - torch.where(left > 0, *alone)).abs().max() < NOISE


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_background_is_the_same_to_the_bit(sd15, adapter, kind):
    latents, noise = random(3, 4, 8, 8, seed=3), common_noise(sd15, 64, 64, 1)
    mask = torch.zeros(3, 1, 64, 64)
    for i in range(3):
        mask[i, :, 8 + 8 * i : 30, 20:40] = 1
    edit = latent_mask(sd15, mask)
    soft = torch.nn.functional.avg_pool2d(edit, 3, 1, 1)
    for start in (Start(latents, noise), Start(latents, noise, blank=True)):
        for weights in (edit, soft, edit[:1]):
            found = denoise(
                sd15, start, *texts(sd15), schedule=Schedule(STEPS, 1.0, kind), controls=[features(adapter)],
                edit=weights,
            )  # fmt: skip
            outside = (weights == 0).expand_as(latents)
            assert torch.equal(found[outside], latents[outside])
            assert (found - latents).abs()[~outside].max() > 0.1


@pytest.mark.parametrize("architecture", ["sd15", "sd21"])
def test_inversion_leads_back(backbones, architecture):
    backbone, latents = backbones[architecture], random(2, 4, 8, 8, seed=3)
    text, schedule = backbone.encode_text("a mug"), Schedule(12, 0.75)
    found = {}
    for refine in (0, 8):
        path = invert(backbone, latents, text, schedule=schedule, refine=refine)
        assert len(path.levels) == 10 and torch.equal(path.levels[0], latents)
        again = denoise(backbone, Start(path=path), text, guidance=Guidance(1.0), schedule=schedule)
        error = float((backbone.decode(again) - backbone.decode(latents)).square().mean())
        found[refine] = 10 * math.log10(4 / error)
    print(f"{architecture}: {found[0]:.1f} dB as usual, {found[8]:.1f} dB refined")
    assert found[0] < 45 and found[8] > 60 and path.error.max() < 1e-3
    one_by_one = invert(backbone, latents, text, schedule=schedule, batch_size=1)
    assert (torch.stack(path.levels) - torch.stack(one_by_one.levels)).abs().max() < 1e-3
    assert invert(backbone, latents, text, schedule=schedule, refine=1).error.max() > 1e-3  # it says so
    picture = backbone.encode(as_tensor(still(11).image))  # far from what is usual: its latents are small
    path_of_it = invert(backbone, picture, text, schedule=schedule, refine=30)
    back = denoise(backbone, Start(path=path_of_it), text, guidance=Guidance(1.0), schedule=schedule)
    error = float((backbone.decode(back) - backbone.decode(picture)).square().mean())
    print(f"{architecture}: a picture {10 * math.log10(4 / error):.1f} dB")
    assert 10 * math.log10(4 / error) > 40
    edit = torch.zeros(1, 1, 8, 8)
    edit[..., 2:5, 2:5] = 1
    edited = denoise(backbone, Start(path=path), *texts(backbone), schedule=schedule, edit=edit)
    outside = (edit == 0).expand_as(latents)
    assert torch.equal(edited[outside], latents[outside])


def test_inversion_of_a_backbone_that_answers_with_pictures(sd15):
    latents, text, schedule = random(1, 4, 8, 8, seed=3), sd15.encode_text("a mug"), Schedule(20, 0.8)
    usual = sd15.scheduler_config
    sd15.scheduler_config = usual | {"prediction_type": "sample"}
    try:
        path = invert(sd15, latents, text, schedule=schedule, refine=30, tolerance=1e-5)
        again = denoise(sd15, Start(path=path), text, guidance=Guidance(1.0), schedule=schedule)
    finally:
        sd15.scheduler_config = usual
    assert (again - latents).abs().max() < 0.01


def test_one_row_stands_for_all_whatever_the_batch(sd15, adapter):
    """One inverted frame, or one frame, and several variants: with any batch size."""
    latents, schedule = random(1, 4, 8, 8, seed=3), Schedule(4, 0.75)
    path = invert(sd15, latents, sd15.encode_text(""), schedule=schedule, refine=1)
    several = features(adapter, 3, mask=torch.ones(3, 1, 8, 8), without=features(adapter, 3, seed=8).given)
    noises = torch.cat([common_noise(sd15, 64, 64, i) for i in range(3)])
    for start in (Start(path=path), Start(latents, noises), Start(latents, noises[:1])):
        found = [
            denoise(
                sd15, start, *texts(sd15), guidance=Guidance(3.0, 2.0), schedule=schedule, controls=several,
                edit=(random(1, 1, 8, 8) > 0).float(), batch_size=size,
            )
            for size in (1, 2, 8)
        ]  # fmt: skip
        assert found[0].shape == (3, 4, 8, 8)
        assert max((found[0] - other).abs().max() for other in found[1:]) < NOISE


def test_unrefined_inversion_is_the_librarys(sd15):
    latents, text, steps = random(1, 4, 8, 8, seed=3), sd15.encode_text("a mug"), 10
    found = invert(sd15, latents, text, schedule=Schedule(steps, 1.0), refine=0)
    scheduler = _diffusers().DDIMInverseScheduler.from_config(sd15.scheduler_config, clip_sample=False)
    scheduler.set_timesteps(steps)
    expected = latents
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            answer = sd15.predict(expected, timestep, text)
            expected = scheduler.step(answer, int(timestep), expected).prev_sample
    assert (found.levels[-1] - expected).abs().max() < NOISE
    assert list(found.timesteps) == scheduler.timesteps.tolist()


def test_inversion_with_a_control_and_guidance(sd15, adapter):
    latents, schedule = random(1, 4, 8, 8, seed=3), Schedule(20, 0.5)
    how = {
        "guidance": Guidance(1.5, 1.2),
        "schedule": schedule,
        "controls": [features(adapter, when=(0.4, 1.0), scale=0.3)],
    }
    path = invert(sd15, latents, *texts(sd15), refine=30, tolerance=1e-5, **how)
    again = denoise(sd15, Start(path=path), *texts(sd15), **how)
    assert (again - latents).abs().max() < 0.01


def test_guests(sd15):
    told, called = [], []

    class Counting:
        def __init__(self, name, usual):
            self.name, self.usual = name, usual

        def __call__(self, *args, **kwargs):
            called.append(self.name)
            return self.usual(*args, **kwargs)

    guest = Guest(
        attention=Counting,
        before=lambda step: told.append((step.index, step.count, step.rows, [branch.name for branch in step.branches])),
        after=lambda step, latents: latents + (step.index == 1),
    )
    before = dict(sd15.unet.attn_processors)
    latents, noise = random(2, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    edit = torch.zeros(1, 1, 8, 8)
    found = denoise(
        sd15, Start(latents, noise), *texts(sd15), schedule=Schedule(2, 1.0), guests=[guest], batch_size=1, edit=edit
    )
    assert told == [(i, 2, range(j, j + 1), ["negative", "text"]) for j in (0, 1) for i in (0, 1)]
    assert len(called) == 4 * len(before)
    assert torch.equal(found, latents)  # what a guest does outside the mask does not last
    assert dict(sd15.unet.attn_processors) == before
    with pytest.raises(ZeroDivisionError), other_attention(sd15.unet, Counting):
        assert set(map(type, sd15.unet.attn_processors.values())) == {Counting}
        raise ZeroDivisionError
    assert dict(sd15.unet.attn_processors) == before


def test_progress_and_no_gradients(sd15):
    seen = []
    latents, noise = random(1, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    found = denoise(
        sd15, Start(latents, noise), *texts(sd15), schedule=Schedule(4, 0.5), progress=lambda *state: seen.append(state)
    )
    assert seen == [(1, 2), (2, 2)] and not found.requires_grad


@pytest.mark.parametrize("architecture", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("kind", ["ddim", "dpm++"])
def test_an_edit_at_full_size_on_the_meta_device(architecture, kind):
    """Adapter, three branches, two steps of the solver and the blend, through the backbone's own call."""
    library, known = _diffusers(), ARCHITECTURES[architecture]
    with torch.device("meta"):
        vae = library.AutoencoderKL(**known["vae"])
    readers = [torch.nn.Identity() for _ in known["texts"]]  # the text is given below, already read
    for reader, text in zip(readers, known["texts"], strict=True):
        reader.config = SimpleNamespace(hidden_size=text["hidden_size"])
    backbone = Backbone(on_meta(architecture), vae, [], readers, known["scheduler"], name=architecture)
    side, width = backbone.unet.config.sample_size, backbone.unet.config.cross_attention_dim
    pooled = torch.empty(1, 1280, device="meta") if architecture == "sdxl" else None
    text = Text(torch.empty(1, 77, width, device="meta"), pooled)
    adapter = ControlAdapter.from_unet(backbone).to("meta")
    control = Features(adapter(torch.empty(2, 2, 8 * side, 8 * side, device="meta")))
    latents, edit = torch.zeros(2, 4, side, side), torch.ones(1, 1, side, side)
    found = denoise(
        backbone, Start(latents, latents[:1]), text, text, guidance=Guidance(7.5, 2.0), controls=[control], edit=edit,
        schedule=Schedule(3, 0.7, kind),
    )  # fmt: skip
    assert found.is_meta and found.shape == latents.shape


def by_hand(backbone, i, start, text, negative, guidance, schedule, features, networks, edit):
    """Item `i` alone, each branch in a call of its own: the loop's meaning, written out once more."""

    def mine(given):
        return given if given is None or len(given) == 1 else given[i : i + 1]

    def added_by(residuals, scale, mask):
        levels = [mine(level) * scale for level in (*residuals[0], residuals[1])]
        if mask is None:
            return levels
        plane = torch.nn.functional.adaptive_max_pool2d(mine(mask), levels[0].shape[-2:])
        for number, level in enumerate(levels):
            while plane.shape[-2:] != level.shape[-2:]:
                plane = torch.nn.functional.max_pool2d(plane, 2, ceil_mode=True)
            levels[number] = level * plane
        return levels

    scheduler, timesteps = schedule.begin(backbone)
    frame, noise = mine(start.frame), mine(start.noise)
    latents = scheduler.add_noise(frame, noise, timesteps[:1])
    size = tuple(8 * side for side in frame.shape[-2:])
    for index, timestep in enumerate(timesteps):
        given = scheduler.scale_model_input(latents, timestep)

        def acts(control, index=index):
            return index / len(timesteps) >= control.when[0] and (index + 1) / len(timesteps) <= control.when[1]

        def ask(words, controlled, given=given, timestep=timestep, acts=acts):
            words = Text(mine(words.hidden), mine(words.pooled))
            extra = backbone.added(words, size) or None
            parts = []
            for control in filter(acts, features):
                residuals = control.given if controlled else control.without
                parts += [added_by(residuals, control.scale, control.mask)] if residuals else []
            for control in filter(acts, networks if controlled else []):
                down, middle = control.net(
                    given, timestep, encoder_hidden_states=words.hidden, controlnet_cond=mine(control.picture),
                    conditioning_scale=control.scale, added_cond_kwargs=extra, return_dict=False,
                )  # fmt: skip
                parts.append(added_by((down, middle), 1.0, control.mask))
            more = {}
            if parts:
                *down, middle = [sum(levels) for levels in zip(*parts, strict=True)]
                more = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
            return backbone.unet(given, timestep, words.hidden, added_cond_kwargs=extra, return_dict=False, **more)[0]

        if guidance.control is None:
            answer = ask(negative, True)
            answer = answer + guidance.text * (ask(text, True) - answer)
        else:
            without, plain, controlled = ask(negative, False), ask(text, False), ask(text, True)
            answer = without + guidance.text * (plain - without) + guidance.control * (controlled - plain)
        latents = scheduler.step(answer, timestep, latents, return_dict=False)[0]
        last = index + 1 == len(timesteps)
        kept = frame if last else scheduler.add_noise(frame, noise, timesteps[index + 1 : index + 2])
        latents = mine(edit) * latents + (1 - mine(edit)) * kept
    return latents


@pytest.mark.parametrize(
    ("architecture", "kind", "config"),
    [
        ("sd15", "ddim", {}),
        ("sd15", "unipc", {"timestep_spacing": "linspace"}),
        ("sd15", "dpm++", {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
        ("sd21", "euler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
        ("sdxl", "ddim", {"timestep_spacing": "linspace", "set_alpha_to_one": True}),
    ],
)
def test_everything_at_once_equals_the_loop_by_hand(backbones, architecture, kind, config):
    """Two adapters' features, a ControlNet, masks, windows, soft edges, odd sizes and rows of every kind."""
    backbone, generator = backbones[architecture], torch.Generator().manual_seed(0)
    usual = backbone.scheduler_config
    high, wide = (9, 7) if architecture == "sd15" else (8, 8)
    adapter, second = (filled(ControlAdapter.from_unet(backbone, base_channels=16, seed=i), i) for i in (0, 1))
    net = filled(_diffusers().ControlNetModel.from_unet(backbone.unet))

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    pixels = (8 * high, 8 * wide)
    controls = [
        Features(
            adapter.features(uniform(3, 2, *pixels)), scale=0.7, mask=(uniform(1, 1, *pixels) > 0.98).float(),
            when=(0.0, 0.5), without=adapter.features(uniform(1, 2, *pixels)),
        ),
        Features(second.features(uniform(1, 2, *pixels)), mask=uniform(3, 1, high, wide), when=(0.2, 1.0)),
        Network(net, uniform(1, 3, *pixels), 0.6, mask=(uniform(3, 1, high, wide) > 0.5).float(), when=(0.25, 1.0)),
    ]  # fmt: skip
    text, negative = backbone.encode_text(["a mug", "dog", "x"]), backbone.encode_text("", negative=True)
    start = Start(random(3, 4, high, wide, seed=3), random(1, 4, high, wide, seed=5))
    edit, schedule = uniform(3, 1, high, wide), Schedule(5, 0.8, kind)
    backbone.scheduler_config = usual | config
    try:
        for guidance in (Guidance(3.0), Guidance(3.0, 2.0)):
            found = denoise(
                backbone, start, text, negative, guidance=guidance, schedule=schedule, controls=controls, edit=edit,
                batch_size=2,
            )  # fmt: skip
            with torch.no_grad():
                expected = torch.cat([
                    by_hand(backbone, i, start, text, negative, guidance, schedule, controls[:2], controls[2:], edit)
                    for i in range(3)
                ])  # fmt: skip
            assert (found - expected).abs().max() < NOISE
    finally:
        backbone.scheduler_config = usual


def test_the_librarys_default_spacing_too(backbones):
    """A configuration that does not say how timesteps are spaced leaves it to each solver."""
    backbone, latents, noise = backbones["sd15"], random(1, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    usual = backbone.scheduler_config
    backbone.scheduler_config = {key: value for key, value in usual.items() if key != "timestep_spacing"}
    try:
        for kind in SCHEDULERS:
            expected = theirs(backbone, kind, 0.8, 7.5, latents)
            found = denoise(backbone, Start(latents, noise), *texts(backbone), schedule=Schedule(STEPS, 0.8, kind))
            assert (found - expected).abs().max() < NOISE, kind
    finally:
        backbone.scheduler_config = usual


def whole_path(folder, side, steps):
    """From a folder and bytes of a picture to bytes of a picture, as a user goes it."""
    scene = still(11, (side, side))
    backbone = Backbone.from_pretrained(folder, device="cpu")
    adapter = filled(ControlAdapter.from_unet(backbone))
    attention = apply_gain(np.random.default_rng(0).random((side, side), np.float32), scene.mask, 1.5)
    control = heatmap_control(scene.mask, attention)[None]
    latents = backbone.encode(as_tensor(scene.image))
    edit = latent_mask(backbone, scene.mask)

    def edited(adapter):
        found = denoise(
            backbone, Start(latents, common_noise(backbone, side, side, 0)), backbone.encode_text("a mug"),
            backbone.encode_text("", negative=True), guidance=Guidance(5.0, 1.5), schedule=Schedule(steps, 0.75),
            controls=features_of(backbone, adapter, control), edit=edit,
        )  # fmt: skip
        return found, as_pictures(backbone.decode(found))

    (found, pictures), again = edited(adapter), edited(ControlAdapter.load(adapter.save(folder / "adapter"), backbone))
    assert pictures.shape == (1, side, side, 3) and pictures.dtype == np.uint8
    assert np.array_equal(pictures, again[1])
    outside = (edit == 0).expand_as(latents)
    assert outside.any() and torch.equal(found[outside], latents[outside])
    assert (found - latents).abs()[~outside].max() > 0.1
    before = as_pictures(backbone.decode(latents)).astype(int)
    assert np.abs(pictures - before).max() > 0


@pytest.mark.parametrize("architecture", ["sd15", "sd21", "sdxl"])
def test_the_whole_path(folders, architecture):
    whole_path(folders[architecture], 64, 4)


@pytest.mark.skipif(os.environ.get("SLOW") != "1", reason="the full width needs minutes and 12 GB; set SLOW=1")
def test_the_whole_path_at_full_width(tmp_path):
    write_untrained(tmp_path, "sd15", narrower=1, dtype="float16")
    whole_path(tmp_path, 64, 4)


def refused(sd15, message, start=None, text=None, negative=None, **how):
    latents, noise = random(2, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    usual = texts(sd15)
    with pytest.raises(Refused, match=message) as caught:
        denoise(
            sd15, Start(latents, noise) if start is None else start, usual[0] if text is None else text,
            usual[1] if negative is None else negative, **({"schedule": Schedule(2, 1.0)} | how),
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_schedules_and_starts_that_cannot_be():
    latents, noise = random(2, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    with pytest.raises(Refused, match=r"strength 0\.01 of 50 steps leaves 0 steps; use a strength from 0\.02 on"):
        Schedule(50, 0.01)
    for strength in (0, -1, 1.5, float("nan"), "0.8", None):
        with pytest.raises(Refused, match="use a number above 0, up to 1"):
            Schedule(50, strength)
    for steps in (0, 2.5, True, "50"):
        with pytest.raises(Refused, match="steps"):
            Schedule(steps, 1.0)
    for made, message in (
        (lambda: Start(latents), "common_noise"),
        (lambda: Start(noise=noise), "blank=True"),
        (lambda: Start(latents * float("nan"), noise), "frame holds NaN"),
        (lambda: Start(latents, noise * float("inf")), "noise holds NaN or infinite"),
        (lambda: Start(latents, random(1, 4, 8, 9)), "give one row of that size"),
        (lambda: Start(latents, random(3, 4, 8, 8)), "give one row of that size"),
        (lambda: Start(latents.numpy(), noise), "frame is of type ndarray; give latents"),
        (lambda: Start(latents[0], noise), "give latents N×C×h×w of floats"),
        (lambda: Start(latents.long(), noise), "of torch.int64; give latents"),
        (lambda: Start(path=(latents, latents)), "path is of type tuple; give what `invert` returned"),
    ):
        with pytest.raises(Refused, match=message):
            made()


def test_masks_in_any_form(sd15):
    plane = np.zeros((64, 64), bool)
    plane[3:5, 30:33] = True
    found = [
        latent_mask(sd15, mask, grow=0)
        for mask in (plane, torch.tensor(plane), torch.tensor(plane)[None, None].float(), plane.astype("uint8"))
    ]
    assert all(torch.equal(each, found[0]) for each in found) and found[0].shape == (1, 1, 8, 8)
    assert found[0].sum() == 2 and found[0][0, 0, 0, 3:5].all()
    for mask, message in (
        (plane[:63], "63"),
        (plane[None], "give H×W or N×1×H×W"),
        (plane.astype(float) * 255, "values from 0"),
        ("mask.png", "mask of type str"),
    ):
        with pytest.raises(Refused, match=message):
            latent_mask(sd15, mask)
    latents, noise = random(1, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    how = {"schedule": Schedule(2, 1.0)}
    inside = found[0][0, 0] > 0
    expected = denoise(sd15, Start(latents, noise), *texts(sd15), edit=found[0], **how)
    for mask in (inside, inside.numpy(), found[0]):
        assert torch.equal(denoise(sd15, Start(latents, noise), *texts(sd15), edit=mask, **how), expected)


def test_controls_that_cannot_be(sd15, adapter, backbones):
    given, control = features(adapter).given, torch.rand(1, 2, 64, 64)
    net = _diffusers().ControlNetModel.from_unet(sd15.unet)
    picture = torch.rand(1, 3, 64, 64)
    for made, message in (
        (lambda: Features(control), "features of type Tensor are no residuals; give Features"),
        (lambda: Features(adapter), "features of type ControlAdapter"),
        (lambda: Features((given[0], given[1] * float("nan"))), "features hold NaN"),
        (lambda: Features(given, scale=None), "control scale None"),
        (lambda: Features(given, scale=float("inf")), "control scale inf"),
        *((lambda when=when: Features(given, when=when), "give two shares of the steps")
          for when in ((20, 80), (0.8, 0.2), (0, 0), (0, 20), (float("nan"), 1), 0.5)),
        (lambda: Features(given, mask=torch.ones(3, 64, 64)), "control mask of shape"),
        (lambda: Network(adapter, control), "network is of type ControlAdapter; give a ControlNetModel"),
        (lambda: Network(net, picture[:, :2]), "give a tensor N×3×H×W"),
        (lambda: Network(net, picture * 255), "divide bytes by 255"),
        (lambda: features_of(backbones["sd21"], adapter, control), "cross_attention_dim"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=message):
            made()
    refused(sd15, "ControlNet is .32, 64., the frame .64, 64.; resize it", controls=[Network(net, picture[:, :, :32])])
    other = _diffusers().ControlNetModel.from_unet(backbones["sd21"].unet)
    refused(sd15, "ControlNet reads text of width", controls=[Network(other, picture)])
    refused(sd15, "control 0 is of type ControlAdapter; make Features", controls=[adapter])
    refused(sd15, "control 0 is of type tuple; make Features", controls=[given])
    refused(sd15, r"when=\(0.3, 0.45\) covers none of 2 steps", controls=[Features(given, when=(0.3, 0.45))])
    refused(sd15, "rows for 3 items", controls=[features(adapter, 3)])
    refused(sd15, "rows for 3 items", controls=[features(adapter, mask=torch.ones(3, 1, 64, 64))])
    fewer = filled(ControlAdapter.from_unet(sd15.unet.config | {"layers_per_block": 1}, factor=8, base_channels=16))
    refused(sd15, "down residuals", controls=[features(fewer)])
    plane = Features(given, mask=np.ones((64, 64), bool))  # one control need not be in a list, a mask may be a plane
    latents, noise, how = random(1, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5), {"schedule": Schedule(2, 1.0)}
    alone, listed = (
        denoise(sd15, Start(latents, noise), *texts(sd15), controls=each, **how) for each in (plane, [Features(given)])
    )
    assert (alone - listed).abs().max() < NOISE


def test_bad_input_gets_one_line(sd15, backbones):
    latents, noise = random(2, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    refused(sd15, "text is of type str; encode it first", text="a mug")
    refused(sd15, "negative text is of type str; encode it first", negative="")
    refused(sd15, "text is of type list", text=[])
    refused(sd15, "guidance is of type float", guidance=7.5)
    refused(sd15, "text guidance '7.5'", guidance=Guidance("7.5"))
    refused(sd15, "text guidance nan", guidance=Guidance(float("nan")))
    refused(sd15, "control guidance 2, and no control", guidance=Guidance(7.5, 2.0))
    refused(sd15, "schedule is of type int", schedule=50)
    refused(sd15, "start is of type Tensor", start=latents)
    refused(sd15, "strength 0.5 leaves some out", start=Start(noise=noise, blank=True), schedule=Schedule(4, 0.5))
    refused(sd15, "texts of different widths", text=backbones["sd21"].encode_text("a"))
    refused(sd15, "text of branch text: 3 rows for 3 items|start: 2 rows", text=sd15.encode_text(["a", "b", "c"]))
    for size in (0, 1.5, True):
        refused(sd15, "batch size", batch_size=size)
    refused(sd15, "make it with latent_mask", edit=torch.ones(1, 1, 64, 64))
    refused(sd15, "edit: a mask has values from 0", edit=torch.full((1, 1, 8, 8), 2.0))
    refused(sd15, "no frame to keep", start=Start(noise=noise, blank=True), edit=torch.ones(1, 1, 8, 8))
    text = texts(sd15)[0]
    for weight in (0.5, torch.full((1, 1, 8, 8), 0.5)):
        refused(sd15, "do not sum to one everywhere", branches=[Branch("text", text, False, weight)])
    refused(sd15, "latents are .8, 8.: give", branches=[Branch("text", text, False, torch.ones(1, 1, 4, 4))])
    refused(sd15, "there is no control", branches=[Branch("text", text, True, 1.0)])
    refused(sd15, "give one of them", branches=[Branch("text", text, False, 1.0)], guidance=Guidance(3.0))
    refused(
        sd15,
        "weight of branch text: 3 rows|start: 2 rows for 3",
        branches=[Branch("text", text, False, torch.ones(3, 1, 8, 8))],
    )
    refused(sd15, "cannot be cut into so many", schedule=Schedule(1000, 1.0))
    refused(sd15, "cannot be cut into so many", schedule=Schedule(1000, 1.0, "unipc"))
    refused(sd15, "cannot be cut into so many", schedule=Schedule(1001, 1.0))
    usual = sd15.scheduler_config
    sd15.scheduler_config = usual | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    try:
        refused(sd15, "begins with noise alone", schedule=Schedule(4, 1.0))
    finally:
        sd15.scheduler_config = usual
    with pytest.raises(Refused, match="a guest with `after`"):
        invert(sd15, latents, text, guests=[Guest(after=lambda step, found: found)])
    with pytest.raises(Refused, match="only ddim"):
        invert(sd15, latents, sd15.encode_text(""), schedule=Schedule(2, 1.0, "unipc"))
    for wrong in ({"refine": -1}, {"refine": 1.5}, {"tolerance": float("nan")}, {"tolerance": 0}):
        with pytest.raises(Refused, match="use a whole number from 0 on"):
            invert(sd15, latents, sd15.encode_text(""), **wrong)
    with pytest.raises(Refused, match="frame holds NaN"):
        invert(sd15, latents * float("nan"), sd15.encode_text(""))
    path = invert(sd15, latents, sd15.encode_text(""), schedule=Schedule(4, 0.75), refine=0)
    for schedule in (Schedule(4, 1.0), Schedule(8, 0.375), Schedule(4, 0.75, "euler"), Schedule(5, 0.6)):
        refused(sd15, "invert and denoise with the same one", start=Start(path=path), schedule=schedule)


def test_broken_weights_and_full_memory_get_one_line(folders):
    backbone = Backbone.from_pretrained(folders["sd15"], device="cpu")
    with torch.no_grad():
        backbone.unet.conv_out.weight.fill_(float("nan"))
    refused(backbone, "latents turned NaN at step 1 of 2, items 0 to 1")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    backbone.unet.forward = full
    refused(backbone, r"out of memory \(asked for 2.00 GiB more\); lower batch_size \(now 8\)")


def test_common_noise_is_pinned(sd15):
    """The same on every machine and in every version, or stimuli could not be made again."""
    noise = common_noise(sd15, 64, 64, "ad", 7)
    assert noise.shape == (1, 4, 8, 8) and noise.dtype == torch.float32
    assert np.allclose(noise.flatten()[:3], [0.5202, -0.2379, 1.4208], atol=1e-4)


def anchored_by_hand(backbone, frame, noise, text, edited, baseline, mask, schedule):
    """DDIM in six lines: a step from the edit, less what the same step from the frame's own path misses it by."""
    _, timesteps = schedule.begin(backbone)
    kept = backbone.alphas_cumprod
    levels = [kept[int(t)] for t in timesteps]
    levels.append(_scheduler("ddim", backbone.scheduler_config).final_alpha_cumprod)
    path = [level.sqrt() * frame + (1 - level).sqrt() * noise for level in levels[:-1]] + [frame]
    latents = path[0]
    for i, t in enumerate(timesteps):
        ends = []
        for x, residuals in ((latents, edited), (path[i], baseline)):
            error = backbone.predict(x, t, text.rows(len(x)), residuals)
            clean = (x - (1 - levels[i]).sqrt() * error) / levels[i].sqrt()
            ends.append(levels[i + 1].sqrt() * clean + (1 - levels[i + 1]).sqrt() * error)
        latents = mask * (ends[0] - ends[1] + path[i + 1]) + (1 - mask) * path[i + 1]
    return latents


def anchor_case(sd15, adapter):
    frame, noise = random(2, 4, 8, 8), common_noise(sd15, 64, 64, "anchor")
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 1:5] = 1
    return frame, noise, sd15.encode_text("a mug"), features(adapter, 2, 3), features(adapter, 2, 4), mask


def test_an_anchored_edit_equals_the_loop_by_hand(sd15, adapter):
    frame, noise, text, edited, baseline, mask = anchor_case(sd15, adapter)
    schedule = Schedule(STEPS, 0.8)
    plain = {"guidance": Guidance(text=1), "schedule": schedule, "edit": mask}
    found = denoise(sd15, Start(frame, noise), text, controls=[edited], anchor=[baseline], **plain)
    by_hand = anchored_by_hand(sd15, frame, noise, text, edited.given, baseline.given, mask, schedule)
    assert (found - by_hand).abs().max() < NOISE
    free = denoise(sd15, Start(frame, noise), text, controls=[edited], **plain)
    assert (found - free).abs().max() > 0.1
    assert torch.equal(found * (1 - mask), frame * (1 - mask))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_baseline_comes_back(sd15, adapter, kind):
    frame, noise, text, edited, _, _ = anchor_case(sd15, adapter)
    how = {"guidance": Guidance(3.0, 1.5), "schedule": Schedule(STEPS, 0.8, kind), "controls": [edited]}
    found = denoise(sd15, Start(frame, noise), text, sd15.encode_text("", negative=True), anchor=[edited], **how)
    assert (found - frame).abs().max() < NOISE


def test_one_row_of_an_anchor_is_asked_once_for_all(sd15, adapter, monkeypatch):
    frame, noise, text, edited, baseline, _ = anchor_case(sd15, adapter)
    one = Features((tuple(r[:1] for r in baseline.given[0]), baseline.given[1][:1]))
    many = Features((tuple(r.repeat(2, 1, 1, 1) for r in one.given[0]), one.given[1].repeat(2, 1, 1, 1)))
    asked, predict = [], sd15.predict
    monkeypatch.setattr(sd15, "predict", lambda x, *more: asked.append(len(x)) or predict(x, *more))
    how = {"guidance": Guidance(text=1), "schedule": Schedule(STEPS, 0.8), "controls": [edited]}
    found = [denoise(sd15, Start(frame[:1], noise), text, anchor=[a], **how) for a in (one, many)]
    assert (found[0] - found[1]).abs().max() < NOISE
    count = len(how["schedule"].begin(sd15)[1])
    assert asked == [2, 1] * count + [2, 2] * count


def test_anchors_that_cannot_be(sd15, adapter):
    frame, noise, text, edited, baseline, _ = anchor_case(sd15, adapter)
    how = {"controls": [edited], "guidance": Guidance(text=1)}
    refused(sd15, "of type str", Start(frame, noise), text, anchor=["baseline"], **how)
    refused(sd15, "has no frame", Start(frame, noise, blank=True), text, anchor=[baseline],
            schedule=Schedule(STEPS, 1.0), **how)  # fmt: skip
    three = Features(
        (tuple(r[:1].repeat(3, 1, 1, 1) for r in baseline.given[0]), baseline.given[1][:1].repeat(3, 1, 1, 1))
    )
    refused(sd15, "anchor: 3 rows for 2 items", Start(frame[:1], noise), text, anchor=[three], **how)
    late = Features(baseline.given, when=(0.9, 0.95))
    refused(sd15, "covers none of", Start(frame, noise), text, anchor=[late], schedule=Schedule(4), **how)
    other = Guest(attention=lambda name, processor: processor)
    refused(sd15, "leave out one of them", Start(frame, noise), text, anchor=[baseline], guests=[other], **how)
