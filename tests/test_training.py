"""What the page about training cannot hold: kill -9, two processes, full disks, damaged checkpoints, bad input."""

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alignment_video import training
from alignment_video.adapter import ControlAdapter
from alignment_video.backbone import ARCHITECTURES, Backbone, _diffusers, _new_text
from alignment_video.controls import CAP, GAINS, _drawn_gain, _packed_sample, collate, gain_factors, prepare
from alignment_video.core import Refused, TrainingConfig, random_generator
from alignment_video.training import (
    Trainer,
    add_lora,
    batch_of,
    cache_latents,
    checkpoint_of,
    control_at,
    control_usefulness,
    draws_of,
    fingerprint,
    learning_rate,
    load_lora,
    read_history,
    remove_lora,
    save_lora,
    train,
)

slow = pytest.mark.skipif(os.environ.get("SLOW") != "1", reason="set SLOW=1: new processes")
SIDE = 32
UNET = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "in_channels": 4, "out_channels": 4, "sample_size": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 48, "attention_head_dim": 4, "norm_num_groups": 4,
}  # fmt: skip
VAE = {
    "block_out_channels": [4, 8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
    "mid_block_add_attention": False,
}  # fmt: skip


def small_backbone(seed: int = 0, kind: str = "epsilon") -> Backbone:
    """Untrained, of 0.1 million weights, so that a step takes milliseconds."""
    library = _diffusers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = ARCHITECTURES["sd15"]["texts"][0] | {
            "hidden_size": 576,
            "intermediate_size": 1152,
            "projection_dim": 576,
        }
        tokenizer, encoder = _new_text(text, 12, pooled=False)
        unet, vae = library.UNet2DConditionModel(**UNET), library.AutoencoderKL(**VAE)
    scheduler = {**ARCHITECTURES["sd15"]["scheduler"], "prediction_type": kind}
    return Backbone(unet, vae, [tokenizer], [encoder], scheduler, name=f"small{seed}", untrained=True)


def small_adapter(backbone: Backbone, seed: int = 0, **settings: Any) -> ControlAdapter:
    more = {"base_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [1]}
    return ControlAdapter.from_unet(backbone, seed=seed, **more | settings)


class Blocks:
    """Examples in memory: a bright block on a dim ground, attention around it."""

    def __init__(
        self, count: int = 6, source: str = "heatmap", first: int = 0, gains: Any = GAINS, keyword: str = "mug"
    ):
        self.count, self.source, self.first, self.gains, self.keyword, self.epoch = (
            count,
            source,
            first,
            gains,
            keyword,
            0,
        )
        self.read = 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def compact(self, index: int) -> dict[str, Any]:
        self.read += 1
        dice = np.random.default_rng([self.first, index])
        picture = dice.integers(0, 90, (SIDE, SIDE, 3)).astype(np.uint8)
        y, x = dice.integers(2, SIDE - 14, 2)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[y : y + 12, x : x + 12] = 255
        picture[mask > 0] = dice.integers(120, 256, 3)
        planes = {"picture": picture, "mask": mask}
        if self.source == "heatmap":
            planes["attention"] = (0.1 + mask / 255 * 0.8).astype(np.float32)
        gain = _drawn_gain(self.gains, random_generator("blocks", self.epoch, self.first, index).random())
        facts = {"keyword": self.keyword, "video_id": f"v{self.first + index}", "scene_number": 1}
        row = {**facts, "alignment": 0.4}
        return facts | _packed_sample(planes, row, gain, CAP, {row["video_id"]: 1.0})


def settings(**other: Any) -> TrainingConfig:
    usual = TrainingConfig(
        batch_size=2, max_steps=5, learning_rate=1e-2, warmup_steps=2, walk_steps=[1, 2], save_every=2,
        validate_every=4, keep=2, lambda_consistency=2.0,
    )  # fmt: skip
    return replace(usual, **other)


def trained(
    folder: Path,
    backbone: Backbone | None = None,
    adapter: Any = None,
    examples: Any = None,
    resume: bool = True,
    **other: Any,
):  # type: ignore[no-untyped-def]
    backbone = backbone or small_backbone()
    held_out = Blocks(2, first=900, gains=None)
    return train(
        backbone,
        adapter or small_adapter(backbone),
        Blocks() if examples is None else examples,
        held_out,
        settings(**other),
        folder,
        resume,
    )


def weights_of(folder: Path | None) -> dict[str, bytes]:
    """Every number that a training made, by file and name."""
    assert folder is not None
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)} {n}": w.numpy().tobytes() for n, w in load_file(path).items()}
    return found


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("whole") / "run"
    trained(folder, gradient_accumulation_steps=2)
    return folder


