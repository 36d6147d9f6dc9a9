"""What the page about attention cannot hold: any circles, bad pictures and tables, killed runs, another model."""

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

from alignment_video.attention import (
    COLUMNS,
    LABELS,
    ContrastScorer,
    Geometry,
    MapScorer,
    Patches,
    alignment,
    answer_probabilities,
    answer_tokens,
    attention_map,
    average_patches,
    export_patches,
    finish,
    geometry_of,
    import_scores,
    make_attention,
    make_scorer,
    mean_alignment,
    patch_means,
    patch_pictures,
    patch_table,
    rating_of,
    read_attention_table,
)
from alignment_video.core import Refused, Study
from alignment_video.pictures import read_map, write_map
from alignment_video.video import save_picture
from alignment_video.world import still

COARSE = Geometry(45, (7, 14), name="coarse")
ID = "7280233523969718001"


def picture(seed: int = 0, high: int = 96, wide: int = 54) -> np.ndarray:
    """A smooth ground with a disc on it."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(60, 120, (5, 3, 3), np.uint8), (wide, high), interpolation=cv2.INTER_CUBIC)
    centre = (int(wide * rng.uniform(0.3, 0.7)), int(high * rng.uniform(0.3, 0.7)))
    return cv2.circle(image, centre, wide // 6, rng.integers(150, 255, 3).tolist(), -1, cv2.LINE_AA)


def with_scenes(root: Path, scenes: int = 3, **size: int) -> Study:
    study = Study(root)
    for number in range(1, scenes + 1):
        path = study.scene_picture(ID, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(number, **size))
    return study


# patches and averages


def discs(patches: Patches) -> np.ndarray:
    y, x = np.ogrid[: patches.size[0], : patches.size[1]]
    return np.array(
        [(x - cx) ** 2 + (y - cy) ** 2 <= r * r for cx, cy, r in zip(patches.x, patches.y, patches.radius, strict=True)]
    )


@st.composite
def circles(draw: st.DrawFn) -> tuple[Patches, np.ndarray]:
    high, wide, count = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, y, radius = rng.integers(0, wide, count), rng.integers(0, high, count), rng.integers(1, 50, count)
    return Patches((high, wide), x, y, radius, np.zeros(count)), rng.uniform(0, 6, count)


@given(circles())
@settings(max_examples=60, deadline=None)
def test_any_circles_average_as_a_loop_would(drawn: tuple[Patches, np.ndarray]) -> None:
    patches, scores = drawn
    inside = discs(patches)
    count, total = inside.sum(0), np.tensordot(scores, inside, 1)
    mean = average_patches(patches, scores)
    assert np.abs(mean - total / np.maximum(count, 1))[count > 0].max() < 1e-9
    assert scores.min() - 1e-9 <= mean.min() and mean.max() <= scores.max() + 1e-9  # uncovered pixels as well
    values = np.random.default_rng(0).random(patches.size)
    wanted = np.array([values[disc].mean() for disc in inside])
    assert np.abs(patch_means(patches, values) - wanted).max() < 1e-9
    corners = [(np.argwhere(d).min(0)[::-1].tolist() + np.argwhere(d).max(0)[::-1].tolist()) for d in inside]
    assert (patches.bounds[:, 0] <= np.array(corners)[:, 0]).all()


def test_a_pixel_that_no_patch_contains_is_as_its_nearest() -> None:
    patches = Patches((5, 9), np.array([1, 7]), np.array([2, 2]), np.array([1, 1]), np.zeros(2))
    mean = average_patches(patches, [2.0, 5.0])
    assert (mean[:, :3] == 2).all() and (mean[:, 6:] == 5).all()


@pytest.mark.parametrize("size", [(1024, 576), (910, 512), (480, 270), (360, 640)])
@pytest.mark.parametrize("name", ["authors", "phone"])
def test_the_grid_covers_every_size(name: str, size: tuple[int, int]) -> None:
    geometry = geometry_of(name)
    patches = geometry.patches(size)
    for degree in geometry.degrees:
        mine = patches.degree == degree
        radius, step = geometry.radius(degree, size[1]), geometry.step(degree, size[1])
        assert mine.sum() == len(range(0, size[0], step)) * len(range(0, size[1], step))
        assert set(patches.radius[mine]) == {radius}
        assert abs(2 * radius / size[1] * geometry.field_of_view - degree) < 2 * geometry.field_of_view / size[1]


def test_the_authors_geometry_to_the_pixel() -> None:
    patches = geometry_of("authors").patches((1024, 576))
    table = patch_table("a", patches)
    assert tuple(table.columns) == COLUMNS and len(table) == 2074 + 405
    last = table.iloc[-1]
    assert (last.filename, last.center_x, last.center_y, last.radius) == ("patch_2478_deg_7.png", 546, 1014, 44)
    assert (last.bbox_x_min, last.bbox_y_min, last.bbox_x_max, last.bbox_y_max) == (502, 970, 575, 1023)


def test_half_the_size_gives_half_the_map() -> None:
    large = picture(3, 480, 270)
    small = cv2.resize(large, (135, 240), interpolation=cv2.INTER_AREA)
    one, two = (attention_map(image, ContrastScorer()).map for image in (large, small))
    assert np.corrcoef(cv2.resize(one, (135, 240), interpolation=cv2.INTER_AREA).ravel(), two.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("wrong", [{"degrees": (0,)}, {"degrees": (200,)}, {"field_of_view": 0}, {"overlap": 1}])
def test_impossible_geometries_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(Refused, match="geometry own"):
        Geometry(**{"field_of_view": 45.0} | wrong)


@pytest.mark.parametrize("size", [(1, 1), (400, 20), (3, 8)])
def test_too_small_a_picture_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(Refused, match="has no pixel"):
        attention_map(np.zeros((*size, 3), np.uint8), ContrastScorer())


@pytest.mark.parametrize("high, wide", [(3000, 40), (31, 1500), (64, 64)])
def test_odd_shapes_work(high: int, wide: int) -> None:
    made = attention_map(picture(1, high, wide), ContrastScorer(), Geometry(45, (7, 14)))
    assert made.map.shape == (high, wide) and np.isfinite(made.map).all() and made.map.max() == 1


# finishing


@given(st.floats(0.5, 4), st.floats(0, 12), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_finished_maps_are_in_the_unit_interval_and_can_be_undone(gamma: float, sigma: float, seed: int) -> None:
    raw = np.random.default_rng(seed).uniform(1, 6, (30, 20))
    made = finish(raw, sigma, gamma)
    assert made.map.min() == 0 and made.map.max() == 1 and not made.constant
    undone = (made.map.astype(float) * (made.peak - made.floor) + made.floor) ** (1 / gamma)
    assert raw.min() - 1e-4 <= undone.min() and undone.max() <= raw.max() + 1e-4


@pytest.mark.parametrize("value", [0.0, 1.0, 3.7, 1e-12, 1e6])
def test_constant_maps_are_zeros(value: float) -> None:
    made = finish(np.full((50, 40), value))
    assert made.constant and made.map.max() == 0 and np.isfinite(made.peak)


@pytest.mark.parametrize("level", [0, 7, 128, 255])
def test_even_pictures_are_constant(level: int) -> None:
    assert attention_map(np.full((160, 90, 3), level, np.uint8), ContrastScorer()).constant


@pytest.mark.parametrize(
    "raw, options, line",
    [
        (np.full((3, 3), np.inf), {}, "no number"),
        (np.zeros((0, 3)), {}, "no value"),
        (np.zeros(3), {}, "shape"),
        (np.full((3, 3), -1.0), {}, "below 0"),
        (np.ones((3, 3)), {"gamma": 0.0}, "gamma"),
        (np.ones((3, 3)), {"gamma": np.nan}, "gamma"),
        (np.ones((3, 3)), {"sigma": -1.0}, "sigma"),
        (np.eye(3) * 1e200, {"gamma": 3.0}, "too large"),
    ],
)
def test_impossible_maps_are_refused(raw: np.ndarray, options: dict[str, float], line: str) -> None:
    with pytest.raises(Refused, match=line):
        finish(raw, **options)


# alignment


@given(st.integers(0, 10_000), st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_alignment_is_a_share_whatever_the_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, m = rng.random((6, 5)), rng.random((6, 5)) < 0.4
    assert alignment(a, m) + alignment(a, ~m) == pytest.approx(1)
    assert alignment(scale * a, m) == pytest.approx(alignment(a, m))
    assert mean_alignment(scale * a, m) == pytest.approx(scale * mean_alignment(a, m))


def test_no_attention_has_no_alignment() -> None:
    assert np.isnan(alignment(np.zeros((2, 2)), np.ones((2, 2))))


@pytest.mark.parametrize(
    "a, m",
    [
        (np.ones((2, 2)), np.ones((2, 3))),
        (np.ones(4), np.ones(4)),
        (-np.ones((2, 2)), np.ones((2, 2))),
        (np.full((2, 2), np.nan), np.ones((2, 2))),
        (np.ones((2, 2)), np.full((2, 2), 255)),
        (np.ones((2, 2)), np.full((2, 2), np.nan)),
        (np.ones((0, 0)), np.ones((0, 0))),
    ],
)
def test_what_is_no_map_or_mask_has_no_alignment(a: np.ndarray, m: np.ndarray) -> None:
    for measure in (alignment, mean_alignment):
        with pytest.raises(Refused):
            measure(a, m)


# scores from tables


def scored(study: Study) -> pd.DataFrame:
    """The exported table, with a score that depends on the patch's place."""
    table = pd.read_csv(study.patch_table, dtype={"scene": str})
    table["mean_score"] = 1 + (table.center_x * 7 + table.center_y * 3) % 6
    return table


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = with_scenes(tmp_path / "study", 2)
    export_patches(made, geometry=COARSE, pictures=False)
    return made


