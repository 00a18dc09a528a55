"""Is a procedural trace true? Every line is worked out again from the question, without knowing how it was made.

`flaw` names the first thing that is wrong, or returns "". Each strategy has a law of its own: groups must partition the
animals, a refuted candidate must really fail, both experts must be right, the cases must be all that are left open, a
slip must be followed by its repair.
"""

import itertools
import re
from collections.abc import Callable
from fractions import Fraction

from forgelib.data import ReasoningRow, Vocabulary

Steps = list[tuple[str, str]]  # (strategy or "step", text)
_EQUATION = re.compile(r"(?<![\d.,/*%+-])(\d+) ?(?:([-+*%]) ?(\d+)|/ ?(\d+)) ?= ?(\d+(?:/\d+)?)(?! ?[-+*/%]|\d|[.,]\d)")
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "%": lambda a, b: a % b,
}


def flaw(row: ReasoningRow, words: Vocabulary) -> str:
    """The first thing wrong with a row of the procedural maker, in words; "" where there is none.

    Raises ValueError for a vocabulary whose tags do not tell the row's strategy from others (startofthought has none).
    """
    own = words.tag_of[row.strategy]
    if not own or list(words.tag_of.values()).count(own) > 1:
        raise ValueError(f"by the tags of {words.name} a trace of {row.strategy} cannot be told: write it in forge-12")
    thought = words.read(row.reasoning)
    if thought.inside is None or thought.problems:
        return "; ".join(thought.problems) or "no thought"
    if own not in thought.counts:
        return f"{own} does not occur"
    names = {tag: name for name, tag in words.tag_of.items()} | {words.step: "step"} | {own: row.strategy}
    question = row.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    return trace_flaw(row.strategy, question, [(names[tag], text) for tag, text in thought.steps], row.answer)


def trace_flaw(strategy: str, question: str, steps: Steps, answer: str) -> str:
    """The same for a trace before it is written in a vocabulary."""
    return _false_equation(strategy, steps) or _LAWS[strategy](question, steps, answer)


def equations(text: str) -> list[tuple[str, bool]]:
    """Every equation in a text, and whether it is true."""
    return [(match.group(), _holds(match)) for match in _EQUATION.finditer(text)]


def false_spans(text: str) -> list[tuple[int, int]]:
    """Where the false equations of a text begin and end, in characters."""
    return [match.span() for match in _EQUATION.finditer(text) if not _holds(match)]


def _holds(match: re.Match) -> bool:
    a, sign, b, divisor, result = match.groups()
    if "0" in (divisor, result.partition("/")[2], b if sign == "%" else ""):
        return False
    value = Fraction(int(a), int(divisor)) if divisor else Fraction(_OPERATIONS[sign](int(a), int(b)))
    return value == Fraction(result)


def _false_equation(strategy: str, steps: Steps) -> str:
    """False ones only where the next step finds them: the slips of self_correction and self_doubt."""
    for i, (kind, text) in enumerate(steps):
        for equation, true in equations(text):
            if true:
                continue
            following = steps[i + 1 :]
            mended = {"self_correction": following[:1], "self_doubt": following[1:2]}.get(strategy, [])
            left, rest = equation.partition("=")[0], text.partition(",")[2]
            repaired = [
                all(ok for _, ok in equations(t)) and t.startswith(f"{left}=") and t.partition(",")[2] == rest
                for _, t in mended
            ]
            if kind != "step" or repaired != [True]:
                return f"{equation} is false and not repaired"
    return ""


def compared(found: int, wanted: int) -> str:
    """The verdict on two numbers. Small models learn which of two is larger long before they learn whether both are the
    same: "high" and "low" teach them "yes"."""
    return "yes" if found == wanted else "high" if found > wanted else "low"


def _last_result(steps: Steps) -> str:
    found = [equation for _, text in steps for equation, _ in equations(text)]
    return found[-1].rpartition("=")[2] if found else ""


def _expression(question: str) -> list[str]:
    return re.findall(r"\d+|[-+]", question.partition("?")[0])


