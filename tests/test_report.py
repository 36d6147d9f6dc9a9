"""The report of hostile, tiny and large experiments, and that it is the same every time."""

import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from alignment_video.analysis import Analysis, analyse
from alignment_video.outcomes import VARIANTS
from alignment_video.report import figures_of, html_table, inline_svg, report_page, verdict, write_report
from alignment_video.results import results_of

SEVEN = [*VARIANTS]
DOSES = dict(zip(SEVEN, (0.3, 0.36, 0.35, 0.37, 0.45, 0.24, 0.301), strict=True))


def table_of(
    videos: int = 9,
    variants: list[str] = SEVEN,
    name: Callable[[int], str] = "v{}".format,
    industries: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Summary rows in which attention does something."""
    rng = np.random.default_rng(videos)
    table = pd.DataFrame({"video_id": np.repeat([name(n) for n in range(videos)], len(variants))})
    table["variant"] = variants * videos
    table["alignment"] = table["variant"].map(DOSES).fillna(0.4) * rng.uniform(0.97, 1.03, len(table))
    table["impressions"] = rng.integers(2_000, 4_000, len(table))
    table["clicks"] = rng.binomial(table["impressions"], 0.04 * np.exp(table["alignment"] / 0.3 - 1))
    if industries:
        table["industry"] = np.repeat(np.resize([*industries], videos), len(variants))
    return table


def write(table: pd.DataFrame, out: Path, metrics: tuple[str, ...] = ("ctr",)) -> tuple[Analysis, str]:
    analysis = analyse(results_of(table), metrics)
    write_report(analysis, out)
    return analysis, (out / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """A page as a browser takes it: which elements there are, with which attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def safe(page: str) -> Page:
    """What holds for every report: one file, one script, nothing from elsewhere, nothing that runs by itself."""
    read = Page(page)
    assert read.count("script") == 1 and read.count("style") >= 1 and not read.count("iframe") + read.count("img")
    for tag, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data", "poster"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert not re.search(
        r"@import|url\(\s*['\"]?(?!#)", re.sub("<text.*?</text>|<td.*?</td>", "", page, flags=re.DOTALL)
    )
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "two elements with one id"
    tags = "".join(re.findall("<[^>]*>", page))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', tags))
    assert {a or b for a, b in used} <= {*ids}
    return read


HOSTILE = (
    "<script>alert(1)</script>", "</style></script><img src=x onerror=alert(1)>", "\"><b onclick='x()'>", "&amp;&lt;",
    "=HYPERLINK(\"https://example.org\")", "{{7*7}} ${x}", "line\nbreak", "\u202egnp.exe", "x" * 600,
)  # fmt: skip


BAD = ("<script>alert(2)</script>", "</svg><b>x", '"&')


