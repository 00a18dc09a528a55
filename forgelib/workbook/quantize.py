"""`forge quantize`: ternary weights for any local Hugging Face model or GGUF file.

OUT/packed           our packed folder (`forgelib.quant.load_packed`)
OUT/bitnet           the folder for plain transformers, where asked for
OUT/model-TQ2_0.gguf the file for llama.cpp, where asked for (model-TQ1_0.gguf for tq1_0)
OUT/layers.jsonl     a record a layer; OUT/metrics.jsonl a record a step of the fine-tuning
OUT/report.json      settings, quality before, after rounding and at the end, bytes by part
"""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import nn

from forgelib.core.loop import Checkpointer, Control
from forgelib.core.tracking import Tracker
from forgelib.data import DataError
from forgelib.data.catalogue import CATALOGUE
from forgelib.phases.bake import PADDED_TO
from forgelib.phases.finetune import FinetuneConfig, finetune
from forgelib.phases.quantize import QuantizeConfig, fall_back, kept, quantize
from forgelib.quant import (
    ExportRefused,
    Layer,
    Rounding,
    TernaryLinear,
    check_bitnet,
    check_gguf,
    convert,
    kernel_in_use,
    pack_model,
    save_bitnet,
    save_gguf,
    save_packed,
)
from forgelib.workbook.any_model import context, load_any
from forgelib.workbook.command_folder import alone_in, flat_settings, free_folder, same_question
from forgelib.workbook.console import watched
from forgelib.workbook.params import SECRET, ParameterError
from forgelib.workbook.quantize_report import EXPORTS, REPORT, say_plan, write_report
from forgelib.workbook.quantize_rows import Found, Material, enough_right, known_words, material, pad_of


class Settings(BaseModel):
    """What --config may set, with its defaults. Rates and lambda are those of METHOD's table, for full size; a model of
    a million weights wants muon_lr 0.006, adamw_lr 0.003 and grokfast_lambda 0."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(0, ge=0, le=2**31 - 1)
    data: str = Field("auto", pattern="^(auto|real|procedural)$")
    per_row: bool = False
    threshold: float | None = Field(None, ge=0, lt=10)
    put_back: float = Field(0.5, gt=0, le=1000)
    calibration_rows: int = Field(16, ge=1, le=100_000)
    held_rows: int = Field(200, ge=14, le=100_000)
    difficulty: int = Field(2, ge=1, le=3)
    direct_share: float = Field(0.12, ge=0, lt=1)
    max_tokens: int = Field(256, ge=8, le=100_000)
    max_new_tokens: int = Field(96, ge=1, le=4096)
    rows: int = Field(2000, ge=1, le=10_000_000)
    epochs: int = Field(2, ge=1, le=10_000)
    batch_size: int = Field(8, ge=1, le=4096)
    muon_lr: float = Field(1e-3, gt=0, le=1)
    adamw_lr: float = Field(1e-5, gt=0, le=1)
    grokfast_lambda: float = Field(2.0, ge=0, le=100)
    rounding_warmup: float = Field(0.2, ge=0, le=1)
    distillation: float = Field(0.0, ge=0, le=1000)
    finetune_above: float = Field(0.05, ge=-1, le=1)  # a share of the quality; -1: always
    fall_back_above: float = Field(0.10, ge=0, le=1)  # 1: never
    checkpoint_every_seconds: float = Field(60.0, gt=0, le=86_400)


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. dataset "" asks no questions; steps None: `epochs` times `rows`, 0: none."""

    model: Path
    out: Path
    dataset: str = ""
    samples: int = 100
    steps: int | None = None
    exports: tuple[str, ...] = ("packed",)
    config: Path | None = None
    resume: bool = False


