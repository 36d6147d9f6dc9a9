"""Selective edits where a page would bore: every kind of backbone, structures that hold where they should, files."""

import json
import sys
import types
import warnings

import numpy as np
import pytest
import torch

from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import Backbone, _diffusers, write_untrained
from alignment_video.core import Refused, file_hash
from alignment_video.mini_words import inpainting_unet
from alignment_video.selective import (
    Drift,
    Selecting,
    Structure,
    _branches,
    _Said,
    _shares,
    blended,
    edge_f1,
    edges,
    fitted,
    lineart,
    lines_of,
    mean_colour,
    moved_colour,
    seam,
    select,
    select_file,
    structure_model,
    widened,
)
from alignment_video.stimuli import signed
from alignment_video.video import LOSSLESS, VideoWriter, read_clip, save_picture
from alignment_video.world import PRODUCT, Scene, still

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = Selecting(steps=2, side=64)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Stable Diffusion 1.5's blocks and layers at an eighth of its width, untrained."""
    return Backbone.from_pretrained(write_untrained(tmp_path_factory.mktemp("sd15"), "sd15"), device="cpu")


@pytest.fixture(scope="module")
def filling(plain):
    """The same as an inpainting model: it also reads a hole, and listens to it."""
    unet = inpainting_unet(plain.unet)
    with torch.no_grad():
        new = unet.conv_in.weight[:, plain.latent_channels :]
        new.copy_(0.1 * torch.randn(new.shape, generator=torch.Generator().manual_seed(0)))
    parts = plain.vae, plain.tokenizers, plain.text_encoders, plain.scheduler_config
    return Backbone(unet, *parts, name="filling", untrained=True)


