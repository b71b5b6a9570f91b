"""A server with the calls of vLLM that reinforcement learning makes, over our own engine."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from singalaut.contracts import Request, SamplingParams
from singalaut.generate.engine import engine_over
from singalaut.model.hf import load_model
from singalaut.model.lora import load_adapter


class FakeVllm:
    """`started_on` is read again by `reload_weights`; adapters are loaded over it by name.

    `troubles` has statuses that the next calls are answered with instead.
    """

    def __init__(self, started_on: Path, troubles=()):
        self.started_on, self.troubles = started_on, list(troubles)
        self.calls: list[str] = []
        self.read: list[str] = []
        self.models = {"policy": self._open()}
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, found = server.answer(self.path, json.loads(body) if body else {})
                reply = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path, body):
        with self._lock:
            if self.troubles:
                status = self.troubles.pop(0)
                if status:
                    self.calls.append(f"{status} {path}")
                    return status, {"error": {"message": "not now"}}
            self.calls.append(path)
            match path:
                case "/v1/completions":
                    return self._complete(body)
                case "/collective_rpc":
                    assert body == {"method": "reload_weights"}
                    self.models = {"policy": self._open()}
                    return 200, {"results": [None]}
                case "/reset_prefix_cache":
                    return 200, {}
                case "/v1/load_lora_adapter":
                    engine = self._open(Path(body["lora_path"]))
                    self.models[body["lora_name"]] = engine
                    return 200, "loaded"
                case "/v1/unload_lora_adapter":
                    del self.models[body["lora_name"]]
                    return 200, "unloaded"
        return 404, {"error": {"message": f"no {path} here"}}

    def _open(self, adapter: Path | None = None):
        self.read.append((adapter or self.started_on.resolve()).name)
        model = load_model(self.started_on)
        if adapter is not None:
            load_adapter(model, adapter)
        model.config = model.config.__class__(
            **{**vars(model.config), "eos_ids": (*model.config.eos_ids, 106)}
        )
        return engine_over(model, self.started_on, context_tokens=64)

    def _complete(self, body):
        engine = self.models.get(body["model"])
        if engine is None:
            return 404, {"error": {"message": f"the model {body['model']} does not exist"}}
        assert body["return_token_ids"] is True and body.get("logprobs", 0) == 0
        assert (body["top_k"], body["top_p"], body["repetition_penalty"]) == (0, 1.0, 1.0)
        sampling = SamplingParams(
            n=body.get("n", 1),
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            seed=body.get("seed"),
            logprobs=True,
        )
        found = engine.generate([Request(body["prompt"], sampling)])
        choices = [
            {
                "index": c.index,
                "text": c.text,
                "finish_reason": c.finish_reason,
                "token_ids": list(c.token_ids),
                "logprobs": {"token_logprobs": list(c.logprobs)},
            }
            for c in found
        ]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        return 200, {"id": "x", "choices": choices, "usage": usage}
