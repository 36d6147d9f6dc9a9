"""What a page cannot hold of the miniature diffusion model: damaged files, killed runs, studies on disk."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import alignment_video.mini_diffusion as page
from alignment_video import world
from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import Backbone, _diffusers, _silent, _tokenizer, as_tensor
from alignment_video.controls import SceneDataset
from alignment_video.core import Refused, Study, weights
from alignment_video.mini_diffusion import (
    ADAPTER,
    DIAL,
    HELD_OUT_SEEDS,
    Recipe,
    Recogniser,
    Run,
    WorldExamples,
    assemble,
    draw,
    held_out_losses,
    main,
    make,
    place_of,
    read_stills,
    recogniser_figures,
    save_pipeline,
    signal_to_noise,
    train_autoencoder,
    train_denoiser,
    train_recogniser,
    world_prompts,
    write_stills,
)
from alignment_video.pictures import write_map, write_mask
from alignment_video.world import PLACES, PRODUCTS

root = Path(__file__).resolve().parents[1]
FEW = {"autoencoder": (8, 8, 16), "denoiser": {"channels": (16, 16, 32), "hidden": 16}}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Stills in a folder: 24 to learn from, 60 that the shipped weights have never seen."""
    place = tmp_path_factory.mktemp("stills")
    write_stills(place / "stills/train", 24, each=12)
    write_stills(place / "stills/held_out", 60, HELD_OUT_SEEDS + 40_000)
    return place


@pytest.fixture
def folder(drawn, tmp_path):
    """A copy of the stills in which a test may train."""
    return Path(shutil.copytree(drawn, tmp_path / "home"))


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """Everything trained for two steps, and put together."""
    place = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("trained") / "home"))
    few = Recipe(2, batch_size=4)
    train_autoencoder(place, few, few, channels=FEW["autoencoder"], device="cpu")
    train_denoiser(place, few, **FEW["denoiser"], device="cpu")
    assemble(place / "backbone", place / "denoiser", place / "autoencoder")
    return place


def refused(*words, call):
    """The one line with which a call is refused."""
    with pytest.raises(Refused) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400, line
    for word in words:
        assert word in line, line


# stills


def test_the_place_is_the_one_that_the_world_draws(monkeypatch):
    asked = []

    def noted(place, *others):
        asked.append(place)
        return world_draws(place, *others)

    world_draws = world.draw_place
    monkeypatch.setattr(world, "draw_place", noted)
    seeds = range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + 40)
    for seed in seeds:
        world.still(seed)
    assert asked == [place_of(seed) for seed in seeds]
    assert len(set(asked)) == len(PLACES)


def test_stills_are_those_of_the_world(drawn):
    known, paths = read_stills(drawn / "stills/train"), sorted((drawn / "stills/train").iterdir())
    assert len(paths) == 2
    for i, still in enumerate(world.stills(24, page.TRAINING_SEEDS)):
        assert known["seed"][i] == still.seed
        assert (known["picture"][i] == still.image).all() and (known["mask"][i] == still.mask).all()
        assert PRODUCTS[known["product"][i]] == still.keyword
    assert known["attention"].dtype == np.uint16 and known["attention"].max(axis=(1, 2)).tolist() == [65535] * 24


def test_half_a_shard_is_drawn_again_and_the_others_stay(folder):
    first, second = sorted((folder / "stills/train").iterdir())
    whole, untouched = second.read_bytes(), first.stat().st_mtime_ns
    for damaged in (b"", whole[:100], whole[:-10], b"PK" + bytes(500)):
        second.write_bytes(damaged)
        refused(
            "not whole; write_stills draws it again", second.name, call=lambda: read_stills(folder / "stills/train")
        )
        write_stills(folder / "stills/train", 24, each=12)
        assert second.read_bytes() == whole
    assert first.stat().st_mtime_ns == untouched


def test_a_leftover_of_a_killed_run_is_no_shard(folder):
    (folder / "stills/train/.30000024-12-64.1-ff.part.npz").write_bytes(b"half")
    assert len(read_stills(folder / "stills/train")["seed"]) == 24


def test_several_processes_draw_the_same(folder):
    other = folder / "other"
    write_stills(other, 24, processes=2, each=12)
    for path in other.iterdir():
        assert path.read_bytes() == (folder / "stills/train" / path.name).read_bytes()


