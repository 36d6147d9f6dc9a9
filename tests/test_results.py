"""What the page about results cannot hold: every way of writing them, platforms' exports, random tables and logs."""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment_video import results as page
from alignment_video.core import Refused, Study, write_json
from alignment_video.outcomes import VARIANTS, Effects, achieved_alignment, bulk_scenes, simulate_summary, write_results
from alignment_video.results import Results, read_results, read_stats, results_of, variant_name
from alignment_video.stimuli import SCHEMA, signed
from alignment_video.tables import write_table

ONE, TWO = "7228023352396971801", "6795171976400027653"
BASE = pd.DataFrame(
    {
        "video_id": [ONE, ONE, TWO, TWO],
        "variant": ["baseline", "full_boost"] * 2,
        "impressions": [12_000, 11_000, 1_000, 998],
        "clicks": [504, 680, 42, 44],
    }
)


def put(folder: Path, content: str | bytes, name: str = "results.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def counts(results: Results) -> list[list[object]]:
    return results.cells[["video_id", "variant", "impressions", "clicks"]].to_numpy().tolist()


def said(results: Results, words: str) -> bool:
    return any(words in note for note in results.notes)


# files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["video_id variant impressions clicks", "VIDEO-ID  Variant Impressions Link_Clicks"])
def test_every_way_of_writing_summary_rows(tmp_path: Path, encoding: str, separator: str, header: str) -> None:
    table = BASE.assign(variant=["Baseline", "Full Boost"] * 2, note="é").set_axis([*header.split(), "note"], axis=1)
    text = table.to_csv(index=False, sep=separator, lineterminator="\r\n")
    assert counts(read_results(put(tmp_path, text.encode(encoding)))) == BASE.to_numpy().tolist()


def test_workbook_and_parquet(tmp_path: Path) -> None:
    BASE.to_excel(tmp_path / "results.xlsx", index=False)
    BASE.astype({"video_id": "int64"}).to_parquet(tmp_path / "results.parquet")
    BASE.astype({"video_id": "category", "variant": "category", "clicks": float}).to_parquet(tmp_path / "typed.parquet")
    for name in ("results.xlsx", "results.parquet", "typed.parquet"):
        found = read_results(tmp_path / name)
        assert counts(found) == BASE.to_numpy().tolist(), name
        assert found.cells["clicks"].dtype == "int64" and found.level == "summary" and len(found.sha256) == 64


def test_an_ad_may_have_any_name() -> None:
    assert results_of(BASE.assign(video_id="<script>" + BASE["video_id"])).cells["video_id"].nunique() == 2


def test_ids_that_a_workbook_keeps_as_numbers_are_refused(tmp_path: Path) -> None:
    BASE.astype({"video_id": "int64"}).to_excel(tmp_path / "results.xlsx", index=False)
    with pytest.raises(Refused, match="damaged by a spreadsheet"):
        read_results(tmp_path / "results.xlsx")
    with pytest.raises(Refused, match="damaged by a spreadsheet"):
        results_of(BASE.astype({"video_id": float}))
    rounded = pd.concat([BASE.head(2).assign(video_id=f"{int(ONE[:15]) + n}0000") for n in range(4)])
    with pytest.raises(Refused, match="damaged by a spreadsheet"):
        results_of(rounded)


written = st.sampled_from(["{}", "{:,}", "{:,} ", '"{:,}"', "{}.0"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=9),
    way=st.sampled_from(["{}", "{:,}", " {:,} ", "{}.0", "+{}"]),
    seed=st.integers(0, 99),
)
def test_random_rows_of_days_are_summed(
    tmp_path: Path, cells: list[tuple[int, float, float]], way: str, seed: int
) -> None:
    rows = [
        {"video_id": ONE, "variant": variant, "day": day + 1, "impressions": number, "clicks": int(number * rate)}
        for day, (number, *rates) in enumerate(cells)
        for variant, rate in zip(("baseline", "placebo"), rates, strict=True)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=seed)
    text = table.assign(**{name: table[name].map(way.format) for name in ("impressions", "clicks")})
    text.to_csv(tmp_path / "results.csv", index=False)
    found = read_results(tmp_path / "results.csv")
    wanted = table.groupby("variant")[["impressions", "clicks"]].sum()
    assert found.cells.set_index("variant")[["impressions", "clicks"]].equals(wanted)
    assert found.days is not None and found.level == "days"
    assert found.days["clicks"].tolist() == table.sort_values(["variant", "day"])["clicks"].tolist()


HEAD = "video_id,variant,impressions,clicks\n"
ROW = f"{ONE},baseline,1000,42\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the file is empty"),
        (HEAD, "no rows"),
        (HEAD + ROW + f"{ONE},early,100,101\n", r"row 1 \(video 7228023352396971801, early\): 101 clicks of 100 impr"),
        (HEAD + ROW + f"{ONE},early,100,1.5\n", "clicks '1.5' is no whole number"),
        (HEAD + ROW + f"{ONE},early,-100,1\n", "impressions '-100' is below zero"),
        (HEAD + ROW + f"{ONE},early,,1\n", "impressions '' is empty"),
        (HEAD + ROW + f"{ONE},early,1e400,1\n", "impressions '1e400' is no number"),
        (HEAD + ROW + ",early,100,1\n", "row 1: no video id, or no variant"),
        (HEAD + ROW + f"{ONE},,100,1\n", "row 1: no video id, or no variant"),
        (HEAD + ROW + "nan,early,100,1\n", "row 1: no video id, or no variant"),
        (HEAD + ROW + f"{ONE},ea/rly,100,1\n", "variant 'ea/rly' cannot name a file"),
        (HEAD + ROW + "7.22E+18,early,100,1\n", "row 1: video id '7.22E.18' was damaged"),
        (HEAD + ROW, "every video has one variant only"),
        (HEAD + f"{ONE},early,100,1\n{ONE},late,100,1\n", "no video has the variant 'baseline'"),
        (HEAD + ROW + f"{ONE},early,100,1\n{ONE},early,100,2\n", r"row 1: 100, 1; .*row 2: 100, 2\)"),
        (HEAD + ROW + f"{ONE},early,0,0\n", "every video has one variant only"),
        ("video_id,impressions,clicks\n", "nothing says of which video"),
        (f"video_id,impressions,clicks\n{ONE},100,1\n", "nothing says of which video and variant"),
        (f"video_id,variant,clicks\n{ONE},baseline,1\n", "no column for impressions"),
        (
            HEAD.strip() + ",alignment\n" + f"{ONE},baseline,1000,42,45\n{ONE},early,1,1,50\n",
            "alignment is 45; it lies",
        ),
        (HEAD.strip() + ",watch_time\n" + f"{ONE},baseline,1000,42,-4\n", "watch_time is -4; it cannot be below zero"),
        (HEAD.strip() + ",conversions\n" + f"{ONE},baseline,1000,42,1001\n", "1,001 conversions of 1,000 impressions"),
        (HEAD.strip() + ",day\n" + f"{ONE},baseline,1000,42,someday\n", "row 0: day 'someday' is no date"),
        (HEAD.strip() + ",day\n" + f"{ONE},baseline,1000,42,\n", "row 0: day '' is no date"),
        ("total,impressions,clicks,ad name\nx,1,1,Total\n", "no row has a video's or an ad's name"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(Refused, match=says) as caught:
        read_results(put(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path: Path) -> None:
    put(tmp_path, b"PAR1" + bytes(50), "broken.parquet")
    put(tmp_path, b"PK\x03\x04" + bytes(50), "broken.xlsx")
    for name, says in (
        ("no.csv", "no such file"),
        ("broken.parquet", "damaged Parquet"),
        ("broken.xlsx", "no workbook"),
    ):
        with pytest.raises(Refused, match=says):
            read_results(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="no file in this folder is CSV"):
        read_results(tmp_path / "empty")
    with pytest.raises(Refused, match="no file of results was named"):
        read_results([])


# exports


def export(**columns: list[object]) -> pd.DataFrame:
    names = [f"exp-spring__vid-{ONE}__var-{variant}__a-00c0ffee" for variant in VARIANTS]
    return pd.DataFrame({"Ad name": names, "Impressions": [1000 + n for n in range(7)]} | columns)


def test_tiktok(tmp_path: Path) -> None:
    table = export(
        **{
            "Ad ID": [f"17{n:014d}" for n in range(7)], "Clicks (destination)": [*range(40, 47)],
            "Clicks (all)": [*range(60, 67)], "Conversions": [*range(7)], "CTR (all)": ["6.0%", *["9.9%"] * 6],
            "Video views": [900] * 7, "Average play time per video view": ["4.5"] * 7,
            "Paid likes": [3] * 7, "Paid shares": [2] * 7, "Cost": ["1,234.50 USD"] * 7,
        }
    )  # fmt: skip
    table = table.astype(object)
    table.loc[7] = ["Total of 7 results", 7021, "-", 301, 441, 21, "", 6300, "4.5", 21, 14, "8,641.50 USD"]
    found = read_results(put(tmp_path, table.to_csv(index=False)))
    assert found.cells["clicks"].tolist() == [*range(40, 47)] and found.cells["watch_sum"].tolist() == [4050.0] * 7
    assert found.cells["engagements"].tolist() == [5] * 7 and found.metrics == list(page.METRICS)
    assert said(found, "clicks taken from 'Clicks (destination)', not from 'Clicks (all)'")
    assert said(found, "1 row with totals left out") and not said(found, "disagree with the other")
    assert said(found, "'CTR (all)': 6 of 7 rows disagree with all clicks/impressions")


def test_meta(tmp_path: Path) -> None:
    table = export(
        **{
            "Link clicks": [40, 41, "", 43, 44, 45, 46], "Results": ["", *range(1, 7)], "Reach": [900] * 7,
            "CTR (link click-through rate)": [4.0, 4.0959, 0, 4.2871, 4.3825, 4.4776, 4.5726],
            "Video plays": [800] * 7, "Video average play time": ["00:00:05"] * 7, "Amount spent (USD)": [12.5] * 7,
            "Day": [f"2024-05-0{n + 1}" for n in range(7)],
        }
    )  # fmt: skip
    table.loc[7] = ["", 7021, 259, 21, 5000, 3.7, 5600, "00:00:05", 87.5, ""]
    found = read_results(put(tmp_path, table.to_csv(index=False)))
    assert found.cells["clicks"].tolist() == [40, 41, 0, 43, 44, 45, 46]
    assert found.cells["conversions"].tolist() == [*range(7)] and found.cells["watch_sum"].tolist() == [4000.0] * 7
    for words in (
        "what these are is set in the campaign",
        "1 row with totals",
        "Link clicks is empty, in 1 row; taken as 0",
    ):
        assert said(found, words), words
    assert not said(found, "'CTR (link click-through rate)'") and found.level == "days"
    with pytest.raises(
        Refused, match=r"row 7: no name and no id, and it is no total \(impressions 7,022, the rows 7,021\)"
    ):
        read_results(put(tmp_path, table.assign(Impressions=[*table["Impressions"][:7], 7022]).to_csv(index=False)))


def test_play_time_without_views_is_no_watch_time() -> None:
    found = results_of(export(Clicks=[1] * 7, **{"Average play time per video view": [4.5] * 7}))
    assert found.metrics == ["ctr"] and said(found, "is a mean over views, and there is no column of views")


def test_other_ads_and_several_experiments() -> None:
    table = export(Clicks=[1] * 7)
    table.loc[7] = ["Summer sale", 500, 3]
    found = results_of(table)
    assert (
        len(found.cells) == 7
        and said(found, "1 row of other ads left out, first table, row 7 ('Summer sale')") is False
    )
    assert said(found, "1 row of other ads left out, first row 7 ('Summer sale')")
    table.loc[7] = [table["Ad name"][0].replace("spring", "autumn"), 500, 3]
    with pytest.raises(Refused, match="2 experiments, 'spring', 'autumn'; choose with only="):
        results_of(table)
    assert results_of(table, only={"experiment": "spring"}).cells["impressions"].tolist()[0] == 1000
    with pytest.raises(Refused, match="no row has experiment 'summer'; there are 'spring', 'autumn'"):
        results_of(table, only={"experiment": "summer"})
    with pytest.raises(Refused, match="only='city' is no column of words"):
        results_of(table, only={"city": "Bern"})


def test_several_ads_of_one_variant_are_summed() -> None:
    table = export(Clicks=[1] * 7)
    again = table.assign(**{"Ad name": table["Ad name"].str.replace("00c0ffee", "0badcafe")})
    found = results_of(pd.concat([table, again]))
    assert found.cells["clicks"].tolist() == [2] * 7 and said(found, "several ads of one variant are summed")


@pytest.mark.parametrize("kind", ["csv", "json", "table"])
def test_the_upload_sheet_wins(tmp_path: Path, kind: str) -> None:
    names = [f"clip {n}" for n in range(6)] + [f"exp-spring__vid-{ONE}__var-placebo__a-00c0ffee"]
    table = pd.DataFrame({"Ad name": names, "Ad ID": [f"17900000000000{n:02d}" for n in range(7)]})
    table = table.assign(Impressions=1000, Clicks=[*range(40, 47)])
    sheet = pd.DataFrame({"ad_id": table["Ad ID"], "video_id": ONE, "variant": [*VARIANTS]})
    sheet.loc[6, "variant"] = "hook"
    given: object = sheet
    if kind == "csv":
        given = write_table(tmp_path / "sheet.csv", sheet)
    elif kind == "json":
        given = tmp_path / "sheet.json"
        write_json(tmp_path / "sheet.json", {"ads": sheet.to_dict("records")})
    found = results_of(table, sheet=given)
    assert found.cells["variant"].tolist() == [*list(VARIANTS)[:6], "hook"]
    assert said(found, "the upload sheet says variant hook, the ad's name placebo; the sheet is followed")
    without = table.drop(columns="Ad name")
    assert counts(results_of(without, sheet=sheet)) == counts(found)
    with pytest.raises(Refused, match="nothing says of which video and variant"):
        results_of(without)


def test_sheets_that_are_refused(tmp_path: Path) -> None:
    put(tmp_path, '{"rows": []}', "sheet.json")
    with pytest.raises(Refused, match="no list of ads in JSON"):
        results_of(export(Clicks=[1] * 7), sheet=tmp_path / "sheet.json")
    with pytest.raises(Refused, match="an upload sheet has video_id"):
        results_of(export(Clicks=[1] * 7), sheet=BASE)


@pytest.mark.parametrize("name", ["full_boost", "Full Boost", "FULL-BOOST", " fullBoost ", "full  boost"])
def test_names_of_variants(name: str) -> None:
    assert variant_name(name) == "full_boost"
    assert variant_name("My Hook") == "my_hook" and variant_name("my hook", ["MyHook"]) == "MyHook"


# rates, days


@pytest.mark.parametrize("rate", ["4.20%", "4.2", "0.042", "4,2 %", "4.2 %"])
def test_rates_that_agree(rate: str) -> None:
    table = BASE.head(2).assign(impressions=1000, clicks=42, CTR=rate)
    assert not said(results_of(table), "CTR")
    assert said(results_of(table.assign(clicks=[42, 43])), "'CTR': 1 of 2 rows disagree with clicks/impressions")


def test_rates_without_counts_and_of_two_meanings() -> None:
    assert said(results_of(BASE.assign(CVR="1%")), "'CVR' has no counts to be held against")
    table = BASE.assign(conversions=[50, 60, 4, 5])
    for base in ("clicks", "impressions"):
        found = results_of(table.assign(CVR=table["conversions"] / table[base]))
        assert said(found, f"'CVR' is conversions/{base} here")
    assert said(results_of(table.assign(CVR=0.9)), "4 of 4 rows disagree with conversions/")


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (["2024-02-29", "2024-03-01"], ["2024-02-29", "2024-03-01"]),
        (["20240229", "20240301"], ["2024-02-29", "2024-03-01"]),
        (["2024/02/29", "2024/03/01"], ["2024-02-29", "2024-03-01"]),
        (["29.02.2024", "01.03.2024"], ["2024-02-29", "2024-03-01"]),
        (["2/29/2024", "3/1/2024"], ["2024-02-29", "2024-03-01"]),
        (["2024-02-29T23:59:59Z", "2024-03-01T00:00:00+00:00"], ["2024-02-29", "2024-03-01"]),
        (["2024-02-29 23:59:59.5+08:00", "2024-03-01 00:00+0800"], ["2024-02-29", "2024-03-01"]),
        (["D1", "day 2"], [1, 2]),
        ([date(2024, 2, 29), date(2024, 3, 1)], ["2024-02-29", "2024-03-01"]),
        (pd.to_datetime(["2024-02-29", "2024-03-01"]), ["2024-02-29", "2024-03-01"]),
        (pd.to_datetime(["2024-02-29", "2024-03-01"]).tz_localize("Asia/Tokyo"), ["2024-02-29", "2024-03-01"]),
    ],
)
def test_days(cells: object, wanted: list[object]) -> None:
    rows = pd.concat([BASE.head(2).assign(day=cell) for cell in list(cells)])  # type: ignore[call-overload]
    found = results_of(rows)
    assert found.days is not None and found.days["day"].tolist() == wanted * 2


