"""Fuzzes the readers, guided by which of the package's code is reached; ``make fuzz``.

Every target runs in its own process for its share of the time, from the kept corpus
(``tests/fuzz_corpus``). What raises anything but ``InputError``, takes too long or too much memory
goes to the corpus as ``found-...``; of the files that reached new code the smallest that reach
lines that no kept file does are kept, too. Ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback

try:
    import atheris
except ImportError:
    sys.exit("fuzzing needs atheris, which is not installed: pip install 'atheris>=3,<4'")

with (
    contextlib.redirect_stderr(io.StringIO()),  # it names every module
    atheris.instrument_imports(include=["fedfr_jax"]),
):
    import fuzz_targets
    from fuzz_files import CORPUS, LONGEST
    from fuzz_targets import TARGETS

from fedfr_jax.errors import InputError

LIMIT_SECONDS, LIMIT_MB = 5, 2500
MOST_BYTES = 14_000  # kept of a target; the corpus stays small enough for the repository
PACKAGE = str(pathlib.Path(fuzz_targets.resolve.__code__.co_filename).parents[1])


def name_of(data: bytes, prefix: str = "") -> str:
    return prefix + hashlib.sha256(data).hexdigest()[:12]


def seed(name: str) -> pathlib.Path:
    """The corpus of a target, with the files to start from."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("seed-*")):  # archives hold the time: others would be made every day
        for data in TARGETS[name].seeds():
            (folder / name_of(data, "seed-")).write_bytes(data)
    return folder


def run_once(name: str, data: bytes) -> None:
    """Has a target read some bytes; what it raises but InputError is raised."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder, contextlib.suppress(InputError):
        TARGETS[name].read(data, pathlib.Path(folder))


def fuzz(name: str, new: pathlib.Path, found: pathlib.Path, seconds: int) -> None:
    """Fuzzes one target; does not return."""
    seen = set()

    def one_input(data: bytes) -> None:
        try:
            run_once(name, data)
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if PACKAGE in f.filename]
            where = (type(error), frames[-1].filename, frames[-1].lineno) if frames else error
            if where not in seen:  # and on: one finding does not hide the others
                seen.add(where)
                (found / name_of(data, "found-")).write_bytes(data)
                (found / "reasons.txt").open("a").write(
                    f"{name}/{name_of(data, 'found-')}: {traceback.format_exc()}\n"
                )

    options = [
        f"-max_total_time={seconds}",
        f"-timeout={LIMIT_SECONDS}",
        f"-rss_limit_mb={LIMIT_MB}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(new), str(CORPUS / name)], one_input)
    atheris.Fuzz()


def lines_of(name: str, data: bytes) -> set[tuple[str, int]]:
    """The lines of the package that reading some bytes reaches."""
    reached: set[tuple[str, int]] = set()

    def trace(frame, event, argument):
        del argument
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        run_once(name, data)
    except Exception:
        pass
    finally:
        sys.settrace(None)
    return reached


def keep(name: str, new: pathlib.Path) -> int:
    """Adds to the corpus what reaches lines that it does not; returns how many files."""
    corpus, added = CORPUS / name, 0
    files = [path.read_bytes() for path in corpus.iterdir()]
    used, reached = sum(map(len, files)), set[tuple[str, int]]()
    for data in files:
        reached |= lines_of(name, data)
    for data in sorted((path.read_bytes() for path in new.iterdir()), key=len):
        if used + len(data) <= MOST_BYTES and (lines := lines_of(name, data)) - reached:
            (corpus / name_of(data)).write_bytes(data)
            reached, used, added = reached | lines, used + len(data), added + 1
    return added


def one_target(name: str, seconds: int) -> int:
    """Fuzzes a target in another process and keeps what is worth it; returns the findings."""
    corpus = seed(name)
    with tempfile.TemporaryDirectory(prefix="fuzz_") as work:
        new, found = pathlib.Path(work) / "new", pathlib.Path(work) / "found"
        new.mkdir()
        found.mkdir()
        # Not a fork: some readers start threads. libFuzzer ends the process when it is done.
        done = subprocess.run(
            [sys.executable, __file__, "--child", name, str(new), str(found), str(seconds)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        runs = [x.split()[-1] for x in done.stderr.splitlines() if "number_of_executed_units" in x]
        for path in sorted(found.glob("*-*")):
            data = path.read_bytes()
            kind = path.name.split("-")[0]  # found, or libFuzzer's crash, timeout, oom
            shutil.copy(path, corpus / name_of(data, f"{kind}-"))
            print(f"FOUND {corpus / name_of(data, f'{kind}-')}", flush=True)
        if (reasons := found / "reasons.txt").exists():
            print(reasons.read_text(), flush=True)
        if not runs:
            print(done.stderr[-2000:], flush=True)
        findings, added = len(list(found.glob("*-*"))), keep(name, new)
        print(
            f"{name}: {runs[-1] if runs else '?'} inputs in {seconds} s, {findings} findings, "
            f"{added} files kept",
            flush=True,
        )
        return findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--targets", default=",".join(TARGETS), help="separated by commas")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, new, found, seconds = given.child
        fuzz(name, pathlib.Path(new), pathlib.Path(found), int(seconds))
    names = given.targets.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"--targets: {unknown[0]!r}; there are {', '.join(TARGETS)}")
    each = max(1, int(given.seconds / len(names)))
    return min(1, sum(one_target(name, each) for name in names))


if __name__ == "__main__":
    sys.exit(main())
