#!/bin/sh
# Builds the C++ library and its command, and fetches headers where the system has none.
# Usage: build.sh FOLDER [PRESET [CMAKE OPTION...]]   Exit status 3: skipped; the last line says what is missing.
set -eu
folder=$1
preset=${2:-release}
shift $(($# > 1 ? 2 : 1))
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

skip() {
  echo "C++ skipped: $1"
  exit 3
}

command -v cmake >/dev/null || skip "cmake is not installed"
command -v "${CXX:-c++}" >/dev/null || skip "there is no C++ compiler"
cmake -P "$here/cmake/check_version.cmake" 2>/dev/null || skip "cmake is older than 3.21"

headers="$folder/headers"
if ! cmp -s "$here/packages.txt" "$headers/packages.txt"; then
  rm -rf "$headers"
  why=$("$here/fetch_headers.sh" "$headers" 2>&1) || skip "its headers cannot be fetched ($(echo "$why" | tail -n 1))"
  cp "$here/packages.txt" "$headers/"
fi
# The library of the installed wheel, which programs find without being told where it is.
wheel=$("$python" - <<'PYTHON' || true
from importlib.util import find_spec
from pathlib import Path

spec = find_spec("onnxruntime")
for found in sorted(Path(spec.origin).parent.glob("capi/libonnxruntime.so*")) if spec else []:
    print(found)
PYTHON
)
generator=
command -v ninja >/dev/null && generator="-G Ninja"
# shellcheck disable=SC2086
cmake -S "$here" --preset "$preset" -B "$folder/$preset" $generator -DCMAKE_PREFIX_PATH="$headers/usr" \
  -DSTARFLOW_ONNXRUNTIME_LIBRARY="$(echo "$wheel" | head -n 1)" "$@" >"$folder/configure.log" 2>&1 ||
  { cat "$folder/configure.log" >&2; exit 1; }
cmake --build "$folder/$preset" --parallel "${JOBS:-2}"
echo "C++ built in $folder/$preset"