@pytest.mark.parametrize("offsets", [("+01:00", "-05:00"), ("", "+01:00"), ("Z", "+02:00")])
def test_days_of_different_zones(offsets: tuple[str, str]) -> None:
    rows = pd.concat([BASE.head(2).assign(day=f"2024-05-01T00:00{offset}") for offset in offsets])
    with pytest.raises(Refused, match="days are of different time zones"):
        results_of(rows)


# breakdowns and several files


def test_segments_of_two_dimensions_in_one_table() -> None:
    rows = [BASE.assign(Age=age, Gender=gender) for age in ("18-24", "25+") for gender in ("f", "m", "")]
    found = results_of(pd.concat(rows))
    assert counts(found) == BASE.assign(impressions=BASE.impressions * 6, clicks=BASE.clicks * 6).to_numpy().tolist()
    assert found.segments is not None and len(found.segments) == 4 * (2 + 3)
    assert set(found.segments["value"]) == {"18-24", "25+", "f", "m", "unknown"}
    assert (found.segments.groupby("dimension")["clicks"].sum() == found.cells["clicks"].sum()).all()


def test_parts_in_a_folder(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        BASE.assign(day=day).to_csv(tmp_path / f"day{day}.csv", index=False)
    put(tmp_path, "not read", "readme.md")
    found = read_results(tmp_path)
    assert found.cells["clicks"].tolist() == (BASE["clicks"] * 3).tolist() and found.days is not None
    BASE.assign(day=3, clicks=1).to_csv(tmp_path / "day4.csv", index=False)
    with pytest.raises(Refused, match=r"day3.csv, row 0: 12,000, 504; .*day4.csv, row 0: 12,000, 1\)"):
        read_results(tmp_path)


def test_days_and_whole(tmp_path: Path) -> None:
    BASE.to_csv(tmp_path / "whole.csv", index=False)
    pd.concat(
        [BASE.assign(day=day, clicks=BASE.clicks // 2, impressions=BASE.impressions // 2) for day in (1, 2)]
    ).to_csv(tmp_path / "days.csv", index=False)
    found = read_results([tmp_path / "days.csv", tmp_path / "whole.csv"])
    assert counts(found) == BASE.to_numpy().tolist() and found.days is not None and len(found.days) == 8
    assert not said(found, "are counted")


def test_covariates_are_the_baselines() -> None:
    table = BASE.assign(
        industry="Beauty", contrast=[0.2, 0.3, 0.5, 0.5], brightness=[np.nan, 0.4, 0.1, 0.1], duration=""
    )
    found = results_of(table.iloc[::-1])
    assert list(found.videos.index) == [TWO, ONE] and list(found.videos) == ["industry", "contrast", "brightness"]
    assert found.videos.loc[ONE].tolist() == ["Beauty", 0.2, 0.4]
    assert said(found, "contrast differs between rows of one video") and not said(found, "brightness differs")
    assert "contrast" in found.cells and "brightness" not in found.cells


def test_what_versions_themselves_have_is_kept_where_it_differs() -> None:
    days = pd.concat([BASE.assign(day=day, contrast=[0.2, 0.3 + day / 100, 0.1, 0.1]) for day in (1, 2)])
    assert results_of(days).cells["contrast"].tolist() == pytest.approx([0.2, 0.315, 0.1, 0.1], abs=1e-12)
    assert "contrast" not in results_of(days.assign(contrast=0.1)).cells
    assert "contrast" not in results_of(days.assign(contrast=np.nan)).cells
    assert results_of(BASE.assign(contrast=[0.2, np.nan, 0.1, 0.4])).cells["contrast"].isna().sum() == 1
    log = BASE.loc[BASE.index.repeat(3)].drop(columns="impressions").assign(user_id=range(12), clicked=0, contrast=0.1)
    log["contrast"] += 0.1 * (log["variant"] == "full_boost")
    found = results_of(log.drop(columns="clicks"))
    assert "contrast" not in found.cells and found.videos["contrast"].tolist() == [0.1, 0.1]


def test_a_metric_with_an_empty_cell_is_left_out() -> None:
    found = results_of(
        BASE.assign(conversions=["1", "2", "", "3"], engagements=[1, 2, 3, 4], watch_time=[1, np.nan, 2, 3])
    )
    assert found.metrics == ["ctr", "engagement"]
    assert said(found, "row 2: conversions is empty, in 1 row; this column is left out")
    assert said(found, "row 1: no watch time, in 1 row; watch time is left out")


def test_a_study(tmp_path: Path) -> None:
    study = Study(tmp_path)
    for video in (ONE, TWO):
        films = [{"variant": name} for name in ("baseline", "full_boost")]
        write_json(study.manifest(video), signed({"schema": SCHEMA, "stimuli": films}))
    table = BASE[["video_id", "variant"]].assign(
        alignment=[0.1, 0.2, 0.3, 0.4], verdict=["pass", "fail", "pass", "pass"]
    )
    write_table(study.achieved, table)
    found = results_of(BASE, study)
    assert found.cells["alignment"].tolist() == [0.1, 0.2, 0.3, 0.4] and said(found, "1 film failed the manipulation")
    assert results_of(BASE.assign(alignment=0.5), study).cells["alignment"].tolist() == [0.5] * 4
    with pytest.raises(
        Refused, match=f"variant 'early' of video {ONE} is not in its manifest, which has baseline, full_boost"
    ):
        results_of(BASE.replace({"variant": {"full_boost": "early"}}), study)
    study.manifest(TWO).unlink()
    assert said(results_of(BASE, study), f"the study has no manifest of 1 video, first {TWO}")


def test_results_of_the_simulation_on_both_ways(tmp_path: Path) -> None:
    achieved, study = achieved_alignment(bulk_scenes(3, seed=7), seed=7), Study(tmp_path)
    write_results(study, achieved, Effects(), 2_000, seed=7, days=3, users=400)
    summary = read_results(study.results, study)
    wanted = simulate_summary(achieved, Effects(), 2_000, seed=7)
    assert summary.cells["video_id"].tolist() == wanted["video_id"].tolist()
    assert summary.level == "days" and list(summary.videos) == ["industry", "contrast", "brightness"]
    assert read_results(study.user_results, study).level == "users"
    with pytest.raises(Refused, match="has rows of users"):
        read_results([study.results, study.user_results])


# logs


def random_log(seed: int, rows: int = 3_000, users: int = 120, videos: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    user, video = rng.integers(0, users, rows), rng.integers(0, videos, rows)
    clicked = rng.random(rows) < 0.2
    return pd.DataFrame(
        {
            "user_id": user + 10**17, "video_id": np.array([ONE, TWO, "6813254764520914949"])[video],
            "variant": np.array(["baseline", "full_boost", "placebo"])[(user + video) % 3],
            "day": rng.integers(1, 4, rows), "clicked": clicked, "converted": clicked & (rng.random(rows) < 0.3),
            "watch_time": rng.gamma(2, 2, rows).round(3), "engaged": rng.random(rows) < 0.1,
        }
    )  # fmt: skip


def check_log(found: Results, log: pd.DataFrame) -> None:
    """Against sums by pandas, user by user."""
    values = {"clicks": "clicked", "conversions": "converted", "engagements": "engaged", "watch": "watch_time"}
    cell = ["video_id", "variant"]
    each = log.assign(impressions=1).rename(columns={old: new for new, old in values.items()})
    names = ["impressions", *values]
    each = each.astype(dict.fromkeys(names, float)).groupby([*cell, "user_id"])[names].sum()
    keys = pd.MultiIndex.from_frame(found.cells[cell])
    assert len(keys) == log[cell].drop_duplicates().shape[0]
    totals = each.groupby(cell).sum().reindex(keys)
    assert found.moments is not None and len(found.moments) == len(keys)
    for name in names:
        assert np.allclose(found.cells["watch_sum" if name == "watch" else name], totals[name])
    assert found.cells["users"].tolist() == each.groupby(cell).size().reindex(keys).tolist()
    for place, one in enumerate(names):
        for other in names[place:]:
            wanted = (each[one] * each[other]).groupby(cell).sum().reindex(keys)
            assert np.allclose(found.moments[f"{one}_{other}"], wanted), (one, other)
    squares = (log["watch_time"] ** 2).groupby([log[name] for name in cell]).sum().reindex(keys)
    assert np.allclose(found.moments["watch_squares"], squares)
    days = log.groupby([*cell, "day"])["clicked"].sum()
    assert found.days is not None
    assert found.days.set_index([*cell, "day"])["clicks"].sort_index().tolist() == days.sort_index().tolist()


@pytest.mark.parametrize("kind", ["parquet", "csv", "semicolons", "utf-16", "xlsx", "text ids", "words", "categories"])
def test_logs_in_every_form(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_SHARE_ROWS", 700)  # five shares
    log = random_log(1)
    path = tmp_path / ("log.parquet" if kind in ("parquet", "text ids", "words", "categories") else "log.csv")
    if kind == "csv":
        log.rename(columns={"user_id": " User ID"}).to_csv(path, index=False, encoding="utf-8-sig")
    elif kind == "semicolons":
        log.to_csv(path, index=False, sep=";", decimal=",")
    elif kind == "utf-16":
        log.to_csv(path, index=False, sep="\t", encoding="utf-16")
    elif kind == "xlsx":
        path = tmp_path / "log.xlsx"
        log.assign(user_id="u" + log["user_id"].astype(str)).to_excel(path, index=False)
    elif kind == "text ids":
        log.assign(user_id="u" + log["user_id"].astype(str)).to_parquet(path)
    elif kind == "words":
        words = {name: log[name].map({True: " Yes", False: "0"}) for name in ("clicked", "engaged")}
        log.assign(**words, converted=log["converted"].astype(float)).to_parquet(path)
    elif kind == "categories":
        log.astype({"video_id": "category", "variant": "category", "watch_time": "float64"}).to_parquet(path)
    else:
        log.to_parquet(path)
    check_log(read_results(path), log)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(400, 1_500), users=st.integers(1, 900), shares=st.integers(1, 6))
def test_random_logs(seed: int, rows: int, users: int, shares: int) -> None:
    log, before = random_log(seed, rows, users), page._SHARE_ROWS
    log["variant"] = np.random.default_rng(seed + 1).choice(["baseline", "placebo", "hook"], rows)  # users see several
    page._SHARE_ROWS = -(-rows // shares)
    try:
        found = results_of(log)
    finally:
        page._SHARE_ROWS = before
    check_log(found, log)
    several = (log.groupby(["video_id", "user_id"])["variant"].nunique() > 1).sum()
    assert said(found, f"{several:,} time{'' if several == 1 else 's'} a user saw several variants of a video") == (
        several > 0
    )


def test_a_long_text_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_MUCH_TEXT", 1000)
    log = random_log(2)
    log.to_csv(tmp_path / "log.csv", index=False)
    check_log(read_results(tmp_path / "log.csv"), log)


def test_many_files_are_one_log(tmp_path: Path) -> None:
    log = random_log(3)
    log[:1000].to_parquet(tmp_path / "a.parquet")
    log[1000:2000].astype({"video_id": "category", "user_id": "int64", "clicked": "int8"}).to_parquet(
        tmp_path / "b.parquet"
    )
    log[2000:].astype({"user_id": str}).to_csv(tmp_path / "c.csv", index=False)
    check_log(read_results(tmp_path), log)
    log.drop(columns="engaged").to_parquet(tmp_path / "b.parquet")
    with pytest.raises(Refused, match=r"b.parquet and .*a.parquet have different columns \('engagements'\)"):
        read_results(tmp_path)


def test_one_row_a_user(tmp_path: Path) -> None:
    log = random_log(4).assign(impressions=1, watch_sum=lambda table: table["watch_time"])
    names = {"clicked": "clicks", "converted": "conversions", "engaged": "engagements"}
    by = ["user_id", "video_id", "variant"]
    users = log.rename(columns=names).groupby(by, as_index=False)[["impressions", *names.values(), "watch_sum"]].sum()
    users["watch_time"] = users.pop("watch_sum") / users["impressions"]
    users.to_parquet(tmp_path / "users.parquet")
    found, wanted = read_results(tmp_path / "users.parquet"), results_of(log.drop(columns=["impressions", "watch_sum"]))
    order = ["video_id", "variant"]
    one, other = (each.cells[order].join(each.moments) for each in (found, wanted))
    one, other = (table.sort_values(order, ignore_index=True) for table in (one, other))
    assert "watch_squares" not in one and np.allclose(one.iloc[:, 2:], other[list(one)].iloc[:, 2:])
    with pytest.raises(Refused, match="clicks '9' is more than the row's impressions"):
        results_of(users.assign(clicks=9))


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("clicked", 2, "row 1: clicked '2' is more than 1, in a row that is one impression"),
        ("clicked", -1, "row 1: clicked '-1' is below zero"),
        ("clicked", 0.5, "row 1: clicked '0.5' is no whole number"),
        ("clicked", None, "row 1: clicked '' is empty"),
        ("clicked", "maybe", "row 1: clicked 'maybe' is no whole number"),
        ("watch_time", -1.0, "row 1: watch_time '-1.0' is below zero"),
        ("watch_time", np.inf, "row 1: watch_time 'inf' is no number"),
        ("user_id", None, "row 1: user_id '' is empty"),
        ("user_id", 1e18, r"row 0: user_id '1\.0+8e\+17' went through a float"),
        ("video_id", None, "no video id, or no variant"),
        ("video_id", "7.2e18", "video id '7.2e18' was damaged"),
        ("variant", "", "no video id, or no variant"),
        ("day", "soon", "day 'soon' is no day like the others"),
    ],
)
def test_logs_that_are_refused(tmp_path: Path, column: str, value: object, says: str) -> None:
    log = random_log(5, 60)
    cells = log[column].astype(object if isinstance(value, str) or value is None or column == "clicked" else float)
    cells[1] = value
    cells = cells.astype(str) if isinstance(value, str) and column != "clicked" else cells
    if column == "user_id":
        cells = cells.astype(float)
    if isinstance(value, str) and column == "clicked":
        cells = cells.astype(str)
    elif column == "clicked":
        cells = cells.astype(float if value is None or value == 0.5 else int)
    log[column] = cells
    if column == "user_id" and value is None:
        log["user_id"] = pd.array([None if n == 1 else n for n in range(60)], "Int64")
    log.to_parquet(tmp_path / "log.parquet")
    with pytest.raises(Refused, match=says) as caught:
        read_results(tmp_path / "log.parquet")
    assert "\n" not in str(caught.value)


def test_damaged_logs(tmp_path: Path) -> None:
    random_log(6).to_parquet(tmp_path / "log.parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    put(tmp_path, whole[: len(whole) // 2], "cut.parquet")
    with pytest.raises(Refused, match=r"cut\.parquet: damaged Parquet"):
        read_results(tmp_path / "cut.parquet")
    put(tmp_path, whole[:400] + bytes(800) + whole[1200:], "holes.parquet")
    with pytest.raises(Refused, match=r"holes\.parquet: cannot be read") as caught:
        read_results(tmp_path / "holes.parquet")
    assert "\n" not in str(caught.value)
    text = random_log(6).to_csv(index=False)
    with pytest.raises(Refused, match="cannot be read"):
        read_results(put(tmp_path, text + "1,2,3,4,5,6,7,8,9,10\n", "log.csv"))
    with pytest.raises(Refused, match="no rows"):
        read_results(put(tmp_path, text.split("\n")[0] + "\n", "log.csv"))


def test_logs_without_users_days_or_seconds() -> None:
    log = random_log(7)
    found = results_of(log.drop(columns=["user_id", "day"]))
    assert found.moments is None and found.days is None and found.level == "summary" and "users" not in found.cells
    assert said(found, "no column of users")
    bare = results_of(log[["user_id", "video_id", "variant", "clicked"]])
    assert bare.metrics == ["ctr"] and bare.moments is not None
    assert list(bare.moments) == ["impressions_impressions", "impressions_clicks", "clicks_clicks"]
    gaps = results_of(log.assign(watch_time=log["watch_time"].mask(log.index < 5)))
    assert said(gaps, "watch is empty in 5 rows; left out") and "watch_time" not in gaps.metrics
    assert not [name for name in gaps.moments if "watch" in name]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_watch_times_are_cut_at_the_length_only_if_asked(tmp_path: Path, kind: str) -> None:
    log = random_log(11)
    log["duration"] = log["video_id"].map({video: 4.0 + 3 * n for n, video in enumerate(log["video_id"].unique())})
    log.loc[log.index % 7 == 0, "watch_time"] = 90.5
    log.loc[log["video_id"] == log["video_id"].iloc[0], "duration"] = np.nan  # not known: nothing is cut
    path = tmp_path / f"log.{kind}"
    log.to_parquet(path) if kind == "parquet" else log.to_csv(path, index=False)
    over = log["watch_time"] > log["duration"]
    hand = log.assign(watch_time=log["watch_time"].where(~over, log["duration"]))
    raw, cut = read_results(path), read_results(path, cut_at_length=True)
    plain, wanted = (results_of(each.drop(columns="duration")) for each in (log, hand))
    for found, other in ((raw, plain), (cut, wanted)):
        key = ["video_id", "variant"]
        one, two = (each.cells[key].join(each.moments).sort_values(key, ignore_index=True) for each in (found, other))
        assert np.allclose(one.iloc[:, 2:], two.iloc[:, 2:]) and found.cells["watch_sum"].sum() == pytest.approx(
            other.cells["watch_sum"].sum()
        )
    share = f"{1 - hand['watch_time'].sum() / log['watch_time'].sum():.1%} from the mean"
    told = f"{over.sum():,} of 3,000 rows have a watch time above the ad's length"
    assert said(cut, f"{told}, cut there, which takes {share}") and said(raw, f"{told}, kept as it is;")
    assert said(results_of(hand.drop(columns="duration"), cut_at_length=True), "no column of the ad's duration")
    assert not said(results_of(hand), "above the ad's length")


def test_means_above_the_length_are_named_and_stay() -> None:
    rows = BASE.assign(watch_time=[31.0, 5, 30, 30], duration=30)
    found = results_of(rows, cut_at_length=True)
    assert said(found, f"row 0 (video {ONE}, baseline): mean watch time is 31 s, and the ad lasts 30 s; a mean cannot")
    assert said(found, "no single watch time can be cut") and found.cells["watch_sum"].tolist()[0] == 31 * 12_000
    assert not said(results_of(rows.assign(watch_time=30)), "mean watch time")
    users = pd.DataFrame({"user_id": range(4), "video_id": ONE, "variant": ["baseline", "full_boost"] * 2})
    users = users.assign(impressions=[1, 1, 3, 3], clicks=0, watch_time=[50.0, 10, 40, 20], duration=30)
    cut = results_of(users, cut_at_length=True)
    assert cut.cells["watch_sum"].tolist() == [30 + 120, 10 + 60]
    assert said(cut, "1 of 4 rows have a watch time above") and said(cut, "1 row of several impressions, with a mean")


def test_days_and_segments_of_logs(tmp_path: Path) -> None:
    log = random_log(8)
    stamps = pd.to_datetime("2024-05-01 12:00") + pd.to_timedelta(log["day"] * 24 + np.arange(len(log)) % 5, unit="h")
    for days in (
        stamps,
        stamps.dt.tz_localize("Asia/Tokyo"),
        stamps.dt.date,
        stamps.dt.strftime("%Y-%m-%dT%H:%M:%S+02:00"),
    ):
        log.assign(day=days, Country="CH").to_parquet(tmp_path / "log.parquet")
        found = read_results(tmp_path / "log.parquet")
        assert found.days is not None and sorted(set(found.days["day"])) == ["2024-05-02", "2024-05-03", "2024-05-04"]
        assert found.segments is not None and found.segments["clicks"].tolist() == found.cells["clicks"].tolist()
    mixed = log.assign(day=np.where(log.index % 2, "2024-05-01T10:00:00+02:00", "2024-05-01T10:00:00-07:00"))
    with pytest.raises(Refused, match="days are of different time zones"):
        results_of(mixed)
    for name, zone in (("a", "UTC"), ("b", "Asia/Tokyo")):
        log.assign(day=stamps.dt.tz_localize(zone)).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(Refused, match="days of different time zones"):
        read_results([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_a_log_of_ads(tmp_path: Path) -> None:
    log = random_log(9)
    names = "exp-x__vid-" + log["video_id"] + "__var-" + log["variant"] + "__a-01234567"
    other = log.head(50).assign(ad_name="Summer sale").drop(columns=["video_id", "variant"])
    found = results_of(pd.concat([log.assign(ad_name=names).drop(columns=["video_id", "variant"]), other]))
    check_log(found, log)
    assert said(found, "1 name of other ads left out")
    sheet = (
        log[["video_id", "variant"]].drop_duplicates().assign(ad_id=lambda table: [str(n) for n in range(len(table))])
    )
    ids = log.merge(sheet, on=["video_id", "variant"])["ad_id"].to_numpy()
    log.assign(ad_id=ids).drop(columns=["video_id", "variant"]).to_parquet(tmp_path / "log.parquet")
    check_log(read_results(tmp_path / "log.parquet", sheet=sheet), log)
    spelt = log.assign(
        variant=np.where(log.index % 2, log["variant"], log["variant"].str.replace("_", " ").str.title())
    )
    check_log(results_of(spelt), log)


def test_parts_add_up_in_any_order(tmp_path: Path) -> None:
    log = random_log(10)
    log.to_parquet(tmp_path / "log.parquet")
    parts = [read_stats(tmp_path / "log.parquet", share=(part, 3)) for part in range(3)]
    for one, two, three in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        check_log(((parts[one] + parts[two]) + parts[three]).results(), log)
        check_log((parts[one] + (parts[two] + parts[three])).results(), log)
    random_log(10, 60, users=1).to_parquet(tmp_path / "one.parquet")
    empty = 0
    for part in range(3):
        try:
            read_stats(tmp_path / "one.parquet", share=(part, 3))
        except Refused as error:
            assert f"no rows of users of share {part} of 3; use fewer shares" in str(error)
            empty += 1
    assert empty == 2
    assert not parts[0].apart(read_stats(tmp_path / "log.parquet", share=(1, 4)))
    with pytest.raises(Refused, match="was added before"):
        parts[0] + parts[1] + parts[0]
    (tmp_path / "copy.parquet").write_bytes((tmp_path / "log.parquet").read_bytes())
    with pytest.raises(Refused, match="was added before"):
        read_stats(tmp_path / "log.parquet") + read_stats(tmp_path / "copy.parquet")
    log.drop(columns="engaged").assign(day=4).to_parquet(tmp_path / "less.parquet")
    with pytest.raises(Refused, match="only in one of two parts"):
        read_stats(tmp_path / "log.parquet") + read_stats(tmp_path / "less.parquet")


def test_tables_in_memory_of_any_kind(tmp_path: Path) -> None:
    for table in (
        BASE.assign(more=[[1], [2], [3], [4]]),
        BASE.astype({"impressions": "Int64", "clicks": "Int32"}),
        pd.concat([BASE.astype(object), pd.DataFrame([[""] * 4, [None] * 4], columns=BASE.columns)]),
        BASE.set_index("video_id", drop=False),
    ):
        assert counts(results_of(table)) == BASE.to_numpy().tolist()
    with pytest.raises(Refused, match="two columns 'clicks'"):
        results_of(pd.concat([BASE, BASE[["clicks"]]], axis=1))
    with pytest.raises(Refused, match="values of several kinds"):
        results_of(random_log(12, 60).assign(clicked=[True, "no"] * 30))
    with pytest.raises(Refused, match="no rows"):
        results_of(random_log(12, 60).head(0))
    ids = np.array([2**63 + 5, 7] * 30, np.uint64)
    assert results_of(random_log(12, 60).assign(user_id=ids)).moments is not None
    several = random_log(12, 60).assign(engaged=3)  # a like, a comment and a share
    assert results_of(several).cells["engagements"].sum() == 180


def test_a_file_given_twice(tmp_path: Path) -> None:
    random_log(13).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    with pytest.raises(Refused, match=r"a\.parquet and .*b\.parquet are the same; name each file once"):
        read_results(tmp_path)
    BASE.to_csv(tmp_path / "a.csv", index=False)
    found = read_results([tmp_path / "a.csv", tmp_path / "a.csv"])
    assert counts(found) == BASE.to_numpy().tolist() and said(
        found, "the same as a row before it (and 3 more); kept once"
    )


def test_only_some_rows_of_a_log() -> None:
    log = random_log(11).assign(country=lambda table: np.where(table.index % 3, "CH", "AT"))
    check_log(results_of(log, only={"country": "CH"}), log[log["country"] == "CH"])
    with pytest.raises(Refused, match="only='city' is no column"):
        results_of(log, only={"city": "Bern"})
    with pytest.raises(Refused, match=r"no rows with {'country': 'DE'}; there are others"):
        results_of(log, only={"country": "DE"})


def test_shows_itself() -> None:
    found = results_of(BASE.assign(CTR=0.5, watch_time=2.25))
    assert str(found).startswith(
        "2 videos, 2 variants, 24,998 impressions (summary rows)\n  metrics: ctr, watch_time\n"
    )
    html = found._repr_html_()
    assert "<td>13,000</td>" in html and "<li>&#x27;CTR&#x27;: 4 of 4 rows disagree" in html


def test_polars_is_loaded_only_for_logs() -> None:
    code = "import sys, alignment_video.results; print({'polars', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_the_sheet_in_json_is_a_list_too(tmp_path: Path) -> None:
    rows = [
        {"ad_name": "clip", "video_id": ONE, "variant": "baseline"},
        {"ad_name": "clop", "video_id": ONE, "variant": "hook"},
    ]
    put(tmp_path, json.dumps(rows), "sheet.json")
    table = pd.DataFrame({"Ad name": ["clip", "clop"], "Impressions": [10, 20], "Clicks": [1, 2]})
    assert counts(results_of(table, sheet=tmp_path / "sheet.json")) == [[ONE, "baseline", 10, 1], [ONE, "hook", 20, 2]]


def test_users_by_hash_of_text_are_the_users() -> None:
    ids = pl.Series([f"user {n}" for n in range(200_000)])
    assert ids.hash().n_unique() == len(ids)
