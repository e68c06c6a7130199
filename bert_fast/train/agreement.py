"""Several processes as one run: they compare settings before they start. When one fails, the others soon end too.

They communicate through the key-value store of JAX's coordination service.

    alive/P   a count that process P increases every second, with its host's name
    failed/P  the message with which process P ends
    done/P    set when process P has finished: it gives no more signs of life
    T/P       process P's facts about topic T, as JSON: see `agree`
"""

import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import bert_fast
from bert_fast import BadInput, Interrupted, __version__
from bert_fast.train.sharding import path_of
from bert_fast.train.watchdog import leave

EXIT_CODE = 6
TICK = 1.0  # seconds between checks of the other processes
SILENT = 30.0  # seconds without a sign of life after which a process counts as lost
SUSPECT = 5.0  # used instead of SILENT when this process has just lost a connection
MOST = 10  # differences that a message lists
PREFIX = "bert_fast"
PATHS = ("data.dir", "init", "costs", "sinks")  # config keys in which the processes may differ


class Board:
    """Messages between the processes. A thread reads them every second, and ends this process if another has failed.

    client: JAX's client of the coordination service (or a stand-in with the same two functions).
    """

    def __init__(self, client, index: int, count: int):
        self.client, self.index, self.count = client, index, count
        self.host = socket.gethostname()
        # Counts ticks instead of seconds: if all processes were suspended together, none of them counts as silent.
        self.ticks = 0
        self.seen: dict[int, tuple[str, int]] = dict.fromkeys(range(count), ("", 0))
        self.hosts = {index: self.host}
        self.topics: dict[str, int] = {}
        self.code, self.said = EXIT_CODE, False  # this process's exit code, and whether it has said why it ends
        self.handler: Any = None
        self.done, self.failing = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self.follow, name="board", daemon=True)

    def name(self, process: int) -> str:
        host = self.hosts.get(process, "")
        return f"process {process} of {self.count}" + (f" ({host})" if host else "")

    def post(self, key: str, value: str):
        self.client.key_value_set(f"{PREFIX}/{key}/{self.index}", value, allow_overwrite=True)

    def read(self, key: str) -> dict[int, str]:
        """The value of each process that has posted one."""
        found = self.client.key_value_dir_get(f"{PREFIX}/{key}/")
        return {int(name.rpartition("/")[2]): value for name, value in found}

    def follow(self):
        while not self.done.wait(TICK):
            self.ticks += 1
            try:
                self.post("alive", json.dumps([self.ticks, self.host]))
                problem = self.problem(SILENT)
            except jax.errors.JaxRuntimeError:  # the service has ended: JAX itself ends this process
                continue
            if problem and self.failing.acquire(blocking=False):
                print(f"\nerror: {problem}", file=sys.stderr, flush=True)
                self.said = True
                self.linger()
                leave(EXIT_CODE)

    def problem(self, silent: float) -> str:
        """What is wrong with another process. The text is empty if nothing is wrong.

        silent: seconds without a sign of life after which a process counts as lost.
        """
        finished = self.read("done")
        for process, value in self.read("alive").items():
            self.hosts[process] = json.loads(value)[1]
            if value != self.seen[process][0]:
                self.seen[process] = value, self.ticks
        for process, reason in self.read("failed").items():
            if process != self.index:
                return reason
        for process, (_, last) in self.seen.items():
            seconds = (self.ticks - last) * TICK
            if process not in (self.index, *finished) and seconds > silent:
                return (
                    f"{self.name(process)} is lost: no sign of life for {seconds:.0f} s. It was killed or stopped, "
                    "or its machine is down. Start all processes again; they continue from the newest checkpoint"
                )
        return ""

    def end(self):
        """Signs off: from now on, no sign of life is expected."""
        self.post("done", "")
        self.done.set()
        ctypes.CDLL(None).signal(signal.SIGABRT, ctypes.c_void_p())  # restores the default: see on_abort

    def fail(self, reason: str):
        """Tells the other processes why this one ends, and waits long enough for them to read the reason."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.post("failed", reason)
        time.sleep(3 * TICK)
        self.linger()

    def linger(self):
        """Lets the other processes end first if this one runs the service: JAX aborts them when the service ends."""
        time.sleep(3 * TICK if self.index == 0 else 0)

    def cause(self, error: BaseException) -> str:
        """The failure of another process that caused this error. Waits a few seconds to find out.

        The text is empty if no other process caused it.
        """
        if not connection_lost(error):
            return ""
        end = time.monotonic() + SUSPECT + 2 * TICK
        while time.monotonic() < end:
            try:
                if problem := self.problem(SUSPECT):
                    return problem
            except jax.errors.JaxRuntimeError:
                return f"{self.name(0)} is lost: the service that it runs for all processes does not respond"
            time.sleep(TICK / 4)
        return ""


def connection_lost(error: BaseException | None) -> bool:
    """Whether an error of JAX's runtime is among the causes of this one."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False


