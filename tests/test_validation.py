"""What the page about validation cannot hold: each bad input by itself, damage by lot, dirty tables, odd folders."""

import functools
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from alignment_video.core import Refused, Study, read_log
from alignment_video.outcomes import bulk_scenes, write_tables
from alignment_video.pictures import write_map, write_mask
from alignment_video.tables import invisible_keyword
from alignment_video.validation import REASONS, Validation, validate
from alignment_video.video import save_picture

SIZE = (48, 27)  # height, width
TABLE = bulk_scenes(4, scenes=(5, 5))
IDS = list(TABLE["video_id"].unique())
KINDS = ("picture", "mask", "heatmap")
Key = tuple[str, int]


def draw(number: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, a mask and an attention map that differ from scene to scene."""
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    disc = (x - 0.2) ** 2 + (y + 0.05 * (number % 7)) ** 2 < 0.2
    image = np.stack([100 + 60 * x, 120 + 40 * y, 90 + 100 * disc], -1) + number % 40
    attention = np.exp(-2 * (x - 0.03 * (number % 10)) ** 2 - 3 * y**2)
    return image.clip(0, 255).astype(np.uint8), disc, attention


def keys(table: pd.DataFrame) -> list[Key]:
    return list(zip(table["video_id"], table["scene_number"], strict=True))


def place(study: Study, kind: str, key: Key) -> Path:
    if kind == "picture":
        return study.scene_picture(*key)
    return study.mask(*key) if kind == "mask" else study.heatmap(*key, ".png")


@functools.cache
def files_of(number: int) -> tuple[bytes, bytes, bytes]:
    """The three files of a scene, as bytes."""
    image, mask, attention = draw(number)
    with tempfile.TemporaryDirectory() as folder:
        one, two, three = (Path(folder) / name for name in ("picture.jpg", "mask.png", "map.png"))
        save_picture(one, image), write_mask(two, mask), write_map(three, attention)
        return one.read_bytes(), two.read_bytes(), three.read_bytes()


def fill(study: Study, table: pd.DataFrame = TABLE) -> None:
    """A picture, a mask and a heatmap for every scene of a table."""
    for number, key in enumerate(keys(table)):
        for path, content in zip((place(study, kind, key) for kind in KINDS), files_of(number % 40), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@pytest.fixture
def plots() -> None:
    """Asks for the real page of plots."""


@pytest.fixture(autouse=True)
def small_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty page of plots, which takes no time, for all tests but those that ask for `plots`."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr("alignment_video.validation.plot_validation", lambda found: Figure((1, 1)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study without a fault; copied by the tests that damage one."""
    study = Study(tmp_path_factory.mktemp("whole") / "study")
    fill(study)
    write_tables(study, TABLE)
    return study


@pytest.fixture
def study(whole: Study, tmp_path: Path) -> Iterator[Study]:
    shutil.copytree(whole.root, tmp_path / "study")
    yield Study(tmp_path / "study")


def check_sum(found: Validation) -> None:
    """Every scene once, every count equal to the rows of the tables."""
    scenes = found.excluded.query("entry == 'scene'")
    everything = keys(found.valid) + keys(scenes)
    assert len(set(everything)) == len(everything) == found.report["known"]["scenes"]
    assert len(found.valid) + len(found.excluded) == sum(found.report["known"].values())
    assert found.report["valid"] == len(found.valid) and found.report["excluded"]["total"] == len(found.excluded)
    assert found.report["reasons"] == dict(Counter(found.excluded["reason"]))
    assert sum(found.report["stages"].values()) == len(found.excluded)
    assert (
        found.excluded["explanation"].str.len().gt(10).all()
        and not found.excluded["explanation"].str.contains("\n").any()
    )


def alone(found: Validation, key: Key, reason: str, table: pd.DataFrame = TABLE) -> None:
    """One scene is left out, for this reason; all others are valid."""
    check_sum(found)
    assert keys(found.excluded) == [key] and found.excluded["reason"].tolist() == [reason], found.excluded.to_string()
    assert keys(found.valid) == sorted({*keys(table)} - {key})


def png_header(path: Path, side: int) -> None:
    """Give a PNG another size without touching its pixels."""
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4) * 2
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change one byte in the middle of a PNG."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def diverging(path: Path) -> None:
    import matplotlib

    colours = matplotlib.colormaps["coolwarm"](draw(3)[2], bytes=True)[..., :3]
    save_picture(path, colours)


