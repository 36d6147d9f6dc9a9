"""What a page about the backbone cannot hold: damaged folders, foreign models, full-size shapes, odd input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_video.backbone import (
    ARCHITECTURES,
    PREDICTION_TYPES,
    Backbone,
    Text,
    _cut_off,
    _diffusers,
    _silent,
    _transformers,
    add_noise,
    as_pictures,
    as_tensor,
    check_weights,
    explain_memory,
    noise_of,
    noise_schedule,
    on_meta,
    read_model,
    residual_shapes,
    target,
    write_untrained,
    x0,
)
from alignment_video.core import Refused

torch.set_num_threads(1)
slow = pytest.mark.skipif(os.environ.get("SLOW") != "1", reason="the full width needs minutes and 10 GB; set SLOW=1")
SIZES = [(512, 512), (576, 1024), (544, 960)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An untrained pipeline of each architecture."""
    place = tmp_path_factory.mktemp("untrained")
    return {name: write_untrained(place / name, name, narrower=16) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def backbones(folders):
    return {name: Backbone.from_pretrained(folder, device="cpu") for name, folder in folders.items()}


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of the SD 1.5 folder that a test may damage."""
    return Path(shutil.copytree(folders["sd15"], tmp_path / "model"))


def pictures(count=2, height=64, width=72, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def refused(folder, *words, **more):
    """The one line with which a folder is refused."""
    with pytest.raises(Refused) as caught:
        Backbone.from_pretrained(folder, device="cpu", **more)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line and len(line) < 450, line
    for word in words:
        assert word in line, line


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def edit_weights(path, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


# folders that are no backbone


def test_names_that_are_nothing(tmp_path):
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "folder is empty", "diffusers' form")
    (tmp_path / "unet").mkdir()
    refused(tmp_path, "no model_index.json")
    for name in ("model.safetensors", "v1-5-pruned.ckpt"):
        (tmp_path / name).write_bytes(b"0" * 100)
        refused(tmp_path / name, "single file", "from_single_file")
    for text in ('{"_class_name": "Stab', "[1, 2]", ""):
        (tmp_path / "model_index.json").write_text(text)
        refused(tmp_path, "model_index.json is no JSON", "not whole")
    (tmp_path / "model_index.json").write_text("{}")
    refused(tmp_path, "no U-Net")


def test_name_of_the_hub_without_network():
    program = (
        "from alignment_video.backbone import Backbone\nfrom alignment_video.core import Refused\n"
        "try: Backbone.from_pretrained('somebody/no-such-model', device='cpu')\n"
        "except Refused as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("\n") == 1 and "somebody/no-such-model" in done.stdout and "no such folder" in done.stdout
    assert "hub cannot be reached" in done.stdout and "give a folder in diffusers' form" in done.stdout


def test_what_the_hub_says(copy, monkeypatch):
    """It is asked once, and an earlier download serves when it cannot be reached."""
    import huggingface_hub
    from huggingface_hub import errors

    asked = []

    def ask(kind):
        error = kind.__new__(kind)
        error.args = ("no\nnetwork",)

        def fails(*args, **more):
            asked.append(args)
            raise error

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fails)

    for kind, words in (
        (errors.RepositoryNotFoundError, "the hub knows no such model"),
        (errors.GatedRepoError, "accepted its terms"),
        (errors.RemoteEntryNotFoundError, "there is no model_index.json in it"),
        (OSError, "the hub cannot be reached (no)"),
    ):
        ask(kind)
        with pytest.raises(Refused) as caught:
            Backbone.from_pretrained("models/sd15", device="cpu")
        line = str(caught.value)
        assert "\n" not in line and words in line and "no such folder" in line and "give a folder" in line, line
    assert len(asked) == 4
    kept = str(copy / "model_index.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: kept)
    assert Backbone.from_pretrained("models/sd15", device="cpu").name == "models/sd15"
    (copy / "vae" / "config.json").unlink()
    with pytest.raises(Refused, match=r"'models/sd15'.*vae: no config\.json"):
        Backbone.from_pretrained("models/sd15", device="cpu")


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("StableDiffusion3Pipeline", {"transformer": ["diffusers", "SD3Transformer2DModel"], "unet": None}),
        ("FluxPipeline", {"transformer": ["diffusers", "FluxTransformer2DModel"], "unet": None}),
        ("IFPipeline", {"vae": None}),
        ("KandinskyV22Pipeline", {"vae": None, "movq": ["diffusers", "VQModel"]}),
        ("AltDiffusionPipeline", {"text_encoder": ["transformers", "XLMRobertaModel"]}),
        ("StableDiffusionXLPipeline", {"text_encoder": [None, None]}),
    ],
)
def test_another_family(copy, family, parts):
    index = json.loads((copy / "model_index.json").read_text())
    index = {key: value for key, value in {**index, **parts}.items() if value}
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": family}))
    refused(copy, family, "use Stable Diffusion 1.x, 2.x or SDXL")


def test_models_that_read_more_than_latents(copy, folders, tmp_path):
    D = _diffusers()
    config = D.UNet2DConditionModel.load_config(copy / "unet")
    shutil.rmtree(copy / "unet")
    with _silent():
        D.UNet2DConditionModel.from_config({**config, "in_channels": 5}).save_pretrained(copy / "unet")
    refused(copy, "5 channels", "4", "depth or upscaling")
    refiner = Path(shutil.copytree(folders["sdxl"], tmp_path / "refiner"))
    edit_json(refiner / "model_index.json", requires_aesthetics_score=True)
    refused(refiner, "refiner", "base model")


def test_parts_of_different_models(copy, folders):
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(copy / part)
        shutil.copytree(folders["sd21"] / part, copy / part)
    refused(copy, "64", "48", "different models")


def test_a_schedule_of_another_kind(copy):
    edit_json(copy / "scheduler" / "scheduler_config.json", prediction_type="flow_prediction")
    with pytest.raises(Refused, match=r"flow_prediction.*epsilon, v_prediction"):
        Backbone.from_pretrained(copy, device="cpu")


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "has no noise schedule (no beta_schedule)"),
        ({"num_train_timesteps": 1000, "shift": 3.0}, "has no noise schedule"),
        ({"beta_schedule": "linear"}, "no beta_start"),
        ({**SCHEDULE, "beta_end": None}, "no beta_end"),
        ({**SCHEDULE, "beta_schedule": "foo"}, "beta_schedule 'foo' is not one of linear, scaled_linear"),
        ({**SCHEDULE, "beta_schedule": ["linear"]}, "beta_schedule ['linear'] is not one of"),
        ({**SCHEDULE, "beta_start": "small"}, "no noise schedule can be made of its config"),
        ({**SCHEDULE, "beta_schedule": "linear", "beta_end": -1.0}, "not between 0 and 1"),
    ],
)
def test_configs_without_a_schedule(copy, config, words):
    with pytest.raises(Refused) as caught:
        noise_schedule(config)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    refused(copy, words, "scheduler_config.json that the model was trained with")


def test_other_schedules():
    assert noise_schedule({"trained_betas": [0.1, 0.2]}).tolist() == pytest.approx([0.9, 0.72])
    for kind in ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"):
        assert 0 < noise_schedule({**SCHEDULE, "beta_schedule": kind})[500] < 1
    assert len(noise_schedule({"beta_schedule": "squaredcos_cap_v2"})) == 1000


# weights that are missing, half or unsafe


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_parts(copy, part):
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    (copy / part / f"{stem}.safetensors").unlink()
    refused(copy, f"{part}: no {stem}.safetensors", "not whole")
    (copy / part / "config.json").unlink()
    refused(copy, f"{part}: no config.json")
    shutil.rmtree(copy / part)
    refused(copy, f"{part}: no such part")


def test_missing_scheduler_or_tokenizer(copy):
    shutil.move(copy / "scheduler", copy / "kept")
    refused(copy, "scheduler")
    shutil.move(copy / "kept", copy / "scheduler")
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    refused(copy, "tokenizer/tokenizer_config.json: missing", "copy or download it again")
    for file in (copy / "tokenizer").iterdir():
        file.unlink()
    refused(copy, "tokenizer/tokenizer_config.json: missing")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_half_a_download(copy, keep):
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(copy, "unet/diffusion_pytorch_model.safetensors: not whole")


def test_pointer_to_weights(copy):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167534\n"
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(pointer)
    refused(copy, "vae/", "Git LFS pointer", "git lfs pull")


def test_shards(copy, backbones):
    D = _diffusers()
    with _silent():
        shutil.rmtree(copy / "unet")
        backbones["sd15"].unet.save_pretrained(copy / "unet", max_shard_size="6MB")
    shards = sorted((copy / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    loaded = Backbone.from_pretrained(copy, device="cpu").unet
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), backbones["sd15"].unet.parameters(), strict=True))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    refused(copy, shards[1].name, "not whole")
    shards[1].unlink()
    refused(copy, shards[1].name, f"one of {len(shards)} files")
    index = copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{")
    refused(copy, index.name, "not whole")
    index.unlink()
    refused(copy, shards[0].name, "the list of its parts is not")
    assert D is not None


@pytest.mark.parametrize(
    ("part", "name"), [("unet", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")]
)
def test_pickles_only_when_asked_for(copy, backbones, part, name, capfd):
    model = backbones["sd15"].unet if part == "unet" else backbones["sd15"].text_encoders[0]
    (file,) = (copy / part).glob("*.safetensors")
    file.unlink()
    torch.save(model.state_dict(), copy / part / name)
    refused(copy, f"{part}: weights only as pickle ({name})", "pickles=True")
    loaded = Backbone.from_pretrained(copy, device="cpu", pickles=True)
    got = loaded.unet if part == "unet" else loaded.text_encoders[0]
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), model.parameters(), strict=True))
    assert capfd.readouterr().err == ""


def test_variant(copy):
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (copy / part).glob("*.safetensors")
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    refused(copy, "unet: weights only as variant 'fp16'", "variant='fp16'")
    assert Backbone.from_pretrained(copy, device="cpu", variant="fp16").kind == "sd"
    refused(copy, "variant 'fp16'", variant="other")


def test_variant_of_one_part_only(copy):
    """The advice for one part must not lead to an error in another that leads back."""
    (file,) = (copy / "unet").glob("*.safetensors")
    renamed = file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    for variant in (None, "fp16", "other"):
        words = ("unet is there as variant 'fp16'", "vae is there without a variant", "no variant is there for all")
        refused(copy, *words, variant=variant)
    shutil.copy(renamed, file)
    refused(copy, "vae: no variant 'fp16', only", "leave variant out", variant="fp16")
    assert Backbone.from_pretrained(copy, device="cpu").kind == "sd"


@pytest.mark.parametrize(
    ("part", "key"), [("unet", "conv_in.weight"), ("vae", "quant_conv.bias"), ("text_encoder", "")]
)
def test_missing_and_broken_weights(copy, part, key):
    (file,) = (copy / part).glob("*.safetensors")
    key = key or "final_layer_norm.weight"

    def full(weights):
        return next(name for name in weights if name.endswith(key))

    edit_weights(file, lambda weights: weights.__setitem__(full(weights), weights[full(weights)] * float("nan")))
    refused(copy, key, "no numbers")
    edit_weights(file, lambda weights: weights.pop(full(weights)))
    refused(copy, "1 weights are missing", key)


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    ],
)  # fmt: skip
def test_half_a_configuration(copy, file):
    whole = (copy / file).read_bytes()
    for damaged in (whole[:50], b"", b"[]", b"\xff\xfe"):
        (copy / file).write_bytes(damaged)
        refused(copy, f"{file}: no JSON, or not whole; copy or download it again")


def test_weights_of_another_width(copy):
    edit_json(copy / "unet" / "config.json", block_out_channels=[40, 80, 160, 160])
    refused(copy, "unet", "not of one model, or damaged")
    edit_json(copy / "unet" / "config.json", block_out_channels="wide")
    refused(copy, "unet", "its config.json")


def test_tokenizers_that_cannot_be_made(copy):
    (copy / "tokenizer" / "tokenizer.json").write_text('{"model": 5}')
    refused(copy, "tokenizer", "copy or download them again")


def test_read_model_without_a_subfolder(folders, tmp_path):
    kind = _diffusers().UNet2DConditionModel
    assert read_model(kind, str(folders["sd15"] / "unet"), None, torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(Refused, match=r"no config\.json"):
        read_model(kind, str(tmp_path), None, torch.float32)
    with pytest.raises(Refused, match="no such part"):
        check_weights(tmp_path / "adapter", "diffusion_pytorch_model")


# devices and types


def test_types_and_devices(folders):
    for wrong, word in (("float64", "use auto"), ("int8", "use auto"), ("float16", "on the CPU")):
        with pytest.raises(Refused, match=word):
            Backbone.from_pretrained(folders["sd15"], device="cpu", dtype=wrong)
    with pytest.raises(Refused, match="cannot be used"):
        Backbone.from_pretrained(folders["sd15"], device="cuda:99")
    small = Backbone.from_pretrained(folders["sd15"], device="cpu", dtype="bfloat16")
    assert small.dtype == small.vae.dtype == small.text_encoders[0].dtype == torch.bfloat16
    exact = Backbone.from_pretrained(folders["sd15"], device="cpu")
    latents, text = exact.encode(pictures()), exact.encode_text("a red handbag")
    for a, b in (
        (small.encode(pictures()), latents),
        (small.decode(latents), exact.decode(latents)),
        (small.encode_text("a red handbag").hidden, text.hidden),
        (small.predict(latents, 500, text), exact.predict(latents, 500, text)),
    ):
        assert a.dtype == torch.float32 and 0 < (a - b).square().mean().sqrt() < 0.05 * b.std()


def test_the_vae_is_never_float16(folders):
    parts = Backbone.from_pretrained(folders["sdxl"], device="cpu")
    half = Backbone(parts.unet.half(), parts.vae.half(), parts.tokenizers, parts.text_encoders, parts.scheduler_config)
    assert half.dtype == torch.float16 and half.vae.dtype == torch.float32


def test_attention_is_sdpa(backbones):
    for backbone in backbones.values():
        assert {type(each).__name__ for each in backbone.unet.attn_processors.values()} == {"AttnProcessor2_0"}


def test_importing_is_light():
    program = (
        "import sys, alignment_video.backbone\n"
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n" and done.stderr == ""


# the same as diffusers


@pytest.fixture(scope="module")
def pipelines(folders):
    D, made = _diffusers(), {}
    for name, folder in folders.items():
        kind = D.StableDiffusionXLImg2ImgPipeline if name == "sdxl" else D.StableDiffusionImg2ImgPipeline
        with _silent():
            made[name] = kind.from_pretrained(folder)
        made[name].set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_text_of_the_pipeline(name, backbones, pipelines):
    backbone, pipe, prompts = backbones[name], pipelines[name], ["a red handbag", "a dog on the beach, “nice”"]
    asked = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    hidden, nothing, *pooled = pipe.encode_prompt(prompts, **asked)
    text, empty = backbone.encode_text(prompts), backbone.encode_text("", negative=True)
    assert (text.hidden - hidden).abs().max() < 1e-5 and (empty.hidden - nothing[:1]).abs().max() < 1e-5
    if name == "sdxl":
        assert (text.pooled - pooled[0]).abs().max() < 1e-5 and (empty.pooled - pooled[1][:1]).abs().max() < 1e-5
        assert not empty.hidden.any() and backbone.encode_text("").hidden.any()
        spoken = pipe.encode_prompt(prompts, negative_prompt="dark", **asked)
        dark = backbone.encode_text("dark", negative=True)
        assert (dark.hidden - spoken[1][:1]).abs().max() < 1e-5 and (dark.pooled - spoken[3][:1]).abs().max() < 1e-5
        sizes = [(64, 72), (0, 0), (64, 72), 6.0, 2.5, (64, 72), (0, 0), (64, 72), torch.float32, text.pooled.shape[1]]
        assert torch.equal(backbone.added(text, (64, 72))["time_ids"][:1], pipe._get_add_time_ids(*sizes)[0])


@pytest.mark.filterwarnings("ignore:__array__")  # diffusers' Euler schedule
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_pictures_of_the_pipeline(name, backbones, pipelines):
    backbone, pipe, given_ = backbones[name], pipelines[name], pictures()
    assert backbone.untrained
    seen = pipe.vae.encode(given_).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert (backbone.encode(given_) - seen).abs().max() < 1e-5
    asked = {"prompt": ["a", "b"], "image": (given_ + 1) / 2, "strength": 0.5, "num_inference_steps": 4}
    latents, shown = (
        pipe(**asked, guidance_scale=1.0, generator=torch.Generator().manual_seed(0), output_type=kind).images
        for kind in ("latent", "pt")
    )
    assert (backbone.decode(latents) / 2 + 0.5 - shown).abs().max() < 1e-5


def test_mean_and_spread_of_latents(backbones):
    """Some VAEs give the mean and the spread of their latents beside the scaling factor."""
    plain = backbones["sdxl"]
    config, before = (
        {**plain.vae.config, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1, 2, 3, 4]},
        plain.encode(pictures()),
    )
    with _silent():
        vae = _diffusers().AutoencoderKL.from_config(config)
    vae.load_state_dict(plain.vae.state_dict())
    other = Backbone(plain.unet, vae, plain.tokenizers, plain.text_encoders, plain.scheduler_config)
    latents, view = other.encode(pictures()), (1, 4, 1, 1)
    raw = before / plain.scaling_factor
    wanted = (raw - torch.tensor(config["latents_mean"]).view(view)) * plain.scaling_factor
    assert (latents - wanted / torch.tensor([1.0, 2, 3, 4]).view(view)).abs().max() < 1e-5
    assert (other.decode(latents) - plain.decode(before)).abs().max() < 1e-4


# pictures


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (pictures() / 0 * 0, "picture 1 of 2 holds NaN"),
        (torch.where(torch.arange(2).view(2, 1, 1, 1) == 1, torch.inf, pictures()), "picture 2 of 2"),
        (pictures() * 127.5 + 127.5, "values from -1 to 1"),
        ((pictures() * 127).to(torch.uint8), "torch.uint8"),
        (pictures().numpy(), "give a tensor"),
        (pictures()[0], "give a tensor"),
        (pictures()[:, :1], "give a tensor"),
        (pictures()[:0], "give a tensor"),
        ((0.5, 0.5), "pictures tuple"),
        (None, "pictures NoneType"),
        (pictures(height=65), r"height 65 cannot be divided by 8; use 64 or 72 × 72"),
    ],
)
def test_pictures_that_cannot_be_encoded(backbones, wrong, words):
    with pytest.raises(Refused, match=words):
        backbones["sd15"].encode(wrong)


def test_encoding_does_not_depend_on_the_batch(backbones):
    backbone, given_ = backbones["sd15"], pictures(5)
    for seed in (None, 3, ["a", "b", "c", "d", "e"]):
        whole = backbone.encode(given_, seed, batch_size=5)
        for size in (1, 2):
            assert (backbone.encode(given_, seed, batch_size=size) - whole).abs().max() < 1e-5
        one = backbone.encode(given_[3:4], seed if not isinstance(seed, list) else seed[3:4])
        assert (one - whole[3:4]).abs().max() < 1e-5
        assert (backbone.decode(whole, batch_size=2) - backbone.decode(whole, batch_size=5)).abs().max() < 1e-5
    same = backbone.encode(torch.cat([given_[:1]] * 2), 3)
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], backbone.encode(given_[:1], 4)[0])
    with pytest.raises(Refused, match="2 seeds for 5 pictures"):
        backbone.encode(given_, [1, 2])
    for wrong in (0, -1, 1.5, None, True, "4"):
        for call in (lambda: backbone.encode(given_, batch_size=wrong), lambda: backbone.decode(whole, wrong)):  # noqa: B023
            with pytest.raises(Refused, match=f"batch_size={wrong!r}: use a whole number from 1 on"):
                call()
    for wrong in (1.5, True, [1, 2, 3, 4, 5.0], {1: 2}, b"seed"):
        with pytest.raises(Refused, match="use a whole number or a text, or a list of them"):
            backbone.encode(given_, wrong)


# arrays and tensors


def test_every_byte_comes_back():
    every = np.arange(256, dtype=np.uint8).reshape(8, 32, 1) + np.array([0, 85, 170], np.uint8)
    for given_ in (every, [every, 255 - every], np.stack([every, every]), (every[::-1], every[:, ::-1])):
        tensor = as_tensor(given_)
        assert tensor.dtype == torch.float32 and tensor.shape[1:] == (3, 8, 32) and tensor.is_contiguous()
        assert tensor.min() == -1 and tensor.max() == 1
        found = as_pictures(tensor)
        assert found.dtype == np.uint8 and np.array_equal(found, given_ if np.ndim(given_) == 4 else [given_])
    assert np.array_equal(as_pictures(as_tensor(every).requires_grad_().double())[0], every)
    assert as_pictures(torch.tensor([0.0, 0.0039, 1.005]).view(1, 3, 1, 1)).tolist() == [[[[128, 128, 255]]]]


BYTES = np.zeros((8, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (BYTES / 255, "picture 1 of 1 is float64"),
        (BYTES[..., 0], "picture 1 of 8 is uint8 (16,)"),
        (np.zeros((8, 16, 4), np.uint8), "(8, 16, 4)"),
        (BYTES[:0], "give uint8 arrays"),
        ([BYTES, BYTES[:4]], "picture 2 is 4×16, the first 8×16"),
        ([BYTES, "a.png"], "picture 2 of 2 is str"),
        ([BYTES, None], "picture 2 of 2 is NoneType"),
        ("a.png", "read_picture"),
        ([], "give uint8 arrays"),
        (None, "give uint8 arrays"),
        (5, "give uint8 arrays"),
        (torch.zeros(1, 3, 8, 16), "give uint8 arrays"),
    ],
)
def test_pictures_that_cannot_be_tensors(wrong, words):
    with pytest.raises(Refused) as caught:
        as_tensor(wrong)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (pictures() * torch.nan, "picture 1 of 2 holds NaN"),
        (pictures() * 127, "values from -1 to 1"),
        (pictures()[0], "give a tensor of shape"),
        (BYTES, "give a tensor of shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "give floats"),
    ],
)
def test_tensors_that_cannot_be_pictures(wrong, words):
    with pytest.raises(Refused, match=words):
        as_pictures(wrong)


def test_sampled_latents_have_the_spread_of_the_vae(backbones):
    backbone, given_ = backbones["sd15"], pictures(1, 64, 64)
    many = torch.cat([backbone.encode(given_, seed) for seed in range(300)])
    spread = backbone.vae.encode(given_).latent_dist.std * backbone.scaling_factor
    assert (many.mean(0) - backbone.encode(given_)[0]).abs().max() < 5 * spread.max() / 300**0.5
    assert abs(float((many.std(0) / spread[0]).mean()) - 1) < 0.02


def test_latents_that_cannot_be_decoded(backbones):
    backbone = backbones["sd15"]
    for wrong, words in (
        (torch.full((2, 4, 8, 8), torch.nan), "latent 1 of 2 holds NaN"),
        (torch.zeros(2, 3, 8, 8), "give shape"),
        (torch.zeros(4, 8, 8), "give shape"),
        (np.zeros((1, 4, 8, 8), np.float32), r"latents ndarray \(1, 4, 8, 8\): give shape"),
        ((torch.zeros(1, 4, 8, 8),), "latents tuple"),
        (None, "latents NoneType"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), "give floats"),
    ):
        with pytest.raises(Refused, match=words):
            backbone.decode(wrong)
    assert backbone.decode(torch.full((1, 4, 8, 8), 50.0)).abs().max() <= 1
    with pytest.raises(Refused, match=r"decoded picture 1 of 1 .* overflowed"):
        backbone.decode(torch.full((1, 4, 8, 8), 3e38))


@settings(deadline=None, max_examples=60)
@given(st.integers(-5, 3000), st.integers(-5, 3000))
def test_sizes_that_are_offered_fit(height, width):
    backbone = object.__new__(Backbone)
    backbone.factor = 8
    if height >= 8 and width >= 8 and height % 8 == width % 8 == 0:
        assert backbone.check_size(height, width) == (height // 8, width // 8)
        return
    with pytest.raises(Refused) as caught:
        backbone.check_size(height, width)
    offered = str(caught.value).split("use ")[1].split(" (")[0].split(" × ")
    for side, near in zip((height, width), offered, strict=True):
        for size in map(int, near.split(" or ")):
            assert size % 8 == 0 and size >= 8 and (abs(size - side) < 8 or side < 8)


# text


def test_prompts(backbones):
    backbone = backbones["sd15"]
    assert backbone.encode_text(["a", "b", "c"]).hidden.shape == (3, 77, 48)
    backbone.texts.clear()
    alone = backbone.encode_text("a red handbag").hidden
    again = backbone.encode_text(["a dog", "a red handbag", "a dog"]).hidden
    assert torch.equal(alone[0], again[1]) and torch.equal(again[0], again[2]) and len(backbone.texts) == 2
    assert not alone.requires_grad and torch.equal(
        backbone.encode_text("").hidden, backbone.encode_text("", negative=True).hidden
    )
    for wrong in (None, float("nan"), 7, ["a", None]):
        with pytest.raises(Refused, match=r"give text|no prompts"):
            backbone.encode_text([wrong] if not isinstance(wrong, list) else wrong)
    with pytest.raises(Refused, match="no prompts"):
        backbone.encode_text([])
    for wrong in (None, 5, b"a", {"a": 1}, 1.5):
        with pytest.raises(Refused, match=f"prompts of type {type(wrong).__name__}; give text, or a list of texts"):
            backbone.encode_text(wrong)
    for wrong in ("blurry", "", None, 1, ["blurry"]):
        with pytest.raises(Refused, match=r"negative=.*encode both prompts.*give the loop both"):
            backbone.encode_text("a watch", negative=wrong)
    with pytest.raises(TypeError):
        backbone.encode_text("a watch", "blurry")
    assert len(backbone.encode_text(prompt for prompt in ("a", "b"))) == 2


def test_rows_kept_from_inference_serve_training(backbones):
    backbone = backbones["sd15"]
    backbone.texts.clear()
    with torch.inference_mode():
        backbone.encode_text("a dog")
    down, middle = all_residuals(backbone, 8, 8)
    middle.requires_grad_()
    backbone.predict(torch.randn(1, 4, 8, 8), 500, backbone.encode_text("a dog"), (down, middle)).sum().backward()
    assert middle.grad is not None


def test_old_prompts_are_forgotten(backbones, monkeypatch):
    monkeypatch.setattr("alignment_video.backbone._KEPT_PROMPTS", 3)
    backbone = backbones["sd15"]
    backbone.texts.clear()
    backbone.encode_text(["a", "b", "c", "d"])
    assert [prompt for prompt, _ in backbone.texts] == ["b", "c", "d"]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_prompts_that_are_too_long(backbones, name, capfd):
    backbone = backbones[name]
    assert len(backbone.encode_text("a " * 75)) == 1
    with pytest.raises(Refused) as caught:
        backbone.encode_text("a " * 75 + "red watch")
    assert "79 tokens, 77 fit" in str(caught.value) and "'red watch' would be lost" in str(caught.value)
    assert capfd.readouterr().err == ""


@settings(deadline=None, max_examples=20)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_what_is_cut_off_is_the_end(text):
    from alignment_video.backbone import _tokenizer

    tokenizer = test_what_is_cut_off_is_the_end.__dict__.setdefault("tokenizer", _tokenizer("!"))
    cut = _cut_off(tokenizer, text, 20)
    assert text.rstrip().endswith(cut)
    assert len(tokenizer(text[: len(text.rstrip()) - len(cut)]).input_ids) <= 20 or not cut


def test_rows_of_text():
    text = Text(torch.randn(1, 77, 8), torch.randn(1, 4))
    assert text.rows(3).hidden.shape == (3, 77, 8) and text.rows(3).pooled.shape == (3, 4) and text.rows(1) is text
    both = Text.cat([text, text.rows(2)])
    assert len(both) == 3 and torch.equal(both.pooled[2], text.pooled[0])
    with pytest.raises(Refused, match="3 prompts for 2 samples"):
        both.rows(2)
    with pytest.raises(Refused, match="different backbones"):
        Text.cat([text, Text(text.hidden)])
    with pytest.raises(Refused, match=r"texts of 77×16 and 77×8 numbers cannot be joined.*encode with one"):
        Text.cat([text, Text(torch.randn(1, 77, 16), text.pooled)])
    with pytest.raises(Refused, match="no texts"):
        Text.cat([])


# one call of the U-Net


def all_residuals(backbone, height, width, fill=0.0, count=1):
    down, middle = residual_shapes(backbone.unet.config, height, width)
    return [torch.full((count, *shape), fill) for shape in down], torch.full((count, *middle), fill)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prediction_is_the_unets(backbones, name):
    backbone, latents, text = backbones[name], torch.randn(2, 4, 9, 7), backbones[name].encode_text(["a", "b"])
    steps = torch.tensor([10, 900])
    more = backbone.added(text, (72, 56)) or None
    raw = backbone.unet(latents, steps, text.hidden, added_cond_kwargs=more).sample
    assert torch.equal(backbone.predict(latents, steps, text), raw)
    assert torch.equal(backbone.predict(latents, steps, text, all_residuals(backbone, 9, 7)), raw)
    changed = backbone.predict(latents, steps, text, all_residuals(backbone, 9, 7, 0.1))
    assert (changed - raw).abs().max() > 1e-3
    assert torch.equal(changed, backbone.predict(latents, steps, text, all_residuals(backbone, 9, 7, 0.1, count=2)))


def test_calls_that_do_not_fit(backbones):
    backbone, text = backbones["sd15"], backbones["sd15"].encode_text("a")
    latents, (down, middle) = torch.randn(2, 4, 16, 16), all_residuals(backbones["sd15"], 16, 16)
    for call, words in (
        (lambda: backbone.predict(latents[:, :3], 1, text), "give shape"),
        (lambda: backbone.predict(latents, [1, 2, 3], text), "3 timesteps for 2 samples"),
        (lambda: backbone.predict(latents, 1, text.rows(3)), "3 prompts for 2 samples"),
        (lambda: backbone.predict(latents, 1, text, (down[:5], middle)), "5 down residuals; this U-Net takes 12"),
        (lambda: backbone.predict(latents, 1, text, ([*down, middle], middle)), "13 down residuals"),
        (lambda: backbone.predict(latents, 1, text, (down, middle[..., :1])), "middle residual"),
        (lambda: backbone.predict(latents, 1, text, (down[::-1], middle)), "down residual 1 is"),
        (lambda: backbone.predict(latents, 1, text, all_residuals(backbone, 16, 16, count=3)), "down residual 1 is"),
        (lambda: backbones["sdxl"].predict(latents, 1, backbone.encode_text("a")), "width 48, this U-Net reads 128"),
        (lambda: backbones["sd21"].predict(latents, 1, text), "width 48, this U-Net reads 64; encode the prompt with"),
        (lambda: backbones["sdxl"].predict(latents, 1, Text(torch.zeros(1, 77, 128))), "without a pooled row"),
        (lambda: backbone.predict(latents, 1, "a watch"), r"text of type str: encode it first: backbone.encode_text"),
        (lambda: backbone.predict(latents, 1, text.hidden), "text of type Tensor: encode it first"),
        (lambda: backbone.predict(latents.numpy(), 1, text), "latents ndarray"),
    ):
        with pytest.raises(Refused, match=words):
            call()


def test_nothing_gets_a_gradient_and_gradients_pass_through(backbones):
    backbone, latents = backbones["sd15"], torch.randn(1, 4, 8, 8)
    down, middle = all_residuals(backbone, 8, 8)
    for each in (*down, middle):
        each.requires_grad_()
    parts = [backbone.unet, backbone.vae, *backbone.text_encoders]
    found = backbone.predict(latents, 500, backbone.encode_text("a dog"), (down, middle))
    clean = x0(latents, found, 500, backbone.alphas_cumprod, backbone.prediction_type)
    backbone.decode(clean).square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in (*down, middle))
    weights = [weight for part in parts for weight in part.parameters()]
    assert all(not weight.requires_grad and weight.grad is None for weight in weights)
    assert not any(part.training for part in parts)
    given_ = pictures(1).requires_grad_()
    backbone.encode(given_).sum().backward()
    assert given_.grad.abs().sum() > 0


# the schedule

ALPHAS = torch.linspace(0.9999, 0.005, 1000)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(PREDICTION_TYPES), st.integers(1, 5), st.integers(0, 10**6))
def test_prediction_and_its_inverses(kind, count, seed):
    made = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(count, 4, count, 5, generator=made) for _ in range(2))  # count: also the height
    steps = torch.randint(0, 1000, (count,), generator=made)
    noisy, wanted = (f(latents, noise, steps, ALPHAS) for f in (add_noise, lambda *a: target(*a, prediction_type=kind)))
    size = (1 / ALPHAS[steps]).max() + (1 / (1 - ALPHAS[steps])).max()  # a division makes rounding larger
    assert (x0(noisy, wanted, steps, ALPHAS, kind) - latents).abs().max() < 1e-5 * size
    assert (noise_of(noisy, wanted, steps, ALPHAS, kind) - noise).abs().max() < 1e-5 * size
    for i in range(count):
        one = slice(i, i + 1)
        alone = x0(noisy[one], wanted[one], int(steps[i]), ALPHAS, kind)
        assert torch.allclose(alone, x0(noisy, wanted, steps, ALPHAS, kind)[one])


def test_x0_is_the_schedulers(backbones):
    D = _diffusers()
    for name, backbone in backbones.items():
        scheduler = D.DDIMScheduler.from_config(
            {**ARCHITECTURES[name]["scheduler"], "clip_sample": False, "set_alpha_to_one": False}
        )
        assert torch.equal(scheduler.alphas_cumprod, backbone.alphas_cumprod)
        scheduler.set_timesteps(10)
        noisy, said = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        for step in scheduler.timesteps:
            theirs = scheduler.step(said, step, noisy).pred_original_sample
            ours = x0(noisy, said, step, backbone.alphas_cumprod, backbone.prediction_type)
            assert torch.allclose(theirs, ours, rtol=1e-5, atol=1e-5)


def test_timesteps_that_are_none():
    noisy = torch.randn(2, 4, 8, 8)
    for steps, words in ((1000, "0 to 999"), (-1, "0 to 999"), ([1, 2, 3], "3 timesteps"), (1.5, "whole numbers")):
        with pytest.raises(Refused, match=words):
            x0(noisy, noisy, steps, ALPHAS)
    for call in (x0, noise_of, target):
        with pytest.raises(Refused, match=r"'flow'.*use one of"):
            call(noisy, noisy, 1, ALPHAS, "flow")
    gone = torch.cat([ALPHAS[:-1], torch.zeros(1)])
    with pytest.raises(Refused, match="nothing of the picture is left"):
        x0(noisy, noisy, 999, gone)
    assert x0(noisy, noisy, 999, gone, "v_prediction").isfinite().all() and x0(noisy, noisy, 998, gone).isfinite().all()


def test_predictions_are_read_as_the_model_was_trained(backbones):
    assert {name: b.prediction_type for name, b in backbones.items()} == {
        "sd15": "epsilon",
        "sd21": "v_prediction",
        "sdxl": "epsilon",
    }


# full size, without memory


@pytest.mark.parametrize(("name", "millions"), [("sd15", 859.5), ("sd21", 865.9), ("sdxl", 2567.5)])
def test_parameters_at_full_size(name, millions):
    unet = on_meta(name)
    assert {weight.device.type for weight in unet.parameters()} == {"meta"}
    assert round(sum(weight.numel() for weight in unet.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residuals_at_full_size_are_a_controlnets(name):
    unet, D = on_meta(name), _diffusers()
    with torch.device("meta"), _silent():
        controlnet = D.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        for height, width in SIZES:
            latents, text = (
                torch.empty(1, 4, height // 8, width // 8),
                torch.empty(1, 77, unet.config.cross_attention_dim),
            )
            added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)} if name == "sdxl" else None
            down, middle = controlnet(
                latents,
                torch.tensor(1),
                text,
                torch.empty(1, 3, height, width),
                added_cond_kwargs=added,
                return_dict=False,
            )
            shapes = residual_shapes(unet.config, height // 8, width // 8)
            assert shapes == ([tuple(each.shape[1:]) for each in down], tuple(middle.shape[1:]))
            assert len(shapes[0]) == {"sdxl": 9}.get(name, 12)
            assert unet(
                latents, torch.tensor(1), text, added_cond_kwargs=added, down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample.shape == latents.shape  # fmt: skip


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 33), st.integers(1, 33), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_residuals_of_any_shape(height, width, layers):
    count = len(layers)
    config = {
        "block_out_channels": [16 * (i + 1) for i in range(count)], "layers_per_block": layers, "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D"] * count, "up_block_types": ["UpBlock2D"] * count, "cross_attention_dim": 8,
        "attention_head_dim": 8,
    }  # fmt: skip
    with torch.device("meta"):
        unet, seen = _diffusers().UNet2DConditionModel(**config).eval(), []
        for block in unet.down_blocks:
            block.register_forward_hook(lambda _, __, out: seen.extend(out[1]))
        unet.mid_block.register_forward_hook(lambda _, __, out: seen.append(out))
        unet.conv_in.register_forward_hook(lambda _, __, out: seen.append(out))
        unet(torch.empty(1, 4, height, width), torch.tensor(1), torch.empty(1, 5, 8))
    down, middle = residual_shapes(config, height, width)
    assert [*down, middle] == [tuple(each.shape[1:]) for each in seen]
    with pytest.raises(Refused, match="at least 1"):
        residual_shapes(config, 0, width)


# untrained folders


def test_untrained_folders(tmp_path, folders, backbones):
    before = torch.random.get_rng_state()
    same = write_untrained(tmp_path / "deep" / "same", "sd15", narrower=16)
    assert torch.equal(before, torch.random.get_rng_state())
    for file in sorted(folders["sd15"].rglob("*.safetensors")):
        assert file.read_bytes() == (same / file.relative_to(folders["sd15"])).read_bytes()
    other = write_untrained(tmp_path / "other", "sd15", narrower=16, seed=1, dtype="float16")
    sizes = [(each / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size for each in (same, other)]
    assert 1.9 < sizes[0] / sizes[1] < 2.1
    a, b = backbones["sd15"].unet, Backbone.from_pretrained(other, device="cpu").unet
    assert not torch.allclose(a.conv_in.weight, b.conv_in.weight, atol=1e-2)
    full = on_meta("sd15")
    assert [name for name, _ in a.named_parameters()] == [name for name, _ in full.named_parameters()]


def test_untrained_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for call, words in (
        (lambda: write_untrained(tmp_path / "full"), "something already"),
        (lambda: write_untrained(tmp_path / "full" / "file"), "something already"),
        (lambda: write_untrained(tmp_path / "new", "sd3"), "'sd3' is not known; use one of sd15, sd21, sdxl"),
        (lambda: on_meta("flux"), "'flux' is not known"),
        (lambda: write_untrained(tmp_path / "new", narrower=3), "1, 2, 4, 8 or 16"),
        (lambda: write_untrained(tmp_path / "new", dtype="int8"), "use float32"),
    ):
        with pytest.raises(Refused, match=words):
            call()
    monkeypatch.setattr("alignment_video.backbone._index", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_untrained(tmp_path / "new", narrower=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_trained_folder_is_not_marked(folders, tmp_path, pipelines):
    with _silent():
        pipelines["sd15"].save_pretrained(tmp_path / "trained")
    assert Backbone.from_pretrained(folders["sd15"], device="cpu").untrained
    assert not Backbone.from_pretrained(tmp_path / "trained", device="cpu").untrained


# memory


def test_full_memory_is_one_line():
    with pytest.raises(Refused) as caught, explain_memory(frames_at_once=8, height=576, width=1024):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has …\nmore lines")
    line = str(caught.value)
    assert line.startswith("out of memory (asked for 2.50 GiB more); lower frames_at_once (now 8)") and "\n" not in line
    with (
        pytest.raises(Refused, match=r"asked for \d+ bytes more\); lower height \(now 64\)"),
        explain_memory(batch_size=1, height=64),
    ):
        torch.empty(10**15)
    with pytest.raises(Refused, match="out of memory; lower the size of the picture"), explain_memory():
        raise MemoryError
    with pytest.raises(RuntimeError, match="another matter"), explain_memory(batch_size=4):
        raise RuntimeError("another matter")
    with explain_memory(batch_size=4):
        pass


def test_full_memory_inside_the_backbone(backbones, monkeypatch, folders):
    def full(*a, **k):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    backbone = backbones["sd15"]
    latents, text = torch.zeros(3, 4, 8, 8), backbone.encode_text("a")
    monkeypatch.setattr(backbone.vae, "encode", full)
    monkeypatch.setattr(backbone.vae, "decode", full)
    monkeypatch.setattr(backbone.unet, "forward", full)
    with pytest.raises(Refused, match=r"lower batch_size \(now 4\), or height \(now 64\)"):
        backbone.encode(pictures())
    with pytest.raises(Refused, match=r"lower batch_size \(now 2\), or height \(now 64\)"):
        backbone.decode(latents, batch_size=2)
    with pytest.raises(torch.OutOfMemoryError):  # the loop around it knows which setting to name
        backbone.predict(latents, 1, text)
    monkeypatch.setattr("alignment_video.backbone.read_model", full)
    with pytest.raises(Refused, match="out of memory"):
        Backbone.from_pretrained(folders["sd15"], device="cpu")


# the full width, once


@slow
def test_full_width(tmp_path):
    folder = write_untrained(tmp_path / "sd15", "sd15", narrower=1, dtype="float16")
    backbone = Backbone.from_pretrained(folder, device="cpu")
    assert sum(weight.numel() for weight in backbone.unet.parameters()) == 859_520_964
    latents = backbone.encode(pictures(1, 64, 64))
    found = backbone.predict(latents, 500, backbone.encode_text("a red handbag"), all_residuals(backbone, 8, 8))
    assert found.shape == latents.shape == (1, 4, 8, 8) and found.isfinite().all()
    assert backbone.decode(latents).shape == (1, 3, 64, 64)
    assert np.isfinite(float(found.std())) and _transformers() is not None
