"""Pixels against `transformers`' image processor, and files that should not be read."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from singalaut.errors import DataError, MachineError
from singalaut.model import images
from singalaut.model.images import crop_boxes, load_pictures, normalise, read_image

SIZE = 896
MODES = ("RGB", "L", "P", "RGBA", "CMYK", "LA", "1", "P with a hole", "I;16", "EXIF")
SHAPES = [(1, 1), (37, 411), (640, 480), (901, 897)]


def noise(width: int, height: int, seed: int) -> np.ndarray:
    """Smooth colours with noise, so that resizing has something to get wrong."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / (7 + c) + y / (11 - c) + seed) for c in range(4)]
    return (np.stack(waves, -1) + generator.normal(0, 20, (height, width, 4))).clip(0, 255)


def make(mode: str, width: int, height: int, seed: int) -> tuple[bytes, Image.Image]:
    """An image file, and what the library's processor is given in its place."""
    values = noise(width, height, seed).astype(np.uint8)
    colours = Image.fromarray(values[..., :3])
    kind, options = "PNG", {}
    if mode == "I;16":
        image = Image.fromarray(noise(width, height, seed)[..., 0].astype(np.uint16) * 257 // 2)
    elif mode in ("RGBA", "LA"):
        image = Image.fromarray(values).convert(mode)
    elif mode == "P with a hole":
        image, options = colours.convert("P"), {"transparency": 3}
    elif mode == "EXIF":
        image, kind = colours, "JPEG"
        exif = Image.Exif()
        exif[0x0112] = 2 + seed % 7
        options = {"exif": exif, "quality": 95}
    else:
        image = colours.convert(mode)
        kind = "TIFF" if mode == "CMYK" else "PNG"
    out = io.BytesIO()
    image.save(out, kind, **options)
    given = ImageOps.exif_transpose(Image.open(io.BytesIO(out.getvalue())))
    if mode == "I;16":  # the library cuts 16 bits off at 255; the high byte is what was meant
        given = Image.fromarray((np.asarray(given) >> 8).astype(np.uint8))
    return out.getvalue(), given


@pytest.fixture(scope="module")
def processor():
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return Gemma3ImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=2,
        pan_and_scan_min_crop_size=256,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )


@pytest.mark.parametrize("mode", MODES)
def test_pixels_match_transformers(mode, processor):
    for seed, (width, height) in enumerate(SHAPES):
        data, given = make(mode, width, height, seed)
        wanted = np.stack(processor(given)["pixel_values"])
        found = normalise(load_pictures(data, SIZE)).numpy()
        assert np.abs(found - wanted).max() <= 2 / 255, (width, height)
        if mode == "RGB" and width > 1:  # the comparison notices another filter
            other = np.asarray(given.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 127.5 - 1
            assert np.abs(other.transpose(2, 0, 1) - wanted[0]).max() > 2 / 255


@pytest.mark.parametrize(
    "shape", [(1000, 500), (500, 1000), (600, 520), (700, 511), (2100, 300), (260, 800)]
)
def test_pan_and_scan_matches_transformers(shape, processor):
    data, given = make("RGB", *shape, 0)
    wanted = processor(given, do_pan_and_scan=True)
    found = load_pictures(data, SIZE, crop=True)
    assert [len(found) - 1] == wanted["num_crops"]
    assert np.abs(normalise(found).numpy() - np.stack(wanted["pixel_values"])).max() <= 2 / 255


@settings(max_examples=300, deadline=None)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_crops_cover_the_image_along_its_longer_side(width, height):
    boxes = crop_boxes(width, height)
    long = max(width, height)
    assert len(boxes) in (0, 2, 3, 4)
    if boxes:
        assert long / min(width, height) >= 1.2 and min(width, height) >= 256
        spans = [box[::2] if width >= height else box[1::2] for box in boxes]
        assert spans[0][0] == 0 and spans[-1][1] == long
        assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert crop_boxes(height, width) == [(t, left, b, r) for left, t, r, b in boxes] or (
        width == height
    )


def test_the_same_image_from_everywhere(tmp_path):
    data, _ = make("RGB", 40, 30, 1)
    file = tmp_path / "a.png"
    file.write_bytes(data)
    text = base64.b64encode(data).decode()
    sources = [
        data,
        file,
        f"data:image/png;base64,{text}",
        f"data:;base64,{text[:60]}\n{text[60:]}",
    ]
    digests = {load_pictures(source, SIZE)[0].digest for source in sources}
    other = io.BytesIO()
    Image.open(file).save(other, "BMP")
    assert digests == {load_pictures(other.getvalue(), SIZE)[0].digest}
    different = make("RGB", 40, 30, 2)[0]
    assert load_pictures(different, SIZE)[0].digest not in digests


def png_of_size(width: int, height: int) -> bytes:
    """A small PNG file that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_are_refused(kind):
    with pytest.raises(DataError, match=f"several images \\({kind}"):
        read_image(animation(kind))
    still = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(still, kind, lossless=True)
    assert read_image(still.getvalue()).getpixel((3, 3)) == (255, 0, 0)


def test_a_photograph_with_a_preview_beside_it_is_no_animation():
    assert read_image(animation("MPO")).size == (20, 20)


@pytest.mark.parametrize("sides", [(60_000, 60_000), (9_000, 9_000), (1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(sides, recwarn):
    with pytest.raises(DataError, match=f"{images.MAX_PIXELS:,} are decoded"):
        read_image(png_of_size(*sides))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated_files_are_refused(kind):
    out = io.BytesIO()
    Image.fromarray(noise(200, 100, 0).astype(np.uint8)[..., :3]).save(out, kind)
    data = out.getvalue()
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(DataError) as caught:
            read_image(data[: int(len(data) * share)])
        assert caught.value.hint


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_never_fail_in_another_way(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]))
    out = io.BytesIO()
    Image.fromarray(noise(24, 16, 0).astype(np.uint8)[..., :3]).save(out, kind)
    file = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert read_image(bytes(file)).mode == "RGB"
    except DataError as error:
        assert error.hint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "0 bytes that are no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a known format"),
        ("https://example.org/a.png", r"no `data:` URI[\s\S]*addresses are not fetched"),
        ("/etc/passwd", "no `data:` URI"),
        ("data:image/png;base64", "there is no comma"),
        ("data:image/png;base64,@@@", "cannot be read"),
        ("data:text/plain,hello", "no image of a known format"),
    ],
)
def test_what_is_no_image_is_refused(source, message):
    with pytest.raises(DataError, match=message):
        load_pictures(source, SIZE)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MachineError, match="no such file"):
        load_pictures(tmp_path / "none.png", SIZE)
    with pytest.raises(MachineError):
        load_pictures(Path(tmp_path), SIZE)


def test_floating_point_images_are_refused():
    out = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(out, "TIFF")
    with pytest.raises(DataError, match="32 bits a channel"):
        read_image(out.getvalue())


def test_sixteen_bits_keep_their_high_byte():
    out = io.BytesIO()
    values = np.array([[0, 255, 256, 0x7FFF], [0x8000, 0xFF00, 0xFFFF, 300]], np.uint16)
    Image.fromarray(values).save(out, "PNG")
    assert np.array_equal(np.asarray(read_image(out.getvalue()))[..., 0], values >> 8)
