"""What notebook 42 joins: the packed model and its parent side by side, and the table of all models of the workbook.

Speed is taken in turns, in one process, in the processor time of one thread: other work on the machine does not count,
and what slows the processor slows every way of decoding alike.
"""

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from forgelib.core.artifacts import Artifact
from forgelib.core.gates import Check
from forgelib.core.rng import stream
from forgelib.core.run import Run
from forgelib.data import ReasoningRow, Vocabulary
from forgelib.evaluate import bootstrap_interval, share_interval
from forgelib.evaluate.verdict import Verdict
from forgelib.phases.decoding import Decoded, greedy, native_decoder
from forgelib.quant import (
    CannotDecode,
    ExportRefused,
    check_bitnet,
    check_gguf,
    kernel_in_use,
    sizes,
)
from forgelib.workbook import handoff, parents, phase3, phase4, reinforcement
from forgelib.workbook.answered import answered
from forgelib.workbook.params import BitnetBenchmark, ParameterError, QuietRL, QuietTheater, profile_values
from forgelib.workbook.phase4 import Measured

#: Whose change makes a finished run stale: this module and what it imports.
CODE = ("forgelib.workbook.benchmark",)
BENCHMARK = "bitnet-benchmark"
#: Ways of decoding: what speed is counted from, what is promised, and what leaving torch gives without ternary weights.
PLAIN, FAST, CONTROL = "torch float32", "native packed", "native float32"
#: How every model of the last table is decoded, once each.
HOW = ("torch", "native")
#: Writes on after a prompt [1, T]: write(input_ids, max_new_tokens, end tokens).
Way = Callable[[Tensor, int, Collection[int]], Decoded]


def open_benchmark(p: BitnetBenchmark, parents: list[Artifact]) -> Run:
    """The run of the benchmark."""
    return phase4.open_bitnet(p, parents, code=CODE)


def earlier(found: Artifact, p: BitnetBenchmark) -> dict[str, Measured]:
    """Quality as notebook 41 measured it: "before", "rounded", "ternary" and, where it was trained, "control".

    Raises ParameterError where that was on other rows than `p` asks for.
    """
    for name in ("gate_rows", "harder_rows"):
        there, here = found.manifest["params"][name], getattr(p, name)
        if there != here:
            raise ParameterError(f"{name} = {here}: 41_bitnet_finetune measured {there}; rows are compared one by one")
    return phase4.read_quality(found)


def size_rows(packed: nn.Module) -> list[dict]:
    """Bytes by part of the packed model: in float32, as its folder stores them, and in memory now."""
    return [{**row, "times smaller": round(row["float32 bytes"] / row["stored bytes"], 2)} for row in sizes(packed)]


def file_rows(parent: Path, folder: Path, packed: nn.Module) -> list[dict]:
    """Bytes of the files that hold weights, the ternary layers' and all, names and shapes included, beside float32."""
    layers = phase4.ternary_bytes(packed, folder)
    rows = [
        ("ternary layers", layers["float32"], layers["stored"]),
        ("whole model", weight_bytes(parent), weight_bytes(folder)),
    ]
    return [{"files": name, "float32": a, "packed": b, "times smaller": round(a / b, 2)} for name, a, b in rows]


def weight_bytes(folder: Path) -> int:
    """Bytes of all files of a model folder but its tokenizer's."""
    return sum(f.stat().st_size for f in folder.iterdir() if f.is_file() and not f.name.startswith("tokenizer"))


def memory_rows(parent: nn.Module, packed: nn.Module) -> dict[str, int]:
    """Bytes in memory: the weights of both models, and what the native decoder keeps beside the packed one."""
    full = sum({t.data_ptr(): t.nbytes for t in parent.state_dict().values()}.values())
    found = {"float32 model": full, "packed model": sum(row["resident bytes"] for row in sizes(packed))}
    with contextlib.suppress(CannotDecode):
        decoder = native_decoder(packed)
        decoder.start(1)
        found["native decoder, beside the packed model"] = decoder.extra_bytes()
    return found


def ways(parent: nn.Module, packed: nn.Module) -> dict[str, Way]:
    """Four ways of decoding greedily. Without a native decoder the last two are torch's and say why."""
    return {
        PLAIN: by_torch(parent),
        "torch packed": by_torch(packed, f", {kernel_in_use()}"),
        CONTROL: natively(parent),
        FAST: natively(packed),
    }


def by_torch(model: nn.Module, more: str = "") -> Way:
    """The model's own `generate`."""

    def write(input_ids: Tensor, max_new_tokens: int, end: Collection[int]) -> Decoded:
        read = {"attention_mask": torch.ones_like(input_ids), "pad_token_id": 0, "eos_token_id": list(end) or None}
        written = model.generate(input_ids, max_new_tokens=max_new_tokens, do_sample=False, **read)
        return Decoded(written[0, input_ids.shape[1] :], f"torch{more}")

    return write


