"""What a language model is asked for, and what can be read of its answer: strategies in words, one worked example of
each, the instruction for a JSON array, and a reader that saves the sound objects of a truncated or malformed one."""

import hashlib
import json
import random
import re
from dataclasses import dataclass

from forgelib.data import Vocabulary

OWN, STEP = "own", "step"
TOPICS = (
    *("money and shopping", "travel and distance", "time and calendars", "cooking", "sports", "families", "gardening"),
    *("weather", "simple physics", "living things", "building", "schedules", "word meanings", "counting objects"),
    *("fractions", "ratios", "probability", "logic puzzles", "everyday decisions", "reading a short text", "maps"),
)


@dataclass(frozen=True)
class Strategy:
    """How a strategy thinks, in a sentence, and an example: `steps` are (OWN or STEP, text), OWN takes its own tag."""

    way: str
    question: str
    steps: tuple[tuple[str, str], ...]
    answer: str
    topic: str


STRATEGY_TEXTS = {
    "chain_of_thought": Strategy(
        "goes from the question to the answer in small steps, each using the one before",
        "A box holds 3 red and 4 blue pens. Ann takes 2. How many are left?",
        ((STEP, "3 + 4 = 7 pens"), (STEP, "7 - 2 = 5 pens")),
        "5",
        "counting objects",
    ),
    "mece": Strategy(
        "splits the problem into cases that do not overlap and leave nothing out, then solves each",
        "How many whole numbers from 1 to 10 are even or divisible by 5?",
        ((OWN, "even: 2, 4, 6, 8, 10, five numbers"), (OWN, "odd and divisible by 5: 5"), (STEP, "5 + 1 = 6")),
        "6",
        "counting objects",
    ),
    "falsification": Strategy(
        "states a guess and tries to break it with a test before it is believed",
        "Is every number that 3 divides also divisible by 6?",
        ((STEP, "guess: yes, as 12 and 18 are"), (OWN, "test 9: 9 / 3 = 3, but 9 / 6 is not whole; the guess falls")),
        "no",
        "logic puzzles",
    ),
    "expert_perspective": Strategy(
        "asks what a named expert of the field would look at first, and follows it",
        "A recipe for 4 people needs 6 eggs. How many eggs for 10 people?",
        ((OWN, "a cook works out the share of one person: 6 / 4 = 1.5 eggs"), (STEP, "10 * 1.5 = 15")),
        "15",
        "cooking",
    ),
    "orthogonal_wisdom": Strategy(
        "leaves the obvious way and solves the problem from an unrelated side, by analogy or by turning it round",
        "What is 1 + 2 + 3 + ... + 10?",
        ((OWN, "fold the row like paper: 1 meets 10, 2 meets 9, each pair makes 11"), (STEP, "5 pairs * 11 = 55")),
        "55",
        "counting objects",
    ),
    "self_doubt": Strategy(
        "doubts one of its own steps, checks it in another way and keeps or replaces it",
        "What is 17 * 6?",
        ((STEP, "17 * 6 = 92"), (OWN, "is it? 10 * 6 = 60 and 7 * 6 = 42, together 102, so 92 was wrong")),
        "102",
        "counting objects",
    ),
    "bayesian": Strategy(
        "writes down the prior and the likelihoods and computes the posterior with Bayes' rule",
        "Half of the coins have two heads, the others are fair. One coin shows heads. How likely has it two heads?",
        ((OWN, "prior 1/2; heads: 1 with two heads, 1/2 if fair"), (OWN, "(1/2 * 1) / (1/2 * 1 + 1/2 * 1/2) = 2/3")),
        "2/3",
        "probability",
    ),
    "multidomain": Strategy(
        "joins facts of at least two named fields, one step for each",
        "A 60 watt lamp burns 10 hours. A kilowatt hour costs 30 cents. What does it cost in cents?",
        ((OWN, "physics: 60 W * 10 h = 600 Wh = 0.6 kWh"), (OWN, "economics: 0.6 kWh * 30 cents = 18 cents")),
        "18",
        "simple physics",
    ),
    "self_correction": Strategy(
        "makes a real slip in one step, notices it and repairs it in the next",
        "A train leaves at 9:40 and travels 35 minutes. When does it arrive?",
        ((STEP, "9:40 + 35 min = 9:75 = 10:25"), (OWN, "9:75 is 60 + 15 minutes, so it is 10:15, not 10:25")),
        "10:15",
        "time and calendars",
    ),
    "uncertainty": Strategy(
        "says what the question leaves open and how sure the answer can be; its questions are under-determined",
        "Tom is older than Ann and Bob is older than Ann. Who is the oldest?",
        ((STEP, "Ann is the youngest of the three"), (OWN, "nothing compares Tom with Bob, so either can be oldest")),
        "cannot be told",
        "logic puzzles",
    ),
}


def example_steps(strategy: str, words: Vocabulary) -> list[tuple[str, str]]:
    """The example's steps as (tag, text) in a vocabulary."""
    tags = {OWN: words.tag_of[strategy], STEP: words.step}
    return [(tags[kind], text) for kind, text in STRATEGY_TEXTS[strategy].steps]


def json_request(strategy: str, count: int, words: Vocabulary, number: int) -> str:
    """The instruction to write `count` rows of a strategy as a JSON array. `number`, the request's own, chooses the
    topics, so that one request does not repeat the problems of another."""
    own, facts = words.tag_of[strategy], STRATEGY_TEXTS[strategy]
    steps = [list(step) if words.tags else step[1] for step in example_steps(strategy, words)]
    example = {"prompt": facts.question, "steps": steps, "answer": facts.answer, "difficulty": 1, "topic": facts.topic}
    seed = int.from_bytes(hashlib.sha256(f"{strategy}/{number}".encode()).digest()[:8], "big")
    topics = ", ".join(random.Random(seed).sample(TOPICS, 5))
    tags = (
        f'"steps" is an array of [tag, text]; tags are {", ".join(words.tags)} and no others, and at least one step '
        f"carries {own}. A text holds no tag."
        if words.tags
        else '"steps" is an array of texts.'
    )
    return (
        f"Write {count} different problems with their reasoning and their answer. The reasoning {facts.way}.\n"
        f'Give a JSON array of {count} objects and nothing else. Fields: "prompt", the problem, complete in itself; '
        f'"steps", the reasoning; "answer", short, without the reasoning; "difficulty", 1, 2 or 3; "topic".\n{tags}\n'
        f"Topics of batch {number}: {topics}.\nOne object as an example, not to be repeated:\n"
        f"{json.dumps(example, ensure_ascii=False)}"
    )


def read_objects(text: str) -> tuple[list[dict], list[str]]:
    """(objects, what could not be read) of an answer that should be a JSON array of objects.

    A fence, a sentence before it and an enclosing object are passed over. What is malformed costs its own object and no
    other; a text that ends in the middle of an object costs that one.
    """
    decoder, found, lost = json.JSONDecoder(), [], []
    opening = re.match(r'[^{\[]*(\{\s*"\w+"\s*:\s*)?\[', text)
    at, broken = opening.end() if opening else 0, False
    while (at := text.find("{", at)) >= 0:
        try:
            one, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            if not broken:
                lost.append(at)
            broken, at = True, at + 1
            continue
        if broken and "prompt" not in one:  # a piece of the object that could not be read
            at += 1
            continue
        found.append(one)
        broken, at = False, end
    reasons = ["malformed JSON"] * len(lost)
    if broken and not text.rstrip().endswith(("]", "}", "`")):
        reasons[-1] = "cut off in the middle"
    if not found and not lost:
        reasons = ["no JSON object"]
    return found, reasons
