"""What a notebook's runtime has: its accelerator, whether JAX sees it, and how long it has been up."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.cost.accelerators import GIB, find

# PCI vendor and devices of TPUs v3 to tpu7x: `_TPU_PCI_DEVICE_IDS` in jax/_src/hardware_utils.py.
GOOGLE, TPUS = "0x1ae0", ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
GPU_FILES = ("dev/nvidia0", "dev/nvidiactl")
PROBE = """
import json, jax
device = jax.devices()[0]
memory = (device.memory_stats() or {}).get("bytes_limit", 0)
print(json.dumps([device.platform, device.device_kind, jax.device_count(), memory, jax.__version__]))
"""
CHANGE = "Runtime > Change runtime type"


class Runtime(NamedTuple):
    """What JAX sees. kind: tpu, gpu or cpu. memory: bytes that JAX may use on a device; 0 if unknown."""

    kind: str
    device: str
    count: int
    memory: int
    jax: str

    def __str__(self) -> str:
        chip = find(self.device)
        memory = self.memory or (chip.memory // chip.devices if chip else 0)
        size = f", {memory / GIB:.0f} GiB each" if memory else ""
        return f"{self.count} x {self.device} ({self.kind}{size}), jax {self.jax}, Python {sys.version.split()[0]}"


def attached(root: pathlib.Path = pathlib.Path("/")) -> str:
    """The accelerator of this machine, whether or not JAX can use it: "tpu", "gpu" or "cpu"."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        vendor, number = ((device / name).read_text().strip() for name in ("vendor", "device"))
        if vendor == GOOGLE and number in TPUS:
            return "tpu"
    return "gpu" if any((root / name).exists() for name in GPU_FILES) else "cpu"


def seen() -> Runtime:
    """What JAX sees. A separate process asks JAX, because a TPU belongs to one process, and a later command may need
    the TPU.

    Raises BadInput with JAX's own message if JAX cannot start.
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise BadInput(f"JAX cannot start: {last}. {restart(attached())}")
    return Runtime(*json.loads(done.stdout.strip().splitlines()[-1]))


def check() -> Runtime:
    """Prints and returns what JAX sees. Raises BadInput if this machine has an accelerator that JAX does not see."""
    has, found = attached(), seen()
    if has != "cpu" and found.kind == "cpu":
        raise BadInput(f"this runtime has a {has.upper()}, but JAX {found.jax} sees only the CPU. {restart(has)}")
    print(found)
    if found.kind == "cpu" and on_colab():
        print(f"No accelerator: fine for a first look. For a TPU or GPU: {CHANGE}, then run from the first cell.")
    return found


def restart(kind: str) -> str:
    """What to do if JAX does not use an accelerator of this kind."""
    return (
        "Runtime > Restart session, then run from the first cell. If that does not help, JAX was replaced by another "
        f"build: Runtime > Disconnect and delete runtime, and choose the {kind.upper()} again in {CHANGE}"
    )


def on_colab() -> bool:
    return "COLAB_RELEASE_TAG" in os.environ


def minutes_left(session: float, began: pathlib.Path | None = None) -> float:
    """Minutes that are left of a session. The session lasts `session` minutes from the first call on this machine.

    began: the file that records the first call. It is on the machine's own disk, so it disappears with the runtime.
    """
    began = began or pathlib.Path(tempfile.gettempdir(), "bert_fast_session_began")
    if not began.exists():
        began.write_text(str(time.time()))
    return max(0.0, session - (time.time() - float(began.read_text())) / 60)


def command(*arguments: str, on_cpu: bool = False) -> str:
    """What a bert-fast command prints. It runs in a separate process, which frees the accelerator when it ends.

    on_cpu: keeps the command off the accelerator, which this process may hold. If the command fails, its error message
    follows what it printed. Raises BadInput if it printed nothing but the error message.
    """
    environment = {**os.environ, **({"JAX_PLATFORMS": "cpu"} if on_cpu else {})}
    called = [sys.executable, "-m", "bert_fast", *arguments]
    done = subprocess.run(called, capture_output=True, text=True, check=False, env=environment)
    if done.returncode and not done.stdout.strip():
        raise BadInput(f"bert-fast {arguments[0]}: {done.stderr.strip().removeprefix('error: ')}")
    return done.stdout + (done.stderr if done.returncode else "")
