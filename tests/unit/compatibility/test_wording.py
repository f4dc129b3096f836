"""Messages say only what is known, and no fix that is printed contradicts a way out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.compatibility.conditions import GPU, PACKAGE, Subject
from tasks.compatibility.models import Change, CompatibilityResult, Finding, Survey, WayOut
from tasks.compatibility.report import answer, aside_text, markdown, remarks
from tasks.compatibility.rules import PLACEHOLDER, Rule, load_tables
from tasks.compatibility.way_out import advise
from tasks.compatibility.wording import fill, fill_advice, without_contradicted_fixes
from tasks.core.facts import Facts

RULES = load_tables().rules


def known(values: dict[str, str]) -> tuple[Subject, dict[str, str]]:
    gpu = {name: value for name, value in values.items() if name.startswith(GPU)}
    packages = {
        name.removeprefix(PACKAGE): value for name, value in values.items() if name.startswith(PACKAGE)
    }
    rest = {name: value for name, value in values.items() if not name.startswith((GPU, PACKAGE))}
    return Subject(rest, [gpu], packages), gpu


@pytest.mark.parametrize(
    ("template", "values", "said"),
    [
        ("driver {driver} is old", {"driver": "450.1"}, "driver 450.1 is old"),
        ("CUDA {cuda_build} (natively {driver_cuda}) runs", {"cuda_build": "12.8"}, "CUDA 12.8 runs"),
        ("upgrade to 580, or take CUDA {driver_cuda} or older", {}, "upgrade to 580"),
        ("it needs glibc 2.34; this host has {glibc}", {}, "it needs glibc 2.34"),
        ("{gpu.name} has {gpu.compute_capability}; too old", {"gpu.name": "T4"}, "too old"),
        ("vLLM {engine_version} does not work", {}, "vLLM does not work"),
        ("vLLM {engine_version} fails: ImportError", {}, "ImportError"),
        ("torch {packages.torch}", {"packages.torch": "2.9.0"}, "torch 2.9.0"),
    ],
)
def test_what_is_not_known_is_left_out(template: str, values: dict[str, str], said: str) -> None:
    subject, gpu = known(values)
    assert fill(template, subject, gpu) == said


@given(st.sampled_from(RULES), st.data())
def test_no_rule_says_a_question_mark(rule: Rule, data: st.DataObject) -> None:
    """Whichever of a rule's fields are known."""
    for template, filled in ((rule.message, fill), (rule.fix, fill_advice)):
        fields = sorted(set(PLACEHOLDER.findall(template)))
        some = data.draw(st.lists(st.sampled_from(fields), unique=True) if fields else st.just([]))
        said = filled(template, *known(dict.fromkeys(some, "1.2")))
        assert said.strip() == said
        assert said or filled is fill_advice
        assert not set("?{}") & set(said) - set(template.replace("{", "").replace("}", ""))
        assert not any(broken in said for broken in ("  ", "()", " ,", " ;", " )") if broken not in template)
        assert not said.endswith((",", ";", ":"))


def test_an_advice_that_needs_what_is_not_known_is_not_given() -> None:
    assert fill_advice("install {packages.torch}", *known({})) == ""
    assert fill_advice("install {packages.torch}, or wait", *known({})) == "wait"
    assert (
        fill_advice("install torch {packages.torch}", *known({"packages.torch": "2.9"}))
        == "install torch 2.9"
    )


def block(fix: str, severity: str = "block") -> Finding:
    return Finding.model_validate(
        {"rule": "A", "severity": severity, "precedence": "P1", "message": "m", "fix": fix, "sources": ["s"]}
    )


def result(*findings: Finding, changes: tuple[tuple[str, str], ...] = ()) -> CompatibilityResult:
    ways = [
        WayOut(changes=(Change(what=what, current="1", wanted=wanted),), verdict="pass")
        for what, wanted in changes
    ]
    return CompatibilityResult(verdict="block", findings=findings, ways_out=tuple(ways), facts=Facts())


