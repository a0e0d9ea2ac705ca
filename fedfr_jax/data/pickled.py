"""A reader of pickles that hold byte strings, numbers and plain arrays, and nothing else.

Python's own unpickler runs code named in a file, allocates any size given in a file, and lets a few
bytes grow to gigabytes. Here an operation makes at most one small object, byte strings are slices
of the file, and the replacements of NumPy's functions do not copy.
"""

from __future__ import annotations

import codecs
import functools
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

MOST_OPERATIONS = 3_000_000  # about 300,000 pairs; bounds time and memory
_NUMBERS = frozenset({"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"})
_MOST_DIGITS = 20  # of a number written as text
_MOST_DIMENSIONS = 32


class PickleError(ValueError):
    """The bytes are not a pickle of a supported kind."""


class Dtype:
    """Replacement of ``numpy.dtype`` for plain numbers."""

    def __init__(self, code: Any, *_: Any):
        code = _text(code)
        if code not in _NUMBERS:
            raise PickleError(f"arrays of type {code!r} do not belong in such a file")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or _text(state[1]) not in "<>|=":
            raise PickleError("an array type with a damaged state")
        self.dtype = self.dtype.newbyteorder(_text(state[1]))


class Array:
    """Replacement of ``numpy.ndarray``, also returned by the replaced functions that make one."""

    def __init__(self, value: np.ndarray):
        self.value = value

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("an array with a damaged state")
        _, shape, dtype, fortran, raw = state
        self.value = _from_buffer(raw, dtype, shape, "F" if fortran is True else "C")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if not isinstance(value, str):
        raise PickleError("a text is expected where there is none")
    return value


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    good = (
        isinstance(raw, bytes)
        and isinstance(dtype, Dtype)
        and isinstance(shape, tuple)
        and len(shape) <= _MOST_DIMENSIONS
        and order in ("C", "F")
        and all(type(n) is int and 0 <= n <= len(raw) for n in shape)
    )
    if not good or math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise PickleError("an array whose shape does not fit its bytes")
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _reconstruct(*_: Any) -> Array:
    return Array(np.zeros(0, np.uint8))


def _buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    return Array(_from_buffer(raw, dtype, shape, _text(order)))


def _scalar(dtype: Any, raw: Any) -> Array:
    return Array(_from_buffer(raw, dtype, (), "C"))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Byte strings as old protocols write them."""
    if _text(encoding) not in ("latin1", "latin-1"):
        raise PickleError(f"encoding {encoding!r} does not belong in such a file")
    try:
        return _text(text).encode("latin1")
    except UnicodeEncodeError as error:
        raise PickleError("a byte string with other characters than bytes") from error


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): Dtype,
    ("numpy", "ndarray"): Array,  # an argument of _reconstruct
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): lambda: b"",  # old protocols call it for the empty string only
    ("__builtin__", "bytes"): lambda: b"",
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _buffer

_MARK = object()
_SIZES = {
    1: struct.Struct("<B"),
    2: struct.Struct("<H"),
    4: struct.Struct("<I"),
    8: struct.Struct("<Q"),
}
_PUTS = {b"q": 1, b"r": 4}  # by the size of the index
_SKIPPED = {b"\x80": 1, b"\x95": 8}  # the protocol's number, the length of a frame


class _Machine:
    """Runs the operations of one pickle."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0  # bytes that _encode has made

    def run(self) -> Any:
        for _ in range(MOST_OPERATIONS):
            code = self.take(1)
            if code == b".":
                return self.pop()
            self.step(code)
        raise PickleError(f"more than {MOST_OPERATIONS} operations")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise PickleError("it is cut off")
        start, self.position = self.position, end
        return self.data[start:end]

    def number(self, size: int) -> int:
        return _SIZES[size].unpack(self.take(size))[0]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise PickleError("it is cut off")
        start, self.position = self.position, end + 1
        return self.data[start:end]

    def digits(self) -> int:
        text = self.line().rstrip(b"L")
        if len(text) > _MOST_DIGITS:
            raise PickleError("a number that is too long")
        return int(text)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError("an operation without its operand")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise PickleError("an operation without its mark")
        self.stack.pop()
        return items[::-1]

    def top(self, *kinds: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kinds):
            raise PickleError(f"an operation that needs a {kinds[0].__name__}")
        return self.stack[-1]

    def step(self, code: bytes) -> None:
        """One operation; those that make a value first."""
        if code in _SKIPPED:
            self.take(_SKIPPED[code])
        elif code in _PUTS or code in (b"p", b"\x94"):
            self.put(code)
        elif code == b"(":
            self.stack.append(_MARK)
        elif code in (b"a", b"e"):
            items = [self.pop()] if code == b"a" else self.pop_to_mark()
            self.top(list).extend(items)
        elif code == b"b":
            state = self.pop()
            self.top(Array, Dtype).build(state)
        elif code == b"0":
            self.pop()
        else:
            self.stack.append(self.value(code))

    def put(self, code: bytes) -> None:
        if code == b"\x94":
            index = len(self.memo)
        else:
            index = self.digits() if code == b"p" else self.number(_PUTS[code])
        value = self.pop()
        self.memo[index] = value
        self.stack.append(value)

    def value(self, code: bytes) -> Any:
        if code not in _VALUES:
            raise PickleError(f"the operation {code!r} does not belong in such a file")
        return _VALUES[code](self)

    def items(self, count: int) -> tuple[Any, ...]:
        return tuple([self.pop() for _ in range(count)][::-1])

    def truth_or_number(self) -> bool | int:
        text = self.line()
        self.position -= len(text) + 1
        return self.line() == b"01" if text in (b"00", b"01") else self.digits()

    def quoted(self) -> bytes:
        text = self.line().strip()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in b"'\"":
            raise PickleError("a byte string without quotes")
        return codecs.escape_decode(text[1:-1])[0]

    def get(self, index: int) -> Any:
        if index not in self.memo:
            raise PickleError("it refers to what it does not hold")
        return self.memo[index]

    def known(self, module: Any, name: Any) -> Callable[..., Any]:
        module, name = _text(module), _text(name)
        if (module, name) not in _KNOWN:
            raise PickleError(
                f"it asks for {module[:80]}.{name[:80]}, which a verification set "
                "does not need; the file may be hostile"
            )
        return _KNOWN[module, name]

    def call(self) -> Any:
        arguments, function = self.pop(), self.pop()
        if (
            not any(function is known for known in _KNOWN.values())
            or function is Array
            or (not isinstance(arguments, tuple))
        ):
            raise PickleError("it calls what is no function")
        try:
            result = function(*arguments)
        except TypeError as error:
            raise PickleError(f"a call with wrong arguments ({error})") from error
        if isinstance(result, bytes):
            self.encoded += len(result)
            if self.encoded > len(self.data):  # one text made into bytes again and again
                raise PickleError("its byte strings are larger than the file")
        return result


