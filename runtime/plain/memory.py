"""The memory that is left, compared with what is about to be taken."""

from pathlib import Path

from starflow.runtime.plain.errors import UsageError


def available_memory() -> int | None:
    """Bytes of memory this process can get without anything being swapped; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)
    limit = container_memory(Path("/sys/fs/cgroup"))
    return min((each for each in (free, limit) if each is not None), default=None)


def container_memory(group: Path) -> int | None:
    """What a control group (v2) leaves, page cache counted as free; None without a limit."""
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        statistics = (group / "memory.stat").read_text(encoding="ascii").split()
        return limit - used + int(statistics[statistics.index("inactive_file") + 1])
    except (OSError, ValueError):  # no such group, or "max"
        return None


def check_memory(needed: int, what: str, instead: str) -> None:
    """See that memory holds what is about to be made.

    Args:
        needed: Bytes.
        what: What takes them, for the message.
        instead: What mends it.

    Raises:
        UsageError: it does not.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise UsageError(
            f"{what} takes {gibibytes(needed)} of memory, but only {gibibytes(available)} are available; {instead}"
        )


def check_images(count: int, values: int, condition_values: int = 0) -> None:
    """See that memory holds `count` images of so many values each, and their conditions, while they are sampled.

    Raises:
        UsageError: it does not.
    """
    # float32: the noise drawn image by image, the noise as one array, the data made of it, and its pixels.
    needed = 4 * count * (4 * values + condition_values)
    check_memory(needed, f"sampling {count:,} images at once", "sample fewer at a time, with another seed each time")


def gibibytes(count: int) -> str:
    """Bytes for people: `12.30 GiB`."""
    return f"{count / 2**30:.2f} GiB"
