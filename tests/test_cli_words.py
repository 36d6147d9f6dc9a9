"""The commands that edit by words: what they write, what they say, and what they refuse in one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from alignment_video import cli
from alignment_video.core import file_hash
from alignment_video.pictures import read_picture
from alignment_video.video import VideoWriter, film, probe, read_clip, save_picture, sound_packets
from alignment_video.world import Ad

pytestmark = pytest.mark.usefixtures("one_thread")
MINIATURES = ["--model", "mini-words", "--masker", "mini", "--steps", "2"]
AD = Ad(36_200_101, size=(96, 72), seconds=0.7, scenes=1)  # a mug before leaves
LONG = "a mug on leaves " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip, its first frame, and masks."""
    place = tmp_path_factory.mktemp("words")
    film(AD, place / "mug.mp4")
    frame = read_clip(place / "mug.mp4", [0])[0]
    save_picture(place / "mug.png", frame)
    middle = np.zeros(frame.shape[:2], np.uint8)
    middle[30:66, 20:52] = 255
    for name, mask in (("middle", middle), ("none", middle * 0), ("all", middle * 0 + 255)):
        save_picture(place / f"{name}.png", mask)
    with VideoWriter(place / "one.mp4", rate=12) as writer:
        writer.write(frame)
    with VideoWriter(place / "pair.mp4", rate=12) as writer:
        for picture in read_clip(place / "mug.mp4", [0, 8]):
            writer.write(picture)
    return place


def run(capsys: pytest.CaptureFixture[str], *words: str | Path, ending: list[str] = MINIATURES) -> tuple[int, str, str]:
    """The exit code of a command, and what it writes on standard output and standard error."""
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, words), *ending])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def named(out: str) -> list[Path]:
    """The files that are named to be looked at."""
    return [Path(line.strip()) for line in out.split("Look at")[1].strip().splitlines()]


