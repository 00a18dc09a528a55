"""The knobs of notebook 90. They lie apart from `workbook.knobs`: a page that shows runs is no part of their keys."""

from pydantic import Field

from forgelib.workbook.knobs import Parameters


class Dashboard(Parameters):
    """90_dashboard: what runs, what passed, what came from what, read from the disk as it is now."""

    NOTEBOOK = "90_dashboard"

    refresh_seconds: float = Field(2.0, ge=0.2, le=3600, description="seconds between two looks at the disk")
    runs_shown: int = Field(100, ge=1, le=100_000, description="runs in the table at most, the latest first")
    points: int = Field(300, ge=10, le=100_000, description="points drawn of a curve at most; its peaks are kept")


#: Models of the notebooks that show what is there and train nothing, beside `workbook.params.MODELS`.
PAGE_MODELS: dict[str, type[Parameters]] = {Dashboard.NOTEBOOK: Dashboard}
