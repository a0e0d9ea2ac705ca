"""Checks whether an encoded image is complete, without decoding it."""

from __future__ import annotations

import struct
import zlib

_PNG_START = 8  # length of the signature


def is_complete(blob: bytes, kind: str) -> bool:
    """True if nothing of the file is missing, as far as its structure shows.

    A JPEG must end after its last scan, a PNG must hold undamaged chunks up to its end, a WebP must
    have the length in its header. False also for formats without such a check, such as BMP; these
    have to be decoded.

    Args:
      blob: the file.
      kind: "JPEG", "PNG", "WEBP", ..., as Pillow names it.
    """
    if kind == "JPEG":
        # Neither marker can occur within a scan; those of a thumbnail come before the image's own.
        return blob.rfind(b"\xff\xd9") > blob.rfind(b"\xff\xda") > 0
    if kind == "WEBP":
        return len(blob) >= 12 and struct.unpack_from("<I", blob, 4)[0] + 8 <= len(blob)
    return kind == "PNG" and _png_is_complete(blob)


def _png_is_complete(blob: bytes) -> bool:
    at, view = _PNG_START, memoryview(blob)
    while at + 12 <= len(blob):
        length, name = struct.unpack_from(">I4s", blob, at)
        end = at + 8 + length
        if (
            end + 4 > len(blob)
            or zlib.crc32(view[at + 4 : end]) != (struct.unpack_from(">I", blob, end)[0])
        ):
            return False
        if name == b"IEND":
            return True
        at = end + 4
    return False