def natively(model: nn.Module) -> Way:
    """The native decoder, made once."""
    try:
        decoder = native_decoder(model)
    except CannotDecode:
        decoder = None  # `greedy` says why

    def write(input_ids: Tensor, max_new_tokens: int, end: Collection[int]) -> Decoded:
        return greedy(model, input_ids, max_new_tokens, end, decoder)

    return write


@dataclass(frozen=True)
class Timed:
    """Turns of one way: seconds of processor time and tokens written in each; recursion cycles a token, 0 where it does
    not say; who decoded, in words."""

    seconds: list[float]
    tokens: list[int]
    cycles: float
    how: str

    def rates(self) -> np.ndarray:
        """Tokens a second of each turn."""
        return np.array(self.tokens) / np.array(self.seconds)


def in_turns(
    some: Mapping[str, Way], prompts: Sequence[Tensor], max_new_tokens: int, repeats: int, end: Collection[int] = ()
) -> dict[str, Timed]:
    """Every way writes on after the same prompts, one after the other, `repeats` times; a first round does not count.

    Without `end` each writes `max_new_tokens`, whatever they are.
    """
    seconds, texts = {name: [] for name in some}, {name: [] for name in some}
    with _one_thread():
        for turn in range(-1, repeats):
            for name, write in some.items():
                started = time.thread_time()
                text = write(prompts[max(turn, 0) % len(prompts)], max_new_tokens, end)
                if turn >= 0:
                    seconds[name].append(time.thread_time() - started)
                    texts[name].append(text)
    return {
        name: Timed(
            seconds[name],
            [len(text.ids) for text in written],
            float(np.mean([n for text in written for n in text.cycles] or [0])),
            written[-1].how,
        )
        for name, written in texts.items()
    }


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def times_as_fast(taken: Mapping[str, Timed], name: str, plain: str = PLAIN) -> np.ndarray:
    """Tokens a second of a way over those of the plain one, turn by turn."""
    return taken[name].rates() / taken[plain].rates()


def speed_rows(taken: Mapping[str, Timed], answers: Mapping[str, Timed]) -> list[dict]:
    """One row a way: medians over the turns; answers: the same ways to the end of an answer."""
    return [
        {
            "way": name,
            "tokens/s": round(statistics.median(one.rates())),
            "times as fast": round(statistics.median(times_as_fast(taken, name)), 2),
            "ms to an answer": round(1000 * statistics.median(answers[name].seconds), 1),
            "tokens of it": statistics.median(answers[name].tokens),
            "cycles a token": round(one.cycles, 2) or "",
            "decoded by": one.how,
        }
        for name, one in taken.items()
    ]


def prompts(tokenizer, rows: Sequence[ReasoningRow], n: int) -> list[Tensor]:
    """Token ids [1, T] of `n` problems."""
    texts = [row.prompt for row in rows[:n]]
    return [tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]


def differing(one: Measured, other: Measured) -> dict[str, int]:
    """Rows that one model answered right and the other wrong, by category."""
    return {name: int(np.sum(np.array(one.correct[name]) != other.correct[name])) for name in one.correct}


def refusals(packed: nn.Module) -> dict[str, str]:
    """What each export says to the packed model: the reason of its refusal, or "can be written"."""
    said = {}
    for name, check in {"bitnet": check_bitnet, "gguf": check_gguf}.items():
        try:
            check(packed)
            said[name] = "can be written"
        except ExportRefused as error:
            said[name] = str(error)
    return said


def trial_parameters(p: BitnetBenchmark) -> QuietTheater:
    """Notebook 32's parameters at this profile, with the sizes asked for here: the same problems, the same limits."""
    own = {name.removeprefix("trial_"): getattr(p, name) for name in type(p).model_fields if name.startswith("trial_")}
    shared = {name: getattr(p, name) for name in ("profile", "seed", "data", "vocabulary")}
    return QuietTheater(**{**profile_values(QuietTheater, p.profile), **shared, **own})


