"""What the Phase 4 notebooks share: the reinforced model, what it is measured and tuned on, the runs and their results.

A notebook shows each of these steps; here is only the joining of parameters, runs and artifacts.
"""

import copy
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import nn

from forgelib.core.artifacts import Artifact
from forgelib.core.gates import Check
from forgelib.core.loop import Checkpointer
from forgelib.core.rng import stream
from forgelib.core.run import Run, latest_artifact, open_run
from forgelib.core.tracking import Tracker
from forgelib.data import ReasoningRow, Vocabulary
from forgelib.evaluate.reasoning import reason
from forgelib.evaluate.verdict import Verdict
from forgelib.phases.bake import encode, encode_both_ways, shown_in
from forgelib.phases.finetune import FinetuneConfig, Shown, finetune, full_precision, sparsity
from forgelib.phases.quantize import Batch, QuantizeConfig, kept, quantize
from forgelib.quant import PackedTernaryLinear, Rounding, TernaryLinear, convert, pack_model, save_packed
from forgelib.quant.folder import TERNARY as FILE
from forgelib.workbook import phase3, reinforcement
from forgelib.workbook.answered import answered
from forgelib.workbook.origin import made_by, tags
from forgelib.workbook.params import BitnetFinetune, BitnetQuantize, Parameters, QuietBake, QuietRL
from forgelib.workbook.quantize_rows import Found, batched, enough_right, pad_of, probabilities

#: Whose change makes a finished run of Phase 4 stale: this module and what it imports.
CODE = ("forgelib.workbook.phase4",)
ROUNDED, TERNARY = "bitnet-rounded", "bitnet-ternary"
#: The category of the problems that the reinforcement was for.
HARDER = "harder problems"
LAYERS, QUALITY, CONTROL = "layers.json", "quality.json", "control"


@dataclass(frozen=True)
class Rows:
    """tune: what the model was baked and reinforced on, in one random order; gate: held-out rows in every strategy that
    was baked; harder: held-out problems of the reinforcement. Prompts of tune meet neither of the others."""

    tune: list[ReasoningRow]
    gate: list[ReasoningRow]
    harder: list[ReasoningRow]


def rounded(p: Parameters) -> Artifact:
    """What notebook 40 found. Raises MissingInput naming what makes it."""
    own = tags(p, vocabulary=p.vocabulary)
    return latest_artifact(ROUNDED, own, made_by("40_bitnet_quantize", own))


def ternary(p: Parameters) -> Artifact:
    """The ternary model. Raises MissingInput naming what makes it."""
    own = tags(p, vocabulary=p.vocabulary)
    return latest_artifact(TERNARY, own, made_by("41_bitnet_finetune", own))


def asked_of(trained: Artifact) -> QuietRL:
    """The parameters that a reinforced model was made with."""
    return QuietRL(**_known(QuietRL, trained.manifest["params"]))


def rows(p: Parameters, words: Vocabulary, baked: Artifact, trained: Artifact) -> Rows:
    """The rows that the parent was made from, by the parameters in its artifacts."""
    given = QuietBake(**_known(QuietBake, baked.manifest["params"]))
    if (file := baked.path / phase3.ROWS).is_file():
        given = given.model_copy(update={"reasoning_file": str(file)})
    made = phase3.splits(given, words)
    problems = reinforcement.problems(asked_of(trained), words)
    tune = [*made.train, *problems.train]
    random.Random(stream(p.seed, "rows to tune on")).shuffle(tune)
    harder = problems.gate[: p.harder_rows]
    seen, held = ({row.prompt for row in some} for some in ((*problems.train, *harder), made.gate))
    tune = [row for row in tune if row.prompt not in held]
    return Rows(tune, _spread([row for row in made.gate if row.prompt not in seen], p.gate_rows), harder)


