"""A population measured by a Ray cluster, of this machine or of many; the extra `ray` of the project.

A worker is an actor with a Workshop of its own: the numbers are those of `LocalPopulation`. One that is killed is
started anew and measures its genome again, with the same result. On a cluster of several machines the plan's folders
must lie where all of them can read.
"""

import math
import os
from collections.abc import Sequence

from forgelib.phases.genome import Genome
from forgelib.phases.population import WorkerDied
from forgelib.phases.workshop import Plan, Workshop

#: How often a cluster is started, in vain where a busy machine is slower than Ray's own time limits.
STARTS = 3
#: How often one worker is started anew, and one genome measured again, before the search gives up.
RESTARTS = 5
#: Settings of a cluster that is started here: quiet, of this machine only, reporting to nobody.
PRIVATE = {"RAY_USAGE_STATS_ENABLED": "0"}
OBJECT_STORE_BYTES = 128 * 2**20


class RayMissing(ImportError):
    """Ray is not installed."""


class RayPopulation:
    """Measures genomes with `workers` Ray actors. A context manager.

    Joins the cluster that RAY_ADDRESS names, or that the process is connected to already, and leaves it as it was;
    otherwise starts one of `workers` CPUs on this machine, and ends it. A cluster that asks for a token, as `ray start`
    makes them, is joined with RAY_AUTH_MODE=token beside its address. Raises RayMissing where Ray is not installed.
    """

    def __init__(self, plan: Plan, workers: int):
        self.plan, self.workers = plan, max(1, workers)
        self._ray, self._actors, self._connected = None, [], False

    def __enter__(self) -> "RayPopulation":
        self._ray = _import_ray()
        if not self._ray.is_initialized():
            self._connect()
            self._connected = True
        plan, needs = self._ray.put(self.plan), self._needs()
        actor = self._ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, **needs)(_Worker)
        self._actors = [actor.remote(plan) for _ in range(self.workers)]
        return self

    def __exit__(self, *error) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def __call__(self, genomes: Sequence[Genome], race: bool = False) -> list[dict]:
        """A result for each genome, in their order; see `Workshop.measure`. Raises WorkerDied, and what a worker
        raised."""
        if not self._actors:
            raise RuntimeError("there are no workers: call a RayPopulation inside its `with` block")
        results: list = [None] * len(genomes)
        waiting, idle, busy = list(enumerate(genomes)), list(self._actors), {}
        while waiting or busy:
            while waiting and idle:
                actor, (place, genome) = idle.pop(), waiting.pop(0)
                busy[actor.measure.remote(genome, race)] = actor, place
            done, _ = self._ray.wait(list(busy), num_returns=1)
            actor, place = busy.pop(done[0])
            results[place] = self._answer(done[0])
            idle.append(actor)
        return results

    def _answer(self, reference) -> dict:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(
                f"a worker of the population died {RESTARTS + 1} times: is there enough memory? Start again with fewer "
                f"workers; what was measured before stands in the ledger ({error})"
            ) from None

    def _connect(self) -> None:
        if os.environ.get("RAY_ADDRESS"):
            self._ray.init(log_to_driver=False)
            return
        before = {name: os.environ.get(name) for name in PRIVATE}
        os.environ.update(PRIVATE)
        try:
            self._start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)

    def _start(self) -> None:
        for starts_left in reversed(range(STARTS)):
            try:
                self._ray.init(
                    address="local",
                    num_cpus=self.workers,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="error",
                    _node_ip_address="127.0.0.1",
                )
                return
            except Exception:  # Ray has no narrower one for this
                self._ray.shutdown()
                if not starts_left:
                    raise

    def _needs(self) -> dict[str, float]:
        """One CPU an actor, less where the cluster has fewer than workers, and its share of a GPU if the plan uses one:
        no actor waits for a place that never comes."""
        there = self._ray.cluster_resources()
        needs = {"num_cpus": _share(there.get("CPU", 0), self.workers)}
        if self.plan.device.startswith("cuda"):
            needs["num_gpus"] = _share(there.get("GPU", 0), self.workers)
        return needs


class _Worker:
    """A workshop that is made for the first genome, so that what is wrong with the plan is said there."""

    def __init__(self, plan: Plan):
        self.plan, self.workshop = plan, None

    def measure(self, genome: Genome, race: bool = False) -> dict:
        if self.workshop is None:
            self.workshop = Workshop(self.plan)
        return self.workshop.measure(genome, race)


def _share(there: float, workers: int) -> float:
    """The part of a device for each worker, such that all find a place; 0 where there is none."""
    return 1 / math.ceil(workers / int(there)) if there >= 1 else 0


def _import_ray():
    try:
        import ray
    except ImportError:
        raise RayMissing(
            "Ray is not installed: pip install 'forgelib[ray]', or measure with the workers of this machine "
            "(LocalPopulation)"
        ) from None
    return ray
