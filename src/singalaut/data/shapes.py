"""The shapes that rows come in, and how each becomes turns, a reference and constraints.

A shape is known by its columns; the first of `SHAPES` whose columns a row has is taken. Which
columns tell of language, licence and the like is `rows.py`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from singalaut.contracts import ROLES, Message, Role
from singalaut.errors import DataError

Row = Mapping[str, Any]
OTHER_ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}
WRITE = 'write {"messages": [{"role": "user", "content": "…"}, …]}, or name the `columns`'


class Content(NamedTuple):
    """What a row says; the fields of `contracts.Sample`."""

    messages: list[Message]
    rejected: Sequence[Message] = ()
    reference: str | None = None
    constraints: Sequence[dict[str, Any]] = ()


class Shape(NamedTuple):
    """`columns` that a row of this shape has, all that `read` looks at, and how it is read."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], Content]
    optional: tuple[str, ...] = ()


def shape_of(columns: Collection[str]) -> Shape:
    """The shape of rows with these columns. Raises: DataError where none fits."""
    for shape in SHAPES:
        if all(column in columns for column in shape.columns):
            return shape
    found = ", ".join(map(str, columns))[:100] or "nothing"
    raise DataError(f"the columns fit no known shape of row (found: `{found}`)", hint=WRITE)


def turns_of(value: Any, column: str) -> list[Message]:
    """A list of turns in OpenAI's or ShareGPT's form, or a text as one user turn."""
    if isinstance(value, str):
        return [Message("user", value)]
    if not isinstance(value, list):
        raise DataError(f"no list of turns in `{column}` (found: {_kind(value)})", hint=WRITE)
    return [_turn(turn) for turn in value]


def text_of(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"no text in `{column}` (found: {_kind(value)})")
    return value


def prompt_and_answer(row: Row, prompt: str, answer: str, system: str | None = None) -> Content:
    """A question, as a text or turns, and its answer, as a text or turns."""
    messages = turns_of(row.get(prompt), prompt)
    said = row.get(answer)
    answers = turns_of(said, answer) if isinstance(said, list) else [_said(row, answer)]
    return Content([*_system(row, system, messages), *messages, *answers])


def preference(row: Row, prompt: str, chosen: str, rejected: str) -> Content:
    """Two answers to one prompt: texts, turns, or whole conversations with a common beginning."""
    better, worse = row.get(chosen), row.get(rejected)
    if isinstance(better, str) or isinstance(worse, str):
        messages = turns_of(row.get(prompt), prompt)
        return Content([*messages, _said(row, chosen)], [_said(row, rejected)])
    before = turns_of(row[prompt], prompt) if row.get(prompt) else []
    good, bad = turns_of(better, chosen), turns_of(worse, rejected)
    shared = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), len(good))
    if good and good[0].role != "assistant":
        before = []  # the answers hold the prompt already
    return Content([*before, *good], bad[shared:])


def _messages(row: Row) -> Content:
    reference = row.get("answer")
    return Content(
        turns_of(_listed(row, "messages"), "messages"),
        reference=reference if isinstance(reference, str) else None,
    )


def _conversation(column: str) -> Shape:
    def read(row: Row) -> Content:
        messages = turns_of(_listed(row, column), column)
        return Content([*_system(row, "system", messages), *messages])

    return Shape(column, (column,), read, ("system",))


def _preference(row: Row) -> Content:
    return preference(row, "prompt", "chosen", "rejected")


def _openmath(row: Row) -> Content:
    content = prompt_and_answer(row, "problem", "generated_solution")
    return content._replace(reference=_optional(row, "expected_answer"))


def _deepmath(row: Row) -> Content:
    """The first of the solutions that there are; only the question where there is none."""
    messages = [Message("user", text_of(row, "question"))]
    columns = ("r1_solution_1", "r1_solution_2", "r1_solution_3")
    solutions = [row[c] for c in columns if isinstance(row.get(c), str) and row[c].strip()]
    messages += [Message("assistant", solution) for solution in solutions[:1]]
    return Content(messages, reference=_optional(row, "final_answer"))


def _nemotron_rl(row: Row) -> Content:
    messages = turns_of(row.get("input"), "input")
    constraints = _constraints(row.get("args"))
    return Content([*_system(row, "system_prompt", messages), *messages], constraints=constraints)