DAMAGE: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "picture cut off": ("picture", "corrupt_picture", cut),
    "picture is empty": ("picture", "corrupt_picture", lambda path: path.write_bytes(b"")),
    "picture is text": ("picture", "corrupt_picture", lambda path: path.write_text("404 not found")),
    "picture is gone": ("picture", "missing_picture", Path.unlink),
    "picture of one pixel": ("picture", "odd_size", lambda path: save_picture(path, np.zeros((1, 1, 3), np.uint8))),
    "picture of another shape": ("picture", "odd_size", lambda path: save_picture(path, draw(1, (27, 48))[0])),
    "mask cut off": ("mask", "corrupt_mask", cut),
    "mask is text": ("mask", "corrupt_mask", lambda path: path.write_text("no mask")),
    "mask is absurd": ("mask", "corrupt_mask", lambda path: png_header(path, 20_000)),
    "mask with a flipped byte": ("mask", "corrupt_mask", flip),
    "mask is gone": ("mask", "missing_mask", Path.unlink),
    "mask is a photograph": ("mask", "corrupt_mask", lambda path: save_picture(path, _photograph())),
    "mask is empty": ("mask", "empty_mask", lambda path: write_mask(path, np.zeros(SIZE))),
    "mask is full": ("mask", "whole_frame_mask", lambda path: write_mask(path, np.ones(SIZE))),
    "mask of another shape": ("mask", "odd_size", lambda path: write_mask(path, draw(1, (30, 30))[1])),
    "heatmap cut off": ("heatmap", "corrupt_heatmap", cut),
    "heatmap is text": ("heatmap", "corrupt_heatmap", lambda path: path.write_text("<html>")),
    "heatmap is absurd": ("heatmap", "corrupt_heatmap", lambda path: png_header(path, 20_000)),
    "heatmap with a flipped byte": ("heatmap", "corrupt_heatmap", flip),
    "heatmap is gone": ("heatmap", "missing_heatmap", Path.unlink),
    "heatmap is constant": ("heatmap", "constant_heatmap", lambda path: write_map(path, np.full(SIZE, 0.3))),
    "heatmap is black": ("heatmap", "constant_heatmap", lambda path: write_map(path, np.zeros(SIZE))),
    "heatmap of another shape": ("heatmap", "odd_size", lambda path: write_map(path, draw(1, (20, 30))[2])),
    "heatmap in two colours": ("heatmap", "colour_mapped_heatmap", diverging),
    "heatmap is a photograph": ("heatmap", "colour_mapped_heatmap", lambda path: save_picture(path, _photograph())),
}
FIRST_SEEN = ("corrupt", "missing", "odd_size")  # reasons that need no decoding, unless a byte was flipped


def _photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.mark.usefixtures("plots")
def test_a_study_without_a_fault(study: Study) -> None:
    """All scenes are valid, with the numbers that the arrays give."""
    found = validate(study)
    check_sum(found)
    assert keys(found.valid) == sorted(keys(TABLE)) and found.excluded.empty and found.report["notes"] == []
    row = found.valid.set_index(["video_id", "scene_number"]).loc[keys(TABLE)[7]]
    _, mask, attention = draw(7)
    assert row["alignment"] == pytest.approx((attention * mask).sum() / attention.sum(), abs=2e-5)
    assert row["mean_alignment"] == pytest.approx((attention * mask).mean(), abs=2e-5)
    assert row["coverage"] == pytest.approx(mask.mean(), abs=1e-6)
    for column in ("scene_picture_path", "keyword_mask_path", "attention_heatmap_path"):
        assert (study.root / row[column]).is_file() and "\\" not in row[column]
    assert row["industry"] == TABLE["industry"][7] and row["start_time"] == TABLE["start_time"][7]
    for written, table in ((study.valid_scenes, found.valid), (study.excluded_scenes, found.excluded)):
        stored = pd.read_csv(written, dtype={"video_id": str}, keep_default_na=False)
        assert list(stored) == list(table) and len(stored) == len(table)
    assert json.loads(study.validation_report.read_text()) == found.report
    assert study.validation_picture.read_bytes().startswith(b"\x89PNG")
    assert str(study.root) not in "".join(p.read_text() for p in (study.validation_report, study.excluded_scenes))
    assert read_log(study.run_log)[-1]["event"] == "validate"


