"""Kills the command `eval` at random moments, and compares what it ends in with an undisturbed run.

A server in this process answers with what the question's own digest says, so that every answer is
known; each kill is `kill -9` of the whole command. Every tenth time the answers kept are thrown
away, so that kills hit every part of a run.

    python benchmarks/evals_kill.py [--kills 50]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPENINGS = ("Jawaban:", "คำตอบ:", "Câu trả lời:", "Sagot:", "Answer:", "")


class Server(BaseHTTPRequestHandler):
    """Chat completions that depend on the question and the seed alone."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        if len(sent := self.rfile.read(size)) < size:
            return  # whoever asked has been killed
        body = json.loads(sent)
        asked = json.dumps([body["messages"], body.get("seed")]).encode()
        digest = hashlib.sha256(asked).digest()
        tag = re.search(r'"([^"\n]{1,20}[:៖]|အဖြေ-) ?[A-Z]*"', body["messages"][-1]["content"])
        opening = tag[1] if tag else OPENINGS[digest[0] % len(OPENINGS)]
        text = f"{opening} {'ABCD'[digest[1] % 4]} {digest.hex()[: digest[2] % 40]}"
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        reply = json.dumps({"id": "x", "choices": [choice], "usage": usage}).encode()
        time.sleep(0.02)
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of killed clients
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1#known"
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        start(url, whole).communicate()  # loads files into the system's cache
        remove_store(whole)
        begin = time.monotonic()
        reference = finish(url, Path(folder) / "reference")
        longest = time.monotonic() - begin
        generator, kills, tries = random.Random(0), 0, 0
        while kills < options.kills:
            if tries % 10 == 0 or list(killed.rglob("manifest.json")):  # or it had finished
                remove_store(killed)
            tries += 1
            child = start(url, killed)
            time.sleep(generator.uniform(0, longest))
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
        found = finish(url, killed)
    differing = [name for name in {*reference, *found} if reference.get(name) != found.get(name)]
    print(f"an undisturbed run: {longest:.1f} s, {len(reference)} files of results and answers")
    print(f"killed {kills} times in {tries} starts; files that differ in the end: {len(differing)}")
    sys.exit(bool(differing))


def start(url: str, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "singalaut", "eval", "--endpoint", url, "--pack", "demo"]
    command += ["--seeds", "2", "--output", str(home / "runs")]
    environment = {**os.environ, "SINGALAUT_HOME": str(home / "home")}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True
    )


def finish(url: str, home: Path) -> dict[str, bytes]:
    """The files of a run that goes to its end."""
    child = start(url, home)
    child.communicate()
    assert child.returncode == 0
    [folder] = [path.parent for path in home.rglob("manifest.json")]
    files = [f for name in ("results", "responses") for f in (folder / name).rglob("*")]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.is_file()}


def remove_store(home: Path) -> None:
    """Throw away all answers and what has been made of them."""
    subprocess.run(["rm", "-rf", str(home)], check=True)


if __name__ == "__main__":
    main()
