"""What a run reports: log.jsonl, TensorBoard, and one live line (plain lines without a terminal)."""

import json
import threading
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.plain.images import write_png
from starflow.runtime.plain.terminal import Terminal


class Journal:
    """Records a run in its folder and reports it on stderr, from `step` updates on.

    log.jsonl holds one object for each step. Lines past `step` come from a run that was killed after its last saved state;
    they are dropped, because these steps run again.
    """

    def __init__(self, folder: Path, step: int, total_steps: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder}: cannot be created ({error.strerror}); name another folder with --out"
            ) from None
        self.folder = folder
        self.total_steps = total_steps
        self._log_path = folder / "log.jsonl"
        self._keep_log_until(step)
        self._log = self._log_path.open("a", encoding="utf-8")
        self._first_step = step + 1
        self._console = Terminal(stderr=True)
        text = TextColumn("{task.description} {task.completed}/{task.total} {task.fields[figures]}", markup=False)
        self._progress = Progress(text, BarColumn(), TimeRemainingColumn(), console=self._console)
        self._task = self._progress.add_task("step", total=total_steps, completed=step, figures="")

    def __enter__(self) -> Self:
        from torch.utils.tensorboard import SummaryWriter

        # The hook comes first: the writer's thread may fail as soon as it starts.
        self._thread_hook, threading.excepthook = threading.excepthook, self._on_thread_error
        try:
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._first_step)
        except BaseException:
            threading.excepthook = self._thread_hook
            raise
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()
        for file in (self._log, self._writer):
            try:
                file.close()
            except OSError as error:  # what was not written before is written now
                value = value or error
        threading.excepthook = self._thread_hook
        if isinstance(value, OSError) and value.filename is None:
            raise StarflowError(
                f"{self.folder}: cannot be written ({value.strerror}); give the same command again to continue"
            ) from value

    def _on_thread_error(self, found: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread would print what the next call or `close` raises."""
        if not isinstance(found.exc_value, OSError):
            self._thread_hook(found)

    def _keep_log_until(self, step: int) -> None:
        if not self._log_path.exists():
            return
        kept = []
        for line in self._log_path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] > step:  # no line end: cut off by the kill
                break
            kept.append(line)
        with atomic_file(self._log_path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def record(self, step: int, **values: float) -> None:
        """Write the figures of a step to log.jsonl and TensorBoard."""
        self._log.write(json.dumps({"step": step, **values}) + "\n")
        self._log.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def progress(self, step: int, figures: str, speed: float, batch_size: int) -> None:
        """Report how far the run is; speed is in images/s."""
        figures = f"{figures}  {speed:.0f} images/s"
        self._progress.update(self._task, completed=step, figures=figures)
        if not self._console.is_terminal:
            left = timedelta(seconds=round((self.total_steps - step) * batch_size / speed))
            self.say(f"step {step}/{self.total_steps}  {figures}  {left} left")
        self._writer.add_scalar("images_per_second", speed, step)

    def say(self, message: str) -> None:
        """Print a line above the live one."""
        self._console.print(message, soft_wrap=True)

    def picture(self, step: int, sheet: NDArray[np.uint8]) -> None:
        """Keep a sheet of samples, uint8 [H, W, C], as PNG and in TensorBoard."""
        write_png(self.folder / "samples" / f"{step:07d}.png", sheet)
        self._writer.add_image("samples", sheet, step, dataformats="HWC")


class Silence:
    """The journal of a process that leaves the reporting to the first one."""

    def __init__(self, folder: Path, step: int, total_steps: int) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...
    def record(self, step: int, **values: float) -> None: ...
    def progress(self, step: int, figures: str, speed: float, batch_size: int) -> None: ...
    def say(self, message: str) -> None: ...
    def picture(self, step: int, sheet: NDArray[np.uint8]) -> None: ...
