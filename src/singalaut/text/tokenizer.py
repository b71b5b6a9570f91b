"""The Gemma 3 tokenizer: BPE with byte fallback, built from a GGUF vocabulary or a tokenizer.json.

Text and control tokens are kept apart. The library's tokenizer here always reads control tokens
(`<bos>`, `<start_of_turn>`, ...) as plain text; only `control=True` cuts them out first, in
Python, and only the chat format asks for that. So no text of a user can become a control token,
threads share one object, and one copy of the vocabulary is in memory.

Not text-preserving, because the vocabulary itself is not: U+2581 stands for a space and decodes
to one. Every other valid text survives encode and decode. Reading GGUF files and rendering
conversations are left to others.
"""

from __future__ import annotations

import codecs
import ctypes
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic, write_json
from singalaut.errors import CheckpointError, DataError
from singalaut.text.template import GEMMA_TEMPLATE
from singalaut.text.vocabulary import END_OF_TURN, IMAGE_TOKENS, NAMES, SPACE, START_OF_TURN, build

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Token ids from text and back; safe to share between threads."""

    def __init__(
        self,
        backend: Any,
        names: dict[str, str],
        *,
        where: Path | str | None = None,
        content: str | None = None,
    ):
        """Wrap a `tokenizers.Tokenizer`; `names` are the bos, eos, pad and unk tokens.

        `content` is the SHA-256 of its `tokenizer.json`, where known.

        Raises: CheckpointError if the vocabulary is not of the Gemma kind or lacks a control token.
        """
        self._backend = backend
        self._names = names
        self._content = content
        _check_kind(backend, where)
        self.control_ids, self._control = _mark_controls(backend, names, where)
        backend.encode_special_tokens = True  # from here on the library sees them as text
        self._pattern = _control_pattern(self._control)
        self._pieces: dict[int, bytes] = {}
        self.bos_id = self._control[names["bos_token"]]
        self.eos_id = self._control[names["eos_token"]]
        self.pad_id = self._control[names["pad_token"]]
        self.unk_id = self._control[names["unk_token"]]
        self.start_of_turn_id = self._control[START_OF_TURN]
        self.end_of_turn_id = self._control[END_OF_TURN]
        images = [self._control.get(token) for token in IMAGE_TOKENS.values()]
        self.image_ids: tuple[int, int, int] | None = (
            None if None in images else tuple(images)  # type: ignore[assignment]
        )
        """Ids of start of image, end of image and image token, where the vocabulary has them."""
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._check_no_leak(where)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read `tokenizer.json`, and control token names from `tokenizer_config.json` if present.

        Raises: CheckpointError for a missing, truncated or unsuitable file.
        """
        from tokenizers import Tokenizer as Backend

        file = directory / "tokenizer.json"
        data = _read(file)
        try:
            backend = Backend.from_buffer(data)
        except Exception as error:  # the library raises the bare class for every fault
            raise CheckpointError(
                f"the tokenizer cannot be read: {error}",
                where=file,
                hint="the file is damaged or of another format; download or convert it again",
            ) from error
        backend.no_padding()
        backend.no_truncation()
        names = _token_names(directory / "tokenizer_config.json")
        loaded = cls(backend, names, where=file, content=hashlib.sha256(data).hexdigest())
        _give_back_memory()
        return loaded

    @classmethod
    def from_vocabulary(
        cls, tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
    ) -> Tokenizer:
        """Build the tokenizer from a SentencePiece vocabulary as GGUF files store it.

        The three arrays are `tokenizer.ggml.tokens`, `.scores` and `.token_type`, indexed by id.
        Raises: CheckpointError if they disagree in length or lack a control token.
        """
        return cls(build(tokens, scores, types), dict(NAMES), where="tokenizer.ggml.tokens")

    def save(self, directory: Path, *, template: str = GEMMA_TEMPLATE) -> None:
        """Write the four files by which `transformers` loads this tokenizer and its chat format."""
        extra = {name: t for name, t in IMAGE_TOKENS.items() if t in self._control}
        config = {
            "add_bos_token": True,
            "add_eos_token": False,
            **self._names,
            **extra,
            "extra_special_tokens": extra,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,
            "spaces_between_special_tokens": False,
            "tokenizer_class": "GemmaTokenizer",
            "chat_template": template,
        }
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / "tokenizer.json", self._backend.to_str().encode())
        write_json(directory / "tokenizer_config.json", config)
        write_json(directory / "special_tokens_map.json", {**self._names, **extra})
        write_atomic(directory / "chat_template.jinja", template.encode())

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Token ids of one text, without BOS; see `encode_batch`."""
        return self.encode_batch([text], control=control)[0]

    def encode_batch(self, texts: Sequence[str], *, control: bool = False) -> list[list[int]]:
        """Token ids of each text, without BOS, on the library's threads.

        Control tokens written in a text stay text unless `control`.
        Raises: DataError for a text that is not valid Unicode.
        """
        if not control:
            return self._encode_plain(texts)
        split = [self._split_controls(text) for text in texts]
        plain = iter(
            self._encode_plain([p for parts in split for p in parts if isinstance(p, str)])
        )
        return [
            [i for p in parts for i in (next(plain) if isinstance(p, str) else (p,))]
            for parts in split
        ]

    def decode(self, ids: Iterable[int], *, skip_control: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises: DataError for an id outside the vocabulary.
        """
        return self.bytes_of(ids, skip_control=skip_control).decode("utf-8", "replace")

    def bytes_of(self, ids: Iterable[int], *, skip_control: bool = True) -> bytes:
        """The UTF-8 bytes that `ids` stand for; a character may be split between tokens."""
        pieces, skipped = self._pieces, self.control_ids if skip_control else frozenset()
        return b"".join(pieces.get(i) or self._piece(i) for i in ids if i not in skipped)

    def token(self, id: int) -> str:
        """The vocabulary's spelling of a token. Raises: DataError for an unknown id."""
        token: str | None = self._backend.id_to_token(id) if 0 <= id < 2**32 else None
        if token is None:
            raise DataError(
                f"token id {id} is not in the vocabulary",
                hint=f"ids run from 0 to {self.vocab_size - 1}",
            )
        return token

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the vocabulary, merges, settings and names of the control tokens."""
        content = self._content or hashlib.sha256(self._backend.to_str().encode()).hexdigest()
        return hashlib.sha256(
            json.dumps([content, sorted(self._names.items())]).encode()
        ).hexdigest()

    @property
    def backend(self) -> Any:
        """The library's tokenizer, to look at; it reads control tokens as plain text."""
        return self._backend

    @property
    def control_tokens(self) -> frozenset[str]:
        """The spellings of all control tokens."""
        return frozenset(self._control)

    def plain_tail(self, text: str) -> str:
        """What follows the last control token that is written in a text."""
        return str(self._split_controls(text)[-1])

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            raise _not_unicode(texts) from None
        return [encoding.ids for encoding in encodings]

    def _split_controls(self, text: str) -> list[str | int]:
        """The text cut at control tokens, which are replaced by their ids."""
        parts: list[str | int] = []
        start = 0
        for match in self._pattern.finditer(text):
            if (token_id := self._control.get(match[0])) is not None:
                parts += [text[start : match.start()], token_id]
                start = match.end()
        return [*parts, text[start:]]

    def _piece(self, id: int) -> bytes:
        token = self.token(id)
        byte = _BYTE_TOKEN.fullmatch(token)
        piece = bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
        self._pieces[id] = piece
        return piece

    def _check_no_leak(self, where: Path | str | None) -> None:
        """Refuse merges that spell out a control token.

        Testing each token alone is enough: inside a longer text the same merges happen between
        the same characters, or else a merge across the border prevents the token.
        """
        names = list(self._control)
        for name, ids in zip(names, self._encode_plain(names), strict=True):
            if not self.control_ids.isdisjoint(ids):
                raise CheckpointError(
                    f"the merges of this tokenizer spell out the control token `{name}`",
                    where=where,
                    hint="remove those merges: they let a message forge the turns of a chat",
                )


class StreamDecoder:
    """Decodes tokens as they come; the pieces joined equal `Tokenizer.decode` of all the ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_control: bool = True):
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete; a character still lacking bytes is held back."""
        data = self._tokenizer.bytes_of(ids, skip_control=self._skip_control)
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What was held back: U+FFFD if the last character never became complete."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _check_kind(backend: Any, where: Path | str | None) -> None:
    if not getattr(backend.model, "byte_fallback", False):
        raise CheckpointError(
            f"a {type(backend.model).__name__} tokenizer without byte fallback",
            where=where,
            hint="Singalaut reads the Gemma 3 tokenizer: BPE with byte fallback",
        )


def _mark_controls(
    backend: Any, names: dict[str, str], where: Path | str | None
) -> tuple[frozenset[int], dict[str, int]]:
    """Ids of the control tokens, also by name; those this package relies on become special."""
    from tokenizers import AddedToken

    needed = [*names.values(), START_OF_TURN, END_OF_TURN]
    missing = [token for token in needed if backend.token_to_id(token) is None]
    if missing:
        raise CheckpointError(
            "the vocabulary lacks the control tokens " + " ".join(missing),
            where=where,
            hint="Singalaut needs the vocabulary of Gemma 3",
        )
    images = [token for token in IMAGE_TOKENS.values() if backend.token_to_id(token) is not None]
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in [*needed, *images]]
    )
    added = backend.get_added_tokens_decoder()
    control = {token.content: index for index, token in added.items() if token.special}
    control |= {token: backend.token_to_id(token) for token in [*needed, *images]}
    return frozenset(control.values()), control


def _control_pattern(control: Iterable[str]) -> re.Pattern[str]:
    """Matches every control token, and other words in angle brackets, which the caller drops.

    One short pattern stands for the thousands of tokens that look like `<name>`.
    """
    odd = [token for token in control if not re.fullmatch(r"<[^<>]*>", token)]
    return re.compile("|".join([*map(re.escape, sorted(odd, key=len, reverse=True)), "<[^<>]*>"]))


def _token_names(file: Path) -> dict[str, str]:
    """The bos, eos, pad and unk tokens that a `tokenizer_config.json` names, Gemma's otherwise."""
    if not file.exists():
        return dict(NAMES)
    try:
        config = json.loads(_read(file))
        found = {name: config.get(name) or default for name, default in NAMES.items()}
        return {n: t["content"] if isinstance(t, dict) else str(t) for n, t in found.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"the tokenizer's settings cannot be read: {error}", where=file
        ) from error


def _give_back_memory() -> None:
    """Return to the system what parsing has used: 200 MB in each process that has a tokenizer.

    glibc keeps freed memory for itself; other systems have no such call and no such need.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the file cannot be read: {error.strerror}",
            where=file,
            hint="a model directory holds its tokenizer as tokenizer.json",
        ) from error


def _not_unicode(texts: Sequence[str]) -> DataError:
    """The error for texts that the library refused."""
    for text in texts:
        if not isinstance(text, str):
            return DataError(f"a text was needed, found {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return DataError(
                f"the text is not valid Unicode: {text[error.start]!a} at character {error.start}",
                where=repr(text[max(0, error.start - 20) : error.start + 20]),
                hint="half of a surrogate pair; repair or drop the text",
            )
    return DataError("the texts are not a list of strings")
