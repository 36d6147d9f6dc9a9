"""How fast the world is drawn: scenes in bulk, and the frames of an ad against its running time."""

import json
import time
from itertools import islice

import cv2

from alignment_video.world import Ad, still, stills, truth_of


def main() -> None:
    """One JSON line a measurement."""
    cv2.setNumThreads(1)
    list(stills(50))
    count = 1500
    start = time.perf_counter()
    for seed in range(count):
        still(seed)
    one = count / (time.perf_counter() - start)
    drawn = stills(6000, processes=2)
    list(islice(drawn, 500))  # the processes have started
    start = time.perf_counter()
    rest = sum(1 for _ in drawn)
    two = rest / (time.perf_counter() - start)
    line = {"bench": "world", "what": "stills of 64 px a second, one process", "a second": round(one)}
    print(json.dumps(line))
    line = {"bench": "world", "what": "stills of 64 px a second, two processes", "a second": round(two)}
    print(json.dumps(line | {"ratio to one process": round(two / one, 2), "target": ">= 300"}))
    ad = Ad(4)
    tasks = {"draw an ad": lambda: sum(1 for _ in ad.play()), "draw an ad and its truth": lambda: truth_of(ad)}
    for what, work in tasks.items():
        start = time.perf_counter()
        work()
        speed = ad.frames / ad.rate / (time.perf_counter() - start)
        print(json.dumps({"bench": "world", "what": f"{what}, 270x480", "times real time": round(speed, 1)}))


if __name__ == "__main__":
    main()
