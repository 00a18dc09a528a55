"""The procedural maker of reasoning rows: ten strategies over problems of reasoning-gym [Stojanovski et al. 2025], with
traces that are true line by line.

| strategy | problem | trace |
|---|---|---|
| chain_of_thought | chain_sum | one term after the other |
| mece | leg_counting | groups that share no animal and leave none out, then their sum |
| falsification | simple_equations with candidates | each candidate put in, until one is not refuted |
| expert_perspective | chain_sum, "-" before "+" | from left to right, and what is added before what is taken away |
| orthogonal_wisdom | chain_sum, additions | forwards, then backwards: two ways, one result |
| self_doubt | chain_sum | each step checked by its inverse; every second step is a slip that the check finds |
| bayesian | two kinds of bags, our own | Bayes' rule in natural frequencies |
| multidomain | leg_counting and a thing of another domain | a fact of each domain, then their sum |
| self_correction | chain_sum | each step done again; every second one was a slip, and is repaired by that |
| uncertainty | a sum of two unknowns, our own | every case that is left open; "unknown" where they disagree |

The question names its strategy, so that one problem can be asked in several ways. A step writes down again what is
still to be done (4+9=13,+3), since attention reaches back a few dozen tokens only; equations carry no blanks,
which in a vocabulary of single digits would be tokens of their own. Answers of reasoning-gym's problems
pass its own scorer, and every row passes `trace_checks.trace_flaw`, which knows nothing of how it was made.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from forgelib.data import STRATEGIES, DataError, ReasoningRow, Vocabulary
from forgelib.data.trace_checks import compared, trace_flaw

#: Problems asked of reasoning-gym at once; so many chunks in a row without a new prompt, and a strategy is exhausted.
_CHUNK, _PATIENCE = 500, 6
_ANIMALS = ("ant", "bee", "beetle", "cat", "chicken", "cow", "dog", "duck", "horse", "lion", "spider", "wasp")
_MORE_ANIMALS = (*_ANIMALS, "crab", "cricket", "elephant", "lobster", "scorpion", "snake")
#: Things of other domains: what is counted, and how many each has.
_THINGS = {
    "week": ("days", 7),
    "hand": ("fingers", 5),
    "triangle": ("sides", 3),
    "square": ("corners", 4),
    "cube": ("faces", 6),
    "pentagon": ("sides", 5),
    "hexagon": ("corners", 6),
    "bicycle": ("wheels", 2),
    "tricycle": ("wheels", 3),
    "car": ("wheels", 4),
    "trio": ("singers", 3),
    "quartet": ("players", 4),
    "year": ("seasons", 4),
}
#: kind of a step: a strategy, or "step"
Steps = list[tuple[str, str]]


@dataclass(frozen=True)
class Problem:
    """A question with its true trace; `steps` are (strategy or "step", text)."""

    question: str
    steps: Steps
    answer: str
    topic: str


def procedural_rows(
    n: int,
    words: Vocabulary,
    *,
    seed: int,
    part: str = "",
    strategies: Sequence[str] = STRATEGIES,
    difficulties: Sequence[int] = (1,),
) -> list[ReasoningRow]:
    """`n` verified rows, as many of each strategy, every prompt once; of one part ("train", "validation") or, "", both.

    Fewer where a strategy has no more distinct problems. Raises DataError for an unknown strategy or difficulty.
    """
    if unknown := [name for name in strategies if name not in words.tag_of]:
        raise DataError(f"strategy '{unknown[0]}': vocabulary {words.name} has {', '.join(words.tag_of)}")
    if wrong := [level for level in difficulties if level not in (1, 2, 3)]:
        raise DataError(f"difficulty = {wrong[0]}: must be 1, 2 or 3")
    rows = [
        _rows_of(name, n // len(strategies) + (i < n % len(strategies)), words, seed, part, difficulties)
        for i, name in enumerate(strategies)
    ]
    return [row for together in itertools.zip_longest(*rows) for row in together if row is not None]


def _rows_of(
    strategy: str, n: int, words: Vocabulary, seed: int, part: str, difficulties: Sequence[int]
) -> list[ReasoningRow]:
    rows, known, barren, chunk = [], set(), 0, 0
    while len(rows) < n and barren < _PATIENCE * len(difficulties):
        level, before = difficulties[chunk % len(difficulties)], len(rows)
        digest = hashlib.sha256(f"{seed}/{strategy}/{part}/{chunk}".encode()).digest()
        for problem in MAKERS[strategy](int.from_bytes(digest[:4], "big") >> 1, level):
            row = _row(problem, strategy, level, words)
            if len(rows) < n and row.prompt not in known and part in ("", row.part):
                known.add(row.prompt)
                rows.append(row)
        barren, chunk = 0 if len(rows) > before else barren + 1, chunk + 1
    return rows


def _row(problem: Problem, strategy: str, level: int, words: Vocabulary) -> ReasoningRow:
    """The problem as a row, its trace checked. Raises DataError for one that is not true."""
    if found := trace_flaw(strategy, problem.question, problem.steps, problem.answer):
        raise DataError(f"a procedural {strategy} trace is wrong ({found}): {problem}")
    tags = {**words.tag_of, "step": words.step}
    reasoning = words.write([(tags[kind], text) for kind, text in problem.steps], gap="")
    prompt = f"Question: {problem.question}\nAnswer:"
    return ReasoningRow(prompt, reasoning, problem.answer, strategy, level, problem.topic, "procedural", True)


def _problems(dataset: str, seed: int, **config) -> Iterator[dict]:
    """Problems of a reasoning-gym dataset whose answers pass its own scorer."""
    import reasoning_gym

    made = reasoning_gym.create_dataset(dataset, seed=seed, size=_CHUNK, **config)
    for problem in made:
        if made.score_answer(problem["answer"], problem) != 1.0:
            raise DataError(f"reasoning-gym's {dataset} does not accept its own answer: {problem['question']!r}")
        yield problem


def _sums(seed: int, level: int, least_terms: int = 2) -> Iterator[tuple[list[int], list[str], str]]:
    """Terms, signs before the second and later ones, and the answer; no partial result is below zero."""
    terms, digits = {1: (least_terms, 3, 1), 2: (3, 4, 1), 3: (3, 4, 2)}[level][:2], 1 + (level == 3)
    for problem in _problems(
        "chain_sum", seed, min_terms=terms[0], max_terms=terms[1], min_digits=digits, max_digits=digits
    ):
        parts = problem["metadata"]["expression"].split()
        numbers, signs = [int(one) for one in parts[::2]], parts[1::2]
        totals = list(itertools.accumulate([numbers[0], *_signed(numbers, signs)]))
        if min(totals) >= 0:
            yield numbers, signs, problem["answer"]


def _signed(numbers: list[int], signs: list[str]) -> list[int]:
    return [number if sign == "+" else -number for number, sign in zip(numbers[1:], signs, strict=True)]


def _equations(numbers: list[int], signs: list[str]) -> list[tuple[int, str, int, int, str]]:
    """(a, sign, b, result, rest) of each step from left to right; rest is what is still to be done: ",+3" or ""."""
    found, total = [], numbers[0]
    for i, (sign, term) in enumerate(zip(signs, numbers[1:], strict=True), start=1):
        result = total + term if sign == "+" else total - term
        rest = "".join(f"{s}{n}" for s, n in zip(signs[i:], numbers[i + 1 :], strict=True))
        found.append((total, sign, term, result, f",{rest}" if rest else ""))
        total = result
    return found


def _expression(numbers: list[int], signs: list[str]) -> str:
    return "".join([str(numbers[0]), *(f"{sign}{term}" for sign, term in zip(signs, numbers[1:], strict=True))])


def chain_of_thought(seed: int, level: int) -> Iterator[Problem]:
    for numbers, signs, answer in _sums(seed, level):
        steps = [
            ("chain_of_thought", f"{a}{sign}{b}={result}{rest}")
            for a, sign, b, result, rest in _equations(numbers, signs)
        ]
        yield Problem(f"{_expression(numbers, signs)}? Step by step.", steps, answer, "sums")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _legs(seed: int, level: int, animals: tuple[int, int]) -> Iterator[tuple[dict[str, int], dict[str, int], str]]:
    """How many of each animal, the legs of one, and all legs; well-known animals only."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    known, most = _ANIMALS if level == 1 else _MORE_ANIMALS, {1: 2, 2: 6, 3: 12}[level]
    limits = {"min_animals": animals[0], "max_animals": animals[1], "min_instances": 1, "max_instances": most}
    for problem in _problems("leg_counting", seed, **limits):
        group = problem["metadata"]["animals"]
        if all(animal in known for animal in group):
            yield group, {animal: ANIMALS[animal] for animal in group}, problem["answer"]


