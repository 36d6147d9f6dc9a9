"""What the page about tables cannot hold: every way of writing a table, random dirt, workbooks, a real table."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_video.core import Refused, Study
from alignment_video.outcomes import INVISIBLE, alignment_table, bulk_scenes, keyword_table, write_tables
from alignment_video.tables import (
    invisible_keyword,
    read_alignment,
    read_keywords,
    read_table,
    read_text_table,
    write_table,
)

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "keywords_half.csv"
ONE, TWO, THREE = "7228023352396971801", "6795171976400027653", "6813254764520914949"


def put(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def reasons(found: pd.DataFrame) -> dict[int, str]:
    return dict(zip(found["row"].tolist(), found["reason"], strict=True))


# files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_every_way_of_writing_a_table(tmp_path: Path, encoding: str, separator: str, line: str) -> None:
    rows = [["_id", "keyword_list[0]"], [ONE, "café à emporter"], [TWO, f'"a{separator}b"'], [THREE, ""]]
    text = line.join(separator.join(row) for row in rows) + line
    found = read_keywords(put(tmp_path, text.encode(encoding)))
    assert found.table["keyword"].tolist() == ["café à emporter", f"a{separator}b".replace("\t", " ")]
    assert found.table["video_id"].tolist() == [ONE, TWO]
    assert reasons(found.problems) == {2: "no_keyword"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("<html><body><table>", "no table"),
        ('{"a": 1}', "no table"),
        ("a,b\n1,\0\0\0\n", "not a table"),
        (b"\xd0\xcf\x11\xe0" + bytes(100), r"old Excel workbook"),
        (b"PAR1" + bytes(100), "damaged Parquet"),
        (b"PK\x03\x04" + bytes(100), "workbook"),
        ("_id,keyword\n1,Кольцо\n2,Сумка\n".encode("cp1251"), "neither UTF-8"),
        ("_id,keyword\n1,指輪\n".encode("shift-jis"), "neither UTF-8"),
        ("_id,keyword\n1,خاتم\n".encode()[:-2], "neither UTF-8"),
        ("_id,keyword\n1,ring".encode("utf-16")[:-1], "breaks its encoding"),
        ('_id,keyword\n1,"ring\n2,bag\n', "quotation mark"),
        ("_id,keyword,keyword\n1,ring,bag\n", "two columns 'keyword' that differ, first in row 0"),
        ("_id,video id,keyword\n1,2,ring\n", "both mean video_id"),
        ("video,keyword\n1,ring\n", "no column for video_id .*it has 'video', 'keyword'"),
        ("_id,product\n1,ring\n", "no column for keywords .*it has '_id', 'product'"),
        (",,\n1,2,3\n", "no column"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(Refused, match=says) as caught:
        read_keywords(put(tmp_path, content))
    assert "\n" not in str(caught.value) and "table.csv" in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    for reader in (read_text_table, read_keywords, read_alignment, read_table):
        with pytest.raises(Refused, match="no such file"):
            reader(tmp_path / "missing.csv")
        with pytest.raises(Refused, match="a folder"):
            reader(tmp_path)


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    found = read_keywords(put(tmp_path, "_id,keyword_list[0]\n"))
    assert not len(found.table) and not len(found.problems)
    found = read_alignment(put(tmp_path, "video id,Scene Number,attention_proportion\n"))
    assert not len(found.table) and not len(found.problems)


def test_headers(tmp_path: Path) -> None:
    text = " Video  ID ,KEYWORD_LIST[0] ,, note,keyword_list[0]\n7,ring,,x,ring\n8,bag,,y,bag\n"
    table = read_text_table(put(tmp_path, text))
    assert list(table) == ["Video ID", "KEYWORD_LIST[0]", "note", "keyword_list[0]"]
    assert read_text_table(put(tmp_path, ",b\n0,x\n"))["column 1"].tolist() == ["0"]
    assert read_keywords(put(tmp_path, text)).table["keyword"].tolist() == ["ring", "bag"]


def test_rows_of_the_wrong_length(tmp_path: Path) -> None:
    text = f"_id,keyword,note\n{ONE},ring\n{TWO},bag, gift wrapped,x,y\n\n{THREE},hat,z,,\n"
    found = read_keywords(put(tmp_path, text))
    assert found.table[["keyword", "row"]].to_numpy().tolist() == [["ring", 0], ["hat", 2]]
    assert reasons(found.problems) == {1: "ragged_row"}


def test_line_breaks_in_cells(tmp_path: Path) -> None:
    found = read_text_table(put(tmp_path, f'_id,keyword,note\n{ONE},ring,"two\nlines"\n{TWO},bag,\n'))
    assert found["note"].tolist() == ["two\nlines", ""]
    assert found.index.tolist() == [0, 1]


def test_parquet_and_workbooks(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    whole = pd.DataFrame({"_id": [int(ONE), int(TWO)], "keyword": ["ring", None]})
    whole.to_parquet(tmp_path / "a.parquet")
    found = read_keywords(tmp_path / "a.parquet")
    assert found.table["video_id"].tolist() == [ONE] and reasons(found.problems) == {1: "no_keyword"}
    whole.astype({"_id": float}).to_parquet(tmp_path / "b.parquet")
    assert set(read_keywords(tmp_path / "b.parquet").problems["reason"]) == {"id_damaged"}
    whole.astype({"_id": str}).to_excel(tmp_path / "a.xlsx", index=False)
    assert read_keywords(tmp_path / "a.xlsx").table["video_id"].tolist() == [ONE]
    whole.to_excel(tmp_path / "b.xlsx", index=False)  # as numbers: a workbook keeps 15 digits
    assert set(read_keywords(tmp_path / "b.xlsx").problems["reason"]) == {"id_damaged"}
    scores = pd.DataFrame({"video id": ["7", "7"], "Scene Number": [0, 1], "attention_proportion": [0.5, 0.25]})
    scores.to_excel(tmp_path / "c.xlsx", index=False)
    assert read_alignment(tmp_path / "c.xlsx").table["alignment"].tolist() == [0.5, 0.25]


# ids


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("7.2280233523969718e+18", "id_damaged"),
        ("7.22802E+18", "id_damaged"),
        ('"7,22802E+18"', "id_damaged"),
        ("7228023352396971801.0", "id_damaged"),
        ("7228023352396971801.", "id_damaged"),
        ("", "id_missing"),
        ("NaN", "id_missing"),
        ("null", "id_missing"),
        ("../../etc", "id_bad"),
        ("a b", "id_bad"),
        ("<b>", "id_bad"),
        ("é", "id_bad"),
    ],
)
def test_ids(tmp_path: Path, cell: str, reason: str) -> None:
    found = read_keywords(put(tmp_path, f"_id,keyword_list[0]\n{cell},ring\n{TWO},bag\n"))
    assert reasons(found.problems) == {0: reason}
    assert found.table["video_id"].tolist() == [TWO]
    scores = f"_id,scene,alignment\n{cell},1,0.5\n{TWO},1,0.5\n"
    assert reasons(read_alignment(put(tmp_path, scores)).problems) == {0: reason}


@pytest.mark.parametrize("kind", ["float", "excel"])
def test_damage_without_marks(tmp_path: Path, kind: str) -> None:
    true = bulk_scenes(200, scenes=(1, 1))["video_id"]
    damaged = true.map(lambda text: f"{float(text):.0f}" if kind == "float" else text[:15] + "0000")
    table = pd.DataFrame({"_id": damaged, "keyword": "ring"})
    table.to_csv(tmp_path / "a.csv", index=False)
    found = read_keywords(tmp_path / "a.csv")
    assert set(found.problems["reason"]) == {"id_damaged"} and len(found.problems) == 200
    table["_id"] = true.where(np.arange(200) > 1, damaged)  # two of 200 may be chance
    table.to_csv(tmp_path / "a.csv", index=False)
    assert not len(read_keywords(tmp_path / "a.csv").problems)


# keywords


@pytest.mark.parametrize(
    "cell",
    ["../../etc", "<b>ring</b>", "https://example.org/a", "www.example.org", "C:\\rings", "/data/ring", "a.jpg",
     "=1+1", "123", "???", "x" * 201, "</script", "..\\ring"],
)  # fmt: skip
def test_no_words(tmp_path: Path, cell: str) -> None:
    found = read_keywords(put(tmp_path, f"_id,keyword_list[0]\n{ONE},{cell}\n{TWO},bag\n"))
    assert reasons(found.problems) == {0: "keyword_not_words"}


@pytest.mark.parametrize(
    "cell",
    ["خاتم", "ネックレス", "today’s “ring”", "7-up", "w/ love", "t-shirt", "ear.phones", "Ünder wear", "o'ring",
     "rings > bags", "and/or"],
)  # fmt: skip
def test_words(tmp_path: Path, cell: str) -> None:
    assert read_keywords(put(tmp_path, f"_id,keyword\n{ONE},{cell}\n")).table["keyword"].tolist() == [cell]


def test_several_keywords(tmp_path: Path) -> None:
    header = "_id,keyword_list[1],keyword_list[0],keyword_list[10],keyword_list[2]\n"
    text = header + f"{ONE},two,one,four,three\n{TWO},,,x1,\n{THREE},ring,ring,,\n7,,,,\n"
    found = read_keywords(put(tmp_path, text))
    assert found.table["keyword"].tolist() == ["one", "two", "three", "four", "x1", "ring"]
    assert found.table["keyword_number"].tolist() == [1, 2, 3, 4, 1, 1]
    assert reasons(found.problems) == {2: "duplicate_row", 3: "no_keyword"}


def test_conflicts(tmp_path: Path) -> None:
    text = f"_id,keyword_list[0]\n{ONE},ring\n{TWO},bag\n{ONE},hat\n{TWO},Bag\n{THREE},\n{THREE},shoe\n"
    found = read_keywords(put(tmp_path, text))
    wanted = {0: "duplicate_conflict", 2: "duplicate_conflict", 3: "duplicate_row", 4: "no_keyword"}
    assert reasons(found.problems) == wanted
    assert found.table["row"].tolist() == [1, 5]


@given(st.integers(0, 10**6), st.integers(30, 200))
@settings(max_examples=25, deadline=None)
def test_the_problems_are_those_that_the_world_wrote(seed: int, videos: int) -> None:
    import tempfile

    written, truth = keyword_table(bulk_scenes(videos, seed), dirty=True, at_least=2, duplicates=0.05, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        written.to_csv(Path(folder) / "a.csv", index=False)
        found = read_keywords(Path(folder) / "a.csv")
    written.columns = pd.Index(["video_id", "keyword"])
    wanted: dict[int, str] = {}
    for _, rows in written.groupby("video_id"):
        words = rows["keyword"][rows["keyword"] != ""]
        wanted |= dict.fromkeys(rows.index.difference(words.index), "no_keyword")
        wanted |= dict.fromkeys(words.index, "duplicate_conflict") if words.nunique() > 1 else {}
        wanted |= dict.fromkeys(words.index[1:], "duplicate_row") if words.nunique() == 1 else {}
    assert reasons(found.problems) == wanted
    assert sorted([*found.table["row"], *wanted]) == truth["row"].tolist()
    assert (found.table["keyword"].to_numpy() == written["keyword"][found.table["row"]].to_numpy()).all()


# scores


@given(st.integers(0, 10**6), st.sampled_from([0, 1, "mixed"]))
@settings(max_examples=25, deadline=None)
def test_scenes_are_counted_as_the_world_counts(seed: int, first: int | str) -> None:
    import tempfile

    written, truth = alignment_table(bulk_scenes(40, seed), first=first, dirty=True, duplicates=0.02, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        written.to_csv(Path(folder) / "a.csv", index=False)
        found = read_alignment(Path(folder) / "a.csv")
    assert found.problems["row"].tolist() == truth["row"][truth["duplicate"]].tolist()
    assert set(found.problems["reason"]) == {"duplicate_row"}
    both = found.table.merge(truth, on="row", suffixes=("", "_true"))
    assert (both["scene_number"] == both["scene_number_true"]).all() and len(both) == (~truth["duplicate"]).sum()
    assert np.allclose(both["alignment"], written["attention_proportion"][both["row"]])
    assert not len(found.notes)


def test_whole_study(tmp_path: Path) -> None:
    study = Study(tmp_path)
    truth = write_tables(study, bulk_scenes(50), dirty=True, first=0, at_least=1)
    assert len(read_alignment(study.alignment_scores).table) == (~truth["alignment_scores"]["duplicate"]).sum()
    assert set(read_keywords(study.keywords).table["video_id"]) <= set(truth["keywords"]["video_id"])


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [  # (scene number, start) of one video in a table that also holds a scene 0; what its numbers become
        ([(0, 0), (1, 2)], [1, 2]),
        ([(0, 0), (2, 4)], [1, 3]),  # a gap stays a gap
        ([(1, 0), (2, 2)], [1, 2]),
        ([(1, 2), (2, 4)], [2, 3]),  # scene 0 is missing
        ([(2, 4), (3, 6)], None),
        ([(2, 0), (3, 6)], None),
        ([(1, ""), (2, 6)], None),
        ([("1.0", "0.04"), ("2.0", 3)], [1, 2]),
    ],
)
def test_where_counting_starts(tmp_path: Path, rows: list, wanted: list | None) -> None:
    other = "8,0,0.5,0\n8,1,0.5,2\n"
    text = "_id,scene,alignment,start\n" + other + "".join(f"7,{number},0.5,{start}\n" for number, start in rows)
    found = read_alignment(put(tmp_path, text))
    of_seven = found.table[found.table["video_id"] == "7"]["scene_number"].tolist()
    if wanted is None:
        assert set(found.problems["reason"]) == {"scene_number_ambiguous"} and len(found.problems) == len(rows)
    assert of_seven == (wanted or [])
    alone = read_alignment(put(tmp_path, text.replace(other, ""))).table["scene_number"].tolist()
    numbers = [int(float(number)) for number, _ in rows]
    assert alone == (numbers if 0 not in numbers else wanted)


def test_without_times_a_video_without_a_zero_is_ambiguous(tmp_path: Path) -> None:
    found = read_alignment(put(tmp_path, "_id,scene,alignment\n8,0,0.5\n7,1,0.5\n"))
    assert reasons(found.problems) == {1: "scene_number_ambiguous"}
    assert read_alignment(put(tmp_path, "_id,scene,alignment\n8,1,0.5\n7,4,0.5\n")).table["scene_number"].tolist() == [
        1,
        4,
    ]


@pytest.mark.parametrize(
    ("score", "reason"),
    [("1.2", "score_out_of_range"), ("-0.1", "score_out_of_range"), ("", "score_not_number"),
     ("NaN", "score_not_number"), ("high", "score_not_number"), ("73%", "score_not_number"),
     ("inf", "score_not_number"), ("0,5", "score_not_number")],
)  # fmt: skip
def test_scores(tmp_path: Path, score: str, reason: str) -> None:
    found = read_alignment(put(tmp_path, f'_id,scene,alignment\n7,1,"{score}"\n7,2,0\n7,3,1\n7,4,1e-3\n'))
    assert reasons(found.problems) == {0: reason}
    assert found.table["alignment"].tolist() == [0, 1, 1e-3]


@pytest.mark.parametrize("number", ["1.5", "-1", "one", "", "NaN", "inf", "1e30", "1000000", ONE])
def test_scene_numbers(tmp_path: Path, number: str) -> None:
    found = read_alignment(put(tmp_path, f"_id,scene,alignment\n7,{number},0.5\n7,2,0.5\n"))
    assert reasons(found.problems) == {0: "scene_number_bad"}
    assert found.table["scene_number"].tolist() == [2]


def test_scenes_that_stand_twice(tmp_path: Path) -> None:
    text = "_id,scene,alignment,ctr\n7,1,0.5,0.1\n7,1.0,0.50,0.1\n7,2,0.5,0.1\n7,2,0.6,0.1\n7,2,0.5,0.1\n"
    text += "7,3,0.5,\n7,3,0.5,\n7,4,1.5,0\n7,4,0.5,0\n"
    found = read_alignment(put(tmp_path, text))
    conflict = dict.fromkeys([2, 3, 4], "duplicate_conflict")
    assert reasons(found.problems) == {1: "duplicate_row", 6: "duplicate_row", 7: "score_out_of_range"} | conflict
    assert found.table["row"].tolist() == [0, 5, 8]


def test_other_cells_cost_no_row(tmp_path: Path) -> None:
    text = "_id,scene,alignment,start_time,end_time,CTR_mean\n7,1,0.5,0,2,n/a\n7,2,0.5,2,x1,0.1\n7,3,0.5,5,4,0.1\n"
    found = read_alignment(put(tmp_path, text))
    assert len(found.table) == 3 and not len(found.problems)
    assert found.notes[["row", "reason"]].to_numpy().tolist() == [[1, "not_number"], [2, "ends_before_start"]]
    assert found.table["ctr"].isna().tolist() == [True, False, False]


def test_decimal_commas(tmp_path: Path) -> None:
    found = read_alignment(put(tmp_path, "_id;scene;alignment\n7;1;0,73\n7;2;,5\n7;3;0.25\n"))
    assert found.table["alignment"].tolist() == [0.73, 0.5, 0.25]


def test_a_comma_elsewhere_may_mark_thousands(tmp_path: Path) -> None:
    for separator in "\t|":
        rows = [["_id", "scene", "alignment", "clicks"], ["7", "1", "0.5", "1,234"], ["7", "2", "0,5", "12"]]
        found = read_alignment(put(tmp_path, "\n".join(separator.join(row) for row in rows)))
        assert found.table["clicks"].isna().tolist() == [True]
        assert found.notes[["row", "value"]].to_numpy().tolist() == [[0, "clicks=1,234"]]
        assert reasons(found.problems) == {1: "score_not_number"}


def test_what_a_row_without_a_score_says(tmp_path: Path) -> None:
    """The other columns are kept, unless another row of the scene has a score or says something else."""
    text = "_id,scene,alignment,ctr\n7,1,,0.1\n7,2,1.2,0.2\n7,2,n/a,0.2\n7,3,1.2,0.3\n7,3,,0.4\n7,4,,0.4\n7,4,0.5,0.4\n"
    text += "7,5,0.5,0.5\n7,5,0.6,0.5\n7,x,,0.6\n,7,,0.7\n7,8,,much\n"
    found = read_alignment(put(tmp_path, text))
    assert found.table[["scene_number", "ctr"]].to_numpy().tolist() == [[4, 0.4]]
    assert found.scoreless["scene_number"].tolist() == [1, 2, 5, 8] and "alignment" not in found.scoreless
    assert found.scoreless["ctr"].tolist()[:3] == [0.1, 0.2, 0.5] and found.scoreless["ctr"].isna()[3]
    assert found.notes["value"].tolist() == ["ctr=much"]
    assert len(found.problems) == 11 and found.problems["row"].is_unique


# phrases


def test_invisible_keywords() -> None:
    assert all(invisible_keyword(phrase) and invisible_keyword(f" {phrase.upper()}! ") for phrase in INVISIBLE)
    visible_words = """ring, shipping container, shop, shop front, free range eggs, order pad, insurance card, tap,
        7 up, loan shark toy, code book, app icon, a watch, my book, 50 cent album, 10 12, credit card, the shop,
        link chain"""
    for visible in ["", *(word.strip() for word in visible_words.split(","))]:
        assert not invisible_keyword(visible), visible


# our own tables


def test_our_tables_come_back(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"video_id": ["007", "1e5x"], "keyword": ["", "NA"], "alignment": [0.1 + 0.2, np.nan], "reason": ["", "x"]}
    )
    back = read_table(write_table(tmp_path / "a.csv", table))
    assert back["video_id"].tolist() == ["007", "1e5x"] and back["keyword"].tolist() == ["", "NA"]
    assert back["alignment"][0] == 0.1 + 0.2 and np.isnan(back["alignment"][1])
    assert read_table(write_table(tmp_path / "b.csv", table[:0]))["video_id"].tolist() == []
    for content in ("video_id\n7.2e+18\n", "video_id\nnan\n", "video_id,a\n,1\n"):
        with pytest.raises(Refused, match="video id"):
            read_table(put(tmp_path, content))
    with pytest.raises(Refused, match="not one of our tables"):
        read_table(put(tmp_path, b"\xff\xfe\xff\n\x80"))


# a real table


@pytest.mark.skipif(not REAL.is_file(), reason="the real keyword table is not on this machine")
def test_a_real_table() -> None:
    found = read_keywords(REAL)
    counts = found.problems["reason"].value_counts().to_dict()
    lines = REAL.read_text(encoding="utf-8-sig").splitlines()
    assert counts["no_keyword"] == sum(line.endswith(",") for line in lines) == 17_425
    assert counts["keyword_not_words"] == 2  # two prices
    assert len(found.table) + len(found.problems) == 53_602
    assert found.table["video_id"].str.fullmatch(r"\d{19}").all()
    share = found.table["keyword"].map(invisible_keyword).mean()
    assert 0.1 < share < 0.16


def test_bytes_of_a_written_table(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", pd.DataFrame({"video_id": ["7"], "keyword": ["خاتم"]}))
    assert path.read_bytes() == "video_id,keyword\n7,خاتم\n".encode()
    assert list(tmp_path.iterdir()) == [path]
    assert pd.read_csv(BytesIO(path.read_bytes()))["keyword"].tolist() == ["خاتم"]