@pytest.mark.parametrize("asked", [(0, 0, 64), (4, 0, 30), (4, 0, 64, 0)])
def test_impossible_stills(asked, tmp_path):
    refused("use numbers above 0", call=lambda: write_stills(tmp_path, *asked))


def test_no_stills_and_stills_of_two_sizes(tmp_path):
    refused("draw them with write_stills", call=lambda: read_stills(tmp_path))
    for side in (32, 64):
        write_stills(tmp_path, 2, side=side)
    refused("several sizes", call=lambda: read_stills(tmp_path))


# examples


@pytest.fixture(scope="module")
def study(drawn, tmp_path_factory):
    """The same stills as a study on disk, as scenes of one video each."""
    place, known, rows = Study(tmp_path_factory.mktemp("study")), read_stills(drawn / "stills/train"), []
    for i in range(8):
        video_id = f"still-{known['seed'][i]}"
        paths = {
            "scene_picture_path": f"p{i}.png",
            "keyword_mask_path": f"m{i}.png",
            "attention_heatmap_path": f"a{i}.png",
        }
        attention = known["attention"][i] * np.float32(known["unit"][i])
        cv2.imwrite(str(place.root / paths["scene_picture_path"]), known["picture"][i][..., ::-1])
        write_mask(place.root / paths["keyword_mask_path"], known["mask"][i])
        write_map(place.root / paths["attention_heatmap_path"], attention)
        share = page.alignment(attention, known["mask"][i])
        names = {"video_id": video_id, "scene_number": 1, "keyword": PRODUCTS[known["product"][i]], "alignment": share}
        rows.append(names | paths)
    return place, pd.DataFrame(rows), known


@pytest.mark.parametrize("gains", [None, (0.4, 2.2), (1.5, 1.5)])
@pytest.mark.parametrize("source", ["heatmap", "scalar"])
def test_examples_are_what_a_study_gives(study, source, gains):
    place, rows, known = study
    scales = dict.fromkeys(rows["video_id"], page.WORLD_SCALE)
    theirs = SceneDataset(place, rows, source=source, size=(64, 64), gains=gains, scales=scales, seed=3)
    ours = WorldExamples({name: part[:8] for name, part in known.items()}, source, gains, seed=3)
    assert len(ours) == len(theirs) == 8
    order = {video_id: i for i, video_id in enumerate(theirs.rows["video_id"])}
    for epoch in (0, 4):
        theirs.set_epoch(epoch)
        ours.set_epoch(epoch)
        for i in range(8):
            sample = ours.compact(i)
            other = theirs.compact(order[sample["video_id"]])
            assert sample.keys() == other.keys()
            for name, value in other.items():
                if isinstance(value, np.ndarray) and value.dtype != np.float32:
                    assert value.dtype == sample[name].dtype and (value == sample[name]).all(), name
                elif name == "numbers":
                    assert np.allclose(value, sample[name], rtol=1e-6)
                else:
                    assert value == sample[name]


def test_examples_refuse_what_they_cannot_use(study):
    _, _, known = study
    refused("source 'map' is none of heatmap, scalar", call=lambda: WorldExamples(known, "map"))
    without = {name: part for name, part in known.items() if name != "unit"}
    refused("stills without unit", call=lambda: WorldExamples(without))


# runs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 4, "seconds": 3},
        {"steps": 0},
        {"seconds": -1},
        {"steps": 3, "batch_size": 0},
        {"steps": 3, "learning_rate": 0},
    ],
)
def test_impossible_recipes(options):
    refused("use" if options.get("steps") == 3 else "give one of the two", call=lambda: Recipe(**options))


@given(st.integers(1, 5000), st.integers(1, 400), st.floats(1e-5, 0.5))
@settings(max_examples=50, deadline=None)
def test_the_rate_rises_and_falls(steps, warm, top):
    recipe = Recipe(steps, learning_rate=top, warm=warm)
    rates = [recipe.rate(step, steps) for step in range(steps)]
    assert all(0 < rate <= top for rate in rates)
    high = int(np.argmax(rates))
    assert rates == [*sorted(rates[:high]), *sorted(rates[high:], reverse=True)]


def killed_at(monkeypatch, stem, step):
    """Stop a run, as a kill would, before it takes this step."""
    advance = page._advance

    def until(run, loss_of):
        if run.file.stem == stem and run.step == step:
            raise KeyboardInterrupt
        return advance(run, loss_of)

    monkeypatch.setattr(page, "_advance", until)


