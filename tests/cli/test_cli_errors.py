"""Whatever goes wrong is one message on stderr with a remedy, and an exit code that says whose."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time

import pytest

from singalaut.cli.main import explain
from singalaut.errors import from_os_error

COMMAND = [sys.executable, "-m", "singalaut"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run no.toml", "no such recipe"),
        ("run tiny.toml --set sft.stps=1", "did you mean `steps`?"),
        ("run tiny.toml --until crad", "did you mean `card`?"),
        ("run tiny.toml --from card", "needs the stage `sft`, which has not finished"),
        ("run tiny.toml --set sft.data.0.path=no.jsonl", "no.jsonl"),
        ("run tiny.toml --set model.base=nothing", "there is no model `nothing`"),
        ("recipe show no.toml", "no such recipe"),
        ("status no.toml", "no such recipe"),
        ("sft", "no model is given"),
        ("sft --model base", "needs either `data` or `prepared`, and either `steps` or `epochs`"),
        ("sft --model base --data a.jsonl", "`sft`: it needs either `steps` or `epochs`"),
        ("prepare --model base", "`prepare.data` is missing"),
        ("prepare --model base --data no.jsonl", "`prepare.data.0` is not there"),
        ("prepare --model base --data a.jsonl --near-duplicates 0.1", "more than 0.3"),
        ("prepare --model base --data a.jsonl --near-duplicates 7", "where: --near-duplicates"),
        ("data report base", "no report of prepared data"),
        ("sft --model base --data a.jsonl --steps 0", "`sft.steps` needs 1 or more, found 0"),
        ("sft --model base --data no.jsonl --steps 1", "`sft.data.0` is not there"),
        ("sft --model base --data a.jsonl --steps 1 --rank 0", "--rank"),
        ("sft --recipe tiny.toml --steps 1", "`--steps` cannot be used with `--recipe`"),
        ("sft --recipe tiny.toml --stage card", "no stage of kind `sft` is named `card`"),
        ("sft --stage sft --model base", "`--stage` needs a recipe"),
        ("merge --recipe tiny.toml", "0 stages are of kind `merge`"),
        ("merge nothing:0.5 base:0.5", "there is no model `nothing`"),
        ("eval --model nothing", "there is no model `nothing`"),
        ("generate --model nothing hello", "there is no model `nothing`"),
        ("generate --model nothing --pan-and-scan hello", "but none is given"),
        ("convert no.gguf out", "no.gguf"),
        ("convert base out --step 3", "there is no checkpoint of a training run"),
        ("inspect nothing", "there is no model `nothing`"),
    ],
)
def test_fault_of_the_user_is_told_with_exit_code_2(cli, recipe_file, words, message):
    result = cli(*words.split())
    assert result.exit_code == 2
    assert result.stderr.count("error: ") == 1 and message in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rnu", "Did you mean 'run'?"),
        ("run --dryrun x", "--dry-run"),
        ("generate hello", "'--model'"),
        ("generate --model x --temperature -1 hello", "--temperature"),
    ],
)
def test_fault_of_the_command_line_is_told_with_exit_code_2(cli, words, message):
    result = cli(*words.split())
    assert result.exit_code == 2 and message in result.stderr


def test_debug_shows_where_the_error_comes_from(cli):
    result = cli("--debug", "run", "no.toml")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr and "error: no such recipe" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "memory"),
        (OSError(errno.ENOSPC, "full", "/x"), 1, "no space is left"),
        (PermissionError(errno.EACCES, "no", "/x"), 1, "permission denied"),
        (ZeroDivisionError("by zero"), 1, "internal error: ZeroDivisionError: by zero"),
    ],
)
def test_fault_of_the_machine_or_ours_is_told_with_exit_code_1(error, code, message):
    text, found = explain(error)
    assert found == code and message in text


def test_a_process_of_a_job_says_which_it_is_and_tells_the_launcher(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    result = cli("run", "no.toml")
    assert result.exit_code == 2
    assert result.stderr.startswith("process 2 of 4: error: no such recipe")
    told = json.loads((tmp_path / "error.json").read_text())["message"]
    assert told["extraInfo"]["py_callstack"] == told["message"]
    assert told["message"].startswith("error: no such recipe")


@pytest.mark.parametrize(
    "text", ["[gloo/transport/tcp/pair.cc:537] Read error", "Connection closed by peer [::1]"]
)
def test_the_end_of_another_process_is_told(text, monkeypatch):
    assert "internal error" in explain(RuntimeError(text))[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    told, code = explain(RuntimeError(text))
    assert code == 1 and "another process of the job has ended" in told
    assert "internal error" in explain(RuntimeError("a shape is wrong"))[0]


def test_output_folder_that_cannot_be_written_is_told(cli, recipe_file, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    result = cli("run", "tiny.toml")
    assert result.exit_code == 2 and result.stderr.count("error: ") == 1
    assert "runs" in result.stderr


def test_unknown_log_level_is_told(cli, monkeypatch):
    monkeypatch.setenv("SINGALAUT_LOG", "loud")
    result = cli("doctor")
    assert result.exit_code == 2 and "SINGALAUT_LOG" in result.stderr


def test_interrupt_is_one_line_and_exit_code_130():
    process = subprocess.Popen(
        [*COMMAND, "generate", "--model", "x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(2)  # by now it waits for lines on stdin
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 130
    assert message.strip().startswith("stopped; finished stages") and message.count("\n") == 2


def test_reader_that_goes_away_is_no_error(recipe_file):
    process = subprocess.Popen(
        [*COMMAND, "recipe", "show", "tiny.toml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=20)
    assert message == b""


def test_a_path_that_leads_nowhere_is_a_mistake_of_the_input(tmp_path):
    for path, wanted in ((tmp_path / "none.gguf", "no such file"), (tmp_path, "a file is needed")):
        with pytest.raises(OSError) as caught:
            path.read_bytes()
        error = from_os_error(caught.value)
        assert wanted in error.what and error.exit_code == 2
    assert from_os_error(OSError(errno.ENOSPC, "full")).exit_code == 1
