"""The sixteen datasets: where each lives on the Hugging Face hub, its fields, its licence, and how a row becomes an
Example.

A field is named by its path ("choices.text") with the type it must have. `to_example` may rely on the fields; what
only the row's content can show (a label of -1, an answer without a number) it refuses with RowError.
"""

import math
import re

from forgelib.data import DatasetSpec, FieldTypes, Row, RowError


def ask(question: str, *context: str) -> str:
    """The one shape of every prompt: context lines, the question, and the place for the answer."""
    return "\n".join([*(line.strip() for line in context if line.strip()), f"Question: {question.strip()}", "Answer:"])


def letter_choices(options: list[str]) -> str:
    return "\n".join(f"{chr(65 + index)}. {option.strip()}" for index, option in enumerate(options))


def ask_choice(question: str, options: list[str]) -> str:
    return f"Question: {question.strip()}\n{letter_choices(options)}\nAnswer:"


def plain_number(text: str, field: str) -> str:
    """'1,200' and '51.0' as '1200' and '51'."""
    cleaned = text.strip().replace(",", "").replace("$", "")
    try:
        value = float(cleaned)
    except ValueError:
        raise RowError(field, f"must be a number, not {text[:40]!r}") from None
    if not math.isfinite(value):
        raise RowError(field, f"must be a number, not {text[:40]!r}")
    return str(int(value)) if value.is_integer() else cleaned


def gsm8k(row: Row) -> tuple[str, str, str]:
    solution, mark, final = row["answer"].rpartition("####")
    if not mark:
        raise RowError("answer", "has no final number after '####'")
    reasoning = re.sub(r"<<.*?>>", "", solution).strip()
    return ask(row["question"]), plain_number(final, "answer"), reasoning


def svamp(row: Row) -> tuple[str, str, str]:
    body = row["Body"].strip().rstrip(".")
    return ask(f"{body}. {row['Question'].strip()}"), plain_number(row["Answer"], "Answer"), ""


def asdiv(row: Row) -> tuple[str, str, str]:
    answer = re.sub(r"\s*\([^)]*\)", "", row["answer"]).strip()
    if not answer:
        raise RowError("answer", f"is empty without its unit: {row['answer'][:40]!r}")
    return ask(f"{row['body'].strip()} {row['question'].strip()}"), answer, ""


def mbpp(row: Row) -> tuple[str, str, str]:
    if not row["test_list"]:
        raise RowError("test_list", "is empty; the first test names the function to write")
    code = "\n".join(line.rstrip() for line in row["code"].replace("\t", "    ").splitlines()).strip()
    return ask(f"{row['text'].strip()}\nTest: {row['test_list'][0].strip()}"), code, ""


def codexglue(row: Row) -> tuple[str, str, str]:
    summary = next((line.strip() for line in row["docstring"].splitlines() if line.strip()), "")
    if not summary:
        raise RowError("docstring", "is empty; there is nothing to describe the function with")
    code = re.sub(r'[ \t]*[rRuU]?("""|\'\'\')(.*?)\1[ \t]*\n?', "", row["code"], count=1, flags=re.DOTALL).strip()
    if summary in code:
        code = " ".join(row["code_tokens"])
    return ask("What does this function do?", code), summary, ""


def arc(row: Row) -> tuple[str, str, str]:
    labels, options = row["choices"]["label"], row["choices"]["text"]
    if row["answerKey"] not in labels or len(labels) != len(options):
        raise RowError("answerKey", f"{row['answerKey']!r} is none of the choices {labels}")
    return ask_choice(row["question"], options), chr(65 + labels.index(row["answerKey"])), ""


def hotpotqa(row: Row) -> tuple[str, str, str]:
    pages = zip(row["context"]["title"], row["context"]["sentences"], strict=False)
    passage = "\n".join(f"{title}: {''.join(sentences).strip()}" for title, sentences in pages)
    return ask(row["question"], f"Passage: {passage}"), row["answer"].strip(), ""


def drop(row: Row) -> tuple[str, str, str]:
    spans = row["answers_spans"]["spans"]
    if not spans:
        raise RowError("answers_spans.spans", "is empty; the question has no answer")
    return ask(row["question"], f"Passage: {row['passage']}"), spans[0].strip(), ""


def strategyqa(row: Row) -> tuple[str, str, str]:
    facts = row["facts"]
    reasoning = " ".join(facts) if isinstance(facts, list) else facts
    return ask(row["question"]), "yes" if row["answer"] else "no", reasoning


def piqa(row: Row) -> tuple[str, str, str]:
    if row["label"] not in (0, 1):
        raise RowError("label", f"is {row['label']}: this split is unlabeled, read the train or validation split")
    return ask_choice(row["goal"], [row["sol1"], row["sol2"]]), "AB"[row["label"]], ""


def hellaswag(row: Row) -> tuple[str, str, str]:
    label = str(row["label"])
    if not label.isdigit() or int(label) >= len(row["endings"]):
        raise RowError("label", f"is {label!r}: this split is unlabeled, read the train or validation split")
    return ask_choice(f"How does this go on? {row['ctx']}", row["endings"]), chr(65 + int(label)), ""


