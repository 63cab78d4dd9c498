#!/bin/sh
# Runs clang-tidy over the library, its command and the service.  Usage: lint.sh FOLDER, which build.sh has filled
# Not over nvidia.cpp, which needs NVIDIA's headers, and png.cpp, most of which is a library of others.
set -eu
folder=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
tidy=${CLANG_TIDY:-clang-tidy}
example=$here/../../examples/cpp-service
cmake --install "$folder/release" --prefix "$folder/prefix" >/dev/null
cmake -S "$example" -B "$folder/service" -DCMAKE_EXPORT_COMPILE_COMMANDS=ON \
  "-DCMAKE_PREFIX_PATH=$folder/prefix;$folder/headers/usr" >/dev/null
for part in "release $here/src $here/commands" "service $example"; do
  # shellcheck disable=SC2086
  set -- $part
  build=$folder/$1
  shift
  find "$@" -name '*.cpp' ! -name nvidia.cpp ! -name png.cpp -print0 | xargs -0 -n 1 -P "${JOBS:-2}" "$tidy" "--config-file=$here/.clang-tidy" --quiet -p "$build" || exit 1
done
