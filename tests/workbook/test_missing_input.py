"""A notebook that lacks its input names a command that makes this very input, in its profile, seed and vocabulary."""

import shlex
import shutil

import pytest

from forgelib.core.run import MissingInput, open_run
from forgelib.workbook import handoff, parents, phase2, phase3, phase4, reinforcement
from forgelib.workbook.params import MODELS, resolve

OWN = {"profile": "smoke", "seed": 3, "data": "procedural"}
VOCABULARY = {"vocabulary": "forge-8"}
#: What looks for it: the notebook that lacks it, the one that makes it, and what that one is told besides OWN.
FINDERS = {
    parents.load_specialists: ("12_cognate_diversity", "11_cognate_train", {"specialist": "reasoning"}),
    phase2.family: ("21_evomerge_evolve", "12_cognate_diversity", {}),
    phase3.champion: ("30_quietstar_bake", "21_evomerge_evolve", {}),
    reinforcement.baked: ("31_quietstar_rl", "30_quietstar_bake", VOCABULARY),
    reinforcement.reinforced: ("32_quietstar_antitheater", "31_quietstar_rl", VOCABULARY),
    phase4.rounded: ("41_bitnet_finetune", "40_bitnet_quantize", VOCABULARY),
    phase4.ternary: ("42_bitnet_benchmark", "41_bitnet_finetune", VOCABULARY),
}


@pytest.mark.parametrize("find", FINDERS, ids=lambda find: find.__name__)
def test_the_command_that_is_named_makes_what_is_missing(find):
    notebook, maker, own = FINDERS[find]
    lacking = MODELS[notebook]
    p = resolve(lacking, OWN | {name: value for name, value in own.items() if name in lacking.model_fields})
    with pytest.raises(MissingInput) as caught:
        find(p)
    assert told(str(caught.value).partition("Make it:")[2]) == (maker, OWN | own)


def test_a_trial_that_was_not_run_and_a_baking_that_is_gone_name_the_command_for_this_very_model():
    facts = {"seed": 3, "tags": OWN | VOCABULARY, "wandb_mode": "disabled", "code": ()}
    baked = open_run("30", {}, **facts).publish("quietstar-baked", write)
    trained = open_run("31", {}, parents=[baked], **facts).publish("quietstar-rl", write)
    (trial,) = handoff.verdict_rows(handoff.earlier_verdicts(trained))
    assert told(trial["not passed"].removeprefix("not run; ")) == ("32_quietstar_antitheater", OWN | VOCABULARY)
    shutil.rmtree(baked.path)
    baking, _ = handoff.verdict_rows(handoff.earlier_verdicts(trained))
    assert told(baking["not passed"].removeprefix("not run; ")) == ("30_quietstar_bake", OWN | VOCABULARY)


def write(folder):
    (folder / "model.txt").write_text("a model")


def told(command):
    """The notebook that a command names and the parameters it is given, read back and accepted by it."""
    papermill, notebook, output, *given = shlex.split(command)
    assert (papermill, output) == ("papermill", "out.ipynb") and set(given[::3]) == {"-p"}
    parameters = dict(zip(given[1::3], map(typed, given[2::3]), strict=True))
    assert resolve(MODELS[notebook.removesuffix(".ipynb")], parameters)
    return notebook.removesuffix(".ipynb"), parameters


def typed(text):
    """As papermill reads a value."""
    return int(text) if text.isdigit() else text