def mece(seed: int, level: int) -> Iterator[Problem]:
    for group, legs, answer in _legs(seed, level, {1: (2, 2), 2: (2, 3), 3: (3, 4)}[level]):
        asked = " and ".join(_counted(number, animal) for animal, number in group.items())
        products = {animal: number * legs[animal] for animal, number in group.items()}
        steps = [("mece", f"{animal}:{number}*{legs[animal]}={products[animal]}") for animal, number in group.items()]
        total, *rest = products.values()
        for product in rest:
            steps.append(("step", f"{total}+{product}={total + product}"))
            total += product
        yield Problem(f"Legs of {asked}? Groups.", steps, answer, "animals")


def falsification(seed: int, level: int) -> Iterator[Problem]:
    dice, most = random.Random(seed), {1: 2, 2: 5, 3: 9}[level]
    limits = {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 9, "operators_weights": (1.0, 0.0, 0.0)}
    for problem in _problems("simple_equations", seed, **limits):
        left, _, value = problem["metadata"]["equation"].replace(" ", "").partition("=")
        product, _, summand = left.partition("+")
        factor = int(product.split("*")[0]) if "*" in product else 1
        if not summand.isdigit() or factor > most:
            continue
        true, term = int(problem["answer"]), int(summand)
        others = dice.sample([x for x in range(1, 10) if x != true], 2)
        tried, steps = dice.sample([true, *others], 3), []
        for i, x in enumerate(tried[: tried.index(true) + 1], start=1):
            if factor > 1:
                steps.append(("step", f"{factor}*{x}={factor * x}"))
            verdict = compared(factor * x + term, int(value))
            told = verdict if x == true else ",".join([verdict, *map(str, tried[i:])])
            steps.append(("falsification", f"{factor * x}+{term}={factor * x + term};{value} {told}"))
        asked = ",".join(map(str, tried))
        yield Problem(f"{left}={value}? Try {asked}.", steps, str(true), "equations")


