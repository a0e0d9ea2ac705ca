"""Runs competitors in separate processes, so that they do not share memory and threads."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.problem import Built, clients_of
from fedfr_jax.runtime.process_memory import peak_bytes

_SPAWN = multiprocessing.get_context("spawn")  # a fork would share JAX's threads
LONGEST = 3600.0  # seconds that one request may take


class Failed(RuntimeError):
    """A competitor raised or died; the message is its last line."""


class Late(Failed):
    """There was no answer in time; the process may still be at work."""


def resolve(target: str):
    """``"module:function"`` to the function."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def memory() -> dict[str, int]:
    """Peak memory of this process in bytes, and on its GPU if it has one."""
    found = {"host": int(peak_bytes())}
    if "torch" in sys.modules:
        cuda = importlib.import_module("torch").cuda
        if cuda.is_available():
            found["device"] = cuda.max_memory_allocated()
    if "jax" in sys.modules:
        stats = importlib.import_module("jax").devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            found["device"] = stats["peak_bytes_in_use"]
    return found


def build(
    target: str, case: Any, path: str, options: Mapping[str, Any], share: tuple[int, int] = (0, 1)
) -> Built:
    """A competitor on the problem in ``path``; ``share`` (i, n) takes every n-th client."""
    with np.load(path) as arrays:
        problem = dict(arrays)
    if share[1] > 1:
        problem = clients_of(problem, slice(share[0], None, share[1]))
        case = dataclasses.replace(case, clients=len(range(share[0], case.clients, share[1])))
    return resolve(target)(case, problem, **options)


def _timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _first(built: Built) -> dict[str, Any]:
    seconds = _timed(built.run)
    answer = {
        "seconds": seconds,
        "memory": memory(),
        "update": dict(built.update()),
        "images": built.images,
        "units": built.units,
        "note": built.note,
    }
    return answer | ({"expected": dict(built.expected())} if built.expected else {})


def _serve(connection, kind, target, arguments, env):
    """Child: builds, then answers ``first``, ``round`` and ``memory`` until ``stop``.

    Kind ``call`` calls a function once, kind ``rows`` calls those that are asked for.
    """
    os.environ.update(env)
    try:
        if kind == "call":
            connection.send(("ok", resolve(target)(*arguments)))
            return
        if kind == "rows":
            _answer_calls(connection)
            return
        built = build(target, *arguments)
        connection.send(("ok", None))
        answers = {
            "first": lambda: _first(built),
            "round": lambda: _timed(built.run),
            "memory": memory,
        }
        while (request := connection.recv()) != "stop":
            connection.send(("ok", answers[request]()))
    except Exception as error:
        traceback.print_exc()
        connection.send(("failed", _reason(error)))


def _reason(error: Exception) -> str:
    """Its type and first line."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _answer_calls(connection) -> None:
    """Calls (target, arguments) one after another; one that fails does not end the process."""
    connection.send(("ok", None))
    while (request := connection.recv()) != "stop":
        try:
            connection.send(("ok", resolve(request[0])(*request[1])))
        except Exception as error:
            traceback.print_exc()
            connection.send(("failed", _reason(error)))


class Process:
    """A child process. Arguments are those of :func:`build`, or of a function to call once."""

    def __init__(self, target: str, arguments: tuple, env: Mapping[str, str], kind: str = "build"):
        self._ours, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=_serve, args=(theirs, kind, target, arguments, dict(env)), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, request: Any) -> None:
        try:
            self._ours.send(request)
        except OSError as error:
            raise Failed(f"ended with exit code {self._process.exitcode}") from error

    def receive(self, longest: float = LONGEST) -> Any:
        """The answer; raises :class:`Failed` if there is none, and :class:`Late` if not in time."""
        try:
            if not self._ours.poll(longest):
                raise Late(f"no answer within {longest:.0f} s")
            kind, answer = self._ours.recv()
        except (EOFError, OSError) as error:
            self._process.join(10)
            raise Failed(f"ended with exit code {self._process.exitcode}") from error
        if kind == "failed":
            raise Failed(answer)
        return answer

    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """Ends it in the middle of its work."""
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        try:
            self._ours.send("stop")
            self._process.join(10)
        except OSError:
            pass
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def call(target: str, *arguments: Any) -> Any:
    """The result of a function, run in a separate process."""
    process = Process(target, arguments, {}, "call")
    try:
        return process.receive()
    finally:
        process.stop()