@pytest.mark.parametrize(
    "form",
    [
        {"index": False},
        {"index": False, "sep": ";", "encoding": "utf-8-sig"},
        {"index": False, "sep": ";", "decimal": ","},
        {"index": False, "sep": "\t", "encoding": "utf-16"},
    ],
)
@pytest.mark.parametrize("key", ["names", "places", "folders"])
def test_scores_come_back_however_they_are_written(study: Study, tmp_path: Path, form: dict, key: str) -> None:
    table = scored(study).assign(mean_score=lambda t: t.mean_score + 0.25)
    given = table.sample(frac=1, random_state=1)
    if key == "names":
        given = given[["scene", "filename", "mean_score"]]
    elif key == "places":
        given = given[["scene", "center_x", "center_y", "radius", "mean_score"]]
    else:
        given = given.assign(filename="patches/" + given.scene + "/" + given.filename)[["filename", "mean_score"]]
    given.to_csv(tmp_path / "scores.csv", **form)
    back = import_scores(study, tmp_path / "scores.csv")
    assert back.missing == {}
    pd.testing.assert_frame_equal(back.table, table, check_dtype=False)


def test_words_are_ratings(study: Study, tmp_path: Path) -> None:
    table = scored(study)
    words = table.assign(likert_label_predicted=[LABELS[s - 1].title() + "." for s in table.mean_score], mean_score="")
    words.to_csv(tmp_path / "words.csv", index=False)
    assert import_scores(study, tmp_path / "words.csv").table.mean_score.tolist() == table.mean_score.tolist()


