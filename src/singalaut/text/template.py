"""Chat templates: Gemma's own, reading one from a model directory, compiling it in a sandbox.

What is put into a template, and how its text becomes tokens, is `chat.py`'s business.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

from singalaut.errors import CheckpointError, DataError

GEMMA_TEMPLATE = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{ content | trim }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif part['type'] == 'text' -%}
                {{ part['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set has_system = messages and messages[0]['role'] == 'system' -%}
{%- for message in (messages[1:] if has_system else messages) -%}
    {%- if message['role'] != ['user', 'assistant'][loop.index0 % 2] -%}
        {{ raise_exception('after a system message, user and assistant must take turns') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
    {%- if loop.first and has_system -%}
        {{ text_of(messages[0]['content']) + '\\n\\n' }}
    {%- endif -%}
    {{ text_of(message['content']) + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


def read_template(directory: Path) -> tuple[str, Path] | None:
    """The template of a model directory and the file that holds it, or None, as in base models.

    `chat_template.jinja` comes before `chat_template` in `tokenizer_config.json`.
    Raises: CheckpointError for a file that cannot be read.
    """
    for file in (directory / "chat_template.jinja", directory / "tokenizer_config.json"):
        if file.exists() and (template := _template_in(file)) is not None:
            return template, file
    return None


def _template_in(file: Path) -> str | None:
    """The template in one file; a configuration may hold none, one, or several by name."""
    try:
        text = file.read_text("utf-8")
        if file.suffix == ".jinja":
            return text
        template = json.loads(text).get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}["default"]
        if template is None or isinstance(template, str):
            return template
        raise ValueError(f"`chat_template` is {type(template).__name__}, not text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the chat template cannot be read: {error}", where=file) from error


def compile_template(template: str, where: Path | None) -> Any:
    """A Jinja2 template in a sandbox: no access to files, imports or the insides of objects.

    Raises: CheckpointError with the line that is wrong.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise template_error(error, where) from error


def _raise_exception(message: str) -> None:
    """What a template calls to refuse a conversation."""
    raise DataError(f"the chat template refuses the conversation: {message}")


def template_error(error: Exception, where: Path | None) -> CheckpointError:
    """What went wrong while a template was compiled or run, with the line of the template."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else "unknown")
    return CheckpointError(
        f"the chat template fails: {error}",
        where=f"{where or 'chat template'}, line {line}",
        hint="correct the template, or remove it to use the one of Gemma 3",
    )
