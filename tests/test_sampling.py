"""The loop against the library's pipelines, and what must hold of it whatever the weights: exact backgrounds, controls
at every step, batches that do not matter, inversion that leads back."""

import math

import numpy as np
import pytest
import torch

from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import Backbone, Text, _diffusers, on_meta, write_untrained
from alignment_video.core import Refused
from alignment_video.sampling import (
    SCHEDULERS,
    Branch,
    Features,
    Guest,
    Guidance,
    Network,
    Schedule,
    Start,
    Step,
    _Questions,
    _scheduler,
    branches_of,
    common_noise,
    denoise,
    invert,
    latent_mask,
    other_attention,
)

STEPS = 6
NOISE = 1e-4  # float noise: latents have values up to about ten


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        (features(adapter, when=(0.5, 0.5)), Guidance()),
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
    edit = latent_mask(mask, 8)
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
        assert len(path) == 10 and torch.equal(path[0], latents)
        again = denoise(backbone, Start(path=path), text, guidance=Guidance(1.0), schedule=schedule)
        error = float((backbone.decode(again) - backbone.decode(latents)).square().mean())
        found[refine] = 10 * math.log10(4 / error)
    print(f"{architecture}: {found[0]:.1f} dB as usual, {found[8]:.1f} dB refined")
    assert found[0] < 45 and found[8] > 60
    one_by_one = invert(backbone, latents, text, schedule=schedule, batch_size=1)
    assert (torch.stack(path) - torch.stack(one_by_one)).abs().max() < 1e-3
    edit = torch.zeros(1, 1, 8, 8)
    edit[..., 2:5, 2:5] = 1
    edited = denoise(backbone, Start(path=path), *texts(backbone), schedule=schedule, edit=edit)
    outside = (edit == 0).expand_as(latents)
    assert torch.equal(edited[outside], latents[outside])


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
    assert (found[-1] - expected).abs().max() < NOISE


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
def test_one_edit_step_at_full_size_on_the_meta_device(architecture):
    """The adapter's features, three branches, one step of the solver, at the size of the real weights."""
    unet = on_meta(architecture)
    size, width = {"sd15": 64, "sd21": 96, "sdxl": 128}[architecture], unet.config.cross_attention_dim
    control = torch.empty(1, 2, 8 * size, 8 * size, device="meta")
    given = ControlAdapter.from_unet(unet, factor=8).to("meta")(control)
    prediction = {"sd21": "v_prediction"}.get(architecture, "epsilon")
    schedule = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "prediction_type": prediction}

    class Traced:
        kind, factor, latent_channels, prediction_type, scheduler_config = "sd", 8, 4, prediction, schedule
        device, dtype = torch.device("meta"), torch.float32

        def predict(self, latents, timestep, text, residuals=None):
            added = {"text_embeds": text.pooled, "time_ids": torch.empty(len(text), 6, device="meta")}
            more = {"added_cond_kwargs": added} if text.pooled is not None else {}
            return unet(
                latents, 500, text.hidden, down_block_additional_residuals=residuals[0],
                mid_block_additional_residual=residuals[1], return_dict=False, **more,
            )[0]  # fmt: skip

    backbone = Traced()
    pooled = torch.empty(1, 1280, device="meta") if architecture == "sdxl" else None
    text = Text(torch.empty(1, 77, width, device="meta"), pooled)
    asked = tuple(branches_of(text, text, Guidance(7.5, 2.0), controlled=True))
    latents = torch.empty(2, 4, size, size, device="meta")
    step = Step(0, 1, torch.tensor(500), asked, range(2))
    answer = _Questions(backbone, asked, [Features(given)], range(2))(step, latents)
    assert len(asked) == 3 and answer.shape == latents.shape and answer.is_meta


def refused(sd15, message, start=None, **how):
    latents, noise = random(2, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    with pytest.raises(Refused, match=message) as caught:
        denoise(sd15, start or Start(latents, noise), *texts(sd15), **({"schedule": Schedule(2, 1.0)} | how))
    assert "\n" not in str(caught.value)


def test_bad_input_gets_one_line(sd15, adapter):
    latents, noise = random(2, 4, 8, 8, seed=3), random(1, 4, 8, 8, seed=5)
    with pytest.raises(Refused, match=r"strength 0\.01 of 50 steps leaves 0 steps; use a strength from 0\.02 on"):
        Schedule(50, 0.01)
    for strength in (0, -1, 1.5, float("nan")):
        with pytest.raises(Refused, match="strength"):
            Schedule(50, strength)
    for steps in (0, 2.5, True):
        with pytest.raises(Refused, match="steps"):
            Schedule(steps, 1.0)
    with pytest.raises(Refused, match="path\\[1\\] holds NaN"):
        Start(path=(latents, latents * float("inf")))
    with pytest.raises(Refused, match="latents of sizes"):
        Start(latents, random(1, 4, 8, 9))
    refused(sd15, "text guidance nan", guidance=Guidance(float("nan")))
    refused(sd15, "control guidance 2, and no control", guidance=Guidance(7.5, 2.0))
    refused(sd15, "batch size 0", batch_size=0)
    refused(sd15, "control 0: 3 rows for 3 items|start: 2 rows for 3 items", controls=[features(adapter, 3)])
    refused(sd15, "make it with latent_mask", edit=torch.ones(1, 1, 64, 64))
    refused(sd15, "values from 0", edit=torch.full((1, 1, 8, 8), 2.0))
    refused(sd15, "no frame to keep", start=Start(noise=noise, blank=True), edit=torch.ones(1, 1, 8, 8))
    refused(sd15, "inverted over 1 steps", start=Start(path=(latents, latents)))
    with pytest.raises(Refused, match="sides that 8 divides"):
        latent_mask(torch.ones(1, 1, 63, 64), 8)
    with pytest.raises(Refused, match="only ddim"):
        invert(sd15, latents, sd15.encode_text(""), schedule=Schedule(2, 1.0, "unipc"))
    other = filled(ControlAdapter.from_unet(sd15.unet.config | {"layers_per_block": 1}, factor=8, base_channels=16))
    refused(sd15, "down residuals", controls=[features(other)])


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
