"""A search in tables: which recipes lived, what each technique was worth, where the champion comes from."""

from collections.abc import Sequence

import numpy as np

from forgelib.evaluate import bootstrap_interval
from forgelib.merge import PAIRS, RECIPES
from forgelib.phases.genome import Genome
from forgelib.workbook.tables import number

STRETCHES = 10


def usage(records: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Recipe -> stretch of the search -> members of that recipe per generation. At most ten stretches."""
    parts = [list(part) for part in np.array_split(np.arange(len(records)), min(STRETCHES, len(records)))]
    names = [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return {
        bits: {
            name: round(sum(records[g]["recipes"].count(bits) for g in part) / len(part), 2)
            for name, part in zip(names, parts, strict=True)
        }
        for bits in RECIPES
    }


def usage_rows(records: Sequence[dict]) -> list[dict]:
    """One row a recipe: its techniques, and how many members of all generations it had."""
    everything = [bits for record in records for bits in record["recipes"]]
    return [
        {
            "recipe": bits,
            "techniques": ", ".join(PAIRS[i][int(bit)] for i, bit in enumerate(bits)),
            "members": everything.count(bits),
        }
        for bits in RECIPES
    ]


def genome_pairs(champion: Genome, parents: Sequence[str]) -> dict[str, object]:
    """The genes that shape the champion, to be read: numbers in four digits, and by name whose dials it has."""
    genes = {name: _told(value) for name, value in champion.expressed.items() if name != "of"}
    if champion.of:
        merged = ", ".join(one.bits for one in champion.of)
        return {**genes, "dials": f"those of merge {champion.dials + 1}", "of the merges": merged}
    return {**genes, "dials": f"those of {parents[champion.dials]}"}


def _told(value: object) -> str:
    if isinstance(value, tuple):
        parts = [_told(part) for part in value]
        return "; ".join(parts) if value and isinstance(value[0], tuple) else ", ".join(parts)
    return number(value) if isinstance(value, float) else str(value)


def effect_rows(evaluations: Sequence[dict], seed: int) -> list[dict]:
    """One row a pair of techniques: mean fitness of the measured children with the second less that of those with the
    first, with its bootstrap interval over children."""
    fitness = np.array([e["fitness"] for e in evaluations])
    rows = []
    for i, (zero, one) in enumerate(PAIRS):
        bit = np.array([e["genome"]["bits"][i] == "1" for e in evaluations])
        row = {"pair": f"{one} instead of {zero}", "children with": int(bit.sum()), "without": int((~bit).sum())}
        if bit.all() or not bit.any():
            rows.append({**row, "effect": None, "low": None, "high": None})
            continue
        low, high = bootstrap_interval(_difference, fitness[bit], fitness[~bit], paired=False, seed=seed)
        effect = _difference(fitness[bit], fitness[~bit])
        rows.append({**row, "effect": round(effect, 4), "low": round(low, 4), "high": round(high, 4)})
    return rows


def _difference(with_it: np.ndarray, without: np.ndarray) -> float:
    return float(with_it.mean() - without.mean())


def family_rows(records: Sequence[dict], champion: Genome) -> list[dict]:
    """The champion and its forebears, one row each, youngest first: when and how each came about and from whom.

    A mean of several children has the forebears of all.
    """
    born = {}
    for record in records:
        for member in record["family"]:
            born.setdefault(member["key"], {"generation": record["step"], **member})
    rows, seen = [], set()
    waiting = [champion.key] if champion.key in born else [one.key for one in champion.of]
    while waiting:
        key = waiting.pop(0)
        if key in seen or key not in born:
            continue
        seen.add(key)
        one = born[key]
        waiting += one["parents"]
        names = " ".join(parent[:6] for parent in one["parents"]) or "the parents"
        rows.append(
            {"child": key[:6], "generation": one["generation"], "how": one["how"], "recipe": one["bits"], "from": names}
        )
    return sorted(rows, key=lambda row: (-row["generation"], row["child"]))
