"""What the page about scenes cannot hold: kills, many bad files, long videos, films from real cameras."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_video.core import Refused, Study
from alignment_video.scenes import (
    Transition,
    _joined,
    _picture_frame,
    brightness,
    contrast,
    cut_video,
    cut_videos,
    fades,
    find_scenes,
    hard_cuts,
    migrate,
    migration_counts,
    plan_migration,
    read_scenes,
    scene_signals,
)
from alignment_video.video import Encoding, Timeline, VideoWriter, film, probe, read_clip
from alignment_video.world import Ad, Scene

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_clips"
real_clips = sorted(REAL.glob("*.mp4"))
QUICK = Encoding(preset="ultrafast")
SHOTS = [
    [Scene("test of scenes", number, size=(160, 90), frames=40, keyword="mug").draw(t)[0] for t in range(40)]
    for number in (1, 2, 3)
]


def write(path: Path, pictures: list[np.ndarray], rate: int = 24) -> Path:
    with VideoWriter(path, rate=rate, encoding=QUICK) as writer:
        for image in pictures:
            writer.write(image)
    return path


def three_scenes(path: Path) -> Path:
    """Cuts at 20 and 40; ends at 60."""
    return write(path, SHOTS[0][:20] + SHOTS[1][:20] + SHOTS[2][:20])


@pytest.mark.parametrize(
    ("seed", "size", "rate"), [(2001, (270, 480), 30), (2002, (320, 180), 60), (2003, (240, 240), 12)]
)
def test_other_sizes_and_rates(tmp_path: Path, seed: int, size: tuple[int, int], rate: int) -> None:
    """Hard cuts exact, dissolves within a quarter of a second, nothing else, at rates that were never tuned on."""
    ad = Ad(seed, size=size, rate=rate, seconds=4)
    film(ad, tmp_path / "ad.mp4", QUICK)
    table = find_scenes(tmp_path / "ad.mp4")
    found = table["start_frame"].tolist()[1:]
    assert len(found) == len(ad.cuts)
    for frame, cut in zip(found, ad.cuts, strict=True):
        assert abs(frame - cut.frame) <= (0 if cut.kind == "cut" else rate // 4)
    assert table["transition"].tolist() == ["start", *(cut.kind for cut in ad.cuts)]


def test_a_turned_film_with_uneven_times(tmp_path: Path) -> None:
    """Pictures come upright, and scenes begin at the times of their frames."""
    import av

    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    ticks = np.cumsum([0, *np.random.default_rng(1).choice([20, 33, 50], 59)]).tolist()
    with av.open(str(turned), "w", options={"video_track_timescale": "1000"}) as output:
        stream = output.add_stream("libx264", rate=24, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        stream.set_display_rotation(-90)
        for tick, image in zip(ticks, SHOTS[0][:30] + SHOTS[1][:30], strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(image)), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    write(plain, SHOTS[0][:30] + SHOTS[1][:30])
    assert probe(turned).rotation == 90 and probe(turned).variable_rate
    rows = cut_video(Study(tmp_path / "study"), turned)
    assert rows["start_frame"].tolist() == [0, 30]
    assert rows["start_time"].tolist() == [0.0, ticks[30] / 1000]
    assert rows["end_time"].tolist() == [ticks[30] / 1000, float(probe(turned).duration)]
    stored = cv2.imread(str(Study(tmp_path / "study").scene_picture("turned", 2)))[..., ::-1]
    drawn = SHOTS[1][rows["picture_frame"][1] - 30]
    assert stored.shape == drawn.shape and np.abs(stored.astype(int) - drawn).mean() < 6


@given(
    st.lists(st.tuples(st.integers(1, 199), st.floats(1, 200)), max_size=12, unique_by=lambda item: item[0]),
    st.sampled_from([0, 0.1, 0.5, 2.0, 9.0]),
)
def test_no_scene_is_too_short(cuts: list[tuple[int, float]], least: float) -> None:
    """Whatever was found: what is left are some of the borders, and scenes of at least the length asked for."""
    found = sorted(Transition(frame, "cut", 0, strength) for frame, strength in cuts)
    timeline = Timeline([1001 * tick for tick in range(200)], 200 * 1001, Fraction(1, 24000))
    left = _joined(found, timeline, least)
    assert set(left) <= set(found) and left == sorted(left)
    borders = [0, *(cut.frame for cut in left), 200]
    lengths = [(b - a) * Fraction(1001, 24000) for a, b in pairwise(borders)]
    assert not left or min(lengths) >= Fraction(str(least))
    if found and least == 0:
        assert left == found


@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 40), st.integers(0, 40))
def test_the_picture_lies_inside_its_scene(start: int, length: int, fading_in: int, fading_out: int) -> None:
    frame = _picture_frame(start, start + length, fading_in, fading_out)
    assert start <= frame < start + length
    if fading_in == fading_out == 0:
        assert frame == (start + start + length) // 2
    if fading_in / 2 + fading_out / 2 + 2 < length:
        assert frame >= start + fading_in / 2 and frame < start + length - fading_out / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
def test_brightness_and_contrast_of_any_picture(height: int, width: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    luma = (picture.astype(np.float64) * [0.2126, 0.7152, 0.0722]).sum(2) / 255
    assert abs(brightness(picture) - luma.mean()) < 1e-6 and abs(contrast(picture) - luma.std()) < 1e-6


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture_has_no_brightness(bad: np.ndarray) -> None:
    with pytest.raises(Refused, match="a picture of"):
        brightness(bad)


BLACK = [np.zeros_like(SHOTS[0][0])]


def faded_in(pictures: list[np.ndarray]) -> list[np.ndarray]:
    return [np.round(image * min(1, t / 12)).astype(np.uint8) for t, image in enumerate(pictures)]


@pytest.mark.parametrize(
    ("pictures", "starts", "kinds"),
    [
        (BLACK * 36 + SHOTS[0], [0, 36], ["start", "cut"]),
        (BLACK * 36 + faded_in(SHOTS[0]), [0], ["start"]),
        (SHOTS[0] + BLACK * 48 + SHOTS[1], [0, 40, 88], ["start", "cut", "cut"]),
        (SHOTS[0] + BLACK * 24 + faded_in(SHOTS[1]), [0, 40], ["start", "cut"]),
    ],
    ids=["begins black", "fades in from black", "black between cuts", "cut to black, then faded in"],
)
def test_black_that_is_no_fade(tmp_path: Path, pictures: list[np.ndarray], starts: list[int], kinds: list[str]) -> None:
    table = find_scenes(write(tmp_path / "black.mp4", pictures))
    assert (table["start_frame"].tolist(), table["transition"].tolist()) == (starts, kinds)


def test_a_fade_is_as_strong_as_its_scenes_differ(tmp_path: Path) -> None:
    """A short scene after a fade, then a cut to a picture that hardly differs: the cut goes, the fade stays."""
    like = [np.clip(image.astype(int) + 30, 0, 255).astype(np.uint8) for image in SHOTS[1]]
    away = faded_in(SHOTS[0][::-1])[::-1]
    video = write(tmp_path / "ad.mp4", away + BLACK * 4 + faded_in(SHOTS[1][:22]) + like)
    signals = scene_signals(video)
    cuts = hard_cuts(signals)
    (fade,) = fades(signals, cuts)
    assert [cut.frame for cut in cuts] == [66] and fade.strength > cuts[0].strength > 20
    table = find_scenes(video, min_seconds=1.2)
    assert table["transition"].tolist() == ["start", "fade"]


def test_bad_videos_among_good_ones(tmp_path: Path) -> None:
    """Each bad one is told in one line; good ones are cut; nothing of a bad one enters the study."""
    good = three_scenes(tmp_path / "good.mp4")
    bad = {
        "text.mp4": b"Dear diary\n" * 50,
        "empty.mp4": b"",
        "half.mp4": good.read_bytes()[: good.stat().st_size // 2],
        "nan.mp4": good.read_bytes(),
        "with blank.mp4": good.read_bytes(),
        "film.xyz": good.read_bytes(),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    study, lines = Study(tmp_path / "study"), list[str]()
    done = cut_videos(study, [*(tmp_path / name for name in bad), tmp_path / "none.mp4", good], progress=lines.append)
    assert done.cut == ["good"] and len(lines) == 8
    assert set(done.failed) == {str(tmp_path / name) for name in [*bad, "none.mp4"]}
    assert all("\n" not in line for line in [*lines, *done.failed.values()])
    assert sorted(path.name for path in study.videos.iterdir()) == ["good.mp4"]
    assert [path.name for path in study.scenes.iterdir()] == ["good"]
    assert read_scenes(study)["start_frame"].tolist() == [0, 20, 40]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    """Unchanged: passed over. Picture missing, file changed or other setting: cut again. Copied: known by its hash."""
    study, video = Study(tmp_path / "study"), three_scenes(tmp_path / "ad.mp4")
    cut_video(study, video)
    picture = study.scene_picture("ad", 2)
    before = picture.stat().st_mtime_ns
    assert cut_videos(study, [video, video]).unchanged == ["ad"]
    os.utime(video)  # touched: the hash decides
    assert cut_videos(study, [study.video("ad")]).unchanged == ["ad"] and picture.stat().st_mtime_ns == before
    picture.unlink()
    assert cut_videos(study, [video]).cut == ["ad"] and picture.is_file()
    assert cut_videos(study, [video], min_seconds=0.4).cut == ["ad"]
    assert cut_videos(study, [video], min_seconds=0.4, force=True).cut == ["ad"]
    os.unlink(video)
    write(video, SHOTS[2][:30])
    assert "another video" in cut_videos(study, [video]).failed[str(video)]
    os.replace(video, study.video("ad"))
    assert len(cut_video(study, study.video("ad"))) == 1
    assert [path.name for path in picture.parent.iterdir()] == ["ad-Scene-001-01.jpg"]


def test_only_own_pictures_are_removed(tmp_path: Path) -> None:
    """A picture that somebody changed stays, though its scene is gone."""
    study, video = Study(tmp_path / "study"), three_scenes(tmp_path / "ad.mp4")
    cut_video(study, video)
    theirs, higher = study.scene_picture("ad", 3), study.scene_picture("ad", 9)
    higher.write_bytes(b"mine")
    theirs.write_bytes(b"changed")
    with pytest.raises(Refused, match="made elsewhere"):
        study.scene_picture("ad", 1).write_bytes(b"changed")
        cut_video(study, video, min_seconds=2)
    assert len(cut_video(study, video, min_seconds=2, force=True)) == 1
    assert sorted(path.name[-10:-7] for path in theirs.parent.iterdir()) == ["001", "003", "009"]
    assert theirs.read_bytes() == b"changed" and higher.read_bytes() == b"mine"


def test_pictures_of_a_stopped_run_are_replaced_with_force_only(tmp_path: Path) -> None:
    """Pictures without rows: the same setting finds them; another is refused, with the way out."""
    study, video = Study(tmp_path / "study"), three_scenes(tmp_path / "ad.mp4")
    cut_video(study, video)
    study.scene_table.unlink()
    assert len(cut_video(study, video)) == 3
    study.scene_table.unlink()
    with pytest.raises(Refused, match=r"by a run that was stopped.*cut again with force"):
        cut_video(study, video, min_seconds=2)
    assert len(cut_video(study, video, min_seconds=2, force=True)) == 1


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    study, video = Study(tmp_path / "study"), three_scenes(tmp_path / "ad.mp4")
    study.scene_table.parent.mkdir(parents=True)
    study.scene_table.write_text("a,b\n1,2\n")
    with pytest.raises(Refused, match="no column 'video_id'"):
        cut_videos(study, [video])
    assert study.scene_table.read_text() == "a,b\n1,2\n" and not study.scenes.exists()


def test_columns_of_others_and_long_ids_are_kept(tmp_path: Path) -> None:
    study = Study(tmp_path / "study")
    cut_video(study, three_scenes(tmp_path / "7228023352396971801.mp4"))
    table = read_scenes(study).assign(note="kept")
    study.scene_table.write_text(table.to_csv(index=False))
    cut_video(study, write(tmp_path / "0012.mp4", SHOTS[1]))
    table = read_scenes(study)
    assert table["video_id"].tolist() == ["0012", *["7228023352396971801"] * 3]
    assert table["note"].tolist()[1:] == ["kept"] * 3


CUTTER = """
import sys
from pathlib import Path
from alignment_video.core import Study
from alignment_video.scenes import cut_videos
cut_videos(Study(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.mp4")), progress=lambda line: print(line, flush=True))
"""


def run_and_kill(script: str, arguments: list[str], after: str) -> None:
    """Start a script, wait for a line, kill it (-9)."""
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if after in line:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and ".part" not in p.name}


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Killed after two of five videos and started again: the same pictures and rows as without the kill."""
    (tmp_path / "ads").mkdir()
    first = three_scenes(tmp_path / "ads" / "1.mp4")
    for number in range(2, 6):
        shutil.copy2(first, tmp_path / "ads" / f"{number}.mp4")
    run_and_kill(CUTTER, [str(tmp_path / "killed"), str(tmp_path / "ads")], after="2: 3 scenes")
    again = cut_videos(Study(tmp_path / "killed"), sorted((tmp_path / "ads").glob("*.mp4")))
    whole = cut_videos(Study(tmp_path / "whole"), sorted((tmp_path / "ads").glob("*.mp4")))
    assert not again.failed and len(again.table) == 15
    pd.testing.assert_frame_equal(again.table, whole.table)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


MEMORY = """
import resource, sys
import cv2
import numpy as np
from alignment_video.scenes import scene_signals
from alignment_video.video import Encoding, VideoWriter
y, x = np.mgrid[:90, :160].astype(np.float32)
waves = [[128 + 90 * np.sin(x / 40 + k / 4), 128 + 90 * np.cos(y / 50), x / 2] for k in range(24)]
pictures = [np.stack(wave, -1).astype(np.uint8) for wave in waves]
def peak(seconds):
    with VideoWriter(f"{sys.argv[1]}/{seconds}.mp4", rate=24, encoding=Encoding(preset="ultrafast")) as writer:
        for number in range(24 * seconds):
            writer.write(pictures[number % 24])
    assert len(scene_signals(f"{sys.argv[1]}/{seconds}.mp4")) == 24 * seconds
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(peak(10), peak(90))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """A minute and a half takes the memory of ten seconds, but for a row of numbers a frame; its frames are 93 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    short, long = map(float, done.stdout.split())
    assert long - short < 25, f"{long - short:.0f} MB more for a minute and a half"


@pytest.mark.skipif(
    len(real_clips) < 2, reason="no films from real cameras beside this checkout (shared/data/real_clips)"
)
def test_films_from_real_cameras(tmp_path: Path) -> None:
    """Both are one take, so one scene. Joined, the seam is found; so is a dissolve made of their real frames."""
    parts = []
    for clip in real_clips[:2]:
        frames = [cv2.resize(image, (320, 180), interpolation=cv2.INTER_AREA) for image in read_clip(clip, range(36))]
        assert len(find_scenes(write(tmp_path / clip.name, frames))) == 1
        parts.append(frames)
    one, two = parts
    assert find_scenes(write(tmp_path / "cut.mp4", one + two))["start_frame"].tolist() == [0, 36]
    shares = np.clip((np.arange(36) - 11) / 13, 0, 1)
    mixed = [np.round(a * (1 - s) + b * s).astype(np.uint8) for a, b, s in zip(one, two, shares, strict=True)]
    found = find_scenes(write(tmp_path / "dissolve.mp4", mixed))
    assert found["transition"].tolist() == ["start", "dissolve"] and abs(found["start_frame"][1] - 18) <= 3


def old_study(root: Path, numbers: range = range(4), name: str = "scene_{}.png") -> Path:
    """A V2 study of one video, with masks and tables."""
    for folder, image in (("screenshots_tiktok", SHOTS[0][0]), ("keyword_masks", SHOTS[0][0][..., 0] // 128 * 255)):
        place = root / "data" / folder / "123"
        place.mkdir(parents=True)
        for number in numbers:
            cv2.imwrite(str(place / name.format(number)), np.roll(image, number, 0))
    (root / "data" / "keywords.csv").write_text("_id,keyword_list[0]\n123,mug\n")
    (root / "data" / "alignment_score.csv").write_text("video id,Scene Number,attention_proportion\n123,0,0.2\n")
    return root


@pytest.mark.parametrize("name", ["scene_{}.png", "scene_{:02d}.png"])
@pytest.mark.parametrize("first", [0, 1])
def test_both_namings_from_zero_and_from_one(tmp_path: Path, name: str, first: int) -> None:
    """Scenes 0 to 11 become 1 to 12; scenes 1 to 12 stay. No number is lost, none is used twice."""
    old, study = old_study(tmp_path / "old", range(first, first + 12), name), Study(tmp_path / "new")
    done = migrate(plan_migration(old, study))
    assert migration_counts(done).to_dict() == {
        "copied": {"mask": 12, "picture": 0, "table": 2},
        "converted": {"mask": 0, "picture": 12, "table": 0},
    }
    for number in range(1, 13):
        source = old / "data" / "keyword_masks" / "123" / name.format(number - 1 + first)
        assert study.mask("123", number).read_bytes() == source.read_bytes()
        assert study.scene_picture("123", number).is_file()


def test_a_mask_of_scene_zero_moves_the_pictures_too(tmp_path: Path) -> None:
    """Pictures and masks of a video are counted alike, though scene 0 has only a mask."""
    old = old_study(tmp_path / "old")
    (old / "data" / "screenshots_tiktok" / "123" / "scene_0.png").unlink()
    plan = plan_migration(old, Study(tmp_path / "new"))
    assert plan[plan["kind"] == "picture"]["scene_number"].tolist() == [2, 3, 4]
    assert plan[plan["kind"] == "mask"]["scene_number"].tolist() == [1, 2, 3, 4]


def test_bad_files_of_an_old_study(tmp_path: Path) -> None:
    """Listed with a reason, each; the rest goes on."""
    old, study = old_study(tmp_path / "old"), Study(tmp_path / "new")
    pictures, masks = (old / "data" / name / "123" for name in ("screenshots_tiktok", "keyword_masks"))
    whole = (pictures / "scene_1.png").read_bytes()
    (pictures / "scene_5.png").write_bytes(whole[:-400])
    (pictures / "scene_6.png").write_text("not a picture")
    (pictures / "scene_7.png").write_bytes(b"")
    (pictures / "scene_-1.png").write_bytes(whole)
    (pictures / "scene_a.png").write_bytes(whole)
    (pictures / "cover.jpg").write_bytes(whole)
    (pictures / "scene_01.png").write_bytes(whole)  # the same
    (pictures / "scene_02.png").write_bytes(whole)  # another
    (pictures.parent / "7.2e+18").mkdir()
    (pictures.parent / "readme.txt").write_text("hello")
    cv2.imwrite(str(masks / "scene_8.jpg"), SHOTS[0][0])
    cv2.imwrite(str(masks / "scene_3.png"), np.zeros((8, 8), np.uint8))
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 50] = bytes(50)  # whole by its header and end, damaged inside
    (pictures / "scene_9.png").write_bytes(broken)
    plan = plan_migration(old, study)
    done = migrate(plan)
    name = done["kind"] + "/" + done["source"].map(lambda source: Path(source).name)
    actions = dict(zip(name, done["action"], strict=True))
    reasons = dict(zip(name, done["reason"], strict=True))
    for bad in ("scene_5.png", "scene_6.png", "scene_7.png", "scene_9.png"):
        assert actions[f"picture/{bad}"] == "unreadable" and reasons[f"picture/{bad}"], bad
    for other in ("scene_-1.png", "scene_a.png", "cover.jpg", "7.2e+18", "readme.txt"):
        assert actions[f"picture/{other}"] == "ignored" and reasons[f"picture/{other}"]
    assert actions["mask/scene_8.jpg"] == "unreadable"
    assert actions["picture/scene_01.png"] == "converted" and actions["picture/scene_1.png"] == "there"
    assert actions["picture/scene_02.png"] == actions["picture/scene_2.png"] == "conflict"
    assert "mask 8x8, picture 90x160" in reasons["mask/scene_3.png"]
    good = {number for number in range(1, 12) if study.scene_picture("123", number).exists()}
    assert good == {1, 2, 4}  # of 0, 1 and 3
    assert all("\n" not in reason for reason in done["reason"])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Whatever lies in the way stays, also if it came after the plan was made."""
    old, study = old_study(tmp_path / "old"), Study(tmp_path / "new")
    plan = plan_migration(old, study)
    mine = [study.scene_picture("123", 1), study.mask("123", 2), study.keywords]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    for done in (migrate(plan), plan_migration(old, study)):
        assert (done["action"] == "conflict").sum() == 3
    assert [path.read_bytes() for path in mine] == [b"mine"] * 3
    (old / "data" / "screenshots_tiktok" / "123" / "scene_3.png").unlink()
    study.scene_picture("123", 4).unlink()
    assert migrate(plan)["reason"].str.contains("no such file").sum() == 1


def test_an_old_study_in_its_own_folder(tmp_path: Path) -> None:
    """Old and new may be one folder: tables are there already, sources stay."""
    old = old_study(tmp_path / "both")
    before = contents(old)
    done = migrate(plan_migration(old, Study(old)))
    assert migration_counts(done).loc["table"].to_dict() == {"converted": 0, "copied": 0, "there": 2}
    assert contents(old).items() >= before.items() and len(contents(old)) == len(before) + 8


MIGRATOR = """
import sys
from alignment_video.core import Study
from alignment_video.scenes import migrate, plan_migration
migrate(plan_migration(sys.argv[1], Study(sys.argv[2])), lambda done, all: print(done, "of", all, flush=True))
"""


def test_a_killed_migration_goes_on(tmp_path: Path) -> None:
    """Killed in the middle, whatever has a name is whole; repeated, the result is that of one run."""
    old = old_study(tmp_path / "old", range(60))
    whole, killed = Study(tmp_path / "whole"), Study(tmp_path / "killed")
    migrate(plan_migration(old, whole))
    run_and_kill(MIGRATOR, [str(old), str(killed.root)], after="25 of")
    half = contents(killed.root)
    assert 20 < len(half) < 122 and all(contents(whole.root)[name] == content for name, content in half.items())
    plan = plan_migration(old, killed)
    assert (plan["action"] == "there").sum() == len(half)
    migrate(plan)
    assert contents(killed.root) == contents(whole.root)


def test_writer_notes_do_not_matter(tmp_path: Path) -> None:
    """A film that begins late and has a sound: the first scene begins when its first frame is shown."""
    three_scenes(tmp_path / "plain.mp4")
    like = replace(probe(tmp_path / "plain.mp4"), start=Fraction(7, 24))
    with VideoWriter(tmp_path / "late.mp4", like=like, encoding=QUICK) as writer:
        for image in SHOTS[0][:20] + SHOTS[1][:20]:
            writer.write(image)
    table = find_scenes(tmp_path / "late.mp4")
    assert table["start_time"].tolist() == [7 / 24, 27 / 24] and table["end_time"][1] == pytest.approx(47 / 24)
