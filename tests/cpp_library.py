"""The C++ library through its C API: what tests run, and a proof that another language can."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from starflow.runtime.plain.guidance import Guidance

REPOSITORY = Path(__file__).resolve().parent.parent
PRESET = os.environ.get("STARFLOW_CPP_PRESET", "release")
SANITIZERS = {"sanitize": "address,undefined", "sanitize-threads": "thread"}  # of the presets
SKIPPED = 3  # exit status of build.sh where something is missing
DENOISE = ("auto", "none", "score", "learned", "decoder")

FloatArray = NDArray[np.float32]
Warn = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)
Progress = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
OnBlock = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)
)


class BuildSkippedError(Exception):
    """Something that the build needs is missing here."""


def environment() -> dict[str, str]:
    """That of this process without the sanitizer in it: compilers do without, and programs bring their own."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@cache
def build() -> Path:
    """The folder of the built library and of `starflow-run`.

    Raises:
        BuildSkippedError: there is no compiler, CMake or header.
    """
    folder = REPOSITORY / "build" / "cpp"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        command: list[str | Path] = [REPOSITORY / "runtime/cpp/build.sh", folder, PRESET]
        variables = {**environment(), "PYTHON": sys.executable}
        built = subprocess.run(command, capture_output=True, text=True, env=variables)
    if built.returncode == SKIPPED:
        raise BuildSkippedError(built.stdout.strip().splitlines()[-1])
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / PRESET


def run(*command: str | Path, **variables: str) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, env={**environment(), **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(built: Path, prefix: Path) -> None:
    """Install the built library."""
    run("cmake", "--install", built, "--prefix", prefix)


def build_program(source: Path, folder: Path, prefix: Path) -> None:
    """Build a program of others in a folder, against the installed library and with its sanitizers."""
    headers = REPOSITORY / "build/cpp/headers/usr"
    sanitize = f"-fsanitize={SANITIZERS[PRESET]}" if PRESET in SANITIZERS else ""
    options = [f"-DCMAKE_PREFIX_PATH={prefix};{headers}", f"-DCMAKE_CXX_FLAGS={sanitize} -O0"]
    run("cmake", "-S", source, "-B", folder, *options, f"-DCMAKE_C_FLAGS={sanitize}")
    run("cmake", "--build", folder, "--parallel", "2")


class _Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *[(name, ctypes.c_char_p) for name in ("variant", "provider", "plan", "onnxruntime")],
        *[(name, ctypes.c_int64) for name in ("height", "width", "batch")],
        *[(name, ctypes.c_int32) for name in ("threads", "verify")],
        *[(name, ctypes.c_char_p) for name in ("backend", "tensorrt")],
        ("warn", Warn),
        ("warn_user", ctypes.c_void_p),
    ]


class _Guidance(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_double),
        ("schedule", ctypes.c_void_p),
        ("schedule_count", ctypes.c_size_t),
        *[(name, ctypes.c_double) for name in ("start", "end")],
        *[(name, ctypes.c_int32) for name in ("top_only", "without_scale", "without_shift", "annealed")],
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("labels", ctypes.c_void_p),
        ("label_count", ctypes.c_size_t),
        ("condition", ctypes.c_void_p),
        ("condition_values", ctypes.c_size_t),
        ("null_condition", ctypes.c_void_p),
        ("null_condition_values", ctypes.c_size_t),
        ("guidance", ctypes.POINTER(_Guidance)),
        ("guidance_count", ctypes.c_size_t),
        ("denoise", ctypes.c_int32),
        ("denoising_rate", ctypes.c_double),
        ("attention_temperature", ctypes.c_double),
        ("progress", Progress),
        ("on_block", OnBlock),
        ("user", ctypes.c_void_p),
    ]


SIZES = (
    "struct_size",
    "noise_values",
    "data_values",
    "height",
    "width",
    "channels",
    "condition_tokens",
    "condition_width",
    "classes",
)


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in SIZES]


