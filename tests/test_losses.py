"""The losses against their definitions, the scorer they stand for, and the loop whose short form is in them."""

import logging
import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_video import losses
from alignment_video.adapter import ControlAdapter
from alignment_video.attention import (
    GEOMETRIES,
    ContrastScorer,
    Geometry,
    alignment,
    attention_map,
    boolean_maps,
    small_lab,
)
from alignment_video.backbone import Backbone, as_tensor, write_untrained
from alignment_video.controls import target_alignment
from alignment_video.core import Refused
from alignment_video.losses import (
    LossWeights,
    alignment_loss,
    alignment_of,
    background_loss,
    colour_attention,
    compose,
    contrast_attention,
    diffusion_loss,
    enhance,
    identity_loss,
    min_snr_weights,
    perceptual,
    reconstruction_loss,
    reconstruction_weights,
    short_walk,
    snr,
    targets_of,
)
from alignment_video.sampling import Features, Guidance, Schedule, Start, common_noise, denoise
from alignment_video.world import still

ALPHAS = torch.linspace(0.999, 0.001, 1000)


pytestmark = pytest.mark.usefixtures("one_thread")


def batch(count=6, size=(64, 64), first=7200):
    """Pictures and masks of scenes whose product can be seen."""
    scenes, seed = [], first
    while len(scenes) < count:
        one = still(seed, size)
        if one.mask.mean() > 0.02:
            scenes.append(one)
        seed += 1
    masks = torch.from_numpy(np.stack([one.mask for one in scenes])).float()[:, None]
    return torch.cat([as_tensor(one.image) for one in scenes]), masks