# going on


class Stop(Exception):
    pass


@pytest.mark.parametrize("last", [1, 3])
def test_stopped_and_continued_is_the_same_to_the_bit(tmp_path, uninterrupted, monkeypatch, last) -> None:  # type: ignore[no-untyped-def]
    """Accumulation, averaged weights, dropouts, schedule, validation: all as if nothing had happened."""
    whole = Trainer.step

    def step(self, batches):  # type: ignore[no-untyped-def]
        if self.steps == last:
            raise Stop
        return whole(self, batches)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Stop):
        trained(tmp_path / "run", gradient_accumulation_steps=2)
    monkeypatch.undo()
    again = trained(tmp_path / "run", gradient_accumulation_steps=2)
    assert weights_of(again.last) == weights_of(checkpoint_of(uninterrupted))
    assert weights_of(again.adapter) == weights_of(uninterrupted / "adapter")
    assert (again.folder / "history.jsonl").read_text() == (uninterrupted / "history.jsonl").read_text()
    assert (again.folder / "checkpoints/best.json").read_text() == (uninterrupted / "checkpoints/best.json").read_text()


def killed_after(seconds: float, folder: Path, until: Any = None, **other: Any) -> bool:
    """Train in another process and kill it with SIGKILL; whether it was still at it."""
    child = os.fork()
    if child == 0:
        try:
            trained(folder, **other)
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end or (until is not None and not until() and time.monotonic() < end + 20):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def test_killed_again_and_again(tmp_path, uninterrupted) -> None:  # type: ignore[no-untyped-def]
    """SIGKILL at any moment, in the middle of a save too: what is there loads, and the end is the same to the bit."""
    dice, folder, killed, checkpoints = random.Random(5), tmp_path / "run", 0, folder_of_checkpoints(tmp_path / "run")
    for number in range(8):
        in_save = number % 2 == 1
        until = (lambda: any(checkpoints.glob(".*.part/*"))) if in_save else None
        killed += killed_after(0 if in_save else dice.uniform(0.2, 0.8), folder, until, gradient_accumulation_steps=2)
        last = checkpoint_of(folder)
        if last is not None:
            assert {path.name for path in last.iterdir()} == {
                "adapter",
                "average",
                "optimizer.safetensors",
                "state.json",
            }
            ControlAdapter.load(last / "adapter")
    assert killed >= 3
    again = trained(folder, gradient_accumulation_steps=2)
    assert weights_of(again.last) == weights_of(checkpoint_of(uninterrupted))
    assert (folder / "history.jsonl").read_text() == (uninterrupted / "history.jsonl").read_text()
    assert not list(checkpoints.glob(".*"))


def folder_of_checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


