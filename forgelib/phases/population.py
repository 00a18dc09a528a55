"""Who measures a population: this process, several processes of this machine, or (`ray_population`) a Ray cluster.

All give the same numbers: a worker makes its own Workshop from the plan and computes with one thread.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

from transformers.utils.logging import disable_progress_bar

from forgelib.phases.genome import Genome
from forgelib.phases.workshop import Plan, Workshop

DIED = (
    "a worker of the population died while it measured a child: is there enough memory? Start again with fewer "
    "workers; what was measured before stands in the ledger"
)


class WorkerDied(RuntimeError):
    """A worker ended without an answer, mostly because memory ran out."""


class LocalPopulation:
    """Measures genomes with `workers` processes (None: one a core); with one, in this process. A context manager."""

    def __init__(self, plan: Plan, workers: int | None = None):
        self.plan, self.workers = plan, max(1, workers if workers is not None else os.cpu_count() or 1)
        self._own = Workshop(plan) if self.workers == 1 else None
        self._processes: list = []
        self._lines: list[Connection] = []

    def __enter__(self) -> "LocalPopulation":
        context = multiprocessing.get_context("spawn")
        for _ in range(self.workers if self._own is None else 0):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(self.plan, there), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._lines.append(here)
        return self

    def __exit__(self, *error) -> None:
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.terminate()
            process.join()
        self._processes, self._lines = [], []

    def __call__(self, genomes: Sequence[Genome], race: bool = False) -> list[dict]:
        """A result for each genome, in their order; see `Workshop.measure`. Raises WorkerDied, and what a worker
        raised."""
        if self._own is not None:
            return [self._own.measure(genome, race) for genome in genomes]
        if not self._lines:
            raise RuntimeError("there are no workers: call a LocalPopulation inside its `with` block")
        try:
            return self._shared_out(genomes, race)
        except BaseException:  # answers that nobody waits for must not be taken for those to the next call
            self.__exit__()
            raise

    def _shared_out(self, genomes: Sequence[Genome], race: bool) -> list[dict]:
        results: list = [None] * len(genomes)
        waiting, idle, busy = list(enumerate(genomes)), list(self._lines), {}
        while waiting or busy:
            while waiting and idle:
                line, (place, genome) = idle.pop(), waiting.pop(0)
                _ask(line, genome, race)
                busy[line] = place
            for line in wait(list(busy)):
                results[busy.pop(line)] = _answer(line)
                idle.append(line)
        return results


def _ask(line: Connection, genome: Genome, race: bool) -> None:
    # Where the worker is dead its last words still wait to be read, or nothing does: `_answer` finds out.
    with contextlib.suppress(OSError):
        line.send((genome, race))


def _answer(line: Connection) -> dict:
    try:
        answer = line.recv()
    except (EOFError, OSError):
        raise WorkerDied(DIED) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(plan: Plan, line: Connection) -> None:
    """A worker's life: a workshop, then one answer for each genome until the other end is gone."""
    disable_progress_bar()  # of the library that loads the parents: a worker writes past the notebook
    with contextlib.suppress(EOFError, OSError):
        try:
            workshop = Workshop(plan)
        except Exception as error:
            line.send(error)
            return
        while True:
            line.send(_outcome(workshop, *line.recv()))


def _outcome(workshop: Workshop, genome: Genome, race: bool) -> dict | Exception:
    try:
        return workshop.measure(genome, race)
    except Exception as error:  # the other end raises it
        return error
