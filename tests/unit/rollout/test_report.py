from __future__ import annotations

from inline_snapshot import snapshot

from tasks.core.spec_kinds import Target
from tasks.core.verdicts import RolloutVerdict
from tasks.rollout import report
from tasks.rollout.models import RolloutAction, RolloutResult

NEW, OLD = "sha256:" + "1" * 64, "sha256:" + "0" * 64

SERVING = RolloutResult(
    verdict=RolloutVerdict.SERVING, name="chat", target=Target.PROCESS, action=RolloutAction.REPLACE, release=NEW,
    serving=NEW, previous=OLD, endpoint="http://127.0.0.1:8000", completion=" quick ```brown``` fox",
    first_completion_s=0.1234,
)  # fmt: skip
ROLLED_BACK = RolloutResult(
    verdict=RolloutVerdict.ROLLED_BACK, name="chat", target=Target.PROCESS, action=RolloutAction.REPLACE, release=NEW,
    serving=OLD, previous=None, endpoint="http://127.0.0.1:8000", reason="the engine died while starting",
    log_tail="failed to load model",
)  # fmt: skip


def test_headlines() -> None:
    assert report.headline(SERVING) == snapshot("http://127.0.0.1:8000, first completion after 0.12 s")
    assert report.headline(ROLLED_BACK) == snapshot("000000000000 serves: the engine died while starting")
    assert report.headline(ROLLED_BACK.model_copy(update={"serving": None})) == snapshot(
        "nothing serves: the engine died while starting"
    )
    assert report.headline(SERVING.model_copy(update={"first_completion_s": None})) == snapshot(
        "http://127.0.0.1:8000, served already"
    )


def test_numbers_are_only_what_was_measured() -> None:
    assert report.numbers(SERVING)["first_completion_s"].value == 0.1234
    assert report.numbers(ROLLED_BACK) == {}


def test_the_artifact_shows_the_completion_unbroken() -> None:
    assert report.markdown(SERVING) == snapshot("""\
# Rollout: serving

chat: http://127.0.0.1:8000, first completion after 0.12 s.

| fact | value |
|---|---|
| wanted release | `111111111111` |
| serving | `111111111111` |
| rollback goes to | `000000000000` |
| endpoint | http://127.0.0.1:8000 |
| target | process |
| what was done | started next to the previous release, gated, switched |
| engine start to first completion | 0.12 s |

## The gate's completion

````
 quick ```brown``` fox
````

Look next: `slipway status chat`, `slipway logs chat`.
""")


def test_the_artifact_of_a_failure_shows_why() -> None:
    assert report.markdown(ROLLED_BACK) == snapshot("""\
# Rollout: rolled back

chat: 000000000000 serves: the engine died while starting.

| fact | value |
|---|---|
| wanted release | `111111111111` |
| serving | `000000000000` |
| rollback goes to | nothing |
| endpoint | http://127.0.0.1:8000 |
| target | process |
| what was done | started, and taken back |

## The end of the new release's log

```
failed to load model
```

What to do: fix what the reason names, then deploy again; `slipway logs chat` shows more.
""")
    assert "| serving | nothing |" in report.markdown(ROLLED_BACK.model_copy(update={"serving": None}))
