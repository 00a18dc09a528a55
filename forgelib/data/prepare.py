"""From dataset names to what a trainer reads: rows, tokenizer, packed pools per stage and category, and held-out
examples."""

import hashlib
import json
import random
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from forgelib.core.paths import datasets_mirror
from forgelib.data import CATEGORIES, DataError, Example, grammars, procedural, prose
from forgelib.data.catalogue import CATALOGUE
from forgelib.data.mixes import CURRICULUM, SPECIALISTS, TRUNK_MIX, stage_datasets, stage_weights
from forgelib.data.packing import encode_examples, pack
from forgelib.data.sources import Hub, Rows
from forgelib.data.sources import load_rows as _load_rows
from forgelib.data.tokenizer import load_or_train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

TWINS = {**procedural.TWINS, **grammars.TWINS, **prose.TWINS}
Positive = Annotated[int, Field(ge=1)]


class DataConfig(BaseModel):
    """What `prepare` makes. `seq_lens` are the row lengths in tokens of the three curriculum stages;
    `rows_per_dataset` and `heldout_per_dataset` are upper limits; `mirror` is the folder of local rows; `gpt2` is
    "never", "auto" or a tokenizer folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: Literal["auto", "real", "procedural"] = "auto"
    datasets: tuple[str, ...] = tuple(CATALOGUE)
    rows_per_dataset: Positive = 1500
    heldout_per_dataset: Positive = 100
    seq_lens: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = (
        64,
        128,
        256,
    )
    vocab_size: Annotated[int, Field(ge=265, le=65536)] = 1024
    gpt2: str = "never"
    mirror: Path | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("datasets")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(names) - set(CATALOGUE))
        if unknown or not names or len(set(names)) != len(names):
            raise ValueError(f"datasets must be distinct names out of {', '.join(CATALOGUE)}; got {list(names)}")
        return names


@dataclass(frozen=True)
class SourceRow:
    """One line of the source table: what was read for one dataset. Tokens count the training rows, end of text
    included."""

    dataset: str
    category: str
    source: str
    origin: str
    split: str
    rows: int
    tokens: int
    heldout_split: str
    heldout_rows: int
    licence: str
    note: str


@dataclass(frozen=True)
class DataBundle:
    """Everything a phase reads of the data.

    pools[stage][category]: int32 [N, T_stage], cumulative over the stages. heldout[category]: examples, plain language
    rows with an empty answer. heldout_pools[category]: int32 [N, T_last], all held-out examples packed, for perplexity.
    """

    config: DataConfig
    sources: tuple[SourceRow, ...]
    tokenizer: "PreTrainedTokenizerFast"
    tokenizer_note: str
    pools: dict[str, dict[str, "torch.Tensor"]]
    heldout: dict[str, tuple[Example, ...]]
    heldout_pools: dict[str, "torch.Tensor"]
    notes: tuple[str, ...] = field(default=())

    def weights(self, mix: str, stage: str) -> tuple[dict[str, float], str]:
        """Shares per category of one stage for "trunk" or a specialist, and a note where the mix had to be rescaled."""
        if mix != "trunk" and mix not in SPECIALISTS:
            raise DataError(f"there is no mix '{mix}'; choose trunk or one of {', '.join(SPECIALISTS)}")
        if stage not in self.pools:
            raise DataError(f"there is no data of stage '{stage}'; there is {', '.join(self.pools)}")
        return stage_weights(_mixes()[mix], set(self.pools[stage]))

    def questions(self, category: str) -> tuple[Example, ...]:
        """The held-out examples of a category that have an answer to be right or wrong about."""
        return tuple(example for example in self.heldout.get(category, ()) if example.answer)

    @property
    def digest(self) -> str:
        """sha256 over pools, held-out rows, tokenizer, configuration and source table. Not over the table's notes: they
        speak of the machine, such as why no hub was reached."""
        state = hashlib.sha256()
        for name, tensor in sorted(_tensors(self).items()):
            state.update(name.encode() + str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        plain = _plain(self)
        plain["sources"] = [{**row, "note": ""} for row in plain["sources"]]
        state.update(json.dumps(plain, sort_keys=True).encode())
        state.update(self.tokenizer.backend_tokenizer.to_str().encode())
        return state.hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write the bundle into `folder`: pools.safetensors, bundle.json, heldout.jsonl, tokenizer/."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(self), folder / "pools.safetensors")
        plain = _plain(self)
        heldout = plain.pop("heldout")
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for name in sorted(heldout) for row in heldout[name]]
        (folder / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / "bundle.json").write_text(json.dumps({**plain, "digest": self.digest}, indent=1), encoding="utf-8")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "DataBundle":
        """The bundle that `save` wrote, bit for bit. Raises DataError when a file is missing or does not match."""
        from safetensors.torch import load_file
        from transformers import PreTrainedTokenizerFast

        folder = Path(folder)
        missing = [
            name
            for name in ("pools.safetensors", "bundle.json", "heldout.jsonl", "tokenizer")
            if not (folder / name).exists()
        ]
        if missing:
            raise DataError(f"{folder} is no data bundle: {', '.join(missing)} is missing. Prepare the data anew.")
        plain = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        pools: dict[str, dict] = defaultdict(dict)
        for name, tensor in load_file(folder / "pools.safetensors").items():
            stage, _, category = name.partition("/")
            pools[stage][category] = tensor
        heldout: dict[str, list[Example]] = defaultdict(list)
        for line in (folder / "heldout.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:  # a row may hold U+2028
            example = Example(**json.loads(line))
            heldout[example.category].append(example)
        bundle = cls(
            config=DataConfig.model_validate_json(json.dumps(plain["config"])),
            sources=tuple(SourceRow(**row) for row in plain["sources"]),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
            tokenizer_note=plain["tokenizer_note"],
            heldout_pools=pools.pop("heldout", {}),
            pools={stage: pools[stage] for stage in CURRICULUM if stage in pools},
            heldout={name: tuple(rows) for name, rows in heldout.items()},
            notes=tuple(plain["notes"]),
        )
        if bundle.digest != plain["digest"]:
            raise DataError(
                f"{folder} does not hold what was saved: its digest differs from bundle.json. Prepare the data anew."
            )
        return bundle


def _mixes() -> dict[str, dict[str, float]]:
    return {"trunk": TRUNK_MIX, **{name: specialist.mix for name, specialist in SPECIALISTS.items()}}


def _tensors(bundle: DataBundle) -> dict[str, "torch.Tensor"]:
    named = {f"{stage}/{category}": pool for stage, pools in bundle.pools.items() for category, pool in pools.items()}
    return {**named, **{f"heldout/{category}": pool for category, pool in bundle.heldout_pools.items()}}


def _plain(bundle: DataBundle) -> dict:
    return {
        "config": bundle.config.model_dump(mode="json", exclude={"mirror"}),
        "sources": [asdict(row) for row in bundle.sources],
        "tokenizer_note": bundle.tokenizer_note,
        "notes": list(bundle.notes),
        "heldout": {name: [asdict(example) for example in rows] for name, rows in bundle.heldout.items()},
    }


def load_rows(
    name: str,
    part: str,
    *,
    source: str = "auto",
    mirror: Path | None = None,
    hub: Hub | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Rows:
    """Rows of part "train", "heldout" or "test" of one of the sixteen datasets; see `sources.load_rows`.

    Without `mirror` the folder named by FORGE_DATASETS is the mirror, if it is set.
    """
    if name not in CATALOGUE:
        raise DataError(f"there is no dataset '{name}'; choose one of {', '.join(CATALOGUE)}")
    spec = CATALOGUE[name]
    mirror = mirror or datasets_mirror()

    def twin(part: str, n: int, seed: int) -> list[Example]:
        pairs = procedural.draw(TWINS[name], name, part, n, seed)
        return [Example(prompt, answer, spec.category, name, "procedural") for prompt, answer in pairs]

    return _load_rows(spec, part, twin=twin, source=source, mirror=mirror, hub=hub, limit=limit, seed=seed)


def prepare(config: DataConfig) -> DataBundle:
    """Load, tokenize and pack the datasets of `config`. Deterministic: the same configuration and rows give the same
    digest on every machine.

    Raises DataError when a source is broken or, with source="real", missing.
    """
    hub = Hub()
    train, heldout = {}, {}
    for name in config.datasets:
        common = {"source": config.source, "mirror": config.mirror, "hub": hub, "seed": config.seed}
        train[name] = load_rows(name, "train", limit=config.rows_per_dataset, **common)
        heldout[name] = load_rows(name, "heldout", limit=config.heldout_per_dataset, **common)
    asked = {example.prompt for rows in heldout.values() for example in rows.examples}
    kept = {name: [one for one in rows.examples if one.prompt not in asked] for name, rows in train.items()}
    tokenizer, tokenizer_note = load_or_train_tokenizer(
        [example.text for name in config.datasets for example in kept[name]], config.vocab_size, config.gpt2
    )
    ids = {name: _documents(tokenizer, kept[name]) for name in config.datasets}
    heldout_ids = {name: _documents(tokenizer, heldout[name].examples) for name in config.datasets}
    pools = {stage: _pools(config, stage, ids, tokenizer.eos_token_id) for stage in CURRICULUM}
    pools = {stage: found for stage, found in pools.items() if found}
    questions = _by_category(config, {name: rows.examples for name, rows in heldout.items()})
    last = config.seq_lens[-1]
    return DataBundle(
        config=config,
        sources=tuple(
            _source_row(train[name], heldout[name], ids[name], heldout_ids[name], last) for name in config.datasets
        ),
        tokenizer=tokenizer,
        tokenizer_note=tokenizer_note,
        pools=pools,
        heldout={name: tuple(rows) for name, rows in questions.items() if rows},
        heldout_pools={
            name: pack(documents, last, tokenizer.eos_token_id)
            for name, documents in _by_category(config, heldout_ids).items()
            if documents
        },
        notes=tuple(
            f"{mix}, stage {stage}: {note}"
            for mix, shares in _mixes().items()
            for stage in pools
            if (note := stage_weights(shares, set(pools[stage]))[1])
        ),
    )


def _documents(tokenizer: "PreTrainedTokenizerFast", examples: list[Example]) -> list[list[int]]:
    return [prompt + answer for prompt, answer in encode_examples(tokenizer, examples)]


def _by_category(config: DataConfig, rows: dict[str, list]) -> dict[str, list]:
    grouped: dict[str, list] = {category: [] for category in CATEGORIES}
    for name in config.datasets:
        grouped[CATALOGUE[name].category] += rows.get(name, [])
    return grouped


def _pools(config: DataConfig, stage: str, ids: dict[str, list[list[int]]], eos_id: int) -> dict[str, "torch.Tensor"]:
    """The packed rows of one stage per category; documents of its datasets shuffled together."""
    present = {name: ids[name] for name in stage_datasets(stage) if name in ids}
    seq_len = config.seq_lens[list(CURRICULUM).index(stage)]
    pools = {}
    for category, documents in _by_category(config, present).items():
        if documents:
            random.Random(f"{config.seed}/{stage}/{category}").shuffle(documents)
            pools[category] = pack(documents, seq_len, eos_id)
    return pools


def _source_row(
    train: Rows, heldout: Rows, documents: list[list[int]], heldout_documents: list[list[int]], seq_len: int
) -> SourceRow:
    spec = CATALOGUE[train.dataset]
    notes = [train.passed_over] if train.passed_over else []
    if repeats := len(train.examples) - len(documents):
        notes.append(f"{repeats} training rows left out, their prompts are held out")
    too_long = sum(len(ids) > seq_len for ids in heldout_documents)
    if too_long and spec.category != "language":
        notes.append(f"{too_long} of {len(heldout_documents)} held-out questions are longer than {seq_len} tokens")
    return SourceRow(
        dataset=spec.name,
        category=spec.category,
        source=train.source,
        origin=train.origin,
        split=train.split,
        rows=len(documents),
        tokens=sum(len(document) + 1 for document in documents),
        heldout_split=heldout.split,
        heldout_rows=len(heldout.examples),
        licence=spec.licence if train.source != "procedural" else "generated here",
        note="; ".join(notes),
    )
