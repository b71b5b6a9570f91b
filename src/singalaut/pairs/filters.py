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
from singalaut.pairs.rewriting import instructions, request_labels
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
SAME = 0.1  # difference of prompt and answer below which one is the other
GIVEN = ("repeat_prompt", "constrained_response")  # constraints whose answer stands in the prompt
FEWEST_LETTERS = 20  # of a text whose language can be told
RUN = 3  # words that together may come again
FEWEST_RUNS = 8  # of a text that can repeat itself; half of them suffice to repeat another
ONE_SIGN = re.compile(r"(\S{1,4})\1{15,}")  # a word to the eye of who cuts words
LONGEST_COMPARED = 4000  # words; the rest of longer texts is not compared


def refusal_of(
    chosen: str,
    rejected: str,
    prompt: str,
    constraints: Sequence[Constraint],
    language: str,
    config: FilterConfig,
    *,
    is_cut: bool = False,
) -> str | None:
    """Why this chosen answer cannot be used beside this rejected one; None where it can.

    `is_cut` says that the rejected one came to no end; a chosen one may be any shorter.
    """
    if not chosen.strip():
        return "the chosen answer is empty"
    if has_control(chosen):
        return "the chosen answer has control tokens or characters"
    if chosen.strip() == rejected.strip():
        return "the chosen answer is the rejected one"
    if REFUSALS.match(chosen.lstrip(" \"'*#")):
        return "the chosen answer is a refusal"
    if any(s in chosen for s in instructions()) or chosen.lstrip().startswith(request_labels()):
        return "the chosen answer repeats the instruction to rewrite"
    if is_echo(chosen, prompt, constraints, config):
        return "the chosen answer repeats the prompt"
    if config.language and not _is_in_language(chosen, prompt, constraints, language):
        return "the chosen answer is in another language"
    if reason := _of_constraints(chosen, rejected, prompt, constraints, language, config, is_cut):
        return reason
    ratio = len(chosen.strip()) / max(1, len(rejected.strip()))
    if ratio > config.max_length:
        return "the chosen answer is too long beside the rejected one"
    if ratio < config.min_length and not is_cut:
        return "the chosen answer is too short beside the rejected one"
    if repetition(chosen) > config.max_repetition:
        return "the chosen answer repeats itself"
    if config.language and _is_signs(chosen) and not _is_signs(rejected):
        return "the chosen answer has hardly a letter"
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


def repetition(text: str) -> float:
    """Share of the runs of three words of a text that came before in it; 0 for short texts."""
    if ONE_SIGN.search(text):
        return 1.0
    runs = _runs(text)
    return 0.0 if len(runs) < FEWEST_RUNS else 1 - len(set(runs)) / len(runs)


def is_echo(
    text: str, prompt: str, constraints: Sequence[Constraint], config: FilterConfig
) -> bool:
    """Whether an answer says what the prompt says, which was not asked for.

    Parts of the prompt count where it has constraints: else they may be what was asked for.
    """
    if any(c.instruction_id.endswith(GIVEN) for c in constraints):
        return False
    runs, asked = _runs(text), _asked(prompt)
    share = sum(run in asked for run in runs) / max(1, len(runs))
    told = len(runs) >= FEWEST_RUNS // 2 and share > config.max_echo
    return bool(told and constraints) or _is_same(prompt, text)


def _is_same(prompt: str, text: str) -> bool:
    one, other = tokens(prompt)[:LONGEST_COMPARED], tokens(text)[:LONGEST_COMPARED]
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)  # slower and slower
    return all(bound() > 1 - SAME for bound in bounds)


@lru_cache(maxsize=256)  # all answers to a prompt are held against it
def _asked(prompt: str) -> set[tuple[str, ...]]:
    return set(_runs(prompt))


def _runs(text: str) -> list[tuple[str, ...]]:
    found = [word.lower() for piece in tokens(text) for word in piece.split()]
    return [tuple(found[i : i + RUN]) for i in range(len(found) - RUN + 1)]


def num_faults(
    text: str, prompt: str, constraints: Sequence[Constraint], language: str, config: FilterConfig
) -> int:
    """How many constraints an answer breaks, and one more for each other fault.

    Those are another language, where pairs are filtered by it and no constraint asks for one;
    repeating itself; and repeating the prompt.
    """
    is_told = any(c.instruction_id in LANGUAGE_INSTRUCTIONS for c in constraints)
    counts = config.language and not is_told
    is_wrong = counts and not _is_in_language(text, prompt, constraints, language)
    repeats = repetition(text) > config.max_repetition
    echoes = is_echo(text, prompt, constraints, config)
    return num_broken(text, constraints, language, prompt) + is_wrong + repeats + echoes


def _is_signs(text: str) -> bool:
    """Whether a text has fewer letters, with their marks, than numbers and signs."""
    kinds = [unicodedata.category(c)[0] for c in text if not c.isspace()]
    return 2 * sum(kind in "LM" for kind in kinds) < len(kinds)


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
    is_cut: bool,
) -> str | None:
    if config.constraints == "any" or not constraints:
        return None
    if config.constraints == "all" and num_broken(chosen, constraints, language, prompt):
        return "the chosen answer does not keep to all constraints"
    faults = [num_faults(t, prompt, constraints, language, config) for t in (chosen, rejected)]
    if faults[0] >= faults[1] + is_cut:
        return "the chosen answer has no fewer faults than the rejected one"
    return None