@pytest.mark.parametrize("what", DAMAGE)
def test_one_bad_file(study: Study, what: str) -> None:
    """The scene is left out for exactly this reason, and no other one with it."""
    kind, reason, damage = DAMAGE[what]
    key = keys(TABLE)[7]
    damage(place(study, kind, key))
    alone(validate(study), key, reason)
    fast = validate(study, deep=False)
    seen = reason.startswith(FIRST_SEEN) and not what.endswith(("flipped byte", "mask is a photograph"))
    if seen:
        alone(fast, key, reason)
    else:
        assert fast.excluded.empty and fast.valid["coverage"].isna().all()


def hot(path: Path) -> None:
    import matplotlib

    save_picture(path, matplotlib.colormaps["hot"](draw(7)[2], bytes=True)[..., :3])


def palette(path: Path) -> None:
    Image.fromarray((255 * draw(7)[1]).astype(np.uint8)).convert("P").save(path)


def turned(path: Path) -> None:
    """A picture that lies on its side, with the EXIF note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(draw(7)[0])).save(path, exif=exif, quality=95)


GOOD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "EXIF rotation": ("picture", turned),
    "CMYK JPEG": ("picture", lambda path: Image.fromarray(draw(7)[0]).convert("CMYK").save(path)),
    "grey picture": ("picture", lambda path: Image.fromarray(draw(7)[0]).convert("L").save(path)),
    "16-bit mask": ("mask", lambda path: cv2.imwrite(str(path), (65535 * draw(7)[1]).astype(np.uint16))),
    "palette mask": ("mask", palette),
    "one-bit mask": ("mask", lambda path: Image.fromarray(draw(7)[1]).save(path)),
    "mask of twice the size": ("mask", lambda path: write_mask(path, np.kron(draw(7)[1], np.ones((2, 2))))),
    "heatmap in hot": ("heatmap", hot),
    "8-bit heatmap": ("heatmap", lambda path: save_picture(path, (255 * draw(7)[2]).round().astype(np.uint8))),
    "heatmap of a third of the size": ("heatmap", lambda path: write_map(path, draw(7, (16, 9))[2])),
    "heatmap above 1": ("heatmap", lambda path: write_map(path, 1.7 * draw(7)[2])),
}


@pytest.mark.parametrize("what", GOOD)
def test_odd_but_good_files(study: Study, what: str) -> None:
    """Unusual ways to store a picture lose nothing: all scenes are valid, with the same alignment."""
    kind, write = GOOD[what]
    before = validate(study).valid
    write(place(study, kind, keys(TABLE)[7]))
    found = validate(study)
    assert found.excluded.empty, found.excluded.to_string()
    tolerance = 0.03 if "size" in what else 0.01
    assert np.allclose(before["alignment"], found.valid["alignment"], atol=tolerance)


def test_names(study: Study) -> None:
    """A name that does not say which scene it shows is an entry of its own; hidden files are none."""
    video, folder = IDS[0], study.scenes / IDS[0]
    names = ["scene_1.jpg", "scene_01.png", f"{video}-Scene-000-01.jpg", f"{video}-Scene-01-01.jpg", "Thumbs.db"]
    names += [f"{video}-Scene-002-02.jpg", f"{video}-Scene-001-01.webp", f"{IDS[1]}-Scene-001-01.jpg"]
    for name in names:
        (folder / name).write_bytes(b"x")
    (folder / ".hidden.jpg").write_bytes(b"x")
    (study.scenes / ".DS_Store").write_bytes(b"x")
    (study.masks / "readme.txt").write_bytes(b"x")
    damaged = study.attention / "7.2280233523969718e+18"
    damaged.mkdir()
    (damaged / "7.2280233523969718e+18-Scene-001-01.jpg").write_bytes(b"x")
    (folder / f"{video}-Scene-009-01.jpg").mkdir()
    found = validate(study)
    check_sum(found)
    assert keys(found.valid) == sorted(keys(TABLE))
    assert found.report["reasons"] == {"bad_file_name": len(names) + 2, "id_damaged": 1}
    assert found.report["known"]["files"] == len(names) + 3


def test_two_files_of_one_scene(study: Study) -> None:
    """The second file is an entry; a whole file is taken before a broken one, whatever its suffix."""
    one, two = keys(TABLE)[1], keys(TABLE)[2]
    shutil.copy(study.scene_picture(*one), study.scene_picture(*one).with_suffix(".jpeg"))
    save_picture(study.scene_picture(*two).with_suffix(".png"), draw(2)[0])
    cut(study.scene_picture(*two))
    save_picture(study.heatmap(*one, ".jpg"), (255 * draw(1)[2]).astype(np.uint8))
    found = validate(study)
    check_sum(found)
    assert keys(found.valid) == sorted(keys(TABLE))
    assert found.report["reasons"] == {"duplicate_scene": 3} and found.report["known"]["files"] == 3
    rows = found.valid.set_index(["video_id", "scene_number"])
    assert rows.loc[two, "scene_picture_path"].endswith("002-01.png" if two[1] == 2 else f"{two[1]:03d}-01.png")
    assert rows.loc[one, "attention_heatmap_path"].endswith(".png")


def test_the_same_picture_twice(study: Study) -> None:
    """The later scene is left out, unless the earlier one is left out itself; other videos do not count."""
    first, second, third = keys(TABLE)[0], keys(TABLE)[1], keys(TABLE)[5]
    for key in (second, third):
        shutil.copy(study.scene_picture(*first), study.scene_picture(*key))
    assert third[0] != first[0]
    alone(validate(study), second, "duplicate_scene")
    kept = validate(study, keep="duplicate_scene")
    assert kept.excluded.empty and kept.report["kept"] == {"duplicate_scene": 1}
    write_mask(study.mask(*first), np.zeros(SIZE))
    alone(validate(study), first, "empty_mask")


def test_several_faults(study: Study) -> None:
    """The first reason counts, the others stand beside it."""
    key = keys(TABLE)[3]
    for kind in ("picture", "mask"):
        cut(place(study, kind, key))
    place(study, "heatmap", key).unlink()
    found = validate(study)
    alone(found, key, "corrupt_picture")
    assert found.excluded["also"].tolist() == ["corrupt_mask missing_heatmap"]


def rewrite(path: Path, change: Callable[[pd.DataFrame], object]) -> None:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table = result if isinstance(result := change(table), pd.DataFrame) else table
    table.to_csv(path, index=False)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("", "no_keyword"), ("nan", "no_keyword"), ("free shipping", "invisible_keyword"),
        ("../../etc/passwd", "keyword_not_words"), ("<b>ring</b>", "keyword_not_words"),
        ("https://shop.example/ring", "keyword_not_words"), ("C:\\pictures\\ring.jpg", "keyword_not_words"),
    ],
)  # fmt: skip
def test_keywords(study: Study, word: str, reason: str) -> None:
    """All scenes of the video are left out, with the word in the explanation; no other video is."""
    rewrite(study.keywords, lambda table: table.__setitem__("keyword_list[0]", [word, *table["keyword_list[0]"][1:]]))
    found = validate(study)
    check_sum(found)
    assert found.report["reasons"] == {reason: 5} and set(found.excluded["video_id"]) == {IDS[0]}
    assert found.excluded["explanation"].str.contains(repr(word)[1:-1], regex=False).all()
    if REASONS[reason].can_be_kept:
        kept = validate(study, keep=(reason,))
        assert kept.excluded.empty == (reason == "invisible_keyword") or reason == "keyword_not_words"


def test_several_keywords(study: Study) -> None:
    """Usable keywords are joined; an invisible one beside them is passed over."""
    table = pd.DataFrame({"_id": IDS, "keyword_list[0]": ["ring", "ring", "free shipping", "shop now"]})
    table["keyword_list[1]"] = ["box", "shop now", "ring", "free shipping"]
    table.to_csv(study.keywords, index=False)
    found = validate(study)
    check_sum(found)
    words = found.valid.drop_duplicates("video_id").set_index("video_id")["keyword"].to_dict()
    assert words == {IDS[0]: "ring | box", IDS[1]: "ring", IDS[2]: "ring"}
    assert found.report["reasons"] == {"invisible_keyword": 5}


def test_keyword_rows_without_scenes(study: Study) -> None:
    """A video that only the keyword table knows is an entry; rows of no use are entries; both are counted once."""
    more = pd.DataFrame(
        {
            "_id": ["7228023352396971801", "7228023352396971802", "7.2280233523969718e+18", "", IDS[0], "../x"],
            "keyword_list[0]": ["ring", "", "ring", "ring", TABLE["keyword"][0], "ring"],
        }
    )
    rewrite(study.keywords, lambda table: pd.concat([table, more]))
    found = validate(study)
    check_sum(found)
    assert keys(found.valid) == sorted(keys(TABLE))
    counts = {"id_missing": 1, "id_damaged": 1, "id_bad": 1, "duplicate_row": 1, "no_scenes": 2}
    assert found.report["reasons"] == counts
    assert found.excluded.query("video_id == '7228023352396971802'")["also"].tolist() == ["no_keyword"]
    assert found.report["tables"]["data/keywords.csv"]["rows"] == 10


@pytest.mark.parametrize(
    ("cell", "reason"),
    [("1.2", "score_out_of_range"), ("-0.1", "score_out_of_range"), ("NaN", "score_not_number"),
     ("", "score_not_number"), ("high", "score_not_number"), (None, "missing_score")],
)  # fmt: skip
def test_scores(study: Study, cell: str | None, reason: str) -> None:
    """With the scalar source a bad score excludes its scene; with heatmaps it is only counted."""
    key, row = keys(TABLE)[7], 7
    if cell is None:
        rewrite(study.alignment_scores, lambda table: table.drop(index=row))
    else:
        rewrite(
            study.alignment_scores,
            lambda table: table.__setitem__(
                "attention_proportion",
                [*table["attention_proportion"][:row], cell, *table["attention_proportion"][row + 1 :]],
            ),
        )
    alone(validate(study, source="scalar"), key, reason)
    assert validate(study, source="heatmap").excluded.empty
    shutil.rmtree(study.attention)
    found = validate(study)  # auto
    alone(found, key, reason)
    known = TABLE.set_index(["video_id", "scene_number"])["alignment"]
    assert found.valid["alignment"].tolist() == known.loc[keys(found.valid)].tolist()
    assert found.valid["mean_alignment"].isna().all() and found.valid["coverage"].notna().all()
    assert found.report["settings"]["source"] == "scalar"


def test_a_bad_score_costs_a_heatmap_study_nothing(study: Study) -> None:
    """The scene is valid, with the CTR and times of its row, and with the alignment of its pixels."""
    before = validate(study, source="heatmap").valid

    def change(table: pd.DataFrame) -> None:
        table.loc[[3, 7, 9], "attention_proportion"] = ["", "1.2", "NaN"]

    rewrite(study.alignment_scores, change)
    found = validate(study, source="heatmap")
    check_sum(found)
    assert found.valid.equals(before) and found.excluded.empty
    assert found.valid[["ctr", "start_time", "industry", "alignment"]].notna().all(axis=None)
    problems = found.report["tables"]["data/alignment_score.csv"]["problems"]
    assert problems == {"score_not_number": 2, "score_out_of_range": 1}
    rewrite(study.alignment_scores, lambda table: table.assign(attention_proportion="n/a"))  # not one good score
    assert validate(study, source="heatmap").valid.equals(before)
    assert validate(study, source="scalar").report["reasons"] == {"score_not_number": len(TABLE)}


def test_one_and_many_in_the_words(study: Study) -> None:
    (study.masks / IDS[0] / "a.png").write_bytes(b"x")
    assert "; besides, 1 file left out" in str(validate(study))
    (study.masks / IDS[0] / "b.png").write_bytes(b"x")
    assert "; besides, 2 files left out" in str(validate(study))


def test_score_rows(study: Study) -> None:
    """Rows of the score table: an id damaged by a float, a bad number, a repetition, a contradiction, no files."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        bad = table.iloc[[0, 1, 2, 3]].copy()
        bad["video id"] = ["7.2280233523969718e+18", *bad["video id"][1:]]
        bad["Scene Number"] = [*bad["Scene Number"][:1], "two", *bad["Scene Number"][2:]]
        bad.iloc[3, list(bad).index("attention_proportion")] = "0.999"
        other = table.iloc[[5]].assign(**{"video id": "7228023352396971801"})
        return pd.concat([table, bad, other])

    rewrite(study.alignment_scores, change)
    heat = validate(study, source="heatmap")
    check_sum(heat)
    rows = {"id_damaged": 1, "scene_number_bad": 1, "duplicate_row": 1}
    assert heat.report["reasons"] == rows | {"no_files": 1} and keys(heat.valid) == sorted(keys(TABLE))
    scalar = validate(study, source="scalar")
    check_sum(scalar)
    assert scalar.report["reasons"] == rows | {"duplicate_conflict": 1, "no_files": 1}
    assert {*keys(TABLE)} - {*keys(scalar.valid)} == {keys(TABLE)[3]}


