"""The command `forge`: run the workbook, look at its runs, pause and stop them, write the reports again."""

import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from forgelib.core.paths import pin_folders, reports_dir, runs_dir
from forgelib.core.tracking import JOURNAL
from forgelib.workbook.console import ended_early, say
from forgelib.workbook.params import ParameterError
from forgelib.workbook.progress import duration

HELP = "The Agent Forge workbook: run its notebooks, look at its runs, pause and stop them."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)

Profile = Annotated[str, typer.Option(help="smoke, laptop, gpu6gb or full; default: $FORGE_PROFILE, else laptop")]
Seed = Annotated[int | None, typer.Option(help="root of every random stream; default: the profile's")]
Data = Annotated[str | None, typer.Option(help="auto, real or procedural; default: the profile's")]
Wandb = Annotated[str | None, typer.Option(help="offline, online or disabled; default: the profile's")]
Reports = Annotated[Path | None, typer.Option(help="folder of the reports; default: reports/")]
Only = Annotated[str, typer.Option(help="only the steps whose name begins so, e.g. 11 or 11_cognate_train-memory")]
Asking = typer.Option(help='answered before and after: a dataset of notebook 10; "" for none')
#: How to go on after what ended early.
RESUMED = "the same command with --resume goes on from the last checkpoint"
AGAIN = "the same command goes on where it was"
Run = Annotated[str, typer.Argument(help="a run's folder, or enough of its name to be the only one (see: forge runs)")]


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"forge {metadata.version('forgelib')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="tell the version")
    ] = False,
) -> None:
    """Options of `forge` itself."""
    pin_folders()


@app.command()
def run(
    profile: Profile = "",
    only: Only = "",
    data: Data = None,
    seed: Seed = None,
    reports: Reports = None,
    wandb: Wandb = None,
) -> None:
    """Run the notebooks in order; what is finished and unchanged is reused."""
    from forgelib.workbook.runner import RunFailed, run_plan

    try:
        run_plan(_asked(profile, seed, data) | ({"wandb_mode": wandb} if wandb else {}), only, reports)
    except RunFailed as failure:
        typer.echo(f"forge: {failure}", err=True)
        raise typer.Exit(1) from None


@app.command()
def report(profile: Profile = "", data: Data = None, seed: Seed = None, reports: Reports = None) -> None:
    """Write the reports again from the notebooks as they were last executed."""
    from forgelib.workbook.runner import executed_dir, write_reports

    asked = _asked(profile, seed, data)
    folder = executed_dir(asked)
    if not folder.is_dir():
        raise ParameterError(f"nothing was run yet with these options ({folder} is not there); start with: forge run")
    for path in write_reports(asked, reports or reports_dir()):
        typer.echo(path)


@app.command()
def evo(
    base_models: Annotated[str, typer.Option(help="folders of at least two models of one architecture: A,B,C")],
    out: Annotated[
        Path, typer.Option(help="folder of the champion, the ledger and the journal; continued if it is there")
    ],
    trunk: Annotated[Path | None, typer.Option(help="the model that they were fine-tuned from")] = None,
    gens: Annotated[int, typer.Option(min=1, help="generations at most")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="root of every random stream")] = 0,
    data: Annotated[str, typer.Option(help="auto, real or procedural rows to measure on")] = "auto",
    strategy: Annotated[str, typer.Option(help="evolution or cmaes")] = "evolution",
    workers: Annotated[int, typer.Option(min=0, help="processes that measure; 0 takes one a core")] = 0,
    ray: Annotated[bool, typer.Option("--ray", help="measure on a Ray cluster, or start a local one")] = False,
) -> None:
    """Evolve a champion out of any local Hugging Face models of one architecture."""
    from forgelib.core.gates import GateFailed
    from forgelib.data import DataError
    from forgelib.merge import MergeRefused
    from forgelib.workbook.evo import Asked, run_evo
    from forgelib.workbook.phase2 import STRATEGIES

    for name, value, allowed in (("data", data, ("auto", "real", "procedural")), ("strategy", strategy, STRATEGIES)):
        if value not in allowed:
            raise ParameterError(f"--{name} {value}: must be one of {', '.join(allowed)}")
    models = tuple(Path(folder.strip()) for folder in base_models.split(",") if folder.strip())
    asked = Asked(models, out, trunk, gens, seed, workers, ray, strategy, data)
    try:
        with ended_early(AGAIN):
            typer.echo(f"champion  {run_evo(asked, say)}")
    except (MergeRefused, DataError, GateFailed) as error:
        raise ParameterError(str(error)) from None