def _bytes_after_length(machine: _Machine, size: int) -> Any:
    return machine.take(machine.number(size))


def _text_after_length(machine: _Machine, size: int) -> str:
    return machine.take(machine.number(size)).decode("utf-8", "surrogatepass")


def _values() -> dict[bytes, Callable[[_Machine], Any]]:
    """The operations that put a value on the stack."""
    table: dict[bytes, Callable[[_Machine], Any]] = {
        b"N": lambda m: None,
        b"\x88": lambda m: True,
        b"\x89": lambda m: False,
        b"]": lambda m: [],
        b")": lambda m: (),
        b"l": lambda m: m.pop_to_mark(),
        b"t": lambda m: tuple(m.pop_to_mark()),
        b"K": lambda m: m.number(1),
        b"M": lambda m: m.number(2),
        b"J": lambda m: int.from_bytes(m.take(4), "little", signed=True),
        b"\x8a": lambda m: int.from_bytes(m.take(m.number(1)), "little", signed=True),
        b"I": _Machine.truth_or_number,
        b"L": _Machine.digits,
        b"S": _Machine.quoted,
        b"V": lambda m: m.line().decode("raw-unicode-escape"),
        b"g": lambda m: m.get(m.digits()),
        b"h": lambda m: m.get(m.number(1)),
        b"j": lambda m: m.get(m.number(4)),
        b"c": lambda m: m.known(m.line(), m.line()),
        b"\x93": lambda m: m.known(*m.items(2)),
        b"R": _Machine.call,
    }
    for count, code in enumerate((b"\x85", b"\x86", b"\x87"), 1):
        table[code] = functools.partial(_Machine.items, count=count)
    # Byte strings and text, by the size of the length field before them.
    for code, size in {b"C": 1, b"B": 4, b"\x8e": 8, b"\x96": 8, b"U": 1, b"T": 4}.items():
        table[code] = functools.partial(_bytes_after_length, size=size)
    for code, size in {b"\x8c": 1, b"X": 4, b"\x8d": 8}.items():
        table[code] = functools.partial(_text_after_length, size=size)
    return table


_VALUES = _values()


def loads(data: bytes) -> Any:
    """Reads a pickle of byte strings, text, numbers, lists, tuples and arrays of numbers.

    Strings of Python 2 and bytearrays become ``bytes``, arrays and NumPy's scalars
    :class:`Array`. Lists may hold themselves: do not descend without a limit.

    Raises:
      PickleError: it is cut off or damaged, or holds anything else.
    """
    try:
        return _Machine(data).run()
    except PickleError:
        raise
    except (ValueError, struct.error) as error:  # digits, encodings, escapes
        raise PickleError(str(error)) from error
