"""The machine that a program runs on: its processor, cores, memory and GPU."""

import os
import platform
import re
import resource
from pathlib import Path

from lobes.system.lazy import lazy

torch = lazy("torch")


def processor() -> str:
    """The CPU's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def usable_cores() -> int:
    """The number of cores that this process may run on."""
    # Absent on macOS; on clusters it is what the job was given.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_name(device: "torch.device") -> str:
    """Name of the GPU or of the CPU."""
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    )


def peak_memory(device: "torch.device") -> dict[str, int]:
    """Most bytes that this process has held at a time.

    ``host`` is main memory; on a GPU ``device`` is the GPU's memory.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        # ru_maxrss begins at what the parent process held.
        host = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = {"host": host}
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak
