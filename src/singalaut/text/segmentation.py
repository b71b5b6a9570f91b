"""Words, sentences and letters of the eleven languages.

The script decides how words are found: runs of Thai by the longest-matching dictionary of
PyThaiNLP (newmm), of Lao, Khmer, Burmese and Chinese by ICU's dictionaries, everything else by
spaces and punctuation. Dictionaries load on first use. Sentences end at the marks of their script;
Thai, which has none, is cut by PyThaiNLP's conditional random field. Letters are grapheme clusters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from singalaut.text.marks import REPETITION_SIGNS, SENTENCE_ENDS

_JOINERS = "\u200c\u200d\u2060"
_MARKS = "\u0300-\u036f\u0900-\u0963\u0b80-\u0bff\u1ab0-\u1aff\u20d0-\u20ff"
_LETTER = rf"[\w{_MARKS}{_JOINERS}]"
_UNSPACED = {
    "th": f"\u0e01-\u0e7f{_JOINERS}",
    "lo": f"\u0e80-\u0eff{_JOINERS}",
    "my": f"\u1000-\u1049\u1050-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f{_JOINERS}",
    "km": f"\u1780-\u17d3\u17d7\u17dc-\u17ff{_JOINERS}",
    "zh": "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
}
_UNSPACED_SPAN = "".join(_UNSPACED.values()).replace(_JOINERS, "")
_ANY_UNSPACED = re.compile(f"[{_UNSPACED_SPAN}]")
# A word of a script with spaces: letters joined by apostrophes or hyphens, numbers by . and , too.
_SPACED_WORD = r"{0}+(?:['’ʼ‐‑-]{0}+|[.,]\d+)*"
_WORD = re.compile(_SPACED_WORD.format(_LETTER))
_RUN = re.compile(
    "|".join(f"(?P<{language}>[{span}]+)" for language, span in _UNSPACED.items())
    + f"|(?P<spaced>{_SPACED_WORD.format(f'(?:(?![{_UNSPACED_SPAN}]){_LETTER})')})"
)
_THAI = re.compile("[\u0e01-\u0e2e]")
_THAI_PIECE_CHARACTERS = 2000  # newmm's graph search is for sentences, not for a megabyte
_THAI_SENTENCES_CHARACTERS = 20_000  # the random field reads 30,000 characters a second

_CLOSING = "\"'”’»)]」』）】》*_`"
_END = re.compile(rf"[{re.escape(SENTENCE_ENDS)}]+[{re.escape(_CLOSING)}]*")
_NEEDS_SPACE = frozenset(".!?…")  # an end only before a space: 3.14, example.com, ?!
_ITEM = re.compile(r"\s*(?:[-*+•·–—#>|]+|\(?(?:\d+|[A-Za-z])[.)])\s")
_OPENERS = "\"'“‘«([*_`-–—•"
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“])(?:[A-Za-z]\.)*(?:"
    r"[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Mt|vs|etc|eg|ie|cf|al|No|Nos|Fig|Eq|Vol|pp|ed|Inc|Ltd|Co"
    r"|Corp|Bros|Gen|Col|Sgt|Capt|Lt|Rep|Sen|Gov|Rev|Hon|Ave|Blvd|Rd|approx|est|dept"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec"
    r"|dll|dsb|dst|dkk|yth|Yth|Jl|Tn|Ny|Bpk|Sdr|hlm|tgl|Ir|Drs|En|Pn|Cik|Tuan|Gng|Bb|Ginoo|Kgg"
    r"|TP|Tp|ThS|PGS|GS|TS|BS|Th|Q|TX|திரு"
    r")$",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(?:^|\s)\(?\d+$")
_DIVIDER = re.compile(r"^[ \t]*(?:\*{3,}|-{3,}|_{3,}|={3,})[ \t]*$", re.MULTILINE)
_BLOCK = re.compile(r"\n[^\S\n]*\n+")


def words(text: str) -> list[str]:
    """The words of `text` in order, without punctuation, spaces and repetition signs.

    `don't`, `anak-anak`, `COVID-19` and `1,000.5` are one word each.
    """
    if not _ANY_UNSPACED.search(text):
        return _WORD.findall(text)
    return [word for word in _runs(text) if word not in REPETITION_SIGNS]


def tokens(text: str) -> list[str]:
    """All of `text` cut at the edges of words; joined again, the pieces are `text`."""
    pieces: list[str] = []
    end = 0
    for match in _RUN.finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        pieces.extend(_cut(match))
        end = match.end()
    return [*pieces, text[end:]] if end < len(text) else pieces


def is_unspaced(character: str) -> bool:
    """Whether `character` belongs to a script that writes no spaces between words."""
    return _ANY_UNSPACED.match(character) is not None


def _runs(text: str) -> Iterator[str]:
    for match in _RUN.finditer(text):
        yield from _cut(match)


def _cut(match: re.Match[str]) -> list[str]:
    kind, run = match.lastgroup, match[0]
    if kind == "spaced" or kind is None or len(run) == 1:
        return [run]
    if kind == "th":
        return _thai_words(run)
    return _icu_words(run, kind)


def sentences(text: str, language: str) -> list[str]:
    """The sentences of `text` in order, without the spaces around them.

    A sentence ends at a mark that ends one in its script, at an empty line, before an item of a
    list, and in Thai where the words say so (past 20,000 characters, at its spaces). An
    abbreviation or an initial does not end one.
    """
    found: list[str] = []
    for block in _BLOCK.split(_DIVIDER.sub("\n\n", text)):
        for part in _items(block):
            for piece in _marked(part):
                if language == "th" and _THAI.search(piece):
                    found.extend(filter(_says_something, _thai_sentences(piece)))
                elif _says_something(piece):
                    found.append(piece)
    return found


def graphemes(text: str) -> list[str]:
    """The grapheme clusters of `text`, what a reader would call its letters and signs."""
    if text.isascii():
        return list(text.replace("\r\n", "\n"))
    from icu4py.breakers import CharacterBreaker

    return list(CharacterBreaker(_encodable(text), "en"))


def _items(block: str) -> Iterator[str]:
    """A block of lines, cut before each line that opens an item of a list or a heading."""
    lines: list[str] = []
    for line in block.split("\n"):
        if lines and (
            _ITEM.match(line) or (_ITEM.match(lines[-1]) and lines[-1].lstrip()[:1] == "#")
        ):
            yield "\n".join(lines)
            lines = []
        lines.append(line)
    yield "\n".join(lines)


def _marked(text: str) -> Iterator[str]:
    """`text` cut after the marks that end sentences."""
    start = 0
    for match in _END.finditer(text):
        if match.start() >= start and _ends(text, match):
            yield text[start : match.end()].strip()
            start = match.end()
    yield text[start:].strip()


def _ends(text: str, match: re.Match[str]) -> bool:
    mark = match[0].rstrip(_CLOSING)
    if not _NEEDS_SPACE.issuperset(mark):
        return True
    after = text[match.end() : match.end() + 40]
    if not after:
        return True
    if not after[0].isspace():
        return bool(_ANY_UNSPACED.match(after)) and mark[-1] in "!?…"
    following = after.lstrip().lstrip(_OPENERS)[:1]
    if mark == "." and match[0] == ".":
        before = text[max(0, match.start() - 24) : match.start()]
        if _NUMBERED.search(before) and _ITEM.match(text[before.rfind("\n") + 1 :]):
            return False
        if _ABBREVIATION.search(before):
            return False
    quoted_or_trailing_off = match[0] != mark or mark.startswith("..") or "…" in mark
    return not (following.islower() and quoted_or_trailing_off) or text.islower()


def _says_something(piece: str) -> bool:
    return any(character.isalnum() for character in piece)


def _thai_words(run: str) -> list[str]:
    from pythainlp.tokenize import word_tokenize

    found: list[str] = []
    for start in range(0, len(run), _THAI_PIECE_CHARACTERS):
        found.extend(word_tokenize(run[start : start + _THAI_PIECE_CHARACTERS], engine="newmm"))
    return found


def _thai_sentences(text: str) -> list[str]:
    if len(text) > _THAI_SENTENCES_CHARACTERS:
        return text.split()
    from pythainlp.tokenize import sent_tokenize

    return [str(piece).strip() for piece in sent_tokenize(_encodable(text), engine="crfcut")]


def _icu_words(run: str, language: str) -> list[str]:
    from icu4py.breakers import WordBreaker

    return list(WordBreaker(_encodable(run), language))


def _encodable(text: str) -> str:
    """`text` with lone surrogates, which are no characters, replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
