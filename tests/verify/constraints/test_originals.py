"""The rules of IFEval and SEA-IFEval against verdicts of the original checkers on our cases.

The verdicts were recorded by `benchmarks/ifeval_agreement.py --record`, one sign a case.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import CASES
from scripts import SCRIPTS

from singalaut.verify.constraints.check import check

RECORDED = json.loads((Path(__file__).parent / "original_verdicts.json").read_text())
UNKNOWN = {("sea-helm", "Han"), *(("ifeval", script) for script in SCRIPTS if script != "Latin")}
SIGNS = {True: "1", False: "0", None: "-"}


def verdicts(name: str, script: str, semantics: str) -> str:
    language = "en" if semantics == "ifeval" else SCRIPTS[script].language
    return "".join(
        SIGNS[check(name, given, response, language, semantics=semantics).ok]
        for given, response, _ in CASES[name](SCRIPTS[script])
    )


@pytest.mark.parametrize("semantics", ["ifeval", "sea-helm"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_verdicts_of_the_originals(script, semantics):
    """All of them; `-` stands where the original has no verdict on such parameters."""
    compared = 0
    for name in CASES:
        recorded = RECORDED[semantics].get(f"{name} {script}", "")
        ours = verdicts(name, script, semantics) if recorded else ""
        pairs = [pair for pair in zip(ours, recorded, strict=True) if pair[1] != "-"]
        assert [pair for pair in pairs if pair[0] != pair[1]] == [], name
        compared += len(pairs)
    assert compared > 600 or (semantics, script) in UNKNOWN


def test_the_native_rules_are_others():
    """The comparison can fail: it does where a reader of the language would not agree."""
    apart = sum(
        native != theirs != "-"
        for key, recorded in RECORDED["sea-helm"].items()
        for native, theirs in zip(verdicts(*key.split(" "), "native"), recorded, strict=True)
    )
    assert apart > 300
    tamil = verdicts("length_constraints:number_words", "Tamil", "native")
    assert tamil != RECORDED["sea-helm"]["length_constraints:number_words Tamil"]
