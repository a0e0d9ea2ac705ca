"""What the targets of the fuzzer are made of."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

Read = Callable[[bytes, pathlib.Path], None]
CORPUS = pathlib.Path(__file__).parents[1] / "fuzz_corpus"
LONGEST = 4096  # bytes of a file


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
      read: of (bytes, an empty folder to write them to).
      seeds: files to start from; none raises.
    """

    read: Read
    seeds: Callable[[], list[bytes]]


def of_file(name: str, *readers: Callable) -> Read:
    """A target that writes one file and has it read."""

    def read(data, folder):
        (folder / name).write_bytes(data)
        for reader in readers:
            reader(folder / name)

    return read


def picked(originals: Callable[[], dict[str, bytes]], reader: Callable, seal=None) -> Read:
    """A target of several files, one of which is spoilt."""

    def read(data, folder):
        files = dict(originals())
        if data:
            name = sorted(files)[data[0] % len(files)]
            files[name] = seal(name, data[1:]) if seal else data[1:]
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        reader(folder)

    return read


def seeds_of(originals: Callable[[], dict[str, bytes]]) -> Callable[[], list[bytes]]:
    """The files themselves, each with its number in front, but for large ones."""
    return lambda: [
        bytes([i]) + content
        for i, (_, content) in enumerate(sorted(originals().items()))
        if len(content) < LONGEST
    ]


def edited(originals: Callable[[], dict[str, bytes]], reader: Callable) -> Read:
    """A target of files whose names differ each time: the bytes are changes of one of them.

    The first byte is the number of the file; then follow changes of three bytes each: where (two
    bytes) and what is there afterwards, or, at a place behind the end, where the file is cut off.
    """

    def read(data, folder):
        files = {name: bytearray(content) for name, content in originals().items()}
        content = files[sorted(files)[data[0] % len(files)]] if data else bytearray()
        for i in range(1, len(data) - 2, 3):
            at = int.from_bytes(data[i : i + 2], "little")
            if at < len(content):
                content[at] = data[i + 2]
            elif content:
                del content[at % len(content) :]
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        reader(folder)

    return read


def with_check(content: bytes, key: str, check: Callable) -> bytes:
    """A JSON object with its checksum made again; other content as it is."""
    try:
        found = json.loads(content)
        if isinstance(found, dict):
            found.pop(key, None)
            content = json.dumps(found | {key: check(found)}).encode()
    except (ValueError, RecursionError, UnicodeDecodeError):
        pass
    return content


def in_folder(make: Callable[[pathlib.Path], None]) -> dict[str, bytes]:
    """The files that ``make`` writes: relative name -> content."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make(folder)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def archive(**arrays) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()