@pytest.mark.parametrize("word", ["", "medium", "neutral", "7", "0", "3.5", "high or low", "nan", "very", "somewhat"])
def test_other_words_are_not_taken_for_the_middle(word: str) -> None:
    with pytest.raises(Refused, match="none of very low"):
        rating_of(word)


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda t: t.assign(mean_score=[-1, *[2] * (len(t) - 1)]), "row 2, mean_score"),
        (lambda t: t.assign(mean_score=[*[2] * (len(t) - 1), "inf"]), "mean_score: 'inf'"),
        (lambda t: t.assign(mean_score=["2,x", *[2] * (len(t) - 1)]), "row 2, mean_score"),
        (lambda t: t.assign(mean_score=""), "no score in a column"),
        (lambda t: pd.concat([t, t.tail(1)]), "is scored twice"),
        (lambda t: t[t.scene == t.scene[0]].assign(scene="elsewhere-Scene-001-01"), "row 2: patch elsewhere"),
        (lambda t: t.drop(columns="scene"), "a row without scene"),
        (lambda t: t[["scene", "mean_score"]], "is known by"),
        (lambda t: t.assign(center_x=t.center_x + 1), "row 2: center_x"),
        (lambda t: t.assign(likert_label_predicted=["meh", *["low"] * (len(t) - 1)]), "row 2.*'meh'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(study: Study, tmp_path: Path, change, line: str) -> None:
    change(scored(study).astype({"mean_score": object})).to_csv(tmp_path / "scores.csv", index=False)
    with pytest.raises(Refused, match=line):
        import_scores(study, tmp_path / "scores.csv")


def test_missing_patches_cost_their_own_scene_only(study: Study, tmp_path: Path) -> None:
    table = scored(study)
    table.drop(index=[0, 5]).to_csv(tmp_path / "scores.csv", index=False)
    back = import_scores(study, tmp_path / "scores.csv")
    assert back.missing == {f"{ID}-Scene-001-01": 2}
    made = make_attention(study, back)
    assert made.reason.tolist() == ["scores_unusable", ""]
    assert "2 of" in made.detail[0] and "patch_0_deg_7.png" in made.detail[0]


def test_a_table_made_elsewhere_brings_its_own_patches(study: Study, tmp_path: Path) -> None:
    scored(study).to_csv(tmp_path / "scores.csv", index=False)
    with_table = attention_map(picture(1), import_scores(study, tmp_path / "scores.csv"), scene=f"{ID}-Scene-001-01")
    study.patch_table.unlink()
    without = import_scores(study, tmp_path / "scores.csv")
    assert (attention_map(picture(1), without, scene=f"{ID}-Scene-001-01").map == with_table.map).all()
    with pytest.raises(Refused, match=r"another size|outside"):
        attention_map(picture(1, 60, 40), without, scene=f"{ID}-Scene-001-01")
    with pytest.raises(Refused, match="no patch of it"):
        attention_map(picture(1), without, scene="x-Scene-001-01")
    names = without.table[["scene", "filename", "mean_score"]]
    names.to_csv(tmp_path / "names.csv", index=False)
    with pytest.raises(Refused, match="no exported table"):
        import_scores(study, tmp_path / "names.csv")


def test_patches_are_round_and_complete(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 1)
    for _ in range(2):  # the second time over the first
        export_patches(study, geometry=COARSE)
    patches = COARSE.patches((96, 54))
    folder = study.patches / f"{ID}-Scene-001-01"
    assert sorted(path.name for path in folder.iterdir()) == sorted(patches.filenames)
    whole = cv2.imread(str(study.scene_picture(ID, 1)))[..., ::-1]
    for i, part in enumerate(patch_pictures(whole, patches)):
        assert (cv2.imread(str(folder / patches.filenames[i]))[..., ::-1] == part).all()
        left, top, right, bottom = patches.bounds[i]
        disc = discs(patches)[i, top : bottom + 1, left : right + 1] if i % 40 == 0 else None
        if disc is not None:
            assert (part[~disc] == 0).all()
            assert (part[disc] == whole[top : bottom + 1, left : right + 1][disc]).all()
    assert not [path for path in study.patches.iterdir() if path.name.startswith(".")]


# a study


def spoil(study: Study, kind: str) -> None:
    """Make the second scene's picture a bad one."""
    path = study.scene_picture(ID, 2)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "text":
        path.write_text("Dear diary")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "one pixel":
        cv2.imwrite(str(path), np.zeros((1, 1, 3), np.uint8))
    else:
        study.scene_table.parent.mkdir(parents=True, exist_ok=True)
        study.scene_table.write_text(f"video_id,scene_number\n{ID},1\n{ID},2\n{ID},3\n")
        path.unlink()


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("truncated", "picture_unreadable"),
        ("text", "picture_unreadable"),
        ("empty", "picture_unreadable"),
        ("one pixel", "picture_too_small"),
        ("missing", "picture_missing"),
    ],
)
def test_a_bad_picture_costs_one_row(tmp_path: Path, kind: str, reason: str) -> None:
    study = with_scenes(tmp_path, 3)
    make_attention(study, geometry=COARSE)
    spoil(study, kind)
    made = make_attention(study, geometry=COARSE)
    assert made.reason.tolist() == ["", reason, ""]
    assert "\n" not in made.detail[1] and made.detail[1]
    assert [study.heatmap(ID, n, ".png").exists() for n in (1, 2, 3)] == [True, False, True]  # no map of a lost picture
    cv2.imwrite(str(study.scene_picture(ID, 2)), picture(2))
    assert make_attention(study, geometry=COARSE).reason.tolist() == ["", "", ""]


