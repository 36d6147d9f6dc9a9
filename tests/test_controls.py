"""What the page about controls cannot hold: workers, broken files, and properties over many inputs."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_video.controls import (
    CAP,
    GAINS,
    MOST_OUTSIDE,
    Augmentation,
    SceneDataModule,
    SceneDataset,
    _reachable_gain,
    apply_gain,
    collate,
    frozen_scales,
    gain_factors,
    heatmap_control,
    prepare,
    split_of,
    target_alignment,
)
from alignment_video.core import Refused, Study, load_config
from alignment_video.pictures import write_map, write_mask
from alignment_video.video import save_picture

HIGH, WIDE = 72, 48


def scene(study: Study, video_id: str, number: int, **other: Any) -> dict[str, Any]:
    """One scene: the same block in picture, mask and map, with a floor of attention around it."""
    random = np.random.default_rng([int(video_id), number])
    y, x = random.integers(4, [HIGH - 28, WIDE - 28])
    mask = np.zeros((HIGH, WIDE), np.uint8)
    mask[y : y + 20, x : x + 20] = 1
    files = study.scene_picture(video_id, number), study.mask(video_id, number), study.heatmap(video_id, number, ".png")
    save_picture(files[0], np.repeat(mask[..., None] * 200 + 20, 3, -1))
    write_mask(files[1], mask)
    attention = (mask + np.float32(0.1)) * np.float32(random.uniform(0.3, 0.9))
    write_map(files[2], attention)
    paths = [path.relative_to(study.root).as_posix() for path in files]
    names = "scene_picture_path", "keyword_mask_path", "attention_heatmap_path"
    share = float(attention[mask > 0].sum() / attention.sum())
    row = {"video_id": video_id, "scene_number": number, "keyword": "mug", "alignment": share}
    return row | dict(zip(names, paths, strict=True)) | other


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = Study(tmp_path)
    rows = pd.DataFrame([scene(study, f"70{video}", number) for video in range(4) for number in (1, 2, 3)])
    study.valid_scenes.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(study.valid_scenes, index=False)
    return study


def all_samples(study: Study, workers: int, epochs: tuple[int, ...] = (0,), **options: Any) -> list[Any]:
    """Everything that training sees, in order, as comparable values."""
    config = load_config(
        overrides=[
            "data.image_size=[32, 24]",
            f"data.num_workers={workers}",
            "data.train_fraction=1",
            "training.batch_size=5",
        ]
    )
    module, found = SceneDataModule(study, config, **options), []
    for epoch in epochs:
        module.set_epoch(epoch)
        for batch in module.batches("train"):
            for i in range(len(batch["gain"])):
                values = {name: value[i] for name, value in batch.items()}
                found.append({n: v.numpy().tobytes() if torch.is_tensor(v) else v for n, v in values.items()})
    return found


def test_any_number_of_workers_gives_the_same_samples(study: Study) -> None:
    alone = all_samples(study, 0, epochs=(0, 1))
    assert len(alone) == 24
    assert alone[:12] != alone[12:]
    for workers in (1, 2):
        assert all_samples(study, workers, epochs=(0, 1)) == alone  # workers live on from epoch to epoch


def test_spawned_workers_give_the_same_samples(study: Study) -> None:
    assert all_samples(study, 1, start_method="spawn") == all_samples(study, 0)


def test_a_sample_does_not_depend_on_what_else_is_in_the_study(study: Study) -> None:
    rows = pd.read_csv(study.valid_scenes, dtype={"video_id": str})
    options: dict[str, Any] = {"augment": Augmentation(), "gains": GAINS, "size": (32, 24)}
    whole = SceneDataset(study, rows, **options)
    part = SceneDataset(study, rows.sample(frac=1, random_state=1).query("video_id == '702'"), **options)
    for epoch in (0, 3):
        whole.set_epoch(epoch)
        part.set_epoch(epoch)
        for number in range(3):
            one, other = whole[6 + number], part[number]
            assert one["video_id"] == other["video_id"] == "702"
            assert torch.equal(one["control"], other["control"])
            assert torch.equal(one["picture"], other["picture"])


def centre(values: torch.Tensor) -> np.ndarray:
    values = values - values.min()
    y, x = torch.meshgrid(torch.arange(values.shape[0]), torch.arange(values.shape[1]), indexing="ij")
    return np.array([(values * y).sum(), (values * x).sum()]) / float(values.sum())


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_picture_mask_and_attention_stay_in_step(study: Study, fit: str) -> None:
    augment = Augmentation(flip=0.5, zoom=0.6, brightness=0)
    dataset = SceneDataset(study, size=(96, 96), fit=fit, augment=augment)
    places = set()
    for epoch in range(8):
        dataset.set_epoch(epoch)
        for number in range(len(dataset)):
            sample = dataset[number]
            picture, attention = sample["picture"].mean(0), sample["attention"][0]
            bright = (picture > picture.max() * 0.5).float()  # JPG rings a little around the block
            looked = (attention > attention.max() * 0.5).float()
            where = centre(sample["mask"][0])
            assert np.abs(where - centre(bright)).max() < 0.75
            assert np.abs(where - centre(looked)).max() < 0.75
            places.add(tuple(where.round(1)))
    assert len(places) > 40  # and they do move


def test_brightness_touches_the_picture_alone(study: Study) -> None:
    plain = SceneDataset(study, size=(HIGH, WIDE))[0]
    lit = SceneDataset(study, size=(HIGH, WIDE), augment=Augmentation(flip=0, zoom=1, brightness=0.5))[0]
    assert torch.equal(plain["control"], lit["control"])
    assert not torch.equal(plain["picture"], lit["picture"])


@given(
    st.integers(0, 10_000),
    st.floats(0, 6),
    st.floats(0.3, 1),
    st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=150, deadline=None)
def test_a_gain_is_exact(seed: int, gain: float, cap: float, kind: type) -> None:
    random = np.random.default_rng(seed)
    attention = (random.random((24, 32)) ** random.integers(1, 9) * random.uniform(0.01, 3)).astype(kind)
    mask = random.random((24, 32)) < random.uniform(0.02, 0.9)
    mask[0, 0], mask[0, 1] = True, False
    moved = apply_gain(attention, mask, gain, cap)
    before, after = (float(a[mask].sum(dtype=float) / a.sum(dtype=float)) for a in (attention, moved))
    assert abs(after - min(gain * before, max(cap, before))) < 1e-6
    assert abs(moved.sum(dtype=float) / attention.sum(dtype=float) - 1) < 1e-6
    assert moved.dtype == kind
    assert moved.min() >= 0


@given(st.floats(0, 1), st.floats(0, 5), st.floats(0.01, 1))
def test_factors_keep_the_total(alignment: float, gain: float, cap: float) -> None:
    target = target_alignment(alignment, gain, cap)
    assert 0 <= target <= 1
    if alignment == 1 and target < 1:
        with pytest.raises(Refused, match="none outside"):
            gain_factors(alignment, gain, cap)
        return
    inside, outside = gain_factors(alignment, gain, cap)
    assert abs(inside * alignment + outside * (1 - alignment) - 1) < 1e-9
    assert abs(inside * alignment - target) < 1e-9


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_alignment_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(Refused, match="from 0 to 1"):
        gain_factors(bad, 1.5)


def test_the_control_of_a_batch_is_the_control_of_its_scenes(study: Study) -> None:
    dataset = SceneDataset(study, size=(HIGH, WIDE), gains=(1.7, 1.7))
    batch = prepare(collate([dataset.compact(number) for number in range(4)]))
    for number in range(4):
        sample = SceneDataset(study, size=(HIGH, WIDE))[number]
        mask, attention = sample["mask"][0].numpy(), sample["attention"][0].numpy()
        by_hand = heatmap_control(mask, apply_gain(attention, mask, 1.7))
        assert torch.allclose(batch["control"][number], by_hand, atol=2e-5)
        assert torch.equal(batch["control"][number], dataset[number]["control"])


def test_gains_are_drawn_from_their_range(study: Study) -> None:
    dataset, drawn = SceneDataset(study, size=(16, 16), gains=GAINS), []
    for epoch in range(20):
        dataset.set_epoch(epoch)
        drawn += [float(dataset[number]["gain"]) for number in range(len(dataset))]
    assert GAINS[0] <= min(drawn) < 0.5
    assert 1.9 < max(drawn) <= GAINS[1]
    assert abs(np.mean(np.log(drawn)) - np.mean(np.log(GAINS))) < 0.15
    assert len(set(drawn)) == len(drawn)


def test_a_product_with_all_or_no_attention_is_taken_as_it_is(study: Study) -> None:
    row = scene(study, "800", 1)
    mask = SceneDataset(study, pd.DataFrame([row]), size=(HIGH, WIDE))[0]["mask"][0].numpy()
    for attention, share in ((mask, 1.0), (1 - mask, 0.0)):
        write_map(study.root / row["attention_heatmap_path"], attention)
        sample = SceneDataset(study, pd.DataFrame([row]), size=(HIGH, WIDE), gains=(0.5, 0.5), scales={"800": 1.0})[0]
        assert float(sample["gain"]) == 1
        assert float(sample["alignment"]) == float(sample["target_alignment"]) == share


def test_a_tiny_product_survives_resizing(study: Study) -> None:
    row = scene(study, "801", 1)
    mask = np.zeros((HIGH, WIDE), np.uint8)
    mask[40, 20] = 1
    write_mask(study.root / row["keyword_mask_path"], mask)
    for size in ((16, 12), (9, 7), (8, 8)):
        sample = SceneDataset(study, pd.DataFrame([row]), size=size, augment=Augmentation(zoom=0.5))[0]
        assert sample["mask"].sum() >= 1


@given(st.lists(st.from_regex(r"[0-9]{6,19}", fullmatch=True), min_size=1, max_size=30), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_split_is_stable_and_monotone(ids: list[str], fraction: float) -> None:
    sides = {video_id: split_of(video_id, fraction) for video_id in ids}
    assert set(sides.values()) <= {"train", "validation"}
    assert all(split_of(video_id, 1) == "train" and split_of(video_id, 0) == "validation" for video_id in ids)
    assert all(split_of(v, min(1, fraction + 0.1)) == "train" for v, side in sides.items() if side == "train")


def test_no_video_is_on_both_sides(study: Study) -> None:
    rows = pd.read_csv(study.valid_scenes, dtype={"video_id": str})
    many = pd.concat([rows.assign(video_id=f"9{number:05d}") for number in range(60)]).drop_duplicates(
        ["video_id", "scene_number"]
    )
    scales = dict.fromkeys(many["video_id"].unique(), 1.0)
    train, validation = (SceneDataset(study, many, split=side, scales=scales) for side in ("train", "validation"))
    sides = set(train.rows["video_id"]), set(validation.rows["video_id"])
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60
    assert len(train) + len(validation) == len(many) == len(SceneDataset(study, many, scales=scales))


@pytest.mark.parametrize(
    ("column", "content", "words"),
    [
        ("scene_picture_path", None, "no such file"),
        ("keyword_mask_path", None, "no such file"),
        ("attention_heatmap_path", None, "no such file"),
        ("scene_picture_path", b"", "empty"),
        ("scene_picture_path", "half", "cut off"),
        ("keyword_mask_path", b"not a picture", "text"),
        ("attention_heatmap_path", "half", "cut off"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_line_with_its_scene(
    study: Study, column: str, content: Any, words: str, workers: int
) -> None:
    frozen_scales(study)
    rows = pd.read_csv(study.valid_scenes, dtype={"video_id": str})
    path = study.root / rows[column][4]
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(Refused, match="scene 701/2: ") as refused:
        all_samples(study, workers)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_do_not_belong_together_are_refused(study: Study) -> None:
    frozen_scales(study)
    rows = pd.read_csv(study.valid_scenes, dtype={"video_id": str})
    write_mask(study.root / rows["keyword_mask_path"][0], np.ones((HIGH, 2 * WIDE), np.uint8))
    with pytest.raises(Refused, match="scene 700/1: mask is 96x72, the picture 48x72"):
        SceneDataset(study)[0]
    write_mask(study.root / rows["keyword_mask_path"][0], np.zeros((HIGH, WIDE), np.uint8))
    with pytest.raises(Refused, match="scene 700/1: mask is empty"):
        SceneDataset(study)[0]
    write_mask(study.root / rows["keyword_mask_path"][0], np.ones((2 * HIGH, 2 * WIDE), np.uint8))  # only larger
    assert SceneDataset(study, size=(HIGH, WIDE))[0]["mask"].min() == 1


def test_four_channels_need_probabilities(study: Study) -> None:
    dataset = SceneDataset(study, size=(HIGH, WIDE), channels=4)
    with pytest.raises(Refused, match="scene 700/1: no keyword probabilities"):
        dataset[0]
    for keyword, value in ((1, 0.25), (2, 0.75)):
        write_map(study.probability("700", 1, keyword), np.full((HIGH, WIDE), value, np.float32))
    control = dataset[0]["control"]
    assert control.shape == (4, HIGH, WIDE)
    assert torch.allclose(control[3], torch.tensor(0.75), atol=1e-4)


def test_scales_stay_as_they_were_written(study: Study) -> None:
    rows = pd.read_csv(study.valid_scenes, dtype={"video_id": str})
    path = study.root / "scales.json"
    first = frozen_scales(study, rows.query("video_id in ['700', '701']"), path)
    for name in rows["attention_heatmap_path"][:3]:
        (study.root / name).unlink()  # an old video is not even looked at
    later = frozen_scales(study, rows, path)
    assert {video: later[video] for video in first} == first
    assert set(later) == {"700", "701", "702", "703"}
    assert json.loads(path.read_text())["scales"] == later
    assert all(0.3 < scale < 1 for scale in later.values())


@pytest.mark.parametrize("text", ["", "[]", '{"scales": []}', '{"scales": {"700": "much"}}', '{"scales": {"700": -1}}'])
def test_broken_scales_are_refused(study: Study, text: str) -> None:
    path = study.root / "scales.json"
    path.write_text(text)
    with pytest.raises(Refused, match="holds no scales"):
        frozen_scales(study, path=path)


def test_a_video_without_a_scale_is_refused(study: Study) -> None:
    with pytest.raises(Refused, match="scene 700/1: its video has no attention scale"):
        SceneDataset(study, scales={})[0]


def test_a_boost_survives_the_file_and_the_loader(study: Study) -> None:
    rows = pd.read_csv(study.valid_scenes, dtype={"video_id": str}).head(1)
    path = study.root / rows["attention_heatmap_path"][0]
    sample = SceneDataset(study, rows, size=(HIGH, WIDE))[0]
    mask, scale = sample["mask"][0].numpy(), frozen_scales(study)["700"]
    write_map(path, apply_gain(sample["attention"][0].numpy() * scale, mask, 1.2))  # as a variant's map is written
    again = SceneDataset(study, rows, size=(HIGH, WIDE))[0]
    assert abs(float(again["alignment"]) / float(sample["alignment"]) - 1.2) < 1e-4
    ratio = again["control"][1].max() / sample["control"][1].max()
    assert abs(float(ratio) - 1.2) < 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alignment": 1.2}, "alignment 1.2 is no number"),
        ({"alignment": float("nan")}, "alignment nan is no number"),
        ({"scene_number": 0}, "whole number"),
        ({"scene_number": 1.5}, "whole number"),
        ({"keyword_mask_path": "/etc/passwd"}, "leaves the study"),
        ({"keyword_mask_path": "a/../../b.png"}, "leaves the study"),
        ({"keyword_mask_path": None}, "empty"),
        ({"video_id": 7228023352396971801}, "not text"),
    ],
)
def test_bad_rows_are_refused(study: Study, change: dict[str, Any], words: str) -> None:
    row = scene(study, "802", 1) | change
    with pytest.raises(Refused, match=words):
        SceneDataset(study, pd.DataFrame([row]), source="scalar", size=(16, 16))[0]


def test_a_scene_given_twice_is_refused(study: Study) -> None:
    row = scene(study, "803", 1)
    with pytest.raises(Refused, match="803/1 is there twice"):
        SceneDataset(study, pd.DataFrame([row, row]))


def test_no_table_and_no_scenes_are_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="run 'alignment-video validate"):
        SceneDataset(tmp_path / "nothing")
    rows = pd.read_csv(study.valid_scenes, dtype={"video_id": str})
    with pytest.raises(Refused, match="split 'all' is empty"):
        SceneDataset(study, rows.head(0))
    with pytest.raises(Refused, match="split 'validation' is empty"):
        SceneDataset(study, split="validation", train_fraction=1)


def test_a_dataset_can_be_pickled(study: Study) -> None:
    dataset = SceneDataset(study, size=(16, 16), gains=GAINS)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[1]["control"], dataset[1]["control"])


def test_cap_is_the_default_everywhere() -> None:
    assert target_alignment(0.8, 2) == CAP
    assert target_alignment(0.99, 2) == 0.99


@given(st.floats(0, 1), st.floats(*GAINS))
@settings(deadline=None)
def test_training_multiplies_nothing_by_more_than_its_range(alignment: float, gain: float) -> None:
    near = _reachable_gain(alignment, gain)
    assert max(gain_factors(alignment, near)) <= MOST_OUTSIDE * (1 + 1e-9)
    if 0 < alignment < 1 and gain_factors(alignment, gain)[1] <= MOST_OUTSIDE * (1 - 1e-9):
        assert near == gain  # what needs no limit is left as it was drawn


def test_a_sample_whose_product_holds_nearly_everything_has_a_gain_within_reach(study: Study) -> None:
    row = scene(study, "800", 1)
    mask = SceneDataset(study, pd.DataFrame([row]), size=(HIGH, WIDE))[0]["mask"][0].numpy()
    attention = np.where(mask > 0, 1, 1e-3).astype(np.float32)
    write_map(study.root / row["attention_heatmap_path"], attention)
    options: dict[str, Any] = {"size": (HIGH, WIDE), "gains": (0.4, 0.4), "scales": {"800": 1.0}}
    sample = SceneDataset(study, pd.DataFrame([row]), **options)[0]
    moved, gain = sample["control"][1].numpy(), float(sample["gain"])
    ratio = moved[mask == 0] / sample["attention"][0].numpy()[mask == 0]
    assert 0.98 < gain < 1 and np.allclose(ratio, MOST_OUTSIDE, rtol=1e-4)
    share = moved[mask > 0].sum(dtype=float) / moved.sum(dtype=float)
    assert abs(share - gain * float(sample["alignment"])) < 1e-6
    exact = apply_gain(attention, mask, 0.4)  # the page that makes variants gets what it asks for
    assert abs(exact[mask > 0].sum(dtype=float) / exact.sum(dtype=float) - 0.4 * float(sample["alignment"])) < 1e-4


def test_a_part_of_the_rows_freezes_no_scale(study: Study) -> None:
    rows = pd.read_csv(study.valid_scenes, dtype={"video_id": str})
    part = SceneDataset(study, rows.query("scene_number == 1"))
    SceneDataModule(study, rows=rows.query("scene_number == 1")).train_loader()
    assert set(part.scales) == {"700", "701", "702", "703"} and not study.attention_scales.exists()
    whole = SceneDataset(study)
    assert json.loads(study.attention_scales.read_text())["scales"] == whole.scales
    assert all(part.scales[video] <= scale for video, scale in whole.scales.items()) and part.scales != whole.scales
    assert SceneDataset(study, rows.head(1)).scales == whole.scales
    study.attention_scales.unlink()
    SceneDataModule(study).train_loader()
    assert json.loads(study.attention_scales.read_text())["scales"] == whole.scales