def test_replace(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, made = folder / "mug.mp4", tmp_path / "new" / "hat.mp4"
    code, out, _ = run(capsys, "replace", source, "mug", "hat", "--around", "leaves", "--out", made, "--seed", "3")
    assert code == 0 and out.startswith(f"{made}: mug by hat in 1 of 1 scenes")
    assert [path.name for path in named(out)] == ["hat.mp4", "hat_comparison.mp4", "hat.json"]
    assert all(path.is_file() for path in named(out)) and len([*made.parent.iterdir()]) == 3
    assert probe(made).frames == AD.frames and sound_packets(made)
    facts = json.loads(made.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts["film"]["sha256"] == file_hash(made)
    asked = {name: facts["settings"][name] for name in ("prompt", "around", "steps", "guidance", "seed", "background")}
    assert asked == {
        "prompt": "a {}, leaves", "around": "leaves", "steps": 2, "guidance": 3.0, "seed": 3, "background": False
    }  # fmt: skip


def test_replace_the_background(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "city.mp4"
    code, out, _ = run(capsys, "replace", folder / "mug.mp4", "mug", "city", "--background", "--out", made)
    assert code == 0 and out.startswith(f"{made}: mug by city")
    settings = json.loads(made.with_suffix(".json").read_text(encoding="utf-8"))["settings"]
    assert (settings["prompt"], settings["background"]) == ("{}", True)
    before, after = (read_clip(path, [0])[0].astype(int) for path in (folder / "mug.mp4", made))
    corner = np.abs(before - after)[:20, :20].mean()
    assert corner > 10  # far from the mug


def test_select_keeps_the_rest(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "hat.png"
    code, out, _ = run(capsys, "select", folder / "mug.png", "--inside", "a hat", "--keyword", "mug", "--out", made)
    assert (
        code == 0
        and "of the rest 0 pixels differ\n" in out
        and [path.name for path in named(out)]
        == [
            "hat.png",
            "hat.json",
        ]
    )
    old, new = read_picture(folder / "mug.png"), read_picture(made)
    changed = (old != new).any(-1)
    assert 0 < changed.mean() < 0.6
    told = json.loads(made.with_suffix(".json").read_text(encoding="utf-8"))
    assert (told["keyword"], told.get("outside")) == ("mug", None)


def test_select_with_two_prompts_and_lines(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "beach.jpg"
    lines = ["--structure", "lineart", "--structure-where", "inside"]
    words = ["--inside", "a mug", "--outside", "beach", *lines, "--out", made]  # the keyword is that of --inside
    code, out, _ = run(capsys, "select", folder / "mug.png", *words)
    assert code == 0 and "and what is around it 'beach'" in out and made.is_file()
    told = json.loads(made.with_suffix(".json").read_text(encoding="utf-8"))
    assert told["keyword"] == "a mug"
    (structure,) = told["structure"]
    assert (structure["lines"], structure["where"], structure["model"]) == ("lineart", "inside", "mini-edges")


def test_select_in_frames(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "hat.mp4"
    words = ["--inside", "a hat", "--mask", folder / "middle.png", "--room", "0.1", "--out", made]
    code, out, _ = run(capsys, "select", folder / "pair.mp4", *words)
    assert code == 0 and "of 2 frames" in out and "colour drift" in out and probe(made).frames == 2


def test_what_does_not_fit_a_prompt_is_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    words = ["--inside", LONG, "--mask", folder / "middle.png", "--out", tmp_path / "new.png"]
    code, out, err = run(capsys, "select", folder / "mug.png", *words)
    first, second, *_ = out.splitlines()
    assert code == 0 and first.startswith("Note: the inside prompt is longer than the model reads; this was cut off: '")
    cut = json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))["cut"]["inside"]
    assert (
        repr(cut) in first
        and LONG.strip().endswith(cut)
        and len(second.split(": ", 1)[1]) < 150
        and "UserWarning" not in err
    )
    assert not [each for each in recwarn if "longer than" in str(each.message)]


def test_a_new_thing_of_too_many_words_is_made_of_those_that_fit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "replace", folder / "mug.mp4", "mug", f"hat on {LONG}", "--out", tmp_path / "new.mp4")
    first, second, *_ = out.splitlines()
    assert code == 0 and first.startswith("Note: the prompt is longer than the model reads; this was cut off: '")
    assert first.endswith("a mug on leaves'") and second.startswith(f"{tmp_path / 'new.mp4'}: mug by a hat on a mug")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["replace", "mug.mp4", "necklace", "hat"], "'necklace' is in no scene (most likely "),
        (["replace", "mug.mp4", "Mug", "mug "], "both are the same"),
        (["replace", "mug.mp4", "", "hat"], "the thing to replace is ''"),
        (["replace", "mug.mp4", "mug", " "], "the new thing is ' '"),
        (["replace", "none.mp4", "mug", "hat"], "there is no such file"),
        (["replace", "mug.png", "mug", "hat"], "mug.png"),
        (["replace", "mug.mp4", "mug", "city", "--background", "--around", "sea"], "leave out --around"),
        (["select", "mug.mp4", "--inside", ""], "inside prompt '' says nothing"),
        (["select", "mug.mp4", "--inside", "a mug", "--outside", " "], "outside prompt ' ' says nothing"),
        (["select", "mug.mp4", "--inside", "a mug", "--outside", "a mug"], "are the same prompt"),
        (["select", "one.mp4", "--inside", "a mug"], "a clip of 1 frame"),
        (["select", "pair.mp4", "--inside", "a necklace"], "keyword 'a necklace' is found nowhere"),
        (["select", "pair.mp4", "--inside", "a mug", "--mask", "all.png"], "mask is on every pixel"),
        (["select", "pair.mp4", "--inside", "a mug", "--mask", "none.png"], "mask is empty"),
        (["select", "pair.mp4", "--inside", "a mug", "--mask", "all.png", "--keyword", "mug"], "one of them"),
        (["select", "pair.mp4", "--inside", "a mug", "--room", "3"], "room 3"),
        (["select", "pair.mp4", "--inside", "a mug", "--structure-where", "inside"], "say which with --structure"),
    ],
)
def test_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    """Exit code 1, one line on standard error, and no film."""
    files = [folder / word if word.endswith((".mp4", ".png")) else word for word in words]
    code, _, err = run(capsys, *files, "--out", tmp_path / "new.mp4")
    assert code == 1 and err.startswith("alignment-video: ") and err.count("\n") == 1, err
    assert line in err and not (tmp_path / "new.mp4").exists()
    assert (tmp_path / "new_not_found.png").is_file() == ("in no scene" in line)
    if "in no scene" in line:
        assert str(tmp_path / "new_not_found.png") in err


@pytest.mark.parametrize(
    "words",
    [
        ["replace", "mug.mp4", "mug", "hat"],
        ["replace", "mug.mp4", "mug", "--out", "new.mp4"],
        ["replace", "mug.mp4", "mug", "hat", "--out", "new.mp4", "--steps", "0"],
        ["select", "mug.png", "--out", "new.png"],
        ["select", "mug.png", "--inside", "a mug"],
        ["select", "mug.png", "--inside", "a mug", "--structure", "pencil", "--out", "new.png"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run(capsys, *words, ending=[])[0] == 2
