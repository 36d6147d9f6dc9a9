"""The way from video files to scenes that can be used, walked with the installed program, against what is known."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from alignment_video import outcomes
from alignment_video.controls import SceneDataset
from alignment_video.core import Study, read_log, write_bytes, write_text
from alignment_video.pictures import read_mask, write_mask
from alignment_video.scenes import read_scenes
from alignment_video.tables import read_table, read_text_table
from alignment_video.video import film
from alignment_video.world import Ad, scene_truth, truth_of

PROGRAM = Path(sys.executable).with_name("alignment-video")
SEEDS = (3, 7, 12, 20, 31, 44)


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, which is the one that is expected."""
    done = subprocess.run([str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == (code == 1)
    return done


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[Ad], dict[str, pd.DataFrame]]:
    """Ads filmed into a folder, tables with known dirt, and the four commands."""
    folder = tmp_path_factory.mktemp("way")
    study, ads = Study(folder / "study"), [Ad(seed, size=(320, 180)) for seed in SEEDS]
    for ad in ads:
        film(ad, folder / "ads" / f"{ad.video_id}.mp4")
    scenes = pd.concat([scene_truth(ad) for ad in ads], ignore_index=True)
    truth = outcomes.write_tables(study, scenes)
    words = pd.read_csv(study.keywords, dtype=str)
    words.loc[words["_id"] == ads[-1].video_id, "keyword_list[0]"] = ""
    words.loc[words["_id"] == ads[-2].video_id, "keyword_list[0]"] = "free shipping"
    words = pd.concat([words, pd.DataFrame({"_id": ["7.2280233523969718e+18"], "keyword_list[0]": ["ring"]})])
    words.to_csv(study.keywords, index=False)
    write_text(study.config, "keyword: {model_name: mini}\ndata: {image_size: [128, 128]}\n")
    run("scenes", folder / "ads", "--study", study.root)
    run("masks", "--study", study.root)
    run("attention", "--study", study.root)
    run("validate", "--study", study.root)
    return study, ads, truth


def with_product(study: Study, ad: Ad) -> dict[int, bool]:
    """For each scene that was cut, whether its picture shows the product."""
    known = truth_of(ad)
    rows = read_scenes(study).query("video_id == @ad.video_id")
    return {
        int(number): bool(known.mask(int(frame)).any())
        for number, frame in zip(rows["scene_number"], rows["picture_frame"], strict=True)
    }


def test_scenes_are_those_that_were_drawn(way: tuple[Study, list[Ad], dict[str, pd.DataFrame]]) -> None:
    study, ads, _ = way
    for ad in ads:
        rows = read_scenes(study).query("video_id == @ad.video_id")
        starts = rows["start_frame"].tolist()
        assert len(starts) == len(ad.scenes)
        for cut, start in zip(ad.cuts, starts[1:], strict=True):
            assert abs(start - cut.frame) <= (6 if cut.kind == "dissolve" else 0)
        assert all(study.scene_picture(ad.video_id, int(n)).is_file() for n in rows["scene_number"])


def test_masks_say_where_the_product_is_and_where_it_is_not(
    way: tuple[Study, list[Ad], dict[str, pd.DataFrame]],
) -> None:
    """The miniature is right about nearly every scene (its page has the rates), and covers what was drawn."""
    study, ads, _ = way
    table = read_table(study.mask_table).set_index(["video_id", "scene_number"])
    overlaps, right = [], []
    for ad in ads[:-2]:
        known = truth_of(ad)
        frames = read_scenes(study).query("video_id == @ad.video_id").set_index("scene_number")["picture_frame"]
        for number, there in with_product(study, ad).items():
            right.append(table.loc[(ad.video_id, number), "verdict"] == ("ok" if there else "empty"))
            if there:
                drawn = known.mask(int(frames[number])) > 0
                found = read_mask(study.mask(ad.video_id, number)) > 0
                overlaps.append((drawn & found).sum() / (drawn | found).sum())
    assert sum(right) >= 0.9 * len(right)
    assert sum(overlaps) / len(overlaps) >= 0.75


def expected(study: Study, ads: list[Ad], shown: dict[tuple[str, int], bool]) -> dict[str, int]:
    """The reasons of validation and their counts, from what was written into the tables and what masks show."""
    without_word, hollow_word = (len(ad.scenes) for ad in (ads[-1], ads[-2]))
    known = {"no_keyword": without_word, "invisible_keyword": hollow_word, "id_damaged": 1}
    return known | ({"empty_mask": absent} if (absent := sum(not there for there in shown.values())) else {})


def test_validation_counts_are_what_is_known(way: tuple[Study, list[Ad], dict[str, pd.DataFrame]]) -> None:
    study, ads, _ = way
    rows = read_table(study.mask_table).query("verdict in ('ok', 'empty')")
    hidden = {ad.video_id for ad in ads[-2:]}
    shown = {
        (video_id, number): verdict == "ok"
        for video_id, number, verdict in zip(rows["video_id"], rows["scene_number"], rows["verdict"], strict=True)
        if video_id not in hidden
    }
    excluded, valid = read_text_table(study.excluded_scenes), read_table(study.valid_scenes)
    assert Counter(excluded["reason"]) == expected(study, ads, shown)
    assert set(zip(valid["video_id"], valid["scene_number"], strict=True)) == {key for key, yes in shown.items() if yes}
    assert len(SceneDataset(study, size=(64, 64))) == len(valid)


def test_with_the_true_masks_everything_matches_the_world_exactly(
    way: tuple[Study, list[Ad], dict[str, pd.DataFrame]], tmp_path: Path
) -> None:
    """Masks that a user brings are kept and judged: with the drawn ones, verdicts and counts are the world's."""
    study, ads = Study(tmp_path / "study"), way[1]
    shutil.copytree(way[0].root, study.root)
    shutil.rmtree(study.masks)
    study.mask_table.unlink()
    for ad in ads:
        known = truth_of(ad)
        rows = read_scenes(study).query("video_id == @ad.video_id")
        for number, frame in zip(rows["scene_number"], rows["picture_frame"], strict=True):
            write_mask(study.mask(ad.video_id, int(number)), known.mask(int(frame)))
    run("masks", "--study", study.root)
    run("validate", "--study", study.root)
    shown = {(ad.video_id, n): there for ad in ads[:-2] for n, there in with_product(study, ad).items()}
    assert not all(shown.values()), "the world has scenes without the product"
    table = read_table(study.mask_table).set_index(["video_id", "scene_number"])
    assert all(table.loc[key, "verdict"] == ("ok" if there else "empty") for key, there in shown.items())
    assert Counter(read_text_table(study.excluded_scenes)["reason"]) == expected(study, ads, shown)
    valid = read_table(study.valid_scenes)
    assert set(zip(valid["video_id"], valid["scene_number"], strict=True)) == {key for key, yes in shown.items() if yes}
    truth = pd.concat([scene_truth(ad) for ad in ads], ignore_index=True)
    both = valid.merge(truth, on=["video_id", "scene_number"], suffixes=("", "_true"))
    assert abs(both["coverage"] - both["coverage_true"]).max() < 0.01


def test_measured_alignment_goes_with_the_true_one(way: tuple[Study, list[Ad], dict[str, pd.DataFrame]]) -> None:
    study, ads, _ = way
    truth = pd.concat([scene_truth(ad) for ad in ads], ignore_index=True)
    both = read_table(study.valid_scenes).merge(truth, on=["video_id", "scene_number"], suffixes=("", "_true"))
    assert both["alignment"].corr(both["alignment_true"]) > 0.6


def test_a_second_walk_does_nothing_and_changes_nothing(
    way: tuple[Study, list[Ad], dict[str, pd.DataFrame]],
) -> None:
    study, ads, _ = way

    def files() -> dict[Path, tuple[int, bytes]]:
        kept = [p for p in study.root.rglob("*") if p.is_file() and p not in (study.run_log, study.lock)]
        fixed = [p for p in kept if p.suffix in (".jpg", ".png") and p != study.validation_picture]
        return {p: (p.stat().st_mtime_ns if p in fixed else 0, p.read_bytes()) for p in kept}

    before = files()
    said = run("scenes", study.videos, "--study", study.root).stdout
    assert said.count("unchanged") == len(ads)
    for command in ("masks", "attention", "validate"):
        run(command, "--study", study.root)
    assert files() == before
    assert [entry["event"] for entry in read_log(study.run_log)][-4:] == ["scenes", "masks", "attention", "validate"]


def test_one_bad_file_among_good_ones_is_named(tmp_path: Path) -> None:
    ad = Ad(5, size=(160, 90), seconds=3, scenes=1)
    film(ad, tmp_path / "ads" / f"{ad.video_id}.mp4")
    write_bytes(tmp_path / "ads" / "broken.mp4", b"no film")
    said = run("scenes", tmp_path / "ads", "--study", tmp_path / "study", code=1)
    assert "1 video could not be used" in said.stderr and "broken.mp4" in said.stderr
    assert read_scenes(Study(tmp_path / "study"))["video_id"].tolist() == [ad.video_id]


def test_patches_go_out_and_scores_come_in(tmp_path: Path) -> None:
    ad = Ad(5, size=(160, 90), seconds=3, scenes=1)
    film(ad, tmp_path / f"{ad.video_id}.mp4")
    study, table = Study(tmp_path / "study"), tmp_path / "patches.csv"
    run("scenes", tmp_path / f"{ad.video_id}.mp4", "--study", study.root)
    run("attention", "--study", study.root, "--export-patches", table)
    patches = pd.read_csv(table, dtype=str)
    assert len(patches) > 100 and (patches["mean_score"].isna()).all()
    scored = patches.assign(mean_score=[str(1 + 5 * (i % 7) / 6) for i in range(len(patches))])
    scored.to_csv(tmp_path / "scores.csv", index=False)
    run("attention", "--study", study.root, "--scores", tmp_path / "scores.csv")
    assert Image.open(study.heatmap(ad.video_id, 1, ".png")).size == (90, 160)
    scored.loc[3, "mean_score"] = "rather high"
    scored.to_csv(tmp_path / "scores.csv", index=False)
    said = run("attention", "--study", study.root, "--scores", tmp_path / "scores.csv", "--force", code=1)
    assert "row 5" in said.stderr and "rather high" in said.stderr


def test_migration_tells_then_copies(tmp_path: Path) -> None:
    ad = Ad(5, size=(160, 90), seconds=3, scenes=1)
    for name in ("scene_0.png", "scene_01.png"):
        path = tmp_path / "old" / "data" / "screenshots_tiktok" / ad.video_id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ad.draw(len(name))[0]).save(path)
    study = Study(tmp_path / "study")
    said = run("migrate", tmp_path / "old", "--study", study.root).stdout
    assert "Nothing was written" in said and not study.root.exists()
    run("migrate", tmp_path / "old", "--study", study.root, "--apply")
    assert study.scene_picture(ad.video_id, 1).is_file() and study.scene_picture(ad.video_id, 2).is_file()
    run("migrate", tmp_path / "nowhere", "--study", study.root, code=1)


@pytest.mark.parametrize("command", ["masks", "attention", "validate"])
def test_a_study_that_is_not_there_is_refused(tmp_path: Path, command: str) -> None:
    said = run(command, "--study", tmp_path / "nothing", code=1)
    assert "does not exist" in said.stderr and not (tmp_path / "nothing").exists()