@pytest.mark.parametrize("first", [0, 1, "mixed"])
def test_scene_numbers_from_zero_or_one(study: Study, first: int | str) -> None:
    """The score table may count from 0; scores reach the scenes they belong to."""
    write_tables(study, TABLE, first=first)
    found = validate(study, source="scalar")
    assert found.excluded.empty
    known = TABLE.set_index(["video_id", "scene_number"])["alignment"]
    assert found.valid["alignment"].tolist() == known.loc[keys(found.valid)].tolist()


def test_gaps_are_no_fault(study: Study) -> None:
    """A video without its second scene keeps the others, and the report says so."""
    key = keys(TABLE)[1]
    for kind in ("picture", "mask", "heatmap"):
        place(study, kind, key).unlink()
    rewrite(study.alignment_scores, lambda table: table.drop(index=1))
    found = validate(study)
    assert found.excluded.empty and len(found.valid) == len(TABLE) - 1
    assert found.report["notes"] == ["1 video with gaps in the scene numbers, which does no harm"]


def test_tables_as_spreadsheets_write_them(study: Study) -> None:
    """BOM, semicolons, Windows-1252, blanks and doubled columns in the header change nothing."""
    before = validate(study, source="scalar").valid
    table = pd.read_csv(study.alignment_scores, dtype=str)
    table.columns = pd.Index([f" {name} " for name in table.columns])
    table.to_csv(study.alignment_scores, index=False, sep=";", encoding="utf-8-sig")
    words = pd.read_csv(study.keywords, dtype=str)
    words["keyword_list[0]"] = ["café cup", *words["keyword_list[0]"][1:]]
    words.insert(1, "_id ", words["_id"], allow_duplicates=True)
    words.to_csv(study.keywords, index=False, encoding="cp1252")
    found = validate(study, source="scalar")
    assert found.excluded.empty
    assert found.valid.drop(columns="keyword").equals(before.drop(columns="keyword"))
    assert set(found.valid.query("video_id == @IDS[0]")["keyword"]) == {"café cup"}


