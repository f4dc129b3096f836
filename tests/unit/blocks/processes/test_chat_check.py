"""Templates come with models: one that never ends, or fills the memory, costs seconds and one line."""

from __future__ import annotations

import pytest
from chat_models import CHATML

from blocks.processes.chat_check import check_rendering
from tasks.core.chat_template import Template
from tasks.core.errors import ModelError, SpecError

ENDLESS = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = b %}{% endfor %}{% endfor %}"
HUGE = "{{ 'x' * 4000000000 }}"


def test_what_follows_an_answer_is_found() -> None:
    assert check_rendering(Template(CHATML, "here"), {}) == "<|im_end|>\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ENDLESS, "renders for more than 3 s"),
        (HUGE, "needs more than 1 GiB of memory"),
        ("{{ messages.x.y }}", "does not render a user's message"),
    ],
)
def test_a_template_that_cannot_be_served_is_refused_in_one_line(text: str, told: str) -> None:
    for wrong in (ModelError, SpecError)[: 1 if text is ENDLESS else 2]:
        with pytest.raises(wrong, match=told) as refused:
            check_rendering(Template(text, "m/chat_template.jinja", wrong), {})
        assert refused.value.what.startswith("m/chat_template.jinja: the chat template")
        assert "serving.chat_template" in str(refused.value.fix)