@pytest.mark.filterwarnings("error")
def test_hostile_names(tmp_path: Path) -> None:
    table = table_of(
        name=lambda n: HOSTILE[n % len(HOSTILE)], industries=("<script>alert(2)</script>", "</svg><b>x", '"&')
    )
    analysis, page = write(table, tmp_path / "report")
    read = safe(page)
    assert "alert(1)</script>" not in page and read.count("b") == 0
    assert "<script>alert(1)</script>" in read.text and "x" * 600 in read.text
    assert {e.term for e in analysis.of("heterogeneity")} >= {*BAD}
    for path in (tmp_path / "report" / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_text())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "industries",
    [
        ("$\\frac$", "a_$b^$c", "100 % $"), ("$$", "$5–$10", "\\$"), ("<b>", "x" * 300, "a\nb"), ("=1+1", "+2", "@x"),
        ("#ffffff", "url(#x)", 'id="'), ("長い", "Ünïcödé", "🎉"),
    ],
)  # fmt: skip
def test_names_that_a_picture_cannot_hold_as_they_are(industries: tuple[str, ...], tmp_path: Path) -> None:
    results = results_of(table_of(variants=["baseline", "full_boost"], industries=industries).drop(columns="alignment"))
    analysis = analyse(results, ["ctr"])
    write_report(analysis, tmp_path / "report")
    safe((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert {e.term for e in analysis.of("heterogeneity")} >= {*industries}
    figure = figures_of(analysis)["groups"]
    labels = [label.get_text().replace(r"\$", "$") for label in figure.axes[0].get_yticklabels()]
    assert all(name in labels or len(name) > 40 for name in industries) and max(map(len, labels)) <= 45
    drawing = inline_svg(figure, "groups", "")
    ElementTree.fromstring(drawing.replace("xlink:href", "href"))
    shown = "".join(ElementTree.fromstring(drawing).itertext())
    assert all(name in shown for name in industries if len(name) <= 40 and "\n" not in name), shown
    lines = pd.read_csv(tmp_path / "report" / "effects.csv", dtype=str, keep_default_na=False)
    assert not lines.map(lambda cell: bool(re.match(r"[=+@]|-[^\d.]", cell))).to_numpy().any()  # no formula


def test_variants_of_ones_own(tmp_path: Path) -> None:
    names = ["baseline", "full_boost", "placebo", "a.b_c_1", "h" * 80, "nan_", "1e5"]
    analysis, page = write(table_of(5, variants=names), tmp_path / "report")
    read = safe(page)
    assert {e.variant for e in analysis.of("lift")} == {*names[1:]}
    assert "h" * 80 in read.text and "a.b c 1" in read.text


@pytest.mark.parametrize("videos", [1, 2])
@pytest.mark.parametrize("variants", [["baseline", "full_boost"], ["baseline", "placebo"], SEVEN])
def test_small_experiments(videos: int, variants: list[str], tmp_path: Path) -> None:
    analysis, page = write(table_of(videos, variants), tmp_path / "report")
    read = safe(page)
    assert f"{videos} video{'s' * (videos > 1)}, {len(variants)} versions" in read.text
    assert "nan" not in re.sub(r"nance|nant", "", read.text.lower()) and "inf " not in read.text
    assert ("There is no placebo" in read.text) == ("placebo" not in variants)
    assert "nothing follows for another one" in read.text
    assert (tmp_path / "report" / "figures" / "lifts.png").is_file() and verdict(analysis)


def test_a_large_experiment(tmp_path: Path) -> None:
    table = table_of(300, name=lambda n: f"72280233523969{n:05d}", industries=("Beauty", "Food", "Toys"))
    rng = np.random.default_rng(0)
    table = table.assign(conversions=table["clicks"] // 10, watch_time=rng.gamma(20, 0.2, len(table)))
    _, page = write(table, tmp_path / "report", ())
    assert len(page) < 2_000_000 and sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 6_000_000
    read = safe(page)
    assert all(f"72280233523969{n:05d}" in read.text for n in range(300))
    assert "<summary>300 videos" in page and "<details open" not in page


def test_the_same_twice(tmp_path: Path) -> None:
    """No clock, no random ids: the files are the same to the byte, whatever was drawn before."""
    table = table_of(industries=("Beauty", "Food", "Toys")).assign(watch_time=4.25)
    for name in ("one", "two"):
        write(table, tmp_path / name, ())
    hashes = [
        {path.relative_to(tmp_path / name).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
         for path in sorted((tmp_path / name).rglob("*")) if path.is_file()}
        for name in ("one", "two")
    ]  # fmt: skip
    assert [name for name in hashes[0] if hashes[0][name] != hashes[1].get(name)] == []
    figures = [name for name in hashes[0] if name.startswith("figures/")]
    assert {"effects.csv", "effects.json", "report.html"} == {*hashes[0]} - {*figures}
    stems = {Path(name).stem for name in figures}
    assert stems == {"lifts", "other_metrics", "dose", "timing", "placebo", "groups"}
    assert {*figures} == {f"figures/{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    assert all((tmp_path / "one" / name).read_bytes()[:4] == b"\x89PNG" for name in figures if name.endswith("png"))


def test_dark_light_and_paper(tmp_path: Path) -> None:
    _, page = write(table_of(industries=("Beauty", "Food", "Toys")), tmp_path / "report")
    style = re.findall("<style>(.*?)</style>", page, re.DOTALL)[0]
    assert (
        "color-scheme: light dark" in style
        and "@media (prefers-color-scheme: dark)" in style
        and "@media print" in style
    )
    assert (
        page.startswith("<!doctype html>") and 'lang="en"' in page and 'charset="utf-8"' in page and "viewport" in page
    )
    drawings = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert drawings and all('role="img"' in one and re.search('aria-label="[^"]+', one) for one in drawings)
    for one in drawings:  # colours are the page's own, but for those that are bright on both
        assert {*re.findall("#[0-9a-f]{6}", re.sub("<text.*?</text>", "", one))} <= {"#5aa469"}, one[:200]
    for name in re.findall(r"var\((--[a-z]+)\)", page):
        assert f"{name}:" in style, name


def test_figures_are_as_many_as_there_are_answers(tmp_path: Path) -> None:
    for table, names in (
        (table_of(1), {"lifts", "dose", "timing", "placebo"}),
        (table_of(4, ["baseline", "full_boost"]).drop(columns="alignment"), {"lifts"}),
    ):
        analysis = analyse(results_of(table), ["ctr"])
        assert {"lifts"} <= {*figures_of(analysis)} <= names
    write_report(analysis, tmp_path)
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"lifts"}


def test_an_arm_without_attention_measured_is_no_fault(tmp_path: Path) -> None:
    table = table_of()
    for variant in ("early_boost", "placebo"):
        some = table.assign(alignment=table["alignment"].where(table["variant"] != variant))
        page = report_page(analysis := analyse(results_of(some), ["ctr"]), figures_of(analysis))
        safe(page)


def test_what_is_in_the_files_is_in_the_page(tmp_path: Path) -> None:
    analysis, page = write(table_of(5), tmp_path / "report")
    kept = json.loads((tmp_path / "report" / "effects.json").read_text())
    lines = pd.read_csv(tmp_path / "report" / "effects.csv", keep_default_na=False)
    read = safe(page)
    assert len(kept) == len(lines) == len(analysis.effects) and f"{len(kept)} answers" in read.text
    assert lines["question"].tolist() == [row["question"] for row in kept]
    for row in kept:
        assert row["verdict"] in read.text and all(word in read.text for word in row["warnings"])
    assert analysis.results.sha256 in read.text
    for reason in analysis.skipped:
        assert reason in read.text


def test_what_an_edit_changed_beside_attention_stands_with_the_checks() -> None:
    table = table_of(20)
    rng, source = np.random.default_rng(1), np.repeat(np.linspace(0.2, 0.4, 20), len(SEVEN))
    rows = table.assign(contrast=source, brightness=source + rng.normal(0, 1e-4, len(table)))
    rows.loc[rows["variant"] == "full_boost", "contrast"] += 0.05
    analysis = analyse(results_of(rows), ["ctr"])
    read = safe(report_page(analysis, {}))
    assert "Contrast of the films: changed with the edit (full boost +0.8" in read.text and "Delivery" not in read.text
    assert "Brightness of the films: much the same in all versions." in read.text


def test_a_table_is_escaped() -> None:
    told = html_table(pd.DataFrame({"<a>": ["</td><script>", "&"], "b": [1.5, "é"]}))
    read = Page(told)
    assert read.count("script") == read.count("a") == 0 and "</td><script>" in read.text and "<a>" in read.text