def run_quantize(asked: Asked, say: Callable[[str], object]) -> Path:
    """Quantize, fine-tune where quality drops too far, write the exports; `say` gets a line now and then.

    Killed and started again with `resume` it ends with the same weights. Raises ParameterError for unknown settings, a
    model that cannot be read, an export that could not be read where it is meant for, a folder that is taken.
    """
    p = settings(asked)
    free_folder(asked.out, asked.resume)
    if _finished(asked):
        _same_question(asked, p)
        say(f"{asked.out} is finished already")
        return asked.out
    model, tokenizer = load_any(asked.model, "cpu")
    parent = copy.deepcopy(model).eval().requires_grad_(False)
    config = QuantizeConfig(Rounding(p.per_row, p.threshold), put_back=p.put_back)
    _refuse_length(asked, model, tokenizer, p)
    layers = _refuse(asked, model, config)
    rows = _material(tokenizer, asked, p)
    _same_question(asked, p)
    with alone_in(asked.out):
        (asked.out / REPORT).unlink(missing_ok=True)
        say(f"{rows.source}; {kernel_in_use()}")
        say_plan(layers, parent, say)
        found = {"before": rows.measure(parent)}
        costs = _round(model, rows, config, asked, say)
        found["rounded"] = rows.measure(model)
        if _drop(found, "rounded", say) > p.finetune_above and asked.steps != 0:
            _finetune(model, parent, tokenizer, rows, asked, p, say)
            found["fine-tuned"] = rows.measure(model)
            _drop(found, "fine-tuned", say)
        if _drop(found, list(found)[-1]) > p.fall_back_above:
            model = _fall_back(parent, config, costs, rows, found, p, say)
        found["packed"] = rows.measure(pack_model(model))  # the rest of the model is float16 now
        _drop(found, "packed", say)
        notes = _export(model, tokenizer, asked)
        write_report(asked.out, asked.exports, p.model_dump(), model, found, notes, say)
        shutil.rmtree(asked.out / "checkpoints", ignore_errors=True)
        return asked.out


def settings(asked: Asked) -> Settings:
    """The defaults, overruled by a flat YAML file. Raises ParameterError naming a field, value and what it takes."""
    unknown = [name for name in asked.exports if name not in EXPORTS]
    if unknown or not asked.exports:
        raise ParameterError(f"--export {','.join(asked.exports)}: must be of {', '.join(EXPORTS)}, joined by commas")
    if asked.dataset and asked.dataset not in CATALOGUE:
        raise ParameterError(f"--eval-dataset {asked.dataset}: must be one of {', '.join(CATALOGUE)}")
    try:
        return Settings(**flat_settings(asked.config))
    except ValidationError as error:
        wrong = [(".".join(map(str, e["loc"])), e["input"], e["msg"]) for e in error.errors()]
        lines = [
            f"{name} = {'(not shown)' if SECRET.search(name) else repr(value)}: {told}" for name, value, told in wrong
        ]
        known = ", ".join(Settings.model_fields)
        raise ParameterError(f"--config {asked.config}: " + "; ".join(lines) + f" (known: {known})") from None


def _finished(asked: Asked) -> bool:
    """Whether all that is asked for is there: the report is written last."""
    places = (REPORT, *(EXPORTS[name] for name in asked.exports))
    return asked.resume and all((asked.out / place).exists() for place in places)


def _refuse_length(asked: Asked, model: nn.Module, tokenizer, p: Settings) -> None:
    """Raises ParameterError where rows would be longer than the model can read."""
    limit = context(model)
    if limit is None:
        return
    fits = limit // PADDED_TO * PADDED_TO
    if p.max_tokens > fits:
        advice = f"set it to {fits} or less in --config" if fits else "no row is as short"
        raise ParameterError(f"max_tokens = {p.max_tokens}: the model reads {limit} tokens at most, {advice}")
    answers = asked.dataset or known_words(tokenizer)
    if answers and p.max_tokens + p.max_new_tokens > limit:
        raise ParameterError(
            f"max_tokens = {p.max_tokens} and max_new_tokens = {p.max_new_tokens}: the model reads {limit} tokens at "
            "most, question and answer together; lower one of them in --config"
        )


def _refuse(asked: Asked, model: nn.Module, config: QuantizeConfig) -> list[Layer]:
    """Convert the layers, and ask every export whether it could be read. Returns what becomes of each layer."""
    try:
        layers = convert(model, config.rounding, config.keep, config.smallest)
        _refuse_threshold(model, config.rounding.threshold)
        if "bitnet" in asked.exports:
            check_bitnet(model)
        if {"gguf", "tq1_0"} & set(asked.exports):
            check_gguf(model)
        return layers
    except ExportRefused as error:
        raise ParameterError(f"--export {error}") from None
    except ValueError as error:
        raise ParameterError(f"--model {asked.model}: {error}") from None


def _refuse_threshold(model: nn.Module, threshold: float | None) -> None:
    """Raises ParameterError where the threshold leaves a layer no weight that is not zero."""
    for name, layer in model.named_modules() if threshold else ():
        if isinstance(layer, TernaryLinear) and layer.sparsity() == 1 and bool(layer.weight.any()):
            raise ParameterError(f"threshold = {threshold}: every weight of {name} becomes zero; lower it in --config")


