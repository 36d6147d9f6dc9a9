"""What the page about video cannot hold: killed writers, long videos, films from real cameras."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from alignment_video.core import Refused
from alignment_video.video import (
    LOSSLESS,
    VideoWriter,
    contact_sheet,
    grid,
    probe,
    read_clip,
    read_frames,
    read_timeline,
    sound_packets,
    transcode,
)

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_clips"
real_clips = sorted(REAL.glob("*.mp4"))


def pattern(number: int, width: int = 270, height: int = 480) -> np.ndarray:
    """A smooth moving picture."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = [
        128 + 90 * np.sin(x / 40 + number / 9),
        128 + 90 * np.cos(y / 50),
        128 + 60 * np.sin((x + y + number) / 60),
    ]
    return np.stack(planes, -1).astype(np.uint8)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


WRITER = """
import sys
from itertools import count
import numpy as np
from alignment_video.video import VideoWriter
noise = np.random.default_rng(0).integers(0, 255, (8, 160, 96, 3), np.uint8)
with VideoWriter(sys.argv[1], rate=24) as writer:
    for number in count():
        writer.write(noise[number % 8])
        print(number, flush=True)
"""


@pytest.mark.parametrize("held_before", [False, True])
def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path, held_before: bool) -> None:
    """Killed (-9) in the middle of writing: the name is free, or holds the complete video it held before."""
    target = tmp_path / "ad.mp4"
    if held_before:
        with VideoWriter(target, rate=24) as writer:
            writer.write(pattern(0, 96, 160))
    before = target.read_bytes() if held_before else None
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    while int(process.stdout.readline() or -1) < 120:
        assert process.poll() is None and time.monotonic() < deadline, "the writer stopped by itself"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert any(".part" in path.name for path in tmp_path.iterdir()), "it was killed while writing"
    assert (target.read_bytes() if target.exists() else None) == before
    with VideoWriter(target, rate=24) as writer:  # and the leftover does not stand in the way
        writer.write(pattern(1, 96, 160))
    assert probe(target).frames == 1


