"""What a check says: yes, no, or that it could not tell, with the reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok` is None where the check does not apply or failed: such an answer is not scored."""

    ok: bool | None
    reason: str


def compared(found: int, relation: str, wanted: int, what: str) -> Verdict:
    """Whether `found` things stand in `relation` to `wanted`: at least, less than, exactly, ..."""
    match relation:
        case "at least":
            ok = found >= wanted
        case "less than":
            ok = found < wanted
        case "at most":
            ok = found <= wanted
        case "more than":
            ok = found > wanted
        case _:
            ok = found == wanted
    return Verdict(ok, f"{found} {what}, wanted {relation} {wanted}")
