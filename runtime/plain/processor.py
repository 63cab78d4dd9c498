"""The name of the processor, as precise as what was timed on it needs."""

import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# What decides how fast integer products are. A name alone does not tell: virtual machines hide it.
EXTENSIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


@cache
def processor() -> str:
    """Model, family and vector extensions, such as "AMD EPYC, family 23, model 1, avx2"; the architecture where Linux says no more."""
    try:
        return processor_of(CPUINFO.read_text(errors="replace"))
    except OSError:  # not Linux
        return platform.processor() or platform.machine()


def processor_of(cpuinfo: str) -> str:
    """The name in the text of /proc/cpuinfo; all cores are taken to be alike."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    numbers = [f"{name} {fields[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if key in fields]
    named = fields.get("model name") or " ".join([platform.machine(), fields.get("CPU part", "")]).strip()
    return ", ".join([named, *numbers, *(each for each in EXTENSIONS if each in flags)])