def same(first, second):
    files = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert files and files == sorted(path.relative_to(second) for path in second.rglob("*.*"))
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


SHORT = Recipe(5, batch_size=2, save_every=2, warm=2)


def train_all(place):
    train_autoencoder(place, SHORT, SHORT, channels=FEW["autoencoder"], device="cpu")
    train_denoiser(place, SHORT, **FEW["denoiser"], device="cpu")
    train_recogniser(place, SHORT, device="cpu")


@pytest.fixture(scope="module")
def never_killed(drawn, tmp_path_factory):
    place = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("whole") / "home"))
    train_all(place)
    return place


def test_runs_killed_one_after_the_other_go_on_to_the_bit(never_killed, folder, monkeypatch):
    for stem in ("encoder", "decoder", "denoiser", "recogniser"):
        killed_at(monkeypatch, stem, 3)
        with pytest.raises(KeyboardInterrupt):
            train_all(folder)
        monkeypatch.undo()
        assert torch.load(folder / f"{stem}.pt", weights_only=True)["step"] == 2
    train_all(folder)
    for name in ("autoencoder", "denoiser", "recogniser"):
        same(never_killed / name, folder / name)


def tiny_run(file, steps=4, device="cpu", recipe=None):
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)
    return Run(file, [module], recipe or Recipe(steps, batch_size=2), device), module