MEMORY = """
import resource, sys, tracemalloc
from fractions import Fraction
import numpy as np
from alignment_video.video import Encoding, VideoWriter, probe, read_frames
target, seconds = sys.argv[1], int(sys.argv[2])
y, x = np.mgrid[:480, :270].astype(np.float32)
pictures = [
    np.stack([128 + 90 * np.sin(x / 40 + k / 4), 128 + 90 * np.cos(y / 50), x / 2 + y / 4], -1).astype(np.uint8)
    for k in range(24)
]
tone = np.sin(np.arange(48000 * seconds, dtype=np.float32) / 17) / 5
quick = Encoding(preset="ultrafast")
with VideoWriter(target, rate=24, sound=(tone, 48000), encoding=quick) as writer:
    for number in range(24 * seconds):
        writer.write(pictures[number % 24])
del tone
tracemalloc.start()
marks = []
with VideoWriter(target + ".copy.mp4", like=probe(target), sound_from=target, encoding=quick) as writer:
    for frame in read_frames(target):
        writer.write(frame.image, frame.time, frame.duration)
        if frame.index in (24 * 40, 24 * seconds - 1):
            marks.append(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20)
print(marks[1] - marks[0], tracemalloc.get_traced_memory()[1] / 2**20, probe(target + ".copy.mp4").frames)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which only Linux has")
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """Three minutes of 270x480 with sound, read and written: memory at the end is that after forty seconds."""
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    arguments = [sys.executable, str(script), str(tmp_path / "long.mp4"), "180"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, python_peak, frames = (float(word) for word in done.stdout.split())
    assert frames == 24 * 180
    assert grown < 10, f"{grown:.0f} MB more after 180 s than after 40 s"
    assert python_peak < 20, f"{python_peak:.0f} MB of Python objects at the worst moment"


@pytest.mark.skipif(not real_clips, reason="no films from real cameras beside this checkout (shared/data/real_clips)")
@pytest.mark.parametrize("clip", real_clips, ids=lambda path: path.stem)
def test_real_films_survive(clip: Path, tmp_path: Path) -> None:
    """As many frames, at the same times, of the same size, above 40 dB; the lossless copy has the same pixels."""
    copy = tmp_path / "copy.mp4"
    old = probe(clip)
    assert transcode(clip, copy) == old.frames
    new = probe(copy)
    assert read_timeline(copy) == read_timeline(clip)
    assert (new.width, new.height, new.rate, new.duration) == (old.width, old.height, old.rate, old.duration)
    assert sound_packets(copy) == sound_packets(clip)
    for one, other in zip(read_frames(clip), read_frames(copy), strict=True):
        assert psnr(one.image, other.image) > 40
    with VideoWriter(tmp_path / "exact.mp4", like=old, encoding=LOSSLESS) as writer:
        for frame in read_frames(clip, 0, 20):
            writer.write(frame.image, frame.time, frame.duration)
    assert np.array_equal(read_clip(clip, range(20)), read_clip(tmp_path / "exact.mp4"))


@pytest.mark.skipif(not real_clips, reason="no films from real cameras beside this checkout (shared/data/real_clips)")
@pytest.mark.parametrize("clip", real_clips, ids=lambda path: path.stem)
def test_any_start_gives_the_same_frame(clip: Path) -> None:
    """Frames reached by a jump are those reached by reading on."""
    whole = {frame.index: frame.image for frame in read_frames(clip, 0, 40)}
    for start in (1, 7, 23, 39):
        frame = next(read_frames(clip, start))
        assert frame.index == start and np.array_equal(frame.image, whole[start])


def test_ten_runs_give_one_file(tmp_path: Path) -> None:
    """Equal pixels in equal order give equal bytes, also while the machine is busy with something else."""
    files = set()
    for run in range(10):
        with VideoWriter(tmp_path / "same.mp4", rate=24, sound=(np.sin(np.arange(30000) / 9), 48000)) as writer:
            for number in range(16):
                writer.write(pattern(number, 180, 320))
                np.random.default_rng(run).bytes(1000 * (run + 1))
        files.add((tmp_path / "same.mp4").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("start", [0, 1, 1001, 7007, 123457])
def test_odd_clocks_are_kept(tmp_path: Path, start: int) -> None:
    """A start that is no whole millisecond, a time base of 1/30000 and uneven steps come back as fractions."""
    with VideoWriter(tmp_path / "plain.mp4", rate=30) as writer:
        writer.write(pattern(0, 64, 64))
    like = replace(probe(tmp_path / "plain.mp4"), time_base=Fraction(1, 30000), start=Fraction(start, 30000))
    ticks = [start + step for step in (0, 1001, 1002, 2503, 9001, 9002)]
    sound = (np.sin(np.arange(22050) / 9), 44100)
    with VideoWriter(tmp_path / "clock.mp4", like=like, sound=sound) as writer:
        for number, tick in enumerate(ticks):
            writer.write(pattern(number, 64, 64), Fraction(tick, 30000), Fraction(501, 30000))
    timeline = read_timeline(tmp_path / "clock.mp4")
    assert timeline.ticks == ticks
    assert (timeline.time_base, timeline.end) == (Fraction(1, 30000), ticks[-1] + 501)
    transcode(tmp_path / "clock.mp4", tmp_path / "again.mp4")
    assert read_timeline(tmp_path / "again.mp4") == timeline
    assert sound_packets(tmp_path / "again.mp4") == sound_packets(tmp_path / "clock.mp4")


@pytest.mark.parametrize("size", [(97, 64), (64, 97), (97, 97), (1, 1), (3, 2)])
def test_odd_sizes_come_out_as_they_went_in(tmp_path: Path, size: tuple[int, int]) -> None:
    """Also through two generations, and the note about the size is no longer believed when it cannot be true."""
    path, again = tmp_path / "odd.mp4", tmp_path / "again.mp4"
    with VideoWriter(path, rate=24) as writer:
        for number in range(3):
            writer.write(pattern(number, *size))
    transcode(path, again)
    assert read_clip(again).shape == (3, size[1], size[0], 3)
    assert (probe(again).width, probe(again).height) == size
    stored = next(av.open(str(path)).decode(video=0))
    assert (stored.width % 2, stored.height % 2) == (0, 0)


@pytest.mark.parametrize("suffix", [".webm", ".avi", ".mov", ".mkv"])
def test_other_containers_are_read(tmp_path: Path, suffix: str) -> None:
    """VP9 in WebM with an odd size, MJPEG (full range) in AVI, H.264 in MOV and MKV."""
    codec = {".webm": "libvpx-vp9", ".avi": "mjpeg"}.get(suffix, "libx264")
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path, size = tmp_path / f"clip{suffix}", (95, 161) if suffix == ".webm" else (96, 160)
    with av.open(str(path), "w") as output:
        quality = {"qmin": "1", "qmax": "2"} if codec == "mjpeg" else {"crf": "8", "b": "0"}
        stream = output.add_stream(codec, rate=25, options=quality)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(pattern(number, *size), format="rgb24").reformat(format=pixels)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    frames = list(read_frames(path))
    assert [frame.time for frame in frames] == [Fraction(number, 25) for number in range(30)]
    assert all(psnr(frame.image, pattern(frame.index, *size)) > 30 for frame in frames)
    assert transcode(path, tmp_path / "copy.mp4") == 30
    assert psnr(read_clip(tmp_path / "copy.mp4"), np.stack([frame.image for frame in frames])) > 40


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_cut_file_is_never_a_shorter_video(tmp_path: Path, suffix: str, share: float) -> None:
    """Wherever a file is cut, reading and probing refuse it in one line that names it, and a copy leaves nothing."""
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    with VideoWriter(whole, rate=24, sound=(np.sin(np.arange(96000) / 9), 48000)) as writer:
        for number in range(48):
            writer.write(pattern(number, 96, 160))
    content = whole.read_bytes()
    cut.write_bytes(content[: int(len(content) * share)])
    for work in (probe, lambda path: list(read_frames(path)), lambda path: transcode(path, tmp_path / "copy.mp4")):
        with pytest.raises(Refused) as refused:
            work(cut)
        assert cut.name in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([whole.name, cut.name])


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused(tmp_path: Path, transfer: int, name: str) -> None:
    """Colours that would need a tone curve are not guessed."""
    with av.open(str(tmp_path / "hdr.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.color_trc = transfer
        frame = av.VideoFrame.from_ndarray(pattern(0, 64, 64), format="rgb24").reformat(format="yuv420p")
        output.mux([*stream.encode(frame), *stream.encode(None)])
    for work in (probe, lambda path: list(read_frames(path))):
        with pytest.raises(Refused, match=f"HDR video .{name}."):
            work(tmp_path / "hdr.mp4")


def test_nothing_but_the_file_is_opened(tmp_path: Path) -> None:
    """A playlist and a file list under a video's name are refused, though what they point to is a video."""
    with VideoWriter(tmp_path / "real.mp4", rate=24) as writer:
        writer.write(pattern(0, 64, 64))
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile real.mp4\n")
    for name in ("list.mp4", "concat.mp4"):
        with pytest.raises(Refused, match="not a video"):
            probe(tmp_path / name)