def measured(pictures, masks):
    """Alignment by the real scorer, on bytes."""
    rows = ((pictures.detach().movedim(1, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    maps = [attention_map(row, ContrastScorer()).map for row in rows]
    return np.array([alignment(a, m[0].numpy()) for a, m in zip(maps, masks, strict=True)])


PICTURES, MASKS = batch()


# ---------------------------------------------------------------- noise and weights


@given(st.lists(st.integers(0, 999), min_size=1, max_size=8), st.floats(0.1, 50))
@settings(max_examples=60, deadline=None)
def test_min_snr_is_its_formula(steps, gamma):
    kept = [float(ALPHAS[step]) for step in steps]
    ratio = [a / (1 - a) for a in kept]
    assert snr(ALPHAS, steps).tolist() == pytest.approx(ratio, rel=1e-3)
    for kind, of in (
        ("epsilon", lambda r: min(r, gamma) / r),
        ("v_prediction", lambda r: min(r, gamma) / (r + 1)),
        ("sample", lambda r: min(r, gamma)),
    ):
        assert min_snr_weights(ALPHAS, steps, kind, gamma).tolist() == pytest.approx([of(r) for r in ratio], rel=1e-3)
    reference = [a if step <= 300 else 0 for a, step in zip(kept, steps, strict=True)]
    assert reconstruction_weights(ALPHAS, steps).tolist() == pytest.approx(reference, rel=1e-5)


def test_weights_at_the_ends_of_a_schedule():
    ends = torch.tensor([1.0, 0.0])  # nothing but picture, nothing but noise
    for kind, known in (("epsilon", [0, 1]), ("v_prediction", [0, 0]), ("sample", [5, 0])):
        found = min_snr_weights(ends, [0, 1], kind)
        assert not found.isnan().any() and found.tolist() == known


def test_snr_takes_a_backbone_and_a_single_step():
    class Owner:
        alphas_cumprod = ALPHAS

    assert snr(Owner(), 3).tolist() == snr(ALPHAS, torch.tensor([3])).tolist()


def test_diffusion_loss_by_hand():
    one, other = torch.randn(3, 4, 5, 7), torch.randn(3, 4, 5, 7)
    found = diffusion_loss(one, other, [1.0, 0.5, 0.0])
    byhand = [float(((one[i] - other[i]) ** 2).mean()) * w for i, w in enumerate((1, 0.5, 0))]
    assert found.tolist() == pytest.approx(byhand, rel=1e-5)
    assert diffusion_loss(one.bfloat16(), other.bfloat16()).dtype == torch.float32
    assert diffusion_loss(one * math.nan, other).isnan().all()  # the trainer stops at it, and says at which step


def test_background_is_each_items_own():
    latents = torch.randn(3, 4, 6, 8)
    masks = torch.zeros(3, 1, 6, 8)
    masks[1, :, :, :4] = 1
    masks[2] = 1
    found = background_loss(latents + masks * 5 + (1 - masks) * 0.5, latents, masks)
    assert found.tolist() == pytest.approx([0.25, 0.25, 0], rel=1e-4)


# ---------------------------------------------------------------- perceptual


def test_random_features_are_the_same_every_time_and_leave_the_generator_alone():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = perceptual("random")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    other = perceptual("random")
    a, b = PICTURES[:2, :, :40, :48], PICTURES[2:4, :, :40, :48]  # smaller than AlexNet takes
    assert one.weights == other.weights == "random" and torch.equal(one(a, b), other(a, b))
    assert one(a, a).tolist() == [0, 0] and (one(a, b) > 0).all() and one(a, b).shape == (2,)
    assert one(*batch(1, (96, 54))[:1], batch(1, (96, 54), 7300)[0]).shape == (1,)
    a = a.clone().requires_grad_(True)
    one(a, b).sum().backward()
    assert a.grad.any() and all(weight.grad is None for weight in one.net.parameters())


def test_what_was_used_is_said_once_in_the_log_and_nothing_is_fetched(monkeypatch, tmp_path, caplog, capfd):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fetched(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetched)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    capfd.readouterr()
    with caplog.at_level(logging.WARNING, "alignment_video"):
        assert perceptual().weights == "random"
    assert [record.message for record in caplog.records] == [
        "perceptual: AlexNet's weights are not on this machine; random features are used instead"
    ]
    with pytest.raises(Refused, match="'alexnet': its weights cannot be had"):
        perceptual("alexnet")
    assert not capfd.readouterr().err  # where a program has not asked for the log, nothing is said


def test_half_a_file_of_weights_is_not_used(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / losses._ALEXNET).write_bytes(b"half of it")
    with caplog.at_level(logging.WARNING, "alignment_video"):
        assert perceptual().weights == "random"
    assert "cannot be read" in caplog.text and len(caplog.records) == 1


def test_whole_weights_are_used(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net = perceptual("random").net
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / losses._ALEXNET).write_bytes(b"whole")
    made = []
    monkeypatch.setattr(losses, "_lpips", lambda random: made.append(random) or net)
    assert perceptual().weights == "alexnet" and made == [False]


# ---------------------------------------------------------------- enhancement


@pytest.mark.parametrize("size", [(64, 64), (96, 54), (120, 200)])
def test_gain_one_and_outside_are_bit_equal(size):
    pictures, masks = batch(3, size)
    gains = torch.tensor([0.5, 1.0, 2.0])
    changed = enhance(pictures, masks, gains)
    outside = (masks == 0).expand_as(pictures)
    assert torch.equal(enhance(pictures, masks, 1), pictures) and torch.equal(changed[1], pictures[1])
    assert torch.equal(changed[outside], pictures[outside])
    assert not torch.equal(changed[0], pictures[0]) and not torch.equal(changed[2], pictures[2])
    assert changed.abs().max() <= 1 and changed.isfinite().all()
    assert torch.equal(enhance(pictures[:1], masks[:1], 0.5)[0], changed[0])  # an item does not see its batch


def test_enhancing_moves_real_attention():
    pictures, masks = batch(8)
    shares = np.array([measured(enhance(pictures, masks, gain), masks) for gain in (0.5, 0.75, 1, 1.5, 2)])
    assert (np.diff(shares, axis=0) > 0).mean() > 0.9
    assert (shares[3] / shares[2]).mean() > 1.08 and (shares[0] / shares[2]).mean() < 0.85


def test_enhancing_where_there_is_no_surround_or_one_pixel():
    pictures, masks = PICTURES[:2], torch.ones_like(MASKS[:2])
    changed = enhance(pictures, masks, 1.5)
    assert changed.isfinite().all() and not torch.equal(changed, pictures)
    dot = torch.zeros_like(masks)
    dot[:, :, 30, 30] = 1
    assert enhance(pictures, dot, 2).isfinite().all()
    even = torch.full_like(pictures, 0.25)
    assert torch.allclose(enhance(even, MASKS[:2], 2), even, atol=1e-5)  # nothing differs, nothing to enhance


def test_enhancement_has_gradients():
    pictures = PICTURES.clone().requires_grad_(True)
    enhance(pictures, MASKS, 1.5).square().sum().backward()
    assert pictures.grad.isfinite().all()


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize(
    ("size", "geometry"),
    [
        ((64, 64), "authors"),
        ((256, 144), "authors"),
        ((90, 160), "authors"),
        ((48, 40), "authors"),
        ((512, 512), "authors"),
        ((77, 301), "authors"),
        ((64, 64), "phone"),
        ((200, 120), Geometry(25.0, (3.0, 7.0), 0.4)),
    ],
)
def test_the_twin_is_the_scorer(size, geometry):
    for seed in (7300, 7301):
        one = still(seed, size)
        true = attention_map(one.image, ContrastScorer(), geometry).map
        twin = contrast_attention(as_tensor(one.image), geometry)
        assert twin.shape == (1, 1, *size)
        assert np.abs(twin[0, 0].numpy() - true).max() < 0.02
        share = float(alignment_of(twin, torch.from_numpy(one.mask)[None, None].float()))
        assert share == pytest.approx(alignment(true, one.mask), abs=5e-3)


def test_parts_of_the_twin():
    picture = still(7310, (150, 90)).image
    lab = small_lab(picture)
    mine = losses._lab(losses._small(as_tensor(picture)))[0].movedim(0, -1).numpy()
    assert np.abs(mine - lab).max() < 1.5 and np.abs(mine - lab).mean() < 0.3  # of 100; bytes are rounded
    assert np.array_equal(losses._boolean_figure(as_tensor(picture))[0, 0].numpy(), boolean_maps(lab))
    grey = np.random.default_rng(0).random((37, 90), np.float32)
    for new in (5, 12, 36):
        down = losses._area(37, new) @ grey
        assert np.abs(down - cv2.resize(grey, (90, new), interpolation=cv2.INTER_AREA)).max() < 1e-5


@given(st.integers(1, 40), st.integers(1, 60), st.floats(0.3, 30), st.sampled_from(["reflect", "symmetric"]))
@settings(max_examples=40, deadline=None)
def test_blur_is_opencvs_at_any_size(high, wide, sigma, edge):
    plane = np.random.default_rng(high * 61 + wide).random((high, wide), np.float32)
    border = cv2.BORDER_REFLECT_101 if edge == "reflect" else cv2.BORDER_REFLECT
    true = cv2.GaussianBlur(plane, (0, 0), sigma, borderType=border)
    mine = losses._blurred(torch.from_numpy(plane)[None, None], sigma, edge)[0, 0].numpy()
    assert np.abs(mine - true).max() < 1e-4


@pytest.mark.parametrize("size", [(64, 64), (160, 90)])
def test_a_step_along_the_gradient_moves_real_attention(size):
    pictures, masks = batch(10 if size == (64, 64) else 4, size, 7400)
    before = measured(pictures, masks)
    for gain in (0.5, 1.6):
        pixels = pictures.clone().requires_grad_(True)
        attention = contrast_attention(pixels)
        alignment_loss(attention, masks, targets_of(alignment_of(attention, masks), gain)).sum().backward()
        way = -pixels.grad * masks
        assert way.isfinite().all() and way.flatten(1).any(1).all()
        shown = (pictures + 0.1 * way / way.abs().amax((1, 2, 3), keepdim=True)).clamp(-1, 1)
        held = alignment_of(contrast_attention(shown, figure=losses._boolean_figure(pictures)), masks).numpy()
        assert ((held > before) == (gain > 1)).all()  # all of them, but for the figure, which jumps a little
        ratio = measured(shown, masks) / before
        assert ((ratio > 1) == (gain > 1)).mean() >= 0.7 and (ratio.mean() - 1) * (gain - 1) > 0.01


@pytest.mark.parametrize("attention", [contrast_attention, colour_attention])
def test_attentions_are_each_items_own_and_whole(attention):
    found = attention(PICTURES)
    assert found.shape == MASKS.shape and found.isfinite().all() and found.min() >= 0
    for item in (0, 5):
        assert torch.allclose(attention(PICTURES[item : item + 1])[0], found[item], atol=1e-5)
    assert torch.allclose(attention(PICTURES.double()).float(), found, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(PICTURES), found)
    extremes = torch.cat([torch.ones(1, 3, 64, 64), -torch.ones(1, 3, 64, 64), PICTURES[:1].sign()]).requires_grad_(
        True
    )
    (attention(extremes) * MASKS[:3]).sum().backward()
    assert extremes.grad.isfinite().all()


def test_matrices_kept_from_inference_serve_training():
    pictures, masks = batch(1, (70, 50))
    with torch.inference_mode():
        contrast_attention(pictures)
    pixels = pictures.clone().requires_grad_(True)
    alignment_of(contrast_attention(pixels), masks).sum().backward()
    assert pixels.grad.any()


def test_an_even_picture_has_no_attention():
    even = torch.full((2, 3, 64, 64), 0.3)
    assert not contrast_attention(even).any()
    share = alignment_of(contrast_attention(even), MASKS[:2])
    assert share.tolist() == [0, 0]
    assert alignment_loss(contrast_attention(even), MASKS[:2], torch.tensor([0.2, 0.4])).isfinite().all()


def test_the_two_attentions_differ_and_agree_on_the_order():
    shares = []
    for level in (0.1, 0.5, 0.9):
        scenes = [still(seed, (64, 64), prominence=level) for seed in range(7500, 7512)]
        pictures = torch.cat([as_tensor(one.image) for one in scenes])
        masks = torch.from_numpy(np.stack([one.mask for one in scenes])).float()[:, None]
        shares.append(torch.stack([alignment_of(a(pictures), masks) for a in (contrast_attention, colour_attention)]))
    rises = torch.stack(shares).diff(dim=0) > 0
    assert rises.float().mean((0, 2)).min() > 0.9
    assert not torch.allclose(shares[1][0], shares[1][1], atol=0.05)


@given(st.floats(0, 1), st.floats(0, 4))
@settings(max_examples=80, deadline=None)
def test_targets_are_page_fifteens(share, gain):
    assert float(targets_of(torch.tensor([share]), gain)) == pytest.approx(target_alignment(share, gain), abs=1e-6)


def test_alignment_loss_by_hand():
    attention = torch.zeros(2, 1, 4, 4)
    attention[:, :, 0, :2] = 1
    masks = torch.zeros(2, 1, 4, 4)
    masks[:, :, 0, 0] = 1  # half of it
    other = torch.ones(2, 1, 4, 4)  # a sixteenth
    wanted = torch.tensor([0.5, 0.25])
    one = [(math.log(0.52) - math.log(t + 0.02)) ** 2 for t in (0.5, 0.25)]
    two = [(math.log(1 / 16 + 0.02) - math.log(t + 0.02)) ** 2 for t in (0.5, 0.25)]
    assert alignment_loss(attention, masks, wanted, bend=9).tolist() == pytest.approx(one, abs=1e-5)
    both = alignment_loss([attention, other], masks, wanted, bend=9).tolist()
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(one, two, strict=True)], abs=1e-5)
    most = alignment_loss([attention, other], masks, wanted, [0.9, 0.1], bend=9).tolist()
    assert most == pytest.approx([0.9 * a + 0.1 * b for a, b in zip(one, two, strict=True)], abs=1e-5)
    assert alignment_loss(attention, masks, wanted).tolist() == pytest.approx(
        [0, 2 * 0.3 * one[1] ** 0.5 - 0.3**2], abs=1e-5
    )  # beyond the bend a straight line that goes on where the square ends
    own = alignment_loss([attention, other], masks, [torch.full((2,), 0.5), torch.full((2,), 1 / 16)])
    assert own.tolist() == pytest.approx([0, 0], abs=1e-9)


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize("size", [(64, 64), (90, 160), (256, 144)])
def test_compose_keeps_the_outside_and_carries_only_changes(size):
    pictures, masks = batch(3, size)
    edited, baseline = pictures.roll(1, 0), (pictures * 0.9 + 0.03)
    reach = 2 * max(1, round(min(size) / 64))
    far = (torch.nn.functional.max_pool2d(masks, 2 * reach + 1, 1, reach) == 0).expand_as(pictures)
    product = (masks == 1).expand_as(pictures)
    for given_baseline in (None, baseline):
        shown = compose(pictures, edited, masks, given_baseline)
        assert torch.equal(shown[far], pictures[far]) and not torch.equal(shown, pictures)
        assert shown.abs().max() <= 1
    assert torch.allclose(compose(pictures, edited, masks)[product], edited[product], atol=1e-6)
    assert torch.equal(compose(pictures, baseline, masks, baseline), pictures)
    lighter = compose(pictures, baseline + 0.05, masks, baseline, "change")
    assert torch.allclose(lighter[product], (pictures[product] + 0.05).clamp(max=1), atol=1e-6)


def test_compose_passes_gradients_to_the_edit_alone():
    edited = PICTURES.roll(1, 0).clone().requires_grad_(True)
    compose(PICTURES, edited, MASKS).sum().backward()
    assert edited.grad[(MASKS == 1).expand_as(edited)].min() > 0.99
    far = torch.nn.functional.max_pool2d(MASKS, 7, 1, 3) == 0
    assert not edited.grad[far.expand_as(edited)].any()


def test_identity_tells_light_from_loss():
    pictures, masks = batch(10)
    blurred = torch.nn.functional.avg_pool2d(pictures, 5, 1, 2)
    free = [pictures, enhance(pictures, masks, 0.7), enhance(pictures, masks, 1.5), pictures * 0.8]
    free = [identity_loss(compose(pictures, each, masks), pictures, masks) for each in free]
    assert max(edges.mean() for edges, _ in free) < 0.08 and max(hues.mean() for _, hues in free) < 0.08
    assert free[0][0].max() < 1e-6 and free[0][1].max() == 0
    assert identity_loss(-pictures, pictures, masks)[0].max() < 1e-4  # every edge is there, the other way round
    assert identity_loss(compose(pictures, blurred, masks), pictures, masks)[0].mean() > 0.15
    assert identity_loss(compose(pictures, pictures.roll(1, 0), masks), pictures, masks)[0].mean() > 0.5
    grey = pictures.mean(1, keepdim=True).expand_as(pictures)
    for wrong in (pictures[:, [1, 2, 0]], -pictures, grey):
        assert identity_loss(compose(pictures, wrong, masks), pictures, masks)[1].mean() > 0.2
    band = pictures + 0.6 * (torch.nn.functional.max_pool2d(masks, 3, 1, 1) - masks) * torch.tensor([1.0, -1, 1]).view(
        1, 3, 1, 1
    )
    assert (
        identity_loss(compose(pictures, band.clamp(-1, 1), masks), pictures, masks)[1].mean() > 0.02
    )  # no hiding place


@pytest.mark.parametrize("shown", ["same", "other", "even"])
def test_identity_has_finite_gradients(shown):
    given_picture = {"same": PICTURES, "other": PICTURES.roll(1, 0), "even": torch.zeros_like(PICTURES)}[shown]
    pixels = given_picture.clone().requires_grad_(True)
    edges, hues = identity_loss(pixels, PICTURES, MASKS)
    (edges + hues).sum().backward()
    assert edges.shape == hues.shape == (6,) and pixels.grad.isfinite().all()
    assert shown == "same" or pixels.grad.any()


# ---------------------------------------------------------------- the short walk


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def walker(request, tmp_path_factory):
    """A backbone of each kind of prediction, and residuals that are not nothing."""
    folder = tmp_path_factory.mktemp(request.param) / "untrained"
    backbone = Backbone.from_pretrained(write_untrained(folder, request.param, 16), device="cpu")
    torch.manual_seed(0)
    adapter = ControlAdapter.from_unet(backbone.unet)
    for weight in adapter.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.05)
    residuals = adapter.features(torch.rand(3, 2, 64, 48))
    text = backbone.encode_text(["a mug", "a shoe", "a ring"])
    frame = torch.randn(3, 4, 8, 6) * 0.5
    return (
        backbone,
        frame,
        common_noise(backbone, 64, 48, "walk"),
        text,
        residuals,
        (torch.rand(3, 1, 8, 6) > 0.5).float(),
    )


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (3, 0.8), (5, 0.8), (4, 1.0), (9, 0.3), (100, 0.029)])
def test_short_walk_is_the_loop(walker, steps, strength):
    backbone, frame, noise, text, residuals, mask = walker
    for given_residuals, given_mask, graded in ((residuals, mask, 1), (None, mask, 0), (residuals, None, 9)):
        controls = () if given_residuals is None else Features(given_residuals)
        true = denoise(
            backbone,
            Start(frame=frame, noise=noise),
            text,
            guidance=Guidance(text=1.0),
            schedule=Schedule(steps, strength),
            controls=controls,
            edit=given_mask,
        )
        mine = short_walk(backbone, frame, noise, text, given_residuals, given_mask, steps, strength, graded)
        assert (mine - true).abs().max() < 1e-4
        assert not torch.equal(mine, frame)


