"""What `forge quantize` is asked, and what of it is refused before any work."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from forgelib.data.catalogue import CATALOGUE
from forgelib.phases.bake import PADDED_TO
from forgelib.phases.quantize import QuantizeConfig
from forgelib.quant import ExportRefused, Layer, TernaryLinear, check_bitnet, check_gguf, convert
from forgelib.workbook.any_model import context
from forgelib.workbook.command_folder import flat_settings
from forgelib.workbook.params import SECRET, ParameterError
from forgelib.workbook.quantize_report import EXPORTS
from forgelib.workbook.quantize_rows import known_words


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


def refuse_length(asked: Asked, model: nn.Module, tokenizer, p: Settings) -> None:
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


def refuse(asked: Asked, model: nn.Module, config: QuantizeConfig) -> list[Layer]:
    """Convert the layers, and ask every export whether it could be read. Returns what becomes of each layer."""
    try:
        layers = convert(model, config.rounding, config.keep, config.smallest)
        _refuse_threshold(model, config.rounding.threshold)
        check_exports(model, asked.exports)
        return layers
    except ExportRefused as error:
        raise ParameterError(f"--export {error}") from None
    except ValueError as error:
        raise ParameterError(f"--model {asked.model}: {error}") from None


def check_exports(model: nn.Module, exports: tuple[str, ...]) -> None:
    """Raises ExportRefused where an engine could not read the model."""
    if "bitnet" in exports:
        check_bitnet(model)
    if {"gguf", "tq1_0"} & set(exports):
        check_gguf(model)


def _refuse_threshold(model: nn.Module, threshold: float | None) -> None:
    """Raises ParameterError where the threshold leaves a layer no weight that is not zero."""
    for name, layer in model.named_modules() if threshold else ():
        if isinstance(layer, TernaryLinear) and layer.sparsity() == 1 and bool(layer.weight.any()):
            raise ParameterError(f"threshold = {threshold}: every weight of {name} becomes zero; lower it in --config")