@pytest.mark.parametrize(
    ("fix", "what", "wanted", "printed"),
    [
        ("upgrade the driver to 580 or newer", "driver", "580 or newer", True),
        ("upgrade the driver to 525.60.13 or newer", "driver", "580 or newer", False),
        ("driver 580 or newer", "driver", "580.65.06 or newer", True),
        ("use a driver of the R580 branch", "driver", "of the R580 branch", True),
        ("use a driver of the R580 branch", "driver", "610 or newer", False),
        ("packages built for CUDA 12.2 or older", "torch", "2.10.0+cu126", False),
        ("packages built for CUDA 12.8 or older", "torch", "2.10.0+cu126", True),
        ("packages built for CUDA 12.2 or older", "cuda_build", "12.2", True),
        ("use vLLM 0.25 or newer (glibc 2.28)", "vllm", "0.19.1", False),
        ("use vLLM 0.25 or newer (glibc 2.28)", "vllm", "0.26.0", True),
        ("use a vLLM older than 0.9 (V100), llama.cpp", "vllm", "0.19.1", False),
        ("driver 550 or newer, or Ollama 0.24 or older", "ollama", "0.24.0", True),
        ("upgrade torch", "torch", "2.10.0", True),
        ("driver 550 or newer", "engine", "llama.cpp on the CPU", True),
    ],
)
def test_a_fix_that_a_way_out_contradicts_is_not_printed(
    fix: str, what: str, wanted: str, printed: bool
) -> None:
    found = without_contradicted_fixes(result(block(fix), changes=((what, wanted),)))
    assert found.findings[0].fix == (fix if printed else "")
    assert bool("What to do" in markdown(found)) is printed
    assert found.reasons[-1] == f"way out: {what} 1 -> {wanted}"


def test_the_fix_of_a_warning_is_about_something_else() -> None:
    warning = block("driver 590 or newer", "warn")
    found = without_contradicted_fixes(result(block("x"), warning, changes=(("driver", "580 or newer"),)))
    assert found.findings[1] == warning


FACTS: dict[str, Any] = {
    "driver": "535.154.05",
    "cuda_driver": "12.2",
    "gpus": [{"name": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9"}],
    "glibc": "2.35",
    "engine": "transformers",
    "packages": {"torch": "2.10.0"},
    "cuda_build": "13.0",
}


def test_what_decides_comes_first_and_the_rest_is_folded() -> None:
    found = advise(Survey(facts=Facts.model_validate(FACTS)))
    aside = aside_text(found)
    rules = [finding.rule for finding in found.deciding]
    assert "DRV-FLOOR-13" in rules
    assert rules == [one["rule"] for one in answer(found)["findings"]][: len(rules)]
    assert aside.startswith(f"{len(answer(found)['set_aside'])} set aside: not judged without ")
    assert "dtype" in aside
    assert {one["severity"] for one in answer(found)["set_aside"]} == {"info"}
    assert not {finding.rule for finding in remarks(found)} & {
        one["rule"] for one in answer(found)["set_aside"]
    }
    page = markdown(found)
    assert page.index("## Findings") < page.index("## Ways out") < page.index("## Remarks")
    assert f"{aside} (`slipway compat check --all`)." in page
    assert "NOT-KNOWN-DTYPE" not in page


def test_a_claim_that_a_vendor_contradicts_is_folded_and_names_the_vendor() -> None:
    found = advise(
        Survey(facts=Facts.model_validate({**FACTS, "cuda_build": "12.2", "dtype": None, "family": None}))
    )
    claims = [one for one in found.findings if one.rule.startswith("ART-")]
    assert all(one.contradicted_by and one.is_aside for one in claims if one.severity == "info")
    contradicted = advise(
        Survey(facts=Facts.model_validate({**FACTS, "cuda_build": "12.4", "dtype": None, "family": None}))
    )
    (claim,) = [one for one in contradicted.findings if one.rule == "ART-1-ELSE"]
    assert claim.contradicted_by == ("DRV-MINOR-12",)
    assert "contradicted: ART-1-ELSE" in aside_text(contradicted)


def test_each_way_out_says_why_where_it_is_known() -> None:
    found = result(block("x"))
    way = WayOut(
        changes=(Change(what="driver", current=None, wanted="580 or newer"),),
        verdict="pass",
        why="supports CUDA 13",
    )
    found = found.model_copy(update={"ways_out": (way,)})
    assert found.reasons[-1] == "way out: driver none -> 580 or newer (supports CUDA 13)"
    assert "| driver none -> 580 or newer | **pass** | supports CUDA 13 |" in markdown(found)
