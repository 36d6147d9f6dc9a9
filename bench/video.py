"""How fast an ad is read and written, as a multiple of its running time; whether equal pixels give equal files."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from _measure import best

from alignment_video.video import LOSSLESS, STIMULUS, Encoding, VideoWriter, read_frames, read_timeline, transcode

SECONDS, RATE, WIDTH, HEIGHT = 10, 24, 270, 480


def picture(number: int, texture: np.ndarray) -> np.ndarray:
    """A camera that moves over a textured ground, with a disc that moves the other way."""
    image = np.roll(texture, (number, 2 * number), (0, 1)).copy()
    cv2.circle(image, (WIDTH // 2 + int(60 * np.sin(number / 9)), HEIGHT // 2), 50, (226, 104, 52), -1, cv2.LINE_AA)
    return image


def read_with_opencv(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while True:
        done, image = capture.read()
        if not done:
            return count
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        count += 1


def write_all(path: Path, pictures: list[np.ndarray], encoding: Encoding = STIMULUS) -> None:
    with VideoWriter(path, rate=RATE, encoding=encoding) as writer:
        for image in pictures:
            writer.write(image)


class Usual(Encoding):
    """Our settings without the one that makes x264 give the same bytes on every run."""

    def options(self) -> dict[str, str]:
        return super().options() | {"x264-params": "sliced-threads=0"}


def different_files(path: Path, pictures: list[np.ndarray], encoding: Encoding, runs: int = 20) -> int:
    """How many different files the same pixels give while other processes take every core."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        files = set()
        for _ in range(runs):
            write_all(path, pictures, encoding)
            files.add(path.read_bytes())
        return len(files)
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """One JSON line a measurement."""
    noise = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3))
    ground = cv2.GaussianBlur(noise, (0, 0), 6) * 400 + cv2.GaussianBlur(noise, (0, 0), 1.5) * 25 + 128
    pictures = [picture(number, ground.clip(0, 255).astype(np.uint8)) for number in range(SECONDS * RATE)]
    with tempfile.TemporaryDirectory() as folder:
        clip, copy = Path(folder) / "clip.mp4", Path(folder) / "copy.mp4"
        ours = {
            "write": best(lambda: write_all(clip, pictures)),
            "read": best(lambda: sum(1 for _ in read_frames(clip))),
            "read and write": best(lambda: transcode(clip, copy)),
            "read and write, lossless": best(lambda: transcode(clip, copy, encoding=LOSSLESS)),
            "read all times, nothing decoded": best(lambda: read_timeline(clip)),
        }
        opencv = best(lambda: read_with_opencv(clip))
        files = {
            "different files in 20 runs": different_files(clip, pictures[:96], STIMULUS),
            "without cpu-independent": different_files(clip, pictures[:96], Usual()),
        }
    for what, took in ours.items():
        line = {"bench": "video", "what": f"{what}, {WIDTH}x{HEIGHT}", "times real time": round(SECONDS / took, 1)}
        if what == "read and write":
            line["target"] = ">= 4"
        if what == "read":
            line |= {"opencv, times real time": round(SECONDS / opencv, 1), "ratio to opencv": round(opencv / took, 2)}
        print(json.dumps(line | {"cores": os.cpu_count()}), flush=True)
    line = {"bench": "video", "what": "equal pixels on a busy machine", "target": "1 file"}
    print(json.dumps(line | files | {"cores": os.cpu_count()}), flush=True)


if __name__ == "__main__":
    main()
