"""How fast an experiment is analysed and reported: a million daily rows of 20,000 videos, as CSV and as Parquet.

    analysis.py [VIDEOS]    another number of videos, seven variants and seven days each

The rows are made here, in a temporary folder, with all that a summary may hold: conversions, watch time, engagements,
industry, contrast, brightness, achieved alignment. Each file is read, analysed and reported in a process of its own,
so that its peak memory is its own; within that process the report is written twice, cold (with the import of the
drawing library) and warm. A last line names the questions that take the most time.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from alignment_video.outcomes import VARIANTS, video_ids

SCRIPT = """
import json, resource, sys, time
from alignment_video import analysis as page
from alignment_video.results import read_results
begin = time.perf_counter()
clock = lambda: round(time.perf_counter() - begin, 2)
results = read_results(sys.argv[1])
read = clock()
ctr = page.lifts(results)
lifts = clock() - read
began = clock()
analysis = page.analyse(results)
took = clock() - began
from alignment_video.report import write_report
reports = []
for name in ("cold", "warm"):
    began = clock()
    paths = write_report(analysis, sys.argv[2])
    reports.append(clock() - began)
used = resource.getrusage(resource.RUSAGE_SELF)
ours = {"read": read, "lifts of clicks": lifts, "analyse": took}
ours |= {"report, first": reports[0], "report, again": reports[1]}
ours = {name: round(seconds, 2) for name, seconds in ours.items()}
counts = [int(results.cells[name].sum()) for name in ("impressions", "clicks")]
print(json.dumps([ours, round(used.ru_maxrss / 2**20, 2), paths[0].stat().st_size, counts, len(analysis.effects)]))
"""

QUESTIONS = """
import json, sys, time
from alignment_video import analysis as page
from alignment_video.core import Refused
from alignment_video.results import read_results
results, took = read_results(sys.argv[1]), {}
asked = "lifts placebo dose_response timing new_video these_videos checks_of_lifts heterogeneity interaction"
for name in [*asked.split(), "power_reached", "assignment"]:
    start = time.perf_counter()
    try:
        getattr(page, name)(results)
    except Refused as error:
        took[name] = str(error)
    else:
        took[name] = round(time.perf_counter() - start, 2)
print(json.dumps(took))
"""


def summary(videos: int, days: int = 7) -> pd.DataFrame:
    """Daily rows in which attention does what it promised to."""
    rng = np.random.default_rng(1)
    ids = np.repeat(video_ids(videos, "bench analysis"), len(VARIANTS) * days)
    names = np.tile(np.repeat([*VARIANTS], days), videos)
    number, place = len(ids), np.repeat(np.arange(videos), len(VARIANTS) * days)
    doses = dict.fromkeys(VARIANTS, 0.3) | {"full_boost": 0.45, "reduction": 0.25}
    doses |= dict.fromkeys(("early_boost", "middle_boost", "late_boost"), 0.35)
    table = pd.DataFrame({"video_id": ids, "variant": names, "day": np.tile(np.arange(1, days + 1), number // days)})
    table["impressions"] = rng.poisson(300, number) + 1
    alignment = table["variant"].map(doses) * np.repeat(rng.uniform(0.95, 1.05, videos * len(VARIANTS)), days)
    rate = 0.042 * np.exp(0.8 * (alignment / 0.3 - 1) + rng.normal(0, 0.3, videos)[place])
    table["clicks"] = rng.binomial(table["impressions"], rate)
    table["conversions"] = rng.binomial(table["clicks"], 0.08)
    table["watch_time"] = rng.gamma(10, 0.5, number).round(4)
    table["engagements"] = rng.binomial(table["impressions"], 0.03)
    table["alignment"] = alignment.round(4)
    table["industry"] = np.array(["Beauty", "Electronics", "Food", "Apparel"])[place % 4]
    for name in ("contrast", "brightness"):
        table[name] = rng.random(videos).round(4)[place]
    return table


def run(script: str, *arguments: object) -> list[object]:
    """What a process of its own prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(videos: int) -> None:
    """One JSON line a file, and one of the questions."""
    with tempfile.TemporaryDirectory() as folder:
        table = summary(videos)
        counts = [int(table[name].sum()) for name in ("impressions", "clicks")]
        table.to_csv(Path(folder) / "results.csv", index=False)
        table.to_parquet(Path(folder) / "results.parquet", index=False)
        for name in ("results.csv", "results.parquet"):
            seconds, memory, size, found, effects = run(SCRIPT, Path(folder) / name, Path(folder) / "report")
            assert found == counts, (found, counts)
            line = {
                "bench": "analysis",
                "what": f"{len(table):,} daily rows of {videos:,} videos, {name.split('.')[1].upper()}",
                "seconds": seconds,
                "target seconds": {"analyse": "< 5", "report, first": "< 3", "report, again": "< 3"},
                "peak GB": memory,
                "answers": effects,
                "report MB": round(size / 1e6, 2),
                "cores": os.cpu_count(),
            }
            print(json.dumps(line), flush=True)
        line = {
            "bench": "analysis",
            "what": f"questions about clicks of {videos:,} videos, one after the other",
            "seconds": run(QUESTIONS, Path(folder) / "results.parquet"),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 20_409)
