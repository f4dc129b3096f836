"""What artifacts are made of: a head that every stage's page shares, and tables that no cell can break. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def page(stage: str, verdict: str, reason: str, *parts: str) -> str:
    """`# Stage: verdict`, the reason in a sentence, then the parts that are not empty."""
    sentence = reason if reason.endswith((".", "!", "?", "…")) else f"{reason}."
    head = f"# {stage.capitalize()}: {verdict.replace('_', ' ')}"
    return "\n\n".join(part for part in (head, cell(sentence, table=False), *parts) if part) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """A table; the columns named in `right` hold figures and are aligned there."""
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if column in right else "---" for column in columns) + "|",
    ]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def section(title: str, *parts: str) -> str:
    """`## Title` and what is below it; nothing where there is nothing to say."""
    found = [part for part in parts if part]
    return "\n\n".join([f"## {title}", *found]) if found else ""


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {cell(line, table=False)}" for line in lines)


def fenced(text: str) -> str:
    """A code block that its text cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def cell(text: str, *, table: bool = True) -> str:
    """One line of text that cannot end a table's cell, nor become a tag."""
    text = " ".join(text.replace("<", "&lt;").split())
    return text.replace("|", "\\|") if table else text
