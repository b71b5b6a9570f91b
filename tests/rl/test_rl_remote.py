"""Servers that answer with the weights of each step: a fake one over our own engine."""

from __future__ import annotations

import shutil

import pytest
import torch
from fake_vllm import FakeVllm
from rl_cases import plain, run, settings, weights
from test_rl_resume import Killed

from singalaut.errors import DataError, MachineError, RecipeError
from singalaut.remote import endpoint
from singalaut.remote import weights as weight_calls
from singalaut.rl.rollouts import load_rollouts
from singalaut.rl.voices import EndpointSampler


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    for module in (endpoint, weight_calls):
        monkeypatch.setattr(module, "pause_seconds", lambda *_: 0.0)


@pytest.fixture
def shared(tmp_path, tiny_model):
    """A shared folder with the link that servers are started on."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "model").symlink_to(tiny_model)
    return folder


@pytest.fixture
def server(shared, request):
    fake = FakeVllm(shared / "model", getattr(request, "param", ()))
    yield fake
    fake.close()


def remote(server, shared, *others, update="reload", **more):
    engine = {
        "kind": "remote",
        "endpoints": [server.url, *(other.url for other in others)],
        "model": "policy",
        "folder": str(shared),
        "update": update,
    }
    return settings(engine=engine, refill=0, **more)


def same_as_local(work, local):
    """What servers answer, and what is learned from it, as with an engine of our own."""
    for a, b in zip(work.metrics(), local.metrics(), strict=True):
        assert a["tokens"] == b["tokens"] and a["reward"] == pytest.approx(b["reward"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-4)
        assert a["mismatch"] < 1e-3
    found, wanted = weights(work), weights(local)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("update", ["reload", "adapter"])
def test_servers_answer_with_the_weights_of_each_step(tmp_path, tiny_model, server, shared, update):
    work = run(tmp_path, tiny_model, "remote", remote(server, shared, update=update))
    same_as_local(work, run(tmp_path, tiny_model, "local", settings(refill=0)))
    names = [name for name in server.read if name != "model"]
    assert len(names) == len(set(names)) == 5  # before the first step, and after each of four
    left = [path.name for path in shared.iterdir() if path.name != "model"]
    assert left == [names[-1]]
    if update == "reload":
        assert server.calls.count("/reset_prefix_cache") == 5
        assert (shared / "model").resolve().name == names[-1]
        assert (shared / "model" / "tokenizer.json").exists()
    else:
        assert list(server.models) == ["policy", names[-1]]


def test_two_servers_share_the_prompts(tmp_path, tiny_model, server, shared):
    other = FakeVllm(shared / "model")
    config = remote(server, shared, other, overlap=True)
    work = run(tmp_path, tiny_model, "remote", config)
    local = run(tmp_path, tiny_model, "local", settings(refill=0, overlap=True))
    other.close()
    for a, b in zip(work.metrics(), local.metrics(), strict=True):
        assert a["tokens"] == b["tokens"] and a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    for each in (server, other):
        assert each.calls.count("/collective_rpc") == 5
        assert each.calls.count("/v1/completions") >= 2


@pytest.mark.parametrize("server", [[503, 0, 503, 0, 500, 429, 0]], indirect=True)
def test_calls_that_fail_for_a_while_are_repeated(tmp_path, tiny_model, server, shared):
    work = run(tmp_path, tiny_model, "remote", remote(server, shared))
    same_as_local(work, run(tmp_path, tiny_model, "local", settings(refill=0)))
    assert work.facts["sampler"]["trouble_repeated"] == 2
    assert [c for c in server.calls if c[0] != "/"] == [
        "503 /collective_rpc",
        "503 /reset_prefix_cache",
        "500 /v1/completions",
        "429 /v1/completions",
    ]


def test_a_server_that_takes_no_weights_ends_the_run(tmp_path, tiny_model, server, shared):
    server.troubles = [404]
    with pytest.raises(MachineError, match="did not take new weights: HTTP 404") as caught:
        run(tmp_path, tiny_model, "remote", remote(server, shared))
    assert "VLLM_SERVER_DEV_MODE=1" in str(caught.value)


def test_a_folder_where_a_link_should_be_is_left_alone(tmp_path, tiny_model, server, shared):
    (shared / "model").unlink()
    shutil.copytree(tiny_model, shared / "model")
    with pytest.raises(RecipeError, match="this is no link"):
        run(tmp_path, tiny_model, "remote", remote(server, shared))
    assert (shared / "model" / "config.json").exists()


def test_prompts_that_get_no_answer_are_left_out_and_counted(tmp_path, tiny_model, server, shared):
    server.troubles = [0, 0, 400]
    config = remote(server, shared, steps=2)
    work = run(tmp_path, tiny_model, "remote", config)
    lines = work.metrics()
    assert lines[0]["failures"] == {"HTTP 400: not now": 1} and "failures" not in lines[1]
    assert load_rollouts(work.path / "rollouts", 0).groups == 1
    server.troubles = [0, 0, 400, 400]
    with pytest.raises(DataError, match="no prompt of step 0 could be answered: HTTP 400"):
        run(tmp_path, tiny_model, "refused", config)


def test_a_killed_run_keeps_the_prompts_that_were_answered(
    tmp_path, tiny_model, server, shared, monkeypatch
):
    config = remote(server, shared, steps=3, save_every=1)
    whole = run(tmp_path, tiny_model, "whole", config)
    sample, left = EndpointSampler.sample, [13]

    def dies(self, requests):
        for completion in sample(self, requests):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            yield completion

    monkeypatch.setattr(EndpointSampler, "sample", dies)
    with pytest.raises(Killed):
        run(tmp_path, tiny_model, "killed", config)
    monkeypatch.setattr(EndpointSampler, "sample", sample)
    before = server.calls.count("/v1/completions")
    resumed = run(tmp_path, tiny_model, "killed", config)
    assert server.calls.count("/v1/completions") - before == 3  # of step 1 one, of step 2 two
    for a, b in zip(plain(resumed), plain(whole), strict=True):
        assert a["tokens"] == b["tokens"] and a["loss"] == pytest.approx(b["loss"], rel=1e-3)