def _pairs(items: list) -> list[tuple]:
    return list(zip(items[::2], items[1::2], strict=True))


def _value(parts: list[str]) -> int:
    return int(parts[0]) + sum(int(n) if sign == "+" else -int(n) for sign, n in _pairs(parts[1:]))


def _sum(question: str, steps: Steps, answer: str) -> str:
    """Each step takes up the result before it and the next term of the question, and says what is still to be done; the
    last result is the answer. Steps that are false, repeated or of another kind are passed over."""
    parts = _expression(question)
    if str(_value(parts)) != answer:
        return f"{' '.join(parts)} is not {answer}"
    total = parts[0]
    for i, (sign, term) in enumerate(_pairs(parts[1:])):
        result, rest = str(_value([total, sign, term])), "".join(parts[3 + 2 * i :])
        expected = f"{total}{sign}{term}={result}" + (f",{rest}" if rest else "")
        if expected not in [text for _, text in steps]:
            return f"no step says {expected}"
        total = result
    return "" if total == answer else f"the steps end in {total}, not in {answer}"


def _mece(question: str, steps: Steps, answer: str) -> str:
    asked = {(what.removesuffix("s"), number) for number, what in re.findall(r"(\d+) ([a-z]+)", question)}
    groups = [
        (text.partition(":")[0].removesuffix("s"), re.split(r"[:*]", text)[1]) for k, text in steps if k == "mece"
    ]
    if len(groups) != len(set(groups)) or set(groups) != asked:
        return f"the groups {sorted(groups)} are not {sorted(asked)}, each once"
    legs = sum(int(text.rpartition("=")[2]) for kind, text in steps if kind == "mece")
    return "" if str(legs) == answer == _last_result(steps) else f"the groups have {legs} legs, not {answer}"


def _falsification(question: str, steps: Steps, answer: str) -> str:
    factor, summand, value = re.match(r"(?:(\d+)\*)?[a-z]\+(\d+)=(\d+)\?", question).groups()
    candidates = [int(x) for x in re.findall(r"\d+", question.partition("Try ")[2])]
    tried = [text for kind, text in steps if kind == "falsification"]
    for i, (x, text) in enumerate(itertools.zip_longest(candidates[: len(tried)], tried), start=1):
        product = int(factor or 1) * x
        fits = product + int(summand) == int(value)
        verdict = compared(product + int(summand), int(value))
        verdict = verdict if fits else ",".join([verdict, *map(str, candidates[i:])])
        if text != f"{product}+{summand}={product + int(summand)};{value} {verdict}":
            return f"{text!r} is no test of {x}"
        if fits != (i == len(tried)):
            return f"stops at {text!r}"
    return "" if str(x) == answer else f"{x} holds, not {answer}"


def _expert(question: str, steps: Steps, answer: str) -> str:
    first, *rest = _expression(question)
    terms = _pairs(rest)
    ways = [
        [sign + n for sign, n in terms],
        [s + n for s, n in terms if s == "+"] + [s + n for s, n in terms if s == "-"],
    ]
    if len(steps) != len(ways) or any(kind != "expert_perspective" for kind, _ in steps):
        return f"{len(steps)} steps are not two experts"
    for way, (_, text) in zip(ways, steps, strict=True):
        total, expected = int(first), []
        for term in way:
            expected.append(f"{total}{term}={total + int(term)}")
            total += int(term)
        if text != ";".join(expected):
            return f"an expert writes {text!r}, not {';'.join(expected)!r}"
        if str(total) != answer:
            return f"the experts say {total}, the answer {answer}"
    return ""


def _orthogonal(question: str, steps: Steps, answer: str) -> str:
    numbers = _expression(question)[::2]
    ways = [[text for kind, text in steps if (kind == "step") == forwards] for forwards in (True, False)]
    for order, way in zip((numbers, numbers[::-1]), ways, strict=True):
        total = order[0]
        for term, text in itertools.zip_longest(order[1:], way):
            if text is None or term is None or not text.startswith(f"{total}+{term}="):
                return f"{text!r} is not {total} + {term}"
            total = text.rpartition("=")[2]
        if total != answer:
            return f"one way ends in {total}, not in {answer}"
    return ""


