"""A second process that runs the fast runner in Triton's interpreter, for tests."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from singalaut.generate import core
from singalaut.generate.fast import FastRunner
from singalaut.generate.follower import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    core.PlainRunner = FastRunner
    main()
