"""Checks of devices, memory, clock and other processes."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from bert_fast.doctor import Result, failed, passed

PATIENCE = 120.0  # seconds for JAX to list its devices; JAX waits for a TPU that another process holds
LEAST_MEMORY = 2 * 2**30  # bytes; importing JAX and compiling a small model take about 1 GiB
SKEW = 5.0  # seconds by which the clocks of the machine and of the file system may differ
BUILT = 1_767_225_600  # 1 January 2026: a correct clock shows a later time
# The vendors of PCI devices: NVIDIA, and Google (_GOOGLE_PCI_VENDOR_ID in jax/_src/hardware_utils.py).
VENDORS = {"0x10de": "an NVIDIA GPU", "0x1ae0": "a TPU"}
PCI = pathlib.Path("/sys/bus/pci/devices")
_LISTED = """
import json, jax
found = jax.devices()
memory = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
about = {"backend": jax.default_backend(), "count": len(found), "kind": found[0].device_kind}
print(json.dumps({**about, "memory": memory}))
"""


def attached(pci: pathlib.Path = PCI) -> list[str]:
    """The kinds of accelerators that are plugged into this machine, whether JAX can use them or not."""
    found = set()
    for device in pci.glob("*"):
        vendor, kind = (_text(device / name) for name in ("vendor", "class"))
        # class 0x03: display and 3D controllers. NVIDIA also makes network cards and bridges.
        if vendor in VENDORS and (vendor != "0x10de" or kind.startswith("0x03")):
            found.add(VENDORS[vendor])
    return sorted(found)


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def devices() -> Result:
    """JAX's devices, listed by another process, so that a device that does not respond can be reported."""
    try:
        done = subprocess.run([sys.executable, "-c", _LISTED], capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        found = f"JAX did not list its devices within {PATIENCE:.0f} s"
        return failed(
            "devices",
            found,
            "end the process that holds the accelerator (see check 'others'), or restart the machine",
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return failed("devices", last, "install JAX for this accelerator: docs/gpu.md and docs/cloud_tpu.md")
    about = json.loads(done.stdout.strip().splitlines()[-1])
    found = f"{about['count']} x {about['kind']} ({about['backend']})"
    memory = [size for size in about["memory"] if size]
    if memory:
        found += f", {min(memory) / 2**30:.1f} GiB each"
    asked = os.environ.get("JAX_PLATFORMS", "")
    there = attached()
    if about["backend"] == "cpu" and there and asked != "cpu":
        remedy = 'pip install "bert_fast[gpu]" or "bert_fast[tpu]", or set JAX_PLATFORMS=cpu to use the CPU'
        return failed("devices", f"JAX uses the CPU, but this machine has {' and '.join(there)}", remedy)
    return passed("devices", found + (" (JAX_PLATFORMS=cpu)" if asked == "cpu" else ""))


def memory() -> Result:
    free = available()
    cgroup = _text(pathlib.Path("/sys/fs/cgroup/memory.max"))
    if cgroup.isdigit():
        used = int(_text(pathlib.Path("/sys/fs/cgroup/memory.current")) or 0)
        stat = _text(pathlib.Path("/sys/fs/cgroup/memory.stat"))
        cached = sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", stat, re.MULTILINE)))  # freed when needed
        free = min(free, int(cgroup) - used + cached)
    found = f"{free / 2**30:.1f} GiB free"
    if free < LEAST_MEMORY:
        return failed("memory", found, f"free some: expected at least {LEAST_MEMORY / 2**30:.0f} GiB")
    return passed("memory", found)


def available() -> int:
    """Bytes of memory that new processes can use, without swapping."""
    for line in _text(pathlib.Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS does not report how much is free


def clock(folder: pathlib.Path | None) -> Result:
    """Whether the clock is plausible, and whether the file system's clock agrees. `prepare` compares times of files."""
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < BUILT:
        return failed("clock", f"it is {shown}", "set the clock: certificates and times of files depend on it")
    if folder is None or not folder.is_dir():
        return passed("clock", shown)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        skew = os.stat(file.name).st_mtime - now
    if abs(skew) > SKEW:
        remedy = "set both clocks by NTP: the times of files tell whether a source has changed"
        return failed("clock", f"a new file in {folder} has a time that differs from {shown} by {skew:+.0f} s", remedy)
    return passed("clock", f"{shown}, {abs(skew):.1f} s from the clock of {folder}")


def others(proc: pathlib.Path = pathlib.Path("/proc")) -> Result:
    """Other processes that hold an accelerator, and the load of the CPUs."""
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    holders = sorted(set(_holders(proc)))
    if holders:
        shown = ", ".join(f"process {pid} ({_text(proc / str(pid) / 'comm')}) holds {name}" for pid, name in holders)
        return failed("others", shown, "wait until they end, or stop them: a run needs the accelerator for itself")
    return passed("others", f"no other process holds an accelerator, {load}")


def _holders(proc: pathlib.Path):
    """(process id, device) for each accelerator that another process has open."""
    for process in proc.glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            opened = [os.readlink(path) for path in (process / "fd").iterdir()]
        except OSError:  # belongs to another user, or has ended
            continue
        for target in opened:
            if target.startswith(("/dev/accel", "/dev/vfio/")) or (
                target.startswith("/dev/nvidia") and target.removeprefix("/dev/nvidia").isdigit()
            ):
                yield int(process.name), target
