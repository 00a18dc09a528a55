"""The data room: 16 datasets, their real rows or procedural twins, the mixes, the tokenizer and the packed pools.

The room's shared words stand in `schema` and `thinking` and are read from here; `prepare` joins the other files.
Importing this module costs nothing: torch, transformers, datasets and reasoning-gym are imported by the function that
first needs them.
"""

from importlib import import_module

from forgelib.data.schema import (
    CATEGORIES,
    DataError,
    DatasetSpec,
    Example,
    FieldTypes,
    NoSuchPart,
    Row,
    RowError,
    check_fields,
)
from forgelib.data.thinking import STRATEGIES, Thought, Vocabulary, vocabulary

_HOMES = {
    "asking": ("STRATEGY_TEXTS", "example_steps", "json_request", "read_objects"),
    "catalogue": ("CATALOGUE",),
    "chat": ("Chat", "Outcome"),
    "cursor": ("BatchCursor",),
    "local_teacher": ("LocalTeacherConfig", "LocalTeacherRecord", "Question", "write_with_local_model"),
    "metering": ("Budget", "Pace"),
    "mixes": ("CURRICULUM", "SPECIALISTS", "TRUNK_MIX", "Specialist", "Stage", "stage_weights"),
    "openrouter": ("OpenRouterConfig", "OpenRouterError", "OpenRouterRecord", "PricedModel", "write_with_openrouter"),
    "packing": ("encode_examples", "pack"),
    "reasoning": ("ReasoningRow", "read_rows", "to_row", "worked_rows", "write_rows"),
    "recall": ("RecallBatch", "recall_batch"),
    "row_store": ("RowStore", "check_strategies", "statistics", "written_row"),
    "sources": ("Hub", "Rows", "split_plan"),
    "tokenizer": ("load_or_train_tokenizer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CATEGORIES",
    "STRATEGIES",
    "DataError",
    "DatasetSpec",
    "Example",
    "FieldTypes",
    "NoSuchPart",
    "Row",
    "RowError",
    "Thought",
    "Vocabulary",
    "check_fields",
    "vocabulary",
]
__all__ += sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"forgelib.data has no '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"forgelib.data.{_HOME_OF[name]}"), name)
