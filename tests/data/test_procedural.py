"""The twins: real tasks with right answers, disjoint parts, the same rows for the same seed in any process."""

import re
import subprocess
import sys

import pytest

from forgelib.data import CATALOGUE
from forgelib.data.prepare import TWINS, load_rows
from forgelib.data.procedural import draw, part_of


def rows(name, part="train", n=200, seed=0):
    return draw(TWINS[name], name, part, n, seed)


def ask(name):
    """(everything before the answer, answer) of 200 rows."""
    return [(prompt.removesuffix("\nAnswer:"), answer) for prompt, answer in rows(name)]


def chosen(prompt, letter):
    return re.search(rf"^{letter}\. (.*)$", prompt, re.MULTILINE)[1]


def test_each_dataset_has_its_own_twin():
    assert set(TWINS) == set(CATALOGUE)
    firsts = {name: rows(name, n=40) for name in TWINS}
    prompts = [prompt for pairs in firsts.values() for prompt in {prompt for prompt, _ in pairs}]
    assert len(prompts) == len(set(prompts)), "no two twins share a prompt"


@pytest.mark.parametrize("name", TWINS)
def test_parts_are_disjoint_for_any_seeds(name):
    train = {prompt for seed in (0, 1) for prompt, _ in rows(name, "train", 600, seed)}
    other = {part: [prompt for prompt, _ in rows(name, part, 60, 2)] for part in ("heldout", "test")}
    for part, prompts in other.items():
        assert not train & set(prompts)
        assert len(prompts) == len(set(prompts)) >= 20, "held-out and test prompts are distinct"
        assert {part_of(prompt) for prompt in prompts} == {part}
    assert not set(other["heldout"]) & set(other["test"])


@pytest.mark.parametrize("name", TWINS)
def test_answers_are_short_and_are_not_one_answer(name):
    pairs = rows(name)
    answers = [answer for _, answer in pairs]
    if CATALOGUE[name].category == "language":
        assert set(answers) == {""} and all(prompt.endswith(".") for prompt, _ in pairs)
        return
    assert all(prompt.endswith("\nAnswer:") for prompt, _ in pairs)
    assert all(0 < len(answer) <= 30 and "\n" not in answer for answer in answers)
    commonest = max(answers.count(answer) for answer in set(answers)) / len(answers)
    assert commonest < 0.65, "always giving one answer must not look like knowing"


