"""Twins for the kinds that reasoning-gym has not: code and its docstring, school science, everyday knowledge, passages
with questions.

Lettered options stand in a fixed order, so a small model has to know which option is right, not to find where it
stands: the latter takes it ten times the training (half a million tokens for two options in free order).
"""

import random
from collections.abc import Callable, Iterator

Pair = tuple[str, str]
_CHUNK = 1000
_PEOPLE = ("Ana", "Ben", "Dan", "Eva", "Ian", "Kim", "Lea", "Leo", "Max", "Mia", "Tom", "Zoe")


def _repeat(one: Callable[[random.Random], Pair]) -> Callable[[int], Iterator[Pair]]:
    def generator(seed: int) -> Iterator[Pair]:
        rng = random.Random(seed)
        return (one(rng) for _ in range(_CHUNK))

    generator.__doc__ = one.__doc__
    return generator


def _choose(question: str, options: list[str], right: str) -> Pair:
    """A question with lettered options in their fixed order; the answer is the letter."""
    lines = "\n".join(f"{chr(65 + index)}. {option}" for index, option in enumerate(options))
    return f"Question: {question}\n{lines}\nAnswer:", chr(65 + options.index(right))


_FUNCTIONS = (
    ("{x} + {n}", "Add {n}."),
    ("{x} - {n}", "Subtract {n}."),
    ("{x} * {n}", "Multiply by {n}."),
    ("len({x})", "Count the items."),
    ("sum({x})", "Sum the items."),
    ("sorted({x})", "Sort the items."),
    ("{x}[0]", "Take the first item."),
    ("{x}[-1]", "Take the last item."),
)
_ARGUMENTS = ("a", "b", "x", "y", "items", "rows", "data", "value")
_FUNCTION_NAMES = ("run", "work", "apply", "compute", "solve", "step", "process", "helper", "main", "call")


@_repeat
def docstrings(rng: random.Random) -> Pair:
    """CodeXGLUE's twin: the first docstring line of a one-line function."""
    body, summary = rng.choice(_FUNCTIONS)
    words = {"x": rng.choice(_ARGUMENTS), "n": str(rng.randint(1, 3))}
    code = f"def {rng.choice(_FUNCTION_NAMES)}({words['x']}):\n    return {body.format(**words)}"
    return f"{code}\nQuestion: What does this function do?\nAnswer:", summary.format(**words)


_KINDS = {
    "animal": ("dog", "horse", "whale", "crow", "trout", "bee"),
    "plant": ("oak", "pine", "rose", "moss", "wheat", "fern"),
    "metal": ("iron", "gold", "copper", "silver", "zinc", "tin"),
    "planet": ("Mars", "Venus", "Earth", "Saturn", "Jupiter", "Neptune"),
}


@_repeat
def science(rng: random.Random) -> Pair:
    """ARC-Easy's twin: which of four kinds that school science names is a thing of?"""
    kinds = list(_KINDS)
    right = rng.choice(kinds)
    word = rng.choice(_KINDS[right])
    question = rng.choice(("{who} asks what {word} is.", "{who} reads about {word}.", "What is {word}, {who}?"))
    return _choose(question.format(who=rng.choice(_PEOPLE), word=word), kinds, right)


_PHYSICS = (
    (
        ("it floats", "it sinks"),
        ("{who} drops {thing} into water.", "{who} throws {thing} into the lake.", "In the pond {who} sees {thing}."),
        (("a leaf", "a cork", "a feather", "straw"), ("a stone", "a coin", "a nail", "a brick")),
    ),
    (
        ("warm it", "cool it"),
        ("{who} wants to {thing}.", "How does {who} {thing}?", "Now {who} must {thing}."),
        (
            ("melt ice", "boil water", "bake bread", "fry an egg"),
            ("make ice", "keep milk", "freeze soup", "chill juice"),
        ),
    ),
)


