"""What a profiler saw of the GPU: how long it was busy, and with which kernels."""

import gzip
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory


def summary(events, most=15):
    """Of events (name, start, duration) in microseconds: the time they cover, their number, and the longest kernels."""
    covered, until, total, number = 0.0, float("-inf"), Counter(), Counter()
    for name, start, duration in sorted(events, key=lambda event: event[1]):
        covered += max(0.0, start + duration - max(start, until))
        until = max(until, start + duration)
        total[name] += duration
        number[name] += 1
    return {
        "busy_ms": round(covered / 1e3, 3),
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