def expert_perspective(seed: int, level: int) -> Iterator[Problem]:
    """A cashier goes from left to right; a bookkeeper adds up what comes in before what goes out."""
    for numbers, signs, answer in _sums(seed, level, least_terms=3):
        terms = list(zip(signs, numbers[1:], strict=True))
        gathered = sorted(terms, key=lambda term: term[0] == "-")
        if gathered == terms:  # both would write the same
            continue
        told = []
        for order in (terms, gathered):
            worked = _equations([numbers[0], *(n for _, n in order)], [sign for sign, _ in order])
            told.append(("expert_perspective", ";".join(f"{a}{sign}{b}={r}" for a, sign, b, r, _ in worked)))
        yield Problem(f"{_expression(numbers, signs)}? Two experts.", told, answer, "sums")


def orthogonal_wisdom(seed: int, level: int) -> Iterator[Problem]:
    for numbers, signs, answer in _sums(seed, level, least_terms=3):
        if "-" not in signs:
            there = [("step", f"{a}+{b}={r}") for a, _, b, r, _ in _equations(numbers, signs)]
            back = [("orthogonal_wisdom", f"{a}+{b}={r}") for a, _, b, r, _ in _equations(numbers[::-1], signs)]
            yield Problem(f"{_expression(numbers, signs)}? Both ways.", there + back, answer, "sums")


def _slip(dice: random.Random, result: int, least: int = 0) -> int:
    return dice.choice([wrong for wrong in (result - 2, result - 1, result + 1, result + 2) if wrong >= least])


def _doubted(a: int, sign: str, b: int, claimed: int) -> str:
    back = claimed - b if sign == "+" else claimed + b
    return f"{claimed}{'-' if sign == '+' else '+'}{b}={back};{a} {compared(back, a)}"


def self_doubt(seed: int, level: int) -> Iterator[Problem]:
    dice = random.Random(seed)
    for numbers, signs, answer in _sums(seed, level):
        steps = []
        for a, sign, b, result, rest in _equations(numbers, signs):
            wrong = [_slip(dice, result, least=b if sign == "+" else 0)] if dice.random() < 0.5 else []
            for claimed in (*wrong, result):
                steps.append(("step", f"{a}{sign}{b}={claimed}{rest}"))
                steps.append(("self_doubt", _doubted(a, sign, b, claimed)))
        yield Problem(f"{_expression(numbers, signs)}? Doubt it.", steps, answer, "sums")


