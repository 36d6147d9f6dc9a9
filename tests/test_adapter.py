"""What a page about the adapter cannot hold: broken files, odd sizes and settings, every bad input."""

import json
import math
import shutil
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from alignment_video.adapter import (
    ControlAdapter,
    Residuals,
    backbone_facts,
    combine,
    mask_levels,
    to_branches,
    to_rows,
    zero_convolution,
)
from alignment_video.backbone import ARCHITECTURES, on_meta, residual_shapes
from alignment_video.core import ControlNetConfig, Refused

WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY = {
    "block_out_channels": [8, 16, 16], "layers_per_block": 1, "in_channels": 4, "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 12, "attention_head_dim": 4, "norm_num_groups": 4, "sample_size": 16,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def unet():  # type: ignore[no-untyped-def]
    from diffusers import UNet2DConditionModel  # importable since the adapter was imported

    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY).requires_grad_(False).eval()


def small(unet, **options) -> ControlAdapter:  # type: ignore[no-untyped-def]
    return ControlAdapter.from_unet(unet, **{"base_channels": 8, "channel_mult": [1, 2, 2]} | options)


def awake(adapter: ControlAdapter, seed: int = 0, size: float = 0.1) -> ControlAdapter:
    """An adapter that says something, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in [*adapter.zero, adapter.zero_middle]:
            layer.weight.copy_(size * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.copy_(size * torch.randn(layer.bias.shape, generator=generator))
    return adapter


def controls(rows: int = 2, channels: int = 2, height: int = 128, width: int = 96) -> torch.Tensor:
    """A product and a map, with values up to 2.2 as after a gain."""
    generator = torch.Generator().manual_seed(rows + channels)
    control = torch.zeros(rows, channels, height, width)
    control[:, 0, height // 4 : height // 2, width // 4 : width // 2] = 1
    control[:, 1:] = 2.2 * torch.rand(control[:, 1:].shape, generator=generator)
    return control


def call(unet, residuals: Residuals | None, rows: int = 2, high: int = 16, wide: int = 12):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(rows, 4, high, wide, generator=generator)
    text = torch.randn(rows, 5, TINY["cross_attention_dim"], generator=generator)
    more = {}
    if residuals is not None:
        more = {"down_block_additional_residuals": residuals[0], "mid_block_additional_residual": residuals[1]}
    return unet(latents, 500, text, return_dict=False, **more)[0]


def flat(residuals: Residuals) -> list[torch.Tensor]:
    return [*residuals[0], residuals[1]]


def same(one: Residuals, other: Residuals) -> bool:
    return all(torch.equal(*pair) for pair in zip(flat(one), flat(other), strict=True))


# ---- what a U-Net takes


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("height", "width"), [(512, 512), (576, 1024), (544, 960), (8, 24)])
def test_residuals_are_those_of_the_backbone(name: str, height: int, width: int) -> None:
    config = ARCHITECTURES[name]["unet"]
    with torch.device("meta"):
        adapter = ControlAdapter.from_unet(config)
        down, middle = adapter(torch.empty(1, 2, height, width))
    shapes = residual_shapes(config, height // 8, width // 8)
    assert ([tuple(level.shape[1:]) for level in down], tuple(middle.shape[1:])) == shapes
    assert len(down) == {"sd15": 12, "sd21": 12, "sdxl": 9}[name]


def test_residuals_are_those_of_a_controlnet() -> None:
    from diffusers import ControlNetModel

    unet = on_meta("sd15")
    with torch.device("meta"):
        witness = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        down, middle = witness(
            torch.empty(1, 4, 68, 120), torch.ones(1), torch.empty(1, 77, 768), torch.empty(1, 3, 544, 960),
            return_dict=False,
        )  # fmt: skip
        made = ControlAdapter.from_unet(unet)(torch.empty(1, 2, 544, 960))
    assert [level.shape for level in flat(made)] == [level.shape for level in (*down, middle)]


def test_size_of_the_default() -> None:
    with torch.device("meta"):
        adapter = ControlAdapter.from_unet(ARCHITECTURES["sd15"]["unet"])
    assert 50e6 < sum(weight.numel() for weight in adapter.parameters()) < 100e6
    assert all(weight.is_meta for weight in adapter.parameters())


@settings(max_examples=12, deadline=None)
@given(
    channels=st.lists(st.sampled_from([8, 12, 16]), min_size=1, max_size=4), layers=st.integers(1, 3),
    blocks=st.integers(1, 4), factor=st.sampled_from([1, 2, 4, 8, 16]), height=st.integers(1, 9),
    width=st.integers(1, 9), base=st.sampled_from([2, 6, 32]), control=st.integers(1, 4),
)  # fmt: skip
def test_any_backbone_any_size(  # type: ignore[no-untyped-def]
    channels, layers, blocks, factor, height, width, base, control
) -> None:
    config = {"block_out_channels": channels, "layers_per_block": layers, "cross_attention_dim": 8}
    chosen = {"base_channels": base, "num_res_blocks": blocks, "factor": factor}
    with torch.device("meta"):
        adapter = ControlAdapter.from_unet(config, control, **chosen)
        down, middle = adapter(torch.empty(2, control, height * factor, width * factor))
    shapes = residual_shapes(config, height, width)
    assert ([tuple(level.shape[1:]) for level in down], tuple(middle.shape[1:])) == shapes
    blocks_made = [name for name, _ in adapter.named_modules() if name.endswith("convolution_1")]
    assert len(blocks_made) == len(channels) * blocks + 2


def test_attention_is_counted_from_the_coarse_end() -> None:
    def levels(*numbers: int) -> list[int]:
        with torch.device("meta"):
            adapter = ControlAdapter.from_unet(ARCHITECTURES["sd15"]["unet"], attention_resolutions=numbers)
        parts = [name.split(".")[:2] for name, _ in adapter.named_parameters() if "queries" in name]
        return sorted({int(part[1]) // 3 if part[0] == "steps" else -1 for part in parts})

    assert levels(4, 2, 1) == [-1, 1, 2, 3]
    assert levels(1) == [-1, 3]
    assert levels(4) == [1]
    assert levels(16, 1) == [-1, 3] and levels() == []
    for numbers in ([32, 16, 8], (8,)):
        with pytest.raises(Refused, match=r"name no level of this U-Net; it has \[1, 2, 4\], 1 is the coarsest"):
            levels(*numbers)


def test_settings_of_the_configuration_serve_every_backbone() -> None:
    for architecture in ARCHITECTURES.values():
        with torch.device("meta"):
            ControlAdapter.from_unet(architecture["unet"], **asdict(ControlNetConfig()))


# ---- starting as nothing, and learning


@pytest.mark.parametrize("rows", [1, 2])
def test_unet_is_unchanged_to_the_bit_at_the_start(unet, rows: int) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        residuals = small(unet)(controls(rows))
        assert not any(level.any() for level in flat(residuals))
        assert torch.equal(call(unet, residuals), call(unet, None))


def test_gradients_reach_every_weight_after_one_step_and_never_the_unet(unet) -> None:  # type: ignore[no-untyped-def]
    adapter = small(unet)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)
    for step in range(3):
        optimizer.zero_grad()
        (call(unet, adapter(controls())) - 1).square().mean().backward()
        waiting = {name for name, weight in adapter.named_parameters() if weight.grad is None or not weight.grad.any()}
        others = {name for name, _ in adapter.named_parameters() if not name.startswith("zero")}
        assert waiting == (others if step == 0 else set())
        optimizer.step()
    assert all(weight.grad is None for weight in unet.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())


def test_default_settings_let_every_weight_learn() -> None:
    adapter = awake(
        ControlAdapter.from_unet({"block_out_channels": [8] * 4, "layers_per_block": 2, "cross_attention_dim": 8})
    )
    sum(level.square().sum() for level in flat(adapter(controls(1, 2, 128, 128)))).backward()
    assert not [name for name, weight in adapter.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_checkpointing_gives_the_same_gradients(unet) -> None:  # type: ignore[no-untyped-def]
    found = []
    for checkpointing in (False, True):
        adapter = awake(small(unet))
        if checkpointing:
            adapter.enable_gradient_checkpointing()
        sum(level.square().mean() for level in flat(adapter(controls()))).backward()
        found.append([weight.grad for weight in adapter.parameters()])
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-7) for pair in zip(*found, strict=True))


def test_first_weights_depend_on_the_seed_alone(unet) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(5)
    first = small(unet, seed=3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(6)
    second, third = small(unet, seed=3).state_dict(), small(unet, seed=4).state_dict()
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1)), "making an adapter moved the random numbers of others"
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], third["stem.0.weight"])


def test_zero_convolution_is_zero() -> None:
    assert not any(weight.any() for weight in zero_convolution(3, 5).parameters())


# ---- reading controls


def test_batch_of_eight_equals_eight_batches_of_one(unet) -> None:  # type: ignore[no-untyped-def]
    adapter, control = awake(small(unet)), controls(8)
    whole = flat(adapter.features(control, batch_size=8))
    for parts in (
        [adapter.features(one[None]) for one in control],
        [adapter.features(control, batch_size=3)],
    ):
        for level, *pieces in zip(whole, *map(flat, parts), strict=True):
            assert torch.allclose(level, torch.cat(pieces), rtol=1e-4, atol=1e-5)
    assert not any(level.requires_grad for level in whole)


def test_gains_above_one_are_not_clipped(unet) -> None:  # type: ignore[no-untyped-def]
    adapter, control = awake(small(unet)), controls(1)
    said = []
    for gain in (0.5, 1.0, 1.5, 2.2, 4.0):
        asked = control.clone()
        asked[:, 1] *= 1 + (gain - 1) * asked[:, 0]
        said.append(adapter.features(asked))
    for level in range(len(flat(said[0]))):
        for one, other in pairwise(said):
            assert (flat(one)[level] - flat(other)[level]).norm() > 0.01 * flat(one)[level].norm()


def test_six_pixels_are_seen(unet) -> None:  # type: ignore[no-untyped-def]
    adapter, nothing = awake(small(unet)), torch.zeros(1, 2, 128, 128)
    silent = adapter.features(nothing)[0][0]
    for place in range(40, 48):
        control = nothing.clone()
        control[:, :, place : place + 6, place : place + 6] = 1
        changed = (adapter.features(control)[0][0] - silent).abs().amax((0, 1))
        assert changed.max() > 0.05 * silent.abs().max() and changed.max() > 1e-3
        middle = (changed.sum(1) / changed.sum() * torch.arange(16)).sum() * 8 + 4
        assert abs(middle - (place + 3)) < 8  # and it is where the product is, to a latent pixel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_controls_of_another_float_type(unet, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    adapter = awake(small(unet))
    expected, found = adapter.features(controls()), adapter.features(controls().to(dtype))
    assert found[1].dtype == torch.float32
    assert torch.allclose(found[1], expected[1], atol=0.2)


BAD = [
    (torch.zeros(1, 3, 64, 64), "control has 3 channels, this adapter reads 2"),
    (torch.zeros(2, 64, 64), r"shape \(2, 64, 64\): give a tensor B×2"),
    (torch.zeros(0, 2, 64, 64), "give a tensor B×2"),
    (torch.zeros(1, 2, 64, 0), "give a tensor B×2"),
    (torch.zeros(1, 2, 60, 64), "60 × 64: both have to be multiples of 8; the nearest is 64 × 64"),
    (torch.zeros(1, 2, 3, 64), "the nearest is 8 × 64"),
    (torch.zeros(1, 2, 64, 64, dtype=torch.uint8), "type uint8; give floats"),
    (torch.zeros(1, 2, 64, 64, dtype=torch.bool), "type bool; give floats"),
    (torch.full((1, 2, 64, 64), torch.nan), "8192 of its 8192 values are not finite"),
    (torch.zeros(1, 2, 64, 64).index_fill(3, torch.tensor([5]), torch.inf), "128 of its 8192 values are not finite"),
    (torch.full((1, 2, 64, 64), 255.0), "control from 255 to 255: M is 0 to 1, A 0 to 1 and a little over it"),
    (torch.full((1, 2, 64, 64), 20.5), "bytes: divide by 255"),
    (torch.full((1, 2, 64, 64), -0.01), "control from -0.01 to -0.01"),
    (None, "control of type NoneType: give a tensor"),
    ("mask.png", "control of type str: give a tensor .*heatmap_control makes one"),
    ([torch.zeros(2, 64, 64)], "control of type list: .*torch.stack what heatmap_control gives"),
    ([[[[0.0]]]], "control of type list"),
    (np.array([None]), "no tensor can be made of this array"),
    (np.zeros((1, 2, 64, 64), np.float32)[..., ::-1], "no tensor can be made of this array"),
]


@pytest.mark.parametrize(("control", "said"), BAD)
def test_bad_controls(unet, control: object, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refused, match=said) as caught:
        small(unet).features(control)
    assert "\n" not in str(caught.value)


def test_values_at_the_edge_are_let_in(unet) -> None:  # type: ignore[no-untyped-def]
    for value in (0.0, 2.2, 20.0):
        assert small(unet).features(torch.full((1, 2, 64, 64), value))[1].isfinite().all()
    assert small(unet).to("meta").features(torch.zeros(1, 2, 64, 64, device="meta"))[1].is_meta  # no values there


@pytest.mark.parametrize("size", [0, -1, 1.5, None, True])
def test_bad_batch_sizes(unet, size: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refused, match=f"batch_size={size}: use a whole number from 1 on"):
        small(unet).features(controls(), batch_size=size)


def test_forward_refuses_what_is_no_tensor(unet) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refused, match="type ndarray"):
        small(unet)(np.zeros((1, 2, 64, 64), np.float32))
    assert small(unet).features(np.zeros((1, 2, 64, 64), np.float32))[1].shape == (1, 16, 2, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"control_channels": 0}, "control_channels"),
        ({"control_channels": 5}, "control_channels=5; a control has 1 to 4"),
        ({"control_channels": 2.0}, "control_channels=2.0 is not a whole number"),
        ({"control_channels": True}, "control_channels=True is not a whole number"),
        ({"control_channels": ControlNetConfig()}, "control_channels is a ControlNetConfig; spread settings out"),
        ({"control_channels": asdict(ControlNetConfig())}, "control_channels is a dict; spread settings out"),
        ({"control_channels": "a long text " * 20}, "is not a whole number"),
        ({"base_channels": 0}, "base_channels=0 is not"),
        ({"num_res_blocks": 0}, "num_res_blocks=0 is not"),
        ({"channel_mult": 4}, "channel_mult=4 is not a list of whole numbers"),
        ({"channel_mult": "1248"}, "channel_mult='1248' is not a list"),
        ({"channel_mult": None}, "channel_mult=None is not a list"),
        ({"base_channel": 16}, "no setting 'base_channel'; did you mean 'base_channels'"),
        ({"colour": 16}, "no setting 'colour'; use control_channels, base_channels"),
        ({"attention_resolutions": [32, 16, 8]}, r"name no level of this U-Net; it has \[1, 2\]"),
        ({"seed": "a"}, "seed='a' is no whole number"),
        ({"channel_mult": [1, 2]}, "has 2 numbers, the U-Net 3 levels"),
        ({"channel_mult": [1, 0, 2]}, r"channel_mult=\[1, 0, 2\]"),
        ({"attention_resolutions": [6]}, "6 is no power of two"),
        ({"attention_resolutions": [0]}, "whole numbers"),
        ({"factor": 6}, "factor 6"),
        ({"factor": 0}, "factor 0"),
    ],
)
def test_bad_settings(unet, options: dict, said: str) -> None:  # type: ignore[no-untyped-def, type-arg]
    with pytest.raises(Refused, match=said) as caught:
        small(unet, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "thing", [{"block_out_channels": [8, 8]}, "a name", None, {"layers_per_block": 2}, torch.nn.Linear(2, 2)]
)
def test_what_is_no_unet(thing: object) -> None:
    with pytest.raises(Refused, match="no U-Net"):
        backbone_facts(thing)


def test_other_models_are_no_unets() -> None:
    from diffusers import AutoencoderKL, UNet2DModel

    with torch.device("meta"):
        others = [AutoencoderKL(**ARCHITECTURES["sd15"]["vae"]), UNet2DModel(block_out_channels=(32, 32, 64, 64))]
    for other in others:
        for attempt in (backbone_facts, ControlAdapter.from_unet):
            with pytest.raises(Refused, match=f"{type(other).__name__} is no U-Net with cross-attention"):
                attempt(other)
    with pytest.raises(Refused, match=r"'mini' is a name and no U-Net; load it first: Backbone.from_pretrained"):
        ControlAdapter.from_unet("mini")


def test_unets_that_take_other_residuals() -> None:
    with pytest.raises(Refused, match="no middle block"):
        backbone_facts({**TINY, "mid_block_type": None})
    with pytest.raises(Refused, match="pads differently"):
        backbone_facts({**TINY, "downsample_padding": 0})


def test_facts_hold_no_machine_path(unet) -> None:  # type: ignore[no-untyped-def]
    assert backbone_facts({**TINY, "_name_or_path": "/somewhere/on/disk/fine-tuned"})["name"] == "fine-tuned"
    assert backbone_facts({**TINY, "_name_or_path": "maker/model"})["name"] == "maker/model"


# ---- for which backbone


class Stand:
    """What the adapter looks at in a backbone."""

    def __init__(self, unet: object, prediction_type: str = "epsilon", factor: int = 8, name: str = "stand"):
        self.unet, self.prediction_type, self.factor, self.name = unet, prediction_type, factor, name
        self.device, self.dtype = torch.device("cpu"), torch.bfloat16


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Stand({**TINY, "block_out_channels": [8, 16, 32]}), "block_out_channels"),
        (Stand({**TINY, "layers_per_block": 2}), "layers_per_block"),
        (Stand({**TINY, "cross_attention_dim": 1024}), "cross_attention_dim 12, but stand has 1024"),
        (Stand(TINY, factor=4), "factor 8, but stand has 4"),
        (Stand(TINY, prediction_type="v_prediction"), "prediction_type epsilon, but stand has v_prediction"),
    ],
)
def test_adapter_of_another_backbone(tmp_path: Path, other: Stand, said: str) -> None:
    adapter = small(Stand(TINY, name="first"))
    adapter.save(tmp_path)
    for attempt in (lambda: adapter.check(other), lambda: ControlAdapter.load(tmp_path, other)):
        with pytest.raises(Refused, match=said) as caught:
            attempt()
        assert "adapter for first" in str(caught.value) and "\n" not in str(caught.value)


def test_fine_tuned_relatives_are_let_in(unet) -> None:  # type: ignore[no-untyped-def]
    adapter = small(Stand(TINY, name="first"))
    assert adapter.check(Stand(TINY, name="fine-tuned")) is adapter
    adapter.check(unet)  # a bare U-Net does not say what it predicts
    small(unet).check(Stand(TINY, prediction_type="v_prediction"))


# ---- files


@pytest.fixture
def saved(unet, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    return awake(small(unet)).save(tmp_path / "adapter")


def test_saved_and_loaded_says_the_same(unet, saved: Path) -> None:  # type: ignore[no-untyped-def]
    expected = awake(small(unet)).features(controls())
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", WEIGHTS]
    for again in (ControlAdapter.load(saved, unet), ControlAdapter.load(str(saved), device="cpu")):
        assert same(again.features(controls()), expected) and not again.training
    assert same(ControlAdapter.from_pretrained(saved).features(controls()), expected)  # as diffusers does it
    again.save(saved.parent / "twice")
    for name in ("config.json", WEIGHTS):
        assert (saved / name).read_bytes() == (saved.parent / "twice" / name).read_bytes()


def test_loaded_weights_lie_in_memory_as_new_ones_do(saved: Path) -> None:
    """Unaligned, as in the file, they would be summed up in another order, and the last bits would differ."""
    assert {weight.data_ptr() % 64 for weight in ControlAdapter.load(saved).parameters()} == {0}


def test_diffusers_own_saving_can_be_loaded(unet, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    adapter = awake(small(unet))
    adapter.save_pretrained(tmp_path)
    assert same(ControlAdapter.load(tmp_path).features(controls()), adapter.features(controls()))


def test_loaded_adapter_can_go_on_learning(unet, saved: Path) -> None:  # type: ignore[no-untyped-def]
    adapter = ControlAdapter.load(saved, unet)
    call(unet, adapter(controls())).square().mean().backward()
    assert all(weight.grad is not None for weight in adapter.parameters())


def test_device_and_type_come_from_the_backbone(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adapter = ControlAdapter.load(saved, Stand(TINY))
    assert adapter.dtype == torch.bfloat16 == adapter.features(controls())[1].dtype
    assert ControlAdapter.load(saved, Stand(TINY), dtype="float32").dtype == torch.float32
    assert capfd.readouterr().err == ""
    with pytest.raises(Refused, match="dtype 'int8'"):
        ControlAdapter.load(saved, dtype="int8")


def damage(saved: Path, what: str) -> None:
    """One way in which a folder can be wrong."""
    file, config = saved / WEIGHTS, saved / "config.json"
    state, stored = load_file(file), json.loads(config.read_text())
    if what == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "no weights":
        file.unlink()
    elif what == "pickle":
        torch.save(state, saved / "diffusion_pytorch_model.bin")
        file.unlink()
    elif what == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif what == "nan":
        state["middle.0.convolution_1.weight"][0, 0, 0, 0] = torch.nan
        save_file(state, file)
    elif what == "key missing":
        del state["zero_middle.bias"]
        save_file(state, file)
    elif what == "key too many":
        save_file(state | {"other": torch.zeros(1)}, file)
    elif what == "other shape":
        save_file(state | {"zero_middle.bias": torch.zeros(3)}, file)
    elif what == "no config":
        config.unlink()
    elif what == "half a config":
        config.write_text(config.read_text()[:40])
    elif what == "a list":
        config.write_text("[]")
    elif what == "other model":
        config.write_text(json.dumps(stored | {"_class_name": "ControlNetModel"}))
    elif what == "other setting":
        config.write_text(json.dumps(stored | {"num_res_blocks": 3}))
    elif what == "bad setting":
        config.write_text(json.dumps(stored | {"control_channels": 7}))
    elif what == "text setting":
        config.write_text(json.dumps(stored | {"channel_mult": "many"}))
    elif what == "unknown setting":
        config.write_text(json.dumps(stored | {"depth": 7}))
    elif what == "no backbone":
        config.write_text(json.dumps(stored | {"backbone": None}))
    elif what == "strange backbone":
        config.write_text(json.dumps(stored | {"backbone": stored["backbone"] | {"block_out_channels": "wide"}}))
    elif what == "no folder":
        shutil.rmtree(saved)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("half", r"not whole .*; save or copy it again"),
        ("empty", r"not whole .*; save or copy it again"),
        ("no weights", "the adapter is not whole"),
        ("pickle", "only diffusion_pytorch_model.bin, a pickle"),
        ("pointer", "Git LFS"),
        ("nan", "1 weights are not finite, first middle.0.convolution_1.weight"),
        ("key missing", r"first zero_middle.bias \(missing, not"),
        ("key too many", r"first other \(\(1,\), not none\)"),
        ("other shape", "first zero_middle.bias"),
        ("no config", "no adapter there"),
        ("half a config", "not the settings of an adapter, or not whole"),
        ("a list", "not the settings of an adapter"),
        ("other model", "this is a ControlNetModel, not a ControlAdapter"),
        ("other setting", "weights do not fit config.json"),
        ("bad setting", "control_channels=7"),
        ("text setting", "config.json"),
        ("unknown setting", "depth"),
        ("no backbone", "do not say for which backbone"),
        ("strange backbone", "config.json"),
        ("no folder", "no adapter there"),
    ],
)
def test_bad_folders(saved: Path, what: str, said: str) -> None:
    damage(saved, what)
    with pytest.raises(Refused, match=said) as caught:
        ControlAdapter.load(saved)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_not_written(unet, saved: Path) -> None:  # type: ignore[no-untyped-def]
    before = (saved / WEIGHTS).read_bytes()
    broken = small(unet)
    with torch.no_grad():
        broken.zero_middle.bias[0] = torch.nan
    with pytest.raises(Refused, match=r"zero_middle\.bias; nothing was saved"):
        broken.save(saved)
    assert (saved / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", WEIGHTS]


def test_an_earlier_download_is_found_without_a_network(unet, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(saved / file))
    assert same(ControlAdapter.load("maker/adapter").features(controls()), awake(small(unet)).features(controls()))


def test_places_that_cannot_be_saved_to(unet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "adapter", file / "deep" / "adapter"):
        with pytest.raises(Refused, match="file: this is a file, the adapter needs a folder of its own"):
            small(unet).save(place)
    assert file.read_text() == "mine"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alignment_video.adapter.write_bytes", full)
    with pytest.raises(Refused, match=r"cannot be written there \(No space left on device\)"):
        small(unet).save(tmp_path / "new")


def test_arguments_in_the_wrong_order(unet, saved: Path) -> None:  # type: ignore[no-untyped-def]
    for wrong in (unet, Stand(TINY), None):
        with pytest.raises(Refused, match=rf"{type(wrong).__name__} is no folder or name; load\(folder, backbone\)"):
            ControlAdapter.load(wrong, saved)
    with pytest.raises(Refused, match="is a name and no U-Net; load it first"):
        ControlAdapter.load(saved, "mini")


def test_names_that_are_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    said = r"'maker/adapter': there is no such folder, and the hub cannot be reached \(no network\); name a folder"
    with pytest.raises(Refused, match=said):
        ControlAdapter.load("maker/adapter")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    with pytest.raises(Refused, match=r"'maker/adapter': the hub did not give all of it \(no network\); name a folder"):
        ControlAdapter.load("maker/adapter")
    for name in ("./nowhere", "nowhere", "a/b/c"):
        with pytest.raises(Refused, match="no adapter there"):
            ControlAdapter.load(name)


# ---- several at once


def test_adapters_add_up_with_scales_and_masks(unet) -> None:  # type: ignore[no-untyped-def]
    one, two = (awake(small(unet, seed=seed), seed).features(controls()) for seed in (1, 2))
    mask = controls()[:, :1]
    found = combine([(one, 0.5, None), (two, 2, mask)])
    for level, first, second, here in zip(flat(found), flat(one), flat(two), mask_levels(mask, one), strict=True):
        assert torch.equal(level, first * 0.5 + second * 2 * here)
    assert same(combine([(one, 1, None)]), one)
    both, turned = combine([(one, 1, None), (two, 1, None)]), combine([(two, 1, None), (one, 1, None)])
    assert torch.allclose(call(unet, both), call(unet, turned), atol=1e-5)


def test_absent_to_the_bit(unet) -> None:  # type: ignore[no-untyped-def]
    one, two = (awake(small(unet, seed=seed), seed).features(controls()) for seed in (1, 2))
    with torch.no_grad():
        alone, plain = call(unet, one), call(unet, None)
        assert not torch.equal(call(unet, combine([(one, 1, None), (two, 1, None)])), alone)
        for absent in ((two, 0, None), (two, 0.0, torch.ones(128, 96)), (two, 1, torch.zeros(128, 96))):
            assert torch.equal(call(unet, combine([(one, 1, None), absent])), alone)
            assert torch.equal(call(unet, combine([absent, (one, 1, None)])), alone)
            assert torch.equal(call(unet, combine([absent])), plain)
        one_row = torch.ones(2, 1, 128, 96)
        one_row[0] = 0  # absent in the first row only
        both = call(unet, combine([(one, 1, None), (two, 1, one_row)]))
        assert torch.allclose(both[0], alone[0], atol=1e-6) and not torch.allclose(both[1], alone[1], atol=1e-3)


def test_one_row_adds_to_many(unet) -> None:  # type: ignore[no-untyped-def]
    one, two = awake(small(unet, seed=1), 1).features(controls(1)), awake(small(unet, seed=2), 2).features(controls(4))
    assert len(combine([(one, 1, None), (two, 1, None)])[1]) == 4 == len(combine([(two, 1, None), (one, 0, None)])[1])
    with pytest.raises(Refused, match="4 rows cannot be added to 2"):
        combine([(to_rows(one, 2), 1, None), (two, 1, None)])


@settings(max_examples=60, deadline=None)
@given(
    high=st.integers(1, 20), wide=st.integers(1, 20), times=st.sampled_from([1, 8]), top=st.floats(0, 0.99),
    left=st.floats(0, 0.99), side=st.integers(1, 6),
)  # fmt: skip
def test_masks_never_lose_what_is_small(high: int, wide: int, times: int, top: float, left: float, side: int) -> None:
    mask = torch.zeros(high * times, wide * times)
    y, x = int(top * len(mask)), int(left * mask.shape[1])
    mask[y : y + side, x : x + side] = 1
    down, middle = residual_shapes({"block_out_channels": [4, 4, 4, 4], "layers_per_block": 1}, high, wide)
    levels = mask_levels(mask, (tuple(torch.zeros(1, *shape) for shape in down), torch.zeros(1, *middle)))
    for level, shape in zip(levels, [*down, middle], strict=True):
        assert level.shape == (1, 1, *shape[1:])
        assert level.max() == 1
    assert levels[0][0, 0, y // times, x // times] == 1
    for finer, coarser in pairwise(levels):  # and it stays where it is
        for place in finer[0, 0].nonzero():
            here = place if finer.shape == coarser.shape else place // 2
            assert coarser[0, 0, here[0], here[1]] == 1


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.ones(100, 96), "fits no latent of 16 × 12"),
        (torch.ones(15, 12), "fits no latent"),
        (torch.ones(2, 128, 96), "fits no latent"),
        (torch.ones(1, 3, 128, 96), "fits no latent"),
        (torch.ones(8, 6), "fits no latent"),
        (torch.full((16, 12), 1.5), "values outside"),
        (torch.full((16, 12), torch.nan), "values outside"),
        (torch.full((16, 12), -0.1), "values outside"),
    ],
)
def test_bad_masks(unet, mask: torch.Tensor, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refused, match=said):
        combine([(small(unet).features(controls()), 1, mask)])


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("sides", [(128, 96), (16, 12)])
def test_one_plane_serves_every_row(unet, rows: int, sides: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    residuals, plane = awake(small(unet)).features(controls(rows)), torch.zeros(sides)
    plane[: sides[0] // 2] = 1
    whole = plane[None, None].repeat(rows, 1, 1, 1)
    for guests in ([], [(residuals, 0.5, None)]):
        found = combine([*guests, (residuals, 2, plane)])
        assert same(found, combine([*guests, (residuals, 2, whole)])) and not same(
            found, combine([(residuals, 2, None)])
        )
    if rows == 3:
        with pytest.raises(Refused, match="mask of 2 rows for residuals of 3; give as many, or one for all"):
            combine([(residuals, 1, whole[:2])])


def test_masks_of_other_kinds(unet) -> None:  # type: ignore[no-untyped-def]
    residuals, mask = awake(small(unet)).features(controls()), controls()[0, 0]
    expected = combine([(residuals, 1, mask)])
    assert same(combine([(residuals, 1, mask.numpy())]), expected)
    assert same(combine([(residuals, 1, mask.bool())]), expected)
    assert same(combine([(residuals, 1, mask[4::8, 4::8])]), expected)  # at the latent's resolution


def test_what_cannot_be_combined(unet) -> None:  # type: ignore[no-untyped-def]
    residuals = small(unet).features(controls())
    for guests, said in (
        ([], "no residuals"),
        ([(residuals, float("inf"), None)], "adapter 1: scale inf"),
        ([(residuals, 1, None), (small(unet).features(controls(2, 2, 64, 96)), 1, None)], "adapter 2: its residuals"),
        ([(residuals, 1, None), ((residuals[0][:-1], residuals[1]), 1, None)], "adapter 2: its residuals"),
        ([(residuals, 1, None), (small(unet).features(controls(3)), 1, None)], "3 rows cannot be added to 2"),
    ):
        with pytest.raises(Refused, match=said):
            combine(guests)


def test_rows_and_branches(unet) -> None:  # type: ignore[no-untyped-def]
    residuals = awake(small(unet)).features(controls(2))
    assert to_rows(residuals, 2)[1] is residuals[1]
    for level, wide, branched in zip(
        flat(residuals), flat(to_rows(residuals, 6)), flat(to_branches(residuals, [False, True, True])), strict=True
    ):
        assert torch.equal(wide, torch.cat([level] * 3))
        assert not branched[:2].any() and torch.equal(branched[2:], torch.cat([level] * 2))
    for rows in (1, 3, 0):
        with pytest.raises(Refused, match=f"cannot fill a batch of {rows}"):
            to_rows(residuals, rows)


# ---------------------------------------------------------------- an adapter that sees the frame


def frames(rows: int = 2, height: int = 128, width: int = 96) -> torch.Tensor:
    return torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(9)) * 2 - 1


def test_a_frame_is_seen_and_needed(unet, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    adapter = awake(small(unet, sees_frame=True))
    one, other = adapter.features(controls(), frames()), adapter.features(controls(), -frames())
    assert not same(one, other)
    single = adapter.features(controls(), frames(1))  # one frame, two controls
    assert same(single, adapter.features(controls(), frames(1).repeat(2, 1, 1, 1)))
    pieces = adapter.features(controls(), frames(), batch_size=1)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(flat(one), flat(pieces), strict=True))
    adapter.save(tmp_path)
    again = ControlAdapter.load(tmp_path, unet, device="cpu")
    assert again.config["sees_frame"] is True and same(again.features(controls(), frames()), one)


def test_a_new_adapter_that_sees_the_frame_adds_nothing(unet) -> None:  # type: ignore[no-untyped-def]
    residuals = small(unet, sees_frame=True)(controls(), frames())
    assert torch.equal(call(unet, None), call(unet, residuals))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (None, "none was given"),
        (frames().numpy(), "ndarray was given"),
        ((frames() * 100).to(torch.uint8), "Tensor was given"),
        (frames(3), "give one of that size, or one a control"),
        (frames()[..., :-8], "give one of that size"),
        (frames()[:, :2], "give one of that size"),
        (frames() * 2, "values outside -1 to 1"),
        (frames() * math.nan, "values outside -1 to 1"),
    ],
)
def test_frames_that_cannot_be(unet, frame: object, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refused, match=said) as caught:
        small(unet, sees_frame=True).features(controls(), frame)
    assert "\n" not in str(caught.value)


def test_a_frame_nobody_sees_is_refused(unet) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refused, match="leave it out"):
        small(unet).features(controls(), frames())
    with pytest.raises(Refused, match="neither True nor False"):
        small(unet, sees_frame=1)