def _nemotron_sft(row: Row) -> Content:
    return prompt_and_answer(row, "input", "output", "system_prompt")


def _alpaca(row: Row) -> Content:
    question = text_of(row, "instruction")
    extra = row.get("input")
    if isinstance(extra, str) and extra.strip():
        question = f"{question}\n\n{extra}"
    messages = [Message("user", question), _said(row, "output")]
    for pair in reversed(row.get("history") or []):
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise DataError("the `history` is not a list of question and answer")
        messages[:0] = [Message("user", pair[0]), Message("assistant", pair[1])]
    return Content([*_system(row, "system", messages), *messages])


def _pair(prompt: str, answer: str) -> Shape:
    def read(row: Row) -> Content:
        return prompt_and_answer(row, prompt, answer, "system")

    return Shape(f"{prompt}/{answer}", (prompt, answer), read, ("system",))


SHAPES = (
    Shape("messages", ("messages",), _messages, ("answer",)),
    _conversation("conversations"),
    _conversation("conversation"),
    Shape("preference", ("chosen", "rejected"), _preference, ("prompt",)),
    Shape("OpenMathInstruct", ("problem", "generated_solution"), _openmath, ("expected_answer",)),
    Shape(
        "DeepMath",
        ("question", "final_answer"),
        _deepmath,
        ("r1_solution_1", "r1_solution_2", "r1_solution_3"),
    ),
    Shape("Nemotron RL", ("input", "args"), _nemotron_rl, ("system_prompt",)),
    Shape("Alpaca", ("instruction", "output"), _alpaca, ("input", "history", "system")),
    Shape("Nemotron SFT", ("input", "output"), _nemotron_sft, ("system_prompt",)),
    _pair("prompt", "completion"),
    _pair("prompt", "response"),
    _pair("instruction", "response"),
    _pair("question", "answer"),
    _pair("query", "response"),
    _pair("problem", "solution"),
)


def _turn(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"a turn is {_kind(turn)}, not a table")
    name = turn.get("role") or turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    calls = turn.get("tool_calls") or None
    if name == "function_call":
        return Message("assistant", "", [{"type": "function", "function": _call(content)}])
    role = name if name in ROLES else OTHER_ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        known = ", ".join(ROLES)
        raise DataError(f"a message has the role `{name}`", hint=f"known roles: {known}")
    if content is None and calls:
        content = ""
    if not isinstance(content, str | list):
        raise DataError(f"a message of the {role} has no text (found: {_kind(content)})")
    return Message(role, content, calls, turn.get("tool_call_id"), turn.get("name"))


def _call(value: Any) -> dict[str, Any]:
    try:
        call = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        call = None
    if not isinstance(call, dict) or "name" not in call:
        raise DataError("a function call is not JSON with a `name`")
    return call


def _said(row: Row, column: str) -> Message:
    return Message("assistant", text_of(row, column))


def _system(row: Row, column: str | None, messages: list[Message]) -> list[Message]:
    """The system message that a row gives apart from its turns."""
    text = row.get(column) if column else None
    if (
        not isinstance(text, str)
        or not text.strip()
        or (messages[:1] and messages[0].role == "system")
    ):
        return []
    return [Message("system", text)]


def _constraints(value: Any) -> list[dict[str, Any]]:
    """Instructions to keep to: each with its `id` and the arguments that are not null.

    Arguments come beside the list of ids, or as a list of tables, one for each id.
    """
    try:
        arguments = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise DataError(f"`args` is {_kind(value)}, a table of constraints is needed")
    ids = arguments.get("instruction_id_list") or []
    each = arguments.get("kwargs")
    if not isinstance(each, list) or len(each) != len(ids):
        flat = {k: v for k, v in arguments.items() if k not in ("instruction_id_list", "kwargs")}
        each = [flat] * len(ids)
    return [
        {"id": name, **{k: v for k, v in (found or {}).items() if v is not None}}
        for name, found in zip(ids, each, strict=True)
    ]


def _listed(row: Row, column: str) -> list[Any]:
    value = row[column]
    if isinstance(value, str):  # some tables keep their turns as JSON text
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list):
        raise DataError(f"no list of turns in `{column}` (found: {_kind(value)})", hint=WRITE)
    return value


def _optional(row: Row, column: str) -> str | None:
    value = row.get(column)
    return None if value is None else str(value)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
