"""Training processes that start at once: forked from a server that has torch loaded, alone in signals and files."""

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
CONTEXT = multiprocessing.get_context("forkserver")
#: torch._dynamo is what the first optimizer of a process would import, in a second.
CONTEXT.set_forkserver_preload(
    ["forgelib.core.loop", "forgelib.core.ema", "forgelib.core.tracking", "torch._dynamo", "accelerate"]
)


@pytest.fixture
def launch() -> Iterator[Callable[..., BaseProcess]]:
    """launch(function, *arguments) -> a running process; what still runs when the test ends is killed."""
    running = []

    def start(function: Callable, *arguments: object) -> BaseProcess:
        running.append(CONTEXT.Process(target=function, args=arguments))
        running[-1].start()
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.join()
