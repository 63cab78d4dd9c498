"""GPU memory that notices what a real one lets pass."""

import ctypes
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import DTypeLike, NDArray

POISON = 0xFF  # NaN in every floating type, -1 in every integer type
ALIGNMENT = 256
GAP = 4096  # between two allocations, so that writing past one never hits the next
# No address of this host: whoever follows one without a copy crashes.
FIRST_ADDRESS = 0x00DE_0000_0000_0000


class ContractViolation(AssertionError):  # noqa: N818
    """The program did something the documentation forbids; real hardware might not have said so."""


@dataclass
class Allocation:
    """A piece of memory, device or pinned host.

    Attributes:
        address: Its first byte.
        content: [size] uint8.
        written: [size] bool: which bytes hold something. The host writes pinned memory unseen, so there all do.
        gpu: Index of the GPU it lies on, None for pinned memory.
        owned: Keeps pinned memory alive.
    """

    address: int
    content: NDArray[np.uint8]
    written: NDArray[np.bool_]
    gpu: int | None
    owned: object = None
    freed: bool = False


@dataclass(frozen=True)
class Region:
    """Some bytes of an allocation."""

    allocation: Allocation
    start: int
    size: int

    @property
    def content(self) -> NDArray[np.uint8]:
        return self.allocation.content[self.start : self.start + self.size]

    def check_alive(self) -> None:
        if self.allocation.freed:
            raise ContractViolation(f"memory at {self.allocation.address:#x} is used after it was freed")

    def check_written(self, what: str) -> None:
        self.check_alive()
        written = self.allocation.written[self.start : self.start + self.size]
        if not written.all():
            first = int(np.argmin(written))
            raise ContractViolation(f"{what}: byte {first} of {self.size} is read before anything was written there")

    def mark_written(self) -> None:
        self.check_alive()
        self.allocation.written[self.start : self.start + self.size] = True

    def overlaps(self, other: "Region") -> bool:
        return (
            self.allocation is other.allocation
            and self.start < other.start + other.size
            and other.start < self.start + self.size
        )

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        return self.content.view(dtype).reshape(shape)


@dataclass
class Memory:
    """All memory of the simulated machine.

    Attributes:
        limits: Bytes of each GPU.
        reserved: Bytes of each GPU taken by what is no allocation of the program: weights, contexts.
    """

    limits: list[int]
    reserved: list[int] = field(init=False)
    _allocations: dict[int, Allocation] = field(default_factory=dict)
    _next: int = FIRST_ADDRESS

    def __post_init__(self) -> None:
        self.reserved = [0] * len(self.limits)

    def free_bytes(self, gpu: int) -> int:
        used = sum(each.content.size for each in self._allocations.values() if each.gpu == gpu and not each.freed)
        return self.limits[gpu] - self.reserved[gpu] - used

    def allocate(self, size: int, gpu: int) -> int | None:
        """Poisoned memory; None where there is not enough."""
        if size > self.free_bytes(gpu):
            return None
        address = self._next
        self._next += -(-size // ALIGNMENT) * ALIGNMENT + GAP
        content = np.full(size, POISON, np.uint8)
        self._allocations[address] = Allocation(address, content, np.zeros(size, bool), gpu)
        return address

    def allocate_pinned(self, size: int) -> int:
        owned = ctypes.create_string_buffer(bytes([POISON]) * size, size)
        address = ctypes.addressof(owned)
        content = np.frombuffer(memoryview(owned), np.uint8)
        self._allocations[address] = Allocation(address, content, np.ones(size, bool), None, owned)
        return address

    def free(self, address: int, *, pinned: bool) -> None:
        if self.region(address, 1, "free", pinned=pinned).start:
            raise ContractViolation(f"free: {address:#x} is within an allocation, not its beginning")
        self._allocations[address].freed = True
        if pinned:  # the host's allocator may hand this address out again
            del self._allocations[address]

    def region(self, address: int, size: int, what: str, *, pinned: bool = False) -> Region:
        """The bytes at an address.

        Raises:
            ContractViolation: they are not all of one living allocation of this kind.
        """
        for found in self._allocations.values():
            if found.address <= address and address + size <= found.address + found.content.size:
                if (found.gpu is None) != pinned:
                    raise ContractViolation(f"{what}: {address:#x} is {'device' if pinned else 'host'} memory")
                region = Region(found, address - found.address, size)
                region.check_alive()
                return region
        raise ContractViolation(f"{what}: {size} bytes at {address:#x} are not within any allocation")

    def clear(self) -> None:
        self._allocations.clear()

    def leaks(self) -> list[str]:
        kinds = {True: "pinned", False: "device"}
        return [
            f"{each.content.size} bytes of {kinds[each.gpu is None]} memory"
            for each in self._allocations.values()
            if not each.freed
        ]


def byte_count(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return prod(shape) * np.dtype(dtype).itemsize
