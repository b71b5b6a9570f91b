"""The SentencePiece vocabulary that a tokenizer directory describes: the way back of `vocabulary`.

A GGUF file wants tokens, scores and types. Tokens and types are read from `tokenizer.json`; scores
from `tokenizer.model` where it lies beside it, else they are the order of the merges: only their
order decides which pieces are joined. Writing the file is left to others.
"""

from __future__ import annotations

import json
import logging
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from singalaut.errors import CheckpointError
from singalaut.text.sentencepiece import sentencepiece_pieces
from singalaut.text.vocabulary import (
    ALWAYS_CONTROL,
    BYTE,
    CONTROL,
    IMAGE_TOKENS,
    SPACE,
    UNUSED,
    USER_DEFINED,
    build_merges,
    spell,
)

log = logging.getLogger("singalaut")
NORMAL = 1
NEVER_MERGED = -1000.0
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Pieces(NamedTuple):
    """The arrays `tokenizer.ggml.tokens`, `.scores` and `.token_type`, indexed by token id."""

    tokens: list[str]
    scores: list[float]
    types: list[int]


def read_pieces(directory: Path, num_rows: int) -> Pieces:
    """The vocabulary of a tokenizer directory, for an embedding of `num_rows` rows.

    Image tokens beyond the last row are dropped: text-only checkpoints have none for them.
    Raises: CheckpointError for files that cannot be read, do not agree, or have too many tokens.
    """
    file = directory / "tokenizer.json"
    try:
        raw = json.loads(file.read_bytes())
        added = {int(entry["id"]): entry for entry in raw["added_tokens"]}
        by_id = {index: token for token, index in raw["model"]["vocab"].items()}
        merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in raw["model"]["merges"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the tokenizer cannot be read ({type(error).__name__}: {error})",
            where=file,
            hint="give a directory with the `tokenizer.json` of Gemma 3",
        ) from error
    by_id |= {index: entry["content"] for index, entry in added.items()}
    beyond = [by_id.pop(index) for index in list(by_id) if index >= num_rows]
    if unknown := set(beyond) - set(IMAGE_TOKENS.values()):
        raise CheckpointError(
            f"{len(beyond)} tokens, such as `{min(unknown)}`, have no row in an embedding of "
            f"{num_rows} rows",
            where=file,
            hint="tokenizer and weights are of different models",
        )
    ids = range(max(by_id) + 1)
    types = [_type(by_id.get(index), added.get(index)) for index in ids]
    tokens = [_spell(by_id.get(index), kind, index) for index, kind in zip(ids, types, strict=True)]
    model = directory / "tokenizer.model"
    if model.exists():
        scores = _stored_scores(model, tokens, types)
    else:
        scores = _ranked_scores(tokens, types, merges)
    return Pieces(tokens, scores, types)


def drop_padding(pieces: Pieces) -> Pieces:
    """The vocabulary without the unused names at its end, which fill it up to the embedding."""
    count = len(pieces.tokens)
    while count and pieces.types[count - 1] == UNUSED:
        count -= 1
    return Pieces(pieces.tokens[:count], pieces.scores[:count], pieces.types[:count])


def _type(token: str | None, added: dict[str, Any] | None) -> int:
    """The GGUF type of a token; runs of spaces are matched before any merge, as in the original."""
    if token is None:
        return UNUSED
    if token in ALWAYS_CONTROL or (added is not None and added.get("special")):
        return CONTROL
    if added is not None or (len(token) > 1 and not token.strip(SPACE)):
        return USER_DEFINED
    return BYTE if _BYTE_TOKEN.fullmatch(token) else NORMAL


def _spell(token: str | None, kind: int, index: int) -> str:
    """A token as GGUF files have it: what is matched in the text itself has plain spaces."""
    if token is None:
        return f"[PAD{index}]"
    return token.replace(SPACE, " ") if kind == USER_DEFINED else token


def _ranked_scores(
    tokens: list[str], types: list[int], merges: list[tuple[str, ...]]
) -> list[float]:
    """Minus the rank of each token's first merge; tokens that no merge makes come last."""
    normal = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True))}
    normal = {token: i for token, i in normal.items() if types[i] == NORMAL}
    results = dict.fromkeys("".join(merge) for merge in merges)
    order = dict.fromkeys([*(token for token in results if token in normal), *normal])
    scores = [NEVER_MERGED] * len(tokens)
    for rank, token in enumerate(order):
        scores[normal[token]] = float(-rank)
    spelled = [spell(token) for token in tokens]
    wanted = [merge for merge in merges if "".join(merge) in normal]
    found = [merge for merge in build_merges(spelled, scores, types) if "".join(merge) in normal]
    if wanted != found:
        odd = set(wanted) ^ set(found) or [m for m, n in zip(wanted, found, strict=True) if m != n]
        log.warning(
            "%d merges of tokenizer.json are not those of a SentencePiece vocabulary, such as %r: "
            "token ids may differ for some texts; put `tokenizer.model` beside it",
            len(odd),
            next(iter(odd)),
        )
    return scores


def _stored_scores(file: Path, tokens: list[str], types: list[int]) -> list[float]:
    """The scores of a SentencePiece model, for the tokens that merges make."""
    try:
        pieces = list(sentencepiece_pieces(file.read_bytes()))
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise CheckpointError(
            f"the SentencePiece model cannot be read: {error}",
            where=file,
            hint="remove it: `tokenizer.json` alone will do",
        ) from error
    scores = [NEVER_MERGED] * len(tokens)
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == NORMAL:
            piece, score = pieces[index] if index < len(pieces) else ("nothing", 0.0)
            if piece != token:
                raise CheckpointError(
                    f"token {index} is `{piece}`, but `{token}` in `tokenizer.json`",
                    where=file,
                    hint="remove the file that belongs to another tokenizer",
                )
            scores[index] = score
    return scores
