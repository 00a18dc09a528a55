"""The API refuses in plain words and with the right status, before anything is started."""

import json

import pytest
from jsonschema import ValidationError
from serving import TAGS, TOKEN, Server, build_house, plant, refuse_undescribed

from forgelib.server.routes import ROUTES

SECRET = "sk-or-this-must-not-be-written-down"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    serving = Server(build_house(folder / "house"), folder / "runs", OPENROUTER_API_KEY=SECRET)
    yield serving
    serving.kill()


@pytest.fixture(scope="module")
def runs(server):
    return server.said.parent / "runs"


def address(route) -> str:
    return route.path.removeprefix("/").replace("{id}", "20260101-000000-abcdef")


@pytest.mark.parametrize("token", [None, "wrong", TOKEN[:-1]])
def test_nothing_is_answered_without_the_token(server, token):
    for route in ROUTES:
        status, said = server.ask(route.method, address(route), {} if route.method == "POST" else None, token=token)
        assert status == 403, route
        assert set(said) == {"error", "what to do"} and "token" in said["error"]


def test_every_route_is_there_and_takes_no_other_method(server):
    for route in ROUTES:
        other = {"GET": "POST", "POST": "GET"}[route.method]
        status, said = server.ask(other, address(route), {} if other == "POST" else None)
        assert status == 405 and route.method in said["what to do"], route
    assert server.ask("GET", "nothing/here")[0] == 404
    assert server.ask("PUT", "jobs", {})[0] == 405


def test_every_route_answers_what_the_description_says(server):
    """`ask` compares each answer with openapi.json; here every route is asked, rightly and wrongly."""
    seen = {}
    for route in ROUTES:
        bodies = (None, {}, {"profile": "smoke"}, {"x": 1}, {"id": "nobody"}, b"{", b" " * 100_000)
        for body in bodies if route.method == "POST" else (None,):
            status, _ = server.ask(route.method, address(route), body)
            seen.setdefault(route.name, set()).add(status)
        seen[route.name].add(server.ask(route.method, address(route), None, token="wrong")[0])
    for name, statuses in seen.items():
        assert 403 in statuses and statuses <= {200, 403} | {400, 404, 409, 413, 422}, name
        assert not name.startswith("post") or {400, 413, 422} < statuses, name
    assert all({403, 200} == seen[name] for name in ("get_jobs", "get_openapi_json", "get_docs"))
    assert 409 in seen["post_baking_start"] and 404 in seen["post_rl_stop"] and 404 in seen["get_rl_status_id"]


def test_an_answer_that_is_not_described_is_seen():
    refuse_undescribed("GET", "jobs", 200, {"jobs": []})
    for status, said in ((200, {"jobs": [{}]}), (418, {}), (403, {"error": "without advice"})):
        with pytest.raises((AssertionError, ValidationError)):
            refuse_undescribed("GET", "jobs", status, said)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{not json", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b'{"seed": NaN}', 400, "NaN"),
        (b"[" * 50_000, 400, "not JSON"),
        ([1, 2], 400, "not an object"),
        ("text", 400, "not an object"),
        (b" " * 100_000, 413, "100,000 bytes"),
    ],
)
def test_a_body_that_is_no_small_object_is_refused(server, body, status, words):
    for path in ("baking/start", "rl/stop", "rl/complete"):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        found, said = server.ask("POST", path, raw)
        assert found == status and words in said["error"] and said["what to do"]


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"rows": 1}, "rows", "at least 20"),
        ({"rows": "many"}, "rows", "a whole number"),
        ({"rows": None}, "rows", "a whole number"),
        ({"muon_lr": 1e999}, "muon_lr", "at most 1"),
        ({"epochz": 2}, "epochz", "did you mean 'epochs'"),
        ({"profile": "huge"}, "profile", "smoke, laptop, gpu6gb, full"),
        ({"seed": True}, "seed", "a whole number"),
    ],
)
def test_a_wrong_parameter_names_field_value_and_range(server, body, field, words):
    raw = json.dumps(body).replace("Infinity", "1e999").encode()
    status, said = server.ask("POST", "baking/start", raw)
    assert status == 422 and field in said["error"] and words in said["error"]
    (wrong,) = said["fields"]
    assert wrong["field"] == field and wrong["allowed"]
    assert wrong["value"] == ("Infinity" if "1e999" in raw.decode() else body[field])


@pytest.mark.parametrize("name", ["", "_rows", "a b", "x; import os", "lambda", "rows\n"])
def test_a_name_that_is_none_does_not_hide_the_others(server, name):
    """Such a name would end papermill's cell in a syntax error, and every other wish with it."""
    status, said = server.ask("POST", "baking/start", {name: 1, "profile": "smoke"})
    assert status == 422 and "no name of a parameter" in said["error"]


