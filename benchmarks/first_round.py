"""Time from the command to the end of the first federated round.

    python -m benchmarks.first_round

Runs the command that a user runs, in a process of its own, with ``pretrain.epochs=0`` (the time of
pretraining is apart) and one round: with nothing cached (no compiled programs, no measured plans),
then with both there, in turn. Prints the medians, by the clock and of all cores' time: the latter
hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
_LEAST_TIME = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_ROUND = re.compile(r'"round": 1\b')


def _of_children() -> float:
    """Seconds of all cores that ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_round(
    config: str, folder: pathlib.Path, cache: pathlib.Path, flags: list[str]
) -> tuple[float, float]:
    """Seconds from the command to the first round's line in ``metrics.jsonl``.

    Args:
      config: a configuration's name or path.
      folder: work directory; emptied.
      cache: where compiled programs and measured plans are kept.
      flags: more of them.

    Returns:
      (by the clock, of all cores).

    Raises:
      RuntimeError: the command failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    environment = os.environ | {
        "XDG_CACHE_HOME": str(cache),  # compiled programs and measured plans
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    # Without these, the defaults decide which programs are kept, and where.
    for name in ("JAX_COMPILATION_CACHE_DIR", "FEDFR_PLANS", _LEAST_TIME):
        environment.pop(name, None)
    command = [
        *(sys.executable, "-m", "fedfr_jax.train", f"--config={config}", f"--workdir={folder}"),
        *("--config.pretrain.epochs=0", "--config.fed.rounds=1"),
        # Without pretraining all faces look alike, and every public image would be trained on.
        *("--config.fed.hard_threshold=0.999999", *flags),
    ]
    started, used = time.monotonic(), _of_children()
    with (folder.parent / "output.txt").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        metrics = folder / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and _ROUND.search(metrics.read_text()):
                seconds = time.monotonic() - started
                process.kill()
                process.wait()
                return seconds, _of_children() - used
            time.sleep(0.05)
    raise RuntimeError((folder.parent / "output.txt").read_text()[-2000:])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--repeats", type=int, default=3)
    given, flags = parser.parse_known_args()
    found: dict[str, list[tuple[float, float]]] = {"nothing cached": [], "both cached": []}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for _ in range(given.repeats):
            cache = folder / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
            for seconds in found.values():
                seconds.append(first_round(given.config, folder / "run", cache, flags))
                print(json.dumps(found), flush=True)
    for kind, seconds in found.items():
        clock, cores = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"{kind}: {clock:.1f} s, of all cores {cores:.1f} s (medians of {len(seconds)})")


if __name__ == "__main__":
    main()