@app.command()
def rows(
    out: Annotated[Path, typer.Option(help="folder of rows.jsonl; openrouter and local go on where it ends")],
    maker: Annotated[str, typer.Option(help="procedural, openrouter, local or dataset (gsm8k)")] = "procedural",
    n: Annotated[int, typer.Option("--rows", min=1, help="rows in all")] = 5000,
    vocabulary: Annotated[str, typer.Option(help="forge-12, forge-8 or startofthought")] = "forge-12",
    difficulty: Annotated[int, typer.Option(min=1, max=3, help="hardest of the procedural problems")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="root of every random stream")] = 0,
    model: Annotated[Path | None, typer.Option(help="folder of the model that writes, for --maker local")] = None,
    cost_limit: Annotated[float, typer.Option(help="dollars that --maker openrouter may spend in all")] = 200.0,
) -> None:
    """Make reasoning rows: checked ones, or written by large models (key: OPENROUTER_API_KEY) or by a local one."""
    from forgelib.data import DataError
    from forgelib.workbook.row_making import Asked, make_rows

    try:
        with ended_early(AGAIN):
            typer.echo(f"rows  {make_rows(Asked(out, maker, n, vocabulary, difficulty, seed, model, cost_limit), say)}")
    except (DataError, ValueError) as error:
        raise ParameterError(str(error)) from None


@app.command("bake-quietstar")
def bake_quietstar(
    model: Annotated[Path, typer.Option(help="a local Hugging Face folder, or a GGUF file")],
    out: Annotated[Path, typer.Option(help="folder of the baked model, the journal and the report")],
    eval_dataset: Annotated[str, Asking] = "gsm8k",
    eval_samples: Annotated[int, typer.Option(min=1, help="its questions")] = 100,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1")] = "cpu",
    config: Annotated[Path | None, typer.Option(help="a flat YAML file of 30_quietstar_bake's parameters")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on in a folder that is there")] = False,
    ab_samples: Annotated[int, typer.Option(help="problems of a round of the A/B test; 0 leaves it out")] = 100,
    ab_rounds: Annotated[int, typer.Option(help="its rounds, 3 or more, each with its own problems")] = 3,
    ab_thoughts: Annotated[int, typer.Option(help="thoughts sampled of each problem, 2 or more")] = 4,
    ab_improvement: Annotated[float, typer.Option(help="share that the effect must exceed for a winner")] = 0.02,
) -> None:
    """Bake reasoning traces into any local Hugging Face model.

    After the bake an A/B test answers problems with a thought and without: against the same model answering at once,
    and against the model as it came. The problems are of the eval dataset, or held-out reasoning rows where that is "".
    It is found in report.json under "A/B test".
    """
    from forgelib.data import DataError
    from forgelib.workbook import quietstar

    ab = (ab_samples, ab_rounds, ab_thoughts, ab_improvement)
    asked = quietstar.Asked(model, out, eval_dataset, eval_samples, device, config, resume, *ab)
    try:
        with ended_early(RESUMED):
            typer.echo(f"baked  {quietstar.bake_quietstar(asked, say)}")
    except (DataError, ValueError) as error:
        raise ParameterError(str(error)) from None


@app.command()
def quantize(
    model: Annotated[Path, typer.Option(help="a local Hugging Face folder, or a GGUF file")],
    out: Annotated[Path, typer.Option(help="folder of the exports, the journal and the report")],
    eval_dataset: Annotated[str, Asking] = "",
    eval_samples: Annotated[int, typer.Option(min=1, help="its questions")] = 100,
    steps: Annotated[
        int | None, typer.Option(min=0, help="steps of fine-tuning, rounded up to whole epochs; 0: none")
    ] = None,
    export: Annotated[str, typer.Option(help="of packed, bitnet, gguf (TQ2_0), tq1_0, joined by commas")] = "packed",
    config: Annotated[Path | None, typer.Option(help="a flat YAML file of settings, e.g. muon_lr: 0.006")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on in a folder that is there")] = False,
) -> None:
    """Make the weights of any local model ternary, fine-tune where quality drops by more than 5%, write the exports."""
    from forgelib.workbook.quantize import Asked, run_quantize

    exports = tuple(name.strip() for name in export.split(",") if name.strip())
    asked = Asked(model, out, eval_dataset, eval_samples, steps, exports, config, resume)
    with ended_early(RESUMED):
        typer.echo(f"ternary  {run_quantize(asked, say)}")


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65535, help="of this machine only; 0 takes a free one")] = 8866,
) -> None:
    """Show every run, gate and curve as a live web page; its address holds the token that opens it. Ctrl-C ends it."""
    from forgelib.workbook.dashboard_page import PortTaken, serve

    try:
        serve(port, lambda address: typer.echo(f"dashboard  {address}"))
    except PortTaken as error:
        raise ParameterError(str(error)) from None


