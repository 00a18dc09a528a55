"""Two answers to one word problem: is it the same number?

Datasets such as GSM8K and SVAMP are scored by the final number, however it is dressed: `1,200`, `$1200.00`, `so she has
1200 apples.` and `... #### 1200` all say the same.
"""

import re
from fractions import Fraction

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|-?\.\d+")


def final_number(text: str) -> Fraction | None:
    """The number behind the last `####` (GSM8K's mark), else the last one of the text; None where there is none.

    A minus that stands right behind a digit, a letter or a bracket subtracts: "7-2" ends in 2, "it is -2" in -2.
    """
    behind = text.rpartition("####")[2]
    found = list(_NUMBER.finditer(behind))
    if not found:
        return None
    last = found[-1]
    number, before = last.group().replace(",", ""), behind[: last.start()].rstrip()
    touches = len(before) == last.start()
    if number.startswith("-") and touches and before and (before[-1].isalnum() or before[-1] == ")"):
        number = number[1:]
    top, _, below = number.partition("/")
    return None if below and int(below) == 0 else Fraction(top) / int(below or 1)


def same_number(answer: str, reference: str) -> bool:
    """Whether both end in the same number. Raises ValueError for a reference without one."""
    wanted = final_number(reference)
    if wanted is None:
        raise ValueError(f"the reference {reference[:40]!r} holds no number: compare it as text")
    return final_number(answer) == wanted