board: Board | None = None


@contextlib.contextmanager
def together() -> Iterator[None]:
    """The block runs in each of several processes. If it raises an error in one, all of them show the error and end.

    Does nothing if there is one process. After an error, the process ends here: a normal end would wait for the others.
    """
    global board
    joined = jax._src.distributed.global_state  # type: ignore[attr-defined]  # no public function gives the client
    if joined.client is None or joined.num_processes == 1:
        yield
        return
    board = own = Board(joined.client, joined.process_id, joined.num_processes)
    own.thread.start()
    on_abort(own, joined.coordinator_address)
    try:
        yield
    except Interrupted:
        own.end()  # all processes stop after the same step
        raise
    except BaseException as error:
        own.failing.acquire()
        own.code = getattr(error, "exit_code", 2)
        reason = f"{own.name(own.index)}: {error}"
        if isinstance(error, KeyboardInterrupt):
            own.code, reason = 128 + signal.SIGINT, f"{own.name(own.index)}: stopped by Ctrl-C, without saving"
        elif not isinstance(error, BadInput):
            own.code, reason = 1, f"{own.name(own.index)}: {type(error).__name__}: {error}"
        if problem := own.cause(error):
            own.code, reason = EXIT_CODE, problem
        elif own.code == 1:
            traceback.print_exc()
        print(f"error: {reason}", file=sys.stderr, flush=True)
        own.said = True
        own.fail(reason)
        leave(own.code)
    own.end()


def on_abort(own: Board, address: str):
    """Installs a handler for SIGABRT that prints why this process ends. JAX raises the signal if process 0 has ended.

    JAX aborts in a thread of its own. A handler of Python's `signal` module would have to wait for the main thread, so
    this handler is installed as a C function.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(_):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), TICK).close()
            problem = "JAX has aborted this process: see above"
        except OSError:
            problem = f"{own.name(0)} is lost: the service that it runs for all processes does not respond"
        if not own.said:
            os.write(2, f"\nerror: {problem}\n".encode())
        os._exit(own.code if own.said else EXIT_CODE)

    own.handler = aborted  # keeps the handler alive, because C code holds no reference to it
    ctypes.CDLL(None).signal(signal.SIGABRT, aborted)


def tell(reason: str):
    """Tells the other processes, if any, why this one is about to end."""
    if board is not None:
        board.fail(reason)


def own_name() -> str:
    """This process's name, for messages."""
    return board.name(board.index) if board is not None else "this process"


def agree(topic: str, facts: Callable[[], Mapping[str, Any]]):
    """Raises BadInput on every process if two of them have different values for a fact.

    facts: returns the facts, which are compared as JSON. It is called only if there are several processes. A fact that
    only one process has is not compared.
    """
    if board is None:
        return
    board.topics[topic] = number = board.topics.get(topic, 0) + 1
    board.post(key := f"{topic} {number}", json.dumps(facts()))
    while len(found := board.read(key)) < board.count:  # if one fails or is lost, the board's thread ends this process
        time.sleep(TICK / 10)
    first: dict[str, tuple[int, Any]] = {}
    lines = []
    for process, text in sorted(found.items()):
        for fact, value in json.loads(text).items():
            where, expected = first.setdefault(fact, (process, value))
            if value != expected:
                lines.append(f"  {fact}: {expected!r} on {board.name(where)}, {value!r} on {board.name(process)}")
    if lines:
        more = f"\n  and {len(lines) - MOST} more" if len(lines) > MOST else ""
        listed = "\n".join(lines[:MOST])
        remedy = "Start all of them with the same command, code and files"
        raise BadInput(f"the processes differ in their {topic}:\n{listed}{more}\n{remedy}")


def settings_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by flag, except for the keys in PATHS."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= settings_of(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in PATHS:
            found[f"--config.{prefix}{key}"] = value
    return found


def code() -> dict[str, str]:
    """Versions, and a hash of this package's source."""
    folder = pathlib.Path(bert_fast.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return {"bert_fast": f"{__version__}, source {digest.hexdigest()[:12]}", "jax": jax.__version__}


def checksums(tree) -> dict[str, int]:
    """Checksums of the parts of arrays that this process holds, by path in the tree and range of indices."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for shard in leaf.addressable_shards:
            place = ",".join(f"{part.start or 0}:{part.stop or ''}" for part in shard.index)
            if (name := f"{path_of(path)}[{place}]") not in found:
                found[name] = zlib.crc32(np.asarray(shard.data).tobytes())
    return found
