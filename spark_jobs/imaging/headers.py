"""What the first bytes of an image file say: its format, its size and whether it may be transparent.

Nothing is decoded before this: a file of a few kilobytes can promise more pixels than there is memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

ImageFormat = Literal["jpeg", "png", "gif", "bmp", "webp", "tiff"]
_NO_FRAME = {0xC4, 0xC8, 0xCC}  # among the markers C0 to CF, those that begin no frame
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_INTEGERS = 256, 257, {1: "B", 3: "H", 4: "I"}


@dataclass(frozen=True)
class Header:
    """The size is that of the stored pixels, before an orientation turns them."""

    format: ImageFormat
    width: int
    height: int
    may_be_transparent: bool = False


def header_of(content: bytes) -> Header | None:
    """The header of a JPEG, PNG, GIF, BMP, WebP or TIFF file; None for anything else.

    Raises ValueError where the file begins as one of them and its header is cut short or damaged.
    """
    try:
        if content[:3] == b"\xff\xd8\xff":
            return _jpeg(content)
        if content[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(content)
        if content[:6] in (b"GIF87a", b"GIF89a"):
            width, height = struct.unpack_from("<HH", content, 6)
            return Header("gif", width, height, may_be_transparent=True)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _webp(content)
        if content[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(content)
        if content[:2] == b"BM":
            width, height = struct.unpack_from("<ii", content, 18)
            return Header("bmp", width, abs(height))
    except (struct.error, IndexError):
        raise ValueError("its header is cut short") from None
    return None


def _jpeg(content: bytes) -> Header:
    at = 2
    while True:
        if content[at] != 0xFF:
            raise ValueError("its header is damaged: no marker where one should be")
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _ALONE:
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return Header("jpeg", width, height)
        elif marker in (0xD9, 0xDA):
            raise ValueError("its header is damaged: pixels or the end come before the size")
        else:
            at += 2 + max(2, struct.unpack_from(">H", content, at + 2)[0])


def _png(content: bytes) -> Header:
    width, height, _, colour = struct.unpack_from(">IIBB", content, 16)
    before_pixels = content[: content.find(b"IDAT")] if b"IDAT" in content else content
    return Header("png", width, height, may_be_transparent=bool(colour & 4) or b"tRNS" in before_pixels)


def _webp(content: bytes) -> Header:
    kind = content[12:16]
    if kind == b"VP8X":
        flags, wide, high = content[20], content[24:27] + b"\0", content[27:30] + b"\0"
        width, height = struct.unpack("<I", wide)[0] + 1, struct.unpack("<I", high)[0] + 1
        return Header("webp", width, height, may_be_transparent=bool(flags & 0x10))
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        return Header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, may_be_transparent=bool(bits >> 28 & 1))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF)
    raise ValueError("its header is damaged: no picture in the WebP file")


def _tiff(content: bytes) -> Header:
    order = "<" if content[:2] == b"II" else ">"
    at = struct.unpack_from(f"{order}I", content, 4)[0]
    sizes = {}
    for entry in range(struct.unpack_from(f"{order}H", content, at)[0]):
        tag, kind = struct.unpack_from(f"{order}HH", content, at + 2 + 12 * entry)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT) and kind in _TIFF_INTEGERS:
            sizes[tag] = struct.unpack_from(f"{order}{_TIFF_INTEGERS[kind]}", content, at + 10 + 12 * entry)[0]
    if len(sizes) < 2:
        raise ValueError("its header is damaged: the TIFF file does not say its size")
    return Header("tiff", sizes[_TIFF_WIDTH], sizes[_TIFF_HEIGHT])