@pytest.fixture(params=["plain", "filling"])
def backbone(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def scene():
    return still(36_410_000, (80, 72), prominence=0.8)


@pytest.fixture(scope="module")
def pair():
    film = Scene("pair", 36_410_001, size=(96, 80), frames=7, rate=12, keyword="mug", prominence=0.8)
    drawn = [film.draw(t) for t in (0, 6)]
    masks = [np.take([layer.kind == PRODUCT for layer in film.layers], front) for _, front in drawn]
    return np.stack([picture for picture, _ in drawn]), np.stack(masks)


def test_outside_stays_to_the_bit_and_inside_does_not(backbone, scene):
    found = select(backbone, scene.image, "a gold watch", mask=scene.mask, settings=FEW)
    assert found.differing == 0
    assert np.array_equal(found.picture[found.soft[0] == 0], scene.image[found.soft[0] == 0])
    assert (found.picture != scene.image).any(-1)[scene.mask].mean() > 0.5
    assert ((found.soft[0] > 0) >= scene.mask).all() and (found.soft[0] == 0).any()


def test_the_source_is_left_alone_and_the_same_call_gives_the_same(backbone, scene):
    before = scene.image.copy()
    one, other = (select(backbone, scene.image, "a watch", "a beach", mask=scene.mask, settings=FEW) for _ in range(2))
    assert np.array_equal(scene.image, before)
    assert one.describe() == other.describe()
    assert signed(one.describe())["sha256"] == one.describe()["sha256"]


def test_each_prompt_and_the_seed_change_the_result(backbone, scene):
    def made(inside="a watch", outside="a beach", **settings):
        how = Selecting(steps=2, side=64, **settings)
        return select(backbone, scene.image, inside, outside, mask=scene.mask, settings=how).picture.astype(int)

    usual = made()
    for other in (made("a bag"), made(outside="a wall"), made(seed=1), made(guidance=7.5), made(fusion="alpha")):
        assert np.abs(other - usual).max() > 0


def test_fused_where_one_prompt_counts_everywhere_is_that_prompt_alone(backbone, scene):
    text, negative = backbone.encode_text("a watch"), backbone.encode_text("", negative=True)
    branches = _branches([_Said("inside", text)], negative, 4.0, [0], False)
    assert [branch.weight for branch in branches] == [-3.0, 4.0]
    share = _shares(backbone, scene.mask[None, :64, :64], 16)
    fused = _branches([_Said("in", text, share), _Said("out", text, 1 - share)], negative, 4.0, [0], True)
    total = sum(branch.weight for branch in fused)
    assert torch.allclose(total, torch.ones_like(total)) and all(branch.controlled for branch in fused)
    assert [b.name for b in _branches([_Said("in", text)], negative, 1, [0], False)] == ["in"]


def test_soft_edges_of_latents_lie_between_and_follow_the_mask(plain):
    mask = np.zeros((1, 128, 128), bool)
    mask[0, 32:96, 32:96] = True
    share = _shares(plain, mask, 16)[0, 0]
    assert share[8, 8] == pytest.approx(1) and share[0, 0] == 0
    assert ((share > 0.05) & (share < 0.95)).any()
    assert share.mean() == pytest.approx(mask.mean(), abs=0.03)


@pytest.mark.parametrize("size", [(64, 64), (100, 60), (37, 91), (300, 200)])
def test_pictures_of_any_size(filling, size):
    rng = np.random.default_rng(0)
    picture, mask = rng.integers(0, 256, (*size, 3), np.uint8), np.zeros(size, bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] // 2] = True
    for outside in (None, "a beach"):
        found = select(filling, picture, "a mug", outside, mask=mask, settings=Selecting(steps=1, side=64))
        assert found.picture.shape == picture.shape and found.differing == 0


def test_a_mask_at_the_rim_and_one_of_a_single_pixel(filling, scene):
    corner, dot = np.zeros(scene.mask.shape, bool), np.zeros(scene.mask.shape, bool)
    corner[:12, -12:], dot[40, 30] = True, True
    for mask in (corner, dot):
        found = select(filling, scene.image, "a mug", mask=mask, settings=FEW)
        assert found.differing == 0 and (found.picture != scene.image).any(-1)[mask].any()


def test_a_strength_below_one_keeps_more_of_the_source(backbone, scene):
    far, near = (
        select(backbone, scene.image, "a mug", mask=scene.mask, settings=Selecting(10, strength=share, side=64)).picture
        for share in (1.0, 0.1)
    )
    change = [np.abs(each.astype(int) - scene.image)[scene.mask].mean() for each in (far, near)]
    assert change[1] < change[0]


# structures


def test_a_control_changes_what_is_drawn_where_it_holds(plain, scene):
    adapter = ControlAdapter.from_unet(plain.unet, 1, factor=plain.factor, base_channels=32, channel_mult=[1, 1, 2, 2])
    with torch.no_grad():
        for zero in [*adapter.zero, adapter.zero_middle]:
            zero.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    nothing = np.zeros(scene.mask.shape)
    made = {
        str(where): select(
            plain,
            scene.image,
            "a watch",
            "a beach",
            mask=scene.mask,
            settings=FEW,
            structure=Structure("edges", adapter, where),
        )
        for where in ("all", "inside", "outside")
    } | {
        "given": select(
            plain,
            scene.image,
            "a watch",
            "a beach",
            mask=scene.mask,
            settings=FEW,
            structure=Structure(nothing, adapter),
        )
    }
    pictures = [each.picture for each in made.values()]
    assert all((one != other).any() for i, one in enumerate(pictures) for other in pictures[:i])
    told = made["inside"].describe()["structure"][0]
    assert (told["lines"], told["where"], told["model"]) == ("edges", "inside", "ControlAdapter") and told[
        "fingerprint"
    ]
    assert made["given"].describe()["structure"][0]["lines"] == "given"
    assert np.array_equal(made["all"].lines[0], lines_of("edges", np.stack([_seen(scene.image)])))


def _seen(picture):
    from alignment_video.editing import _sized, native_size

    return _sized(picture, native_size(*picture.shape[:2], 64, 64))


def test_several_controlnets_each_in_its_place(plain, filling, scene):
    net = _diffusers().ControlNetModel.from_unet(plain.unet)
    with torch.no_grad():
        for zero in [*net.controlnet_down_blocks, net.controlnet_mid_block]:
            zero.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    how = {"mask": scene.mask, "settings": Selecting(steps=2, strength=1.0, side=64)}
    for backbone in (plain, filling):  # a ControlNet of four channels goes with an inpainting model too
        both = [Structure("edges", net, "inside"), Structure("lineart", net, scene.mask, 0.5, (0.0, 0.5))]
        made = select(backbone, scene.image, "a watch", "a beach", structure=both, **how)
        without = select(backbone, scene.image, "a watch", "a beach", **how)
        assert len(made.lines) == 2 and (made.picture != without.picture).any()


def test_models_of_structures_by_name(plain, tmp_path):
    adapter = ControlAdapter.from_unet(plain.unet, 1, factor=plain.factor, base_channels=32, channel_mult=[1, 1, 2, 2])
    adapter.save(tmp_path / "adapter")
    _diffusers().ControlNetModel.from_unet(plain.unet).save_pretrained(tmp_path / "net")
    assert isinstance(structure_model(plain, tmp_path / "adapter"), ControlAdapter)
    net = structure_model(plain, str(tmp_path / "net"))
    assert type(net).__name__ == "ControlNetModel" and not net.training
    (tmp_path / "nothing").mkdir()
    with pytest.raises(Refused):
        structure_model(plain, tmp_path / "nothing")


def test_detectors_of_a_package_that_is_there_and_of_one_that_is_not(monkeypatch, scene):
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    with pytest.raises(Refused, match="pip install controlnet_aux"):
        lines_of("aux:HEDdetector", scene.image[None])
    package = types.ModuleType("controlnet_aux")

    class HalfDetector:
        @classmethod
        def from_pretrained(cls, name):
            assert name == "lllyasviel/Annotators"
            return cls()

        def __call__(self, picture):
            return np.full((40, 36, 3), 128, np.uint8)  # of another size, and coloured, as some are

    package.HalfDetector = HalfDetector
    monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    found = lines_of("aux:HalfDetector", scene.image[None])
    assert found.shape == (1, *scene.mask.shape) and found == pytest.approx(128 / 255)
    with pytest.raises(Refused, match="controlnet_aux has no Hed; it has HalfDetector"):
        lines_of("aux:Hed", scene.image[None])


def test_lines_lie_where_brightness_changes():
    picture = np.full((60, 60, 3), 200, np.uint8)
    picture[20:40, 20:40] = 60
    found = edges(picture) > 0
    assert found[18:42, 18:42].sum() == found.sum() > 60 and not found[24:36, 24:36].any()
    dark = lineart(picture)
    assert dark.min() >= 0 and dark.max() <= 1
    assert dark[21:39, 20:22].mean() > 5 * max(dark[:, :15].max(), 0.01)  # the dark side of a rim
    assert lineart(np.full((20, 20, 3), 90, np.uint8)).max() == 0


def test_f1_counts_both_kinds_of_mistakes():
    wanted = np.zeros((30, 30), bool)
    wanted[10] = True
    half = wanted.copy()
    half[:, 15:] = False
    assert edge_f1(wanted, wanted) == 1
    assert edge_f1(half, wanted, 0) == pytest.approx(2 / 3)  # all that is there is right, half is there
    assert edge_f1(wanted, half, 0) == pytest.approx(2 / 3)
    assert edge_f1(np.roll(wanted, 2, 0), wanted) == 0 and edge_f1(np.roll(wanted, 2, 0), wanted, 2) == 1


# seams


def test_a_seam_is_what_joining_added():
    rng = np.random.default_rng(1)
    mask = np.zeros((96, 96), bool)
    mask[28:68, 28:68] = True
    one, other = (np.clip(level + rng.normal(0, 4, (96, 96, 3)), 0, 255).astype(np.uint8) for level in (90, 150))
    glued = blended(one[None], other[None], mask[None])[0]
    assert seam(glued, mask, [one, other]) == pytest.approx(3600, rel=0.1)
    assert abs(seam(one, mask, [one, other])) < 20
    framed = one.copy()
    framed[mask] = 250  # a thing that fills the mask is a step, and no seam
    assert abs(seam(framed, mask, [framed, framed])) < 1e-6 and seam(framed, mask) > 1000


# frames


def test_frames_look_at_the_first(filling, pair):
    frames, masks = pair
    how = {"settings": Selecting(steps=2, side=64, keep_colour=False)}
    together = select(filling, frames, "a watch", mask=masks, **how)
    alone = select(filling, frames[0], "a watch", mask=masks[0], **how)
    apart = select(
        filling, frames, "a watch", mask=masks, settings=Selecting(steps=2, side=64, keep_colour=False, sharing=0)
    )
    assert together.pictures.shape == frames.shape and together.differing == 0
    if np.array_equal(masks[0].any(0), masks[1].any(0)):  # boxes of one size
        assert np.array_equal(together.pictures[0], alone.picture)
    assert (together.pictures[1] != apart.pictures[1]).any()
    assert np.abs(together.pictures[0].astype(int) - apart.pictures[0]).max() <= 1


def test_the_order_of_batches_does_not_matter(filling, pair):
    frames, masks = np.concatenate([pair[0]] * 2), np.concatenate([pair[1]] * 2)
    one, many = (
        select(filling, frames, "a watch", "a beach", mask=masks, settings=Selecting(steps=2, side=64, batch_size=size))
        for size in (1, 8)
    )
    assert np.abs(one.pictures.astype(int) - many.pictures).max() <= 1
    assert len(one.drift) == 3


def test_colour_changes_as_it_did_in_the_original(filling, pair):
    frames, masks = pair
    darker = np.stack([frames[0], np.clip(frames[1] * 0.8, 0, 255).astype(np.uint8)])
    free, kept = (
        select(filling, darker, "a watch", mask=masks, settings=Selecting(steps=2, side=64, keep_colour=keep))
        for keep in (False, True)
    )
    (before,), (after,) = free.drift, kept.drift
    assert before.drawn == before.final == after.drawn  # reported as drawn either way
    assert after.share() < 0.1 and after.off() < before.off("drawn")
    assert kept.differing == 0 and np.array_equal(kept.pictures[0], free.pictures[0])
    wanted = mean_colour(darker[1], masks[1]) - mean_colour(darker[0], masks[0])
    got = mean_colour(kept.pictures[1], masks[1]) - mean_colour(kept.pictures[0], masks[0])
    assert np.linalg.norm(got - wanted) < 0.1 * np.linalg.norm(wanted)


def test_a_frame_without_the_subject_stays(filling, pair):
    frames, masks = np.concatenate([pair[0], pair[0][:1]]), np.concatenate([pair[1], pair[1][:1] & False])
    for rows in ([0, 1, 2], [2, 0, 1]):  # also when it comes first
        found = select(filling, frames[rows], "a watch", mask=masks[rows], settings=FEW)
        assert np.array_equal(found.pictures[rows.index(2)], frames[2])
        assert len(found.drift) == 1 and found.differing == 0


def test_a_colour_that_cannot_be_reached_is_reported_as_missed():
    picture, mask = np.full((20, 20, 3), 250, np.uint8), np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    found = moved_colour(picture, mask, mask.astype(np.float32), np.array([300.0, 250, 250]))
    assert found[mask][:, 0].min() == 255 and np.array_equal(found[~mask], picture[~mask])
    assert Drift(1, (10.0, 0, 0), (0.0, 0, 0), (5.0, 0, 0)).off() == 5
    assert Drift(1, (10.0, 0, 0), (0.0, 0, 0), (9.5, 0, 0)).share() == pytest.approx(0.05)


# what goes in


def test_a_long_prompt_is_cut_and_told(filling, scene):
    long = " ".join(["a red mug on a table"] * 20)
    with pytest.warns(UserWarning, match="is cut off"):
        kept, cut = fitted(filling, long)
    assert f"{kept} {cut}" == long and cut
    with pytest.warns(UserWarning):
        found = select(filling, scene.image, long, mask=scene.mask, settings=FEW)
    assert found.describe()["cut"] == {"inside": cut} and found.describe()["inside"] == long
    short = select(filling, scene.image, kept, mask=scene.mask, settings=FEW)
    assert np.array_equal(short.picture, found.picture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted(filling, "a mug") == ("a mug", "")


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"inside": ""}, "inside prompt '' says nothing"),
        ({"inside": None}, "inside prompt None"),
        ({"outside": "  "}, "outside prompt"),
        ({"outside": "a mug"}, "the same prompt"),
        ({"mask": None}, "give a mask or a keyword"),
        ({"keyword": "mug"}, "one of them"),
        ({"mask": np.zeros((80, 72))}, "mask is empty"),
        ({"mask": np.ones((80, 72))}, "on every pixel"),
        ({"mask": np.ones((72, 80))}, "give 80×72"),
        ({"mask": np.ones((3, 80, 72))}, "give 80×72"),
        ({"source": np.zeros((1, 80, 72, 3), np.uint8)}, "a clip of 1 frame"),
        ({"source": np.zeros((80, 72), np.uint8)}, "give a picture H×W×3"),
        ({"source": np.zeros((80, 72, 3))}, "in uint8"),
        ({"structure": [Structure(), "edges"]}, "structure 1 is of type str"),
        ({"structure": Structure(where=np.ones((3, 3)), model=object())}, "structure: where of"),
    ],
)
def test_bad_input_is_one_line(filling, scene, wrong, line):
    given = {"source": scene.image, "inside": "a mug", "mask": scene.mask, "settings": FEW, **wrong}
    with pytest.raises(Refused, match=line) as told:
        select(filling, given.pop("source"), given.pop("inside"), given.pop("outside", None), **given)
    assert "\n" not in str(told.value)


