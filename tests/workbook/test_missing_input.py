"""A notebook that lacks its input names a command that makes this very input, in its profile, seed and vocabulary."""

import shlex

import pytest

from forgelib.core.run import MissingInput
from forgelib.workbook import parents, phase1, phase2, phase3, phase4, reinforcement
from forgelib.workbook.params import MODELS, resolve

OWN = {"profile": "smoke", "seed": 3, "data": "procedural"}
FINDERS = {
    parents.load_specialists: ("12_cognate_diversity", {}),
    phase2.family: ("21_evomerge_evolve", {}),
    phase3.champion: ("30_quietstar_bake", {}),
    reinforcement.baked: ("31_quietstar_rl", {"vocabulary": "forge-8"}),
    reinforcement.reinforced: ("32_quietstar_antitheater", {"vocabulary": "forge-8"}),
    phase4.rounded: ("41_bitnet_finetune", {"vocabulary": "forge-8"}),
    phase4.ternary: ("42_bitnet_benchmark", {"vocabulary": "forge-8"}),
}


@pytest.mark.parametrize("find", FINDERS, ids=lambda find: find.__name__)
def test_the_command_that_is_named_makes_what_is_missing(find):
    notebook, own = FINDERS[find]
    p = resolve(MODELS[notebook], {**OWN, **own})
    with pytest.raises(MissingInput) as caught:
        find(p)
    _, maker, output, *given = shlex.split(str(caught.value).partition("Make it:")[2])
    assert output == "out.ipynb" and set(given[::3]) == {"-p"}
    made = resolve(MODELS[maker.removesuffix(".ipynb")], dict(zip(given[1::3], map(typed, given[2::3]), strict=True)))
    assert phase1.tags(made) == phase1.tags(p) and {name: getattr(made, name) for name in own} == own


def typed(text):
    """As papermill reads a value."""
    return int(text) if text.isdigit() else text
