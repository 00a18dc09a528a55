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
_CHUNK, _PATIENCE = 1000, 3000


def part_of(prompt: str) -> str:
    """The part ("train", "heldout" or "test") that a prompt belongs to, for every seed and on every machine."""
    return _PART_OF.get(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % _BUCKETS, "train")


def draw(generator: Generator, name: str, part: str, n: int, seed: int) -> list[Pair]:
    """`n` (prompt, answer) pairs of one part. Training pairs may repeat; held-out and test prompts are distinct, and
    fewer where the generator has no more of them."""
    pairs: list[Pair] = []
    known: set[str] = set()
    barren = 0
    for prompt, answer in _endless(generator, f"{seed}/{name}/{part}"):
        barren += 1
        if part_of(prompt) == part and (part == "train" or prompt not in known):
            pairs.append((prompt, answer))
            known.add(prompt)
            barren = 0
        if len(pairs) >= n or barren > _PATIENCE:
            break
    return pairs


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
    return f"Question: {question}\nAnswer:"


_ANIMALS = ("ant", "bee", "chicken", "cow", "crab", "dog", "duck", "spider")
_LEG_QUESTIONS = ("{who} has {}. How many legs?", "{who} sees {}. How many legs?", "{who} counts the legs of {}.")
_WOMEN, _MEN = ["Ana", "Eva", "Kim", "Lea", "Mia", "Zoe"], ["Ben", "Dan", "Ian", "Leo", "Max", "Tom"]
_PEOPLE = (*_WOMEN, *_MEN)


def leg_counting(seed: int) -> Iterator[Pair]:
    """GSM8K's twin: the legs of one or two of a well-known animal."""
    rng = random.Random(seed)
    for problem in _problems("leg_counting", seed, min_animals=1, max_animals=1, min_instances=1, max_instances=2):
        ((animal, number),) = problem["metadata"]["animals"].items()
        if animal in _ANIMALS:
            question = rng.choice(_LEG_QUESTIONS)
            yield (
                _ask(question.format(f"{number} {animal}{'s' * (number > 1)}", who=rng.choice(_PEOPLE))),
                problem["answer"],
            )


def siblings(seed: int) -> Iterator[Pair]:
    """SVAMP's twin: sisters and brothers in one family (the "Alice in Wonderland" problem)."""
    from reasoning_gym.logic.aiw import TaskType

    for problem in _problems(
        "aiw",
        seed,
        task_types=[TaskType.SIBLINGS],
        task_type_weights=[1.0],
        max_entities=5,
        male_names=_MEN,
        female_names=[*_WOMEN, "Alice"],
    ):
        yield _ask(problem["question"]), problem["answer"]


_STORIES = {
    "+": ("{who} has {a} and gets {b}. How many now?", "{who} takes {a} and then {b}. How many now?"),
    "-": ("{who} has {a} and loses {b}. How many now?", "{who} takes {a} and gives {b}. How many now?"),
}


def small_sums(seed: int) -> Iterator[Pair]:
    """ASDiv's twin: sums and differences of numbers up to four, told as a story."""
    rng = random.Random(seed)
    for problem in _problems("chain_sum", seed, min_terms=2, max_terms=2, min_digits=1, max_digits=1):
        a, sign, b = problem["metadata"]["expression"].split()
        if 1 <= int(a) <= 4 and 1 <= int(b) <= 4 and int(problem["answer"]) >= 0:
            yield _ask(rng.choice(_STORIES[sign]).format(who=rng.choice(_PEOPLE), a=a, b=b)), problem["answer"]


def list_calls(seed: int) -> Iterator[Pair]:
    """MBPP's twin: the value of a Python expression on a short list of one-digit numbers."""
    rng = random.Random(seed)
    config = {"min_numbers": 1, "max_numbers": 3, "min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 9}
    for problem in _problems("number_sorting", seed, **config):
        facts = problem["metadata"]
        given = [int(float(one)) for one in facts["original_numbers"]]
        extreme = "min" if facts["direction"] == "ascending" else "max"
        call, value = rng.choice(
            ((f"len({given})", len(given)), (f"{given}[0]", given[0]), (f"{extreme}({given[:2]})", None))
        )
        if value is None:
            value = min(given[:2]) if extreme == "min" else max(given[:2])
        yield _ask(f"What is {call}?"), str(value)


def syllogisms(seed: int) -> Iterator[Pair]:
    """StrategyQA's twin: does a conclusion follow from two premises?"""
    config = {"allow_some": False, "allow_some_not": False, "inversion_probability": 0.0, "invalid_ratio": 0.5}
    for problem in _problems("syllogism", seed, **config):
        facts = problem["metadata"]
        premises = f"{facts['premise1']}. {facts['premise2']}"
        yield _ask(f"{premises}. Does it follow that {facts['conclusion']}?"), problem["answer"].lower()


_RELATIONS = ("mother", "father", "wife", "husband")


def family(seed: int) -> Iterator[Pair]:
    """ARC-Challenge's twin: a relation in a small family, four lettered choices."""
    choices = "\n".join(f"{letter}. {relation}" for letter, relation in zip("ABCD", _RELATIONS, strict=True))
    for problem in _problems(
        "family_relationships", seed, min_family_size=3, max_family_size=3, male_names=_MEN, female_names=_WOMEN
    ):
        facts = problem["metadata"]
        if facts["relationship"] in _RELATIONS:
            story = problem["question"].partition("\n\n")[0]
            question = f"{story} What is {facts['person1']} to {facts['person2']}?"
            yield f"Question: {question}\n{choices}\nAnswer:", "ABCD"[_RELATIONS.index(facts["relationship"])]


TWINS: dict[str, Generator] = {
    "gsm8k": leg_counting,
    "svamp": siblings,
    "asdiv": small_sums,
    "mbpp": list_calls,
    "arc_challenge": family,
    "strategyqa": syllogisms,
}
