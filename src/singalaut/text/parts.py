"""What the content of a message is made of: texts and images, and how images become tokens.

A part is `{"type": "text", "text": …}`, or an image: `{"type": "image", "image": …}` with bytes, a
`pathlib.Path` or a `data:` URI (also under `url`, `path`, and `base64` for the bare code),
`{"type": "image_url", "image_url": {"url": …}}`, or the bare placeholder `{"type": "image"}`.

An image is only a place in the text here; what it shows is decoded by others from the source that
`image_sources` gives. `chat.py` puts the parts into the conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from singalaut.contracts import ROLES, Message
from singalaut.errors import DataError

Parts = list[dict[str, Any]]
Source = bytes | str | Path
IMAGE_KEYS = ("image_url", "image", "url", "path", "base64")
CROPS_FOLLOW = (
    "Here is the original image ",
    " and here are some crops to help you see better ",
)


@dataclass(frozen=True)
class ImageTokens:
    """How the images of a conversation become tokens.

    `crops` has, for each image part, how many crops follow the whole image (0 without pan and
    scan); every picture is `each` tokens between a start and an end token.
    """

    crops: tuple[int, ...]
    each: int = 256


def image_sources(messages: Sequence[Message]) -> list[Source | None]:
    """The source of every image part in order; None for a bare placeholder.

    Raises: DataError for a part that cannot be read.
    """
    parts = (p for n, m in enumerate(messages, start=1) for p in parts_of(m, n))
    return [part["image"] for part in parts if part["type"] == "image"]


def parts_of(message: Message, number: int) -> Parts:
    """Trimmed texts, neighbours joined, and images as `{"type": "image", "image": source}`."""
    where = f"message {number}"
    if message.role not in ROLES:
        raise DataError(
            f"unknown role `{message.role}`", where=where, hint="known roles: " + ", ".join(ROLES)
        )
    if message.tool_calls:
        raise DataError("tool calls are not part of this chat format", where=where)
    if isinstance(message.content, str):
        return join([], [text_part(message.content.strip())], "")
    if not isinstance(message.content, list):
        found = type(message.content).__name__
        raise DataError(f"the content is {found}, not text", where=where)
    parts: Parts = []
    for part in message.content:
        parts = join(parts, [_part(part, message.role, where)], "")
    return parts


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def join(first: Parts, second: Parts, separator: str) -> Parts:
    """The parts of both, empty texts left out, with `separator` where text meets text.

    An image needs none: blank lines come before and after it in any case.
    """
    first, second = ([p for p in parts if p.get("text") != ""] for parts in (first, second))
    if first and second and first[-1]["type"] == second[0]["type"] == "text":
        text = first[-1]["text"] + separator + second[0]["text"]
        return [*first[:-1], text_part(text), *second[1:]]
    return first + second


def content_of(parts: Parts) -> str | Parts:
    """One string where there are only texts."""
    if count_images(parts):
        return parts
    return "".join(part["text"] for part in parts)


def count_images(content: str | Parts) -> int:
    return 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)


def shown(content: str | Parts) -> str:
    """The content as a template writes it."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "<start_of_image>") for part in content)


def expand(
    content: Parts, ids: tuple[int, int, int], crops: Iterator[int], each: int, before: str
) -> list[str | list[int]]:
    """Plain texts and, at odd places, the ids of pictures; the first text begins with `before`.

    Texts are whole between pictures, so that blank lines which meet become one token, as they do
    where the conversation is tokenised in one piece.
    """
    start, end, image = ids
    pieces: list[str | list[int]] = []
    text = before

    def picture() -> None:
        nonlocal text
        pieces.extend((text + "\n\n", [start, *[image] * each, end]))
        text = "\n\n"

    for part in content:
        if part["type"] == "text":
            text += part["text"]
        elif count := next(crops):
            text += CROPS_FOLLOW[0]
            picture()
            text += CROPS_FOLLOW[1]
            for number in range(count):
                text += " " if number else ""
                picture()
        else:
            picture()
    return [*pieces, text]


def _part(part: Any, role: str, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return text_part(part["text"].strip())
    if kind in ("image", "image_url"):
        if role in ("system", "assistant"):
            raise DataError(
                f"an image in the {role} message", where=where, hint="put it into a user message"
            )
        return {"type": "image", "image": _source(part, kind, where)}
    raise DataError(
        f"a content part of type `{kind}` cannot be read",
        where=where,
        hint='a part is {"type": "text", "text": "..."} or an image',
    )


def _source(part: dict[str, Any], kind: str, where: str) -> Source | None:
    """Bytes, a path or a `data:` URI; a string is no path, so no request can name our files."""
    source = next((part[key] for key in IMAGE_KEYS if key in part), None)
    if isinstance(source, dict):
        source = source.get("url")
    if isinstance(source, bytes | Path) or (source is None and kind == "image"):
        return source
    if isinstance(source, str) and "base64" in part:
        source = f"data:image;base64,{source}"
    if isinstance(source, str) and source.startswith("data:"):
        return source
    raise DataError(
        f"the source of an image is {_found(source)}",
        where=where,
        hint="give a `data:` URI, bytes, or a pathlib.Path; addresses are not fetched",
    )


def _found(source: Any) -> str:
    if source is None:
        return "missing"
    return f"`{source[:60]}`" if isinstance(source, str) else type(source).__name__