def test_the_seed_decides_and_the_process_does_not():
    program = (
        "from forgelib.data.prepare import TWINS; from forgelib.data.procedural import draw; import hashlib; "
        "print(hashlib.sha256(repr([draw(TWINS[n], n, 'train', 20, 3) for n in sorted(TWINS)]).encode()).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1]
    assert rows("svamp", seed=3) != rows("svamp", seed=4)


# Answers, worked out anew from the prompt.


def test_legs():
    legs = {"ant": 6, "bee": 6, "chicken": 2, "cow": 4, "crab": 10, "dog": 4, "duck": 2, "spider": 8}
    for prompt, answer in ask("gsm8k"):
        number, animal = re.search(r"(\d) (\w+?)s?[.?]", prompt).groups()
        assert int(answer) == int(number) * legs[animal], prompt


def test_siblings():
    for prompt, answer in ask("svamp"):
        assert int(answer) == int(re.search(r"(\d) sisters", prompt)[1]) + 1, prompt


def test_sums():
    for prompt, answer in ask("asdiv"):
        a, b = map(int, re.findall(r"\d", prompt))
        assert int(answer) == (a - b if "loses" in prompt or "gives" in prompt else a + b), prompt


def test_python_expressions():
    for prompt, answer in ask("mbpp"):
        assert str(eval(prompt.removeprefix("Question: What is ").removesuffix("?"))) == answer


def test_docstrings():
    inputs = [[3, 1, 2], 7]
    meaning = {
        "Add": lambda x, n: x + n,
        "Subtract": lambda x, n: x - n,
        "Multiply": lambda x, n: x * n,
        "Count": lambda x, n: len(x),
        "Sum": lambda x, n: sum(x),
        "Sort": lambda x, n: sorted(x),
        "Take the first": lambda x, n: x[0],
        "Take the last": lambda x, n: x[-1],
    }
    for prompt, answer in ask("codexglue"):
        scope = {}
        exec(prompt.partition("\nQuestion: ")[0], scope)
        (function,) = [value for key, value in scope.items() if key != "__builtins__"]
        (meant,) = [rule for start, rule in meaning.items() if answer.startswith(start)]
        number = int((re.findall(r"\d", answer) or ["0"])[0])
        argument = inputs[1] if number else inputs[0]
        assert function(argument) == meant(argument, number), prompt


def test_syllogisms_by_models():
    """A conclusion follows when no world of seven kinds of beings, by membership, makes premises true and it false.

    Terms are taken to have members, as in traditional logic.
    """
    from itertools import chain, combinations, product

    kinds = [kind for kind in product([0, 1], repeat=3) if any(kind)]
    worlds = chain.from_iterable(combinations(kinds, size) for size in range(1, 8))
    worlds = [world for world in worlds if all(any(kind[t] for kind in world) for t in range(3))]

    def holds(statement, index, world):
        quantifier, subject, predicate = re.fullmatch(r"(All|No) (\w+) are (\w+)", statement).groups()
        members = [kind for kind in world if kind[index[subject]]]
        return all(bool(kind[index[predicate]]) == (quantifier == "All") for kind in members)

    for prompt, answer in ask("strategyqa"):
        first, second, conclusion = re.fullmatch(r"Question: (.*)\. (.*)\. Does it follow that (.*)\?", prompt).groups()
        terms = dict.fromkeys(re.findall(r"(?:All|No) (\w+) are (\w+)", f"{first} {second}"))
        index = {term: number for number, term in enumerate(dict.fromkeys(chain.from_iterable(terms)))}
        models = [world for world in worlds if holds(first, index, world) and holds(second, index, world)]
        assert answer == ("yes" if all(holds(conclusion, index, world) for world in models) else "no"), prompt


def test_families():
    for prompt, answer in ask("arc_challenge"):
        husband, wife, child = re.search(
            r"(\w+) is married to (\w+)\. They have a child called (\w+)\.", prompt
        ).groups()
        women = {"Ana", "Eva", "Kim", "Lea", "Mia", "Zoe"}
        one, other = re.search(r"What is (\w+) to (\w+)\?", prompt).groups()
        relation = ("mother" if one in women else "father") if other == child else "wife" if one in women else "husband"
        assert {one, other} <= {husband, wife, child} and chosen(prompt, answer) == relation, prompt


def test_passages_tell_early_what_is_asked_late():
    for name, told, wanted in (
        ("hotpotqa", r"(\w+) had the (\w+)\.", lambda facts, asked: {b: a for a, b in facts}[asked]),
        (
            "drop",
            r"(\w+) scored (\d) points\.",
            lambda facts, asked: {**dict(facts), **{n: who for who, n in facts}}[asked],
        ),
    ):
        for prompt, answer in ask(name):
            passage, question = prompt.split("\nQuestion: ")
            asked = re.search(r"the (\w+)\?|did (\w+) score|scored (\d) points", question)
            facts = re.findall(told, passage)
            assert wanted(facts, next(filter(None, asked.groups()))) == answer, prompt
            assert passage.count(".") > len(facts), "other sentences stand between the fact and the question"


def test_states():
    for prompt, answer in ask("boolq"):
        thing, said, state = re.search(r"the (\w+) is (.+) (\w+)\.", prompt).groups()
        assert re.search(r"is the (\w+) (\w+)\?", prompt).groups() == (thing, state)
        assert answer == ("no" if said in {"not", "never", "no longer"} else "yes"), prompt


def test_knowledge():
    kind = {"bee": "animal", "oak": "plant", "gold": "metal", "Mars": "planet", "whale": "animal"}
    physics = {"a leaf": "it floats", "a brick": "it sinks", "melt ice": "warm it", "freeze soup": "cool it"}
    ending = {"the sponge": "rinses plates", "a hole": "waters the tree", "the oven": "eats the cake", "a tug": "pulls"}
    for name, truth in (("arc_easy", kind), ("piqa", physics), ("hellaswag", ending)):
        checked = 0
        for prompt, answer in ask(name):
            for word, right in truth.items():
                if re.search(rf"\b{word}\b", prompt.partition("\nA.")[0]):
                    assert chosen(prompt, answer).startswith(right), prompt
                    checked += 1
        assert checked >= 20


@pytest.mark.parametrize("name", ["wikitext", "fineweb_edu", "openwebtext"])
def test_prose_varies_and_comes_back_to_its_beginning(name):
    texts = [prompt for prompt, _ in rows(name)]
    assert len(set(texts)) > 190
    for text in texts:
        subject = re.search(r"^(?:What is a |Let us look at a |Today we study the )?(\w+)", text)[1]
        assert subject in text.rpartition(". ")[2] or subject in text.rsplit("? asked", 1)[-1], text


def test_twins_are_drawn_through_load_rows():
    rows = load_rows("piqa", "heldout", source="procedural", limit=7, seed=1)
    assert (rows.source, rows.part, len(rows.examples)) == ("procedural", "heldout", 7)
    assert {example.source for example in rows.examples} == {"procedural"} and rows.passed_over == ""