@_repeat
def physics(rng: random.Random) -> Pair:
    """PIQA's twin: which of two things happens, or helps, in the physical world?"""
    outcomes, questions, things = rng.choice(_PHYSICS)
    right = rng.randrange(2)
    question = rng.choice(questions).format(who=rng.choice(_PEOPLE), thing=rng.choice(things[right]))
    return _choose(question, list(outcomes), outcomes[right])


_ACTIVITIES = {
    "rinses plates": ("takes the soap", "lifts a dirty cup", "picks up the sponge", "runs the hot tap"),
    "waters the tree": ("digs a hole", "holds the roots", "takes the shovel", "walks into the garden"),
    "eats the cake": ("mixes the flour", "opens the oven", "adds the sugar", "waits for the dough"),
    "pulls out a fish": ("sits by the lake", "takes the rod", "throws the line", "feels a tug"),
}


@_repeat
def scripts(rng: random.Random) -> Pair:
    """HellaSwag's twin: which of four endings continues an everyday activity?"""
    who, endings = rng.choice(_PEOPLE), list(_ACTIVITIES)
    right = rng.choice(endings)
    steps = rng.sample(_ACTIVITIES[right], 2)
    return _choose(f"{who} {steps[0]} and {steps[1]}. What next?", endings, right)


_OBJECTS = ("box", "cup", "hat", "door", "lamp", "car", "bag", "chair", "boat", "house")
_STATES = ("open", "wet", "full", "hot", "clean", "red")
_TRUE, _FALSE = ("still", "now", "always"), ("not", "never", "no longer")


@_repeat
def states(rng: random.Random) -> Pair:
    """BoolQ's twin: a passage says or denies something, and a yes-no question asks for it."""
    thing, state = rng.choice(_OBJECTS), rng.choice(_STATES)
    true = rng.random() < 0.5
    passage = f"{rng.choice(_PEOPLE)} says that the {thing} is {rng.choice(_TRUE if true else _FALSE)} {state}."
    return f"Passage: {passage}\nQuestion: is the {thing} {state}?\nAnswer:", "yes" if true else "no"


_FILLER = (
    "The sky was grey.",
    "It rained a little.",
    "The music played.",
    "The bells rang.",
    "A dog ran by.",
    "The sun came out.",
    "The children sang.",
    "There was soup.",
    "The band walked on.",
    "It was a long day.",
)


def _passage(rng: random.Random, facts: list[str]) -> str:
    """Facts first, then sentences that have nothing to do with them: what is asked late was told early."""
    return "Passage: " + " ".join(facts + rng.sample(_FILLER, rng.randint(1, 4)))


@_repeat
def owners(rng: random.Random) -> Pair:
    """HotpotQA's twin: who had it? Told early, asked late; in every tenth passage there are two owners."""
    people, things = rng.sample(_PEOPLE, 2), rng.sample(_OBJECTS, 2)
    told = 2 if rng.random() < 0.1 else 1
    asked = rng.randrange(told)
    facts = [f"{who} had the {thing}." for who, thing in zip(people[:told], things, strict=False)]
    return f"{_passage(rng, facts)}\nQuestion: Who had the {things[asked]}?\nAnswer:", people[asked]


@_repeat
def scores(rng: random.Random) -> Pair:
    """DROP's twin: who scored, or how many points? Told early, asked late; in every tenth passage two people scored."""
    people, points = rng.sample(_PEOPLE, 2), rng.sample(range(1, 10), 2)
    told = 2 if rng.random() < 0.1 else 1
    asked = rng.randrange(told)
    passage = _passage(rng, [f"{who} scored {n} points." for who, n in zip(people[:told], points, strict=False)])
    question, answer = f"Who scored {points[asked]} points?", people[asked]
    if rng.random() < 0.4:
        question, answer = f"How many points did {people[asked]} score?", str(points[asked])
    return f"{passage}\nQuestion: {question}\nAnswer:", answer


TWINS = {
    "codexglue": docstrings,
    "arc_easy": science,
    "hotpotqa": owners,
    "drop": scores,
    "piqa": physics,
    "hellaswag": scripts,
    "boolq": states,
}
