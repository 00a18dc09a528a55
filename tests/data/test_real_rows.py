"""The sixteen loaders on real rows (openwebtext, for which none were found, in test_sources)."""

import pytest

from forgelib.data import CATALOGUE, CATEGORIES, DataError
from forgelib.data.prepare import load_rows

WITH_ROWS = [name for name in CATALOGUE if name != "openwebtext"]
LETTERED = {"arc_easy": "ABCDE", "arc_challenge": "ABCDE", "piqa": "AB", "hellaswag": "ABCD"}


@pytest.mark.parametrize("name", WITH_ROWS)
def test_real_rows_become_examples(real_datasets, name):
    train, heldout = (load_rows(name, part, source="real", mirror=real_datasets) for part in ("train", "heldout"))
    assert train.source == heldout.source == "mirror"
    assert len(train.examples) >= 50 and len(heldout.examples) >= 5
    assert not {e.prompt for e in train.examples} & {e.prompt for e in heldout.examples} or name.startswith("arc")
    for example in train.examples + heldout.examples:
        assert (example.category, example.dataset) == (CATALOGUE[name].category, name)
        if example.category == "language":
            assert example.answer == "" and example.prompt.strip()
        else:
            assert example.prompt.endswith("\nAnswer:") and "Question: " in example.prompt
            assert example.answer and example.answer == example.answer.strip()


@pytest.mark.parametrize("name", LETTERED)
def test_choices_are_lettered_and_the_answer_is_a_letter(real_datasets, name):
    examples = load_rows(name, "train", source="real", mirror=real_datasets).examples
    answers = {example.answer for example in examples}
    assert answers <= set(LETTERED[name]) and len(answers) >= len(LETTERED[name]) - 1
    for example in examples:
        assert f"\n{example.answer}. " in example.prompt and "\nA. " in example.prompt


@pytest.mark.parametrize("name", ["boolq", "strategyqa"])
def test_yes_no_sets_answer_yes_or_no(real_datasets, name):
    assert {e.answer for e in load_rows(name, "train", source="real", mirror=real_datasets).examples} == {"yes", "no"}


@pytest.mark.parametrize("name", ["gsm8k", "svamp"])
def test_numbers_are_plain(real_datasets, name):
    for example in load_rows(name, "train", source="real", mirror=real_datasets).examples:
        float(example.answer)
        assert "," not in example.answer and not example.answer.endswith(".0") and "<<" not in example.reasoning


def test_the_first_rows_read_as_published(real_datasets):
    def first(name):
        parts = [load_rows(name, part, source="real", mirror=real_datasets) for part in ("train", "heldout")]
        return {example.prompt: example for rows in parts for example in rows.examples}

    natalia = next(e for prompt, e in first("gsm8k").items() if prompt.startswith("Question: Natalia sold clips to 48"))
    assert natalia.answer == "72" and natalia.reasoning.startswith("Natalia sold 48/2 = 24 clips in May.")
    fever = first("arc_easy")[
        "Question: Which factor will most likely cause a person to develop a fever?\nA. a leg muscle relaxing after "
        "exercise\nB. a bacterial population in the bloodstream\nC. several viral particles on the skin\n"
        "D. carbohydrates being digested in the stomach\nAnswer:"
    ]
    assert fever.answer == "B"
    chain = next(e for prompt, e in first("mbpp").items() if "longest chain which can be formed" in prompt)
    assert "Test: assert max_chain_length(" in chain.prompt and chain.answer.startswith("class Pair(object):\n")
    apples = next(e for prompt, e in first("asdiv").items() if "Seven red apples and two green apples" in prompt)
    assert apples.answer == "9"


def test_the_code_does_not_show_its_docstring(real_datasets):
    examples = load_rows("codexglue", "train", source="real", mirror=real_datasets).examples
    assert not [example for example in examples if example.answer in example.prompt]
    assert "\n" not in "".join(example.answer for example in examples)


def test_unlabeled_rows_are_refused(real_datasets):
    with pytest.raises(DataError, match=r"piqa.test\.jsonl\.gz, line 1: field 'label' is -1: this split is unlabeled"):
        load_rows("piqa", "test", source="real", mirror=real_datasets)


@pytest.mark.parametrize("name", ["gsm8k", "svamp", "mbpp", "arc_easy", "arc_challenge", "codexglue", "wikitext"])
def test_test_splits_are_read_on_request_only(real_datasets, name):
    rows = load_rows(name, "test", source="real", mirror=real_datasets)
    assert rows.split == "test" and rows.examples
    for part in ("train", "heldout"):
        assert "test" not in load_rows(name, part, source="real", mirror=real_datasets).origin


def test_every_category_is_served():
    assert {spec.category for spec in CATALOGUE.values()} == set(CATEGORIES)
    assert len(CATALOGUE) == 16
