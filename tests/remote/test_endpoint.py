"""The endpoint Sampler against a real server on this machine that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from singalaut.contracts import Message, Request, Sampler, SamplingParams
from singalaut.errors import MachineError, RequestError
from singalaut.remote import endpoint as endpoint_module
from singalaut.remote.config import EndpointConfig
from singalaut.remote.endpoint import EndpointSampler
from singalaut.remote.pace import Pace, pause_seconds
from singalaut.remote.wire import Wire, delta_of, error_text


def ok(text: str, **more) -> dict:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return {"choices": [choice | more], "usage": usage}


class Server:
    """Answers by a function of the body; what it returns is JSON, or (status, body, headers)."""

    def __init__(self, answer: Callable[[dict], object]):
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.flying = self.most = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                with lock:
                    server.flying += 1
                    server.most = max(server.most, server.flying)
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                with lock:
                    server.bodies.append(body)
                    server.paths.append(self.path)
                    server.headers.append(dict(self.headers))
                found = answer(body)
                status, data, headers = found if isinstance(found, tuple) else (200, found, {})
                raw = data if isinstance(data, bytes) else json.dumps(data).encode()
                with lock:
                    server.flying -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr("singalaut.remote.pace.FIRST_PAUSE_SECONDS", 0.001)
    servers: list[Server] = []

    def start(answer: Callable[[dict], object]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def sampler(*servers: Server, **settings) -> EndpointSampler:
    config = EndpointConfig(urls=tuple(s.url for s in servers), model="m", **settings)
    return EndpointSampler(config)


def requests(count: int, **sampling) -> list[Request]:
    params = SamplingParams(max_tokens=5, **sampling)
    return [Request([Message("user", f"question {i}")], params, id=str(i)) for i in range(count)]


def test_every_request_is_answered_once(serve):
    server = serve(lambda body: ok("echo " + body["messages"][-1]["content"]))
    made = sampler(server, concurrency=8)
    assert isinstance(made, Sampler)
    found = {done.request_id: done for done in made.sample(iter(requests(100)))}
    assert {name: done.text for name, done in found.items()} == {
        str(i): f"echo question {i}" for i in range(100)
    }
    one = found["3"]
    assert (one.finish_reason, one.usage.prompt_tokens, one.usage.completion_tokens) == (
        "stop",
        7,
        3,
    )
    assert server.most <= 8
    assert made.statistics()["answers"] == 100
    assert made.identity.startswith("m at endpoint ") and "127" not in made.identity


def test_requests_are_spread_over_servers(serve):
    def slowly(body):
        time.sleep(0.01)
        return ok("x")

    one, two = serve(slowly), serve(slowly)
    list(sampler(one, two, concurrency=4).sample(requests(20)))
    assert min(len(one.bodies), len(two.bodies)) >= 8


def test_only_what_differs_from_the_defaults_is_sent(serve):
    server = serve(lambda body: ok("x"))
    list(sampler(server).sample(requests(1)))
    assert server.bodies[0].keys() == {"model", "messages", "max_tokens", "temperature", "top_p"}
    params = SamplingParams(
        max_tokens=9,
        temperature=0.3,
        top_k=5,
        seed=4,
        stop=("\n",),
        logit_bias={7: 1.5},
        min_p=0.1,
        stop_token_ids=(1,),
        presence_penalty=0.5,
    )
    list(sampler(server).sample([Request([Message("user", "x")], params, "a")]))
    body = server.bodies[1]
    assert body["logit_bias"] == {"7": 1.5} and body["stop"] == ["\n"] and body["top_k"] == 5
    assert (body["seed"], body["min_p"], body["stop_token_ids"]) == (4, 0.1, [1])
    own = EndpointSampler(EndpointConfig(urls=(server.url,), model="m"), own_settings=True)
    list(own.sample(requests(1)))
    assert server.bodies[2].keys() == {"model", "messages", "max_tokens"}


def test_the_key_is_sent_and_never_shown(serve, monkeypatch):
    server = serve(lambda body: ok("x"))
    monkeypatch.setenv("TEST_KEY", "secret-123")
    made = sampler(server, key_variable="TEST_KEY")
    list(made.sample(requests(1)))
    assert server.headers[0]["Authorization"] == "Bearer secret-123"
    assert "secret" not in made.identity and "secret" not in made.config.model_dump_json()
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(RequestError, match="TEST_KEY"):
        sampler(server, key_variable="TEST_KEY")


@pytest.mark.parametrize(
    ("trouble", "counter"),
    [
        ((429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}), "http_429"),
        ((500, {"error": "broken"}, {}), "http_500"),
        ((503, b"<html><body>Service Unavailable</body></html>", {}), "http_503"),
        ((200, b"<html>welcome to the proxy</html>", {}), "not_json"),
        ((200, b"", {}), "not_json"),
        ((200, [1, 2], {}), "malformed"),
    ],
    ids=["429", "500", "html-503", "html-200", "empty", "list"],
)
def test_what_may_pass_is_repeated_and_counted(serve, trouble, counter):
    seen: dict[str, int] = {}

    def answer(body):
        text = body["messages"][-1]["content"]
        seen[text] = seen.get(text, 0) + 1
        return trouble if seen[text] <= 2 else ok(text)

    made = sampler(serve(answer), concurrency=4)
    found = {done.request_id: done for done in made.sample(requests(5))}
    assert all(done.finish_reason == "stop" for done in found.values())
    statistics = made.statistics()
    assert statistics[f"trouble_{counter}"] == statistics["trouble_repeated"] == 10


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ((400, {"error": {"message": "context too long"}}, {}), "HTTP 400: context too long"),
        (
            (422, b"<html><h1>Unprocessable</h1> entity</html>", {}),
            "HTTP 422: Unprocessable entity",
        ),
        ((500, {"error": "broken"}, {}), "HTTP 500: broken"),
        ((200, {"choices": []}, {}), "not an answer of this protocol (no 'choices')"),
        ((200, {"choices": [{}]}, {}), "not an answer of this protocol (no 'text')"),
    ],
    ids=["400", "422", "500", "none", "empty"],
)
def test_what_does_not_pass_ends_one_request_with_its_reason(serve, trouble, reason):
    def answer(body):
        return trouble if body["messages"][-1]["content"].endswith("1") else ok("x")

    made = sampler(serve(answer), retries=1)
    found = {done.request_id: done for done in made.sample(requests(3))}
    assert found["1"].finish_reason == "error" and found["1"].error == reason
    assert found["0"].text == found["2"].text == "x"
    assert made.statistics()["trouble_given_up"] == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_name_ends_the_run_at_once(serve, status):
    server = serve(lambda body: (status, {"error": {"message": "no such model"}}, {}))
    with pytest.raises(RequestError, match=f"HTTP {status}: no such model") as caught:
        list(sampler(server, concurrency=2).sample(requests(50)))
    assert "key" in caught.value.hint
    assert len(server.bodies) < 10


def test_a_server_that_is_not_there_ends_the_run(serve, monkeypatch):
    monkeypatch.setattr(endpoint_module, "DEAD_AFTER", 3)
    server = serve(lambda body: ok("x"))
    gone = server.url
    server.http.shutdown()
    server.http.server_close()
    config = EndpointConfig(urls=(gone,), model="m", retries=0)
    with pytest.raises(MachineError, match="the endpoint answers nothing"):
        list(EndpointSampler(config).sample(requests(20)))


def test_slow_answers_time_out_and_deadlines_hold(serve):
    def answer(body):
        time.sleep(0.5)
        return ok("late")

    server = serve(answer)
    made = sampler(server, timeout_seconds=0.05, retries=1)
    [done] = made.sample(requests(1))
    assert (done.finish_reason, done.error) == ("error", "no answer in time")
    assert made.statistics()["trouble_timeouts"] == 2
    request = Request([Message("user", "x")], SamplingParams(max_tokens=3), "d", 0, 0.05)
    [done] = sampler(server, retries=8).sample([request])
    assert done.finish_reason in ("deadline", "error")


def test_rates_are_kept(serve):
    server = serve(lambda body: ok("x"))
    begin = time.monotonic()
    list(sampler(server, requests_per_minute=1200).sample(requests(110)))
    assert time.monotonic() - begin > 0.4  # 100 at once, then 20 a second

    async def tokens():
        pace = Pace(None, 6000.0)
        begin = time.monotonic()
        for _ in range(6):
            await pace.wait(100)
        return time.monotonic() - begin

    assert asyncio.run(tokens()) > 0.9  # 500 tokens at once, then 100 a second


def test_pauses_double_and_heed_the_server():
    assert pause_seconds(3, None, 1.0) == 2 * pause_seconds(2, None, 1.0)
    assert pause_seconds(0, None, 0.0) == pause_seconds(0, None, 1.0) / 2
    assert pause_seconds(50, None, 1.0) == 60
    assert 5 <= pause_seconds(0, 5.0, 0.5) < 6
    assert pause_seconds(0, 1e9, 0.5) < 70


def test_leaving_early_stops_asking(serve):
    server = serve(lambda body: ok("x"))
    stream = sampler(server, concurrency=2).sample(requests(500))
    for _ in range(3):
        next(stream)
    stream.close()
    asked = len(server.bodies)
    time.sleep(0.2)
    assert len(server.bodies) <= asked + 2 < 500


def test_token_ids_go_to_completions_with_their_logprobs(serve):
    def answer(body):
        prompt = [None, *({str(t): {"logprob": -t / 10}, "5": {"logprob": 0}} for t in [2, 3])]
        choice = {"index": 0, "text": "y", "finish_reason": "length", "prompt_logprobs": prompt}
        choice["logprobs"] = {"token_logprobs": [-0.25]}
        choice["token_ids"] = [9]
        return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}

    server = serve(answer)
    params = SamplingParams(max_tokens=0, prompt_logprobs=True, logprobs=True)
    [done] = sampler(server, token_ids=True).sample([Request([1, 2, 3], params, "a")])
    assert server.paths == ["/v1/completions"]
    body = server.bodies[0]
    assert (body["prompt"], body["max_tokens"], body["prompt_logprobs"]) == ([1, 2, 3], 1, 0)
    assert body["return_token_ids"] is True
    assert done.prompt_logprobs == (None, -0.2, -0.3)
    assert (done.logprobs, done.token_ids, done.finish_reason) == ((-0.25,), (9,), "length")


def test_several_answers_and_their_logprobs(serve):
    content = {"content": [{"logprob": -1.0}, {"logprob": -2.0}]}

    def answer(body):
        first = ok("a", logprobs=content)["choices"][0]
        return {"choices": [first, {**first, "index": 1, "finish_reason": "length"}], "usage": {}}

    params = SamplingParams(n=2, max_tokens=4, logprobs=True)
    found = list(sampler(serve(answer)).sample([Request([Message("user", "x")], params, "a")]))
    assert [(done.index, done.finish_reason) for done in found] == [(0, "stop"), (1, "length")]
    assert found[0].logprobs == (-1.0, -2.0)


def test_answers_are_streamed(serve):
    pieces = [
        {"choices": [{"delta": {"role": "assistant"}}]},
        {"choices": [{"delta": {"content": "Sela"}}]},
        {"choices": [{"delta": {"content": "mat"}, "finish_reason": "stop"}]},
    ]
    data = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
    server = serve(lambda body: (200, data.encode(), {}))

    async def read(made):
        return [delta async for delta in made.stream(requests(1)[0])]

    deltas = asyncio.run(read(sampler(server)))
    assert "".join(delta.text for delta in deltas) == "Selamat"
    assert deltas[-1].finish_reason == "stop" and server.bodies[0]["stream"] is True
    refused = serve(lambda body: (500, {"error": "no"}, {}))
    with pytest.raises(RequestError, match="HTTP 500: no"):
        asyncio.run(read(sampler(refused)))


def test_a_mask_cannot_be_sent():
    request = Request([Message("user", "x")], SamplingParams(), "a", mask=lambda: None)
    with pytest.raises(RequestError, match="mask"):
        Wire("m").request(request)


def test_odd_pieces_and_pages_are_read():
    assert delta_of("not json") is None and delta_of("[DONE]") is None
    assert delta_of('{"choices": []}') is None
    assert error_text(500, "[1]") == "HTTP 500: [1]"
    assert len(error_text(500, "x" * 5000)) < 400


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://key@host/v1", "http://host/v1?key=1", ""]
)
def test_addresses_with_keys_and_without_hosts_are_refused(url):
    with pytest.raises(ValidationError):
        EndpointConfig(urls=(url,), model="m")