def test_only_what_changed_is_made_again(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 3)
    make_attention(study, geometry=COARSE)

    def changed(**options: object) -> list[int]:
        before = {n: study.heatmap(ID, n, ".png").stat().st_ino for n in (1, 2, 3)}
        make_attention(study, **{"geometry": COARSE, **options})
        return [n for n in before if study.heatmap(ID, n, ".png").stat().st_ino != before[n]]

    assert changed() == []
    assert changed(force=True) == [1, 2, 3]
    assert changed(gamma=2.0) == [1, 2, 3]
    assert changed(gamma=2.0) == []
    assert changed(gamma=2.0, sigma=0.1 + 0.2) == [1, 2, 3]
    assert changed(gamma=2.0, sigma=0.1 + 0.2) == []
    assert changed(scorer=ContrastScorer(0.2)) == [1, 2, 3]
    cv2.imwrite(str(study.scene_picture(ID, 2)), picture(9))
    assert changed(scorer=ContrastScorer(0.2)) == [2]
    study.heatmap(ID, 3, ".png").unlink()
    make_attention(study, ContrastScorer(0.2), COARSE)
    assert study.heatmap(ID, 3, ".png").exists()


def test_the_table_and_the_files_say_the_same(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 2)
    made = make_attention(study, geometry=COARSE)
    pd.testing.assert_frame_equal(read_attention_table(study), made)
    assert made.video_id.tolist() == [ID, ID] and made.scene_number.tolist() == [1, 2]
    for row in made.itertuples():
        stored = read_map(study.heatmap(ID, row.scene_number, ".png"))
        assert stored.mean() == pytest.approx(row.mean, abs=1e-4) and stored.max() == pytest.approx(row.max, abs=1e-4)
        assert row.peak > row.floor >= 1 and not row.constant
    study.attention_table.write_text("not,a\ntable,\n")
    with pytest.raises(Refused, match="not a table of attention"):
        make_attention(study, geometry=COARSE)


