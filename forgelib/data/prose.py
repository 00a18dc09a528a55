"""Twins of the language datasets: short invented texts whose later sentences depend on their earlier ones."""

import random
from collections.abc import Iterator

Pair = tuple[str, str]
_CHUNK = 1000

_TOWNS = (
    "Arden",
    "Belmar",
    "Corvin",
    "Delmont",
    "Elstow",
    "Farnley",
    "Galway",
    "Holm",
    "Ilford",
    "Jarrow",
    "Kelso",
    "Lorne",
)
_RIVERS = ("Tam", "Orr", "Wey", "Lin", "Dee", "Ure")
_LANDS = ("north", "south", "east", "west")
_GOODS = ("wool", "glass", "paper", "salt", "wine", "ships", "clocks", "bread")
_BUILDINGS = ("church", "castle", "bridge", "mill", "school", "museum")
_PEOPLE = ("Ana", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe")
_ANIMALS = ("dog", "cat", "horse", "goat", "hen", "mouse")
_PLACES = ("garden", "forest", "market", "lake", "hill", "barn")
_OBJECTS = ("key", "ball", "book", "lamp", "basket", "ring")


def town(rng: random.Random) -> str:
    """WikiText's twin: an encyclopedia's entry on a town."""
    name, river, land = rng.choice(_TOWNS), rng.choice(_RIVERS), rng.choice(_LANDS)
    goods, building, year = rng.choice(_GOODS), rng.choice(_BUILDINGS), rng.randint(11, 19) * 100
    body = [
        f"The town is known for its {goods}.",
        f"The oldest {building} of {name} was built in {year}.",
        f"A bridge over the {river} leads to the {rng.choice(_LANDS)}.",
        f"About {rng.randint(2, 9)}000 people live in {name}.",
        f"Most of them work with {goods}.",
        f"Every year a fair for {goods} is held by the {building}.",
    ]
    rng.shuffle(body)
    ending = f"So {name} on the {river} is still a town of {goods}."
    return " ".join([f"{name} is a town in the {land} on the river {river}.", *body[: rng.randint(2, 4)], ending])


_SUBJECTS = {
    "plant": ("light", "grows leaves", "water from the soil"),
    "fish": ("clean water", "breathes with gills", "small plants"),
    "bird": ("feathers", "builds a nest", "seeds and insects"),
    "cloud": ("cold air", "brings rain", "water from the sea"),
    "magnet": ("two poles", "pulls iron", "its own field"),
    "bee": ("flowers", "makes honey", "sweet juice"),
}


def lesson(rng: random.Random) -> str:
    """FineWeb-Edu's twin: a short explanation."""
    subject = rng.choice(sorted(_SUBJECTS))
    need, does, uses = _SUBJECTS[subject]
    place = rng.choice(_PLACES)
    body = [
        f"Every {subject} needs {need}.",
        f"A {subject} {does}.",
        f"It uses {uses}.",
        f"Without {need} no {subject} can last.",
        f"You can see this near a {place}.",
        f"When a {subject} {does}, others profit.",
    ]
    rng.shuffle(body)
    opening = rng.choice((f"What is a {subject}?", f"Let us look at a {subject}.", f"Today we study the {subject}."))
    return " ".join([opening, *body[: rng.randint(3, 5)], f"Remember: a {subject} {does} because it has {need}."])


def story(rng: random.Random) -> str:
    """OpenWebText's twin: a small story in which a thing is lost and found again where it was left."""
    (who, friend), animal = rng.sample(_PEOPLE, 2), rng.choice(_ANIMALS)
    thing, (place, other) = rng.choice(_OBJECTS), rng.sample(_PLACES, 2)
    middle = [
        f"Then {who} met {friend} at the {other}.",
        f"{friend} had a {animal}.",
        f"The {animal} was hungry.",
        f"They played with the {animal} for an hour.",
        "They ate bread and talked.",
        f"Soon it was dark and the {animal} slept.",
    ]
    chosen = [line for line in middle if rng.random() < 0.6]
    return " ".join(
        [
            f"{who} had a {rng.choice(('new', 'old', 'small', 'fine'))} {thing}.",
            f"{who} left the {thing} in the {place}.",
            *chosen,
            f"Where is the {thing}? asked {friend}.",
            f"{who} said that it was in the {place}, and there they found the {thing}.",
        ]
    )


def _texts(one):
    def generator(seed: int) -> Iterator[Pair]:
        rng = random.Random(seed)
        return ((one(rng), "") for _ in range(_CHUNK))

    return generator


TWINS = {"wikitext": _texts(town), "fineweb_edu": _texts(lesson), "openwebtext": _texts(story)}
