"""What a page about masks cannot hold: broken models, killed runs, property tests, names that need a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from alignment_video.core import Refused, Study, file_hash, load_config, weights
from alignment_video.masks import (
    SPECK,
    KeywordMasker,
    ask,
    components,
    coverage,
    hysteresis,
    make_masks,
    mask_provider,
    smooth_probabilities,
    soften,
    study_scenes,
    to_mask,
    verdict,
)
from alignment_video.mini_models import MEASURED_SEEDS, measure_masker
from alignment_video.pictures import read_map, read_mask, write_mask
from alignment_video.tables import read_table, write_table
from alignment_video.world import PRODUCTS, Ad, still

HERE = Path(__file__).resolve().parents[1]


class Half:
    """A provider that finds the left half of every picture, and counts what it is asked."""

    name = "half"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def probabilities(self, pictures, keywords):  # type: ignore[no-untyped-def]
        found = []
        for picture, words in zip(pictures, keywords, strict=True):
            one = np.zeros(picture.shape[:2], np.float32)
            one[:, : picture.shape[1] // 2] = 0.9
            number = 1 if isinstance(words, str) else len(words)
            self.asked += [words] if isinstance(words, str) else words
            found.append(one if isinstance(words, str) else np.stack([one] * number))
        return found


def study_with(folder: Path, scenes: dict[str, int], keywords: str = "", size: tuple[int, int] = (40, 30)) -> Study:
    """A study with so many grey pictures of each video."""
    study = Study(folder)
    for video_id, number in scenes.items():
        for n in range(1, number + 1):
            path = study.scene_picture(video_id, n)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (90, 20 * n, 60)).save(path)
    study.keywords.parent.mkdir(parents=True, exist_ok=True)
    lines = keywords or "".join(f"{video_id},ring\n" for video_id in scenes)
    study.keywords.write_text(f"video_id,keyword\n{lines}", encoding="utf-8")
    return study


@pytest.fixture(scope="module")
def masker() -> KeywordMasker:
    import torch

    torch.set_num_threads(1)
    return KeywordMasker.from_pretrained("mini", device="cpu")


# the model


def test_batches_do_not_change_the_result(masker: KeywordMasker) -> None:
    scenes = [still(63_000_000 + i, size) for i, size in enumerate([(480, 270), (270, 480), (64, 64), (33, 190)] * 2)]
    pictures, words = [s.image for s in scenes], [s.keyword for s in scenes]
    results = []
    for size in (1, 3, 8):
        masker.batch_size = size
        results.append(masker.probabilities(pictures, words))
    masker.batch_size = 8
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 3), (1080, 1920), (2000, 20)])
def test_any_size_of_picture(masker: KeywordMasker, size: tuple[int, int]) -> None:
    found = masker.probabilities([np.full((*size, 3), 128, np.uint8)], ["ring"])[0]
    assert found.shape == size and found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(
    "word", ["ring " * 500, "ساعة", "リング", "💍", "<b>ring</b>", "../../ring", "a" * 10_000, "%s\0"]
)
def test_any_text(masker: KeywordMasker, word: str) -> None:
    """Long text is cut at the model's length, strange text is read as bytes; nothing breaks."""
    found = masker.probabilities([still(3).image], [word])[0]
    assert np.isfinite(found).all()


@pytest.mark.parametrize("word", ["", " ", "\t\n"])
def test_empty_keyword(masker: KeywordMasker, word: str) -> None:
    with pytest.raises(Refused, match="is empty"):
        masker.probabilities([still(3).image], [word])


@pytest.mark.parametrize("picture", [np.zeros((5, 5)), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3), np.float32)])
def test_no_picture(masker: KeywordMasker, picture: np.ndarray) -> None:
    with pytest.raises(Refused, match="give uint8"):
        masker.probabilities([picture], ["ring"])