def test_gradients_reach_residuals_and_no_weight(walker):
    backbone, frame, noise, text, residuals, mask = walker
    down, middle = (
        [each.clone().requires_grad_(True) for each in residuals[0]],
        residuals[1].clone().requires_grad_(True),
    )
    found = short_walk(backbone, frame, noise, text, (tuple(down), middle), mask, 4, graded=1)
    found.square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in (*down, middle))
    weights = [*backbone.unet.parameters(), *backbone.vae.parameters()]
    assert all(weight.grad is None and not weight.requires_grad for weight in weights)
    inside = (mask == 1).expand_as(frame)
    assert torch.equal(found.detach()[~inside], frame[~inside])
    more = [each.detach().clone().requires_grad_(True) for each in down]
    short_walk(
        backbone, frame, noise, text, (tuple(more), middle.detach()), mask, 4, graded=3
    ).square().sum().backward()
    assert not torch.allclose(more[0].grad, down[0].grad)


def test_only_graded_steps_are_remembered(walker, monkeypatch):
    backbone, frame, noise, text, residuals, mask = walker
    seen, ask = [], backbone.predict
    monkeypatch.setattr(
        backbone, "predict", lambda *a: seen.append((torch.is_grad_enabled(), a[0].requires_grad)) or ask(*a)
    )
    given_residuals = (residuals[0], residuals[1].clone().requires_grad_(True))
    short_walk(backbone, frame, noise, text, given_residuals, mask, 5, graded=2)
    assert seen == [(False, False), (False, False), (True, False), (True, True)]
    seen.clear()
    with torch.no_grad():
        short_walk(backbone, frame, noise, text, given_residuals, mask, 5, graded=2)
    assert [grad for grad, _ in seen] == [False] * 4


