"""A bad knob is refused before work starts, in words that name it and say what is allowed."""

import subprocess
import sys
import time

import pytest
import yaml
from pydantic import ValidationError

from forgelib.core.paths import PROFILES, params_dir
from forgelib.workbook.dashboard_knobs import PAGE_MODELS
from forgelib.workbook.params import (
    MODELS,
    CognateDiversity,
    CognateTrain,
    Environment,
    ParameterError,
    describe,
    profile_values,
    resolve,
)

ALL_MODELS = {**MODELS, **PAGE_MODELS}


@pytest.fixture(autouse=True)
def no_profile(monkeypatch):
    monkeypatch.delenv("FORGE_PROFILE", raising=False)


def refusal(model, **namespace) -> str:
    with pytest.raises(ParameterError) as caught:
        resolve(model, namespace)
    return str(caught.value)


def test_the_shipped_defaults_are_the_laptop():
    assert resolve(CognateTrain, {}) == CognateTrain()
    assert resolve(CognateTrain, {"profile": ""}).profile == "laptop"


def test_the_profile_comes_from_the_environment_unless_given(monkeypatch):
    monkeypatch.setenv("FORGE_PROFILE", "smoke")
    assert resolve(Environment, {"profile": ""}).profile == "smoke"
    assert resolve(Environment, {"profile": "laptop"}).profile == "laptop"


def test_profile_file_outranks_default_and_edit_outranks_both():
    smoke = profile_values(CognateTrain, "smoke")["steps"]
    default = CognateTrain.model_fields["steps"].default
    assert smoke != default
    assert resolve(CognateTrain, {"profile": "smoke", "steps": default}).steps == smoke
    assert resolve(CognateTrain, {"profile": "smoke", "steps": 17}).steps == 17


def test_what_papermill_injects_wins_even_when_it_equals_the_default():
    default = CognateTrain.model_fields["steps"].default
    cells = ["", f"profile = ''\nsteps = {default}", f'# Parameters\nprofile = "smoke"\nsteps = {default}\n']
    namespace = {"In": cells, "profile": "smoke", "steps": default}
    assert resolve(CognateTrain, namespace).steps == default


def test_other_variables_of_a_notebook_are_no_knobs():
    namespace = {"In": ["profile = ''", "loss = 3"], "profile": "", "loss": 3, "Out": {}, "_i": "x"}
    assert resolve(Environment, namespace) == Environment()


def test_a_misspelt_name_in_the_parameters_cell_is_refused():
    namespace = {"In": ["profile = ''\nsteeps = 3"], "profile": "", "steeps": 3}
    with pytest.raises(ParameterError, match="steeps = 3: there is no such parameter; did you mean 'steps'"):
        resolve(CognateTrain, namespace)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"episodes": -5}, ["episodes = -5", "no such parameter", "known: ", "steps"]),
        ({"steps": -5}, ["steps = -5", "at least ", "optimizer steps"]),
        ({"specialist": "chef"}, ["specialist = 'chef'", "reasoning, memory, speed"]),
        ({"specialist": "memroy"}, ["did you mean 'memory'"]),
        ({"muon_lr": "1e-3"}, ["muon_lr = '1e-3'", "text, not a number", "write 0.001"]),
        ({"muon_lr": "1e-5"}, ["write 0.00001 without quotes"]),
        ({"steps": "400"}, ["steps = '400'", "write 400"]),
        ({"lr": "1e-3"}, ["lr = '1e-3'", "no such parameter", "did you mean 'muon_lr'"]),
        ({"steps": 3.0}, ["steps = 3.0", "a whole number"]),
        ({"steps": True}, ["steps = True", "a whole number"]),
        ({"muon_lr": float("nan")}, ["muon_lr = nan", "a number, above 0"]),
        ({"muon_lr": float("inf")}, ["muon_lr = inf"]),
        ({"seed": None}, ["seed = None", "a whole number"]),
        ({"profile": "lapptop"}, ["profile = 'lapptop'", "smoke, laptop, gpu6gb, full", "did you mean 'laptop'"]),
        ({"profile": 3}, ["profile = 3", "smoke, laptop, gpu6gb, full"]),
        ({"d_model": 100, "n_heads": 3}, ["d_model", "n_heads"]),
        ({"steps": [1, 2]}, ["steps = [1, 2]", "a whole number"]),
    ],
)
def test_refused_naming_field_value_and_what_is_allowed(given, words):
    text = refusal(CognateTrain, **given)
    assert all(word in text for word in words), text
    assert "11_cognate_train" in text and "pydantic" not in text


@pytest.mark.parametrize("given", [{"steps": "1e-3"}, {"steps": "2.5"}, {"muon_lr": "inf"}, {"muon_lr": "fast"}])
def test_no_text_is_taken_for_a_number_that_would_be_refused_again(given):
    assert "without quotes" not in refusal(CognateTrain, **given)


def test_every_wrong_field_is_named_at_once():
    text = refusal(CognateTrain, steps=-1, muon_lr="fast", bogus=1)
    assert "steps" in text and "muon_lr" in text and "bogus" in text


def test_a_profile_named_by_the_environment_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("FORGE_PROFILE", "huge")
    assert "FORGE_PROFILE" in refusal(Environment)


def test_parameters_are_frozen():
    with pytest.raises(ValidationError):
        CognateTrain().steps = 5


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("notebook", ALL_MODELS)
def test_every_profile_has_a_flat_valid_file_for_every_notebook(profile, notebook):
    values = yaml.safe_load((params_dir() / profile / f"{notebook}.yaml").read_text())
    assert values["profile"] == profile, "papermill -f must pick the profile as well"
    assert all(isinstance(value, str | int | float | bool) for value in values.values())
    assert resolve(ALL_MODELS[notebook], {"profile": profile}).profile == profile
    assert profile != "laptop" or set(values) == {"profile"}, "the laptop's values are the defaults of the model"


@pytest.mark.parametrize("model", ALL_MODELS.values(), ids=lambda model: model.NOTEBOOK)
def test_every_field_says_what_it_takes(model):
    for name, field in model.model_fields.items():
        assert field.description, f"{name} needs a unit or a meaning"
        assert describe(model, name)
        assert field.annotation not in (int, float) or len(field.metadata) >= 2, f"{name} needs a range on both sides"


def test_the_diversity_threshold_is_the_given_one():
    assert CognateDiversity().diversity_threshold == 0.3
    assert all(resolve(CognateDiversity, {"profile": profile}).diversity_threshold == 0.3 for profile in PROFILES)


def test_refusing_loads_no_heavy_library_and_is_quick():
    source = (
        "import sys\n"
        "from forgelib.workbook.params import CognateTrain, ParameterError, resolve\n"
        "try: resolve(CognateTrain, {'steps': -5})\n"
        "except ParameterError: pass\n"
        "import forgelib.cli, forgelib.workbook.plan\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'wandb', 'matplotlib') if name in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - began < 5
