"""How fast the users' tables are read and joined: 176,000 scenes and 107,205 keywords, with all their dirt."""

import json
import os
import tempfile
from pathlib import Path

import pandas as pd
from _measure import best

from alignment_video.outcomes import alignment_table, bulk_scenes, keyword_table
from alignment_video.tables import invisible_keyword, read_alignment, read_keywords


def joined(scores: Path, keywords: Path) -> pd.DataFrame:
    return read_alignment(scores).table.merge(read_keywords(keywords).table, on="video_id", suffixes=("", "_keyword"))


def usual(scores: Path, keywords: Path) -> pd.DataFrame:
    """What pandas alone needs, without looking at anything."""
    return pd.read_csv(scores).merge(pd.read_csv(keywords), left_on="video id", right_on=" _id")


def main() -> None:
    """One JSON line a measurement."""
    videos = bulk_scenes(107_205, seed=1, scenes=(1, 1))
    scenes = bulk_scenes(23_400, seed=1)
    scenes["video_id"] = scenes["video_id"].map(
        dict(zip(scenes["video_id"].unique(), videos["video_id"], strict=False))
    )
    with tempfile.TemporaryDirectory() as folder:
        scores, keywords = Path(folder) / "scores.csv", Path(folder) / "keywords.csv"
        table, _ = alignment_table(scenes, first="mixed", dirty=True)
        table.to_csv(scores, index=False)
        words, _ = keyword_table(videos, dirty=True)
        words.to_csv(keywords, index=False)
        ours, pandas = best(lambda: joined(scores, keywords)), best(lambda: usual(scores, keywords))
        known = read_keywords(keywords).table["keyword"].drop_duplicates()
        phrases = best(lambda: known.map(invisible_keyword))
    line = {
        "bench": "tables",
        "what": f"{len(table)} scores and {len(words)} keywords read and joined",
        "seconds": round(ours, 2),
        "target": "< 3",
        "pandas alone, nothing checked": round(pandas, 2),
        "ratio to pandas": round(ours / pandas, 1),
    }
    print(json.dumps(line | {"cores": os.cpu_count()}), flush=True)
    line = {"bench": "tables", "what": "keywords asked whether they can be seen, a second"}
    print(json.dumps(line | {"rate": round(len(known) / phrases)}), flush=True)


if __name__ == "__main__":
    main()
