"""What a page cannot hold of the miniature that draws words: the library's own pipeline, many holes, killed runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import alignment_video.mini_words as page
from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import Backbone, _diffusers, _silent, as_tensor
from alignment_video.core import Refused, random_generator, weights
from alignment_video.mini_diffusion import NOISE, Recipe
from alignment_video.mini_words import (
    HELD_OUT_SEEDS,
    draw_crops,
    edge_agreement,
    edges_of,
    fill,
    hole_around,
    hole_outside,
    inpainting_unet,
    main,
    measure,
    read_crops,
    replacements,
    square_around,
    train_edges,
    train_words,
    write_crops,
)
from alignment_video.sampling import Guidance, Schedule, Start, denoise, hole_of
from alignment_video.world import PRODUCTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def crops():
    return draw_crops(HELD_OUT_SEEDS + 20_000, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("words")
    write_crops(place / "crops", 12)
    return place


@pytest.fixture(scope="module")
def backbone():
    return Backbone.from_pretrained("mini-words", device="cpu")


def test_a_hole_has_room_for_the_product_and_is_larger_than_it(crops):
    for seed in range(8):
        rng = random_generator("holes", seed)
        for mask, other in zip(crops["mask"], np.roll(crops["mask"], 1, 0), strict=True):
            hole = hole_around(rng, mask, other)
            assert hole.shape == mask.shape and hole.dtype == bool
            assert not (mask & ~hole).any() and hole.sum() > mask.sum()
            assert not (mask & hole_outside(rng, mask)).any()


def test_a_square_is_as_large_as_asked_for():
    mask = np.zeros((64, 64), bool)
    mask[20:40, 30:34] = True
    square = square_around(mask, 1.2)
    rows, columns = np.flatnonzero(square.any(1)), np.flatnonzero(square.any(0))
    assert (len(rows), len(columns)) == (24, 24) and rows.mean() == 29.5 and columns.mean() == 31.5


def test_crops_are_the_same_at_every_call_and_show_their_product(crops):
    again = draw_crops(HELD_OUT_SEEDS + 20_000, 24)
    assert all(np.array_equal(crops[name], again[name]) for name in crops)
    assert len(crops["seed"]) >= 20 and (crops["mask"].sum((1, 2)) >= 80).all()


def test_other_products_are_never_the_one_that_is_there(crops):
    holes, products = replacements(crops)
    assert all(PRODUCTS[i] != name for i, name in zip(crops["product"], products, strict=True))
    assert not (crops["mask"] & ~holes).any()


def test_the_library_s_own_pipeline_fills_a_hole_in_the_same_way(backbone, crops):
    pictures, masks = as_tensor(crops["picture"][:2]), torch.from_numpy(crops["hole"][:2, :1]).float()
    hole = hole_of(backbone, pictures, masks)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with _silent(), torch.no_grad():
        parts = _diffusers().StableDiffusionInpaintPipeline.from_pretrained(weights("mini-words", "backbone"))
        parts.set_progress_bar_config(disable=True)
        parts.scheduler = _diffusers().DDIMScheduler.from_config(backbone.scheduler_config)
        grey = torch.nn.functional.interpolate(hole.mask, scale_factor=4.0)
        theirs = parts(
            "a mug", pictures, grey, masked_image_latents=hole.around, latents=noise, guidance_scale=3.0, strength=1.0,
            num_inference_steps=5, height=64, width=64, output_type="latent", num_images_per_prompt=2,
        ).images  # fmt: skip
    texts = backbone.encode_text("a mug"), backbone.encode_text("", negative=True)
    ours = denoise(
        backbone, Start(noise=noise, blank=True), *texts, guidance=Guidance(3.0), schedule=Schedule(5, 1.0), hole=hole
    )
    assert float((ours - theirs).abs().max()) < 1e-3


def test_what_words_change_is_in_the_hole_only_and_depends_on_the_words(backbone, crops):
    holes, _ = replacements(crops)
    drawn = [fill(backbone, crops["picture"][:2], holes[:2], [word] * 2, steps=4) for word in ("a mug", "a hat")]
    for each in drawn:
        assert np.array_equal(each[~holes[:2]], crops["picture"][:2][~holes[:2]])
    assert np.abs(drawn[0].astype(int) - drawn[1])[holes[:2]].mean() > 5
    one = fill(backbone, crops["picture"][:1], holes[:1], ["a mug"], steps=4)
    assert np.abs(one.astype(int) - drawn[0][:1]).max() <= 1  # not what else is in the batch


def test_a_run_that_was_stopped_ends_where_the_other_ends(folder, tmp_path, monkeypatch):
    recipe, other = Recipe(3, batch_size=2, save_every=1), Path(shutil.copytree(folder, tmp_path / "other"))
    whole = train_words(folder, recipe, device="cpu", name="run")
    train = page.Run.train
    with monkeypatch.context() as patch:
        patch.setattr(page.Run, "train", lambda run, loss_of, say: train(run, loss_of, say, until=2))
        stopped = train_words(other, recipe, device="cpu", name="run")
    file = "unet/diffusion_pytorch_model.safetensors"
    before = (stopped / file).read_bytes()
    resumed = train_words(other, recipe, device="cpu", name="run")
    assert (resumed / file).read_bytes() == (whole / file).read_bytes() != before


def test_training_goes_on_from_a_folder_of_nine_channels(folder):
    recipe = Recipe(1, batch_size=2)
    first = train_words(folder, recipe, device="cpu", name="first")
    second = train_words(folder, recipe, device="cpu", name="second", begin=first)
    assert Backbone.from_pretrained(second, device="cpu").fills
    assert ControlAdapter.load(train_edges(folder, recipe, begin=second, device="cpu")).config["control_channels"] == 1


def test_the_wider_u_net_leaves_the_first_one_alone(backbone):
    plain = Backbone.from_pretrained("mini", device="cpu")
    wide = inpainting_unet(plain.unet)
    assert (plain.unet.config.in_channels, wide.config.in_channels) == (4, 9)
    assert not wide.conv_in.weight[:, 4:].any()


def test_edges_agree_with_themselves_and_not_with_nothing(crops):
    edges = edges_of(crops["picture"])
    assert (edge_agreement(edges, edges) == 1).all()
    assert (edge_agreement(np.zeros_like(edges), edges) == 0).all()
    assert edge_agreement(edges, np.roll(edges, 9, 2)).mean() < 0.7


def test_files_that_are_not_whole_are_refused_and_made_again(folder, tmp_path):
    write_crops(tmp_path / "crops", 4)
    (path,) = (tmp_path / "crops").iterdir()
    whole = read_crops(tmp_path / "crops")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Refused, match="not whole"):
        read_crops(tmp_path / "crops")
    write_crops(tmp_path / "crops", 4)
    again = read_crops(tmp_path / "crops")
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_the_command_writes_figures_beside_what_is_there(tmp_path):
    file = tmp_path / "words.json"
    file.write_text('{"training": {"words": "some steps"}}')
    main(["measure", str(file), "--stills", "3"])
    found = json.loads(file.read_text())
    assert found["training"] == {"words": "some steps"} and found["held out"]["crops"] >= 2
    assert 0 <= found["held out"]["edges, F1"]["without control"] <= 1
    with pytest.raises(Refused, match="use make FOLDER"):
        main(["measure"])
    assert measure.__doc__ and NOISE["prediction_type"] == "v_prediction"
