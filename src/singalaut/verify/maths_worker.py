"""The worker that compares expressions with `math-verify`: run as a module, never imported.

The process imports the algebra once and then only forks children, one at a time; the child reads
expressions from the pipe and answers. The system caps its memory, and its processor time in case
nobody is left to kill a child that runs on. Time limits by signals, which math-verify has of its
own, are switched off.

    python -m singalaut.verify.maths_worker SECONDS MEMORY_BYTES
"""

from __future__ import annotations

import cmath
import json
import logging
import math
import os
import resource
import sys
from typing import Any

_JOBS_PER_CHILD = 1000  # caches of the algebra grow
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def main() -> None:
    seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.CRITICAL)
    import math_verify

    _compare(math_verify, "$\\frac{1}{2}$", "0.5")  # loads the grammar before the first fork
    while True:
        child = os.fork()
        if child == 0:
            _serve(math_verify, seconds, memory_bytes)
            os._exit(0)
        _write({"ready": child})
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return


def _serve(algebra: Any, seconds: float, memory_bytes: int) -> None:
    """Answer until the pipe closes; leave with status 1 where a fresh child should go on."""
    sys.setrecursionlimit(5000)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(1, _JOBS_PER_CHILD + 1):
        line = _read_line()
        if not line:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        reply, leaves = _reply(algebra, line), number == _JOBS_PER_CHILD
        leaves = leaves or reply.pop("spent", False)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _write({**reply, "leaves": leaves, "peak_bytes": peak * _MAXRSS_BYTES})
        if leaves:
            os._exit(1)


def _reply(algebra: Any, line: bytes) -> dict[str, Any]:
    number = None
    try:
        job = json.loads(line)
        number = job["id"]
        return {"id": number, **_compare(algebra, job["answer"], job["reference"])}
    except MemoryError:
        return {"id": number, "ok": None, "reason": "out of memory", "spent": True}
    except RecursionError:
        return {"id": number, "ok": None, "reason": "nested too deeply", "spent": True}
    except Exception as error:  # whatever the algebra raises costs this sample only
        reason = f"the algebra fails: {type(error).__name__}"
        return {"id": number, "ok": None, "reason": reason}


def _compare(algebra: Any, answer: str, reference: str) -> dict[str, Any]:
    gold = _parsed(algebra, reference)
    if not gold:
        return {"ok": None, "reason": f"the reference `{reference[:80]}` cannot be read"}
    given = _parsed(algebra, answer)
    if not given:
        return {"ok": False, "reason": f"`{answer[:80]}` cannot be read as mathematics"}
    if "%" not in answer + reference and _differ(gold, given):
        return {"ok": False, "reason": f"`{answer[:80]}` against `{reference[:80]}`, by value"}
    same = algebra.verify(gold, given, timeout_seconds=None, raise_on_error=True)
    return {"ok": bool(same), "reason": f"`{answer[:80]}` against `{reference[:80]}`"}


def _differ(gold: list[Any], given: list[Any]) -> bool:
    """Whether two formulas clearly differ in value where their letters are given numbers.

    That settles most wrong answers without simplifying anything.
    """
    import sympy

    pair = gold[0], given[0]
    if not all(isinstance(one, sympy.Expr) for one in pair):
        return False
    names = sorted({symbol for one in pair for symbol in one.free_symbols}, key=str)
    places = {symbol: sympy.Rational(7 + 4 * n, 5 + n) for n, symbol in enumerate(names)}
    try:
        values = [complex(one.subs(places).evalf(15, maxn=60)) for one in pair]
    except (TypeError, ValueError, ArithmeticError):
        return False
    if not all(cmath.isfinite(value) for value in values):
        return False
    return abs(values[0] - values[1]) > 1e-3 * max(1.0, *map(abs, values))


def _parsed(algebra: Any, text: str) -> list[Any]:
    """What math-verify reads in an expression taken as LaTeX, nothing if it cannot."""
    whole = [algebra.LatexExtractionConfig()]  # others pick out a number and leave the rest
    text = text.strip().strip("$")
    try:
        return list(
            algebra.parse(
                f"${text}$", extraction_config=whole, parsing_timeout=None, raise_on_error=True
            )
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return []


def _read_line() -> bytes:
    """One line from the pipe, byte by byte from the system: nothing is kept in a buffer here."""
    pieces = []
    while piece := os.read(0, 65536):
        pieces.append(piece)
        if piece.endswith(b"\n"):
            break
    return b"".join(pieces)


def _write(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