def test_maps_of_others_are_kept(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 2)
    theirs = study.heatmap(ID, 1, ".png")
    theirs.parent.mkdir(parents=True)
    write_map(theirs, np.eye(8, dtype=np.float32))
    before = theirs.read_bytes()
    for _ in range(2):
        assert make_attention(study, geometry=COARSE).reason.tolist() == ["own_heatmap", ""]
        assert theirs.read_bytes() == before
    assert make_attention(study, geometry=COARSE, force=True).reason.tolist() == ["", ""]
    assert theirs.read_bytes() != before


@pytest.mark.parametrize("kind", ["truncated", "one pixel", "missing"])
def test_a_map_put_beside_an_unusable_picture_is_kept(tmp_path: Path, kind: str) -> None:
    study = with_scenes(tmp_path, 3)
    spoil(study, kind)
    reason = make_attention(study, geometry=COARSE).reason[1]
    assert reason.startswith("picture_")
    theirs = study.heatmap(ID, 2, ".png")
    theirs.parent.mkdir(parents=True, exist_ok=True)
    write_map(theirs, np.eye(8, dtype=np.float32))
    before = theirs.read_bytes()
    for force, wanted in [(False, "own_heatmap"), (False, "own_heatmap"), (True, reason), (False, "own_heatmap")]:
        assert make_attention(study, geometry=COARSE, force=force).reason.tolist() == ["", wanted, ""]
        assert theirs.read_bytes() == before