def test_dirty_tables(tmp_path: Path) -> None:
    """The dirt of the users' tables, whose truth is known row by row, is counted exactly."""
    table = bulk_scenes(40, seed=3, scenes=(3, 4))
    study = Study(tmp_path)
    fill(study, table)
    truth = write_tables(study, table, dirty=True, at_least=2)
    found = validate(study)
    check_sum(found)
    per_video = table.groupby("video_id").size()
    expected: Counter[str] = Counter()
    entries: Counter[str] = Counter()
    repeated = int(truth["alignment_scores"]["duplicate"].sum())
    entries["duplicate_row"] += repeated
    for video_id, rows in truth["keywords"].groupby("video_id"):
        kinds, again = rows["kind"].iloc[0], set(rows["duplicate"]) - {""}
        assert len(rows) == 1 or len(again) == 1
        if again == {"conflict"} and kinds == "empty":  # the other row has a keyword
            entries["no_keyword"] += 1
        elif again == {"conflict"}:
            expected["duplicate_conflict"] += per_video[video_id]
        elif kinds == "empty":
            expected["no_keyword"] += per_video[video_id]
        else:
            entries["duplicate_row"] += len(rows) - 1
            expected["invisible_keyword"] += per_video[video_id] * (kinds == "invisible")
    scenes = Counter(found.excluded.query("entry == 'scene'")["reason"])
    assert scenes == +expected and expected["no_keyword"] > 15 and expected["invisible_keyword"] > 0
    assert Counter(found.excluded.query("entry == 'row'")["reason"]) == +entries
    assert len(found.valid) == len(table) - sum(expected.values())
    assert not any(invisible_keyword(word) for word in found.valid["keyword"])


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.dictionaries(st.sampled_from(keys(TABLE)), st.sampled_from(sorted(DAMAGE)), max_size=12), st.booleans())
def test_damage_by_lot(
    whole: Study, tmp_path_factory: pytest.TempPathFactory, hurt: dict[Key, str], noise: bool
) -> None:
    """Whatever is damaged, the counts are those of the damage, and the rest is valid."""
    study = Study(tmp_path_factory.mktemp("lot") / "study")
    shutil.copytree(whole.root, study.root)
    for key, what in hurt.items():
        kind, _, damage = DAMAGE[what]
        damage(place(study, kind, key))
    if noise:
        (study.masks / IDS[0] / "scene_3.png").write_bytes(b"x")
    found = validate(study)
    check_sum(found)
    scenes = found.excluded.query("entry == 'scene'")
    known = {key: DAMAGE[what][1] for key, what in hurt.items()}
    assert dict(zip(keys(scenes), scenes["reason"], strict=True)) == known
    assert keys(found.valid) == sorted({*keys(TABLE)} - {*hurt})
    assert found.report["known"]["files"] == int(noise)
    shutil.rmtree(study.root)