@app.command()
def runs() -> None:
    """List the run folders, the latest first: last step, age of its journal, name."""
    if not _run_folders():
        typer.echo(f"no run yet below {runs_dir()}; start with: forge run", err=True)
    for folder in sorted(_run_folders(), key=_last_sign, reverse=True):
        typer.echo(f"{_last_step(folder):>9}  {duration(time.time() - _last_sign(folder)):>9} ago  {folder.name}")


@app.command()
def artifacts(name: Annotated[str, typer.Option(help="only artifacts of this name")] = "") -> None:
    """List the published artifacts, newest first: digest, name, folder."""
    found = _registry().find(name=name or None)
    if not found:
        typer.echo(f"no artifact {name or 'yet'} below {runs_dir()}; they are made by: forge run", err=True)
    for row in found:
        typer.echo(f"{row['digest'][:12]}  {row['manifest']['name']}  {row['path']}")


@app.command()
def lineage(digest: Annotated[str, typer.Argument(help="the first characters of an artifact's digest")]) -> None:
    """Show an artifact and everything it was made from."""
    registry = _registry()
    found = [row["digest"] for row in registry.find() if row["digest"].startswith(digest)]
    if len(found) != 1:
        raise ParameterError(f"{len(found)} artifacts have a digest that begins with {digest!r}; see: forge artifacts")
    for ancestor in registry.lineage(found[0]):
        made_by = f"{ancestor['name']}  ({ancestor['step']})" if ancestor["name"] else "no longer here"
        typer.echo(f"{'  ' * ancestor['depth']}{ancestor['digest'][:12]}  {made_by}")


@app.command()
def pause(run: Run) -> None:
    """Let a run stop after its current step and wait; `forge resume` wakes it."""
    _request(run, "pause")


@app.command()
def resume(run: Run) -> None:
    """Wake a paused run."""
    _request(run, "resume")


@app.command()
def stop(run: Run) -> None:
    """Let a run write a checkpoint and end after its current step; `forge run` continues it later."""
    _request(run, "stop")


@app.command()
def serve(
    ip: Annotated[str, typer.Option(help="address to listen at; the default is reached from this machine only")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="default: 8888, or the next free one")] = None,
) -> None:
    """Serve the control API of Phase 3 from a Jupyter server; prints its address with the token (or $JUPYTER_TOKEN)."""
    from forgelib.server.launch import serve as run_server

    run_server(ip, port, typer.echo)


def _request(name: str, wish: str) -> None:
    from forgelib.core.loop import Control

    folder = _one_run(name)
    Control(folder).request(wish)
    typer.echo(f"{wish} asked of {folder.name}; it looks once a step")


def _one_run(name: str) -> Path:
    """The run folder that `name` is, or the only one whose name contains it."""
    given = Path(name).resolve()
    if (given / "run.json").is_file() or given in [folder.resolve() for folder in _run_folders()]:
        return given
    found = [folder for folder in _run_folders() if name in folder.name]
    if len(found) == 1:
        return found[0]
    known = [folder.name for folder in found or _run_folders()]
    problem = "is no run" if not found else "fits several runs"
    raise ParameterError(f"{name!r} {problem}; there are: {', '.join(sorted(known)) or 'none yet'}")


def _run_folders() -> list[Path]:
    return [folder for folder in (runs_dir() / "runs").glob("*") if folder.is_dir()]


def _last_sign(folder: Path) -> float:
    journal = folder / JOURNAL
    return (journal if journal.is_file() else folder).stat().st_mtime


def _last_step(folder: Path) -> str:
    """Step of the journal's last whole record; a line torn by a kill does not count."""
    from forgelib.workbook.dashboard_journal import last_record

    record = last_record(folder / JOURNAL)
    return f"step {record['step']}" if record else "no step"


def _asked(profile: str, seed: int | None, data: str | None) -> dict[str, Any]:
    given = {"profile": profile or None, "seed": seed, "data": data}
    return {name: value for name, value in given.items() if value is not None}


def _registry() -> Any:
    from forgelib.core.registry import Registry

    return Registry(runs_dir())


def main() -> None:
    """Entry point: an error meant for people is one sentence and exit code 2, not a stack."""
    try:
        app()
    except ParameterError as error:
        typer.echo(f"forge: {error}", err=True)
        raise SystemExit(2) from None
