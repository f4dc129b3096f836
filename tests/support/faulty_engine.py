"""An engine that behaves oddly under load, for tests: `python faulty_engine.py HOST PORT BEHAVIOUR`.

Starts and completes a prompt like any other. A streamed answer then: `die` ends the process with status 3;
`out-of-memory` with words to that effect; `killed` by SIGKILL, `segv` by SIGSEGV; `refuse` answers 500; `break`
hangs up in the middle; `fault` streams an error after two tokens; `silent` closes at once; `hang` never answers,
`family` neither, and has a grandchild in a session of its own that ignores SIGTERM; `stall` sends two tokens and no
more, `stall-once` only the first time; `whole` sends everything in one piece; `babble` streams without end what holds
no token; `endless` streams tokens without end; `fine` streams five tokens, `slow` five of 10 ms each. `serial` streams
two for one request at a time, each in 10 ms; `freeze` freezes as a whole for half a second at its twentieth request;
`crowded` is `fine`, and says in vLLM's words that each request was preempted once.

Others never come so far: `unready` is never healthy; `deaf` never answers its first completion, `die-first` dies
of it; `nonsense` answers it with a page. The scores of `no-numbers` are null.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOREVER = threading.Event()
FIRST = threading.Semaphore()


class Queue:
    """A lock that is given in the order in which it was asked for; a plain one goes to anybody."""

    def __init__(self) -> None:
        self._turns = threading.Condition()
        self._tickets = itertools.count()
        self._turn = 0

    def __enter__(self) -> None:
        with self._turns:
            ticket = next(self._tickets)
            self._turns.wait_for(lambda: self._turn == ticket)

    def __exit__(self, *_: object) -> None:
        with self._turns:
            self._turn += 1
            self._turns.notify_all()


ALONE = Queue()
COUNT = itertools.count(1)
PREEMPTED = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour = ""

    def do_GET(self) -> None:
        if self.behaviour == "unready":
            self.answer(503, {"status": "loading"})
        elif self.path == "/metrics":
            self.page(f'vllm:num_preemptions_total{{model_name="odd"}} {float(PREEMPTED)}\n')
        else:
            self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            ids = range(len(body["content"]))
            self.answer(200, {"tokens": [{"id": number, "piece": "a"} for number in ids]})
        elif self.path == "/completion" and self.behaviour == "no-numbers":
            token = {"id": 97, "logprob": None, "top_logprobs": [{"id": 97, "logprob": None}]}
            forced = [int(one) for one in re.findall(r"<\[(\d+)\]>", body["grammar"])]
            self.answer(200, {"completion_probabilities": [token | {"id": one} for one in forced]})
        elif body.get("stream") or self.path == "/completion":
            getattr(self, self.behaviour.replace("-", "_"))()
        elif self.behaviour in ("deaf", "die-first", "nonsense"):
            {"deaf": self.hang, "die-first": self.die, "nonsense": self.nonsense}[self.behaviour]()
        else:
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            self.answer(200, {"choices": [{"text": "x"}], "usage": usage})

    def answer(self, status: int, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, text: str) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text.encode()))

    def token(self, number: int) -> None:
        self.chunk(f'data: {{"choices": [{{"text": "{number}"}}]}}\n\n')

    def end(self, tokens: int) -> None:
        self.chunk(f'data: {{"usage": {{"completion_tokens": {tokens}}}}}\n\n')
        self.chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def no_numbers(self) -> None:
        self.fine()

    def fine(self, each_s: float = 0.002) -> None:
        self.begin()
        for number in range(5):
            self.token(number)
            time.sleep(each_s)
        self.end(5)

    def slow(self) -> None:
        self.fine(0.01)

    def fault(self) -> None:
        self.begin()
        self.token(1)
        self.token(2)
        self.chunk('data: {"error": {"code": 500, "message": "slot lost"}}\n\n')
        self.end(2)

    def babble(self) -> None:
        self.begin()
        while True:
            self.chunk(": still here\n\n")
            time.sleep(0.002)

    def stall(self) -> None:
        self.begin()
        self.token(1)
        self.token(2)
        self.hang()

    def stall_once(self) -> None:
        if FIRST.acquire(blocking=False):
            self.stall()
        else:
            self.fine()

    def family(self) -> None:
        stubborn = "import signal, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN); threading.Event().wait()"
        subprocess.Popen([sys.executable, "-c", stubborn, *sys.argv[4:]], start_new_session=True)
        self.hang()

    def nonsense(self) -> None:
        self.page("<html>It works!</html>")

    def page(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def crowded(self) -> None:
        global PREEMPTED
        with ALONE:
            PREEMPTED += 1
        self.fine()

    def serial(self) -> None:
        with ALONE:
            self.begin()
            self.token(1)
            time.sleep(0.01)
            self.token(2)
            self.end(2)

    def freeze(self) -> None:
        with ALONE:
            if next(COUNT) == 20:
                time.sleep(0.5)
        self.begin()
        self.token(1)
        self.token(2)
        self.end(2)

    def endless(self) -> None:
        self.begin()
        number = 0
        while True:
            self.token(number)
            number += 1
            time.sleep(0.01)

    def whole(self) -> None:
        text = 'data: {"choices": []}\n\ndata: {"usage": {"completion_tokens": 1}}\n\ndata: [DONE]\n\n'
        self.answer(200, {})
        self.wfile.write(text.encode())

    def refuse(self) -> None:
        self.close_connection = True
        self.answer(500, {"error": "no slot"})

    def break_(self) -> None:
        self.begin()
        self.token(1)
        self.token(2)
        self.close_connection = True

    def silent(self) -> None:
        self.close_connection = True

    def hang(self) -> None:
        FOREVER.wait()

    def die(self) -> None:
        print("assertion failed: n_tokens > 0", file=sys.stderr, flush=True)
        os._exit(3)

    def out_of_memory(self) -> None:
        print("ggml_backend_alloc: failed to allocate buffer of size 9999", file=sys.stderr, flush=True)
        os._exit(1)

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def segv(self) -> None:
        print("about to touch address 0", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def log_message(self, *_: object) -> None:
        pass


setattr(Handler, "break", Handler.break_)


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hung up is part of the test."""


if __name__ == "__main__":
    Handler.behaviour = sys.argv[3]
    Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
