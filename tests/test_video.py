"""What the page about video cannot hold: killed writers, long videos, films from real cameras."""

import math
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
    Encoding,
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
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


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
    """Equal pixels in equal order give equal bytes, also while other processes take every core."""
    files = set()
    for run in range(10):
        others = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range((os.cpu_count() or 1) * (run % 2))
        ]
        try:
            with VideoWriter(tmp_path / "same.mp4", rate=24, sound=(np.sin(np.arange(30000) / 9), 48000)) as writer:
                for number in range(16):
                    writer.write(pattern(number, 180, 320))
        finally:
            for other in others:
                other.kill()
                other.wait()
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


def make(
    path: Path,
    codec: str = "libx264",
    sound: str | None = "aac",
    pixels: str = "yuv420p",
    rate: int = 48000,
    size: tuple[int, int] = (96, 160),
    frames: int = 24,
    **options: str,
) -> Path:
    """A clip written with PyAV alone, at 24 frames a second."""
    with av.open(str(path), "w", options=options) as output:
        video = output.add_stream(codec, rate=24)
        video.width, video.height, video.pix_fmt = *size, pixels
        voice = output.add_stream(sound, rate=rate, layout="mono") if sound else None
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(pattern(number, *size), format="rgb24").reformat(format=pixels)
            picture.pts, picture.time_base = number, Fraction(1, 24)
            output.mux(video.encode(picture))
            if voice:
                begin, end = (rate * step // 24 for step in (number, number + 1))
                wave = (8000 * np.sin(np.arange(begin, end) / 9)).astype(np.int16)[None]
                block = av.AudioFrame.from_ndarray(wave, "s16", "mono")
                block.sample_rate, block.pts, block.time_base = rate, begin, Fraction(1, rate)
                output.mux(voice.encode(block))
        output.mux([*video.encode(None), *(voice.encode(None) if voice else [])])
    return path


@pytest.mark.parametrize("target", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("source", [".mov", ".avi", ".mkv"])
def test_uncompressed_sound_is_kept(tmp_path: Path, source: str, target: str) -> None:
    """PCM, which a header counts in samples and a file in pieces, is no cut file; every byte arrives, also the last."""
    clip = make(
        tmp_path / f"clip{source}", *(["mjpeg"] if source == ".avi" else ["libx264"]), "pcm_s16le", pixels="yuvj420p"
    )
    copy = tmp_path / f"copy{target}"
    assert transcode(clip, copy) == 24
    before, after = (b"".join(packet[3] for packet in sound_packets(path)) for path in (clip, copy))
    assert before == after == (8000 * np.sin(np.arange(48000) / 9)).astype("<i2").tobytes()
    info = probe(copy)
    assert info.sound is not None and info.sound.codec == "pcm_s16le"
    start, end = sound_packets(copy)[0], sound_packets(copy)[-1]  # in between, formats cut it into different pieces
    assert start[0] == 0 and abs(end[0] + end[2] - 1) <= Fraction(1, 1000)


@pytest.mark.parametrize("rate", [44100, 48000])
@pytest.mark.parametrize(
    "source", ["aac.mkv", "aac.ts", "aac.flv", "aac.mov", "libopus.webm", "libopus.mkv", "mp2.mpg"]
)
def test_sound_between_formats(tmp_path: Path, source: str, rate: int) -> None:
    """The payload byte for byte (without the header that a .ts puts before it); no time moves more than half a step."""
    sound, suffix = source.split(".")
    if sound == "libopus":
        rate = 48000
    codec = {"webm": "libvpx-vp9", "mpg": "mpeg1video"}.get(suffix, "libx264")
    clip = make(tmp_path / f"clip.{suffix}", codec, sound, rate=rate)
    for copy, step in ((tmp_path / "copy.mp4", Fraction(1, rate)), (tmp_path / "copy.mkv", Fraction(1, 1000))):
        transcode(clip, copy)
        before, after = sound_packets(clip), sound_packets(copy)
        assert [packet[3] for packet in after] == [packet[3][7 if suffix == "ts" else 0 :] for packet in before]
        assert max(abs(one[0] - other[0]) for one, other in zip(before, after, strict=True)) <= step / 2
        for one, other in zip(read_frames(clip), read_frames(copy), strict=True):
            assert abs(one.time - other.time) <= (Fraction(1, 2000) if copy.suffix == ".mkv" else 0)


def test_frames_out_of_order_in_avi(tmp_path: Path) -> None:
    """H.264 with B-frames in a format without times for them: every frame, in the order shown, from any start."""
    clip = make(tmp_path / "clip.avi", sound=None)
    for start in (0, 5, 23):
        frames = list(read_frames(clip, start))
        assert [frame.time for frame in frames] == [Fraction(number, 24) for number in range(start, 24)]
        assert all(psnr(frame.image, pattern(frame.index, 96, 160)) > 35 for frame in frames)
    assert transcode(clip, tmp_path / "copy.mp4") == 24


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.avi"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9])
def test_streams_and_raw_sound_cut_off(tmp_path: Path, name: str, share: float) -> None:
    """Fragments (MP4), PCM (MOV) and AVI, cut anywhere but between two parts, are refused; something hung on is not."""
    kind = Path(name).suffix
    flags = {".mp4": {"movflags": "frag_keyframe+empty_moov"}, ".mov": {"movflags": "faststart"}}.get(kind, {})
    whole = make(tmp_path / name, "mjpeg", "aac" if kind == ".mp4" else "pcm_s16le", "yuvj420p", **flags)
    content = whole.read_bytes()
    cut, longer = tmp_path / f"cut{kind}", tmp_path / f"longer{kind}"
    cut.write_bytes(content[: int(len(content) * share)])
    longer.write_bytes(content + b"SEFT and other things that phones add")
    with pytest.raises(Refused, match="cut off"):
        probe(cut)
    assert probe(longer).frames == probe(whole).frames == 24


def test_a_last_frame_without_length(tmp_path: Path) -> None:
    """It is shown as long as the one before, also in a copy."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, rate=24, encoding=LOSSLESS) as writer:
        for number in range(5):
            writer.write(pattern(number, 96, 160), duration=Fraction(3 if number == 4 else 1, 24))
    content = bytearray(path.read_bytes())
    row = content.index(b"stts") + 20  # name, version, number of rows, first row; then how many frames last how long
    assert content[row - 12 : row + 4] == b"".join(value.to_bytes(4) for value in (2, 4, 1, 1))
    content[row + 4 : row + 8] = bytes(4)
    path.write_bytes(content)
    timeline = read_timeline(path)
    assert (timeline.ticks, timeline.end) == ([0, 1, 2, 3, 4], 5)
    transcode(path, tmp_path / "copy.mp4")
    assert read_timeline(tmp_path / "copy.mp4") == timeline


@pytest.mark.parametrize("movement", ["cover first", "cover last", "two videos"])
def test_of_several_pictures_the_moving_ones_are_taken(tmp_path: Path, movement: str) -> None:
    """A cover picture is no video; of two videos the first is read."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as output:
        streams = {}
        for name in ("cover", "moving") if movement == "cover first" else ("moving", "cover"):
            cover = name == "cover" and movement != "two videos"
            stream = output.add_stream("png" if cover else "libx264", rate=24)
            stream.width, stream.height, stream.pix_fmt = (
                (96, 160, "yuv420p") if name == "moving" else (32, 32, "rgb24" if cover else "yuv420p")
            )
            if cover:
                stream.disposition = av.stream.Disposition.attached_pic
            streams[name] = stream
        for stream in streams.values():
            for number in range(12 if stream.name != "png" else 1):
                picture = av.VideoFrame.from_ndarray(pattern(number, stream.width, stream.height), format="rgb24")
                output.mux(stream.encode(picture.reformat(format=stream.pix_fmt)))
            output.mux(stream.encode(None))
    info = probe(path)
    assert (info.width, info.height, info.frames) == (96, 160, 12)
    assert transcode(path, tmp_path / "copy.mp4") == 12


@pytest.mark.parametrize("pixels", ["yuv422p", "yuv420p10le", "yuv444p", "nv12", "yuvj420p"])
@pytest.mark.parametrize("size", [(97, 161), (1, 1), (96, 601)])
def test_every_pixel_format_keeps_size_and_colours(tmp_path: Path, pixels: str, size: tuple[int, int]) -> None:
    """Odd sizes come back, and above 576 lines, where untagged files are read as BT.709, colours as well."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, rate=24, encoding=Encoding(pixels=pixels)) as writer:
        writer.write(pattern(3, *size))
    clip = read_clip(path)
    assert clip.shape == (1, size[1], size[0], 3) and psnr(clip[0], pattern(3, *size)) > 35
    assert not probe(path).matrix_assumed


@pytest.mark.parametrize(
    "encoding",
    [{"codec": "x265"}, {"codec": "aac"}, {"pixels": "yuv"}, {"pixels": "rgb24"}, {"crf": -3}, {"preset": "quick"},
     {"threads": -1}, {"sound_bit_rate": -1}],
)  # fmt: skip
def test_bad_settings_are_refused(tmp_path: Path, encoding: dict) -> None:
    """In one line, and with nothing left behind."""
    with (
        pytest.raises(Refused) as refused,
        VideoWriter(tmp_path / "a.mp4", rate=24, encoding=Encoding(**encoding), sound=(np.zeros(99), 48000)) as writer,
    ):
        writer.write(pattern(0, 96, 160))
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("times", [(-1,), (0, 0), (0, 2**33), (1, 0)])
def test_bad_times_are_refused(tmp_path: Path, times: tuple[int, ...]) -> None:
    """Before zero, twice the same, further than an MP4 can step, backwards: never a frame lost in silence."""
    with pytest.raises(Refused, match="times must rise from 0"), VideoWriter(tmp_path / "a.mp4", rate=24) as writer:
        for time_shown in times:
            writer.write(pattern(0, 96, 160), Fraction(time_shown, 24))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "a %03d.mp4",
        "ünï 视频.mp4",
        "-.mp4",
        "-y.mkv",
        "file:x.mp4",
        "pipe:1.mp4",
        "a?b#c.mp4",
        "concat:a|b.mov",
        "A.MP4",
    ],
)
def test_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Names that FFmpeg would read as patterns, options or protocols are names of files, here and in place."""
    monkeypatch.chdir(tmp_path)
    source = make(tmp_path / "source.mp4")
    assert transcode(source, name) == 24
    assert transcode(name, name) == 24
    assert read_clip(name).shape == (24, 160, 96, 3) and sound_packets(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "source.mp4"])


@pytest.mark.parametrize("name", ["a", "a.xyz", ".mp4", "folder.mp4", "source.mp4/a.mp4", "n" * 251 + ".mp4"])
def test_names_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    """No suffix, an unknown one, a folder, a file as a folder, too long: one line, nothing left behind."""
    source = make(tmp_path / "source.mp4")
    (tmp_path / "folder.mp4").mkdir()
    content = source.read_bytes()
    with pytest.raises(Refused) as refused:
        transcode(source, tmp_path / name)
    assert "\n" not in str(refused.value) and source.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.mp4", "source.mp4"]


def test_a_failing_edit_in_place_keeps_the_source(tmp_path: Path) -> None:
    """Source and target are one file: it changes only when the new one is complete."""
    source = make(tmp_path / "source.mp4")
    content = source.read_bytes()

    def stumble(frame):  # type: ignore[no-untyped-def]
        return frame.image if frame.index < 9 else 1 // 0

    with pytest.raises(ZeroDivisionError):
        transcode(source, source, stumble)
    assert source.read_bytes() == content and list(tmp_path.iterdir()) == [source]