def test_force_without_a_row_keeps_a_map_that_it_cannot_replace(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 2)
    spoil(study, "text")
    theirs = study.heatmap(ID, 2, ".png")
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"mine")
    assert make_attention(study, geometry=COARSE, force=True).reason.tolist() == ["", "picture_unreadable"]
    assert theirs.read_bytes() == b"mine"


def test_a_jpg_of_others_is_kept_and_goes_first(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 2)
    theirs, made = study.heatmap(ID, 1, ".jpg"), study.heatmap(ID, 1, ".png")
    theirs.parent.mkdir(parents=True)
    cv2.imwrite(str(theirs), np.full((8, 8), 99, np.uint8))
    before = theirs.read_bytes()
    for _ in range(2):
        assert make_attention(study, geometry=COARSE).reason.tolist() == ["own_heatmap", ""]
        assert not made.exists() and study.found_heatmap(ID, 1) == theirs
    assert make_attention(study, geometry=COARSE, force=True).reason.tolist() == ["", ""]
    assert study.found_heatmap(ID, 1) == made and theirs.read_bytes() == before
    assert make_attention(study, geometry=COARSE, gamma=2.0).reason.tolist() == ["", ""]  # the PNG is ours
    made.unlink()
    assert make_attention(study, geometry=COARSE).reason.tolist() == ["own_heatmap", ""]
    assert theirs.read_bytes() == before and not made.exists()


def test_a_map_of_ours_is_ours_though_the_run_was_killed_after_a_bad_picture(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 2)
    spoil(study, "text")
    make_attention(study, geometry=COARSE)
    cv2.imwrite(str(study.scene_picture(ID, 2)), picture(2))
    seen = list[str]()
    make_attention(study, geometry=COARSE, progress=lambda *_: seen.append(read_attention_table(study).reason[1]))
    assert seen[0] == "unfinished"


def test_folders_that_are_no_video_are_passed_over(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 1)
    (study.scenes / "my video").mkdir()
    cv2.imwrite(str(study.scenes / "my video" / "my video-Scene-001-01.jpg"), picture(1))
    (study.scenes / ID / f"{ID}-Scene-000-01.jpg").write_text("")
    (study.scenes / "notes.txt").write_text("")
    assert len(make_attention(study, geometry=COARSE)) == 1
    study.scene_table.write_text("video_id,scene_number\n,one\n")
    with pytest.raises(Refused, match="is no scene table"):
        make_attention(study, geometry=COARSE)


