"""Twins for the kinds that reasoning-gym has not: code and its docstring, school science, everyday knowledge, passages
with questions."""

import random
from collections.abc import Callable, Iterator

Pair = tuple[str, str]
_CHUNK = 1000
_PEOPLE = ("Ana", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe", "Ida", "Max", "Lea", "Jon")
_COLOURS = ("red", "blue", "green", "black", "white", "yellow")


def _repeat(one: Callable[[random.Random], Pair]) -> Callable[[int], Iterator[Pair]]:
    def generator(seed: int) -> Iterator[Pair]:
        rng = random.Random(seed)
        return (one(rng) for _ in range(_CHUNK))

    generator.__doc__ = one.__doc__
    return generator


def _choice(rng: random.Random, question: str, right: str, wrong: list[str]) -> Pair:
    options = [right, *wrong]
    rng.shuffle(options)
    lines = "\n".join(f"{chr(65 + index)}. {option}" for index, option in enumerate(options))
    return f"Question: {question}\n{lines}\nAnswer: ", chr(65 + options.index(right))


_FUNCTIONS = (
    ("{x} + {n}", "Add {n} to {x}."),
    ("{x} - {n}", "Subtract {n} from {x}."),
    ("{x} * {n}", "Multiply {x} by {n}."),
    ("max({x}, {y})", "Return the larger of {x} and {y}."),
    ("min({x}, {y})", "Return the smaller of {x} and {y}."),
    ("len({x})", "Count the items of {x}."),
    ("{x}[0]", "Return the first item of {x}."),
    ("{x}[-1]", "Return the last item of {x}."),
    ("sum({x})", "Sum the items of {x}."),
    ("sorted({x})", "Sort the items of {x}."),
    ("{x} == {y}", "Check whether {x} equals {y}."),
    ("{x} in {y}", "Check whether {x} is in {y}."),
    ("{x}.upper()", "Write {x} in capitals."),
    ("{x} + [{y}]", "Append {y} to {x}."),
)
_ARGUMENTS = (
    "a",
    "b",
    "x",
    "y",
    "left",
    "right",
    "first",
    "second",
    "items",
    "values",
    "data",
    "rows",
    "item",
    "value",
    "key",
    "name",
)
_FUNCTION_NAMES = ("run", "work", "apply", "compute", "solve", "step", "process", "helper", "main", "call")


@_repeat
def docstrings(rng: random.Random) -> Pair:
    """CodeXGLUE's twin: the first docstring line of a one-line function."""
    body, summary = rng.choice(_FUNCTIONS)
    x, y = rng.sample(_ARGUMENTS, 2)
    words = {"x": x, "y": y, "n": str(rng.randint(1, 9))}
    arguments = f"{x}, {y}" if "{y}" in body else x
    code = f"def {rng.choice(_FUNCTION_NAMES)}({arguments}):\n    return {body.format(**words)}"
    return f"{code}\nQuestion: What does this function do?\nAnswer: ", summary.format(**words)


_KINDS = {
    "a mammal": ("dog", "cat", "horse", "cow", "whale", "mouse", "bear", "lion", "goat", "bat"),
    "a bird": ("crow", "hen", "eagle", "owl", "swan", "robin", "goose", "gull", "parrot", "duck"),
    "a fish": ("trout", "shark", "salmon", "tuna", "carp", "cod", "eel", "pike", "herring", "perch"),
    "an insect": ("ant", "bee", "fly", "wasp", "moth", "beetle", "cricket", "flea", "locust", "gnat"),
    "a tree": ("oak", "pine", "birch", "elm", "maple", "willow", "beech", "cedar", "fir", "ash"),
    "a metal": ("iron", "gold", "copper", "silver", "zinc", "tin", "lead", "nickel", "steel", "brass"),
    "a planet": ("Mars", "Venus", "Earth", "Saturn", "Jupiter", "Neptune", "Uranus", "Mercury"),
    "a gas": ("oxygen", "helium", "air", "steam", "nitrogen", "neon", "methane", "argon"),
}


@_repeat
def science(rng: random.Random) -> Pair:
    """ARC-Easy's twin: which of four things belongs to a kind that school science names?"""
    kind, *others = rng.sample(sorted(_KINDS), 4)
    question = rng.choice(("Which of these is {}?", "Which one is {}?", "Which word names {}?")).format(kind)
    return _choice(rng, question, rng.choice(_KINDS[kind]), [rng.choice(_KINDS[one]) for one in others])


_TOOLS = {
    "a knife": ("cut the bread", "slice an apple", "cut a rope"),
    "a spoon": ("eat the soup", "stir the tea", "taste the sauce"),
    "a hammer": ("drive in a nail", "break a stone", "flatten a nail"),
    "a broom": ("sweep the floor", "clean the stairs", "gather the leaves"),
    "a towel": ("dry the plates", "dry wet hair", "wipe the hands"),
    "a key": ("open the lock", "lock the door", "open the chest"),
    "a lamp": ("light the room", "read at night", "see in the dark"),
    "a needle": ("sew a button", "mend the shirt", "stitch the cloth"),
    "a bucket": ("carry water", "collect the rain", "wash the car"),
    "a ladder": ("reach the roof", "climb the wall", "pick high fruit"),
    "a pen": ("write a letter", "sign the paper", "fill in the form"),
    "a shovel": ("dig a hole", "move the snow", "plant a tree"),
    "a stove": ("boil the water", "cook the rice", "heat the milk"),
    "a rope": ("tie the boat", "pull the cart", "hang the swing"),
    "a map": ("find the way", "plan the trip", "find the town"),
    "an umbrella": ("stay dry in the rain", "keep off the rain", "walk in a storm"),
}


@_repeat
def tools(rng: random.Random) -> Pair:
    """PIQA's twin: which of two things serves a purpose?"""
    right, wrong = rng.sample(sorted(_TOOLS), 2)
    question = rng.choice(("How does {} {}?", "{} wants to {}.", "What helps {} to {}?"))
    return _choice(
        rng, question.format(rng.choice(_PEOPLE), rng.choice(_TOOLS[right])), f"With {right}.", [f"With {wrong}."]
    )


_SCRIPTS = (
    ("washes the dishes", "fills the sink", "rubs the plates with soap", "puts the clean plates away"),
    ("plants a tree", "digs a hole", "sets the roots in the earth", "waters the young tree"),
    ("bakes a cake", "mixes flour and eggs", "puts the dough in the oven", "lets the cake cool"),
    ("paints the wall", "opens the paint", "dips the brush", "lets the wall dry"),
    ("goes fishing", "takes the rod", "throws the line", "pulls a fish out of the lake"),
    ("makes tea", "boils the water", "adds the leaves", "pours the tea into a cup"),
    ("mends a bike", "turns the bike over", "takes off the wheel", "pumps up the tyre"),
    ("goes to bed", "brushes the teeth", "turns off the light", "falls asleep"),
    ("writes a letter", "takes a sheet of paper", "writes the last line", "puts the letter in the post"),
    ("washes the car", "fills a bucket", "rubs the doors with a sponge", "rinses the car"),
    ("plays football", "puts on the boots", "runs after the ball", "scores a goal"),
    ("buys bread", "walks to the baker", "asks for a loaf", "pays and goes home"),
)


@_repeat
def scripts(rng: random.Random) -> Pair:
    """HellaSwag's twin: which of four endings continues an everyday activity?"""
    who = rng.choice(_PEOPLE)
    right, *others = rng.sample(_SCRIPTS, 4)
    shown = [f"{who} {right[0]}."] + [f"{who} {step}." for step in right[1 : rng.choice((2, 3))]]
    ending = right[len(shown)]
    wrong = [rng.choice(script[2:]) for script in others]
    return _choice(rng, f"How does this go on? {' '.join(shown)} {who}", ending, wrong)


_OBJECTS = ("box", "cup", "hat", "door", "lamp", "car", "bag", "chair", "boat", "house")


@_repeat
def colours(rng: random.Random) -> Pair:
    """BoolQ's twin: a passage of facts and a yes-no question on one of them."""
    things = rng.sample(_OBJECTS, rng.randint(2, 4))
    colour = {thing: rng.choice(_COLOURS) for thing in things}
    asked = rng.choice(things)
    true = rng.random() < 0.5
    said = colour[asked] if true else rng.choice([one for one in _COLOURS if one != colour[asked]])
    passage = " ".join(f"The {thing} is {colour[thing]}." for thing in things)
    return f"Passage: {passage}\nQuestion: is the {asked} {said}?\nAnswer: ", "yes" if true else "no"


_FILLER = (
    "The sky was grey in the morning.",
    "Many people came to watch.",
    "The music played for a while.",
    "It rained a little at noon.",
    "The children sang an old song.",
    "A dog ran across the field.",
    "The band walked around the lake.",
    "Later the sun came out.",
    "Some guests went home early.",
    "The mayor gave a short speech.",
    "There was soup and bread for all.",
    "The bells rang at four.",
)


@_repeat
def scores(rng: random.Random) -> Pair:
    """DROP's twin: numbers told early, then other sentences, then a question on one number or on two."""
    people = rng.sample(_PEOPLE, rng.randint(2, 4))
    points = dict(zip(people, rng.sample(range(1, 10), len(people)), strict=True))
    told = [f"{who} scored {points[who]} points." for who in people]
    passage = " ".join(told + rng.sample(_FILLER, rng.randint(2, 6)))
    asked = rng.choice(people)
    form = rng.random()
    if form < 0.6:
        question, answer = f"How many points did {asked} score?", str(points[asked])
    elif form < 0.9:
        question, answer = f"Who scored {points[asked]} points?", asked
    else:
        question, answer = "Who scored the most points?", max(people, key=points.__getitem__)
    return f"Passage: {passage}\nQuestion: {question}\nAnswer: ", answer


TWINS = {
    "codexglue": docstrings,
    "arc_easy": science,
    "piqa": tools,
    "hellaswag": scripts,
    "boolq": colours,
    "drop": scores,
}
