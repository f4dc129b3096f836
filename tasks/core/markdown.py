"""Building blocks of artifacts: the head that all stages share, and tables that no cell can break. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def page(stage: str, verdict: str, reason: str, *parts: str) -> str:
    """`# Stage: verdict`, the reason in a sentence, then the non-empty parts."""
    sentence = reason if reason.endswith((".", "!", "?", "…")) else f"{reason}."
    head = f"# {stage.capitalize()}: {verdict.replace('_', ' ')}"
    return "\n\n".join(part for part in (head, cell(sentence, table=False), *parts) if part) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """A table; the columns named in `right` are right-aligned figures."""
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if column in right else "---" for column in columns) + "|",
    ]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def section(title: str, *parts: str) -> str:
    """`## Title` and its body; nothing if the body is empty."""
    found = [part for part in parts if part]
    return "\n\n".join([f"## {title}", *found]) if found else ""


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {cell(line, table=False)}" for line in lines)


def fenced(text: str) -> str:
    """A code block whose text cannot close it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def cell(text: str, *, table: bool = True) -> str:
    """One line of text that can neither end a table's cell nor become an HTML tag."""
    text = " ".join(text.replace("<", "&lt;").split())
    return text.replace("|", "\\|") if table else text
