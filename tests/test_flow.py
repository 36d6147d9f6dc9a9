"""Flow: what a notebook cell is too small for."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_video import flow as page
from alignment_video.core import Refused
from alignment_video.flow import (
    DIS,
    RAFT,
    Key,
    PatchMatch,
    carry,
    choose_keyframes,
    confidence,
    flicker,
    flow_engine,
    look_up,
    routes,
    track,
)


def texture(high: int, wide: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse, fine = (rng.random((high // n + 2, wide // n + 2, 3)).astype(np.float32) for n in (12, 4))
    both = [cv2.resize(each, (wide, high), interpolation=cv2.INTER_CUBIC) for each in (coarse, fine)]
    return np.clip((0.65 * both[0] + 0.35 * both[1]) * 255, 0, 255).astype(np.uint8)


def moved(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """Everything in the picture is x to the right and y below."""
    matrix, size = np.float32([[1, 0, x], [0, 1, y]]), picture.shape[1::-1]
    return cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


INSIDE = (slice(16, -16), slice(16, -16))


@settings(max_examples=20, deadline=None)
@given(st.floats(-4, 4), st.floats(-4, 4), st.integers(0, 50))
def test_a_shift_is_found_and_its_way_back(x: float, y: float, seed: int) -> None:
    """The field of DIS points from the first picture to the second: the way in which things move."""
    one = texture(96, 112, seed)
    other = moved(one, x, y)
    there, back = DIS()(one, other), DIS()(other, one)
    assert np.abs(np.median(there[INSIDE], (0, 1)) - [x, y]).max() < 0.4
    assert np.median(np.abs(look_up(other.astype(np.float32), there) - one)[INSIDE]) < 6
    assert np.median(confidence(there, back)[INSIDE]) > 0.9


@pytest.mark.parametrize("size", [(16, 16), (16, 300), (17, 33), (31, 20), (300, 16), (97, 64), (700, 620)])
@pytest.mark.parametrize("engine", [DIS(), DIS(finest=0, spatial=True), DIS(finest=4), PatchMatch(rounds=1, side=48)])
def test_any_size_gets_a_field_of_its_size(size: tuple[int, int], engine: page.Flow) -> None:
    one = texture(*size)
    found = engine(one, moved(one, 1, 0))
    assert found.shape == (*size, 2) and found.dtype == np.float32 and np.isfinite(found).all()
    assert np.abs(engine(one, one)).max() < 0.01


def test_flat_and_noisy_pictures_give_numbers() -> None:
    black, noise = np.zeros((64, 64, 3), np.uint8), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for engine in (DIS(), PatchMatch()):
        for one, other in ((black, black), (black, noise), (noise, black)):
            assert np.isfinite(engine(one, other)).all()
        layers = carry(black, [Key(noise, np.ones((64, 64, 5), np.float32))] * 2, [1, 1], engine)
        assert np.abs(layers - 1).max() < 1e-4


def test_the_number_of_threads_changes_nothing() -> None:
    """In another process, since the number of threads is a setting of all that runs in one."""
    program = (
        "import sys, zlib, cv2, numpy as np; cv2.setNumThreads(int(sys.argv[1]));"
        "from alignment_video.flow import DIS, PatchMatch;"
        "one = cv2.resize(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8), (130, 170));"
        "other = np.roll(one, (2, 5), (0, 1));"
        "print([zlib.crc32(e(one, other).tobytes()) for e in (DIS(), DIS(spatial=True, finest=0), PatchMatch())])"
    )
    told = {
        subprocess.run([sys.executable, "-c", program, n], capture_output=True, text=True, check=True).stdout
        for n in ("1", "2", "5")
    }
    assert len(told) == 1


@pytest.mark.parametrize("engine", [DIS(), PatchMatch()])
def test_bad_pictures_are_refused(engine: page.Flow) -> None:
    one = texture(32, 32)
    for other, words in (
        (one[:30], "32x32 and 32x30"), (one[..., 0], "not uint8"), (one / 255, "not float64"), (None, "NoneType"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=words):
            engine(one, other)
    with pytest.raises(Refused, match="smallest side is 16"):
        engine(one[:15], one[:15])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.booleans(), st.sampled_from([np.float32, np.float64, np.uint8, bool]))
def test_looking_up_shifts_values(x: int, channels: bool, kind: type) -> None:
    values = (np.random.default_rng(x).random((20, 30, *([7] if channels else []))) * 200 > 90).astype(kind)
    field = np.full((20, 30, 2), [x, 0], np.float32)
    for linear in (True, False):
        found = look_up(values, field, linear)
        assert found.shape == values.shape
        assert (found[:, : 30 - x] == values[:, x:]).all() and (found[:, 30 - x :] == values[:, -1:]).all()
    with pytest.raises(Refused, match="do not go with a field"):
        look_up(values[1:], field)


def test_confidence_sees_what_is_covered() -> None:
    """A thing of 30 pixels moves by 12 over a ground that stays: the ground that it covers is not found again."""
    forward, backward = np.zeros((2, 60, 120, 2), np.float32)
    forward[20:50, 30:60] = [12, 0]
    backward[20:50, 42:72] = [-12, 0]
    found = confidence(forward, backward)
    assert found[20:50, 61:71].max() < 0.01  # covered
    assert found[22:48, 31:59].min() > 0.99 and found[:18].min() == 1
    forward[:] = [-200, 0]
    assert confidence(forward, backward).max() == 0


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 1), st.integers(0, 20), st.sampled_from([1, 2]))
def test_what_is_carried_lies_between_the_keyframes(share: float, seed: int, number: int) -> None:
    rng, one = np.random.default_rng(seed), texture(64, 80, seed)
    keys = [Key(moved(one, 2 * i + 1, -i), rng.random((64, 80, 5)).astype(np.float32) + i) for i in range(number)]
    shares = [1.0] if number == 1 else [share, 1 - share]
    found = carry(one, keys, shares, DIS())
    assert found.shape == (64, 80, 5) and np.isfinite(found).all()
    assert found.min() > -1e-3 and found.max() < number + 1e-3
    way = routes(one, [key.picture for key in keys], shares, DIS())
    assert np.allclose(sum(way.weights), 1, atol=1e-5)
    assert np.allclose(way.fetch([np.full((8, 10, 3), 4.0, np.float32)] * number), 4, atol=1e-4)


def test_a_share_of_nothing_says_nothing() -> None:
    one = texture(64, 64)
    keys = [Key(one, np.zeros((64, 64, 1), np.float32)), Key(one, np.ones((64, 64, 1), np.float32))]
    assert carry(one, keys, [1, 0], DIS()).max() == 0
    assert np.allclose(carry(one, keys, [1, 3], DIS()), 0.75, atol=1e-5)
    assert carry(one, keys, [1, 3], DIS())[..., 0].shape == (64, 64)
    flat = routes(one, [one], [1.0], DIS()).fetch([np.ones((64, 64), np.float32)])
    assert flat.shape == (64, 64)


@pytest.mark.parametrize("shares", [[1.0], [0, 0], [-1, 2], [math.nan, 1], [math.inf, 1]])
def test_bad_shares_are_refused(shares: list[float]) -> None:
    one = texture(32, 32)
    with pytest.raises(Refused, match="shares"):
        routes(one, [one, one], shares, DIS())
    for keys in ([], [one] * 3):
        with pytest.raises(Refused, match="one or two"):
            routes(one, keys, [1.0] * len(keys), DIS())


@pytest.mark.parametrize("at", [0, 4, 9])
def test_a_tracked_mask_keeps_its_size_and_place(at: int) -> None:
    ground, thing = texture(96, 128, 1), texture(36, 36, 2)
    frames, truth = [], []
    for t in range(10):
        frame, mask = moved(ground, 0.7 * t, 0), np.zeros((96, 128), bool)
        top, left = 20 + t, 20 + 2 * t
        frame[top : top + 36, left : left + 36], mask[top : top + 36, left : left + 36] = thing, True
        frames.append(frame)
        truth.append(mask)
    engine = DIS(finest=0, spatial=True)
    found = track(frames, truth[at], at, engine)
    assert (found[at] == truth[at]).all() and all(mask.dtype == np.float32 for mask in found)
    for mask, true in zip(found, truth, strict=True):
        assert ((mask > 0.5) & true).sum() / ((mask > 0.5) | true).sum() > 0.85
    assert all(mask.min() >= 0 and mask.max() <= 1 for mask in found)
    assert len(track(frames[:1], truth[0], 0, DIS())) == 1
    with pytest.raises(Refused, match="there are 10"):
        track(frames, truth[0], 10, DIS())
    with pytest.raises(Refused, match="there are 0"):
        track([], truth[0], 0, DIS())


def test_flicker_is_read_frame_by_frame() -> None:
    """Frames are asked for as they are needed, so that the memory of a long video stays flat."""
    one, taken = texture(64, 64), []

    def play(name: str, shake: int):
        for t in range(12):
            taken.append((name, t))
            yield np.clip(moved(one, t, 0).astype(int) + shake * (t % 2), 0, 255).astype(np.uint8)

    result = flicker(play("made", 6), play("source", 0))
    assert result.ratio > 1.5 and result.error == pytest.approx(result.own * result.ratio)
    assert [t for _, t in taken[:6]] == [0, 0, 1, 1, 2, 2]
    frames = list(play("", 6))
    sources = list(play("", 0))
    assert flicker(frames, sources) == result
    here = np.zeros((64, 64))
    here[:20] = 1
    masked = [
        np.where(here[..., None] > 0, source, frame).astype(np.uint8)
        for source, frame in zip(sources, frames, strict=True)
    ]
    assert flicker(masked, sources, masks=[here] * 12).ratio == pytest.approx(1, abs=0.02)
    assert flicker(masked, sources, masks=[1 - here] * 12).ratio > 1.5


def test_contrast_that_is_raised_is_no_flicker() -> None:
    one = texture(64, 64)
    sources = [moved(one // 2 + 64, 1.5 * t, 0.5 * t) for t in range(6)]
    made = [np.clip(np.rint(1.4 * (s.astype(float) - 128) + 128), 0, 255).astype(np.uint8) for s in sources]
    assert flicker(made, sources).ratio == pytest.approx(1.96, abs=0.2)
    assert flicker(made, sources, gains=[np.full((64, 64), 1.4)] * 6).ratio == pytest.approx(1, abs=0.1)


def test_what_does_not_go_together_is_refused() -> None:
    one, other = texture(64, 64), texture(64, 60)
    for frames, sources, more in (
        ([one] * 3, [one] * 2, {}), ([one] * 2, [one] * 2, {"motions": []}),
        ([one] * 2, [one] * 2, {"masks": [one[..., 0]]}), ([other] * 2, [one] * 2, {}),
        ([one] * 2, [one] * 2, {"gains": []}), ([one, other], [one, other], {}),
        ([one] * 2, [one] * 2, {"masks": [np.ones((4, 5))] * 2}),
    ):  # fmt: skip
        with pytest.raises(Refused, match=r"go together|do not go|flow between"):
            flicker(frames, sources, **more)
    for frames, masks in (([], None), ([one], None), ([one] * 3, [np.zeros((64, 64))] * 3)):
        with pytest.raises(Refused, match="no two frames"):
            flicker(frames, frames, masks=masks)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 0.4), max_size=60), st.integers(0, 500), st.integers(1, 20), st.floats(0.01, 1),
    st.lists(st.integers(0, 60), max_size=4),
)  # fmt: skip
def test_keyframes_keep_their_promises(
    motions: list[float], first: int, most: int, limit: float, must: list[int]
) -> None:
    last = first + len(motions)
    wanted = [first + t for t in must if first + t <= last]
    chosen = choose_keyframes(motions, first, last, most, limit, wanted)
    assert chosen == sorted(set(chosen)) and {first, last, *wanted} <= set(chosen)
    assert chosen[0] == first and chosen[-1] == last
    for a, b in pairwise(chosen):
        far = sum(motions[a - first : b - first])
        assert b - a <= most and (far <= limit + 1e-6 or b - a == 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 30))
def test_keyframes_without_motion_are_as_few_and_as_even_as_can_be(steps: int, most: int) -> None:
    chosen = choose_keyframes([0.0] * steps, 0, steps, most)
    gaps = np.diff(chosen)
    assert len(gaps) == math.ceil(steps / most) and gaps.max() == math.ceil(steps / len(gaps))


def test_engines_are_found_by_name_and_networks_only_with_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    assert flow_engine() == DIS() and flow_engine("patch") == PatchMatch()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        Refused, match=r"checkpoints/raft_large.*: no weights of raft_large; download http\S*\.pth to it"
    ):
        flow_engine("raft")
    for name, words in (("none", "raft_small"), ("", "raft_small")):
        with pytest.raises(Refused, match=words):
            flow_engine(name)
    with pytest.raises(Refused, match="use raft_large or raft_small"):
        RAFT.from_pretrained("raft_tiny")


def test_a_network_takes_any_size_and_only_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Mechanics only: the weights are random."""
    import torch

    page.cure_torchvision()
    from torchvision.models.optical_flow import Raft_Small_Weights, raft_small

    torch.manual_seed(0)
    state = raft_small(weights=None).state_dict()
    kept = tmp_path / "checkpoints" / Path(Raft_Small_Weights.DEFAULT.value.url).name
    kept.parent.mkdir()
    torch.save(state, kept)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = flow_engine("raft_small", device="cpu")
    for high, wide in ((16, 16), (50, 130), (136, 129)):
        one = texture(high, wide)
        found = network(one, moved(one, 1, 0))
        assert found.shape == (high, wide, 2) and found.dtype == np.float32 and np.isfinite(found).all()
        assert (found == network(one, moved(one, 1, 0))).all()
    other = RAFT.from_pretrained("raft_small", kept, "cpu")
    assert (other(one, one) == network(one, one)).all()
    wrong = tmp_path / "wrong.pth"
    for content in (state | {"more": torch.zeros(1)}, dict(list(state.items())[:5]), [1, 2], {"a": 1}):
        torch.save(content, wrong)
        with pytest.raises(Refused, match="not the weights of raft_small"):
            RAFT.from_pretrained("raft_small", wrong)
    for content in (b"", b"<html>", kept.read_bytes()[:1000]):
        wrong.write_bytes(content)
        with pytest.raises(Refused, match="not the weights of raft_small"):
            RAFT.from_pretrained("raft_small", wrong)
