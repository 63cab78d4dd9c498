"""How a run uses its processes: one alone, replicas (DDP), or shards of the model (FSDP2). PyTorch's engines do the work.

Every process draws the random numbers of the whole batch and trains on its own parts of it, so noise and order are functions
of the place in the batch, and results do not depend on the number of processes but for rounding.
"""

import contextlib
import copy
import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from starflow.runtime.plain.errors import UsageError

Parallel = Literal["ddp", "fsdp"]
PATIENCE = timedelta(hours=2)  # with the first process, which encodes the images for all
Found = TypeVar("Found")
START = "torchrun --nproc-per-node N -m starflow.runtime train RECIPE --parallel"


class Engine:
    """One process that holds the whole model."""

    rank, count = 0, 1
    parallel = False  # whether torchrun started it

    def device(self, device: torch.device) -> torch.device:
        """The device of this process, where the recipe names a kind of device."""
        return device

    def distribute(self, network: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
        """What to call in place of a network; `layers` are its repeated parts."""
        return network

    def shard(self, average: nn.Module) -> None:
        """Lay a moving average out as `distribute` lays out its network."""

    def whole(self, average: nn.Module) -> nn.Module:
        """A module with all weights of an average in this process."""
        return average

    def holding(self, network: Callable[..., Any]) -> AbstractContextManager[Any]:
        """A context whose backward passes keep their gradients to this process: more parts of the batch follow."""
        return contextlib.nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return value

    def gather(self, share: Tensor) -> Tensor:
        """The shares of all processes [B / count, ...] one behind the other, [B, ...]."""
        return share

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return flag

    def from_first(self, work: Callable[[], Found]) -> Found:
        """What the first process finds; the others wait for it."""
        return work()

    # State dicts have parameters by name and whole tensors, whatever the number of processes.

    def model_state(self, model: nn.Module) -> dict[str, Any]:
        """The weights and buffers of a model; on the first process."""
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of an optimiser; on the first process."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Any], get_optimizer_state_dict(model, optimizer, options=options))

    def load(
        self,
        model: nn.Module,
        state: dict[str, Any],
        optimizer: torch.optim.Optimizer | None = None,
        moments: Any = None,
    ) -> None:
        """Load what `model_state` and `optimizer_state` gave."""
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.count > 1)
        set_model_state_dict(model, state if self.rank == 0 else {}, options=options)
        if optimizer is not None:
            set_optimizer_state_dict(model, optimizer, moments if self.rank == 0 else {}, options=options)


class Replicas(Engine):
    """Every process holds the whole model: DistributedDataParallel averages the gradients."""

    parallel = True

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def device(self, device: torch.device) -> torch.device:
        if device.type == "cpu":
            return device
        local = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(local)
        return local

    def distribute(self, network: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
        return DistributedDataParallel(network)

    def holding(self, network: Callable[..., Any]) -> AbstractContextManager[Any]:
        assert isinstance(network, DistributedDataParallel)
        return network.no_sync()

    def sum(self, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    def gather(self, share: Tensor) -> Tensor:
        whole = share.new_empty((self.count * len(share), *share.shape[1:]))
        dist.all_gather_into_tensor(whole, share.contiguous())
        return whole

    def any(self, flag: bool) -> bool:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def from_first(self, work: Callable[[], Found]) -> Found:
        found: list[Any] = [work() if self.rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        return cast(Found, found[0])


class Shards(Replicas):
    """Every process holds a part of each tensor: `fully_shard` gathers one layer at a time and scatters its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self._whole: dict[nn.Module, nn.Module] = {}  # of every average, its copy with all weights

    def distribute(self, network: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
        for layer in layers:
            fully_shard(layer)
        return cast(nn.Module, fully_shard(network))

    def shard(self, average: nn.Module) -> None:
        self._whole[average] = copy.deepcopy(average)
        fully_shard(average)

    def whole(self, average: nn.Module) -> nn.Module:
        whole = self._whole[average]
        whole.load_state_dict(get_model_state_dict(average, options=StateDictOptions(full_state_dict=True)))
        return whole

    @contextmanager
    def holding(self, network: Callable[..., Any]) -> Iterator[None]:
        sharded = cast(FSDPModule, network)
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)


def local(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The part of every parameter that this process holds."""
    return [parameter.to_local() if hasattr(parameter, "to_local") else parameter.data for parameter in parameters]


@contextmanager
def engine_for(parallel: Parallel | None, *, cuda: bool) -> Iterator[Engine]:
    """The engine of `--parallel`, among the processes that torchrun started.

    Raises:
        UsageError: torchrun did not start this process, or started it without `--parallel`.
    """
    if parallel is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("torchrun started several processes; add --parallel ddp or --parallel fsdp")
        yield Engine()
        return
    if "RANK" not in os.environ:
        raise UsageError(f"--parallel {parallel} needs the processes of torchrun: {START} {parallel}")
    # Nothing changes the outputs of a flow in place, of which FSDP warns.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Shards() if parallel == "fsdp" else Replicas()
    finally:
        # A network that outlives the group ends it while holding the interpreter's lock, for which Gloo's threads may wait.
        gc.collect()
        dist.destroy_process_group()