def test_fields_that_only_together_are_wrong_are_named(server):
    status, said = server.ask("POST", "rl/anti-theater", {"samples": 50, "thought_problems": 20, "problems": 30})
    assert status == 422 and "samples <= thought_problems <= problems" in said["error"]


@pytest.mark.parametrize("name", ["openrouter_api_key", "token", "HF_TOKEN", "client_secret", "password"])
def test_keys_are_refused_as_parameters_and_not_repeated(server, name):
    status, said = server.ask("POST", "baking/start", {name: "s3cr3t-value"})
    assert status == 422 and "environment only" in said["what to do"] and "s3cr3t" not in json.dumps(said)


def test_a_secret_of_the_environment_is_refused_wherever_it_stands(server):
    status, said = server.ask("POST", "baking/start", {"reasoning_file": f"rows-{SECRET}.jsonl"})
    assert status == 422 and SECRET not in json.dumps(said)


def test_a_knob_with_token_in_its_name_is_no_secret(server):
    status, said = server.ask("POST", "rl/start", {"thought_tokens": 1})
    assert status == 422 and said["fields"][0]["field"] == "thought_tokens"


@pytest.mark.parametrize(
    ("path", "notebook"),
    [("baking/start", "21_evomerge_evolve"), ("rl/start", "30_quietstar_bake"), ("rl/anti-theater", "31_quietstar_rl")],
)
def test_a_missing_input_names_the_notebook_that_makes_it(server, path, notebook):
    status, said = server.ask("POST", path, {"profile": "smoke", "seed": 77})
    assert status == 409 and said["notebook"] == notebook
    assert f"forge run --only {notebook} --profile smoke --seed 77 --data procedural" in said["what to do"]


def test_an_unknown_job_and_an_empty_past_are_404(server):
    for path in ("baking/status", "rl/status", "rl/status/30_quietstar_bake-smoke-0123456789ab"):
        status, said = server.ask("GET", path)
        assert status == 404 and set(said) == {"error", "what to do"}
    for wish in ("pause", "resume", "stop"):
        assert server.ask("POST", f"baking/{wish}", {"id": "nobody"})[0] == 404
    assert server.ask("POST", "baking/stop", {"id": 3})[1]["fields"][0]["field"] == "id"
    assert server.ask("GET", "jobs") == (200, {"jobs": []})


def test_the_handoff_is_green_only_when_every_gate_of_this_model_is(server, runs):
    def verdict(gate: str, passed: bool = True) -> dict:
        check = {"name": f"check of {gate}", "measured": 1.0, "verdict": "passed" if passed else "failed"}
        return {"gate": gate, "passed": passed, "checks": [check]}

    words = {"vocabulary": "forge-12"}
    status, said = server.ask("POST", "rl/complete", {"profile": "smoke"})
    assert status == 409 and said["notebook"] == "31_quietstar_rl"
    baked = plant(runs, "quietstar-baked", verdicts=[verdict("Baking")], **words)
    trained = plant(runs, "quietstar-rl", [baked], [verdict("Reinforcement")], **words)
    status, said = server.ask("POST", "rl/complete", {"profile": "smoke"})
    assert status == 409 and [one["gate"] for one in said["failed"]] == ["anti-theater"]
    assert "papermill 32_quietstar_antitheater.ipynb" in said["error"] and len(said["verdicts"]) == 3
    plant(runs, "quietstar-verdict", [trained], [verdict("Anti-theater")], **words)
    status, said = server.ask("POST", "rl/complete", {"profile": "smoke"})
    assert status == 200 and said["complete"] and said["model"]["digest"] == trained.digest
    assert [row["verdict"] for row in said["verdicts"]] == ["passed"] * 3
    assert server.ask("POST", "rl/complete", {"profile": "smoke", "episodes": 5})[0] == 422
    (trained.path / "notes.json").write_text("changed")
    assert server.ask("POST", "rl/complete", TAGS)[0] == 409, "a damaged model is not handed on"


def test_descriptions_are_served_and_fetch_nothing(server):
    status, told = server.ask("GET", "openapi.json")
    assert status == 200 and told["openapi"].startswith("3.1")
    status, page = server.ask("GET", "docs")
    assert status == 200 and page.startswith("<!doctype html>")
    assert all(f"/forge/api{route.path}" in page for route in ROUTES)
    assert "<script" not in page and "src=" not in page and "https://" not in page and "@import" not in page


def test_the_server_says_its_address_once_and_its_token_never(server):
    """The token was given by the environment; a generated one is part of the address."""
    assert server.ask("GET", f"nothing/here?token={TOKEN}", token=None)[0] == 404, "an address may carry it"
    said = server.said.read_text()
    assert TOKEN not in said and SECRET not in said
    assert said.count(f"http://127.0.0.1:{server.port}/forge/api/docs") == 1
