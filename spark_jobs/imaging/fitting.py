"""An image file's bytes to an image of one size, or the reason why it is refused."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from schemas.images import Format, Mode
from spark_jobs.imaging.headers import Header, header_of

# Spark runs one task a core already; and a refused image is told in quarantine, not on the executors' terminals.
cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_WHITE = 255


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How images are made to one size, and which are refused."""

    size: int
    mode: Mode
    format: Format
    quality: int
    min_side: int
    max_pixels: int


@dataclass(frozen=True)
class Fitted:
    """An encoded image of `size` x `size`, and the width and height of its original, as it is to be looked at."""

    content: bytes
    width: int
    height: int


class ImageRefused(Exception):
    """Why an image goes to quarantine: the rule that it breaks, and the reason in words."""

    def __init__(self, rule: str, reason: str):
        super().__init__(reason)
        self.rule, self.reason = rule, reason


def fitted(content: bytes, fit: Fit) -> Fitted:
    """Decode, turn upright, bring to one size, encode; ImageRefused where that cannot be done."""
    header = checked_header(content, fit)
    pixels, reduced = decoded(content, header, fit)
    width, height = header.width, header.height
    is_turned = pixels.shape[1] != -(-width // reduced) and pixels.shape[0] != -(-height // reduced)
    if is_turned:
        width, height = height, width
    square = resized(pixels, fit)
    options = [cv2.IMWRITE_JPEG_QUALITY, fit.quality] if fit.format == "jpeg" else []
    done, encoded = cv2.imencode(f".{fit.format}", square, options)
    assert done
    return Fitted(encoded.tobytes(), width, height)


def checked_header(content: bytes, fit: Fit) -> Header:
    """The header of an image that may be decoded."""
    if not content:
        raise ImageRefused("empty", "the file is empty")
    try:
        header = header_of(content)
    except ValueError as error:
        raise ImageRefused("damaged", str(error)) from None
    if header is None:
        raise ImageRefused("format", f"it is no JPEG, PNG, GIF, BMP, WebP or TIFF: it begins with {content[:8]!r}")
    if header.width * header.height > fit.max_pixels:
        raise ImageRefused(
            "too_large", f"{header.width:,} x {header.height:,} pixels, and --max-pixels is {fit.max_pixels:,}"
        )
    if min(header.width, header.height) < fit.min_side:
        raise ImageRefused(
            "too_small", f"{header.width:,} x {header.height:,} pixels, and --min-side is {fit.min_side:,}"
        )
    return header


def decoded(content: bytes, header: Header, fit: Fit) -> tuple[np.ndarray, int]:
    """Upright pixels of shape (height, width, 3), blue first, and by how much the decoder made them smaller.

    A JPEG is decoded at a half, a quarter or an eighth where that leaves as many pixels as are wanted. What is
    transparent lies on white; 16 bits become 8, grey and CMYK three colours.
    """
    reduced = _reduction(header, fit) if header.format == "jpeg" else 1
    flag = cv2.IMREAD_UNCHANGED if header.may_be_transparent else _REDUCED.get(reduced, cv2.IMREAD_COLOR)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
        if pixels is not None and header.may_be_transparent:
            pixels = _on_white(pixels) if pixels.ndim == 3 and pixels.shape[2] == 4 else None
            if pixels is None:  # it is not transparent after all
                pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageRefused("damaged", f"it cannot be decoded: {error.err or 'no reason given'}") from None
    if pixels is None:
        raise ImageRefused("damaged", f"it cannot be decoded: the {header.format.upper()} is damaged or cut short")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageRefused("format", f"its pixels are {pixels.dtype} of shape {pixels.shape}: 8 or 16 bits are read")
    return pixels, reduced


def resized(pixels: np.ndarray, fit: Fit) -> np.ndarray:
    """Shape (size, size, 3): the middle of it, all of it on black, or all of it stretched."""
    height, width = pixels.shape[:2]
    new_width, new_height = _target(width, height, fit)
    shrinks = new_width < width or new_height < height
    pixels = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    left, top = abs(new_width - fit.size) // 2, abs(new_height - fit.size) // 2
    if fit.mode == "pad":
        square = np.zeros((fit.size, fit.size, 3), np.uint8)
        square[top : top + new_height, left : left + new_width] = pixels
        return square
    return np.ascontiguousarray(pixels[top : top + fit.size, left : left + fit.size])


def _target(width: int, height: int, fit: Fit) -> tuple[int, int]:
    """Width and height that an image is resized to, before its middle is taken or it is padded."""
    if fit.mode == "stretch":
        return fit.size, fit.size
    side = min(width, height) if fit.mode == "crop" else max(width, height)
    return max(1, round(width * fit.size / side)), max(1, round(height * fit.size / side))


def _reduction(header: Header, fit: Fit) -> int:
    wanted = _target(header.width, header.height, fit)
    for by in (8, 4, 2):
        if header.width // by >= wanted[0] and header.height // by >= wanted[1]:
            return by
    return 1


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Shape (height, width, 4), 8 or 16 bits, to three colours of 8 bits."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    alpha = pixels[:, :, 3:].astype(np.uint16)
    mixed = pixels[:, :, :3] * alpha + _WHITE * (_WHITE - alpha)
    return ((mixed + _WHITE // 2) // _WHITE).astype(np.uint8)
