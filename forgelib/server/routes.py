"""The table of routes: what can be asked, by whom it is answered, what it takes and what comes back.

The handlers and openapi.json are both made of this table. An answer is a function of plain values; it knows nothing of
HTTP but the status.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from forgelib.core.artifacts import ArtifactError, load_artifact
from forgelib.core.paths import runs_dir
from forgelib.core.registry import Registry
from forgelib.server import jobs
from forgelib.server.answers import Completed, Job, Jobs, Refused, Which, WhichToStop
from forgelib.server.tasks import COMMON, REINFORCED, TASKS, checked, refuse_missing, validated
from forgelib.workbook import handoff
from forgelib.workbook.params import MODELS, QuietRL

Answer = Callable[[str, Mapping[str, Any]], BaseModel]
BAKING, RL = ("baking",), ("rl", "anti-theater")
FACTS = (*COMMON, "vocabulary")
#: Which model of Step 2 is meant: the parameters of its notebook that its artifact is found by.
Handoff = create_model(
    "Handoff",
    __config__=ConfigDict(strict=True, extra="forbid"),
    __doc__="Which reinforced model is meant; what is left out is the profile's.",
    **{name: (QuietRL.model_fields[name].annotation, QuietRL.model_fields[name]) for name in FACTS},
)
CONFLICT, UNKNOWN = "it cannot be done as things are; the body says why", "there is no such job"


@dataclass(frozen=True)
class Route:
    """One operation. `path` begins after /forge/api; {id} in it is a job's id or its run folder's name. `answer` takes
    that id ("" without) and the body, and raises Refused. `page`: it is a page for people, not JSON."""

    method: str
    path: str
    summary: str
    answer: Answer | None
    reply: type[BaseModel] | None
    body: type[BaseModel] | None = None
    status: int = 200
    refusals: Mapping[int, str] = field(default_factory=dict)
    page: bool = False

    @property
    def name(self) -> str:
        """get_baking_status_id."""
        words = self.path.replace("{", "").replace("}", "").replace("-", "_").replace(".", "_").split("/")
        return "_".join([self.method.lower(), *filter(None, words)])


def _start(task: str) -> Answer:
    return lambda _, body: jobs.status(jobs.start(TASKS[task], dict(body)))


def _status(tasks: tuple[str, ...]) -> Answer:
    return lambda job, _: jobs.status(jobs.find(tasks, job))


def _ask(tasks: tuple[str, ...], wish: Callable[..., dict], body_model: type[Which] = Which) -> Answer:
    """Pause, resume or stop the job that the body names."""

    def answer(_: str, body: Mapping[str, Any]) -> Job:
        asked = validated(body_model, body).model_dump()
        return jobs.status(wish(jobs.find(tasks, asked.pop("id")), **asked))

    return answer


def _list(_: str, body: Mapping[str, Any]) -> Jobs:
    return Jobs(jobs=[jobs.status(record, brief=True) for record in jobs.settle_all()])


def complete(_: str, body: Mapping[str, Any]) -> Completed:
    """The handoff from Phase 3 to Phase 4: the gates of the reinforced model, all of them green, or Refused (409)."""
    validated(Handoff, {name: value for name, value in body.items() if name not in FACTS})
    p = checked(QuietRL.NOTEBOOK, body)
    refuse_missing((REINFORCED,), p)
    found = Registry(runs_dir()).find(name=REINFORCED.artifact, tags={name: getattr(p, name) for name in FACTS})
    try:
        trained = load_artifact(found[0]["path"])
        verdicts = handoff.earlier_verdicts(trained)
    except ArtifactError as error:
        raise Refused(409, str(error), "run the notebook that makes it again") from None
    rows = handoff.verdict_rows(verdicts)
    model = {"digest": trained.digest, "path": str(trained.path)}
    red = [row for row in rows if row["verdict"] != "passed"]
    if red:
        failed = [
            {"gate": verdict["gate"], **check}
            for verdict in verdicts
            for check in verdict["checks"]
            if check["verdict"] != "passed"
        ]
        raise Refused(
            409,
            "Phase 3 is not complete: " + "; ".join(f"{row['gate']}: {row['not passed']}" for row in red),
            "look at the checks that are not passed; the reports say what to try",
            model=model,
            verdicts=rows,
            failed=failed,
        )
    return Completed(model=model, verdicts=rows, next="40_bitnet_quantize")


def _steering(area: str, tasks: tuple[str, ...], title: str) -> tuple[Route, ...]:
    """Start, status, pause, resume and stop of one step."""
    newest, ending = "The job that runs, else the newest", "Write a checkpoint and end after the current step"
    status, known = _status(tasks), {404: UNKNOWN}
    asking = {404: UNKNOWN, 409: CONFLICT, 422: "a field is wrong"}
    asked = {"reply": Job, "refusals": asking}
    return (
        _starting(f"/{area}/start", tasks[0], f"Start {title}"),
        Route("GET", f"/{area}/status", newest, status, Job, refusals=known),
        Route("GET", f"/{area}/status/{{id}}", "One job", status, Job, refusals=known),
        Route("POST", f"/{area}/pause", "Wait after the current step", _ask(tasks, jobs.pause), body=Which, **asked),
        Route("POST", f"/{area}/resume", "Wake a paused job", _ask(tasks, jobs.resume), body=Which, **asked),
        Route("POST", f"/{area}/stop", ending, _ask(tasks, jobs.stop, WhichToStop), body=WhichToStop, **asked),
    )


def _starting(path: str, task: str, summary: str) -> Route:
    refusals = {
        409: "it is running already, or an input is missing: the body names the notebook that makes it",
        422: "a parameter is wrong: field, value and what is allowed",
    }
    notebook = TASKS[task].notebook
    words = f"{summary}: notebook {notebook} as a job of its own"
    return Route("POST", path, words, _start(task), Job, MODELS[notebook], 202, refusals)


ROUTES: tuple[Route, ...] = (
    *_steering("baking", BAKING, "Step 1, baking"),
    *_steering("rl", RL, "Step 2, reinforcement"),
    _starting("/rl/anti-theater", "anti-theater", "Put the thoughts of the reinforced model on trial"),
    Route(
        "POST",
        "/rl/complete",
        "Check the handoff to Phase 4: every gate of this very model",
        complete,
        Completed,
        Handoff,
        200,
        {409: "a gate is red or was not run: the body holds the failed checks", 422: "a parameter is wrong"},
    ),
    Route("GET", "/jobs", "All jobs, the newest first", _list, Jobs),
    Route("GET", "/openapi.json", "This description", None, None),
    Route("GET", "/docs", "This description, for people", None, None, page=True),
)