def bayesian(seed: int, level: int) -> Iterator[Problem]:
    """Bags of two kinds, as many balls in each; natural frequencies (Gigerenzer & Hoffrage 1995)."""
    dice, (bags, balls) = random.Random(seed), {1: (4, 6), 2: (6, 7), 3: (9, 9)}[level]
    for _ in range(_CHUNK):
        of_a, of_b = dice.randint(1, bags), dice.randint(1, bags)
        in_a, in_b = dice.randint(1, balls - 1), dice.randint(1, balls - 1)
        kinds, asked = {"A": (of_a, in_a), "B": (of_b, in_b)}, dice.choice("AB")
        order = sorted(kinds, key=lambda kind: kind != asked)  # the one that is asked for comes first
        first, second = (bags_of * red for bags_of, red in map(kinds.get, order))
        answer = f"{first}/{first + second}"
        steps = [
            *(
                ("bayesian", f"{kind}:{kinds[kind][0]}*{kinds[kind][1]}={kinds[kind][0] * kinds[kind][1]}")
                for kind in order
            ),
            ("step", f"{first}+{second}={first + second}"),
            ("bayesian", answer),
        ]
        told = f"Bags of {balls}: {of_a} A with {in_a} red, {of_b} B with {in_b}"
        question = f"What share of the red is from {asked}? {told}."
        yield Problem(question, steps, answer, "probability")


def multidomain(seed: int, level: int) -> Iterator[Problem]:
    dice, most = random.Random(seed), {1: 3, 2: 5, 3: 9}[level]
    for group, legs, total in _legs(seed, level, (1, 1)):
        ((animal, number),) = group.items()
        (thing, (parts, each)), times = dice.choice(list(_THINGS.items())), dice.randint(1, most)
        steps = [
            ("multidomain", f"{animal}:{number}*{legs[animal]}={total}"),
            ("multidomain", f"{thing}:{times}*{each}={times * each}"),
            ("step", f"{total}+{times * each}={int(total) + times * each}"),
        ]
        question = f"Legs of {_counted(number, animal)} and {parts} of {_counted(times, thing)}? Domains."
        yield Problem(question, steps, str(int(total) + times * each), "animals and things")


def self_correction(seed: int, level: int) -> Iterator[Problem]:
    dice = random.Random(seed)
    for numbers, signs, answer in _sums(seed, level):
        steps = []
        for a, sign, b, result, rest in _equations(numbers, signs):
            told = _slip(dice, result) if dice.random() < 0.5 else result
            steps += [("step", f"{a}{sign}{b}={told}{rest}"), ("self_correction", f"{a}{sign}{b}={result}{rest}")]
        yield Problem(f"{_expression(numbers, signs)}? Mend slips.", steps, answer, "sums")


def uncertainty(seed: int, level: int) -> Iterator[Problem]:
    """x + y = total, x one of a few: is y above a limit? As many problems with each of the three answers."""
    dice, (largest, most) = random.Random(seed), {1: (9, 2), 2: (9, 3), 3: (40, 4)}[level]
    for _ in range(_CHUNK):
        answer, cases = dice.choice(("yes", "no", "unknown")), dice.randint(1, most)
        xs, extra = dice.sample(range(largest + 1), max(cases, 1 + (answer == "unknown"))), dice.randint(0, largest)
        total = max(xs) + extra
        ys = [total - x for x in xs]
        low, high = {"yes": (0, min(ys)), "no": (max(ys), largest + max(ys)), "unknown": (min(ys), max(ys))}[answer]
        if low < high:
            limit, steps = dice.randrange(low, high), []
            for i, (x, y) in enumerate(zip(xs, ys, strict=True), start=1):
                told = ",".join(["yes" if y > limit else "no", *map(str, xs[i:])])
                steps.append(("uncertainty", f"{total}-{x}={y}>{limit} {told}"))
            question = f"x+y={total}, x={' or '.join(map(str, xs))}. y>{limit}?"
            yield Problem(question, steps, answer, "unknowns")


MAKERS: dict[str, Callable[[int, int], Iterator[Problem]]] = {
    maker.__name__: maker
    for maker in (
        *(chain_of_thought, mece, falsification, expert_perspective, orthogonal_wisdom),
        *(self_doubt, bayesian, multidomain, self_correction, uncertainty),
    )
}