def test_short_walk_refuses_what_the_loop_refuses(walker):
    backbone, frame, noise, text, residuals, mask = walker
    for wrong, line in (
        ({"steps": 0}, "steps 0: use a whole number"),
        ({"steps": 2.5}, "steps 2.5"),
        ({"steps": 1001}, "trained on 1000"),
        ({"strength": 0}, "strength 0: use a number above 0"),
        ({"strength": 1.2}, "strength 1.2"),
        ({"steps": 1}, "leaves 0 steps"),
        ({"graded": -1}, "graded -1"),
        ({"mask": mask[:, :, :4]}, "latent mask"),
        ({"noise": noise[:, :3]}, "give one row, or one an item"),
        ({"residuals": (residuals[0][:3], residuals[1])}, "down residuals"),
        ({"mask": mask * 0.5}, "threshold it first"),
    ):
        given_all = {
            "latents": frame,
            "noise": noise,
            "text": text,
            "residuals": residuals,
            "mask": mask,
            "steps": 4,
        } | wrong
        with pytest.raises(Refused, match=line):
            short_walk(backbone, **given_all)


def test_a_schedule_of_noise_alone_is_refused(walker, monkeypatch):
    backbone, frame, noise, text, residuals, mask = walker
    monkeypatch.setattr(backbone, "alphas_cumprod", torch.zeros(1000))
    monkeypatch.setattr(backbone, "prediction_type", "epsilon")
    with pytest.raises(Refused, match="noise alone"):
        short_walk(backbone, frame, noise, text, residuals, mask, 4)


