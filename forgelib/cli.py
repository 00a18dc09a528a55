"""The command `forge`: run the workbook, look at its runs, pause and stop them, write the reports again."""

from pathlib import Path
from typing import Annotated

import typer

from forgelib.workbook.params import ParameterError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Profile = Annotated[str, typer.Option(help="smoke, laptop, gpu6gb or full; default: $FORGE_PROFILE, else laptop")]
Seed = Annotated[int | None, typer.Option(help="root of every random stream; default: the profile's")]
Data = Annotated[str | None, typer.Option(help="auto, real or procedural; default: the profile's")]
Reports = Annotated[Path | None, typer.Option(help="folder of the reports; default: reports/")]


@app.command()
def run(
    profile: Profile = "",
    only: Annotated[str, typer.Option(help="only the steps whose name begins so, e.g. 11 or 11_cognate_train")] = "",
    data: Data = None,
    seed: Seed = None,
    reports: Reports = None,
) -> None:
    """Run the notebooks in order; what is finished and unchanged is reused."""
    from forgelib.workbook.runner import RunFailed, run_plan

    try:
        run_plan(_asked(profile, seed, data), only, reports)
    except RunFailed as failure:
        typer.echo(f"forge: {failure}", err=True)
        raise typer.Exit(1) from None


@app.command()
def report(profile: Profile = "", data: Data = None, seed: Seed = None, reports: Reports = None) -> None:
    """Write the reports again from the notebooks as they were last executed."""
    from forgelib.core.paths import reports_dir
    from forgelib.workbook.plan import PLAN
    from forgelib.workbook.runner import executed_dir, write_reports

    folder = executed_dir(PLAN[0], _asked(profile, seed, data))
    if not folder.is_dir():
        raise ParameterError(f"nothing was run yet in {folder}; start with: forge run")
    for path in write_reports(folder, reports or reports_dir()):
        typer.echo(path)


@app.command()
def runs(name: Annotated[str, typer.Option(help="only artifacts of this name")] = "") -> None:
    """List the published artifacts, newest first."""
    for artifact in _registry().find(name=name or None):
        typer.echo(f"{artifact.digest[:12]}  {artifact.path}")


def _asked(profile: str, seed: int | None, data: str | None) -> dict[str, object]:
    given = {"profile": profile or None, "seed": seed, "data": data}
    return {name: value for name, value in given.items() if value is not None}


def _registry():
    from forgelib.core.paths import runs_dir
    from forgelib.core.registry import Registry

    return Registry(runs_dir() / "registry.sqlite")


def main() -> None:
    """Entry point: an error meant for people is one sentence and exit code 2, not a stack."""
    try:
        app()
    except ParameterError as error:
        typer.echo(f"forge: {error}", err=True)
        raise SystemExit(2) from None
