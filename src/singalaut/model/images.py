"""Images from files, bytes and `data:` URIs to the pixels that the vision tower takes.

As Gemma's processor does it: upright by EXIF, transparency on white, three channels of 8 bits,
resized to a square whatever the proportions were, bilinear with antialiasing, to [-1, 1]. Images
of 16 bits a channel keep their high byte. What a file claims is checked before it is decoded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from singalaut.errors import DataError, from_os_error

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 80_000_000  # 240 MB decoded; beyond it a small file could fill the memory
MIN_RATIO, MIN_CROP_PIXELS, MAX_CROPS = 1.2, 256, 4  # of pan and scan


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in the tower's size: [S, S, 3], 8 bits."""

    pixels: np.ndarray

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels: equal for what looks equal to the model."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()


def load_pictures(source: bytes | str | Path, size: int, *, crop: bool = False) -> list[Picture]:
    """The image in `source`, and after it the crops of pan and scan where `crop` is on.

    `source` is the bytes of an image file, a `data:` URI, or the path of a file.
    Raises: DataError for what is no image, broken, animated or too large.
    """
    image = read_image(source)
    pieces = [image, *(image.crop(box) for box in crop_boxes(*image.size) if crop)]
    return [Picture(np.asarray(_resize(piece, size))) for piece in pieces]


def normalise(pictures: Sequence[Picture]) -> Float[Tensor, "N 3 S S"]:
    """Pixels in [-1, 1], channels first."""
    stacked = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def crop_boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of the crops of pan and scan: two to four along the longer side.

    None where the longer side is less than 1.2 times the shorter, or crops would be under 256
    pixels; their number is the rounded ratio of the sides.
    """
    long, short = max(width, height), min(width, height)
    if long / short < MIN_RATIO:
        return []
    wanted = min(long // MIN_CROP_PIXELS, math.floor(long / short + 0.5))
    count = min(MAX_CROPS, max(2, wanted))
    step = math.ceil(long / count)
    if min(step, short) < MIN_CROP_PIXELS:
        return []
    spans = [(step * i, min(step * (i + 1), long)) for i in range(count)]
    if width >= height:
        return [(first, 0, last, height) for first, last in spans]
    return [(0, first, width, last) for first, last in spans]


def read_image(source: bytes | str | Path) -> Any:
    """An upright RGB `PIL.Image` of 8 bits a channel. Raises: DataError, as `load_pictures`."""
    from PIL import Image, ImageOps

    data, where = _bytes_of(source)
    try:
        Image.init()  # which formats there are depends on how Pillow was built
        formats = [name for name in FORMATS if name in Image.OPEN]
        image = Image.open(io.BytesIO(data), formats=formats)
        _check(image, where)
        return _to_rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{len(data)} bytes that are no image of a known format",
            where=where,
            hint="JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 and AVIF can be read",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("the image has far too many pixels", where) from None
    except MemoryError:
        raise
    except Exception as error:  # decoders fail in many ways on damaged files
        raise DataError(
            f"the image cannot be decoded: {error}",
            where=where,
            hint="the file is cut short or damaged; send or write it again",
        ) from error


def _bytes_of(source: bytes | str | Path) -> tuple[bytes, str]:
    """The bytes of an image file and how to call it in messages."""
    if isinstance(source, bytes):
        return source, "image bytes"
    if isinstance(source, Path):
        try:
            return source.read_bytes(), str(source)
        except OSError as error:
            raise from_os_error(error) from error
    if not source.startswith("data:"):
        raise DataError(
            f"`{source[:80]}` is no `data:` URI",
            where="image",
            hint="give a `data:` URI, bytes, or a pathlib.Path; addresses are not fetched",
        )
    head, comma, body = source.partition(",")
    try:
        if not comma:
            raise ValueError("there is no comma")
        data = unquote_to_bytes(body)
        if head.endswith(";base64"):
            data = base64.b64decode(b"".join(data.split()), validate=True)
        return data, head[:80]
    except (ValueError, binascii.Error) as error:
        raise DataError(
            f"the `data:` URI cannot be read: {error}",
            where=head[:80],
            hint="write it as data:image/png;base64,…",
        ) from error


def _check(image: Any, where: str) -> None:
    """Refuse, from the header alone, what is too large, moves, or has no 8 or 16 bits."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(f"the image has {width:,} × {height:,} pixels", where)
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise DataError(
            f"the file holds several images ({image.format}: an animation or pages)",
            where=where,
            hint="save the one that is meant as a file of its own",
        )
    if image.mode in ("I", "F"):
        raise DataError(
            f"the image has 32 bits a channel (mode {image.mode})",
            where=where,
            hint="save it with 8 or 16 bits a channel",
        )


def _too_large(what: str, where: str) -> DataError:
    return DataError(
        f"{what}; at most {MAX_PIXELS:,} are decoded",
        where=where,
        hint="make it smaller: the model sees less than a million pixels anyway",
    )


def _to_rgb(image: Any) -> Any:
    """Three channels of 8 bits; what is transparent becomes white."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _resize(image: Any, size: int) -> Any:
    from PIL import Image

    return image.resize((size, size), Image.Resampling.BILINEAR)