def test_a_cut_or_foreign_state_is_refused_and_stays(tmp_path):
    file = tmp_path / "line.pt"
    run, module = tiny_run(file)
    run.train(lambda rng, count: module(torch.ones(count, 2)).square().mean())
    whole = file.read_bytes()
    refused("was begun for 4 steps, not 9", call=lambda: tiny_run(file, 9))
    refused("no state of this run", "delete it", call=lambda: Run(file, [torch.nn.Linear(3, 1)], Recipe(4), "cpu"))
    for damaged in (b"", whole[: len(whole) // 2], b"nonsense"):
        file.write_bytes(damaged)
        refused("no state of this run", "delete it", call=lambda: tiny_run(file))
        assert file.read_bytes() == damaged


def test_a_loss_that_is_no_number_stops_and_keeps_the_state(tmp_path):
    file = tmp_path / "line.pt"
    run, module = tiny_run(file, recipe=Recipe(9, batch_size=2, save_every=2))

    def loss_of(rng, count):
        return module(torch.ones(count, 2)).square().mean() * (float("nan") if run.step == 5 else 1)

    refused("line: the loss of step 5 is no number", call=lambda: run.train(loss_of))
    assert torch.load(file, weights_only=True)["step"] == 4


def test_time_decides_the_number_of_steps_once(tmp_path):
    file = tmp_path / "line.pt"
    run, module = tiny_run(file, recipe=Recipe(seconds=1e-6))
    run.train(lambda rng, count: module(torch.ones(count, 2)).square().mean())
    assert run.step == run.steps == 50
    again, _ = tiny_run(file, recipe=Recipe(seconds=1000.0))
    assert (again.step, again.steps) == (50, 50)


def test_the_average_is_lent_and_given_back(tmp_path):
    run, module = tiny_run(tmp_path / "line.pt")
    run.train(lambda rng, count: module(torch.ones(count, 2)).square().mean())
    before = module.weight.clone()
    with run.averaged():
        assert not torch.equal(module.weight, before) and not module.training
    assert torch.equal(module.weight, before) and module.training
    refused("device 'gpu9' cannot be used", call=lambda: tiny_run(tmp_path / "other.pt", device="gpu9"))


# autoencoder, denoiser, pipeline


def test_latents_are_stored_once_and_made_again_when_stale(folder, monkeypatch):
    vae, pictures = page.new_autoencoder((8, 8, 16)), read_stills(folder / "stills/train")["picture"]
    calls, encode = [], page._encode_all
    monkeypatch.setattr(page, "_encode_all", lambda *given: calls.append(1) or encode(*given))
    file = folder / "latents.npz"
    first = page.cached_latents(file, vae, pictures, torch.device("cpu"))
    assert (page.cached_latents(file, vae, pictures, torch.device("cpu")) == first).all() and len(calls) == 1
    page.cached_latents(file, vae, pictures[:8], torch.device("cpu"))
    page.cached_latents(file, page.new_autoencoder((8, 8, 16), seed=1), pictures[:8], torch.device("cpu"))
    file.write_bytes(file.read_bytes()[:500])
    page.cached_latents(file, page.new_autoencoder((8, 8, 16), seed=1), pictures[:8], torch.device("cpu"))
    assert len(calls) == 4


def test_training_lowers_the_loss_of_the_autoencoder(folder):
    recipe = Recipe(25, batch_size=4, learning_rate=3e-3, warm=5, average=0.9)
    pictures, vae = read_stills(folder / "stills/train")["picture"], page.new_autoencoder((8, 8, 16))
    page._train_both(folder / "encoder.pt", vae, pictures, recipe, "cpu", None)
    true = as_tensor(pictures[:8])
    with torch.no_grad():
        after = page.picture_loss(vae(true).sample, true)
        before = page.picture_loss(page.new_autoencoder((8, 8, 16))(true).sample, true)
    assert after < 0.8 * before and page.picture_loss(true, true) == 0


def test_prompts_fit_their_stills():
    rng, prompts = np.random.default_rng(0), world_prompts()
    assert len(prompts) == len(set(prompts)) == 14 * 10 + 14 + 1 + 10
    product, place = rng.integers(14, size=4000), rng.integers(10, size=4000)
    for i, number in enumerate(page._drawn_prompts(rng, product, place)):
        prompt, name, where = prompts[number], PRODUCTS[product[i]], PLACES[place[i]]
        assert prompt in ("", where, f"a {name}", f"a {name}, {where}")
    shares = pd.Series(prompts[n] for n in page._drawn_prompts(rng, product, place)).value_counts(normalize=True)
    assert 0.07 < shares[""] < 0.13


def test_a_denoiser_can_begin_with_earlier_weights(trained, tmp_path):
    place = Path(shutil.copytree(trained, tmp_path / "more"))
    (place / "denoiser.pt").unlink()
    earlier = {path.name: path.read_bytes() for path in (trained / "denoiser/unet").iterdir()}
    train_denoiser(place, Recipe(1, learning_rate=1e-9, batch_size=2), begin=trained / "denoiser", device="cpu")
    now = {path.name: path.read_bytes() for path in (place / "denoiser/unet").iterdir()}
    assert now.keys() == earlier.keys()
    assert json.loads(now["config.json"])["block_out_channels"] == [16, 16, 32]
    ours, theirs = (page._read(_diffusers().UNet2DConditionModel, each / "denoiser/unet") for each in (place, trained))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_no_autoencoder_yet(folder):
    refused("autoencoder", call=lambda: train_denoiser(folder, Recipe(1), device="cpu"))


def test_the_pipeline_loads_here_and_in_diffusers(trained):
    backbone = Backbone.from_pretrained(trained / "backbone", device="cpu")
    assert (backbone.kind, backbone.factor, backbone.prediction_type, backbone.untrained) == (
        "sd",
        4,
        "v_prediction",
        False,
    )
    assert backbone.scaling_factor == json.loads((trained / "denoiser/scale.json").read_text())["scale"]
    with _silent():
        library = _diffusers()
        for kind in (library.DiffusionPipeline, library.StableDiffusionPipeline):
            pipeline = kind.from_pretrained(trained / "backbone")
            pipeline.set_progress_bar_config(disable=True)
        found = pipeline("a mug", num_inference_steps=2, output_type="np").images
    assert type(pipeline).__name__ == "StableDiffusionPipeline" and found.shape == (1, 64, 64, 3)
    assert pipeline.vae_scale_factor == 4


def test_the_folder_holds_half_precision_and_no_path(trained):
    text = "".join(path.read_text() for path in (trained / "backbone").rglob("*.json"))
    assert "_name_or_path" not in text and str(trained) not in text and "_untrained" not in text
    files = list((trained / "backbone").rglob("*.*"))
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)
    for path in (trained / "backbone").rglob("*.safetensors"):
        stored = load_file(path).values()
        assert {value.dtype for value in stored if value.is_floating_point()} == {torch.float16}, path
    assert not [path for path in trained.iterdir() if path.name.startswith(".")]


def test_a_pipeline_replaces_a_pipeline_and_nothing_else(trained, tmp_path):
    given = trained / "denoiser", trained / "autoencoder"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    refused("there is something, and it is no pipeline", call=lambda: assemble(tmp_path / "notes", *given))
    refused("there is something, and it is no pipeline", call=lambda: assemble(tmp_path / "notes/mine.txt", *given))
    assert (tmp_path / "notes/mine.txt").read_text() == "mine"
    first = assemble(tmp_path / "new", *given)
    (tmp_path / "new/old.txt").write_text("of the old pipeline")
    second = assemble(tmp_path / "new", *given)
    assert not (tmp_path / "new/old.txt").exists() and first.scaling_factor == second.scaling_factor


def test_weights_that_are_no_numbers_are_not_saved(trained, tmp_path):
    unet, text, tokenizer = page.new_denoiser((16, 16, 32), 16)
    next(unet.parameters()).data.fill_(1e6)  # more than half precision holds
    scheduler = _diffusers().DDPMScheduler(**page.NOISE)
    vae = page.new_autoencoder((8, 8, 16))
    refused(
        "unet: ",
        "not finite in half precision",
        call=lambda: save_pipeline(tmp_path / "p", unet, vae, text, tokenizer, scheduler),
    )
    assert not (tmp_path / "p").exists() and not list(tmp_path.iterdir())
    assert next(unet.parameters()).dtype == torch.float32


@pytest.mark.parametrize("missing", ["scale.json", "scheduler", "unet"])
def test_half_a_denoiser_is_not_assembled(trained, tmp_path, missing):
    half = Path(shutil.copytree(trained / "denoiser", tmp_path / "half"))
    shutil.rmtree(half / missing) if (half / missing).is_dir() else (half / missing).unlink()
    with pytest.raises(Refused):
        assemble(tmp_path / "out", half, trained / "autoencoder")
    assert not (tmp_path / "out").exists()


# the shipped weights


def test_the_shipped_backbone_is_small_and_of_this_tokenizer():
    folder = Path(weights("mini", "backbone"))
    assert sum(path.stat().st_size for path in folder.rglob("*.*")) < 14e6
    text = "".join(path.read_text() for path in folder.rglob("*.json"))
    assert "_name_or_path" not in text and "/tmp" not in text
    shipped, ours = Backbone.from_pretrained("mini", device="cpu").tokenizers[0], _tokenizer("!")
    for prompt in (*world_prompts(), "Vintage CAMERA for 3 €", "ساعة"):
        assert shipped(prompt).input_ids == ours(prompt).input_ids


def test_the_shipped_backbone_is_trained(drawn):
    backbone, stills = Backbone.from_pretrained("mini", device="cpu"), read_stills(drawn / "stills/held_out")
    few = {name: part[:24] for name, part in stills.items()}
    _, decibels = signal_to_noise(backbone, few["picture"])
    assert decibels.mean() > 28
    losses = held_out_losses(backbone, few, (400, 900))
    assert (losses["prompt"] < losses["wrong prompt"]).all() and losses["prompt"].max() < 0.75


def test_drawn_pictures_do_not_depend_on_their_number(trained):
    backbone = Backbone.from_pretrained(trained / "backbone", device="cpu")
    both = draw(backbone, ["a mug", "beach"], steps=2)
    assert both.shape == (2, 64, 64, 3) and both.dtype == np.uint8
    one = draw(backbone, "a mug", steps=2)
    assert np.abs(one[0].astype(int) - both[0]).max() <= 1
    refused("prompt", call=lambda: draw(backbone, ["mug " * 80]))


def test_the_shipped_recogniser_names_unseen_stills(drawn):
    stills, recogniser = read_stills(drawn / "stills/held_out"), Recogniser.from_pretrained("mini", device="cpu")
    figures = recogniser_figures(recogniser, stills)
    assert figures["stills"] == 60 and figures["named rightly"] >= 0.95
    assert recogniser.parameters <= 200_000
    assert (Path(weights("mini", "recogniser")) / "model.safetensors").stat().st_size <= 500_000
    mirrored = [recogniser.name(stills["picture"][:20, :, ::-1], stills["mask"][:20, :, ::-1])]
    assert np.mean([word == PRODUCTS[i] for (word, _), i in zip(mirrored[0], stills["product"], strict=False)]) >= 0.9


def test_the_recogniser_sees_the_box_and_not_the_mask(drawn):
    stills, recogniser = read_stills(drawn / "stills/held_out"), Recogniser.from_pretrained("mini", device="cpu")
    boxes = np.zeros_like(stills["mask"])
    for box, mask in zip(boxes, stills["mask"], strict=True):
        x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
        box[y : y + high, x : x + wide] = True
    assert recogniser.name(stills["picture"], boxes) == recogniser.name(stills["picture"], stills["mask"])


def test_the_recogniser_takes_any_size_type_and_batch(drawn):
    stills, recogniser = read_stills(drawn / "stills/held_out"), Recogniser.from_pretrained("mini", device="cpu")
    pictures, masks = list(stills["picture"][:6]), list(stills["mask"][:6])
    large = [cv2.resize(picture, (512, 512), interpolation=cv2.INTER_CUBIC) for picture in pictures]
    wide = [cv2.resize(mask.astype(np.float32), (512, 512), interpolation=cv2.INTER_NEAREST) for mask in masks]
    words = [word for word, _ in recogniser.name(pictures, masks)]
    assert [word for word, _ in recogniser.name(large, wide)] == words
    assert [word for word, _ in recogniser.name(pictures, masks, batch_size=1)] == words
    edge = np.zeros((64, 64), bool)
    edge[0, 0] = True
    assert recogniser.name(pictures[:1], [edge])[0][0] in PRODUCTS  # a box of one pixel in a corner


def test_the_recogniser_refuses(drawn, tmp_path):
    recogniser = Recogniser(device="cpu")
    picture, mask = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), bool)
    refused("mask is empty", call=lambda: recogniser.name([picture], [mask & False]))
    refused("1 pictures and 0 masks", call=lambda: recogniser.name([picture], []))
    refused("picture 1 is float64", call=lambda: recogniser.name([picture / 255], [mask]))
    refused("its mask (32, 32)", call=lambda: recogniser.name([picture], [mask[::2, ::2]]))
    refused("no config.json", call=lambda: Recogniser.from_pretrained(tmp_path / "none"))
    place = recogniser.save_pretrained(tmp_path / "judge")
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[:-100])
    refused("not whole", call=lambda: Recogniser.from_pretrained(place))
    (place / "model.safetensors").unlink()
    refused("no model.safetensors", call=lambda: Recogniser.from_pretrained(place))
    Recogniser((8, 8), device="cpu").save_pretrained(tmp_path / "small")
    (place / "model.safetensors").write_bytes((tmp_path / "small/model.safetensors").read_bytes())
    refused("of another network", call=lambda: Recogniser.from_pretrained(place))
    recogniser.layers[0].weight.data.fill_(float("nan"))
    refused("not all finite", call=lambda: recogniser.save_pretrained(tmp_path / "nan"))


