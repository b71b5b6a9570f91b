"""One model on two cards against plain passes on one, and the end of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "generate"))
import engine_cases as cases
from engine_cases import VOCAB, Ids, answer, difference, run, together

from singalaut.generate.core import Core
from singalaut.generate.memory import Room
from singalaut.model.hf import save_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]
PARAMS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 1.0, "repetition_penalty": 1.2},
    {"temperature": 0.0, "prompt_logprobs": True},
]
LOST = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {cases!r})
from engine_cases import Ids, answer, run, together
from singalaut.errors import MachineError
from singalaut.generate.core import Core
from singalaut.generate.memory import Room

model, ranks = together(Path({folder!r}))
core = Core(model, Ids(), Room(4, 2048, 300), 50 << 20, ranks=ranks)
run(core, [answer([5, 6, 7], 1, max_tokens=20)])
core.add(answer([5, 6, 7], 1, max_tokens=1500))
try:
    for step in range(1400):
        if step == 300:
            ranks._others[0].child.process.send_signal(signal.SIGKILL)
        core.step()
except MachineError as error:
    print("named:", error, flush=True)
"""


@pytest.mark.parametrize("size", ["1b", "4b", "27b"])
def test_log_probabilities_are_those_of_plain_passes(size, tmp_path):
    whole = cases.small(size).to("cuda", torch.bfloat16)
    save_model(whole, tmp_path, torch.bfloat16)
    model, ranks = together(tmp_path)
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 40, 127, 128, 129, 300, 700, 33, 65, 64, 31, 500]
    for slots in (1, 12):
        answers = []
        for order, length in enumerate(lengths[-slots - 1 :]):
            prompt = torch.randint(110, VOCAB, (length,), generator=generator).tolist()
            answers.append(answer(prompt, order, max_tokens=150, **PARAMS[(order + 1) % 5]))
        core = Core(model, Ids(), Room(slots, 2048, 300), 60 << 20, ranks=ranks)
        run(core, answers)
        alone = Core(whole, Ids(), Room(slots, 2048, 300), 60 << 20)
        again = [answer(a.tokens[: a.num_prompt].tolist(), i, max_tokens=150, **PARAMS[0])
                 for i, a in enumerate(answers)]  # fmt: skip
        run(alone, again)
        core.model = whole
        found = torch.cat([difference(core, each) for each in answers])
        usual = torch.cat([difference(alone, each) for each in again])
        print(size, slots, "two cards", found.abs().mean().item(), found.abs().max().item(),
              "one card", usual.abs().mean().item(), usual.abs().max().item())  # fmt: skip
        assert found.abs().mean() < 0.01 and found.abs().max() < 0.2
        assert all(pool.used == 0 for pool in core.scheduler.tables.pools.values())
        core.sleep()  # graphs hold on to connections
        alone.sleep()
    ranks.close()


def test_a_lost_process_is_named(tmp_path):
    save_model(cases.small("1b").to(torch.bfloat16), tmp_path, torch.bfloat16)
    code = LOST.format(cases=str(Path(cases.__file__).parent), folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False
    )
    assert "named: process 1 of 2 was killed by signal 9" in done.stdout, done.stderr[-3000:]
