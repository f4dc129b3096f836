"""guidellm's command line, with the end of its runs mended. Runs in guidellm's own environment.

`python run_guidellm.py run …` takes what `python -m guidellm run …` does. Source: `scheduler/worker_group.py` of
guidellm 0.8.1. It looks whether all is done only as a request's news arrives, and its sending thread says that
nothing follows after it has sent the last one: if that is answered sooner, as on a busy host, no news comes any
more and the run waits forever (as in vllm-project/guidellm#431). Here it also looks while it waits.
"""

import threading
from typing import Any


def main() -> None:
    from guidellm.cli import cli  # not at the top: the process that it spawns imports this file as well
    from guidellm.scheduler import worker_group

    class MendedState(worker_group.WorkerGroupState[worker_group.RequestT, worker_group.ResponseT]):
        """Ends the run when the sender has ended and every request has."""

        def __init__(self, *, send_requests_stopped_event: threading.Event, **others: Any) -> None:
            super().__init__(send_requests_stopped_event=send_requests_stopped_event, **others)
            self._sender_ended = send_requests_stopped_event

        def update_state(self, info: Any = None, **news: Any) -> Any:
            """As before; without any news the caller waits for some."""
            update = super().update_state(info, **news)
            waiting = info is None and not news
            state = update.state
            if waiting and self._sender_ended.is_set() and state.processed_requests == state.created_requests:
                self.requests_generated_event.set()
                self.constraint_reached_event.set()
                self.shutdown_event.set()
            return update

    worker_group.WorkerGroupState = MendedState
    cli()


if __name__ == "__main__":
    main()