def test_a_saved_recogniser_says_the_same(drawn, tmp_path):
    stills = read_stills(drawn / "stills/held_out")
    made = Recogniser((8, 8, 16), device="cpu", seed=5)
    again = Recogniser.from_pretrained(made.save_pretrained(tmp_path / "judge"), device="cpu")
    ours, theirs = (each.name(stills["picture"][:8], stills["mask"][:8]) for each in (made, again))
    assert [word for word, _ in ours] == [word for word, _ in theirs]
    assert np.allclose([share for _, share in ours], [share for _, share in theirs], atol=1e-3)


# the command


def test_make_does_everything_and_goes_on(tmp_path, monkeypatch):
    autoencoder, denoiser = page.new_autoencoder, page.new_denoiser
    monkeypatch.setattr(page, "new_autoencoder", lambda _, side: autoencoder(FEW["autoencoder"], side))
    monkeypatch.setattr(page, "new_denoiser", lambda *_: denoiser(**FEW["denoiser"]))
    fewer = {name: replace(recipe, batch_size=4) for name, recipe in page._RECIPES.items()}
    monkeypatch.setattr(page, "_RECIPES", fewer)
    said = list[str]()
    found = make(tmp_path / "home", device="cpu", count=16, steps=1, say=said.append)
    assert Backbone.from_pretrained(found, device="cpu").unet.config.cross_attention_dim == 16
    assert Recogniser.from_pretrained(tmp_path / "home/recogniser", device="cpu").words == PRODUCTS
    figures = json.loads((tmp_path / "home/figures.json").read_text())
    assert {"decibels", "losses"} <= figures["backbone"].keys() and said[0] == "stills: 16"
    backbone = Backbone.from_pretrained(found, device="cpu")
    for source in ("heatmap", "scalar"):
        assert ControlAdapter.load(tmp_path / f"home/adapter_{source}", backbone).config["sees_frame"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "home").glob("*.pt")}
    told = {path: path.read_bytes() for path in (tmp_path / "home").glob("training_*/history.jsonl")}
    make(tmp_path / "home", device="cpu", count=16, steps=1, say=said.append)
    assert times == {path: path.stat().st_mtime_ns for path in times} and len(times) == 4
    assert told == {path: path.read_bytes() for path in told} and len(told) == 2


