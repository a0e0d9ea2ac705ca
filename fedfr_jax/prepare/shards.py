"""Writes the shards of a preparation: images in parallel, and again only what is missing."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from fedfr_jax.data.decode import num_workers
from fedfr_jax.data.prepared import WRITER_OPTIONS, digest
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.images import Stored, stored_image
from fedfr_jax.prepare.plan import PROGRESS, Plan
from fedfr_jax.runtime.json_file import read_json, write_json
from fedfr_jax.runtime.progress import Bar, track

_AHEAD = 8  # images per thread that are read ahead; bounds memory
_DRAWN = 256  # images that a source without files makes at a time
_LETTERS = 300  # of the reason why an image cannot be read


def write_shards(plan: Plan) -> list[dict[str, Any]]:
    """Writes all shards that are not there yet.

    Returns:
      Per shard ``{"file", "images", "bytes", "sha256", "sizes", "left_out"}``: sizes are
      [width, height] of its images, ``left_out`` is [[number in the source, reason], ...].

    Raises:
      InputError: an image cannot be read, and ``plan.unreadable`` is "refuse".
    """
    plan.shard_folder.mkdir(parents=True, exist_ok=True)
    done = [_finished(plan, shard) for shard in range(plan.shards)]
    with (
        track("preparing", len(plan.source.labels), "image") as bar,
        ThreadPoolExecutor(num_workers(plan.workers)) as pool,
    ):
        bar.update(sum(len(plan.images_of(i)) for i, found in enumerate(done) if found))
        return [found or _write(plan, i, pool, bar) for i, found in enumerate(done)]


def _note(plan: Plan, shard: int) -> pathlib.Path:
    return plan.out / PROGRESS / f"{shard:05d}.json"


def _finished(plan: Plan, shard: int) -> dict[str, Any] | None:
    """The note of a shard that is complete and undamaged."""
    path = plan.shard_folder / plan.shard_name(shard)
    if not (_note(plan, shard).exists() and path.exists()):
        return None
    found = read_json(_note(plan, shard))
    whole = found.get("bytes") == path.stat().st_size and found.get("sha256") == digest(path)
    return found if whole else None


def _write(plan: Plan, shard: int, pool: ThreadPoolExecutor, bar: Bar) -> dict[str, Any]:
    # It takes a second to import, which other commands do without.
    from array_record.python import array_record_module  # noqa: PLC0415

    path = plan.shard_folder / plan.shard_name(shard)
    temporary = plan.out / PROGRESS / f"{path.name}.partial"
    sizes: list[list[int]] = []
    left_out: list[list[Any]] = []
    writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
    try:
        with contextlib.closing(_images(plan, plan.images_of(shard), pool)) as images:
            for number, image in images:
                if isinstance(image, Stored):
                    writer.write(image.blob)
                    sizes.append([image.width, image.height])
                else:
                    left_out.append([number, image])
                bar.update(1, images=1, **({"unreadable": len(left_out)} if left_out else {}))
    finally:
        writer.close()
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    note = {
        "file": path.name,
        "images": len(sizes),
        "bytes": path.stat().st_size,
        "sha256": digest(path),
        "sizes": sizes,
        "left_out": left_out,
    }
    write_json(_note(plan, shard), note)  # last: its presence says that the shard is whole
    return note


def _images(
    plan: Plan, numbers: np.ndarray, pool: ThreadPoolExecutor
) -> Generator[tuple[int, Stored | str], None, None]:
    """(number, the image or why it cannot be read), in order, a bounded number of them ahead."""
    waiting: collections.deque[tuple[int, Future[Stored | str]]] = collections.deque()
    most = _AHEAD * num_workers(plan.workers)
    try:
        for number, fetch in _fetchers(plan, numbers):
            waiting.append((number, pool.submit(_one, plan, number, fetch)))
            if len(waiting) >= most:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _fetchers(
    plan: Plan, numbers: np.ndarray
) -> Iterator[tuple[int, Callable[[], bytes | np.ndarray]]]:
    """(number, what returns the image); a source without files draws a block at a time."""
    fetch = plan.source.fetch
    if fetch is not None:
        for number in numbers.tolist():
            yield number, lambda number=number: fetch(number)  # type: ignore[misc]
        return
    for start in range(0, len(numbers), _DRAWN):
        block = numbers[start : start + _DRAWN]
        for number, image in zip(block.tolist(), plan.source.read(block), strict=True):
            yield number, lambda image=image: image  # type: ignore[misc]


def _one(plan: Plan, number: int, fetch: Callable[[], bytes | np.ndarray]) -> Stored | str:
    try:
        return stored_image(
            fetch(),
            image_size=plan.image_size,
            container=plan.container,
            max_megapixels=plan.max_megapixels,
        )
    except InputError:  # the data set as a whole is at fault
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        why = (str(error) or type(error).__name__).splitlines()[0][:_LETTERS]
        if plan.unreadable == "refuse":
            raise InputError(
                f"{plan.source.called(number)}: cannot be read as an image ({why}); replace or "
                "remove it, or leave out such images with --unreadable=leave_out"
            ) from error
        return why
