"""The images of a row, put into their places among its turns.

An image is bytes, a path or a `data:` URI. Its file is read as it is; nothing is decoded here.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from singalaut.contracts import Message
from singalaut.errors import DataError
from singalaut.text.parts import image_sources

IMAGE_MARK = "<image>"


def with_images(messages: list[Message], images: Any, folder: Path | None) -> list[Message]:
    """The turns with the row's images in their places.

    Their places are image parts without a source, `<image>` in a text, or the beginning of the
    first question. A string is a path below `folder`, or a `data:` URI.
    """
    given = images if isinstance(images, list) else [] if images is None else [images]
    waiting = [image_source(image, folder) for image in given]
    marks = sum(m.content.count(IMAGE_MARK) for m in messages if isinstance(m.content, str))
    parts_wait = any(
        part.get("type") == "image" and len(part) == 1
        for m in messages
        if isinstance(m.content, list)
        for part in m.content
        if isinstance(part, dict)
    )
    turns = []
    for message in messages:
        content = message.content
        if isinstance(content, str) and waiting and message.role == "user":
            if not parts_wait and marks == 0:  # no place is marked: before the first question
                content = [{"type": "image"} for _ in waiting] + [{"type": "text", "text": content}]
            elif marks and not parts_wait:
                content = _split_marks(content)
        if isinstance(content, list):
            content = [_placed(part, waiting, folder) for part in content]
        turns.append(
            Message(message.role, content, message.tool_calls, message.tool_call_id, message.name)
        )
    if waiting:
        raise DataError("a row has more images than places for them")
    return turns


def image_source(image: Any, folder: Path | None) -> bytes | str | Path:
    """The bytes of an image, its `data:` URI, or its path.

    A file of rows is the user's own, and may name pictures beside it or below, but no others.
    Raises: DataError for anything else.
    """
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path") or image.get("url")
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image.startswith("data:"):
        return image
    if isinstance(image, str) and "://" not in image and folder is not None:
        file = folder / image
        if file.resolve().is_relative_to(folder.resolve()):
            return file
        raise DataError(f"the picture `{image[:80]}` lies outside the folder of the rows")
    raise DataError("an image is no bytes, path or `data:` URI; addresses are not fetched")


def pictures_of(messages: Sequence[Message]) -> tuple[bytes, ...]:
    """The files of the images in a conversation, in order, as they are.

    Raises: DataError for an image that is not there.
    """
    if all(isinstance(message.content, str) for message in messages):
        return ()
    return tuple(_file(source) for source in image_sources(messages))


def _file(source: bytes | str | Path | None) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        if isinstance(source, Path):
            return source.read_bytes()
        if source is not None:
            return base64.b64decode(source.partition(",")[2], validate=True)
    except (OSError, ValueError) as error:
        name = source.name if isinstance(source, Path) else "in the row"
        raise DataError(f"the picture `{name}` cannot be read") from error
    raise DataError("a row has fewer images than places for them")


def _placed(part: Any, waiting: list[bytes | str | Path], folder: Path | None) -> Any:
    """An image part with its source, from the part itself or the next of the row's images."""
    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
        return part
    source = next((part[k] for k in ("image", "image_url", "url", "path") if part.get(k)), None)
    if source is not None:
        return {"type": "image", "image": image_source(source, folder)}
    if not waiting:
        raise DataError("a row has fewer images than places for them")
    return {"type": "image", "image": waiting.pop(0)}


def _split_marks(text: str) -> list[dict[str, Any]]:
    pieces = text.split(IMAGE_MARK)
    parts: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": piece}]
    return parts
