"""The constraint on the language of the response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from singalaut.verify.language import is_language
from singalaut.verify.verdict import Verdict


def response_language(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """The response is in the language asked for; what it quotes from the prompt does not count."""
    return Verdict(*is_language(response, parameters["language"], parameters.get("prompt")))