def _material(tokenizer, asked: Asked, p: Settings) -> Material:
    n = p.rows if not asked.steps else -(-asked.steps * p.batch_size // p.epochs)
    try:
        return material(tokenizer, n, p.calibration_rows, (asked.dataset, asked.samples), p)
    except (DataError, ValueError) as error:  # a row longer than max_tokens is a ValueError
        raise ParameterError(str(error)) from None


def _round(model: nn.Module, rows: Material, config: QuantizeConfig, asked: Asked, say: Callable) -> dict[str, float]:
    """Every layer in turn; returns what each cost, in nats a token."""
    records = []
    layers = sum(isinstance(module, TernaryLinear) for module in model.modules())
    for record in watched(quantize(model, rows.calibration, config), layers, "rounding"):
        records.append(record)
        if not record["reached"]:
            say(f"  {record['name']} is not reached by the calibration and stays")
        elif record["put_back"]:
            say(f"  {record['name']} costs {record['cost']:.3f} nats a token and is put back")
    if all(record["put_back"] for record in records):
        raise ParameterError(
            f"no layer can become ternary: each costs more than put_back = {config.put_back} nats a token, or is not "
            "reached by the calibration; set put_back higher in --config"
        )
    (asked.out / "layers.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    say(f"  {len(records)} layers rounded: loss {records[0]['loss_before']:.3f} -> {records[-1]['loss_after']:.3f}")
    return {record["name"]: record["cost"] for record in records}


def _drop(found: dict[str, Found], name: str, say: Callable = str) -> float:
    before = found["before"]
    try:
        share = kept(before.judged(before), found[name].judged(before))
    except ValueError as error:
        raise ParameterError(f"quality cannot be measured: {error}") from None
    say(
        f"  {name}: {share:.1%} of the quality is kept, by {'right answers' if enough_right(before) else 'probability'}"
    )
    return 1 - share


def _finetune(
    model: nn.Module, parent: nn.Module, tokenizer, rows: Material, asked: Asked, p: Settings, say: Callable
) -> None:
    shared = {name: getattr(p, name) for name in FinetuneConfig.__dataclass_fields__ if hasattr(p, name)}
    checkpointer = Checkpointer(asked.out / "checkpoints", every_seconds=p.checkpoint_every_seconds)
    tracker = Tracker(asked.out, run_name="phase4-bitnet", metrics_prefix="bitnet/")
    steps = finetune(
        model,
        rows.shown,
        FinetuneConfig(**shared),
        pad=pad_of(tokenizer),
        teacher=parent if p.distillation else None,
        checkpointer=checkpointer,
        control=Control(asked.out),
    )
    total = p.epochs * -(-len(rows.shown(0)) // p.batch_size)
    for record in watched(tracker.follow(steps), total, "fine-tuning", ("loss",)):
        if record["step"] % 50 == 0 or "sparsity" in record:
            say(f"  step {record['step'] + 1}: loss {record['loss']:.3f}, rounding {record['rounding_share']:.2f}")


def _fall_back(
    parent: nn.Module, config: QuantizeConfig, costs: dict, rows: Material, found: dict[str, Found], p: Settings, say
) -> nn.Module:
    """Beyond the last limit: the parent rounded once more, and its costliest layers put back until it drops by less.

    The fine-tuned weights are of no use for it: they were trained to be rounded, and put back they are no parent.
    """
    before, measured, model = found["before"], [], copy.deepcopy(parent)
    convert(model, config.rounding, config.keep, config.smallest)

    def measure(model: nn.Module) -> dict[str, float]:
        measured.append(rows.measure(model))
        return measured[-1].judged(before)

    for record in fall_back(model, costs, before.judged(before), measure, drop=p.fall_back_above):
        say(f"  {len(record['put_back'])} layers put back, {record['ternary']} ternary: {record['kept']:.1%} kept")
    if record["ternary"] == 0:
        raise ParameterError(
            "no layer can stay ternary at this quality: fine-tune for more --steps, or set fall_back_above in --config"
        )
    found["layers put back"] = measured[-1]
    return model


def _export(model: nn.Module, tokenizer, asked: Asked) -> list[str]:
    """Writes what is asked for; returns what is to be said about it."""
    notes = []
    for name in asked.exports:
        place = asked.out / EXPORTS[name]
        try:
            if name == "packed":
                tokenizer.save_pretrained(save_packed(model, place))
            elif name == "bitnet":
                save_bitnet(model, place, tokenizer)
            elif why_not := save_gguf(model, place, tokenizer, place.stem.removeprefix("model-")):
                notes.append(f"{place.name} holds no tokenizer: {why_not}")
        except (OSError, SafetensorError) as error:
            raise ParameterError(f"{place}: cannot be written ({error}); make room and give --resume") from None
    return notes


def _same_question(asked: Asked, p: Settings) -> None:
    """What began in a folder is what goes on there."""
    facts = {"model": str(asked.model.resolve()), "dataset": asked.dataset, "samples": asked.samples}
    facts |= {"steps": asked.steps} | p.model_dump()
    same_question(asked.out, facts)
