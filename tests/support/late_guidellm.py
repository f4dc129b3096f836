"""Runs guidellm as told by the arguments, with a sending thread that the host lets wait after each request it sent.

So it is the rule that the last request is answered before the thread says that it was the last.
"""

import runpy
import sys
import time
from typing import Any

LATE_S = 0.02


def main() -> None:
    from guidellm.utils.messaging import InterProcessMessagingQueue

    init = InterProcessMessagingQueue.__init__

    def late_init(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        if self.worker_index is None:
            put = self.pending_queue.put

            def late_put(*args: Any, **options: Any) -> None:
                put(*args, **options)
                time.sleep(LATE_S)

            self.pending_queue.put = late_put

    InterProcessMessagingQueue.__init__ = late_init
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
