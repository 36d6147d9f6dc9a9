"""What every measurement shares."""

import time
from collections.abc import Callable


def best(work: Callable[[], object], runs: int = 3) -> float:
    """Seconds of the fastest run."""
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took)