# ---------------------------------------------------------------- weights, and bad input


def test_loss_weights():
    given_weights = LossWeights(diffusion=1, consistency=2, baseline=0, edges=0, colour=0, change=0.5)
    assert given_weights.used == {"diffusion": 1, "consistency": 2, "change": 0.5}
    terms = {"diffusion": torch.tensor([1.0, 2.0]), "change": torch.tensor([4.0])}
    assert float(given_weights.total(terms)) == pytest.approx(3.5)
    for name in ("diffusion", "min_snr", "change"):
        for wrong in (-1, math.nan, math.inf, "1", True, None):
            with pytest.raises(Refused, match=f"loss weight {name}"):
                LossWeights(**{name: wrong})
    for terms in ({}, {"edges": torch.ones(1)}, {"speed": torch.ones(1)}):
        with pytest.raises(Refused, match="give one or more of those with a weight"):
            given_weights.total(terms)


NAN = PICTURES.clone()
NAN[2, 0, 5, 5] = math.nan
EMPTY = MASKS.clone()
EMPTY[3] = 0
TRUTH = torch.full((6,), 0.3)


@pytest.mark.parametrize(
    "wrong, line",
    [
        (NAN, "item 2 holds NaN"),
        ((PICTURES + 1) * 127.5, "bring them to -1 to 1"),
        (PICTURES[0], r"\(3, 64, 64\)"),
        (PICTURES[:, :1], r"\(6, 1, 64, 64\)"),
        ((PICTURES * 100).long(), "torch.int64"),
        (PICTURES.numpy(), "ndarray"),
        (PICTURES[:0], r"\(0, 3, 64, 64\)"),
        (None, "NoneType"),
    ],
)
def test_pictures_are_refused_in_one_line(wrong, line):
    calls = [
        lambda: contrast_attention(wrong),
        lambda: colour_attention(wrong),
        lambda: enhance(wrong, MASKS, 1.5),
        lambda: compose(wrong, PICTURES, MASKS),
        lambda: compose(PICTURES, wrong, MASKS),
        lambda: compose(PICTURES, PICTURES, MASKS, wrong),
        lambda: identity_loss(wrong, PICTURES, MASKS),
        lambda: identity_loss(PICTURES, wrong, MASKS),
        lambda: reconstruction_loss(wrong, PICTURES),
    ]
    if wrong is None:
        del calls[5]  # no baseline
    for call in calls:
        with pytest.raises(Refused, match=line) as told:
            call()
        assert "\n" not in str(told.value) and len(str(told.value)) < 200


