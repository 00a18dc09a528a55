"""What the API says: the shape of each answer, and the refusal that every error is.

The shapes are pydantic models, so that the answers and their description in openapi.json are one thing.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["running", "paused", "stopping", "stopped", "finished", "failed", "died"]


class Refused(Exception):
    """A request that is not done: `status` of HTTP, what is wrong, what to do, and facts for programs."""

    def __init__(self, status: int, error: str, advice: str, **facts: Any):
        super().__init__(error)
        self.status, self.facts = status, facts
        self.reply = {"error": error, "what to do": advice, **facts}


class Refusal(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(extra="allow")

    error: str = Field(description="what is wrong")
    what_to_do: str = Field(alias="what to do", description="what to do about it")
    fields: list[dict[str, Any]] = Field([], description="422: field, value and what is allowed, of each wrong field")
    job: str = Field("", description="409: the job that is in the way")


class Progress(BaseModel):
    """How far the loop of the notebook is that runs now or ran last."""

    label: str = Field(description="what is counted")
    done: int = Field(description="steps done")
    total: int = Field(description="steps in all")
    per_second: float = Field(description="steps a second")
    seconds_left: float | None = Field(description="seconds to the last step at this rate; null when it is done")


class Job(BaseModel):
    """One notebook step run as a process of its own."""

    id: str
    task: Literal["baking", "rl", "anti-theater"]
    notebook: str
    state: State = Field(
        description="paused: asked to pause, it waits after its current step; died: gone without a last word"
    )
    parameters: dict[str, Any] = Field(description="the parameters that were asked for")
    created: str = Field(description="time of the start, UTC")
    seconds: float = Field(description="seconds since the start, or in all")
    run: str | None = Field(description="folder below runs/ with journal and checkpoints; null until it is open")
    at: str = Field(description="what the notebook is at")
    progress: Progress | None = Field(description="null until a loop began")
    journal: dict[str, Any] | None = Field(description="last record of the run's journal")
    gates: list[dict[str, Any]] = Field(description="the gates published so far: name, passed, checks")
    artifacts: list[dict[str, Any]] = Field(description="the artifacts published: name, digest, path")
    error: str | None = Field(description="why it ended, in words for people")
    log: list[str] = Field(description="last lines of its log")


class Jobs(BaseModel):
    """All jobs of the run folder, the newest first; without their logs."""

    jobs: list[Job]


class Completed(BaseModel):
    """Phase 3 may be handed on: every gate of this very model is passed."""

    complete: Literal[True] = True
    model: dict[str, str] = Field(description="the reinforced model: digest and path")
    verdicts: list[dict[str, Any]] = Field(description="one row a gate")
    next: str = Field(description="the notebook that takes it up")


class Which(BaseModel):
    """Which job is meant."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str = Field("", description="a job's id or its run folder's name; \"\": the one that is running")


class WhichToStop(Which):
    """Which job is meant, and how it ends."""

    now: bool = Field(False, description="interrupt it; what came after its last checkpoint is done again next time")
