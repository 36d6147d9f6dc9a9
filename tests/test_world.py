"""What a page about the world cannot hold: other processes, and the real keyword table."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alignment_video.outcomes import DIRT
from alignment_video.world import Ad, still, stills

REAL_KEYWORDS = Path(__file__).parents[2] / "shared" / "data" / "keywords_half.csv"


def test_the_same_scenes_on_two_processes() -> None:
    """Scenes in bulk do not depend on how many processes draw them."""
    alone = list(stills(140, first=1000))
    shared = list(stills(140, first=1000, processes=2))
    assert [a.seed for a in alone] == [b.seed for b in shared]
    assert all((a.image == b.image).all() and (a.mask == b.mask).all() for a, b in zip(alone, shared, strict=True))


def test_the_same_ad_in_another_process() -> None:
    """An ad is a function of its seed, whatever Python's hash seed is."""
    code = "from alignment_video.world import Ad; print(Ad(3).draw(30)[0].tobytes().hex())"
    seen = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        seen.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    assert len(seen) == 1 and len(seen.pop()) > 100_000


@pytest.mark.parametrize("size", [(480, 270), (270, 480), (101, 57), (16, 16), (64, 96)])
def test_any_size(size: tuple[int, int]) -> None:
    """Frames, masks and scenes have the size that was asked for."""
    image, front = Ad(2, size=size).draw(5)
    assert image.shape == (*size, 3) and front.shape == size and image.dtype == np.uint8
    assert still(5, size=size).mask.shape == size


def test_dirt_has_the_shares_of_the_real_table() -> None:
    """The shares written down for the synthetic keyword table are those counted in the real one."""
    if not REAL_KEYWORDS.exists():
        pytest.skip("the real keyword table is not here; it is not part of the project")
    keywords = pd.read_csv(REAL_KEYWORDS, dtype=str, keep_default_na=False)["keyword_list[0]"]
    assert abs((keywords == "").mean() - DIRT["empty"]) < 0.005
    assert abs(keywords.str.contains(",").mean() - DIRT["comma"]) < 1e-4
    assert abs(keywords.str.contains("[\u0600-\u06ff]").mean() - DIRT["arabic"]) < 1e-4