def test_a_training_is_as_long_as_its_part():
    assert (page._as_long(DIAL, 1.0)) == DIAL
    half = page._as_long(DIAL, 0.5)
    assert (half.max_steps, half.consistency_from) == (DIAL.max_steps // 2, DIAL.consistency_from // 2)
    least = page._as_long(DIAL, 1e-9)
    assert (least.max_steps, least.consistency_from) == (2, 1)


def test_a_training_is_as_long_as_there_is_time(tmp_path):
    for part, first in (("train", page.TRAINING_SEEDS), ("held_out", HELD_OUT_SEEDS)):
        write_stills(tmp_path / "stills" / part, 12, first)
    backbone = Backbone.from_pretrained("mini", device="cpu")
    short, longer = (page._dial_within(seconds, tmp_path, backbone) for seconds in (5.0, 5000.0))
    assert 2 <= short.max_steps < longer.max_steps and longer.consistency_from < longer.max_steps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "stills"]  # nothing is left of the trial


@pytest.mark.parametrize("source", ["heatmap", "scalar"])
def test_the_shipped_adapters_fit_the_shipped_backbone(source):
    backbone = Backbone.from_pretrained("mini", device="cpu")
    adapter = ControlAdapter.load("mini" if source == "heatmap" else f"mini-{source}", backbone)
    assert {key: adapter.config[key] for key in ADAPTER} == ADAPTER
    assert all(bool(zero.weight.abs().max() > 0) for zero in adapter.zero)  # every level says something


