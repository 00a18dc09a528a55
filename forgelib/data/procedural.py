"""Procedural twins: for each dataset a generator of tasks of its kind, with no network and with answers that can be
checked.

Here are the drawing of distinct, disjoint parts and the twins whose problems reasoning-gym supplies [Stojanovski et
al. 2025]; `grammars` and `prose` hold those for which it has no kind. The tasks are easy and their texts short, so
that a model of a million parameters learns them on a laptop.
"""

import hashlib
import random
from collections.abc import Callable, Iterator

Pair = tuple[str, str]  # prompt, answer
Generator = Callable[[int], Iterator[Pair]]  # seed -> some thousand pairs

#: Of twenty prompts, by their hash, two are held out and two are the test part. The seed plays no role, so parts never
#: meet across seeds.
_PART_OF = {0: "heldout", 1: "heldout", 2: "test", 3: "test"}
_BUCKETS = 20
#: Problems asked of reasoning-gym at once, and how many pairs in a row may bring nothing new before a generator counts
#: as exhausted.
_CHUNK, _PATIENCE = 1000, 10_000


def part_of(prompt: str) -> str:
    """The part ("train", "heldout" or "test") that a prompt belongs to, for every seed and on every machine."""
    return _PART_OF.get(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % _BUCKETS, "train")


def draw(generator: Generator, name: str, part: str, n: int, seed: int) -> list[Pair]:
    """`n` distinct (prompt, answer) pairs of one part; fewer when the generator has no more of them."""
    pairs: dict[str, str] = {}
    barren = 0
    for prompt, answer in _endless(generator, f"{seed}/{name}/{part}"):
        barren += 1
        if prompt not in pairs and part_of(prompt) == part:
            pairs[prompt], barren = answer, 0
        if len(pairs) >= n or barren > _PATIENCE:
            break
    return list(pairs.items())


def _endless(generator: Generator, name: str) -> Iterator[Pair]:
    chunk = 0
    while True:
        yield from generator(int.from_bytes(hashlib.sha256(f"{name}/{chunk}".encode()).digest()[:4], "big") >> 1)
        chunk += 1


def _problems(dataset: str, seed: int, **config) -> Iterator[dict]:
    """Problems of one reasoning-gym dataset through its public API."""
    import reasoning_gym

    return iter(reasoning_gym.create_dataset(dataset, seed=seed, size=_CHUNK, **config))


def _ask(question: str) -> str:
    return f"Question: {question}\nAnswer: "


def leg_counting(seed: int) -> Iterator[Pair]:
    """GSM8K's twin: legs of one or two kinds of animals, one or two of each."""
    for problem in _problems("leg_counting", seed, min_animals=1, max_animals=2, min_instances=1, max_instances=2):
        animals = problem["question"].strip().rpartition("if you have ")[2]
        yield _ask(f"How many legs do {animals.rstrip('?').replace(', ', ' and ')} have?"), problem["answer"]


def siblings(seed: int) -> Iterator[Pair]:
    """SVAMP's twin: sisters and brothers in one family (the "Alice in Wonderland" problem)."""
    from reasoning_gym.logic.aiw import TaskType

    for problem in _problems("aiw", seed, task_types=[TaskType.SIBLINGS], task_type_weights=[1.0]):
        yield _ask(problem["question"]), problem["answer"]


_STORIES = {
    "+": (
        "{who} has {a} {things} and gets {b} more. How many {things} are there now?",
        "{a} {things} and {b} {things} lie on the table. How many are there?",
    ),
    "-": (
        "{who} has {a} {things} and gives away {b}. How many {things} are left?",
        "{b} of {a} {things} are gone. How many {things} are left?",
    ),
}
_THINGS = ("apples", "books", "coins", "eggs", "pens", "cups", "stones", "cards")
_PEOPLE = ("Ana", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe")


def one_digit_sums(seed: int) -> Iterator[Pair]:
    """ASDiv's twin: one-digit sums and differences told as a story."""
    rng = random.Random(seed)
    for problem in _problems("chain_sum", seed, min_terms=2, max_terms=2, min_digits=1, max_digits=1):
        a, sign, b = problem["metadata"]["expression"].split()
        story = rng.choice(_STORIES[sign]).format(who=rng.choice(_PEOPLE), things=rng.choice(_THINGS), a=a, b=b)
        if not problem["answer"].startswith("-"):
            yield _ask(story), problem["answer"]


def sorting(seed: int) -> Iterator[Pair]:
    """MBPP's twin: the value of a call of `sorted` on one-digit numbers."""
    for problem in _problems(
        "number_sorting", seed, min_numbers=2, max_numbers=3, min_decimals=0, max_decimals=0, min_value=0, max_value=9
    ):
        facts = problem["metadata"]
        given, result = (
            ", ".join(str(int(float(one))) for one in facts[key]) for key in ("original_numbers", "sorted_numbers")
        )
        order = ", reverse=True" if facts["direction"] == "descending" else ""
        yield _ask(f"What does sorted([{given}]{order}) return?"), f"[{result}]"


def syllogisms(seed: int) -> Iterator[Pair]:
    """StrategyQA's twin: does a conclusion follow from two premises?"""
    for problem in _problems("syllogism", seed, invalid_ratio=0.5):
        facts = problem["metadata"]
        premises = [facts[key] for key in ("premise1", "premise2") if facts.get(key)] or [facts["selected_premise"]]
        yield _ask(f"{'. '.join(premises)}. Does it follow that {facts['conclusion']}?"), problem["answer"].lower()


def family(seed: int) -> Iterator[Pair]:
    """ARC-Challenge's twin: a relation in a small family, four lettered choices."""
    rng = random.Random(seed)
    relations = ("mother", "father", "wife", "husband", "son", "daughter", "mother-in-law", "father-in-law")
    for problem in _problems("family_relationships", seed, min_family_size=3, max_family_size=4):
        facts = problem["metadata"]
        story = problem["question"].partition("\n\n")[0]
        others = [one for one in relations if one != facts["relationship"]]
        options = [*rng.sample(others, 3), facts["relationship"]]
        rng.shuffle(options)
        choices = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
        question = f"{story} What is {facts['person1']} to {facts['person2']}?"
        yield f"Question: {question}\n{choices}\nAnswer: ", "ABCD"[options.index(facts["relationship"])]


def needle(seed: int) -> Iterator[Pair]:
    """HotpotQA's twin: one of several statements is asked for after the others have passed."""
    for problem in _problems("needle_haystack", seed, min_num_statements=4, max_num_statements=8):
        passage, _, question = problem["question"].strip().rpartition("\n")
        yield f"Passage: {passage.strip()}\n{_ask(question.partition('?')[0] + '?')}", problem["answer"]


TWINS: dict[str, Generator] = {
    "gsm8k": leg_counting,
    "svamp": siblings,
    "asdiv": one_digit_sums,
    "mbpp": sorting,
    "arc_challenge": family,
    "hotpotqa": needle,
    "strategyqa": syllogisms,
}
