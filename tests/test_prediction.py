"""What the page about prediction cannot hold: properties of metrics, published maps, bad files, killed trainings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alignment_video.core import Refused, Study, weights
from alignment_video.pictures import write_map
from alignment_video.prediction import (
    AttentionPredictor,
    PredictorConfig,
    WorldPairs,
    auc_judd,
    auc_shuffled,
    average_map,
    compare_maps,
    correlation,
    distribution,
    fixation_points,
    flicker,
    held_out,
    information_gain,
    kl_divergence,
    nss,
    sample_fixations,
    similarity,
    smooth_heatmaps,
    smooth_over_scenes,
    smooth_over_time,
    train_predictor,
    training_pairs,
)
from alignment_video.tables import write_table

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data" / "meaning_maps"
SCENES = ("048", "054", "059", "061", "064", "067", "068")
GREY_R = {
    "human_meaning_maps": (0.495, 0.498, 0.645, 0.249, 0.651, 0.354, 0.534),
    "llava_finetune_maps": (0.510, 0.532, 0.732, 0.262, 0.655, 0.337, 0.563),
    "llava_raw_maps": (-0.235, -0.196, 0.085, -0.071, -0.115, 0.041, 0.184),
}
TINY = PredictorConfig(side=32, channels=(8, 8, 8), dilations=(1,), grid=3)

# levels that are exact in binary, so that order and equality survive the changes below
maps = arrays(np.float64, (5, 7), elements=st.integers(0, 64).map(lambda level: level / 64))
points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=12)
quick = settings(max_examples=60, deadline=None)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pairs():
    return [WorldPairs(40, size=(57, 32))[i] for i in range(40)]


@quick
@given(maps, maps, points, st.floats(0.1, 50), st.floats(-20, 20))
def test_nss_and_cc_do_not_see_scale_and_offset(one, other, looks, scale, offset):
    assert nss(scale * one + offset, looks) == pytest.approx(nss(one, looks), abs=1e-8)
    assert correlation(scale * one + offset, other) == pytest.approx(correlation(one, other), abs=1e-8)
    assert correlation(one, other) == pytest.approx(correlation(other, one), abs=1e-12)
    assert correlation(-one, other) == pytest.approx(-correlation(one, other), abs=1e-12)


@quick
@given(maps, points, points, st.floats(0.2, 5))
def test_auc_sees_only_the_order(values, looks, others, power):
    changed = np.exp(3 * values) ** power
    assert auc_judd(changed, looks) == auc_judd(values, looks)
    assert auc_shuffled(changed, looks, others) == auc_shuffled(values, looks, others)
    assert auc_judd(-values, looks) == pytest.approx(1 - auc_judd(values, looks))
    assert auc_shuffled(values, looks, others) == pytest.approx(1 - auc_shuffled(values, others, looks))


@quick
@given(maps, points)
def test_auc_is_the_count_of_pairs(values, looks):
    without = np.ones(values.shape, bool)
    without[tuple(np.array(looks).T)] = False
    won = [
        (values[look] > other) + 0.5 * (values[look] == other)
        for look in map(tuple, looks)
        for other in values[without]
    ]
    assert auc_judd(values, looks) == pytest.approx(np.mean(won))


@quick
@given(maps.filter(np.any), maps.filter(np.any), points)
def test_distributions_are_compared_as_such(one, other, looks):
    assert 0 <= similarity(one, other) <= 1 + 1e-12
    assert similarity(3 * one, other) == pytest.approx(similarity(one, other))
    assert kl_divergence(one, other) >= 0
    assert kl_divergence(one, one) == pytest.approx(0, abs=1e-9)
    assert kl_divergence(3 * one, 7 * other) == pytest.approx(kl_divergence(one, other), abs=1e-9)
    assert information_gain(one, looks, other) == pytest.approx(-information_gain(other, looks, one))
    assert information_gain(one, looks, 5 * one) == pytest.approx(0, abs=1e-9)
    q = distribution(one)
    assert q.sum() == pytest.approx(1) and q.min() >= 0


def test_no_map_has_more_expected_information_than_the_truth():
    true = WorldPairs(1, size=(60, 40))[0][1]
    looks = sample_fixations(true, 20_000, seed=3)
    for gamma in (0.5, 0.8, 1.3, 2):
        assert information_gain(true, looks, true.astype(float) ** gamma) > 0


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1 / 3, 1e30])
def test_constant_maps_prefer_nothing(value):
    flat = np.full((6, 9), value)
    assert nss(flat, [(1, 2)]) == 0 and correlation(flat, np.arange(54).reshape(6, 9)) == 0
    assert auc_judd(flat, [(1, 2), (3, 3)]) == auc_shuffled(flat, [(1, 2)], [(0, 0)]) == 0.5


def test_huge_and_tiny_values():
    values = np.arange(12, dtype=float).reshape(3, 4)
    for factor in (1e-300, 1e300):
        assert nss(values * factor, [(2, 3)]) == pytest.approx(nss(values, [(2, 3)]))
        assert correlation(values * factor, values) == pytest.approx(1)
        assert similarity(values * factor, values) == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.zeros((0, 3)), "height x width"),
        (np.zeros((2, 2, 3)), "height x width"),
        ([[1, np.nan]], "1 values are not finite"),
        ([["a", "b"]], "not an array of numbers"),
        (None, "give"),
    ],
)
def test_maps_that_are_none(values, line):
    for metric in (lambda m: nss(m, [(0, 0)]), lambda m: correlation(m, m), lambda m: distribution(m)):
        with pytest.raises(Refused, match=line):
            metric(values)


@pytest.mark.parametrize(
    "looks",
    [
        [],
        [(0, 9)],
        [(-1, 0)],
        [(np.nan, 0)],
        [(0, 0, 0)],
        [0, 1],
        "here",
        np.full((4, 5), 2),
        np.zeros((4, 5)),
        [(0,), (1, 2)],
    ],
)
def test_fixations_that_are_none(looks):
    with pytest.raises(Refused):
        fixation_points(looks, (4, 5))


def test_repeated_looks_count_and_fractions_round_down():
    assert fixation_points([(1.99, 0.2), (1, 0)], (4, 5)).tolist() == [[1, 0], [1, 0]]
    assert nss(np.arange(20).reshape(4, 5), [(3, 4), (3, 4), (0, 0)]) > 0


def test_sampled_looks_follow_the_map_and_the_seed():
    attention = np.array([[0, 1.0], [3, 0]])
    looks = sample_fixations(attention, 8000, seed=5)
    assert {tuple(look) for look in looks} == {(0, 1), (1, 0)}
    assert np.mean(looks[:, 0]) == pytest.approx(0.75, abs=0.02)
    assert not np.array_equal(looks, sample_fixations(attention, 8000, seed=6))
    with pytest.raises(Refused, match="all values are 0"):
        sample_fixations(np.zeros((2, 2)), 3)


def test_compare_maps_gives_what_can_be_computed():
    one = np.arange(12.0).reshape(3, 4)
    assert list(compare_maps(one, one, [(0, 0)], None, one)) == ["CC", "SIM", "KL", "NSS", "AUC-Judd", "IG"]
    with pytest.raises(Refused, match="all values are 0"):
        compare_maps(np.zeros((3, 4)), one)


def test_average_map_of_other_sizes_is_a_distribution():
    mean = average_map([np.ones((3, 9)), np.eye(20), np.eye(4)], (8, 8))
    assert mean.shape == (8, 8) and mean.sum() == pytest.approx(1)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="published meaning maps (../shared/data/meaning_maps) are not here")
@pytest.mark.parametrize("kind", GREY_R)
def test_published_correlations(kind):
    for scene, known in zip(SCENES, GREY_R[kind], strict=True):
        files = [PUBLISHED / folder / f"scene_{scene}.png" for folder in (kind, "attention_maps")]
        one, other = (cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files)
        if one.shape != other.shape:
            one = cv2.resize(one, other.shape[::-1])
        assert correlation(one, other) == pytest.approx(known, abs=0.0051), scene


# the predictor


def test_the_shipped_predictor_is_small_and_beats_the_average_map():
    files = {path.name: path.stat().st_size for path in Path(weights("mini", "predictor")).iterdir()}
    assert sum(files.values()) <= 1_000_000 and set(files) == {"config.json", "model.safetensors"}
    predictor = AttentionPredictor.from_pretrained("mini", device="cpu")
    assert predictor.parameters <= 500_000
    scenes = [(*WorldPairs(12, first=500, size=(171, 96))[i], None) for i in range(12)]
    average = average_map([true for _, true, _ in scenes], (171, 96))  # of these very scenes: the hardest baseline
    table = held_out({"average": lambda _: average, "mini": lambda p: predictor.predict([p])[0]}, scenes, average)
    assert table.CC["mini"] > 0.9 > table.CC["average"] and table.IG["mini"] > 0.1 and table.KL["mini"] < 0.1


def test_maps_do_not_depend_on_the_batch_or_the_size_of_the_file(pairs):
    predictor = AttentionPredictor.from_pretrained("mini", device="cpu")
    pictures = [cv2.resize(picture, size) for picture, _ in pairs[:3] for size in ((40, 71), (90, 160), (70, 40))]
    together, alone = predictor.predict(pictures), [m for p in pictures for m in predictor.predict([p], batch_size=1)]
    for one, other, picture in zip(together, alone, pictures, strict=True):
        assert one.shape == picture.shape[:2] and one.dtype == np.float32 and one.max() == 1 and one.min() >= 0
        assert np.abs(one - other).max() < 1e-4
    large = predictor.predict([cv2.resize(pictures[1], (360, 640), interpolation=cv2.INTER_CUBIC)])[0]
    assert correlation(cv2.resize(large, (90, 160), interpolation=cv2.INTER_AREA), together[1]) > 0.95


def test_half_precision_changes_little(pairs):
    exact, half = (AttentionPredictor.from_pretrained("mini", "cpu", dtype) for dtype in ("float32", "bfloat16"))
    for one, other in zip(
        exact.predict([p for p, _ in pairs[:4]]), half.predict([p for p, _ in pairs[:4]]), strict=True
    ):
        assert correlation(one, other) > 0.98


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (3, 5), (31, 4000)])
def test_odd_sizes(shape):
    made = AttentionPredictor(TINY, "cpu").predict([np.zeros((*shape, 3), np.uint8)])[0]
    assert made.shape == shape and np.isfinite(made).all()


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), "a.jpg"]
)
def test_pictures_that_are_none(picture):
    with pytest.raises(Refused, match="give RGB as uint8"):
        AttentionPredictor(TINY, "cpu").predict([picture])


@pytest.mark.parametrize("options", [{"device": "nowhere"}, {"device": "cuda:99"}, {"dtype": "int8"}])
def test_places_that_are_not_there(options):
    with pytest.raises(Refused):
        AttentionPredictor(TINY, **options)


@pytest.mark.parametrize(
    "settings_",
    [
        {"side": 0},
        {"side": 100},
        {"side": 4096},
        {"channels": (8, 8)},
        {"channels": (8, 8, 7)},
        {"dilations": (0,)},
        {"grid": True},
        {"grid": 65},
    ],
)
def test_settings_that_make_no_network(settings_):
    with pytest.raises(Refused):
        PredictorConfig(**settings_)


def test_files_of_a_predictor_that_cannot_be_used(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    place = AttentionPredictor(TINY, "cpu").save_pretrained(tmp_path / "p")
    config, model = place / "config.json", place / "model.safetensors"
    good_config, good_model = config.read_text(), model.read_bytes()
    stored = json.loads(good_config)
    changes = ({"model": "a U-Net"}, {"depth": 3}, {"side": "96"}, {"channels": 8})
    bad_configs = ["{", "[]", "{}", "\udc80", *(json.dumps({**stored, **change}) for change in changes)]
    for text in bad_configs:
        config.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(Refused, match=r"config\.json"):
            AttentionPredictor.from_pretrained(place)
    config.write_text(good_config)
    for content in (b"", good_model[:1000], good_model[:-7], b"\xff" * 500):
        model.write_bytes(content)
        with pytest.raises(Refused, match="safetensors"):
            AttentionPredictor.from_pretrained(place)
    model.write_bytes(good_model)
    state = load_file(model)
    save_file({**state, "last.bias": torch.full((1,), torch.nan)}, model)
    with pytest.raises(Refused, match="not finite"):
        AttentionPredictor.from_pretrained(place)
    save_file({name: value for name, value in state.items() if name != "last.bias"}, model)
    with pytest.raises(Refused, match="do not belong"):
        AttentionPredictor.from_pretrained(place)
    model.unlink()
    with pytest.raises(Refused, match="missing"):
        AttentionPredictor.from_pretrained(place)
    with pytest.raises(Refused, match="no attention predictor there"):
        AttentionPredictor.from_pretrained("some/published-model")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    import torch

    predictor = AttentionPredictor(TINY, "cpu")
    with torch.no_grad():
        predictor.layers["last"].bias.fill_(1e6)  # infinite in half precision
    with pytest.raises(Refused, match="not all finite"):
        predictor.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# training


def test_a_loader_and_a_dataset_give_the_same_as_a_list(pairs):
    from torch.utils.data import DataLoader

    start = AttentionPredictor(TINY, "cpu")
    plain = train_predictor(pairs, 3, start, 4)
    loaded = train_predictor(DataLoader(pairs, batch_size=2), 3, start, 4)
    assert plain.losses == loaded.losses and plain.losses != train_predictor(pairs, 3, start, 4, seed=1).losses


def test_training_goes_on_from_weights_and_leaves_them_alone(pairs):
    first = train_predictor(pairs, 25, AttentionPredictor(TINY, "cpu"), 8)
    before = first.predictor.predict([pairs[0][0]])[0]
    more = train_predictor(pairs, 5, first.predictor, 8, learning_rate=1e-3)
    assert more.losses[0] < first.losses[0] and np.array_equal(before, first.predictor.predict([pairs[0][0]])[0])


def test_mixed_shapes_are_batched_by_shape():
    mixed = [WorldPairs(12)[i] for i in range(12)]
    assert len({TINY.working_shape(*picture.shape[:2]) for picture, _ in mixed}) > 2
    assert len(train_predictor(mixed, 4, AttentionPredictor(TINY, "cpu"), 2).losses) == 4


def test_global_randomness_is_left_alone(pairs):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_predictor(pairs, 1, AttentionPredictor(TINY, "cpu"), 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ((np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8))), "pair 0: map: all values are 0"),
        ((np.zeros((8, 8, 3), np.uint8), np.full((8, 8), np.nan)), "pair 0: map: 64 values are not finite"),
        ((np.zeros((8, 8), np.uint8), np.ones((8, 8))), "pair 0: picture"),
    ],
)
def test_pairs_that_teach_nothing(wrong, line):
    with pytest.raises(Refused, match=line):
        train_predictor([wrong], 1, AttentionPredictor(TINY, "cpu"), 1)


def test_no_pairs():
    for given_ in ((pair for pair in []), [], None, 3):
        with pytest.raises(Refused):
            train_predictor(given_, 1)


def test_a_checkpoint_that_is_none(pairs, tmp_path):
    file = tmp_path / "run.pt"
    start = AttentionPredictor(TINY, "cpu")
    for content in (b"", b"text", os.urandom(3000)):
        file.write_bytes(content)
        with pytest.raises(Refused, match="no state of a training"):
            train_predictor(pairs, 2, start, 2, checkpoint=file)
    file.unlink()
    train_predictor(pairs, 2, start, 2, checkpoint=file)
    with pytest.raises(Refused, match="other pairs or settings"):
        train_predictor(pairs, 2, AttentionPredictor(TINY, "cpu", seed=9), 2, checkpoint=file)
    with pytest.raises(Refused, match="other pairs or settings"):
        train_predictor(pairs[1:], 2, start, 2, checkpoint=file)


KILLED = """
import sys
import torch
from alignment_video.prediction import AttentionPredictor, PredictorConfig, WorldPairs, train_predictor
torch.set_num_threads(1)
tiny = AttentionPredictor(PredictorConfig(side=32, channels=(8, 8, 8), dilations=(1,), grid=3), "cpu")
pairs = [WorldPairs(20, size=((57, 32), (32, 32))[i % 2])[i] for i in range(20)]
done = train_predictor(pairs, 60, tiny, 3, checkpoint=sys.argv[1], checkpoint_every=1)
done.predictor.save_pretrained(sys.argv[2])
"""


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    state, place = tmp_path / "run.pt", tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(state), str(place)]
    process = subprocess.Popen(command)
    while process.poll() is None and not state.exists():
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists() and not place.exists()  # it was killed on the way
    assert subprocess.run(command).returncode == 0
    pairs_ = [WorldPairs(20, size=((57, 32), (32, 32))[i % 2])[i] for i in range(20)]
    straight = train_predictor(pairs_, 60, AttentionPredictor(TINY, "cpu"), 3).predictor
    expected = straight.save_pretrained(tmp_path / "straight")
    assert (place / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


# over time


@quick
@given(st.lists(maps, min_size=1, max_size=6), st.floats(0, 3), st.floats(0, 1))
def test_smoothing_keeps_every_mass(sequence, seconds, across):
    for made in (
        smooth_over_time(sequence, np.arange(len(sequence)), seconds, [i // 2 for i in range(len(sequence))], across),
        smooth_over_scenes(sequence, across),
    ):
        for one, before in zip(made, sequence, strict=True):
            assert one.sum() == pytest.approx(before.sum(), rel=1e-4, abs=1e-6) and one.min() >= -1e-6


@quick
@given(maps, st.integers(1, 6), st.floats(0, 3))
def test_a_constant_sequence_stays_to_the_bit(values, count, seconds):
    values = values.astype(np.float32)
    assert all(np.array_equal(m, values) for m in smooth_over_time([values] * count, range(count), seconds))
    assert all(np.array_equal(m, values) for m in smooth_over_scenes([values] * count, 0.7))


def test_smoothed_alignment_is_the_weighted_mean_of_the_neighbours():
    rng = np.random.default_rng(0)
    three, mask = rng.random((3, 8, 9)), rng.random((8, 9)) < 0.3
    shares = [values[mask].sum() / values.sum() for values in three]
    made = smooth_over_time(three, [0, 0.1, 0.2], 0.1)[1]
    w = np.exp(-0.5)
    assert made[mask].sum() / made.sum() == pytest.approx(
        (w * shares[0] + shares[1] + w * shares[2]) / (1 + 2 * w), rel=1e-5
    )


def test_no_smoothing_is_no_change_and_cuts_are_never_crossed():
    rng = np.random.default_rng(1)
    sequence = list(rng.random((6, 4, 5)).astype(np.float32))
    assert all(np.array_equal(a, b) for a, b in zip(smooth_over_time(sequence, range(6), 0), sequence, strict=True))
    labels = [1, 1, 1, 2, 2, 2]
    whole = smooth_over_time(sequence, range(6), 5.0, labels)
    parts = smooth_over_time(sequence[:3], range(3), 5.0) + smooth_over_time(sequence[3:], range(3, 6), 5.0)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert flicker(whole, labels) < flicker(sequence, labels)


@pytest.mark.parametrize(
    "options",
    [
        {"times": [0]},
        {"times": [1, 0]},
        {"times": [0, np.nan]},
        {"seconds": -1},
        {"seconds": np.inf},
        {"seconds": np.nan},
        {"across": 2},
        {"scenes": [1]},
    ],
)
def test_smoothing_that_makes_no_sense(options):
    with pytest.raises(Refused):
        smooth_over_time([np.eye(3), np.eye(3)], **{"times": [0, 1], **options})


def a_study(root: Path, scenes: dict[tuple[str, int], np.ndarray]) -> Study:
    study = Study(root)
    for (video_id, number), values in scenes.items():
        write_map(study.heatmap(video_id, number, ".png"), values)
        place = study.scene_picture(video_id, number)
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), np.full((*values.shape, 3), 90, np.uint8))
    write_table(study.valid_scenes, pd.DataFrame(list(scenes), columns=["video_id", "scene_number"]))
    return study


def test_heatmaps_of_a_study_lend_to_neighbours_only(tmp_path):
    left, right = np.zeros((2, 20, 30), np.float32)
    left[:, :5], right[:, 25:] = 1, 1
    names = [("7228023352396971801", 1), ("7228023352396971801", 2), ("7228023352396971801", 4), ("b", 5)]
    study = a_study(tmp_path / "study", dict(zip(names, (left, right, left, right), strict=True)))
    table = smooth_heatmaps(study, tmp_path / "out", weight=0.25)
    assert list(zip(table.video_id, table.scene_number, strict=True)) == names
    assert table.moved.tolist() == pytest.approx([0.2, 0.2, 0, 0], abs=1e-3)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4
    assert len(training_pairs(study, {"b"})) == 1 and training_pairs(study)[0][0].shape == (20, 30, 3)


def test_heatmaps_that_cannot_be_smoothed_together(tmp_path):
    study = a_study(tmp_path, {("a", 1): np.eye(4), ("a", 2): np.ones((4, 5))})
    with pytest.raises(Refused, match="video a, scenes 1 to 2: maps of shapes"):
        smooth_heatmaps(study, tmp_path / "out")
    study.heatmap("a", 2, ".png").unlink()
    with pytest.raises((Refused, FileNotFoundError), match="a-Scene-002-01"):
        smooth_heatmaps(study, tmp_path / "out")
    with pytest.raises((Refused, FileNotFoundError), match="a-Scene-002-01"):
        training_pairs(study)[1]


def test_negative_attention_is_not_smoothed():
    with pytest.raises(Refused, match="below 0"):
        smooth_over_scenes([np.eye(2), -np.eye(2)])


def test_empty_sequences():
    assert smooth_over_time([], []) == [] and smooth_over_scenes([]) == [] and flicker([]) == 0
    with pytest.raises(Refused):
        smooth_over_scenes([np.eye(2)], 1.5)
