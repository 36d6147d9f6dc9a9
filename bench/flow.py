"""How long a flow takes by each engine, and a carried frame with the layers of five edits."""

import json
import os
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from _measure import best

from alignment_video.flow import DIS, Flow, Key, PatchMatch, Route, carry, flicker, routes
from alignment_video.world import Ad

SIDE, SETS, CHANNELS, REPEATS = 192, 5, 5, 5


def crops(side: int) -> list[np.ndarray]:
    """Three frames of a synthetic ad, four frames apart, cut from the middle."""
    frames = [Ad(8, size=(480, 480), seconds=4.5, scenes=3).draw(t)[0] for t in (2, 6, 10)]
    return [cv2.resize(frame[48:432, 48:432], (side, side), interpolation=cv2.INTER_AREA) for frame in frames]


def milliseconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Of one call, the fastest of several."""
    return round(1000 * best(work, repeats), 1)


def say(line: dict[str, object]) -> None:
    """One measurement as a line of JSON."""
    print(json.dumps({"bench": "flow"} | line | {"cores": os.cpu_count(), "threads": cv2.getNumThreads()}))


def main() -> None:
    """One JSON line a measurement."""
    engines: dict[str, Flow] = {
        "DIS": DIS(), "DIS, finest scale 0, spatial": DIS(finest=0, spatial=True),
        "DIS, preset": DIS(patch=8, stride=3, spatial=True), "PatchMatch": PatchMatch(),
    }  # fmt: skip
    for side in (96, SIDE, 512):
        pair = crops(side)[:2]
        times = {name: milliseconds(partial(engine, *pair), 3) for name, engine in engines.items()}
        line = {"what": f"one flow at {side} px, ms"} | times
        say(line | ({"target": "PatchMatch <= 1000 ms"} if side == 96 else {}))
    one, middle, other = crops(SIDE)
    rng = np.random.default_rng(0)
    layers = [[rng.random((SIDE, SIDE, CHANNELS), np.float32) for _ in range(2)] for _ in range(SETS)]

    def together() -> list[np.ndarray]:
        way: Route = routes(middle, [one, other], [0.5, 0.5], DIS())
        return [way.fetch(pair) for pair in layers]

    def alone() -> list[np.ndarray]:
        return [carry(middle, [Key(one, a), Key(other, b)], [0.5, 0.5], DIS()) for a, b in layers]

    shared, each = milliseconds(together), milliseconds(alone)
    line = {
        "what": f"a frame carried between two keyframes, {SETS} sets of layers, {SIDE} px, ms",
        "one flow for all": shared,
        "a flow for each": each, "ratio": round(each / shared, 1),
    }  # fmt: skip
    say(line)
    frames = crops(SIDE)
    say({
        "what": f"a frame's flicker at {SIDE} px, ms",
        "motion found": round(milliseconds(lambda: flicker(frames, frames)) / 2, 1),
    })  # fmt: skip


if __name__ == "__main__":
    main()
