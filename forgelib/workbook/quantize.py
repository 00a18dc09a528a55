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
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer

from forgelib.core.loop import Checkpointer, Control
from forgelib.core.tracking import Tracker
from forgelib.data import DataError
from forgelib.phases.finetune import FinetuneConfig, finetune
from forgelib.phases.quantize import QuantizeConfig, fall_back, kept, quantize
from forgelib.quant import (
    ExportRefused,
    PackedFolderError,
    Rounding,
    TernaryLinear,
    convert,
    kernel_in_use,
    load_packed,
    pack_model,
    save_bitnet,
    save_gguf,
    save_packed,
)
from forgelib.workbook.any_model import load_any
from forgelib.workbook.command_folder import alone_in, files_of, free_folder
from forgelib.workbook.console import watched
from forgelib.workbook.params import ParameterError
from forgelib.workbook.quantize_asked import Asked, Settings, check_exports, refuse, refuse_length, settings
from forgelib.workbook.quantize_report import EXPORTS, REPORT, add_to_report, exported, say_plan, write_report
from forgelib.workbook.quantize_rows import Found, Material, enough_right, material, pad_of


def run_quantize(asked: Asked, say: Callable[[str], object]) -> Path:
    """Quantize, fine-tune where quality drops too far, write the exports; `say` gets a line now and then.

    Killed and started again with `resume` it ends with the same weights. Raises ParameterError for unknown settings, a
    model that cannot be read, an export that could not be read where it is meant for, a folder that is taken.
    """
    p = settings(asked)
    free_folder(asked.out, asked.resume)
    there = exported(asked.out)
    missing = tuple(name for name in asked.exports if name not in there)
    if not missing or "packed" in there:
        return _export_more(asked, missing, p, say)
    model, tokenizer = load_any(asked.model, "cpu")
    parent = copy.deepcopy(model).eval().requires_grad_(False)
    config = QuantizeConfig(Rounding(p.per_row, p.threshold), put_back=p.put_back)
    refuse_length(asked, model, tokenizer, p)
    layers = refuse(asked, model, config)
    rows = _material(tokenizer, asked, p)
    with alone_in(asked.out, _question(asked, p)):
        (asked.out / REPORT).unlink(missing_ok=True)
        say(f"{rows.source}; {kernel_in_use()}")
        say_plan(layers, parent, say)
        found = {"before": rows.measure(parent)}
        costs = _round(model, rows, config, asked, say)
        stayed = tuple(name for name in costs if not isinstance(model.get_submodule(name), TernaryLinear))
        found["rounded"] = rows.measure(model)
        if _drop(found, "rounded", say) > p.finetune_above and asked.steps != 0:
            _finetune(model, parent, tokenizer, rows, asked, p, say)
            found["fine-tuned"] = rows.measure(model)
            _drop(found, "fine-tuned", say)
        if _drop(found, list(found)[-1]) > p.fall_back_above:
            model = _fall_back(parent, replace(config, keep=stayed), costs, rows, found, p, say)
        found["packed"] = rows.measure(pack_model(model))  # the rest of the model is float16 now
        _drop(found, "packed", say)
        notes = _export(model, tokenizer, asked)
        write_report(asked.out, asked.exports, p.model_dump(), model, found, notes, say)
        shutil.rmtree(asked.out / "checkpoints", ignore_errors=True)
        return asked.out


def _export_more(asked: Asked, missing: tuple[str, ...], p: Settings, say: Callable[[str], object]) -> Path:
    """What is asked for beyond what a finished folder holds, from its packed model."""
    with alone_in(asked.out, _question(asked, p)):
        if not missing:
            say(f"{asked.out} is finished already")
            return asked.out
        try:
            model = load_packed(asked.out / EXPORTS["packed"])
            check_exports(model, missing)
        except (PackedFolderError, ExportRefused) as error:
            raise ParameterError(f"--export {','.join(missing)}: {error}") from None
        tokenizer = AutoTokenizer.from_pretrained(asked.out / EXPORTS["packed"], local_files_only=True)
        add_to_report(asked.out, missing, _export(model, tokenizer, replace(asked, exports=missing)), say)
    return asked.out


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
    try:
        for record in watched(quantize(model, rows.calibration, config), layers, "rounding"):
            records.append(record)
            if not record["reached"]:
                say(f"  {record['name']} is not reached by the calibration and stays")
            elif record["put_back"]:
                say(f"  {record['name']} costs {record['cost']:.3f} nats a token and is put back")
    except ValueError as error:  # a loss that is not finite
        raise ParameterError(f"--model {asked.model}: {error}") from None
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
    n = len(rows.shown(0))
    total = p.epochs * -(-n // p.batch_size)
    say(f"  fine-tuning: {total} steps, {p.epochs} times {n} rows")
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
    if "fine-tuned" in found and _drop(found, "rounded") <= p.fall_back_above:
        say("  fine-tuning made it worse than rounding had: the rounded parent is taken as it is")
        found["not fine-tuned"] = found["rounded"]
        return model

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
        except Exception as error:  # of a full disk the tokenizers library tells by a plain Exception
            if not isinstance(error, OSError | SafetensorError) and "os error" not in str(error):
                raise
            raise ParameterError(f"{place}: cannot be written ({error}); make room and give --resume") from None
    return notes


def _question(asked: Asked, p: Settings) -> dict[str, object]:
    """What began in a folder and what alone goes on there."""
    facts = {
        "model": str(asked.model.resolve()),
        "files of the model": files_of(asked.model),
        "dataset": asked.dataset,
        "samples": asked.samples,
    }
    return facts | {"steps": asked.steps} | p.model_dump()