@pytest.mark.usefixtures("plots")
def test_again_and_elsewhere(study: Study, tmp_path: Path) -> None:
    """Validating twice, and validating a copy in another folder, gives the same bytes."""
    cut(place(study, "mask", keys(TABLE)[4]))

    def outputs(of: Study) -> list[bytes]:
        places = (of.valid_scenes, of.excluded_scenes, of.validation_report, of.validation_picture)
        validate(of)
        return [path.read_bytes() for path in places]

    first = outputs(study)
    assert outputs(study) == first
    shutil.copytree(study.root, tmp_path / "copy")
    assert outputs(Study(tmp_path / "copy")) == first


@pytest.mark.usefixtures("plots")
def test_only_whole_results(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation that dies while it writes leaves the old results as they were, and nothing half written."""
    validate(study)
    before = study.validation_picture.read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        validate(study)
    assert study.validation_picture.read_bytes() == before
    assert not list(study.root.rglob("*.part*"))


@pytest.mark.parametrize(
    ("options", "line"),
    [({"source": "both"}, "is not 'auto'"), ({"keep": ["missing_mask"]}, "damage"), ({"keep": ["ugly"]}, "no reason")],
)
def test_refused(study: Study, options: dict[str, object], line: str) -> None:
    with pytest.raises(Refused, match=line):
        validate(study, **options)  # type: ignore[arg-type]


def test_folders_and_tables_that_are_none(study: Study, tmp_path: Path) -> None:
    """What is no study is refused in one line; a missing part excludes what needs it."""
    with pytest.raises(Refused, match="right folder"):
        validate(tmp_path / "nothing")
    shutil.rmtree(study.masks)
    found = validate(study)
    check_sum(found)
    assert found.report["reasons"] == {"missing_mask": len(TABLE)} and "keyword_masks" in found.report["notes"][0]
    study.masks.write_text("a file where a folder should be")
    with pytest.raises(Refused, match="cannot be listed"):
        validate(study)
    study.masks.unlink()
    shutil.copy(study.scene_picture(*keys(TABLE)[0]), study.keywords)
    with pytest.raises(Refused) as refused:
        validate(study)
    assert "\n" not in str(refused.value)


def test_scene_table(study: Study) -> None:
    """Times come from the table of cut scenes where there is one; a damaged one is refused."""
    table = TABLE[["video_id", "scene_number", "start_time", "end_time"]].assign(start_time=0.25)
    table.to_csv(study.scene_table, index=False)
    found = validate(study)
    assert set(found.valid["start_time"]) == {0.25} and found.report["sources"]["start_time"] == "data/scenes.csv"
    assert found.report["sources"]["contrast"] == "data/alignment_score.csv"
    pd.concat([table, table.iloc[:1]]).to_csv(study.scene_table, index=False)
    with pytest.raises(Refused, match="a scene twice"):
        validate(study)


def test_many_videos_without_files(tmp_path: Path) -> None:
    """Tables of a whole corpus beside the files of nothing: one entry a scene, no file is asked for."""
    study, table = Study(tmp_path), bulk_scenes(1000, scenes=(3, 3))
    write_tables(study, table)
    found = validate(study, deep=False)
    check_sum(found)
    assert found.report["reasons"] == {"no_files": len(table)} and found.valid.empty
