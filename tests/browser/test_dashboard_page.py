"""`forge dashboard` in a real browser: opens with its token alone, follows a running job, and asks nobody else."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import psutil
import pytest
from planted_runs import chain, losses, many, plant

from forgelib.core.loop import Control
from forgelib.workbook.dashboard_page import FILL_SECONDS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from forgelib.cli import main; main()", "dashboard", "--port"]
PATIENCE = 120_000  # milliseconds: a kernel on a busy machine
#: Where Voila, left as it is, tells whoever asks how the page of a kernel was opened: token and all.
KERNEL, QUERY = "api/kernels/1-1-1-1-1", "voila/query/1-1-1-1-1"
#: What a page must show before somebody can work with it: runs, curves, lineage, buttons, sliders.
USABLE = (
    ".widget-html table.runs",
    ".widget-html svg.chart",
    ".widget-html svg.graph",
    "button:has-text('pause')",
    ".widget-slider .noUi-handle",
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A hundred runs with long journals, and those of a small workbook, one unfinished; the folder that they lie in."""
    runs = tmp_path_factory.mktemp("dashboard") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGE_RUNS", str(runs))
        many(95)
        yield SimpleNamespace(folder=runs, **chain(episodes=40))


@pytest.fixture(scope="module")
def served(planted, tmp_path_factory):
    """`forge dashboard` over the planted runs: its process, its address, what it said. A spare kernel stands ready."""
    log = tmp_path_factory.mktemp("server") / "stderr"
    environment = {**os.environ, "FORGE_RUNS": str(planted.folder), "FORGE_PROFILE": "smoke", "PYTHONPATH": str(ROOT)}
    with log.open("w") as errors:
        server = subprocess.Popen(
            [*COMMAND, "0"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    said = server.stdout.readline()
    assert "http://127.0.0.1:" in said, f"{said}{log.read_text()}"
    address = said.split()[-1]
    token = address.partition("token=")[2]
    yield SimpleNamespace(process=server, address=address, token=token, root=address.partition("?")[0], log=log)
    server.terminate()
    server.wait(timeout=60)


@pytest.fixture(scope="module")
def opened(served, browser):
    """The page in Chromium, with everything that it asked for; whatever leaves loopback is stopped and kept."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    asked, foreign, complaints = [], [], []

    def watch_over(route):
        host = urlsplit(route.request.url).hostname
        (asked if host == "127.0.0.1" else foreign).append(route.request.url)
        route.continue_() if host == "127.0.0.1" else route.abort()

    page.route("**/*", watch_over)
    page.on("websocket", lambda socket: (asked if "//127.0.0.1:" in socket.url else foreign).append(socket.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(served.address, timeout=PATIENCE)
    page.wait_for_selector("text=Step 2 · reinforcement", timeout=PATIENCE)
    return SimpleNamespace(page=page, asked=asked, foreign=foreign, complaints=complaints)


def worked(server: int) -> dict[int, float]:
    """Processor time in seconds, up to now, of the server, its kernels and the browser of this test."""
    browsers = [one for one in psutil.Process().children(recursive=True) if "chrom" in one.name()]
    of_page = [psutil.Process(server), *psutil.Process(server).children(recursive=True), *browsers]
    found = {}
    for process in of_page:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = sum(process.cpu_times()[:2])
    return found


def status(address: str) -> tuple[int, str]:
    """Status of a request without a cookie, and what came."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    "path", ["", "?token=", "?token=wrong", "login", "login?next=%2F", "api/kernels/1-1-1-1-1", QUERY]
)
def test_without_the_token_everything_is_refused(served, path):
    code, body = status(served.root + path)
    assert code == 403 and served.token not in body and "quietstar" not in body
    assert "//" not in re.sub(r"<!doctype.*?>", "", body), "the refusal fetches nothing either"


def test_no_file_of_the_machine_is_given_out(served):
    for path in ("voila/files/90_dashboard.ipynb", "voila/files/../docs/report.png", "voila/files/x.png"):
        assert status(f"{served.root}{path}?token={served.token}")[0] in (403, 404)


def test_the_page_opens_with_the_token_and_shows_every_panel(opened):
    text = opened.page.inner_text("body")
    for words in ("Runs", "Start, pause, resume, stop", "Curves", "Step 1 · baking", "Are the thoughts real?", "Gates"):
        assert words in text, words
    for words in ("Lineage", "Compare two runs", "Disk, memory, checkpoints", "640 of 5,000 episodes"):
        assert words in text, words
    live = opened.page.locator(".widget-html")
    assert live.locator("svg.graph").count() == 1 and live.locator("svg.chart").count() >= 4
    assert "import" not in text and "ExecutionError" not in text, "no code, no error"


def test_a_hundred_runs_open_within_three_seconds_and_are_those_of_now(opened, served, planted, monkeypatch):
    """From the request until the page can be used. The kernel behind the page ran its cells before the last run began.

    What other work on the machine adds is not the page's: of three openings the quickest counts, by the clock or in
    processor time of server, kernels and browser together, whichever is less. Measured: 1.7 to 2.4 s by the clock and
    2.1 to 2.3 s of the processor at loads of 1 to 2 on two cores; 3.1 to 3.6 s of it where another process shares the
    core itself.
    """
    monkeypatch.setenv("FORGE_RUNS", str(planted.folder))
    took = []
    for epochs in (77, 78, 79):
        settle(served.process.pid)
        plant("30_quietstar_bake", losses(3), {"epochs": epochs})
        page = opened.page.context.browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        took += opening(page, served)
        page.wait_for_selector(f".widget-html table.runs >> text=0% · 0.03 of {epochs} epochs", timeout=PATIENCE)
        assert page.locator(".widget-html table.runs tbody tr").count() >= 100
        page.close(run_before_unload=True)
        if min(took) < 3.0:
            break
    assert min(took) < 3.0, took


def opening(page, served) -> tuple[float, float]:
    """Seconds by the clock, and of the processor, that a page takes until it can be used. The next spare kernel, which
    starts meanwhile where the machine is busy, is not of this page."""
    soon: dict[int, float] = {}
    looked = threading.Timer(FILL_SECONDS / 2, lambda: soon.update(worked(served.process.pid)))
    before, began = worked(served.process.pid), time.monotonic()
    looked.start()
    page.goto(served.address, timeout=PATIENCE)
    for what in USABLE:
        page.wait_for_selector(what, timeout=PATIENCE)
    seconds, after = time.monotonic() - began, worked(served.process.pid)
    looked.join()
    spare = {one.pid for one in psutil.Process(served.process.pid).children(recursive=True)} - set(soon)
    cost = sum(after[pid] - before.get(pid, 0.0) for pid in set(after) - spare)
    print(f"usable after {seconds:.2f} s, {cost:.2f} s of the processor; load {os.getloadavg()[0]:.1f}")
    return seconds, cost


def settle(server: int) -> None:
    """Wait until the next spare kernel stands ready: until little is done for two seconds."""
    for _ in range(60):
        before = worked(server)
        time.sleep(2)
        after = worked(server)
        if sum(after[pid] - before.get(pid, 0.0) for pid in after) < 0.3:
            return
    raise AssertionError("the page never comes to rest")


def test_a_slider_changes_the_verdict(opened):
    page = opened.page
    page.wait_for_selector("text=causal use", timeout=PATIENCE)
    slider = page.locator(".widget-slider", has_text="correlation")
    slider.wait_for(timeout=PATIENCE)
    live = page.locator(".widget-html", has_text="must exceed").locator("b").first
    assert live.inner_text() == "passed"
    slider.locator(".noUi-handle").focus()
    for _ in range(11):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.widget-html')].some("
        "e => e.innerText.includes('must exceed 0.61') && e.querySelector('b').innerText === 'failed')",
        timeout=PATIENCE,
    )


