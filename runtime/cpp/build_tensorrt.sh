#!/bin/sh
# Builds the C++ library with TensorRT. TENSORRT_ROOT has NVIDIA's headers in include/; CUDA's come from CUDA_ROOT, from
# /usr/local/cuda or from its wheels.
# Usage: build_tensorrt.sh FOLDER   Exit status 3: skipped; the last line says what is missing.
set -eu
folder=$1
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

skip() {
  echo "C++ with TensorRT skipped: $1"
  exit 3
}

for root in "${TENSORRT_ROOT:-}" /usr/local/tensorrt /usr; do
  [ -n "$root" ] && [ -f "$root/include/NvInferRuntime.h" ] && break
  root=
done
[ -n "$root" ] || skip "TENSORRT_ROOT names no folder with include/NvInferRuntime.h, such as a copy of NVIDIA's open TensorRT repository"
cuda=${CUDA_ROOT:-/usr/local/cuda}
if [ ! -f "$cuda/include/cuda.h" ]; then
  cuda="$folder/cuda/nvidia/cu13"
  if [ ! -f "$cuda/include/crt/host_defines.h" ]; then
    why=$("$python" -m pip download --quiet --no-deps --dest "$folder/cuda" nvidia-cuda-runtime nvidia-cuda-crt 2>&1) ||
      skip "there is no cuda.h, and its wheels cannot be fetched ($(echo "$why" | tail -n 1))"
    for wheel in "$folder"/cuda/*.whl; do "$python" -m zipfile -e "$wheel" "$folder/cuda"; done
  fi
fi
# The library of TensorRT RTX's wheel, which programs find without being told where it is.
library=$("$python" -c 'from importlib.util import find_spec; print(*find_spec("tensorrt_rtx_libs").submodule_search_locations)' \
  2>/dev/null || true)
"$here/build.sh" "$folder" tensorrt -DTENSORRT_ROOT="$root" -DCUDA_ROOT="$cuda" \
  -DSTARFLOW_TENSORRT_LIBRARY="${library:+$(ls "$library"/libtensorrt_rtx.so.*)}"
