"""The checks can fail: each is given a defect that it must find, and the same thing without it."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / ".ci"))

import check
import compare
import readme
from common import Tally

Cell = tuple[str, str]
low: list[Cell] = [
    ("code", "#| default_exp low"),
    ("markdown", "# Low\n\n> The lower module."),
    ("code", "#| export\ndef double(x: int) -> int:\n    if x > 100:\n        return 0\n    return 2 * x"),
    ("code", "print(double(4), 'apples')"),
    ("code", "assert double(2) == 4"),
]
high: list[Cell] = [
    ("code", "#| default_exp high"),
    ("markdown", "# High\n\n> The higher module."),
    ("code", "#| export\nfrom tiny.low import double"),
    ("code", "#| export\ndef four(x: int) -> int:\n    return double(double(x))"),
    ("code", "assert four(1) == 4\nfour(3)"),
]


def write_notebook(path: Path, cells: list[Cell]) -> None:
    made = [
        {"cell_type": kind, "id": f"{path.stem[:2]}{i:06}", "metadata": {}, "source": text.splitlines(True)}
        | ({"execution_count": None, "outputs": []} if kind == "code" else {})
        for i, (kind, text) in enumerate(cells)
    ]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    notebook = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    text = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def run(project: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the checks as it stands in `project`."""
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONPATH": str(project)}
    command = [sys.executable, f".ci/{script}.py", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two small notebooks, exported, with the checks."""
    folder = tmp_path / "tiny"
    shutil.copytree(root / ".ci", folder / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
    for script in folder.glob(".ci/*.py"):
        text = script.read_text(encoding="utf-8").replace("alignment_video", "tiny")
        script.write_text(text, encoding="utf-8")
    for name in ("settings.ini", ".gitignore", ".coveragerc"):
        text = (root / name).read_text(encoding="utf-8").replace("alignment_video", "tiny")
        (folder / name).write_text(text, encoding="utf-8")
    write_notebook(folder / "nbs" / "00_low.ipynb", low)
    write_notebook(folder / "nbs" / "10_high.ipynb", high)
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    export(folder)
    return folder


def export(folder: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    subprocess.run([Path(sys.executable).parent / "nbdev_export"], cwd=folder, env=environment, check=True)


def picture(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# comparing outputs


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss 0.123 after 10 steps", "loss 0.124 after 10 steps"),
        ("1.5e-03", "1.6e-03"),
        ("9.99e-01", "1.00e+00"),
        ("-0.00", "0.00"),
        ("-0.0%", "+0.1%"),
        ("PSNR 41.23dB", "PSNR 41.22dB"),
        ("a   9.99\nb  10.00", "a 10.00\nb  10.01"),
        ("1,234.5", "1,234.6"),
        ("p = 1e-10", "p = 1e-10"),
    ],
)
def test_numbers_within_the_printed_precision_are_the_same(old: str, new: str) -> None:
    assert compare.same_text(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss 0.123", "loss 0.125"),
        ("10 steps", "11 steps"),
        ("1,234 steps", "1,235 steps"),
        ("0.5", "0.59999"),
        ("0.3", "0.5"),
        ("5", "5.02"),
        ("5", "5.0"),
        ("0.1", "-0.1"),
        ("-0.2%", "+0.0%"),
        ("1e-05", "3e-05"),
        ("1e-05", "2e-05"),
        ("p = 1e-10", "p = 3e-10"),
        ("1.5e-03", "1.5e-04"),
        ("1.5e-03", "1.7e-03"),
        ("1e-05", "0.00001"),
        ("version 2.13.0", "version 2.14.0"),
        ("early_boost", "late_boost"),
        ("True", "False"),
        ("a b", "a\nb"),
        ("1.0", "nan"),
        ("scene_001", "scene_002"),
    ],
)
def test_other_words_and_numbers_differ(old: str, new: str) -> None:
    assert not compare.same_text(old, new)


def test_pictures_by_tolerance() -> None:
    rng = np.random.default_rng(0)
    old = rng.integers(0, 255, (6, 6, 3)).repeat(40, 0).repeat(40, 1)
    moved = old.copy()
    moved[:20, :20] = 255 - moved[:20, :20]
    assert not compare.picture_difference(picture(old), picture(np.clip(old + rng.normal(0, 2, old.shape), 0, 255)))
    assert not compare.picture_difference(picture(old), picture(old[:-1]))
    assert compare.picture_difference(picture(old), picture(moved))
    assert compare.picture_difference(picture(old), picture(old[:-20]))


def figure(x: np.ndarray, y: np.ndarray, style: str = "-", dpi: float = 100, **options: object) -> np.ndarray:
    """A plot as a page shows it."""
    axis = (drawn := Figure(figsize=(5, 3), layout="tight")).add_subplot()
    axis.plot(x, y, style, **options)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_a_figure_drawn_a_little_differently_is_the_same() -> None:
    x = np.linspace(0, 6, 200)
    old = figure(x, np.sin(x))
    noise = np.random.default_rng(0).integers(-2, 3, old.shape)
    others = {
        "moved by a pixel": np.roll(old, (1, 1), (0, 1)),
        "values ± 2": (old + noise).clip(0, 255),
        "not smoothed": figure(x, np.sin(x), antialiased=False),
        "data moved by half a pixel": figure(x, np.sin(x) + 0.003),
        "rounded to another size": figure(x, np.sin(x), dpi=99.9),
    }
    wrong = {name: compare.picture_difference(picture(old), picture(new)) for name, new in others.items()}
    assert not any(wrong.values()), wrong


def test_a_figure_that_shows_something_else_differs() -> None:
    x = np.linspace(0, 6, 200)
    old = figure(x, np.sin(x))
    erased = np.where(np.ptp(old, axis=2, keepdims=True) > 20, 255, old)
    points = np.random.default_rng(0).random((2, 30))
    moved = points.copy()
    moved[:, 7] += 0.05
    pairs = {
        "sine and cosine": (old, figure(x, np.cos(x))),
        "up and down": (figure(x, x), figure(x, 6 - x)),
        "an axis ten times as long": (old, figure(x, 10 * np.sin(x))),
        "the data erased": (old, erased),
        "another colour": (old, figure(x, np.sin(x), color="C1")),
        "one point of thirty moved": (figure(*points, "o", ms=3), figure(*moved, "o", ms=3)),
    }
    same = [name for name, pair in pairs.items() if not compare.picture_difference(*map(picture, pair))]
    assert not same, same


def test_committed_figures_without_their_data_differ() -> None:
    seen = 0
    for cell in json.loads((root / "nbs" / "02_outcomes.ipynb").read_text(encoding="utf-8"))["cells"]:
        for data in (output.get("data", {}).get("image/png") for output in cell.get("outputs", [])):
            if data:
                old = np.asarray(compare.decode(compare.text(data)))
                erased = np.where(np.ptp(old, axis=2, keepdims=True) > 20, 255, old)
                assert compare.picture_difference(picture(old), picture(erased))
                seen += 1
    assert seen


def test_pieces_of_a_print_are_joined() -> None:
    def stream(*texts: str, name: str = "stdout") -> list[dict[str, str]]:
        return [{"output_type": "stream", "name": name, "text": text} for text in texts]

    assert not list(compare.differences(stream("a\n", "b\n"), stream("a\nb\n")))
    assert list(compare.differences(stream("a\n"), stream("a\n") + stream("w", name="stderr")))
    assert list(compare.differences(stream("a\n"), []))


# the runner


def test_the_last_line_holds_true_counts(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def says(code: str) -> tuple[str, list[str]]:
        return "", [sys.executable, "-c", code]

    monkeypatch.setattr(
        check,
        "checks",
        {
            "good": says("print('5 passed in 1s'); print('3 passed, 0 failed')"),
            "bad": says("print('1 passed, 2 failed'); raise SystemExit(1)"),
            "dead": says("raise SystemExit('broken')"),
            "liar": says("print('4 passed, 0 failed'); raise SystemExit(2)"),
            "last": says("print('1 passed, 0 failed')"),
        },
    )
    assert check.main([]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "9 passed, 4 failed"
    assert check.main(["good", "last"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "4 passed, 0 failed"
    assert check.main(["nothing"]) == 1


def test_finding_nothing_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Tally().end()
    assert ended.value.code
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"


# 1 sync


def test_sync_finds_each_way_to_be_out_of_step(project: Path) -> None:
    module, notebook = project / "tiny" / "low.py", project / "nbs" / "00_low.ipynb"
    clean_module, clean_notebook = module.read_text(), notebook.read_text()
    assert last_line(run(project, "sync")).endswith(" 0 failed"), run(project, "sync").stdout

    module.write_text(clean_module.replace("2 * x", "3 * x"))
    done = run(project, "sync")
    assert done.returncode == 1 and "tiny/low.py is not what its notebook gives" in done.stdout
    assert "3 * x" in module.read_text(), "the developer's tree is left alone"
    module.write_text(clean_module)

    (project / "tiny" / "old.py").write_text(clean_module)
    assert "tiny/old.py comes from no notebook" in run(project, "sync").stdout
    (project / "tiny" / "old.py").unlink()

    notebook.write_text(clean_notebook.replace('"execution_count": null', '"execution_count": 7'))
    assert "nbs/00_low.ipynb is not clean" in run(project, "sync").stdout
    notebook.write_text(clean_notebook)

    module.unlink()
    assert "tiny/low.py is missing" in run(project, "sync").stdout


def test_sync_fails_without_notebooks(project: Path) -> None:
    shutil.rmtree(project / "nbs")
    shutil.rmtree(project / "tiny")
    assert run(project, "sync").returncode == 1


# 2 notebooks


def test_notebooks_count_assertions_and_lines(project: Path) -> None:
    done = run(project, "notebooks")
    assert "2 notebooks, 2 assertions" in done.stdout
    table = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith("tiny/")}
    assert table["tiny/low.py"][1:] == ["1", "75.0%"], "one line of low.py, `return 0`, never runs"
    assert table["tiny/high.py"][1:] == ["0", "100.0%"]


def test_notebooks_find_a_wrong_assertion_and_a_page_without_any(project: Path) -> None:
    write_notebook(project / "nbs" / "00_low.ipynb", [*low[:-1], ("code", "assert double(2) == 5")])
    done = run(project, "notebooks", "nbs/00_low.ipynb")
    assert done.returncode == 1 and "AssertionError" in done.stdout and last_line(done) == "0 passed, 1 failed"
    write_notebook(project / "nbs" / "00_low.ipynb", low[:-1])
    assert "no assertion in it runs" in run(project, "notebooks", "nbs/00_low.ipynb").stdout


def test_notebooks_count_only_assertions_that_run(project: Path) -> None:
    dead = "if False:\n    assert double(2) == 4\ndef never():\n    assert double(2) == 4\n    test_eq(1, 1)"
    exported = "#| export\ndef checked(x: int) -> int:\n    assert x > 0\n    return x"
    idle = [*low[:-1], ("code", exported), ("code", "checked(1)"), ("code", dead)]
    write_notebook(project / "nbs" / "00_low.ipynb", idle)
    export(project)
    done = run(project, "notebooks", "nbs/00_low.ipynb")
    assert done.returncode == 1 and "no assertion in it runs" in done.stdout, done.stdout
    imports = "from fastcore.test import expect_fail, test_eq"
    busy = "for i in range(9):\n    assert double(i) == 2 * i\nwith expect_fail():\n    assert 0\n"
    busy += "never() or test_eq(1, 1)"
    write_notebook(project / "nbs" / "00_low.ipynb", [*idle, ("code", imports), ("code", busy)])
    done = run(project, "notebooks", "nbs/00_low.ipynb")
    assert "1 notebooks, 5 assertions" in done.stdout, done.stdout + done.stderr


# 3 pages


def test_pages_save_compare_and_find_changes(project: Path) -> None:
    page = project / "nbs" / "00_low.ipynb"
    write_notebook(page, [*low, ("code", "#| eval: false\nraise ValueError")])
    notebook = json.loads(page.read_text())
    kept = [{"name": "stdout", "output_type": "stream", "text": ["a long result\n"]}]
    notebook["cells"][-1]["outputs"] = kept
    page.write_text(json.dumps(notebook))

    assert "outputs were none, now stdout" in run(project, "pages", "nbs/00_low.ipynb").stdout
    assert run(project, "pages", "--save", "nbs/00_low.ipynb").returncode == 0
    saved = page.read_text()
    assert json.loads(saved)["cells"][-1]["outputs"] == kept
    assert "unchanged" in run(project, "pages", "--save", "nbs/00_low.ipynb").stdout
    assert page.read_text() == saved
    assert run(project, "pages", "nbs/00_low.ipynb").returncode == 0
    assert "is not clean" not in run(project, "sync").stdout

    page.write_text(saved.replace("8 apples", "8 pears"))
    done = run(project, "pages", "nbs/00_low.ipynb")
    assert done.returncode == 1 and "-8 pears" in done.stdout and "+8 apples" in done.stdout


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; print('careful', file=sys.stderr); 1", "writes on standard error"),
        ("1 / 0", "ZeroDivisionError"),
        ("import tempfile; print(tempfile.mkdtemp(dir='/tmp'))", "shows this machine"),
        ("x = 1", "the page shows no output"),
    ],
)
def test_pages_refuse(project: Path, code: str, said: str) -> None:
    write_notebook(project / "nbs" / "20_bad.ipynb", [("markdown", "# Bad"), ("code", code)])
    done = run(project, "pages", "nbs/20_bad.ipynb")
    assert done.returncode == 1 and said in done.stdout


# 5 order


def test_order_finds_upward_and_development_imports(project: Path) -> None:
    assert "imports only go down" not in run(project, "order").stdout
    body = "#| export\ndef early():\n    from tiny import high\n    import nbdev\n    return high, nbdev\n"
    body += "def late():\n    import importlib\n    __import__('execnb.shell')\n"
    body += "    importlib.import_module(name='.high', package='tiny')\n    return importlib.import_module('tiny.high')"
    write_notebook(project / "nbs" / "00_low.ipynb", [*low, ("code", body)])
    export(project)
    said = run(project, "order").stdout
    assert said.count("(00_low.ipynb) imports high (10_high.ipynb): imports only go down") == 3
    assert "imports execnb.shell, which is not installed with the package" in said
    assert "imports nbdev, which is not installed with the package" in said


def test_order_finds_a_stale_readme_and_a_heavy_import(project: Path) -> None:
    write_notebook(project / "nbs" / "index.ipynb", [("markdown", "# Tiny\n\n[low](00_low.ipynb) ![a](images/a.png)")])
    assert "README.md: not what" in run(project, "order").stdout
    run(project, "readme")
    assert "README.md: not what" not in run(project, "order").stdout
    assert "[low](nbs/00_low.ipynb) ![a](nbs/images/a.png)" in (project / "README.md").read_text()
    (project / "tiny" / "cli.py").write_text("import torch\n")
    assert "import tiny.cli: loads torch" in run(project, "order").stdout


def test_readme_links() -> None:
    assert (
        readme.relative("[a](../LICENSE) [b](#here) [c](https://x.org/y)")
        == "[a](LICENSE) [b](#here) [c](https://x.org/y)"
    )


# 7 site


def test_site_check_finds_defects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import site_check

    good = '<h1 id="top">A</h1><a href="b.html#there">b</a><img src="x.png" alt="a plot">'
    (tmp_path / "b.html").write_text('<h1>B</h1><p id="there"></p>')
    monkeypatch.setattr(site_check, "html", tmp_path)
    monkeypatch.setattr(site_check.site_build, "symbols", lambda: {"a.html#top": "top"})

    def failures(page: str) -> int:
        (tmp_path / "a.html").write_text(page)
        tally = Tally()
        site_check.check_pages(tally)
        return tally.failed

    assert failures(good) == 0
    assert failures(good.replace("#there", "#nowhere")) == 1
    assert failures(good.replace("b.html", "c.html")) == 1
    assert failures(good.replace("a plot", "")) == 1
    assert failures(good.replace('id="top"', "")) == 1
    assert failures(good + "<h1>again</h1>") == 1
    assert failures(good + '<script src="https://elsewhere.org/x.js"></script>') == 1
    assert failures(good + "<p>#| label: fig-a</p>") == 1
    assert failures(good + '<a href="https://example.org/alignment-video/x">x</a>') == 1


def test_formulas() -> None:
    from docutils import nodes
    from mathml import mathml

    made = mathml(nodes.math("", r"\begin{aligned} a &= \frac{1}{2} \\ &= b \end{aligned}"), "block")
    assert "<mfrac>" in made and "&<" not in made


# 8 extra


def test_extra_names_what_is_skipped(project: Path) -> None:
    (project / "tests").mkdir()
    code = "import pytest\n\ndef test_a():\n    pytest.skip('no films here')\n\ndef test_b():\n    pass\n"
    (project / "tests" / "test_it.py").write_text(code)
    done = run(project, "extra")
    assert "skipped tests.test_it::test_a: no films here" in done.stdout, done.stdout + done.stderr
    assert last_line(done) == "1 passed, 0 failed"


# the environment


def test_env_says_clearly_that_there_is_no_python(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(root / ".ci" / "env", tmp_path / ".ci")
    for name in ("constraints.txt", "settings.ini", "setup.py"):
        (tmp_path / name).write_text(name)
    done = subprocess.run(
        [".ci/env"], cwd=tmp_path, env=os.environ | {"PYTHON": "/bin/false"}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "is not a Python 3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()
