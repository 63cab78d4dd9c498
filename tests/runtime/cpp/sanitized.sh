#!/bin/sh
# Runs a Python command with a sanitizer in the process, which the C++ library of that preset needs:
#   sanitized.sh sanitize python -m pytest tests/runtime/cpp          AddressSanitizer and UndefinedBehaviorSanitizer
#   sanitized.sh sanitize-threads python -m pytest tests/runtime/cpp  ThreadSanitizer
set -eu
export STARFLOW_CPP_PRESET="$1"
shift
case "$STARFLOW_CPP_PRESET" in
sanitize) library=libasan.so ;;
sanitize-threads) library=libtsan.so ;;
*) echo "sanitized.sh: the preset is sanitize or sanitize-threads" >&2 && exit 2 ;;
esac
# Python keeps what it allocates to its end.
export ASAN_OPTIONS="detect_leaks=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
# ONNX Runtime, NumPy and Python are not built with ThreadSanitizer, so it does not see how their threads wait for each other.
export TSAN_OPTIONS="ignore_noninstrumented_modules=1:halt_on_error=1${TSAN_OPTIONS:+:$TSAN_OPTIONS}"
# AddressSanitizer looks for the C++ library when it starts, and Python comes without.
for name in "$library" libstdc++.so.6; do LD_PRELOAD="${LD_PRELOAD:+$LD_PRELOAD:}$("${CXX:-c++}" -print-file-name="$name")"; done
export LD_PRELOAD
exec "$@"