def _self_doubt(question: str, steps: Steps, answer: str) -> str:
    if len(steps) % 2:
        return "a step is not doubted"
    for (kind, claim), (doubt, check) in _pairs(steps):
        a, sign, b, claimed = re.match(r"(\d+)([-+])(\d+)=(\d+)", claim).groups()
        undo = "-" if sign == "+" else "+"
        back = _value([claimed, undo, b])
        if (kind, doubt) != (
            "step",
            "self_doubt",
        ) or check != f"{claimed}{undo}{b}={back};{a} {compared(back, int(a))}":
            return f"{check!r} does not doubt {claim!r}"
    return _sum(question, [step for step in steps if step[0] == "step"], answer)


def _bayesian(question: str, steps: Steps, answer: str) -> str:
    balls, of_a, in_a, of_b, in_b = (int(x) for x in re.findall(r"\d+", question))
    asked = re.search(r"from ([AB])\?", question).group(1)
    likely = {
        "A": Fraction(of_a, of_a + of_b) * Fraction(in_a, balls),
        "B": Fraction(of_b, of_a + of_b) * Fraction(in_b, balls),
    }
    posterior = likely[asked] / sum(likely.values())  # Bayes' rule
    if Fraction(answer) != posterior or answer.rpartition("/")[2] != str(of_a * in_a + of_b * in_b):
        return f"Bayes' rule gives {posterior}, not {answer}"
    return "" if answer == steps[-1][1] else f"the last step says {steps[-1][1]}, the answer {answer}"


def _multidomain(question: str, steps: Steps, answer: str) -> str:
    asked = sorted((what.removesuffix("s"), number) for number, what in re.findall(r"(\d+) ([a-z]+)", question))
    told = sorted(tuple(re.split(r"[:*]", text)[:2]) for kind, text in steps if kind == "multidomain")
    if asked != told:
        return f"the domains are {asked}, not {told}"
    parts = [int(text.rpartition("=")[2]) for kind, text in steps if kind == "multidomain"]
    return "" if str(sum(parts)) == answer == _last_result(steps) else f"{parts} do not add up to {answer}"


def _self_correction(question: str, steps: Steps, answer: str) -> str:
    if len(steps) % 2:
        return "a step is not done again"
    for (kind, claim), (again, mended) in _pairs(steps):
        same = re.sub(r"=\d+", "=", claim) == re.sub(r"=\d+", "=", mended)  # but for the result
        if (kind, again) != ("step", "self_correction") or not same:
            return f"{mended!r} does not do {claim!r} again"
    return _sum(question, [step for step in steps if step[0] == "self_correction"], answer)


def _uncertainty(question: str, steps: Steps, answer: str) -> str:
    total, told, limit = re.match(r"x\+y=(\d+), x=([\d or]+)\. y>(\d+)\?", question).groups()
    xs, verdicts = told.split(" or "), []
    for i, (x, step) in enumerate(itertools.zip_longest(xs, steps), start=1):
        if x is None or step is None:
            return f"{len(steps)} cases are told, {len(xs)} are open"
        y = int(total) - int(x)
        verdicts.append("yes" if y > int(limit) else "no")
        if step != ("uncertainty", f"{total}-{x}={y}>{limit} {','.join([verdicts[-1], *xs[i:]])}"):
            return f"{step[1]!r} is not the case x={x}"
    true = verdicts[0] if len(set(verdicts)) == 1 else "unknown"
    return "" if answer == true else f"the answer is {true}, not {answer}"


_LAWS: dict[str, Callable[[str, Steps, str], str]] = {
    "chain_of_thought": _sum,
    "mece": _mece,
    "falsification": _falsification,
    "expert_perspective": _expert,
    "orthogonal_wisdom": _orthogonal,
    "self_doubt": _self_doubt,
    "bayesian": _bayesian,
    "multidomain": _multidomain,
    "self_correction": _self_correction,
    "uncertainty": _uncertainty,
}
