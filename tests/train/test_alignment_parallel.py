"""Two processes over gloo align as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from singalaut.model.tensors import TensorReader

RECIPE = """
name = "together"
seed = 5
output = "{output}"
[model]
base = "{model}"
[[stage]]
kind = "apo"
data = [{{ path = "rows.jsonl" }}]
steps = 4
batch_size = 5
max_tokens = 256
micro_tokens = 128
learning_rate = 1e-2
held_out = 1
validate_every = 2
{more}
"""


ADAPTER = """adapter = { rank = 4 }
replay = { data = [{ path = "talk.jsonl" }], rows = 3, weight = 0.5 }
"""


def run(folder, model, processes, more):
    output = f"out-{processes}"
    recipe = folder / f"{output}.toml"
    recipe.write_text(RECIPE.format(model=model, output=output, more=more))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    env = os.environ | {"SINGALAUT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command += ["-m", "singalaut", "run", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = folder.glob(f"{output}/together/apo-*")
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    with TensorReader.open(made / "model") as reader:
        return lines, {name: reader.read(name).clone() for name in reader}


@pytest.mark.parametrize("more", ["", ADAPTER], ids=["all", "adapter"])
def test_two_processes_align_as_one(more, tmp_path, tiny_model):
    with (tmp_path / "rows.jsonl").open("w") as out:
        for n in range(11):
            answers = {"chosen": f"It is {2 * n}.", "rejected": "I do not know" + "!" * n}
            out.write(json.dumps({"prompt": f"{n} plus {n}?", **answers}) + "\n")
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "one"}]
    (tmp_path / "talk.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 2)
    one, two = (run(tmp_path, tiny_model, processes, more) for processes in (1, 2))
    assert len(one[0]) == len(two[0]) == 4 + 3
    for a, b in zip(one[0], two[0], strict=True):
        for key in (
            "loss",
            "margin",
            "gradient_norm",
            "validation_loss",
            "validation_margin",
            "replay_loss",
        ):
            assert (key in a) == (key in b)
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-4, abs=2e-5), key
    assert one[0][-1]["validation_margin"] > 0.1
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, two[1][name], rtol=2e-4, atol=2e-4)
