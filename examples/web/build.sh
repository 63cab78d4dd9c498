#!/bin/sh
# Puts the page, onnxruntime-web and a bundle into a folder that any file server can serve.
# Usage: build.sh FOLDER [BUNDLE]   Exit status 3: skipped; the last line says what is missing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
bundle=${2:-$here/../../runtime/shipped/digits}
release=1.30.0 # of onnxruntime-web, the first tried that runs caches of 8 bits

command -v npm >/dev/null || { echo "the page is skipped: npm is not installed"; exit 3; }
mkdir -p "$folder/ort"
folder=$(cd "$folder" && pwd)
if [ ! -f "$folder/ort/$release" ]; then
  (cd "$folder/ort" && npm pack --silent "onnxruntime-web@$release" >/dev/null 2>&1) ||
    { echo "the page is skipped: onnxruntime-web $release cannot be fetched with npm"; exit 3; }
  tar -xzf "$folder/ort/onnxruntime-web-$release.tgz" -C "$folder/ort" --strip-components 2 \
    package/dist/ort.wasm.min.mjs package/dist/ort-wasm-simd-threaded.mjs package/dist/ort-wasm-simd-threaded.wasm
  rm "$folder/ort/onnxruntime-web-$release.tgz"
  touch "$folder/ort/$release"
fi
cp "$here/index.html" "$here/sampler.js" "$here/normal_numbers.js" "$folder/"
rm -rf "$folder/bundle"
cp -r "$bundle" "$folder/bundle"
echo "serve it with: python3 -m http.server --bind 127.0.0.1 --directory $folder"