def test_of_several_soundtracks_the_first_is_kept(tmp_path: Path) -> None:
    """Two languages in, the first one out, bit for bit."""
    with av.open(str(tmp_path / "two.mp4"), "w") as output:
        video = output.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        tracks = [output.add_stream("aac", rate=48000, layout="mono") for _ in range(2)]
        for track, pitch in zip(tracks, (9, 23), strict=True):
            samples = np.sin(np.arange(48000, dtype=np.float32) / pitch)[None]
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            frame.sample_rate, frame.pts = 48000, 0
            output.mux([*track.encode(frame), *track.encode(None)])
        for number in range(24):
            picture = av.VideoFrame.from_ndarray(pattern(number, 64, 64), format="rgb24").reformat(format="yuv420p")
            output.mux(video.encode(picture))
        output.mux(video.encode(None))
    transcode(tmp_path / "two.mp4", tmp_path / "one.mp4")
    assert sound_packets(tmp_path / "one.mp4") == sound_packets(tmp_path / "two.mp4")
    with av.open(str(tmp_path / "one.mp4")) as copy:
        assert len(copy.streams.audio) == 1


def test_a_grid_of_different_videos(tmp_path: Path) -> None:
    """Another shape, rate and length in each cell; a missing one leaves no half-written grid."""
    for name, size, rate, count in [("a", (96, 160), 24, 24), ("b", (160, 96), 30, 12), ("c", (95, 95), 10, 15)]:
        with VideoWriter(tmp_path / f"{name}.mp4", rate=rate) as writer:
            for number in range(count):
                writer.write(pattern(number, *size))
    videos = [tmp_path / f"{name}.mp4" for name in "abc"]
    assert grid(videos, ["one", "two", "ثلاثة"], tmp_path / "grid.mp4", columns=2) == 15  # c lasts longest
    assert probe(tmp_path / "grid.mp4").duration == Fraction(3, 2)
    assert contact_sheet(tmp_path / "grid.mp4", n=4, columns=4).ndim == 3
    with pytest.raises(Refused, match="no such file"):
        grid([*videos, tmp_path / "d.mp4"], list("abcd"), tmp_path / "other.mp4")
    assert not (tmp_path / "other.mp4").exists()


def test_players_see_what_was_written(tmp_path: Path) -> None:
    """Another decoder (OpenCV) sees the same pictures, in the right colours."""
    with VideoWriter(tmp_path / "clip.mp4", rate=24) as writer:
        for number in range(12):
            writer.write(pattern(number))
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    for frame in read_frames(tmp_path / "clip.mp4"):
        done, image = capture.read()
        assert done and psnr(image[..., ::-1], frame.image) > 30
    assert not capture.read()[0]