def test_the_curve_of_a_running_job_grows(opened, planted):
    page = opened.page
    curve = ".widget-html figure[data-metric=avg_reward_100] svg[data-records='{}']"
    page.wait_for_selector(curve.format(40), timeout=PATIENCE)
    for n in range(40, 43):
        planted.rl.tracker.log({"step": n, "episode": 16 * (n + 1), "avg_reward_100": 0.5})
    with planted.rl.tracker.path.open("ab") as journal:
        journal.write(b'{"step": 43, "rl/avg_')
    page.wait_for_selector(curve.format(43), timeout=PATIENCE)
    page.wait_for_selector("text=688 of 5,000 episodes", timeout=PATIENCE)


def test_a_button_pauses_the_run_and_wakes_it(opened, planted):
    page, control, paused = opened.page, Control(planted.rl.dir), ".widget-html .state.paused"
    page.get_by_role("button", name="pause", exact=True).click()
    page.wait_for_selector(paused, timeout=PATIENCE)
    assert control.read() == "pause"
    page.get_by_role("button", name="resume", exact=True).click()
    page.wait_for_function(f"() => !document.querySelector('{paused}')", timeout=PATIENCE)
    assert control.read() == "run"


def test_nothing_was_asked_of_anybody_else(opened):
    assert opened.foreign == [] and len(opened.asked) > 10
    assert any(url.startswith("ws://127.0.0.1:") for url in opened.asked)
    refused = [text for text in opened.complaints if "Content Security Policy" in text]
    assert refused == [], "nor would it have been, without the policy"


def test_a_closed_page_ends_its_kernel_and_the_server_leaves_nothing_behind(opened, served):
    server = psutil.Process(served.process.pid)
    settle(served.process.pid)
    kernels = server.children(recursive=True)
    assert len(kernels) == 2, "that of the page, and the spare one"
    assert not any(served.token in " ".join(one.environ().values()) for one in kernels), "the token stays in the server"
    opened.page.unroute_all()
    opened.page.close(run_before_unload=True)
    for _ in range(600):
        gone, alive = psutil.wait_procs(kernels, timeout=0.1)
        if gone:
            break
    assert (len(gone), len(alive)) == (1, 1)
    said = served.log.read_text()
    assert served.token not in said, "no secret in a log"


def test_a_port_that_is_taken_is_said_in_a_sentence(served):
    port = str(urlsplit(served.address).port)
    done = subprocess.run([*COMMAND, port], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith(f"forge: port {port} of this machine cannot be taken")


def test_ctrl_c_ends_the_server_and_its_kernels_without_a_word(planted):
    mark = {"MARK_OF_THIS_TEST": str(planted.folder)}
    server = subprocess.Popen(
        [*COMMAND, "0"],
        cwd=ROOT,
        env={**os.environ, "FORGE_RUNS": str(planted.folder), "PYTHONPATH": str(ROOT), **mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore Ctrl-C
    )
    address = server.stdout.readline().split()[-1]
    assert status(address)[0] == 200
    assert len(marked(mark)) > 1, "the server, the page's kernel, perhaps the next spare one on its way"
    server.send_signal(signal.SIGINT)
    said = server.communicate(timeout=60)
    assert server.returncode == 0 and said == ("", "")
    assert psutil.wait_procs(marked(mark), timeout=30)[1] == []


def marked(mark: dict[str, str]) -> list[psutil.Process]:
    """The processes that were started with this in their environment, or by one that was."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if mark.items() <= process.environ().items():
                found.append(process)
    return found
