#!/bin/sh
# Unpacks the headers of packages.txt into a folder. Nothing is installed, and the package lists of the system stay as they are.
# They come from the mirror that this system's APT uses.
set -eu
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
suite=trixie # the first release of Debian that has ONNX Runtime's headers

for tool in apt-get dpkg; do
  command -v $tool >/dev/null || { echo "$tool is not installed" >&2; exit 1; }
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/*$' | sort -u | head -n 1)
[ -n "$mirror" ] && [ -f $keyring ] || { echo "this system's APT knows no mirror of Debian" >&2; exit 1; }

mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial" "$folder/apt/packages"
cd "$folder/apt"
for kind in deb deb-src; do echo "$kind [signed-by=$keyring] $mirror $suite main"; done >sources.list
cat >apt.conf <<CONFIGURATION
Dir::State::lists "$PWD/lists";
Dir::Cache "$PWD/cache";
Dir::Etc::sourcelist "$PWD/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Sandbox::User "";
Acquire::Retries "0";
Acquire::http::Timeout "20";
CONFIGURATION
export APT_CONFIG="$PWD/apt.conf"
apt-get update -qq
cd packages
# shellcheck disable=SC2046
apt-get download -qq $(grep -v '[#:]' "$here/packages.txt")
for package in *.deb; do dpkg -x "$package" "$folder"; done
sed -n 's/^source://p' "$here/packages.txt" | while read -r package header; do
  apt-get source -qq --download-only "$package"
  tar -xf "$package"_*.orig.tar.* --strip-components 1 --wildcards --directory "$folder/usr/include" "*/$header"
done
rm -rf "$folder/apt"
