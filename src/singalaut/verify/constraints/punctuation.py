"""The constraint on commas, in every script that has one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from singalaut.text.marks import COMMAS
from singalaut.verify.verdict import Verdict

_COMMA = re.compile(f"[{COMMAS}]")


def no_comma(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """No comma of any script: `,` `，` `、` `၊` and their like."""
    found = len(_COMMA.findall(response))
    return Verdict(not found, f"{found} commas" if found else "no comma")
