"""What `forge quantize` tells: what becomes ternary, and at the end bytes and quality, also in report.json."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import nn

from forgelib.phases.finetune import sparsity
from forgelib.quant import Layer, PackedTernaryLinear, sizes
from forgelib.workbook.quantize_rows import Found
from forgelib.workbook.tables import number

REPORT = "report.json"
#: How the row of an export ends.
ON_DISK = ", on disk"
#: What an export is, and what writes it: folder or file below OUT.
EXPORTS = {"packed": "packed", "bitnet": "bitnet", "gguf": "model-TQ2_0.gguf", "tq1_0": "model-TQ1_0.gguf"}


def say_plan(layers: list[Layer], model: nn.Module, say: Callable[[str], object]) -> None:
    """How much of the model becomes ternary, and which linear layers cannot."""
    ternary = [layer for layer in layers if layer.becomes == "ternary"]
    whole = sum(p.numel() for p in model.parameters())
    share = sum(layer.outputs * layer.inputs for layer in ternary) / whole
    fused = sum(p.numel() for p in model.parameters() if p.dim() == 3) / whole
    rest = "embeddings, norms, gates" + f", and experts in one tensor, {fused:.0%}" * (fused > 0.1)
    say(f"  {len(ternary)} layers, {share:.0%} of the parameters, become ternary; the rest stays: {rest}")
    refused = [layer for layer in layers if layer.becomes == "refused"]
    for layer in refused[:10]:
        say(f"  {layer.name} stays: {layer.reason}")
    if len(refused) > 10:
        say(f"  and {len(refused) - 10} more linear layers stay")


def exported(out: Path) -> tuple[str, ...]:
    """The exports that lie in a finished folder: its report names them, and is written when they are whole."""
    try:
        listed = [row["part"] for row in json.loads((out / REPORT).read_text())["sizes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(name for name, place in EXPORTS.items() if name + ON_DISK in listed and (out / place).exists())


def write_report(
    out: Path,
    exports: tuple[str, ...],
    settings: dict,
    packed: nn.Module,
    found: Mapping[str, Found],
    notes: list[str],
    say: Callable[[str], object],
) -> None:
    """The one table, and the same in report.json, which is written last."""
    layers = [module for module in packed.modules() if isinstance(module, PackedTernaryLinear)]
    parts = [row | {"times smaller": row["float32 bytes"] / row["stored bytes"]} for row in sizes(packed)]
    rows = _with_exports(out, parts, exports, say)
    say(f"  {'zeros in ternary layers':24} {sparsity(layers):>14.3f}")
    for name in (*found["before"].right, *found["before"].probability):
        of = "right" if name in found["before"].right else "probability"
        line = " -> ".join(f"{getattr(one, of)[name]:.3f}" for one in found.values())
        say(f"  {of + ' ' + name:40} {line}   ({' -> '.join(found)})")
    for note in notes:
        say(f"  {note}")
    report = {"settings": settings, "sparsity": sparsity(layers), "ternary layers": len(layers), "sizes": rows}
    report |= {"quality": {name: asdict(one) for name, one in found.items()}, "notes": notes}
    (out / REPORT).write_text(json.dumps(report, indent=1))


def add_to_report(out: Path, exports: tuple[str, ...], notes: list[str], say: Callable[[str], object]) -> None:
    """The report of a finished folder with the sizes of exports that came later, and what is to be said about them."""
    report = json.loads((out / REPORT).read_text())
    parts = [row for row in report["sizes"] if not row["part"].endswith(ON_DISK)]
    report["sizes"] = _with_exports(out, parts, (*exported(out), *exports), say)
    for note in notes:
        say(f"  {note}")
    report["notes"] += notes
    (out / REPORT).write_text(json.dumps(report, indent=1))


def _with_exports(out: Path, parts: list[dict], exports: tuple[str, ...], say: Callable[[str], object]) -> list[dict]:
    """The rows of the parts, and one of each export; all are said."""
    full = sum(row["float32 bytes"] for row in parts)
    files = {name: _bytes(out / EXPORTS[name]) for name in EXPORTS if name in exports}
    exports = [{"part": name + ON_DISK, "float32 bytes": full, "stored bytes": size} for name, size in files.items()]
    rows = parts + [row | {"times smaller": full / row["stored bytes"]} for row in exports]
    say(f"  {'part':24} {'float32 bytes':>14} {'stored bytes':>14} {'smaller':>9}")
    for row in rows:
        size = f"{number(row['float32 bytes']):>14} {number(row['stored bytes']):>14}"
        say(f"  {row['part']:24} {size} {row['times smaller']:>8.2f}x")
    return rows


def _bytes(place: Path) -> int:
    """Bytes of weights on disk: of a file, or of a folder's safetensors."""
    return place.stat().st_size if place.is_file() else sum(f.stat().st_size for f in place.glob("*.safetensors"))
