"""Pictures in rows of training data: where a row's words name a file, the file.

In a request a string is never a path, so that nobody can ask for our files. A file of rows is our
own, and may name pictures that lie beside it or below. Nothing is decoded here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from singalaut.errors import DataError
from singalaut.text.parts import IMAGE_KEYS


def with_files(content: list[Any], folder: Path, where: str) -> list[Any]:
    """The parts of a message, with paths below `folder` in the place of their names.

    Raises: DataError for a name that leads out of the folder, or to no file.
    """
    return [_with_file(part, folder, where) for part in content]


def _with_file(part: Any, folder: Path, where: str) -> Any:
    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
        return part
    key = next((key for key in IMAGE_KEYS if key in part), None)
    source = part[key] if key is not None else None
    if isinstance(source, dict):
        source = source.get("url")
    if not isinstance(source, str) or key == "base64" or not _is_name(source):
        return part  # a `data:` URI, or what is refused where it is read
    file = folder / source
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"the picture `{source[:80]}` lies outside the folder of the rows",
            where=where,
            hint="name it relative to the file of rows, and keep it beside or below that file",
        )
    if not file.is_file():
        raise DataError(
            f"there is no picture `{source[:80]}`",
            where=where,
            hint="name it relative to the file of rows, or give a `data:` URI",
        )
    return {"type": "image", "image": file}


def _is_name(source: str) -> bool:
    return not source.startswith("data:") and "://" not in source
