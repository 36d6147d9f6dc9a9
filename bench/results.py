"""How fast results are read, and in how much memory: a log of 10^8 impressions, one of 10^6, 750,000 summary rows.

    results.py [ROWS]    another size of the large log

The log is made here, in a temporary folder: 100 videos, seven variants, about four impressions of each user and video,
a user's rows anywhere in the file. Each measurement runs in a process of its own, so that its peak memory is its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from alignment_video.outcomes import VARIANTS, video_ids

SCRIPT = """
import json, resource, sys, time
from alignment_video.results import read_results
start = time.perf_counter()
results = read_results(sys.argv[1])
seconds = time.perf_counter() - start
impressions, clicks = (int(results.cells[name].sum()) for name in ("impressions", "clicks"))
users = None if results.moments is None else float(results.moments["impressions_impressions"].sum())
used = resource.getrusage(resource.RUSAGE_SELF)
measured = {
    "seconds": round(seconds, 1),
    "processor seconds": round(used.ru_utime + used.ru_stime, 1),
    "peak GB": round(used.ru_maxrss / 2**20, 2),
}
print(json.dumps([measured, impressions, clicks, users]))
"""


def write_log(path: Path, rows: int, text: bool, videos: int = 100, chunk: int = 2_000_000) -> tuple[int, float]:
    """A log in random order; gives its clicks and the sum of squares of users' impressions, counted while writing."""
    rng = np.random.default_rng(1)
    ids, names = pa.array(video_ids(videos, "bench")), pa.array(list(VARIANTS))
    pairs, seen, clicks, writer = max(rows // 4, 1), np.zeros(max(rows // 4, 1), np.int32), 0, None
    for start in range(0, rows, chunk):
        number = min(chunk, rows - start)
        pair = rng.integers(0, pairs, number)  # a user and a video
        video, user = (pair % videos).astype(np.int32), pair // videos
        arm = ((pair * 2654435761) % 2**32 % len(names)).astype(np.int32)
        clicked = rng.random(number, np.float32) < 0.042
        columns = {
            "user_id": np.char.add("user-", user.astype(str)) if text else user,
            "video_id": pa.DictionaryArray.from_arrays(pa.array(video), ids).cast(pa.string()),
            "variant": pa.DictionaryArray.from_arrays(pa.array(arm), names).cast(pa.string()),
            "day": rng.integers(1, 8, number, dtype=np.int16),
            "clicked": clicked,
            "converted": clicked & (rng.random(number, np.float32) < 0.08),
            "watch_time": rng.standard_gamma(1.5, number, np.float32) * 4,
            "engaged": rng.random(number, np.float32) < 0.03,
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
        seen += np.bincount(pair, minlength=pairs).astype(np.int32)
        clicks += int(clicked.sum())
    assert writer is not None
    writer.close()
    return clicks, float((seen.astype(float) ** 2).sum())


def summary(videos: int = 107_205) -> pd.DataFrame:
    """Summary rows of as many videos as the real keyword table has."""
    rng, ids = np.random.default_rng(1), video_ids(videos, "bench")
    number = videos * len(VARIANTS)
    table = pd.DataFrame({"video_id": np.repeat(ids, len(VARIANTS)), "variant": [*VARIANTS] * videos})
    table["impressions"] = rng.poisson(2_000, number)
    table["clicks"] = rng.binomial(table["impressions"], 0.042)
    table["conversions"] = rng.binomial(table["clicks"], 0.08)
    table["watch_time"] = rng.gamma(10, 0.5, number).round(4)
    table["engagements"] = rng.binomial(table["impressions"], 0.03)
    table["industry"], table["alignment"] = "Beauty", rng.random(number).round(4)
    return table


def measured(path: Path, rows: int, clicks: int, squares: float | None) -> dict[str, float]:
    """Time and memory of a process that reads a file; what it read is what was written."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, path], check=True, stdout=subprocess.PIPE, text=True)
    used, *found = json.loads(done.stdout)
    assert found == [rows, clicks, squares], (found, rows, clicks, squares)
    return used


def main(rows: int) -> None:
    """One JSON line a measurement."""
    with tempfile.TemporaryDirectory() as folder:
        for number, text, targets in ((rows, False, ("< 80", "< 7")), (1_000_000, True, ("< 5", "< 2"))):
            path = Path(folder) / "log.parquet"
            known = write_log(path, number, text)
            line = {
                "bench": "results",
                "what": f"{number:,} user-level rows, ids as {'text' if text else 'numbers'}, to counts and moments",
                **measured(path, number, *known),
                "target seconds": targets[0] if number <= 100_000_000 else "",
                "target GB": targets[1],
                "file GB": round(path.stat().st_size / 2**30, 2),
            }
            print(json.dumps(line | {"cores": os.cpu_count()}), flush=True)
            path.unlink()
        table = summary()
        table.to_csv(Path(folder) / "results.csv", index=False)
        impressions, clicks = int(table["impressions"].sum()), int(table["clicks"].sum())
        line = {
            "bench": "results",
            "what": f"{len(table):,} summary rows of {table['video_id'].nunique():,} videos, CSV",
            **measured(Path(folder) / "results.csv", impressions, clicks, None),
            "target seconds": "< 5",
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 100_000_000)