class CppError(Exception):
    """An error of the library: its status, and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def load(name: str) -> ctypes.CDLL:
    """A library that was built."""
    loaded = ctypes.CDLL(str(build() / name))
    loaded.starflow_last_error.restype = ctypes.c_char_p
    loaded.starflow_normal_numbers.argtypes = [
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]
    return loaded


@cache
def library() -> ctypes.CDLL:
    """The built library."""
    return load("libstarflow.so")


def normal_numbers(seed: int, image: int, count: int) -> FloatArray:
    """`starflow_normal_numbers`."""
    numbers = np.empty(count, np.float32)
    library().starflow_normal_numbers(seed, image, count, numbers.ctypes.data)
    return numbers


class CppSampler:
    """`starflow_sampler` with the calls of `starflow.runtime.Sampler` that tests compare."""

    library = staticmethod(library)

    def __init__(self, folder: Path, data_shape: Sequence[int], **options: Any) -> None:
        self._data_shape, self._handle = tuple(data_shape), ctypes.c_void_p()
        encoded = {name: value.encode() if isinstance(value, str) else value for name, value in options.items()}
        self.warnings: list[str] = []
        self._warn = Warn(lambda _, message: self.warnings.append(message.decode()))
        asked = _Options(ctypes.sizeof(_Options), warn=self._warn, **encoded)
        self._call("starflow_open", os.fsencode(folder), ctypes.byref(asked), ctypes.byref(self._handle))

    def __enter__(self) -> "CppSampler":
        return self

    def __exit__(self, *_: object) -> None:
        self.library().starflow_close(self._handle)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library(), name)(*arguments)
        if status:
            raise CppError(status, self.library().starflow_last_error().decode())

    def load(self) -> None:
        """`starflow_load`."""
        self._call("starflow_load", self._handle)

    @property
    def sizes(self) -> dict[str, int]:
        """`starflow_get_sizes`."""
        sizes = _Sizes(ctypes.sizeof(_Sizes))
        self._call("starflow_get_sizes", self._handle, ctypes.byref(sizes))
        return {name: getattr(sizes, name) for name in SIZES}

    def noise(self, count: int, seed: int, temperature: float = 1.0) -> FloatArray:
        """`starflow_noise`, [count, noise_values]."""
        noise = np.empty((count, self.sizes["noise_values"]), np.float32)
        pointer = ctypes.c_void_p(noise.ctypes.data)
        arguments = (ctypes.c_size_t(count), ctypes.c_uint64(seed), ctypes.c_float(temperature), pointer)
        self._call("starflow_noise", self._handle, *arguments)
        return noise

    def generate(
        self,
        noise: NDArray,
        condition: NDArray | None = None,
        null_condition: NDArray | None = None,
        *,
        guidance: float | Guidance | Sequence[float | Guidance] = 0.0,
        attention_temperature: float = 1.0,
        denoise: str = "auto",
        denoising_rate: float = 1.0,
        on_block: Callable[[int, NDArray], None] | None = None,
        progress: Callable[[int, int], bool] | None = None,
    ) -> FloatArray:
        """`starflow_generate`; see `Sampler.generate`. `progress` returns whether to go on."""
        z = np.ascontiguousarray(noise, np.float32)
        kept: list[Any] = []  # arrays that structures point to

        def pointer(values: NDArray | None, dtype: Any) -> tuple[int | None, int]:
            if values is None:
                return None, 0
            kept.append(np.ascontiguousarray(values, dtype))
            return kept[-1].ctypes.data, kept[-1].size

        labels = condition is not None and np.asarray(condition).dtype.kind in "iu"
        each = [guidance] if isinstance(guidance, float | int | Guidance) else list(guidance)
        weights = (_Guidance * len(each))(*(self._guidance(value, pointer) for value in each))
        request = _Request(
            ctypes.sizeof(_Request),
            *pointer(condition if labels else None, np.int64),
            *pointer(None if labels else condition, np.float32),
            *pointer(null_condition, np.float32),
            weights,
            len(each),
            DENOISE.index(denoise),
            denoising_rate,
            attention_temperature,
            Progress(lambda _, done, total: not progress(done, total)) if progress else Progress(),
            OnBlock(lambda _, block, first, n, data: on_block(block, self._array(data, n))) if on_block else OnBlock(),
        )
        data = np.empty((len(z), *self._data_shape), np.float32)
        where = (ctypes.c_void_p(z.ctypes.data), ctypes.byref(request), ctypes.c_void_p(data.ctypes.data))
        self._call("starflow_generate", self._handle, ctypes.c_size_t(len(z)), *where)
        return data

    @staticmethod
    def _guidance(value: float | Guidance, pointer: Callable[..., tuple[int | None, int]]) -> _Guidance:
        asked = value if isinstance(value, Guidance) else Guidance(float(value))
        schedule = pointer(np.array(asked.schedule) if asked.schedule else None, np.float64)
        flags = (asked.top_only, not asked.scale, not asked.shift, asked.annealed)
        return _Guidance(asked.weight, *schedule, *asked.interval, *flags)

    def _array(self, data: Any, count: int) -> FloatArray:
        shape = (count, *self._data_shape)
        return np.ctypeslib.as_array(data, (int(np.prod(shape)),)).reshape(shape).copy()

    def to_images(self, data: NDArray, denoise: str = "auto") -> NDArray[np.uint8]:
        """`starflow_to_images`, [N, H, W, C]."""
        values, sizes = np.ascontiguousarray(data, np.float32), self.sizes
        pixels = np.empty((len(values), sizes["height"], sizes["width"], sizes["channels"]), np.uint8)
        where = (ctypes.c_void_p(values.ctypes.data), DENOISE.index(denoise), ctypes.c_void_p(pixels.ctypes.data))
        self._call("starflow_to_images", self._handle, ctypes.c_size_t(len(values)), *where)
        return pixels

    def encode_tokens(self, ids: Sequence[int], mask: Sequence[int]) -> FloatArray:
        """`starflow_encode_tokens`, [m, width]."""
        given = [np.array(values, np.int64) for values in (ids, mask)]
        features = np.empty((self.sizes["condition_tokens"], self.sizes["condition_width"]), np.float32)
        pointers = [ctypes.c_void_p(values.ctypes.data) for values in given]
        count = ctypes.c_size_t(len(given[0]))
        self._call("starflow_encode_tokens", self._handle, *pointers, count, ctypes.c_void_p(features.ctypes.data))
        return features
