"""What a rewriter is asked, in the language of the answer, and what it says beside its answer.

The sentences, in `rewriting.toml`, are simple and not checked by native speakers: a demonstration.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from singalaut.contracts import Message


def rewrite_prompt(
    messages: Sequence[Message], answer: str, language: str, edit: str
) -> list[Message]:
    """One message that holds the instruction, the conversation so far and the answer.

    For the edit `anew` the conversation alone, as the model that answered saw it.
    """
    if edit == "anew":
        return list(messages)
    words = sentences_of(language)
    asked = "\n\n".join(m.content for m in messages if isinstance(m.content, str))
    text = f"{words[edit]}\n\n{words['request']}\n{asked}\n\n{words['answer']}\n{answer}"
    return [Message("user", text)]


def without_frame(text: str, language: str) -> str:
    """The rewritten answer without the label that the rewriter may repeat before it."""
    words = sentences_of(language)
    return text.strip().removeprefix(words["answer"]).strip()


def instructions() -> list[str]:
    """All that a rewriter may be told to do; none of it may stand in an answer."""
    return [words[edit] for words in _sentences().values() for edit in ("minimal", "full")]


def request_labels() -> tuple[str, ...]:
    """What stands before the conversation in all languages; a rewriter may go on with it."""
    return tuple(words["request"] for words in _sentences().values())


def sentences_of(language: str) -> dict[str, str]:
    """The sentences of a language, or of English where it has none."""
    return _sentences()[language if language in _sentences() else "en"]


@lru_cache(maxsize=1)
def _sentences() -> dict[str, dict[str, str]]:
    return tomllib.loads((files("singalaut.pairs") / "rewriting.toml").read_text("utf-8"))