def boolq(row: Row) -> tuple[str, str, str]:
    return ask(row["question"].strip() + "?", f"Passage: {row['passage']}"), "yes" if row["answer"] else "no", ""


def plain_text(row: Row) -> tuple[str, str, str]:
    return row["text"], "", ""


_ARC_FIELDS: FieldTypes = {"question": str, "choices.text": [str], "choices.label": [str], "answerKey": str}
_SPECS = (
    DatasetSpec(
        "gsm8k",
        "math",
        "openai/gsm8k",
        "main",
        ("train", "test"),
        "MIT",
        {"question": str, "answer": str},
        gsm8k,
        ("gsm8k",),
    ),
    DatasetSpec(
        "svamp",
        "math",
        "ChilleD/SVAMP",
        None,
        ("train", "test"),
        "MIT",
        {"Body": str, "Question": str, "Answer": str},
        svamp,
        ("svamp",),
    ),
    DatasetSpec(
        "asdiv",
        "math",
        "EleutherAI/asdiv",
        "asdiv",
        ("validation",),
        "CC BY-NC 4.0 (not for commercial use)",
        {"body": str, "question": str, "answer": str},
        asdiv,
        ("asdiv",),
    ),
    DatasetSpec(
        "mbpp",
        "code",
        "google-research-datasets/mbpp",
        "full",
        ("train", "validation", "test"),
        "CC BY 4.0",
        {"text": str, "code": str, "test_list": [str]},
        mbpp,
        ("mbpp",),
    ),
    DatasetSpec(
        "codexglue",
        "code",
        "google/code_x_glue_ct_code_to_text",
        "python",
        ("train", "validation", "test"),
        "C-UDA; each function keeps its repository's licence",
        {"code": str, "docstring": str, "code_tokens": [str]},
        codexglue,
        ("codexglue", "codexglue_code_to_text_python"),
        streamed=True,
    ),
    DatasetSpec(
        "arc_easy",
        "qa",
        "allenai/ai2_arc",
        "ARC-Easy",
        ("train", "validation", "test"),
        "CC BY-SA 4.0",
        _ARC_FIELDS,
        arc,
        ("arc_easy",),
    ),
    DatasetSpec(
        "arc_challenge",
        "qa",
        "allenai/ai2_arc",
        "ARC-Challenge",
        ("train", "validation", "test"),
        "CC BY-SA 4.0",
        _ARC_FIELDS,
        arc,
        ("arc_challenge",),
    ),
    DatasetSpec(
        "hotpotqa",
        "qa",
        "hotpotqa/hotpot_qa",
        "distractor",
        ("train", "validation"),
        "CC BY-SA 4.0",
        {"question": str, "answer": str, "context.title": [str], "context.sentences": [list]},
        hotpotqa,
        ("hotpotqa",),
        streamed=True,
    ),
    DatasetSpec(
        "drop",
        "qa",
        "ucinlp/drop",
        None,
        ("train", "validation"),
        "CC BY-SA 4.0",
        {"passage": str, "question": str, "answers_spans.spans": [str]},
        drop,
        ("drop",),
    ),
    DatasetSpec(
        "strategyqa",
        "qa",
        "ChilleD/StrategyQA",
        None,
        ("train", "test"),
        "MIT",
        {"question": str, "answer": bool, "facts": (str, list)},
        strategyqa,
        ("strategyqa",),
    ),
    DatasetSpec(
        "piqa",
        "commonsense",
        "ybisk/piqa",
        None,
        ("train", "validation"),
        "AFL 3.0",
        {"goal": str, "sol1": str, "sol2": str, "label": int},
        piqa,
        ("piqa",),
    ),
    DatasetSpec(
        "hellaswag",
        "commonsense",
        "Rowan/hellaswag",
        None,
        ("train", "validation"),
        "MIT",
        {"ctx": str, "endings": [str], "label": (str, int)},
        hellaswag,
        ("hellaswag",),
    ),
    DatasetSpec(
        "boolq",
        "commonsense",
        "google/boolq",
        None,
        ("train", "validation"),
        "CC BY-SA 3.0",
        {"question": str, "answer": bool, "passage": str},
        boolq,
        ("boolq",),
    ),
    DatasetSpec(
        "wikitext",
        "language",
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        ("train", "validation", "test"),
        "CC BY-SA 3.0 and GFDL",
        {"text": str},
        plain_text,
        ("wikitext", "wikitext-2-raw-v1", "wikitext-2-v1"),
        starts_document=r" = [^=].* = \n?$",
    ),
    DatasetSpec(
        "fineweb_edu",
        "language",
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        ("train",),
        "ODC-By 1.0 and Common Crawl's terms",
        {"text": str},
        plain_text,
        ("fineweb_edu",),
        streamed=True,
    ),
    DatasetSpec(
        "openwebtext",
        "language",
        "Skylion007/openwebtext",
        None,
        ("train",),
        "CC0 (packaging); the pages keep their own rights",
        {"text": str},
        plain_text,
        ("openwebtext",),
        streamed=True,
        optional=True,
    ),
)
CATALOGUE: dict[str, DatasetSpec] = {spec.name: spec for spec in _SPECS}
