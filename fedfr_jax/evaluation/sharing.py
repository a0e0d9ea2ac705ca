"""How several processes share an evaluation: each its own clients, and a part of the images.

Every process computes for its share, and all exchange what they found, so that all of them have
the results of all clients in the usual order. One process alone exchanges nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.personalized import PersonalIdentification, PersonalVerification

Arrays = dict[str, np.ndarray]
ClientResult = tuple[PersonalVerification, PersonalIdentification]
_KINDS = (PersonalVerification, PersonalIdentification)
_ERROR, _POSITION, _CHOSEN = "error", "position", "chosen"


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of several processes evaluates; by default, everything.

    Attributes:
      process: which one this is; ``processes``: how many there are. Client i belongs to process
        ``i % processes``, which stores its model.
      gather: bytes -> the bytes of every process, in their order; all of them call it together.
    """

    process: int = 0
    processes: int = 1
    gather: Callable[[bytes], Sequence[bytes]] = lambda mine: [mine]

    def positions(self, numbers: np.ndarray) -> np.ndarray:
        """Positions of this process' clients among the evaluated ones (E,)."""
        return np.flatnonzero(numbers % self.processes == self.process)

    def exchange(self, compute: Callable[[], Arrays]) -> list[Arrays]:
        """What ``compute`` gives in each process, in their order.

        Raises:
          InputError: in all processes, where ``compute`` raised one in any.
        """
        try:
            mine = packed({_ERROR: np.array("")} | compute())
        except InputError as error:
            mine = packed({_ERROR: np.array(str(error) or "failed")})
        found = [unpacked(message) for message in self.gather(mine)]
        for arrays in found:
            if error_text := str(arrays.pop(_ERROR)):
                raise InputError(error_text)
        return found

    def features(self, embed: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
        """``embed(images)``, of which every process computes a part; the images are the same."""
        if self.processes == 1:
            return embed(images)
        bounds = np.linspace(0, len(images), self.processes + 1).astype(int)
        mine = images[bounds[self.process] : bounds[self.process + 1]]
        parts = self.exchange(lambda: {"features": embed(mine)} if len(mine) else {})
        return np.concatenate([part["features"] for part in parts if part])

    def over_clients(
        self,
        numbers: np.ndarray,
        of_client: Callable[[int], tuple[dict[str, ClientResult], str]],
    ) -> tuple[dict[str, list[ClientResult]], list[str]]:
        """``of_client`` for all evaluated clients, each computed by the process that has it.

        Args:
          numbers: (E,) evaluated clients.
          of_client: position -> (model -> result, the model that the client chose or "").

        Returns:
          (model -> results in the clients' order, the chosen models without "").
        """
        mine = self.positions(numbers)
        if self.processes == 1:
            found = [of_client(int(position)) for position in mine]
            return _by_model([result for result, _ in found]), [c for _, c in found if c]

        def compute() -> Arrays:
            results, chosen = [], []
            for position in mine:
                result, choice = of_client(int(position))
                results.append(result)
                chosen.append(choice)
            return _stacked(mine, results, chosen)

        rows = sorted(
            (row for arrays in self.exchange(compute) for row in _rows(arrays)),
            key=lambda row: row[0],
        )
        return _by_model([result for _, result, _ in rows]), [c for _, _, c in rows if c]

    def examples(
        self, own: Callable[[], Iterator[tuple[int, list[dict[str, Any]]]]]
    ) -> list[list[dict[str, Any]]]:
        """Examples of all processes' clients, in the order of the clients' positions.

        Args:
          own: yields (position, examples) of this process' clients; an example is a dict of
            numbers, texts and arrays.
        """
        if self.processes == 1:
            return [some for _, some in own()]

        def compute() -> Arrays:
            arrays = {}
            for position, some in own():
                arrays[f"{position}"] = np.zeros(0)  # the client was looked at
                for i, example in enumerate(some):
                    for key, value in example.items():
                        arrays[f"{position}/{i}/{key}"] = np.asarray(value)
            return arrays

        found: dict[int, dict[int, dict[str, Any]]] = {}
        for arrays in self.exchange(compute):
            for name, array in arrays.items():
                position, *rest = name.split("/", 2)
                examples = found.setdefault(int(position), {})
                if rest:
                    examples.setdefault(int(rest[0]), {})[rest[1]] = _entry(array)
        return [list(examples.values()) for _, examples in sorted(found.items())]


def packed(arrays: Arrays) -> bytes:
    """Named arrays of numbers, truth values or text as bytes."""
    arrays = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
    header = json.dumps([[name, a.dtype.str, list(a.shape)] for name, a in arrays.items()]).encode()
    return b"".join(
        [len(header).to_bytes(8, "little"), header, *(a.tobytes() for a in arrays.values())]
    )


def unpacked(message: bytes) -> Arrays:
    """The arrays of :func:`packed`."""
    start = 8 + int.from_bytes(message[:8], "little")
    arrays = {}
    for name, dtype, shape in json.loads(message[8:start]):
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        # A copy: what is read belongs to the message, and cannot be written.
        stop = start + count * kind.itemsize
        arrays[name] = np.ndarray(shape, kind, message[start:stop]).copy()
        start = stop
    return arrays


def _stacked(
    positions: np.ndarray, results: Sequence[dict[str, ClientResult]], chosen: Sequence[str]
) -> Arrays:
    """Clients' results as arrays with one row per client."""
    arrays = {_POSITION: np.asarray(positions), _CHOSEN: np.array(chosen, str)}
    for model in results[0] if results else ():
        for k, kind in enumerate(_KINDS):
            for field in dataclasses.fields(kind):
                values = [np.asarray(getattr(result[model][k], field.name)) for result in results]
                arrays[f"{k}/{field.name}/{model}"] = np.stack(values)
    return arrays


def _rows(arrays: Arrays) -> Iterator[tuple[int, dict[str, ClientResult], str]]:
    """(position, model -> result, chosen model) of every client in :func:`_stacked` arrays."""
    fields: dict[str, list[dict[str, np.ndarray]]] = {}
    for name, array in arrays.items():
        if name not in (_POSITION, _CHOSEN):
            k, field, model = name.split("/", 2)
            fields.setdefault(model, [{}, {}])[int(k)][field] = array
    for i, position in enumerate(arrays[_POSITION]):
        result = {}
        for model, (one, many) in fields.items():
            result[model] = (
                PersonalVerification(**{name: _entry(a[i]) for name, a in one.items()}),
                PersonalIdentification(**{name: _entry(a[i]) for name, a in many.items()}),
            )
        yield int(position), result, str(arrays[_CHOSEN][i])


def _entry(value: np.ndarray) -> Any:
    """An array, or the plain number or text that it holds."""
    return value.item() if np.ndim(value) == 0 else value


def _by_model(results: Sequence[dict[str, ClientResult]]) -> dict[str, list[ClientResult]]:
    return {model: [result[model] for result in results] for model in results[0]} if results else {}