RUN = """
import sys, time
from alignment_video.attention import ContrastScorer, Geometry, make_attention
from alignment_video.core import Study
def said(done, of):
    print(done, flush=True)
    time.sleep(0.02)
make_attention(Study(sys.argv[1]), geometry=Geometry(45, (7, 14), name="coarse"), progress=said)
"""


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 40)
    run = subprocess.Popen([sys.executable, "-c", RUN, str(study.root)], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    for line in run.stdout:
        if int(line) == 5:
            os.kill(run.pid, signal.SIGKILL)
            break
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 5
    while not study.attention_table.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "unfinished" in set(read_attention_table(study).reason)
    for path in study.attention.rglob("*-01.png"):
        assert read_map(path).max() == pytest.approx(1, abs=1e-3)  # whole files only
    made = make_attention(study, geometry=COARSE)
    assert set(made.reason) == {""} and len(made) == 40


# other scorers


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    study = with_scenes(tmp_path, 2)
    model = MapScorer("slope", lambda image: np.tile(np.arange(image.shape[1]), (image.shape[0], 1)), "v1")
    made = make_attention(study, model, gamma=1.0)
    assert made.scorer.tolist() == ["slope"] * 2 and made.geometry.tolist() == ["no patches"] * 2
    assert np.diff(read_map(study.heatmap(ID, 1, ".png")).mean(0)).min() >= 0
    broken = MapScorer("broken", lambda image: np.full(image.shape[:2], np.nan))
    assert make_attention(study, broken).reason.tolist() == ["scorer_failed"] * 2
    for name in ("gaze", "Contrast"):
        with pytest.raises(Refused, match="none of contrast, vlm, csv"):
            make_scorer(name)
    with pytest.raises(Refused, match="give the table of scores"):
        make_scorer("csv", study)


class Letters:
    """A tokenizer of single letters that starts each text with a token, and ends it with one."""

    eos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        letters = [2 + ord(letter) % 60 for letter in text]
        return {"input_ids": [0, *letters] if add_special_tokens else letters}


def test_answers_are_told_apart_or_refused() -> None:
    found = answer_tokens(Letters(), "How high?", LABELS)
    assert len({*found}) == 6 and found[1] == tuple(Letters()(" low", False)["input_ids"])
    with pytest.raises(Refused, match="not told apart"):
        answer_tokens(Letters(), "How high?", ("low", "low"))


def test_models_without_memory_give_the_same_probabilities() -> None:
    """A 'language model' whose next token depends on all before it, once with a memory that can be shortened."""
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    weights = torch.randn(11, 11, generator=torch.Generator().manual_seed(0))

    class Memory:
        def __init__(self, ids):
            self.ids = ids

        def crop(self, count: int) -> None:
            self.ids = self.ids[:, :count]

    def model(input_ids, attention_mask, past_key_values=None, use_cache=False, remember=True):
        if past_key_values is not None:
            past_key_values.ids = input_ids = torch.cat([past_key_values.ids, input_ids], 1)
        assert attention_mask.shape == input_ids.shape
        counts = torch.nn.functional.one_hot(input_ids, 11).float().cumsum(1)
        memory = (past_key_values or Memory(input_ids)) if use_cache and remember else None
        return SimpleNamespace(logits=counts @ weights, past_key_values=memory)

    inputs = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 5]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    answers = [(7, 8, 9), (7, 8, 10), (9,), (10, 7)]
    with_memory = answer_probabilities(model, inputs, answers)
    without = answer_probabilities(lambda **k: model(**k, remember=False), inputs, answers)
    assert torch.allclose(with_memory, without, atol=1e-6)
    assert torch.allclose(with_memory.sum(1), torch.ones(2))
    ids, logs = inputs["input_ids"][:1], []
    for answer in answers:
        whole = torch.cat([ids, torch.tensor([answer])], 1)
        chances = torch.log_softmax(model(whole, torch.ones_like(whole)).logits[0], -1)
        logs.append(sum(chances[len(ids[0]) - 1 + n, token] for n, token in enumerate(answer)))
    assert torch.allclose(torch.softmax(torch.stack(logs), 0), with_memory[0], atol=1e-5)


def test_a_map_that_was_damaged_later_is_made_again(tmp_path: Path) -> None:
    """A finished study is looked at, not believed: what is no longer a map of its scene's size is made anew."""
    study = Study(tmp_path)
    for number in (1, 2, 3):
        save_picture(study.scene_picture("7123456789", number), still(number, size=(96, 64)).image)
    make_attention(study)
    first, second, third = (study.heatmap("7123456789", number, ".png") for number in (1, 2, 3))
    whole = first.read_bytes()
    first.write_text("text")
    write_map(second, np.full((20, 20), 0.5))
    third.unlink()
    third.mkdir()
    table = make_attention(study)
    assert first.read_bytes() == whole and read_map(second).shape == (96, 64)
    assert table["reason"].tolist() == ["", "", "map_unwritable"] and "move away" in table["detail"][2]
