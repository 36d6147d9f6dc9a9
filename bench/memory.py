"""Memory of reading and writing a long video: the peak for ten minutes beside the peak for one."""

import json
import subprocess
import sys
import tempfile

SCRIPT = """
import resource, sys
import numpy as np
from alignment_video.video import Encoding, VideoWriter, transcode
folder, seconds = sys.argv[1], int(sys.argv[2])
texture, fast = np.random.default_rng(0).integers(0, 255, (480, 270, 3), np.uint8) // 4, Encoding(preset="ultrafast")
with VideoWriter(f"{folder}/long.mp4", rate=24, encoding=fast) as writer:
    for number in range(24 * seconds):
        writer.write(np.roll(texture, number // 24, 0))
assert transcode(f"{folder}/long.mp4", f"{folder}/copy.mp4", encoding=fast) == 24 * seconds
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(seconds: int) -> float:
    """Peak megabytes of a process that writes so many seconds of video, reads them and writes them again."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SCRIPT, folder, str(seconds)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


short, long = peak(60), peak(600)
line = {
    "bench": "memory",
    "what": "read and write 270x480, peak MB",
    "1 minute": round(short),
    "10 minutes": round(long),
}
print(json.dumps(line | {"ratio": round(long / short, 2), "target": "flat"}))