def gate_checks(
    packed: nn.Module,
    taken: Mapping[str, Timed],
    layers: Mapping[str, int],
    found: Mapping[str, Measured],
    theater: Verdict,
    p: BitnetBenchmark,
) -> list[Check]:
    """The last gate. layers: `phase4.ternary_bytes`; found: "before", "packed" and what notebook 41 measured."""
    fast = times_as_fast(taken, FAST)
    bounds = bootstrap_interval(np.median, fast, seed=stream(p.seed, "speed")) if len(fast) > 1 else None
    beside = {CONTROL: statistics.median(times_as_fast(taken, CONTROL))}
    before, after = found["before"], found["packed"]
    names = {"ternary": "not packed", "control": "full precision, as long"}
    others = {label: 1 - phase4.drop(before, found[name]) for name, label in names.items() if name in found}
    tests = theater.gate()
    failed = "; ".join(check.name for check in tests.checks if not check.passed)
    kept, smaller = 1 - phase4.drop(before, after), layers["float32"] / layers["stored"]
    interval = phase4.kept_interval(before, after, p.seed)
    return [
        Check(
            "times as fast as torch float32", statistics.median(fast), p.speed_threshold, ">=", bounds, control=beside
        ),
        Check("ternary layers, times smaller on disk", smaller, p.compression_threshold, ">="),
        Check(
            "share of the quality kept",
            kept,
            p.quality_threshold,
            ">=",
            interval,
            control=others,
            note=phase4.judged_by(before),
        ),
        Check("anti-theater passed", float(tests.passed), 1.0, ">=", note=f"failed: {failed}" if failed else ""),
        Check("zeros in ternary layers", phase4.mean_sparsity(packed), p.sparsity_threshold, ">"),
    ]


@dataclass(frozen=True)
class Stage:
    """A model of the workbook. folder: whose files are its size. baked: it knows thoughts; else it answers at once."""

    model: nn.Module
    tokenizer: object
    folder: Path
    baked: bool
    verdicts: Sequence[dict]


def stages(p: BitnetBenchmark, trained: Artifact) -> dict[str, Stage]:
    """Every full-precision model of the workbook, in the order in which they were made, on the CPU."""
    specialists, champion, baked = parents.load_specialists(p)[1], phase3.champion(p), reinforcement.baked(p)
    made = {**specialists, "champion": champion, "baked": baked, "thinking": trained}
    own = {name: found.manifest["verdicts"] or [] for name, found in made.items()}
    own["thinking"] = handoff.own_verdicts(trained)
    return {name: _stage(found, name in ("baked", "thinking"), own[name]) for name, found in made.items()}


def _stage(found: Artifact, baked: bool, verdicts: Sequence[dict]) -> Stage:
    model, tokenizer = phase3.load(found)
    return Stage(model.cpu().eval(), tokenizer, found.path / "model", baked, verdicts)


def speeds_of_all(
    some: Mapping[str, Stage], prompts: Sequence[Tensor], max_new_tokens: int, repeats: int
) -> dict[str, Timed]:
    """Turns of every model, by torch and natively: "champion, torch", "champion, native", ..."""
    all_ways = {}
    for name, stage in some.items():
        all_ways |= {f"{name}, torch": by_torch(stage.model), f"{name}, native": natively(stage.model)}
    return in_turns(all_ways, prompts, max_new_tokens, repeats)


def final_rows(
    some: Mapping[str, Stage], taken: Mapping[str, Timed], rows: list[ReasoningRow], words: Vocabulary, asked: QuietRL
) -> list[dict]:
    """The table that the workbook ends with: a row a model, all on the same problems, with thoughts where it has them.

    taken: `speeds_of_all`."""
    found = []
    for name, stage in some.items():
        thinker = reinforcement.thinker(stage.model, stage.tokenizer, words, asked, baked=stage.baked)
        right = answered(thinker, rows, thoughts=stage.baked).right
        low, high = share_interval(right)
        red = [row for row in handoff.verdict_rows(stage.verdicts) if row["not passed"]]
        passed = sum(verdict["passed"] for verdict in stage.verdicts)
        found.append(
            {
                "model": name,
                "bytes on disk": weight_bytes(stage.folder),
                **{f"tokens/s, {how}": round(statistics.median(taken[f"{name}, {how}"].rates())) for how in HOW},
                "right": round(float(right.mean()), 3),
                "low": round(low, 3),
                "high": round(high, 3),
                "gates passed": f"{passed} of {len(stage.verdicts)}",
                "not passed": " · ".join(f"{row['gate']}: {row['not passed']}" for row in red),
            }
        )
    return found


def publish_benchmark(run: Run, facts: dict, theater: Verdict, verdicts: list[dict]) -> Artifact:
    """Figures of the benchmark and the trial with all it was measured by, or the same published before."""

    def write(folder: Path) -> None:
        (folder / "benchmark.json").write_text(json.dumps(facts, indent=1))
        (folder / "verdict.json").write_text(json.dumps(theater.as_dict(), indent=1))

    return run.finished() or run.publish(BENCHMARK, write, verdicts)