@pytest.mark.parametrize(
    "wrong, line",
    [
        (EMPTY, "item 3 is empty"),
        (MASKS * 0.7, "item 0 holds values other than 0 and 1"),
        (MASKS[0, 0], r"\(64, 64\)"),
        (MASKS[:, :, :32], "resize them"),
        (MASKS[:2], "give one an item"),
        (MASKS * math.nan, "or NaN"),
        (MASKS.numpy(), "ndarray"),
    ],
)
def test_masks_are_refused_in_one_line(wrong, line):
    for call in (
        lambda: enhance(PICTURES, wrong, 1.5),
        lambda: compose(PICTURES, PICTURES, wrong),
        lambda: identity_loss(PICTURES, PICTURES, wrong),
        lambda: alignment_of(colour_attention(PICTURES), wrong),
        lambda: alignment_loss(colour_attention(PICTURES), wrong, TRUTH),
    ):
        with pytest.raises(Refused, match=line) as told:
            call()
        assert "\n" not in str(told.value)


def test_other_slips_are_refused_in_one_line():
    attention, latents = colour_attention(PICTURES), torch.randn(2, 4, 8, 8)
    for call, line in (
        (lambda: snr(ALPHAS, [1000]), "the schedule has 0 to 999"),
        (lambda: snr(ALPHAS, [-1]), "timesteps -1"),
        (lambda: snr(ALPHAS, [0.5]), "use whole numbers"),
        (lambda: min_snr_weights(ALPHAS, [1], "x0"), "prediction type 'x0'"),
        (lambda: min_snr_weights(ALPHAS, [1], gamma=-1), "gamma -1"),
        (lambda: min_snr_weights(ALPHAS, [1], gamma=math.nan), "gamma nan"),
        (lambda: diffusion_loss(latents, latents[:1]), "one shape"),
        (lambda: diffusion_loss(latents, latents, torch.ones(3)), "one weight an item"),
        (lambda: enhance(PICTURES, MASKS, -1), "gain -1"),
        (lambda: enhance(PICTURES, MASKS, [1, 2]), "2 gains for 6"),
        (lambda: enhance(PICTURES, MASKS, math.nan), "gain nan"),
        (lambda: contrast_attention(PICTURES, "tv"), "geometry 'tv'"),
        (lambda: contrast_attention(PICTURES[..., :10]), "a patch of 3° has no pixel"),
        (lambda: alignment_of(-attention, MASKS), "below 0"),
        (lambda: alignment_of(attention * math.nan, MASKS), "or NaN"),
        (lambda: alignment_of(PICTURES, MASKS), "give a tensor"),
        (lambda: alignment_loss(attention, MASKS, TRUTH * 9), "from 0 to 1"),
        (lambda: alignment_loss(attention, MASKS, TRUTH[:2]), "for 6 items"),
        (lambda: alignment_loss([], MASKS, TRUTH), "for 0 attentions"),
        (lambda: alignment_loss([attention], MASKS, TRUTH, [0.5]), "1 in all"),
        (lambda: alignment_loss([attention], MASKS, TRUTH, bend=0), "a bend above 0"),
        (lambda: alignment_loss([attention], MASKS, [TRUTH, TRUTH]), "2 targets for 1"),
        (lambda: background_loss(latents, latents, torch.full((2, 1, 8, 8), 0.5)), "latent mask"),
        (lambda: perceptual("vgg"), "'vgg'"),
    ):
        with pytest.raises(Refused, match=line) as told:
            call()
        assert "\n" not in str(told.value) and len(str(told.value)) < 220


def test_geometries_by_name_are_page_thirteens():
    assert torch.equal(
        contrast_attention(PICTURES[:1], "authors"), contrast_attention(PICTURES[:1], GEOMETRIES["authors"])
    )
