"""What a page about files cannot hold: a process that is killed while it writes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignment_video.core import Refused, read_log, weights

WRITER = """
import sys
from pathlib import Path
from alignment_video.core import atomic_path, log_run
folder = Path(sys.argv[1])
number = 0
while True:
    number += 1
    with atomic_path(folder / "whole.txt") as temporary, open(temporary, "w") as handle:
        for _ in range(2000):
            handle.write(f"{number:09d}\\n")
        handle.flush()
    log_run(folder / "log.jsonl", "written", number=number)
"""


def test_killed_writers_leave_only_whole_files(tmp_path: Path) -> None:
    """Twenty writers, each killed at another moment: the file is whole after every one, the log readable."""
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    folder = tmp_path / "out"
    for attempt in range(20):
        process = subprocess.Popen([sys.executable, str(script), str(folder)])
        deadline = time.monotonic() + 30
        log_size = (folder / "log.jsonl").stat().st_size if attempt else 0
        while not (folder / "log.jsonl").exists() or (folder / "log.jsonl").stat().st_size == log_size:
            assert time.monotonic() < deadline and process.poll() is None, "the writer never wrote"
            time.sleep(0.001)
        time.sleep(0.0007 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        lines = (folder / "whole.txt").read_text().splitlines()
        assert len(lines) == 2000 and len(set(lines)) == 1
    assert all(entry["event"] == "written" for entry in read_log(folder / "log.jsonl"))


def test_two_processes_share_a_log(tmp_path: Path) -> None:
    """Lines of concurrent writers never mix."""
    code = "import sys; from alignment_video.core import log_run\n"
    code += "for i in range(200): log_run(sys.argv[1], 'x' * 500, i=i)"
    log = tmp_path / "log.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(log)]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    entries = read_log(log)
    assert len(entries) == len(log.read_text().splitlines()) == 600
    assert sorted(entry["i"] for entry in entries) == sorted(list(range(200)) * 3)


def test_a_shipped_miniature_may_be_one_of_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(weights("mini", "adapter")).name == "adapter"
    assert Path(weights("mini-scalar", "adapter")).name == "adapter_scalar"
    assert weights("mini-x/y", "adapter") == "mini-x/y"  # of the hub
    with pytest.raises(Refused, match="model 'mini-other': the package ships no adapter_other"):
        weights("mini-other", "adapter")
    Path("mini-other").mkdir()
    assert weights("mini-other", "adapter") == "mini-other"  # a folder of the user's
