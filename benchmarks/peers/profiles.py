"""What a profiler saw of the GPU: how long it was busy, and with which kernels."""

import gzip
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

GAPS = (10, 100, 1000, float("inf"))  # bounds of the gaps that are added up, in microseconds


def summary(events, most=15):
    """Of events (name, start, duration) in microseconds: the time they cover, the gaps, and the longest kernels."""
    covered, until, total, number, gaps = 0.0, None, Counter(), Counter(), Counter()
    for name, start, duration in sorted(events, key=lambda event: event[1]):
        until = start if until is None else until
        size = next(size for size in GAPS if start - until < size)
        gaps[size] += max(0.0, start - until)
        covered += max(0.0, start + duration - max(start, until))
        until = max(until, start + duration)
        total[name] += duration
        number[name] += 1
    return {
        "busy_ms": round(covered / 1e3, 3),
        "gaps_ms": {f"under {size} us": round(gaps[size] / 1e3, 3) for size in GAPS},
        "kernels": sum(number.values()),
        "longest": [[name[:100], number[name], round(us / 1e3, 3)] for name, us in total.most_common(most)],
    }


def of_torch(run):
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
    events = [event for event in profiler.events() if str(event.device_type).endswith("CUDA")]
    return summary([(event.name, event.time_range.start, event.time_range.elapsed_us()) for event in events])


def of_jax(run):
    import jax

    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event.get("name") == "process_name"}
    lines = {
        (event["pid"], event["tid"]): event["args"]["name"] for event in events if event.get("name") == "thread_name"
    }
    return summary(
        [
            (event["name"], event["ts"], event["dur"])
            for event in events
            if "dur" in event
            and "GPU" in names.get(event["pid"], "")
            and lines.get((event["pid"], event["tid"]), "").startswith("Stream")
        ]
    )