def test_a_finished_training_is_not_done_again(uninterrupted, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    before = (uninterrupted / "history.jsonl").read_text()
    monkeypatch.setattr(Trainer, "step", None)
    again = trained(uninterrupted, gradient_accumulation_steps=2)
    assert (uninterrupted / "history.jsonl").read_text() == before
    assert again.last.name == "step-000005"


# several processes


OF_TWO: dict[str, Any] = {  # without the change: where nothing changes yet, its slope is the sign of a rounding error
    "gradient_accumulation_steps": 2, "max_steps": 3, "learning_rate": 1e-3, "lambda_change": 0.0,
}  # fmt: skip


def as_one_of_two(number: int, port: int, folder: Path) -> None:
    """What a process does that a launcher started: it finds out from its environment which one it is."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    adapter = small_adapter(backbone := small_backbone(), seed=number)  # the first one's weights have to win
    trained(folder, backbone, adapter, batch_size=2, **OF_TWO)
    torch.save(adapter.state_dict(), folder / f"process{number}.pt")


def launched_by_fork(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in (0, 1):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                as_one_of_two(number, port, folder)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training as t
t.as_one_of_two(int(os.environ["RANK"]), int(os.environ["MASTER_PORT"]), Path({folder!r}))
"""


def launched_by_command(folder: Path) -> None:
    """By torchrun: `accelerate launch` starts several processes on CPUs only where there is an MPI."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=240, cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("launched", [launched_by_fork, pytest.param(launched_by_command, marks=slow)])
def test_two_processes_are_one_with_twice_the_batch(tmp_path, launched) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "two"
    launched(folder)
    first, second = (torch.load(folder / f"process{i}.pt", weights_only=True) for i in (0, 1))
    alone = small_adapter(backbone := small_backbone())
    before = {name: weight.clone() for name, weight in alone.state_dict().items()}
    trained(tmp_path / "one", backbone, alone, batch_size=4, **OF_TWO)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert max(float((weight - before[name]).abs().max()) for name, weight in first.items()) > 5e-4
    for name, weight in alone.state_dict().items():
        assert float((weight - first[name]).abs().max()) < 1e-5, name
    assert len(read_history(folder)) == len(read_history(tmp_path / "one")) == 4


# the disk


def in_a_child(work: Any) -> str:
    """What a function refuses in another process, with what it does to that process kept there."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            said = "nothing was refused"
        except Refused as error:
            said = str(error)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read().decode()


def no_room(*_: Any) -> None:
    """From now on no file may grow beyond 20 kB, as on a disk that is nearly full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder, whole = tmp_path / "run", Trainer.step

    def step(self, batches):  # type: ignore[no-untyped-def]
        if self.steps == 3:
            no_room()
        return whole(self, batches)

    monkeypatch.setattr(Trainer, "step", step)
    how = {"lambda_consistency": 0.0, "validate_every": 0}
    said = in_a_child(lambda: trained(folder, **how))
    assert "\n" not in said and "checkpoint step-000004 cannot be written" in said and "step-000002 is intact" in said
    monkeypatch.undo()
    assert not list((folder / "checkpoints").glob(".*"))
    assert trained(folder, **how).last.name == "step-000005"


def test_a_full_disk_leaves_no_half_cache(tmp_path) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    said = in_a_child(lambda: (no_room(), cache_latents(backbone, Blocks(30), tmp_path)))
    assert "\n" not in said and "cannot be written" in said
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert len(cache_latents(backbone, Blocks(30), tmp_path)) == 30


@pytest.mark.parametrize(
    "name, keep, word",
    [
        ("optimizer.safetensors", 0.5, "not whole"),
        ("optimizer.safetensors", None, "missing"),
        ("adapter/diffusion_pytorch_model.safetensors", 0.9, "not whole"),
        ("average/diffusion_pytorch_model.safetensors", None, "adapter is not whole"),
        ("state.json", 0.5, "not whole"),
        ("state.json", None, "missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, uninterrupted, name: str, keep: float | None, word: str) -> None:  # type: ignore[no-untyped-def]
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    place: Any = checkpoint_of(folder)
    file = place / name
    whole = file.read_bytes()
    file.unlink()
    if keep is not None:
        file.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(Refused, match=f"checkpoint step-000005: .*{word}.*go on from step-000004") as refused:
        trained(folder, gradient_accumulation_steps=2)
    assert "\n" not in str(refused.value)
    shutil.rmtree(place)  # the way out that was named
    (folder / "checkpoints/last.json").unlink()
    again = trained(folder, gradient_accumulation_steps=2)
    assert weights_of(again.last) == weights_of(checkpoint_of(uninterrupted))


def test_a_lost_pointer_loses_no_training(tmp_path, uninterrupted) -> None:  # type: ignore[no-untyped-def]
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    pointer, newest = folder / "checkpoints/last.json", checkpoint_of(folder)
    pointer.write_text("")
    with pytest.raises(Refused, match=r"last\.json: not whole .*; delete it to go on from the newest checkpoint"):
        checkpoint_of(folder)
    pointer.unlink()
    assert checkpoint_of(folder) == newest and checkpoint_of(tmp_path) is None


def test_another_training_is_refused(tmp_path, uninterrupted) -> None:  # type: ignore[no-untyped-def]
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    backbone = small_backbone()
    other = {"batch_size": 2, "gradient_accumulation_steps": 2}
    for said, more in {
        "another backbone": {"backbone": small_backbone(1)},
        "an adapter of other settings": {"backbone": backbone, "adapter": small_adapter(backbone, base_channels=16)},
        "other examples": {"examples": Blocks(first=50)},
        "lambda_change=1.5, not 0.2": {"lambda_change": 0.2},
        "5 steps, not 9": {"max_steps": 9},
        "4 examples a step .*, not 6": {"batch_size": 3},
        "seed=0, not 1": {"seed": 1},
    }.items():
        refusal = f"checkpoint step-000005: it is of a training with {said}; to begin anew, rename run$"
        with pytest.raises(Refused, match=refusal):
            trained(folder, **other | more)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="a training is there"):
        trained(folder, resume=False, **other)  # type: ignore[arg-type]
    (folder / "checkpoints/last.json").write_text('{"checkpoint": "step-000099"}')
    with pytest.raises(Refused, match="names step-000099, which is not there"):
        trained(folder, **other)  # type: ignore[arg-type]


def test_old_checkpoints_go_and_the_best_stays(tmp_path, uninterrupted, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(training, "held_out_losses", lambda *_: {"total": next(losses)})
    monkeypatch.setattr(
        training, "edited_scenes", lambda *_, **__: (torch.zeros(1, 3, 8, 8), torch.zeros(3, 1, 3, 8, 8))
    )
    run = trained(tmp_path / "run", save_every=1, validate_every=1, lambda_consistency=0.0)
    there = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert there == ["best.json", "last.json", "step-000001", "step-000004", "step-000005"]
    assert run.best is not None and run.best.name == "step-000001"


# numbers that are none


def test_a_loss_that_is_no_number_stops_and_changes_nothing(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    whole, calls = training.diffusion_loss, []

    def loss(*given):  # type: ignore[no-untyped-def]
        calls.append(1)
        return whole(*given) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(training, "diffusion_loss", loss)
    with pytest.raises(
        Refused, match=r"training step 4: diffusion is nan; .*; checkpoint step-000002 is intact"
    ) as refused:
        trained(tmp_path / "run", lambda_consistency=0.0)
    assert "\n" not in str(refused.value)
    monkeypatch.undo()
    again = trained(tmp_path / "run", lambda_consistency=0.0)
    assert weights_of(again.last) == weights_of(trained(tmp_path / "other", lambda_consistency=0.0).last)


def test_weights_that_are_no_numbers_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    adapter = small_adapter(backbone := small_backbone())
    with torch.no_grad():
        adapter.zero_middle.weight.fill_(float("nan"))
    with pytest.raises(Refused, match=r"training step 1: consistency cannot be computed .*there is no checkpoint yet"):
        trained(tmp_path / "run", backbone, adapter)
    with pytest.raises(Refused, match=r"training step 1: diffusion is nan"):
        trained(tmp_path / "run", backbone, adapter, lambda_consistency=0.0)


# the parts of a step


def one_batch(backbone: Backbone, folder: Path, count: int = 3, **how: Any) -> dict[str, Any]:
    data = cache_latents(backbone, Blocks(count, **how), folder)
    return batch_of(backbone, data, collate([data.compact(i) for i in range(count)]))


@pytest.mark.parametrize("source", ["heatmap", "scalar"])
def test_controls_at_a_gain_are_those_of_the_data_set(tmp_path, source: str) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    batch = one_batch(backbone, tmp_path, source=source)
    assert torch.allclose(control_at(batch, batch["gain"]), batch["control"], atol=1e-6)
    plain = one_batch(backbone, tmp_path, source=source, gains=None)
    assert torch.equal(control_at(batch, 1.0), plain["control"])


def test_controls_of_four_channels() -> None:
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, 1:3, 1:3] = 1
    attention = torch.rand(2, 1, 4, 4)
    share = (attention * mask).sum((1, 2, 3)) / attention.sum((1, 2, 3))
    control = torch.cat([mask, mask * share.view(-1, 1, 1, 1), attention, mask / 2], 1)
    batch = {"control": control, "mask": mask, "attention": attention, "alignment": share}
    assert torch.allclose(control_at(batch, 1.0), control)
    found = control_at(batch, 1.5)
    inside, outside = gain_factors(float(share[1]), 1.5)
    assert torch.allclose(found[1, 1], mask[1, 0] * share[1] * 1.5)
    assert torch.allclose(found[1, 2], attention[1, 0] * torch.where(mask[1, 0] > 0, inside, outside))
    assert torch.equal(found[:, [0, 3]], control[:, [0, 3]])


def test_chance_depends_on_the_name_alone() -> None:
    latents, config = torch.zeros(3, 4, 8, 8), settings()
    names = [(0, 0, 5), (0, 1, 5), (0, 0, 6)]
    together = draws_of(names, latents, config)
    for i, name in enumerate(names):
        alone = draws_of([name], latents[:1], config)
        assert all(torch.equal(one[i], other[0]) for one, other in zip(together, alone, strict=True))
    assert len({float(noise[0, 0, 0]) for noise in together.noise}) == 3


def test_timesteps_lean_to_noise() -> None:
    names = [(0, i) for i in range(2000)]
    means = {}
    for power in (1.0, 3.0):
        draws = draws_of(names, torch.zeros(2000, 1, 1, 1), settings(high_noise=power, control_dropout=0.25))
        means[power] = float(draws.timesteps.float().mean())
        assert int(draws.timesteps.min()) >= 0 and int(draws.timesteps.max()) <= 999
    assert abs(means[1.0] - 499.5) < 25 and abs(means[3.0] - 749.5) < 20  # 1 - 1/2 and 1 - 1/4 of the way
    assert abs(float((draws.control == 0).float().mean()) - 0.25) < 0.04


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = settings(learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate(step, config, 100) for step in range(100)]
    assert (
        rates[0] == pytest.approx(1 / 11)
        and rates[10] == 1.0
        and rates == sorted(rates[:10]) + sorted(rates[10:])[::-1]
    )
    assert rates[-1] < 0.001
    assert learning_rate(99, replace(config, scheduler="constant"), 100) == 1.0
    assert max(learning_rate(step, config, 4) for step in range(4)) == 1.0  # a short training gets there as well


TERMS = {
    "lambda_recon": "reconstruction",
    "lambda_lpips": "perceptual",
    "lambda_bg": "background",
    "lambda_enhance": "enhancement",
}


def test_every_loss_is_told_apart_and_none_is_computed_in_vain(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone(kind="v_prediction")
    batch = one_batch(backbone, tmp_path)
    every = settings(**dict.fromkeys(TERMS, 1.0))
    draws = draws_of([(i,) for i in range(3)], batch["latents"], every)
    draws.timesteps[:2] = torch.tensor([20, 150])
    trainer = Trainer(backbone, small_adapter(backbone), every, 10)
    told = trainer.step([(batch, draws)])
    assert {*told} == {
        "diffusion", *TERMS.values(), "consistency", "baseline", "edges", "colour", "change", "total", "gradient"
    }  # fmt: skip
    assert all(
        np.isfinite(value) and (value > 0 or name in ("edges", "colour", "change")) for name, value in told.items()
    ), told
    assert trainer.perceptual is not None and trainer.perceptual.weights in ("alexnet", "random")
    for name in ("reconstruction_loss", "background_loss", "enhance", "short_walk", "identity_loss", "perceptual"):
        monkeypatch.setattr(training, name, None)  # calling it would fail
    plain = Trainer(backbone, small_adapter(backbone), settings(lambda_consistency=0.0), 10)
    assert {*plain.step([(batch, draws)])} == {"diffusion", "total", "gradient"}


def test_the_dial_is_trained_from_the_step_that_was_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    batch = one_batch(backbone, tmp_path)
    trainer = Trainer(backbone, small_adapter(backbone), settings(consistency_from=2), 10)
    told = [trainer.step([(batch, draws_of([(i,) for i in range(3)], batch["latents"], trainer.config))])
            for _ in range(3)]  # fmt: skip
    assert [("consistency" in step, "diffusion" in step) for step in told] == [
        (False, True),
        (False, True),
        (True, True),
    ]


def test_held_out_losses_can_be_compared_from_the_beginning(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Held-out sums hold the same losses before and after the dial is trained, or the best would be among the first."""
    trained(tmp_path / "run", validate_every=1, consistency_from=3)
    table = read_history(tmp_path / "run")
    held_out, of_training = (table[table["split"] == name] for name in ("validation", "training"))
    assert held_out["consistency"].notna().all() and of_training["consistency"].isna().sum() == 3
    lines = training.learning_curves(tmp_path / "run", smooth=4).axes[2].get_lines()
    assert [line.get_xdata().min() for line in lines] == [4, 4, 1]  # training, smoothed, held out


@pytest.mark.parametrize("sees_frame", [False, True])
@pytest.mark.parametrize("paste", ["change", "pixels", "tone"])
def test_only_the_adapter_learns(tmp_path, paste: str, sees_frame: bool) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    batch = one_batch(backbone, tmp_path)
    adapter = small_adapter(backbone, sees_frame=sees_frame)
    trainer = Trainer(backbone, adapter, settings(paste=paste, lambda_diffusion=0.0), 10)
    before = fingerprint(backbone)
    for _ in range(3):
        trainer.step([(batch, draws_of([(i,) for i in range(3)], batch["latents"], trainer.config))])
    for part in (backbone.unet, backbone.vae, *backbone.text_encoders):
        assert all(weight.grad is None for weight in part.parameters())
    assert fingerprint(backbone) == before
    moved = [
        name for name, weight in trainer.adapter.named_parameters() if weight.grad is not None and weight.grad.any()
    ]
    assert len(moved) == len(list(trainer.adapter.parameters()))


def test_consistency_teaches(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The same batch again and again: the loss that asks for attention falls, so its gradients reach the adapter."""
    backbone = small_backbone()
    batch = one_batch(backbone, tmp_path)
    config = settings(lambda_diffusion=0.0, lambda_change=0.0, lambda_edges=0.0, lambda_colour=0.0, walk_steps=[2, 2])
    trainer = Trainer(backbone, small_adapter(backbone), config)
    draws = draws_of([(i,) for i in range(3)], batch["latents"], config)
    losses = [trainer.step([(batch, draws)])["consistency"] for _ in range(25)]
    assert losses[-1] < 0.97 * losses[0]


def test_half_precision_keeps_whole_weights(tmp_path) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    for part in (backbone.unet, backbone.vae, *backbone.text_encoders):
        part.to(torch.bfloat16)
    backbone.dtype = torch.bfloat16
    batch = one_batch(backbone, tmp_path)
    trainer = Trainer(backbone, small_adapter(backbone), settings(), 10)
    assert trainer.residuals(batch["control"], batch["picture"])[1].dtype == torch.bfloat16
    told = trainer.step([(batch, draws_of([(i,) for i in range(3)], batch["latents"], trainer.config))])
    assert np.isfinite(told["total"]) and {w.dtype for w in trainer.adapter.parameters()} == {torch.float32}
    backbone.dtype = torch.float16
    with pytest.raises(Refused, match="float16 overflows"):
        Trainer(backbone, trainer.adapter, settings(), 10)


# latents on the disk


def counted(backbone: Backbone, monkeypatch: Any) -> list[int]:
    calls: list[int] = []
    for name in ("encode", "encode_text"):
        whole = getattr(backbone, name)
        monkeypatch.setattr(backbone, name, lambda *a, _whole=whole, **k: (calls.append(1), _whole(*a, **k))[1])
    return calls


def test_nothing_is_encoded_twice(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    calls = counted(backbone, monkeypatch)
    config = {"lambda_consistency": 0.0, "max_steps": 1}
    first = trained(tmp_path / "one", backbone, **config)
    assert len(calls) > 0
    calls.clear()
    shutil.copytree(tmp_path / "one/latents", tmp_path / "two/latents")
    again = trained(tmp_path / "two", backbone, **config)
    assert not calls
    assert weights_of(again.last) == weights_of(first.last)


def test_latents_are_those_of_the_pictures(tmp_path) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    data = cache_latents(backbone, Blocks(3), tmp_path)
    for examples in (data, replace(data, rows={})):  # from the disk, and made now
        compact = collate([examples.compact(i) for i in (2, 0)])
        batch = batch_of(backbone, examples, compact)
        assert torch.allclose(batch["latents"], backbone.encode(prepare(compact)["picture"]), atol=1e-5)
        assert torch.equal(batch["text"].hidden[1], backbone.encode_text("a mug").hidden[0])
        assert torch.equal(batch["no_text"].hidden[0], backbone.encode_text("").hidden[0])


def test_a_stale_cache_is_not_used(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    keys = [cache_latents(small_backbone(), Blocks(2), tmp_path).key]
    for how in ({"first": 7}, {"keyword": "lamp"}):
        keys.append(cache_latents(small_backbone(), Blocks(2, **how), tmp_path).key)  # type: ignore[arg-type]
    keys.append(cache_latents(small_backbone(1), Blocks(2), tmp_path).key)
    keys.append(cache_latents(small_backbone(), Blocks(2), tmp_path, prompt="a photo of {}").key)
    assert len({*keys}) == 5
    half = next(tmp_path.glob(keys[0]))
    (half / "facts.json").unlink()  # as if it had been copied while it was written
    calls = counted(backbone := small_backbone(), monkeypatch)
    assert cache_latents(backbone, Blocks(2), tmp_path).key == keys[0] and calls


# LoRA


def test_lora_trains_saves_loads_and_goes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    latents, text = torch.zeros(1, 4, 8, 8), backbone.encode_text("a mug")
    plain = backbone.predict(latents, 500, text)
    batch, name = one_batch(backbone, tmp_path / "latents"), fingerprint(backbone)
    added = add_lora(backbone, 2)
    assert torch.equal(backbone.predict(latents, 500, text), plain) and fingerprint(backbone) == name
    trainer = Trainer(backbone, small_adapter(backbone), settings(), 10)
    assert len(trainer.parameters) == len(added) + len(list(trainer.adapter.parameters()))
    for _ in range(2):
        trainer.step([(batch, draws_of([(i,) for i in range(3)], batch["latents"], trainer.config))])
    assert all(weight.grad.any() for weight in added.values())
    frozen = [weight for name, weight in backbone.unet.named_parameters() if "lora_" not in name]
    assert all(weight.grad is None for weight in frozen)
    changed = backbone.predict(latents, 500, text).detach()
    assert not torch.equal(changed, plain)
    save_lora(backbone, tmp_path / "lora")
    remove_lora(backbone)
    assert torch.equal(backbone.predict(latents, 500, text), plain)
    fresh = small_backbone()
    load_lora(fresh, tmp_path / "lora")
    assert torch.allclose(fresh.predict(latents, 500, text), changed, atol=1e-6)
    with pytest.raises(Refused, match="LoRA of another backbone"):
        load_lora(small_backbone(1), tmp_path / "lora")
    file = tmp_path / "lora/lora.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(Refused, match="not whole"):
        load_lora(small_backbone(), tmp_path / "lora")
    for rank in (0, -1, 2.5, True):
        with pytest.raises(Refused, match="LoRA of rank"):
            add_lora(fresh, rank)  # type: ignore[arg-type]


def test_lora_goes_on_to_the_bit(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    how = {"lora_rank": 2, "lambda_consistency": 0.0, "max_steps": 3}
    whole = trained(tmp_path / "whole", **how)
    assert (whole.adapter / "lora/lora.safetensors").is_file()
    step = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self, batches: exec("raise Stop") if self.steps == 2 else step(self, batches)
    )
    with pytest.raises(Stop):
        trained(tmp_path / "run", **how)
    monkeypatch.undo()
    assert weights_of(trained(tmp_path / "run", **how).last) == weights_of(whole.last)


# does the control help?


def test_usefulness_of_an_adapter_that_says_nothing_is_zero(tmp_path) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    data = cache_latents(backbone, Blocks(5), tmp_path)
    table = control_usefulness(backbone, small_adapter(backbone), data, (200, 800))
    assert list(table["timestep"]) == [200, 800]
    assert (table[["usefulness", "low", "high"]] == 0).to_numpy().all() and (table["true"] == table["shuffled"]).all()
    awake = small_adapter(backbone)
    with torch.no_grad():
        for weight in awake.parameters():
            weight.add_(0.05)
    table = control_usefulness(backbone, awake, data, (200, 800))
    assert (
        (table["usefulness"] != 0).all()
        and (table["low"] < table["usefulness"]).all()
        and (table["usefulness"] < table["high"]).all()
    )
    small = control_usefulness(backbone, awake, data, (200, 800), batch_size=2)
    assert np.allclose(table, small, atol=1e-6)
    assert not np.allclose(
        table["shuffled"], control_usefulness(backbone, awake, data, (200, 800), shuffle="attention")["shuffled"]
    )
    with pytest.raises(Refused, match="two at least"):
        control_usefulness(backbone, awake, replace(data, examples=Blocks(1)))
    with pytest.raises(Refused, match="shuffle 'mask'"):
        control_usefulness(backbone, awake, data, shuffle="mask")


# everything else that can be given wrongly


class Nothing(Blocks):
    def __len__(self) -> int:
        return 0


def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone()
    with pytest.raises(Refused, match="the data set is empty"):
        trained(tmp_path / "run", backbone, examples=Nothing())
    with pytest.raises(Refused, match="the validation split has no videos"):
        train(backbone, small_adapter(backbone), Blocks(), Nothing(), settings(), tmp_path / "run")
    with pytest.raises(Refused, match="settings of type dict"):
        train(backbone, small_adapter(backbone), Blocks(), Blocks(), {"batch_size": 2}, tmp_path / "run")
    with pytest.raises(Refused, match=r"adapter for small1|adapter for .* with"):
        other = ControlAdapter(
            {**small_adapter(backbone).config["backbone"], "cross_attention_dim": 7}, base_channels=8
        )
        trained(tmp_path / "run", backbone, other)
    for name, value in {
        "control_dropout": 1.0, "text_dropout": -0.1, "ema_decay": 1.0, "high_noise": 0.0, "walk_steps": [3, 1],
        "paste": "all", "lambda_change": -1.0, "prompt": "a thing",
    }.items():  # fmt: skip
        with pytest.raises(Refused, match=name.removeprefix("lambda_")) as refused:
            trained(tmp_path / "run", backbone, **{name: value})
        assert "\n" not in str(refused.value)
    with pytest.raises(Refused, match="every loss that could teach something has weight 0"):
        trained(tmp_path / "run", backbone, lambda_diffusion=0.0, lambda_consistency=0.0)
    with pytest.raises(Refused, match="nothing was trained in this folder"):
        read_history(tmp_path / "nothing")


def test_workers_change_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = []
    for workers in (0, 1):
        backbone = small_backbone()
        config = settings(lambda_consistency=0.0, max_steps=4)  # more than an epoch
        run = train(
            backbone,
            small_adapter(backbone),
            Blocks(5),
            Blocks(2, first=900),
            config,
            tmp_path / str(workers),
            workers=workers,
        )
        found.append(weights_of(run.last))
    assert found[0] == found[1]


def test_words_go_to_tensorboard(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("tensorboard")
    trained(tmp_path / "run", log_tensorboard=True, lambda_consistency=0.0, max_steps=2)
    assert list((tmp_path / "run/log").rglob("events.out.tfevents.*"))


def test_a_missing_logger_is_named(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    find = training.importlib.util.find_spec
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(Refused, match="log_wandb is on, but wandb is not installed"):
        trained(tmp_path / "run", log_wandb=True)