def test_squeezed_logits(masker: KeywordMasker) -> None:
    """Older versions give one prompt's logits without the first axis."""

    class Squeezing:
        def __init__(self, model):  # type: ignore[no-untyped-def]
            self.model = model

        def __getattr__(self, name):  # type: ignore[no-untyped-def]
            return getattr(self.model, name)

        def __call__(self, **inputs):  # type: ignore[no-untyped-def]
            result = self.model(**inputs)
            result.logits = result.logits.squeeze()
            return result

    squeezing = KeywordMasker(Squeezing(masker.model), masker.processor, masker.tokenizer, "squeezing")
    image = still(4, (90, 60)).image
    expected = masker.probabilities([image], ["ring"])[0]
    np.testing.assert_allclose(squeezing.probabilities([image], ["ring"])[0], expected, atol=1e-5)


def test_half_precision(masker: KeywordMasker) -> None:
    """bfloat16 gives nearly the same masks and still float32 maps."""
    rough = KeywordMasker.from_pretrained("mini", device="cpu", dtype="bfloat16")
    scene = still(61_000_000, (480, 270))
    one, two = (to_mask(m.probabilities([scene.image], [scene.keyword])[0]) for m in (masker, rough))
    assert (one & two).sum() / (one | two).sum() > 0.9
    with pytest.raises(Refused, match="batch size 0"):
        KeywordMasker(None, None, None, "x", 0)


def test_the_settings_decide(masker: KeywordMasker) -> None:
    config = load_config(None, ["keyword.model_name=mini", "keyword.batch_size=3", "model.device=cpu"])
    provider = mask_provider(config)
    assert isinstance(provider, KeywordMasker) and provider.batch_size == 3 and provider.name == "mini"


def test_verdicts_on_whole_ads(masker: KeywordMasker) -> None:
    """The masks of ads that were never trained on agree with the world about where the product is."""
    right, total = 0, 0
    for seed in range(50, 58):
        ad = Ad(seed)
        for scene, start, end in zip(ad.scenes, ad.starts, [*ad.starts[1:], ad.frames], strict=True):
            image = ad.draw((start + end) // 2)[0]
            found = verdict(to_mask(masker.probabilities([image], [ad.keyword])[0]))
            right, total = right + (found == ("ok" if scene.keyword else "empty")), total + 1
    assert right >= 0.95 * total, f"{right} of {total}"


def test_the_recorded_figures_are_still_true(masker: KeywordMasker) -> None:
    """Two scenes of each product, measured again, against the record of 280. The first 28 have a mean IoU of 0.83, all
    have 0.81; the tolerance of 0.06 is for that and for other processors. A masker that lost more than that fails."""
    known = json.loads((HERE / "data/evidence/mini_masker.json").read_text(encoding="utf-8"))["held out"]
    again = measure_masker(masker, 28, MEASURED_SEEDS)
    assert again["seed"].min() == known["first scene"]
    assert abs(again["iou"].mean() - known["mean IoU"]) < 0.06
    assert (again["found"] == "ok").mean() >= known["product found"] - 0.08
    assert (again["absent"] == "empty").mean() >= known["absent product is empty"] - 0.08
    assert (again["nonsense"] == "empty").mean() >= known["nonsense is empty"] - 0.08


# models that cannot be loaded


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(weights("mini", "masker"), tmp_path / "model"))


def test_another_kind_of_model(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(Refused, match="type 'bert', not 'clipseg'"):
        KeywordMasker.from_pretrained(copy, device="cpu")


def test_truncated_weights(copy: Path) -> None:
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(Refused, match="cannot be loaded"):
        KeywordMasker.from_pretrained(copy, device="cpu")


def test_missing_weights_are_not_invented(copy: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors.pop("decoder.film_mul.weight")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refused, match="1 weights are missing, the first is decoder"):
        KeywordMasker.from_pretrained(copy, device="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"])