def test_the_command_passes_on_what_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(page, "make", lambda *given: asked.append(given))
    main(["make", "home", "--minutes", "60", "--device", "cpu"])
    main(["--device", "cpu", "make", "home", "--stills", "9", "--steps", "2", "--processes", "3"])
    assert asked == [("home", 60.0, "cpu", 20_000, 1, None), ("home", None, "cpu", 9, 3, 2)]


def test_measuring_keeps_what_is_in_the_file(tmp_path):
    file = tmp_path / "figures.json"
    file.write_text('{"training": "told"}')
    page.measure(file, 12, "cpu", of="recogniser")
    found = json.loads(file.read_text())
    assert found["training"] == "told" and found["held out"]["stills"] == 12


def test_minutes_are_shared_out():
    shared = page._recipes(3000.0)
    assert sum(recipe.seconds for recipe in shared.values()) == pytest.approx(0.67 * 3000)  # the rest is the adapters'
    assert all(recipe.steps is None for recipe in shared.values())
    assert shared["denoiser"].batch_size == 48


@pytest.mark.parametrize(
    "line",
    ["", "train", "make", "make x --minutes soon", "make x --minutes -5", "make x --threads 0", "make x --stills 0"],
)
def test_bad_arguments(line):
    refused("use", call=lambda: main(line.split()))


def test_the_command_says_one_line():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "alignment_video.mini_diffusion", "assemble", "only-one"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().count("\n") == 0 and "use make FOLDER" in done.stderr


# the measurement on a graphics card


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("bench_gpu", root / "bench/gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_measurement_runs_tiny_without_a_card(gpu, tmp_path, capsys):
    gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json")])
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert stored["lines"] == said and stored["tiny"] and stored["device"]
    whats = " ".join(line["what"] for line in said)
    for word in ("ceiling", "training, adapter", "training, ControlNet", "one loop", "ControlNet pipeline"):
        assert word in whats
    counted = [line["tflop_an_image"] for line in said if "tflop_an_image" in line]
    assert len(counted) == 3 and counted[0] < counted[1]  # an adapter's step is smaller than a ControlNet's


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card, so nothing is refused")
def test_the_full_measurement_is_refused_without_a_card(gpu, capsys):
    gpu.main([])
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1 and "no CUDA device" in json.loads(said[0])["what"]
