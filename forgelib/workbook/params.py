"""The knobs of every notebook: one frozen, strict model each, and `resolve`, which reads them from a notebook.

A notebook keeps its knobs as plain scalars in one cell tagged `parameters`; papermill puts a cell `# Parameters`
below it with what the command line asked for. `resolve` joins the three sources of a value, highest first: asked for
explicitly (injected by papermill, or edited in the notebook), params/<profile>/<notebook>.yaml, and the default below,
which is the laptop's.

To add a knob: one line here, and the same name and default in the notebook's parameters cell; a test compares them.
"""

import ast
import contextlib
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from forgelib.core.paths import PROFILES, default_profile, params_dir

#: First line of the cell that papermill injects; a notebook's own parameters cell must not begin with it.
INJECTED = "# Parameters"
Scalar = str | int | float | bool | None


class ParameterError(ValueError):
    """A notebook was given an unknown knob or a value it cannot take; the text says which and what is allowed."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows the sentence alone: the reader mistyped a value, the stack has nothing to say about it."""
        return [f"ParameterError: {self}"]


class Parameters(BaseModel):
    """What every notebook takes. Subclasses name their notebook and add its knobs."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
    NOTEBOOK: ClassVar[str]

    profile: Literal["smoke", "laptop", "gpu6gb", "full"] = Field("laptop", description="size of everything")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="root of every random stream")
    data: Literal["auto", "real", "procedural"] = Field("auto", description="where rows come from")


class Environment(Parameters):
    """00_environment: what this machine can do."""

    NOTEBOOK = "00_environment"


class CognateData(Parameters):
    """10_cognate_data: sixteen datasets, the tokenizer, the packed pools of the three-stage curriculum."""

    NOTEBOOK = "10_cognate_data"

    rows_per_dataset: int = Field(1500, ge=20, le=1_000_000, description="training rows taken from each dataset")
    heldout_per_dataset: int = Field(
        100, ge=5, le=10_000, description="held-out rows of each dataset, never trained on"
    )
    vocab_size: int = Field(1024, ge=300, le=50_257, description="tokens; 50257 asks for GPT-2's own vocabulary")
    seq_len_foundation: int = Field(64, ge=16, le=8192, description="tokens per sequence in the first stage")
    seq_len_reasoning: int = Field(128, ge=16, le=8192, description="tokens per sequence in the second stage")
    seq_len_advanced: int = Field(256, ge=16, le=8192, description="tokens per sequence in the third stage")


class CognateTrain(Parameters):
    """11_cognate_train: the shared trunk, then one specialist."""

    NOTEBOOK = "11_cognate_train"

    specialist: Literal["reasoning", "memory", "speed"] = Field("reasoning", description="which of the three to train")
    trunk_steps: int = Field(400, ge=3, le=10_000_000, description="optimizer steps of the shared trunk")
    steps: int = Field(180, ge=2, le=10_000_000, description="optimizer steps of the specialist")
    tokens_per_step: int = Field(1024, ge=16, le=10_000_000, description="tokens in one optimizer step")
    muon_lr: float = Field(0.02, gt=0, le=1, description="learning rate of the hidden matrices, per step")
    adamw_lr: float = Field(0.003, gt=0, le=1, description="learning rate of embeddings, norms and biases, per step")
    specialist_rate: float = Field(0.3, gt=0, le=1, description="a specialist's learning rates over the trunk's")
    d_model: int = Field(128, ge=16, le=8192, description="width of the residual stream; a multiple of 2 n_heads")
    d_ff: int = Field(384, ge=16, le=65_536, description="inner width of the feed-forward nets")
    n_layers: int = Field(3, ge=1, le=128, description="backbone blocks")
    n_heads: int = Field(4, ge=1, le=128, description="heads of attention and of memory")
    window: int = Field(32, ge=4, le=8192, description="tokens that attention looks back; farther back is memory's")
    memory_every: int = Field(2, ge=1, le=128, description="every so many blocks one carries a long-term memory")
    memory_chunk: int = Field(32, ge=1, le=4096, description="tokens that the memory processes at once: speed only")
    n_micro_steps: int = Field(2, ge=1, le=16, description="refinements of the latent per cycle")
    recursion_layers: int = Field(1, ge=1, le=8, description="layers of the shared recursion net")
    accuracy_samples: int = Field(200, ge=10, le=100_000, description="held-out problems answered by generation")
    checkpoint_every_seconds: float = Field(30.0, gt=0, le=86_400, description="seconds between checkpoints at most")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "CognateTrain":
        if self.d_model % (2 * self.n_heads):
            raise ValueError(f"d_model = {self.d_model}: must be a multiple of 2 x n_heads = {2 * self.n_heads}")
        return self


class CognateDiversity(Parameters):
    """12_cognate_diversity: are the three specialists different enough to be parents?"""

    NOTEBOOK = "12_cognate_diversity"

    diversity_threshold: float = Field(0.3, ge=0, le=1, description="least spread, as a share of the mean")
    halting_samples: int = Field(80, ge=5, le=100_000, description="held-out texts for halting and memory use")
    accuracy_samples: int = Field(150, ge=10, le=100_000, description="held-out problems answered per specialist")
    latency_texts: int = Field(20, ge=3, le=1000, description="texts timed per specialist, interleaved")
    latency_tokens: int = Field(32, ge=2, le=4096, description="tokens timed per text, the last ones")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")


class EvoMethods(Parameters):
    """20_evomerge_methods: six techniques and eight recipes, each beside its formula and measured."""

    NOTEBOOK = "20_evomerge_methods"

    search_rows: int = Field(
        18, ge=2, le=10_000, description="held-out rows of each dataset that recipes are scored on"
    )
    dials_of: Literal["reasoning", "memory", "speed"] = Field("memory", description="whose depth and threshold all use")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")


class EvoEvolve(Parameters):
    """21_evomerge_evolve: generations of merged models, a champion, its score on data the search never saw."""

    NOTEBOOK = "21_evomerge_evolve"

    generations: int = Field(50, ge=1, le=10_000, description="generations at most")
    population: int = Field(8, ge=8, le=256, description="members of a generation")
    patience: int = Field(5, ge=1, le=10_000, description="generations without a gain of 0.001 before the search ends")
    budget_minutes: float = Field(120.0, gt=0, le=100_000, description="minutes of measuring before the search ends")
    search_rows: int = Field(40, ge=2, le=10_000, description="held-out rows of each dataset that the search goes by")
    race_rows: int = Field(6, ge=0, le=10_000, description="further ones that every child is read on first; 0: no race")
    winners: int = Field(2, ge=1, le=256, description="children of a generation that win the race and are measured")
    champion_rows: int = Field(250, ge=5, le=100_000, description="unseen rows of each dataset that score the champion")
    workers: int = Field(0, ge=0, le=1024, description="processes that measure children; 0 takes one a core")
    backend: Literal["local", "ray"] = Field("local", description="where these processes run; ray joins a cluster")
    controls: Literal["all", "untrained"] = Field("all", description="all also trains four models and runs CMA-ES")
    fitness_threshold: float = Field(1.2, ge=0, le=10, description="champion's fitness needed; the parents' mean is 1")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")


class QuietBake(Parameters):
    """30_quietstar_bake: thinking vocabulary, reasoning rows, and traces baked into the champion."""

    NOTEBOOK = "30_quietstar_bake"

    vocabulary: Literal["forge-12", "forge-8", "startofthought"] = Field("forge-12", description="thinking tokens")
    reasoning_file: str = Field("", description='JSON lines of reasoning rows; "" makes procedural ones')
    rows: int = Field(7200, ge=20, le=1_000_000, description="reasoning rows trained on, over all strategies")
    difficulty: int = Field(1, ge=1, le=3, description="hardest problems of the procedural rows")
    watch_rows: int = Field(200, ge=10, le=100_000, description="validation rows that decide when training ends")
    gate_rows: int = Field(400, ge=10, le=100_000, description="further validation rows that the gate is measured on")
    epochs: int = Field(3, ge=1, le=10_000, description="times every row is seen, at most")
    batch_size: int = Field(8, ge=1, le=4096, description="rows in one optimizer step")
    muon_lr: float = Field(0.006, gt=0, le=1, description="learning rate of the hidden matrices, per step")
    adamw_lr: float = Field(0.003, gt=0, le=1, description="learning rate of embeddings, norms and biases, per step")
    direct_share: float = Field(0.12, ge=0, lt=1, description="share of rows trained without their thought")
    max_new_tokens: int = Field(96, ge=4, le=4096, description="tokens of thought and answer, at most")
    overall_threshold: float = Field(0.85, ge=0, le=1, description="share of right answers the gate asks for")
    strategy_threshold: float = Field(0.765, ge=0, le=1, description="the same in each strategy")
    checkpoint_every_seconds: float = Field(30.0, gt=0, le=86_400, description="seconds between checkpoints at most")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")


MODELS: dict[str, type[Parameters]] = {
    model.NOTEBOOK: model
    for model in (Environment, CognateData, CognateTrain, CognateDiversity, EvoMethods, EvoEvolve, QuietBake)
}
P = TypeVar("P", bound=Parameters)


def resolve(model: type[P], namespace: Mapping[str, Any]) -> P:
    """Read a notebook's knobs: `p = resolve(CognateTrain, globals())`.

    `namespace` holds plain scalars by name. In a notebook, the names that its parameters cell or papermill's cell
    assigns count, so that a loop variable of a later cell is no unknown knob; in a plain dict every public name
    counts. profile "" means $FORGE_PROFILE, else laptop.
    Raises ParameterError naming each wrong field, its value, what is allowed and, for an unknown name, the nearest one.
    """
    shipped, injected = _assigned_names(namespace["In"]) if "In" in namespace else (set(namespace), set())
    candidates = shipped | injected
    given = {name: namespace[name] for name in candidates if name in namespace and not name.startswith("_")}
    given["profile"] = _profile(given.get("profile", ""), model)
    asked = {
        name: value
        for name, value in given.items()
        if name in injected or name not in model.model_fields or not _same(value, model.model_fields[name].default)
    }
    return _validate(model, {**profile_values(model, given["profile"]), **asked, "profile": given["profile"]})


def profile_values(model: type[Parameters], profile: str) -> dict[str, Scalar]:
    """The values of params/<profile>/<notebook>.yaml; the file lists only what differs from the laptop."""
    path = params_dir() / profile / f"{model.NOTEBOOK}.yaml"
    if not path.is_file():
        raise ParameterError(
            f"{model.NOTEBOOK}: profile '{profile}' has no values for this notebook; {path} is missing"
        )
    values = yaml.safe_load(path.read_text()) or {}
    if not isinstance(values, dict):
        raise ParameterError(f"{path} must be a flat list of `name: value` lines")
    return values


def describe(model: type[Parameters], name: str) -> str:
    """One line for people: what the field takes, in which range, and its unit or meaning."""
    field = model.model_fields[name]
    return f"{_allowed(field)} ({field.description})"


def _assigned_names(cells: Iterable[str]) -> tuple[set[str], set[str]]:
    """Names assigned by the parameters cell (the one that sets `profile`) and by papermill's, in IPython's record."""
    shipped, injected = set(), set()
    for source in cells:
        with contextlib.suppress(SyntaxError):
            nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
            names = {target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)}
            if source.lstrip().split("\n", 1)[0].strip() == INJECTED:
                injected |= names
            elif "profile" in names:
                shipped |= names
    return shipped, injected


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default


def _profile(value: Any, model: type[Parameters]) -> str:
    where = "profile" if value else "profile (from FORGE_PROFILE)"
    value = value or default_profile()
    if value not in PROFILES:
        allowed = ", ".join(PROFILES)
        raise ParameterError(f"{model.NOTEBOOK}: {where} = {value!r}: must be one of {allowed}{_near(value, PROFILES)}")
    return value


def _validate(model: type[P], values: dict[str, Any]) -> P:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors()]
    raise ParameterError(f"{model.NOTEBOOK} cannot start:\n  " + "\n  ".join(lines))


def _explain(model: type[Parameters], problem: Mapping[str, Any]) -> str:
    name, value = str(problem["loc"][0]) if problem["loc"] else "", problem["input"]
    if problem["type"] == "extra_forbidden":
        known = [field for field in model.model_fields if field != "profile"]
        return f"{name} = {value!r}: there is no such parameter{_near(name, known)} (known: {', '.join(known)})"
    if name not in model.model_fields:
        return str(problem["msg"]).removeprefix("Value error, ")
    text = f"{name} = {value!r}: must be {describe(model, name)}"
    if isinstance(value, str) and _number(value) is not None and model.model_fields[name].annotation in (int, float):
        return f"{text}. This is text, not a number (YAML reads 1e-3 as text): write {_number(value)!r} without quotes"
    if problem["type"] == "literal_error" and isinstance(value, str):
        return text + _near(value, _choices(model.model_fields[name]))
    return text


def _number(text: str) -> int | float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) >= 1 else number


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return getattr(field.annotation, "__args__", ())


def _allowed(field: FieldInfo) -> str:
    if choices := _choices(field):
        return "one of " + ", ".join(map(str, choices))
    kind = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}[field.annotation]
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bounds = [f"{signs[s]} {_plain(getattr(m, s))}" for m in field.metadata for s in signs if hasattr(m, s)]
    return ", ".join([kind, " and ".join(bounds)]) if bounds else kind


def _plain(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    parts = [k for k in known if str(name) in k.split("_")] if not close else []
    return f"; did you mean '{(close or parts)[0]}'?" if close or parts else ""
