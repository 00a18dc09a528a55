"""FrankenMerge: whole layers, each from one model, by a pattern that is cycled over the layers.

    pattern "ABC": layer l comes from model A, B, C for l mod 3 = 0, 1, 2

What lies outside the layers (embedding, final norm, head) comes from the first
letter's model, all of it: the head must read what the norm before it was trained to give, and a tied head is the
embedding. That model also gives layer 0, which is what reads the embedding. A second stack of numbered layers, such as
Cognate's recursion network, follows the same pattern from its own layer 0.
"""

from collections.abc import Iterable


def layer_index(name: str) -> int | None:
    """The layer of a tensor: the first number in its dotted name; None outside the layers.

    "model.layers.3.mlp.experts.5.weight" and "model.blocks.3.out_proj.weight" lie in layer 3.
    """
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def layer_group(name: str) -> str:
    """What a tensor belongs to: "model.layers.3", another stack's "model.recursion.0", or "" outside of them."""
    parts = name.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1]) if numbered else ""


def layer_groups(names: Iterable[str]) -> list[str]:
    """The groups of a model's tensors, sorted by stack and number; what lies outside comes first."""
    found = {layer_group(name) for name in names}
    return sorted(found, key=lambda group: (group.rpartition(".")[0], int(group.rpartition(".")[2] or 0)))


def source(name: str, pattern: str) -> int:
    """Which model gives this tensor: 0 for letter A, 1 for B and so on."""
    layer = layer_index(name)
    return ord(pattern[0 if layer is None else layer % len(pattern)]) - ord("A")