def test_masks_of_bytes_and_shares_are_read_alike(filling, scene):
    ways = (scene.mask, scene.mask.astype(np.uint8) * 255, scene.mask.astype(np.float32), scene.mask[None])
    found = [select(filling, scene.image, "a mug", mask=each, settings=Selecting(steps=1, side=64)) for each in ways]
    assert len({each.describe()["result"]["sha256"] for each in found}) == 1


def test_room_around_a_mask(scene):
    wide = widened(scene.mask, 0.2)
    assert wide.sum() > scene.mask.sum() and wide[scene.mask].all()
    assert np.array_equal(widened(scene.mask, 0), scene.mask)


# files


def test_a_picture_file_and_its_description(filling, scene, tmp_path):
    save_picture(tmp_path / "in.png", scene.image)
    save_picture(tmp_path / "mask.png", scene.mask.astype(np.uint8) * 255)
    out = tmp_path / "out.png"
    found = select_file(tmp_path / "in.png", "a mug", mask=tmp_path / "mask.png", out=out, model=filling, settings=FEW)
    note = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert note["file"] == {"name": "out.png", "sha256": file_hash(out)} and note["from"]["name"] == "in.png"
    assert note["result"]["sha256"] == found.describe()["result"]["sha256"] and signed(note) == note
    assert {"inside", "settings", "backbone", "versions", "seed"} <= {*note, *note["settings"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "mask.png", "out.json", "out.png"]


def test_a_run_that_fails_leaves_nothing(filling, scene, tmp_path, monkeypatch):
    save_picture(tmp_path / "in.png", scene.image)
    monkeypatch.setattr("alignment_video.selective.denoise", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        select_file(
            tmp_path / "in.png", "a mug", mask=scene.mask, out=tmp_path / "out.png", model=filling, settings=FEW
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_a_clip_keeps_its_times_and_what_is_outside(filling, pair, tmp_path):
    frames, masks = pair
    source, out = tmp_path / "clip.mkv", tmp_path / "out.mp4"
    with VideoWriter(source, rate=12, encoding=LOSSLESS) as writer:
        for frame in frames:
            writer.write(frame)
    found = select_file(source, "a watch", mask=masks, out=out, model=filling, settings=FEW)
    assert found.differing == 0 and np.array_equal(found.source, frames)
    assert read_clip(out).shape == frames.shape
    apart = np.abs(read_clip(out).astype(int) - found.pictures).mean()
    assert apart < 6  # what encoding costs
    assert len(json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["drift"]) == 1


def test_files_that_cannot_be_meant(filling, scene, pair, tmp_path):
    save_picture(tmp_path / "in.png", scene.image)
    with VideoWriter(tmp_path / "one.mkv", rate=12, encoding=LOSSLESS) as writer:
        writer.write(pair[0][0])
    given = {"mask": scene.mask, "model": filling, "settings": FEW}
    for source, out, line in (
        ("in.png", "out.mp4", "written as .png or .jpg or .jpeg"),
        ("in.png", "in.png", "the source itself"),
        ("none.png", "out.png", "no such file"),
        ("one.mkv", "out.png", "a video is written as .mp4"),
        ("one.mkv", "out.mp4", "a clip of 1 frame, and every frame is drawn; save it as a picture"),
    ):
        with pytest.raises(Refused, match=line):
            select_file(tmp_path / source, "a mug", out=tmp_path / out, **given)
    with pytest.raises(Refused, match="structure 'sketch' is not known"):
        select_file(tmp_path / "in.png", "a mug", structure="sketch", out=tmp_path / "out.png", **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "one.mkv"]
