"""What a chosen answer must not be: each refusal has one reason, the first that applies.

All are functions of texts; languages and constraints are `verify`'s to tell.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache

from singalaut.pairs.config import FilterConfig
from singalaut.pairs.fixing import num_broken
from singalaut.pairs.rewriting import instructions
from singalaut.text.segmentation import tokens
from singalaut.verify.constraints.check import (
    LANGUAGE_INSTRUCTIONS,
    Constraint,
    answer_language,
)
from singalaut.verify.language import is_language

CONTROL_TOKENS = re.compile(
    r"<(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|start_of_image|end_of_image"
    r"|image_soft_token|unused\d+)>|<\|[a-z_]+\|>|\[/?INST\]"
)
# How answers begin that refuse, in eleven languages; simple, and not checked by native speakers.
REFUSALS = re.compile(
    r"(?:i(?:'m| am) (?:sorry|unable|not able)|sorry, (?:but )?i|i (?:can(?:no|')t|cannot|won't)"
    r"|as an ai|maaf, (?:saya|tetapi|tapi)|saya (?:tidak (?:bisa|dapat|boleh))|ขออภัย|ขอโทษ"
    r"|ฉันไม่สามารถ|ผมไม่สามารถ|xin lỗi|rất tiếc|tôi không thể"
    r"|paumanhin|pasensya|hindi ko (?:kaya|maaaring)"
    r"|抱歉|对不起|很遗憾|我(?:无法|不能)|மன்னிக்கவும்|என்னால் முடியாது|တောင်းပန်ပါတယ်|ဝမ်းနည်းပါတယ်"
    r"|សុំទោស|សូមអភ័យទោស|ຂໍໂທດ|ຂໍອະໄພ)",
    re.IGNORECASE,
)
ECHO = 0.9  # of the words of the prompt and the answer in common, from which it is an echo
FEWEST_LETTERS = 20  # of a text whose language can be told
LONGEST_COMPARED = 4000  # words; the rest of longer texts is not compared


def refusal_of(
    chosen: str,
    rejected: str,
    prompt: str,
    constraints: Sequence[Constraint],
    language: str,
    config: FilterConfig,
) -> str | None:
    """Why this chosen answer cannot be used beside this rejected one; None where it can."""
    if not chosen.strip():
        return "the chosen answer is empty"
    if has_control(chosen):
        return "the chosen answer has control tokens or characters"
    if chosen.strip() == rejected.strip():
        return "the chosen answer is the rejected one"
    if REFUSALS.match(chosen.lstrip(" \"'*#")):
        return "the chosen answer is a refusal"
    if any(sentence in chosen for sentence in instructions()):
        return "the chosen answer repeats the instruction to rewrite"
    repeats = any(c.instruction_id.endswith("repeat_prompt") for c in constraints)
    if not repeats and difference(prompt, chosen) < 1 - ECHO:
        return "the chosen answer repeats the prompt"
    if config.language and not _is_in_language(chosen, prompt, constraints, language):
        return "the chosen answer is in another language"
    if reason := _of_constraints(chosen, rejected, prompt, constraints, language, config):
        return reason
    ratio = len(chosen.strip()) / max(1, len(rejected.strip()))
    if ratio > config.max_length:
        return "the chosen answer is too long beside the rejected one"
    if ratio < config.min_length:
        return "the chosen answer is too short beside the rejected one"
    changed = difference(rejected, chosen)
    if changed < config.min_difference:
        return "the two answers hardly differ"
    if changed > config.max_difference:
        return "the two answers differ too much"
    return None


def has_control(text: str) -> bool:
    """Whether a text has control tokens, control characters, or characters that are none."""
    if CONTROL_TOKENS.search(text):
        return True
    allowed = "\n\t\u200b\u200c\u200d"  # zero-width ones are spelling in several scripts
    return any(
        c not in allowed and (c == "\ufffd" or unicodedata.category(c) in ("Cc", "Co", "Cs"))
        for c in text
    )


def difference(first: str, second: str) -> float:
    """Share of words that differ between two texts, from 0 to 1."""
    one, other = tokens(first)[:LONGEST_COMPARED], tokens(second)[:LONGEST_COMPARED]
    return 1 - SequenceMatcher(None, one, other, autojunk=False).ratio()


def num_faults(
    text: str, prompt: str, constraints: Sequence[Constraint], language: str, config: FilterConfig
) -> int:
    """How many constraints an answer breaks, and one more where it is in another language.

    Languages count where pairs are filtered by them and no constraint asks for one.
    """
    is_told = any(c.instruction_id in LANGUAGE_INSTRUCTIONS for c in constraints)
    counts = config.language and not is_told
    is_wrong = counts and not _is_in_language(text, prompt, constraints, language)
    return num_broken(text, constraints, language, prompt) + is_wrong


def _is_in_language(
    text: str, prompt: str, constraints: Sequence[Constraint], language: str
) -> bool:
    """Whether an answer is in the language asked for, or too short to tell."""
    if sum(character.isalpha() for character in text) < FEWEST_LETTERS:
        return True
    return _told(text, answer_language(constraints, language), prompt)


@lru_cache(maxsize=4096)  # each answer of a prompt is looked at several times
def _told(text: str, language: str, prompt: str) -> bool:
    return is_language(text, language, prompt)[0]


def _of_constraints(
    chosen: str,
    rejected: str,
    prompt: str,
    constraints: Sequence[Constraint],
    language: str,
    config: FilterConfig,
) -> str | None:
    if config.constraints == "any" or not constraints:
        return None
    if config.constraints == "all" and num_broken(chosen, constraints, language, prompt):
        return "the chosen answer does not keep to all constraints"
    faults = [num_faults(t, prompt, constraints, language, config) for t in (chosen, rejected)]
    if faults[0] >= faults[1]:
        return "the chosen answer has no fewer faults than the rejected one"
    return None