def _spread(some: list[ReasoningRow], n: int) -> list[ReasoningRow]:
    """`n` rows, evenly from all of them: they stand in the order of their strategies."""
    if n >= len(some):
        return some
    return [row for i, row in enumerate(some) if (i + 1) * n // len(some) > i * n // len(some)]


def _known(model: type[Parameters], values: dict) -> dict:
    return {name: value for name, value in values.items() if name in model.model_fields}


def calibration(tokenizer, found: Rows, n: int) -> list[Batch]:
    """Batches of `n` rows to tune on, each with its thought."""
    return batched(encode(tokenizer, found.tune[:n], 4096), pad_of(tokenizer))


@dataclass(frozen=True)
class Measured:
    """What a model can do, and right or wrong [n] in each category, row by row, for paired comparisons."""

    found: Found
    correct: dict[str, list[bool]]


def measure(model: nn.Module, tokenizer, words: Vocabulary, found: Rows, asked: QuietRL) -> Measured:
    """Right answers after greedy thoughts, by strategy and on the harder problems; probability of a held-out token."""
    model.eval()
    right = dict(reason(model, tokenizer, words, found.gate, max_new_tokens=2 * asked.thought_tokens).by_strategy())
    right[HARDER] = answered(reinforcement.thinker(model, tokenizer, words, asked), found.harder).right
    parts = {"baked rows": found.gate, HARDER: found.harder}
    pad = pad_of(tokenizer)
    batches = {n: batched(encode(tokenizer, some, 4096), pad) for n, some in parts.items()}
    shares = {name: float(np.mean(correct)) for name, correct in right.items()}
    n = len(found.gate) + len(found.harder)
    correct = {name: [bool(one) for one in some] for name, some in right.items()}
    return Measured(Found(shares, probabilities(model, batches), n), correct)


def drop(before: Measured, after: Measured) -> float:
    """Share of the quality that is lost, by what the parent could do (`quantize_rows.Found.judged`)."""
    return 1 - kept(before.found.judged(before.found), after.found.judged(before.found))


def judged_by(before: Measured) -> str:
    """What a check of the quality says beside it where answers do not count."""
    return "" if enough_right(before.found) else "by probability: too few right answers to lose"


def kept_interval(before: Measured, after: Measured, seed: int, resamples: int = 1000) -> tuple[float, float] | None:
    """95% bounds of the share of right answers kept: rows drawn anew within each category, the same rows of both.

    None where the parent was not right often enough to be judged by answers.
    """
    if not enough_right(before.found):
        return None
    dice, shares = np.random.default_rng(stream(seed, "kept")), []
    pairs = [np.array([before.correct[name], after.correct[name]], dtype=float) for name in before.correct]
    for _ in range(resamples):
        drawn = [pair[:, dice.integers(0, pair.shape[1], pair.shape[1])].mean(1) for pair in pairs]
        whole, left = np.sum(drawn, axis=0)
        shares.append(left / max(whole, 1e-9))
    return tuple(float(bound) for bound in np.quantile(shares, (0.025, 0.975)))


def quality_rows(**measured: Measured) -> list[dict]:
    """One row a category: what the model could do at each stage."""
    found = {name.replace("_", " "): one.found for name, one in measured.items()}
    return [
        {"category": name, "measured": part, **{n: round(getattr(f, part)[name], 3) for n, f in found.items()}}
        for part in ("right", "probability")
        for name in getattr(next(iter(found.values())), part)
    ]


def layer_rows(records: Sequence[dict], n: int = 8) -> list[dict]:
    """The `n` costliest layers."""
    chosen = sorted(records, key=lambda record: -record["cost"])[:n]
    names = ("name", "outputs", "inputs", "cost", "weight_error", "output_error", "sparsity", "put_back")
    return [{name: record[name] for name in names} for record in chosen]


def open_bitnet(
    p: Parameters,
    parents: list[Artifact],
    left_out: set[str] = frozenset(),
    code: tuple[str, ...] = CODE,
    **decided: object,
) -> Run:
    """A run of Phase 4. left_out: parameters that change no result; the gate's limits never do. decided: what does, and
    follows from what is found."""
    left_out = left_out | {name for name in type(p).model_fields if name.endswith("_threshold")}
    return open_run(
        p.NOTEBOOK,
        p.model_dump(exclude={"wandb_mode", "on_gate_failure", *left_out}) | decided,
        parents=parents,
        seed=p.seed,
        tags=tags(p, vocabulary=p.vocabulary),
        label=p.profile,
        wandb_mode=p.wandb_mode,
        run_name="phase4-bitnet",
        metrics_prefix="bitnet/",
        code=code,
    )


def open_round(p: BitnetQuantize, parents: list[Artifact]) -> Run:
    """The run of the staged rounding."""
    return open_bitnet(p, parents)


def quantize_config(p: BitnetQuantize) -> QuantizeConfig:
    """The notebook's parameters as the rounding's configuration."""
    return QuantizeConfig(Rounding(p.per_row, p.threshold or None), put_back=p.put_back)


def round_steps(model: nn.Module, batches: list[Batch], p: BitnetQuantize, run: Run) -> Iterator[dict]:
    """Records of the rounding, a layer each, journaled; `model` ends rounded. It is quick, and is done again."""
    yield from run.tracker.follow(quantize(model, batches, quantize_config(p)))


def publish_rounded(
    run: Run, records: Sequence[dict], before: Measured, after: Measured, verdicts: list[dict]
) -> Artifact:
    """What rounding costs, layer by layer and on the whole: rounded weights follow from the parent's."""

    def write(folder: Path) -> None:
        (folder / LAYERS).write_text(json.dumps(list(records), indent=1))
        (folder / QUALITY).write_text(json.dumps({"before": asdict(before), "rounded": asdict(after)}, indent=1))

    return run.finished() or run.publish(ROUNDED, write, verdicts)


def as_rounded(model: nn.Module, found: Artifact) -> nn.Module:
    """The model with its layers converted as notebook 40 left them: those that it put back stay."""
    p = BitnetQuantize(**_known(BitnetQuantize, found.manifest["params"]))
    back = [record["name"] for record in json.loads((found.path / LAYERS).read_text()) if record["put_back"]]
    convert(model, quantize_config(p).rounding, keep=back)
    return model


def earlier_quality(found: Artifact) -> tuple[Measured, Measured]:
    """Quality before rounding and after it, as notebook 40 measured it."""
    facts = read_quality(found)
    return facts["before"], facts["rounded"]


def read_quality(found: Artifact) -> dict[str, Measured]:
    """Quality by stage, as a notebook of Phase 4 published it."""
    facts = json.loads((found.path / QUALITY).read_text())
    return {name: Measured(Found(**one["found"]), one["correct"]) for name, one in facts.items()}


def called_for(p: BitnetFinetune, found: Artifact) -> bool:
    """Whether rounding, as notebook 40 measured it, took more than `finetune_above`."""
    return drop(*earlier_quality(found)) > p.finetune_above


def open_tune(p: BitnetFinetune, trained: Artifact, found: Artifact) -> Run:
    """The run of the fine-tuning; with training and without are two."""
    left_out = {"checkpoint_every_seconds", "finetune_above"}
    return open_bitnet(p, [trained, found], left_out, trained=called_for(p, found))


def tune_config(p: BitnetFinetune) -> FinetuneConfig:
    """The notebook's parameters as the fine-tuning's configuration."""
    names = set(FinetuneConfig.__dataclass_fields__) & set(BitnetFinetune.model_fields)
    return FinetuneConfig(**{name: getattr(p, name) for name in names})


def shown(tokenizer, found: Rows, p: BitnetFinetune) -> Shown:
    """The rows of an epoch: a share of them, drawn anew in each, without their thought."""
    both = encode_both_ways(tokenizer, found.tune[: p.tune_rows], 4096)
    return lambda epoch: shown_in(epoch, both, p)


def tune_steps(
    model: nn.Module, parent: nn.Module, tokenizer, some: Shown, p: BitnetFinetune, run: Run
) -> Iterator[dict]:
    """Records of the fine-tuning, journaled; none where it is finished: then `model` gets the finished weights."""
    finished = run.finished()
    if finished is not None:
        model.load_state_dict(phase3.load(finished)[0].state_dict())
        return
    steps = finetune(
        model,
        some,
        tune_config(p),
        pad=pad_of(tokenizer),
        teacher=parent if p.distillation else None,
        checkpointer=run.checkpointer(every_seconds=p.checkpoint_every_seconds),
        control=run.control,
    )
    yield from run.tracker.follow(steps)


def control_steps(parent: nn.Module, tokenizer, some: Shown, p: BitnetFinetune, run: Run) -> tuple[nn.Module, Iterator]:
    """The control at equal steps: a copy of the parent, and journaled records of its full-precision training."""
    model = copy.deepcopy(parent).requires_grad_(True)
    checkpointer = Checkpointer(run.dir / CONTROL, every_seconds=p.checkpoint_every_seconds)
    steps = full_precision(model, some, tune_config(p), pad=pad_of(tokenizer), checkpointer=checkpointer)
    return model, _control_tracker(run).follow(steps)


def control_journal(run: Run) -> list[dict]:
    """Records of the control's training, also of one that was finished before."""
    return _control_tracker(run).records()


def _control_tracker(run: Run) -> Tracker:
    return Tracker(run.dir / CONTROL, run_name="phase4-bitnet-control")


def theater(model: nn.Module, tokenizer, words: Vocabulary, found: Rows, champion: tuple, asked: QuietRL) -> Verdict:
    """The anti-theater verdict on the harder problems: the trial on the way of Step 2, on the ternary model."""
    seed = stream(asked.seed, "theater of the ternary model")
    return reinforcement.theater(model.eval(), tokenizer, words, found.harder, champion, asked, seed)


def gate_checks(
    model: nn.Module, found: dict[str, Measured], theater: Verdict, sizes: dict[str, int], p: BitnetFinetune
) -> list[Check]:
    """The gate of Phase 4. found: "before", "ternary" and, where it was trained, "control"; sizes: `packed_bytes`."""
    before, after = found["before"], found["ternary"]
    interval = kept_interval(before, after, p.seed)
    beside = {"full precision, as long": 1 - drop(before, found["control"])} if "control" in found else None
    smaller = sizes["float32"] / sizes["stored"]
    lost = reinforcement.surely_failed(theater)
    return [
        Check(
            "share of the quality kept",
            1 - drop(before, after),
            p.quality_threshold,
            ">=",
            interval,
            control=beside,
            note=judged_by(before),
        ),
        Check("zeros in ternary layers", mean_sparsity(model), p.sparsity_threshold, ">"),
        Check("ternary layers, times smaller on disk", smaller, p.compression_threshold, ">="),
        Check("anti-theater tests surely failed", float(len(lost)), 1.0, "<", note="; ".join(lost)),
    ]


def publish_ternary(
    run: Run, model: nn.Module, tokenizer, found: dict[str, Measured], verdicts: list[dict]
) -> Artifact:
    """The model folder (weights as they are trained), its ternary layers' names, and the packed folder."""

    def write(folder: Path) -> None:
        phase3.write_model(folder, model, tokenizer)
        tokenizer.save_pretrained(save_packed(pack_model(copy.deepcopy(model)), folder / "packed"))
        names = [name for name, m in model.named_modules() if isinstance(m, TernaryLinear)]
        (folder / LAYERS).write_text(json.dumps(names, indent=1))
        (folder / QUALITY).write_text(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1))

    return run.finished() or run.publish(TERNARY, write, verdicts)


def packed_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the quantized layers: in float32, and in the file of a packed folder, which is written and counted."""
    with tempfile.TemporaryDirectory() as folder:
        packed = pack_model(copy.deepcopy(model))
        return ternary_bytes(packed, save_packed(packed, folder))


def ternary_bytes(packed: nn.Module, folder: Path) -> dict[str, int]:
    """Bytes of the ternary layers of a packed folder: their weights and biases in float32, and their file."""
    layers = [m for m in packed.modules() if isinstance(m, PackedTernaryLinear)]
    full = sum(4 * m.out_features * (m.in_features + (m.bias is not None)) for m in layers)
    return {"float32": full, "stored": (folder / FILE).stat().st_size}


def mean_sparsity(model: nn.Module) -> float:
    """Share of zeros in all ternary layers, packed or not."""
    return sparsity([m for m in model.modules() if isinstance(m, TernaryLinear | PackedTernaryLinear)])


def n_steps(p: BitnetFinetune, some: Shown) -> int:
    """Optimizer steps of the fine-tuning, on as many rows as there are."""
    return p.epochs * -(-len(some(0)) // p.batch_size)