def test_missing_files(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(Refused, match="cannot be loaded"):
        KeywordMasker.from_pretrained(copy, device="cpu")


def test_no_network() -> None:
    """A name of the hub without a network is one line, not a traceback of forty."""
    code = """
from alignment_video.core import Refused
from alignment_video.masks import KeywordMasker
try:
    KeywordMasker.from_pretrained("CIDAS/clipseg-rd64-refined-not-here", device="cpu")
except Refused as error:
    print("refused:", error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": os.devnull + "-none"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith("refused: mask model 'CIDAS/clipseg-rd64-refined-not-here' cannot be loaded")
    assert done.stdout.count("\n") == 1


# masks


masks = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(masks)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_three_numbers(mask: np.ndarray) -> None:
    """Coverage is a share, components agree with the verdict, and turning the picture changes nothing."""
    assert coverage(mask) == mask.mean()
    assert (verdict(mask) == "empty") == (components(mask) == 0)
    assert components(mask) == components(mask.T) == components(mask[::-1])
    assert verdict(mask.astype(np.float32)) == verdict(mask)


@given(masks, st.floats(0, 6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_softening(mask: np.ndarray, sigma: float) -> None:
    soft = soften(mask, sigma)
    assert soft.dtype == np.float32 and 0 <= soft.min() <= soft.max() <= 1
    assert (soft[mask] == 1).all()
    if sigma == 0:
        assert (soft[~mask] == 0).all()


@given(arrays.arrays(np.float32, (6, 9, 8), elements=st.floats(0, 1, width=32)))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_smoothing(frames: np.ndarray) -> None:
    """Nothing is lowered, nothing passes the neighbours, and a clip played backwards gives the same."""
    smooth = np.array(smooth_probabilities(list(frames)))
    assert (smooth >= frames).all()
    assert (smooth[0] == frames[0]).all() and (smooth[-1] == frames[-1]).all()
    assert (smooth[::-1] == np.array(smooth_probabilities(list(frames[::-1])))).all()
    kept = np.array(hysteresis(list(frames)))
    assert not (kept & ~(frames > 0.35)).any()
    assert (kept[::-1] == np.array(hysteresis(list(frames[::-1])))).all()


def test_short_clips() -> None:
    one = np.full((4, 4), 0.8, np.float32)
    assert smooth_probabilities([]) == [] and hysteresis([]) == []
    assert (smooth_probabilities([one])[0] == one).all()
    assert hysteresis([one])[0].all() and hysteresis([one, one])[1].all()


def test_six_pixels_are_an_object() -> None:
    mask = np.zeros((480, 270), bool)
    mask[10:16, 10:16] = True
    assert mask.mean() >= SPECK and verdict(mask) == "ok"


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_no_threshold(value: float) -> None:
    with pytest.raises(Refused):
        to_mask(np.zeros((2, 2)), value)


def test_bad_answers() -> None:
    class Small(Half):
        def probabilities(self, pictures, keywords):  # type: ignore[no-untyped-def]
            return [np.zeros((2, 2), np.float32) for _ in pictures]

    class Nothing(Half):
        def probabilities(self, pictures, keywords):  # type: ignore[no-untyped-def]
            return [np.full(p.shape[:2], np.nan, np.float32) for p in pictures]

    picture = np.zeros((5, 4, 3), np.uint8)
    with pytest.raises(Refused, match="a picture needs"):
        ask(Small(), [picture], ["ring"])
    with pytest.raises(Refused, match="outside"):
        ask(Nothing(), [picture], ["ring"])


# a study


def test_rows_and_files_agree(tmp_path: Path) -> None:
    study = study_with(tmp_path, {"71": 3, "72": 2}, "71,ring\n71,box\n72,ring\n")
    half = Half()
    table = make_masks(study, half, keep_probabilities=True, at_once=2)
    assert table["keyword"].tolist() == ["ring | box"] * 3 + ["ring"] * 2
    assert (table["coverage"] == 0.5).all() and (table["verdict"] == "ok").all()
    assert len(half.asked) == 8
    assert len(list(study.keyword_masks.rglob("*.png"))) == 6, "each of several keywords, none for a single one"
    assert len(list(study.probabilities.rglob("*.png"))) == 8
    assert abs(read_map(study.probability("71", 1, 2)).max() - 0.9) < 1e-4
    pd.testing.assert_frame_equal(
        read_table(study.mask_table)[["video_id", "scene_number", "verdict"]],
        table[["video_id", "scene_number", "verdict"]],
    )


def test_what_changes_is_made_again(tmp_path: Path) -> None:
    study, half = study_with(tmp_path, {"71": 2}), Half()
    make_masks(study, half)
    for changes, expected in [
        ({}, 0),
        ({"keep_probabilities": True}, 2),
        ({"keep_probabilities": True}, 0),
        ({"threshold": 0.95}, 2),
        ({"threshold": 0.95, "force": True}, 2),
    ]:
        half.asked.clear()
        make_masks(study, half, **changes)
        assert len(half.asked) == expected, changes
    assert not read_mask(study.mask("71", 1)).any(), "0.9 is below 0.95"
    picture = study.scene_picture("71", 2)
    os.utime(picture, (picture.stat().st_atime + 100, study.mask("71", 2).stat().st_mtime + 100))
    half.asked.clear()
    make_masks(study, half, threshold=0.95)
    assert len(half.asked) == 1, "a newer picture"
    study.mask("71", 1).unlink()
    half.asked.clear()
    make_masks(study, half, threshold=0.95)
    assert len(half.asked) == 2, "a mask that is gone, and the newer picture"


def test_a_keyword_that_goes_takes_its_mask_along(tmp_path: Path) -> None:
    study, half = study_with(tmp_path, {"71": 1, "72": 1}), Half()
    make_masks(study, half)
    study.keywords.write_text("video_id,keyword\n71,\n72,ring\n")
    table = make_masks(study, half)
    assert table["verdict"].tolist() == ["missing", "ok"] and table["reason"].tolist() == ["no_keyword", ""]
    assert not study.mask("71", 1).exists() and study.mask("72", 1).exists()


def test_masks_of_others_stay(tmp_path: Path) -> None:
    study, half = study_with(tmp_path, {"71": 2}), Half()
    given = study.mask("71", 1)
    given.parent.mkdir(parents=True)
    Image.new("L", (30, 40), 255).save(given)
    content = given.read_bytes()
    table = make_masks(study, half)
    assert table["model"].tolist() == ["given", "half"] and table["verdict"].tolist() == ["whole_frame", "ok"]
    assert given.read_bytes() == content
    make_masks(study, half)
    assert given.read_bytes() == content
    given.write_bytes(b"\x89PNG nothing")
    assert make_masks(study, half)["reason"].tolist() == ["mask_unreadable", ""]
    table = make_masks(study, half, force=True)
    assert table["model"].tolist() == ["half", "half"] and read_mask(given).mean() == 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep_probabilities": True},
        {"threshold": 0.95},
        {"keywords": pd.DataFrame({"video_id": ["71"], "keyword": ["box"]})},
        {"keywords": pd.DataFrame({"video_id": ["71"] * 2, "keyword": ["ring", "box"]})},
        {"model": "other"},
        {"newer": True},
    ],
    ids=str,
)
def test_what_was_changed_by_hand_stays(tmp_path: Path, changes: dict[str, object]) -> None:
    """A mask of ours that somebody changed is theirs, whatever else would have it made again; only force does so."""
    study, half = study_with(tmp_path, {"71": 2}), Half()
    hashes = make_masks(study, half)["mask_hash"]
    assert hashes.str.fullmatch("sha256:[0-9a-f]{16}").all()
    assert hashes[0] == f"sha256:{file_hash(study.mask('71', 1))[:16]}"
    changed, changes = study.mask("71", 1), dict(changes)
    write_mask(changed, np.ones((30, 40)))
    content = changed.read_bytes()
    half.name = str(changes.pop("model", half.name))
    if changes.pop("newer", False):
        for n in (1, 2):
            os.utime(study.scene_picture("71", n), (2e9, 2e9))
    for _ in range(2):
        table = make_masks(study, half, **changes)  # type: ignore[arg-type]
        assert changed.read_bytes() == content
        assert table["model"].tolist() == ["given", half.name] and table["coverage"].tolist()[0] == 1
    table = make_masks(study, half, force=True)
    assert table["model"].tolist() == [half.name] * 2 and read_mask(changed).mean() == 0.5


def test_a_mask_brought_for_a_scene_that_had_none(tmp_path: Path) -> None:
    study, half = study_with(tmp_path, {"71": 1, "72": 1}, "71,\n72,ring\n"), Half()
    assert make_masks(study, half)["verdict"].tolist() == ["missing", "ok"]
    write_mask(study.mask("71", 1), np.ones((30, 40)))
    table = make_masks(study, half)
    assert table["model"].tolist() == ["given", "half"] and table["verdict"].tolist() == ["whole_frame", "ok"]


def test_tables_without_hashes_are_believed(tmp_path: Path) -> None:
    """A table from before there was the column: nothing is made again, and what changes is."""
    study, half = study_with(tmp_path, {"71": 2}), Half()
    write_table(study.mask_table, make_masks(study, half).drop(columns="mask_hash"))
    half.asked.clear()
    assert make_masks(study, half)["model"].tolist() == ["half", "half"] and not half.asked
    assert make_masks(study, half, threshold=0.95)["verdict"].tolist() == ["empty", "empty"]


@pytest.mark.parametrize("why", ["no keyword", "picture missing", "picture unreadable"])
@pytest.mark.parametrize("brought", ["new", "changed"])
def test_force_removes_nothing_that_it_cannot_replace(tmp_path: Path, why: str, brought: str) -> None:
    study, half = study_with(tmp_path, {"71": 1, "72": 1}), Half()
    if brought == "changed":
        make_masks(study, half)
    for video_id in ("71", "72"):
        write_mask(study.mask(video_id, 1), np.ones((30, 40)))
    content, picture = study.mask("71", 1).read_bytes(), study.scene_picture("71", 1)
    study.scene_table.write_text("video_id,scene_number\n71,1\n72,1\n")
    if why == "no keyword":
        study.keywords.write_text("video_id,keyword\n71,\n72,ring\n")
    elif why == "picture missing":
        picture.unlink()
    else:
        picture.write_text("no picture")
    for _ in range(2):
        table = make_masks(study, half, force=True)
        assert study.mask("71", 1).read_bytes() == content
        assert table["model"].tolist() == ["given", "half"] and table["verdict"].tolist() == ["whole_frame", "ok"]


def test_force_takes_our_own_mask_away(tmp_path: Path) -> None:
    """A mask that was made here says nothing once its picture is gone."""
    study, half = study_with(tmp_path, {"71": 1, "72": 1}), Half()
    make_masks(study, half)
    study.scene_table.write_text("video_id,scene_number\n71,1\n72,1\n")
    study.scene_picture("71", 1).unlink()
    assert make_masks(study, half, force=True)["reason"].tolist() == ["picture_missing", ""]
    assert not study.mask("71", 1).exists()


def test_files_of_keywords_that_are_gone(tmp_path: Path) -> None:
    """From three keywords to two, one and none: what is there is what is asked, and other scenes keep theirs."""
    study, half = study_with(tmp_path, {"71": 11, "72": 1}), Half()
    other = "".join(f"72,{word}\n" for word in ("ring", "box", "bag"))
    for words, masks_of_each in [(["ring", "box", "bag"], 3), (["ring", "box"], 2), (["ring"], 0), ([""], 0)]:
        lines = "".join(f"71,{word}\n" for word in words)
        study.keywords.write_text(f"video_id,keyword\n{lines}{other}")
        make_masks(study, half, keep_probabilities=True)
        for n in (1, 11):
            name = study.mask("71", n).stem
            each = [path.name for path in sorted(study.keyword_masks.rglob(f"{name}-*.png"))]
            assert each == [f"{name}-{k + 1:02d}.png" for k in range(masks_of_each)]
            kept = [path.name for path in sorted(study.probabilities.rglob(f"{name}-*.png"))]
            assert kept == [f"{name}-{k + 1:02d}.png" for k, word in enumerate(words) if word]
        assert len(list(study.keyword_masks.rglob("72-*.png"))) == 3


def test_bad_pictures_do_not_stop_the_others(tmp_path: Path) -> None:
    study = study_with(tmp_path, {"71": 4, "72": 1}, "71,ring\n72,7.2280233523969718e+18\n")
    content = study.scene_picture("71", 1).read_bytes()
    study.scene_picture("71", 1).write_bytes(content[:200])
    study.scene_picture("71", 2).write_text("no picture")
    study.scene_table.write_text("video_id,scene_number\n" + "".join(f"71,{n}\n" for n in range(1, 6)))
    table = make_masks(study, Half())
    assert table["reason"].tolist() == ["picture_unreadable", "picture_unreadable", "", "", "picture_missing"]
    assert sorted(p.name for p in study.masks.rglob("*.png")) == ["71-Scene-003-01.png", "71-Scene-004-01.png"]


def test_the_reason_of_the_keyword_table_is_kept(tmp_path: Path) -> None:
    study = study_with(tmp_path, {"71": 1, "72": 1}, "71,ring\n71,\n72,nan\n")
    table = make_masks(study, Half())
    assert table["verdict"].tolist() == ["ok", "missing"] and table["reason"].tolist() == ["", "no_keyword"]


def test_no_scenes_and_foreign_tables(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no scene pictures"):
        study_scenes(Study(tmp_path / "none"))
    study = study_with(tmp_path / "one", {"71": 1})
    study.mask_table.write_text("a,b\n1,2\n")
    with pytest.raises(Refused, match="not ours"):
        make_masks(study, Half())
    study.scene_table.write_text("video_id,number\n71,1\n")
    with pytest.raises(Refused, match="no column 'scene_number'"):
        study_scenes(study)


KILLED = """
import os, sys
import numpy as np
from alignment_video import masks
from alignment_video.core import Study
left = int(sys.argv[2])
real = masks.write_bytes  # each mask of a scene is one call
def write(path, content):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    return real(path, content)
masks.write_bytes = write
class Half:
    name = "half"
    def probabilities(self, pictures, keywords):
        return [np.stack([np.full(p.shape[:2], 0.9, np.float32)] * len(k)) for p, k in zip(pictures, keywords)]
masks.make_masks(Study(sys.argv[1]), Half(), at_once=2, threshold=float(sys.argv[3]))
"""


def test_killed_and_started_again(tmp_path: Path) -> None:
    """After a kill in the middle every mask that is there is described by its row, and a second run completes."""
    study = study_with(tmp_path, {"71": 5})

    def run(left: int, threshold: float) -> int:
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(left), str(threshold)]
        return subprocess.run(command, timeout=120).returncode

    assert run(3, 0.5) == 9
    assert len(list(study.masks.rglob("*.png"))) == 3
    assert run(2, 0.95) == 9, "now with a threshold that empties the masks"
    table = read_table(study.mask_table)
    for row in table.itertuples():
        place = study.mask(row.video_id, row.scene_number)
        if place.exists():
            assert read_mask(place).any() == (row.verdict != "empty"), row
    half = Half()
    assert make_masks(study, half, threshold=0.95)["verdict"].tolist()[0] == "empty"
    assert len(list(study.masks.rglob("*.png"))) == 5


def test_products_are_told_apart(masker: KeywordMasker) -> None:
    """Two questions about one picture give two answers."""
    scene = still(61_000_003, (480, 270))
    others = [name for name in PRODUCTS if name != scene.keyword]
    answers = masker.probabilities([scene.image], [[scene.keyword, *others]])[0]
    inside = [float(answer[scene.mask].mean()) for answer in answers]
    assert inside[0] > 0.5 and np.mean(np.array(inside[1:]) < 0.5) >= 0.9
