#!/bin/sh
# Puts the headers of ONNX Runtime and nlohmann-json into a folder, if the system does not have them.
# They come from Debian's packages, through the mirror that this machine already uses. Nothing is installed but the compilers,
# and those only by root. The apt configuration stays as it is.
#
#     get_dependencies.sh FOLDER      # afterwards, the headers are in FOLDER/usr/include, if they were missing
set -eu

folder=${1:?"usage: get_dependencies.sh FOLDER"}
manual="install a C++17 compiler, cmake 3.25 or later and nlohmann-json, take the headers of ONNX Runtime from its releases,
and pass them to cmake: -DORT_INCLUDE=... and -DCMAKE_PREFIX_PATH=..."

stop() {
    echo "$1; $manual" >&2
    exit 1
}

# The folder, which Git ignores
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
echo '*' >"$folder/.gitignore"

# Compilers
compilers=""
command -v c++ >/dev/null || compilers="g++"
command -v cmake >/dev/null || compilers="$compilers cmake make"
if [ -n "$compilers" ]; then
    command -v apt-get >/dev/null || stop "$compilers: missing, and there is no apt-get to install them with"
    [ "$(id -u)" = 0 ] || stop "$compilers: missing. Run as root: apt-get install $compilers. Or without apt"
    apt-get -q update
    # shellcheck disable=SC2086  # a list
    DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $compilers
fi

# Headers
has() { # whether a header is in the system or in the folder
    for root in "$folder/usr" /usr/local /usr; do
        if [ -f "$root/include/$1" ]; then return 0; fi
    done
    return 1
}
packages=""
has onnxruntime/onnxruntime_cxx_api.h || has onnxruntime_cxx_api.h || packages="libonnxruntime-dev"
has nlohmann/json.hpp || packages="$packages nlohmann-json3-dev"
[ -n "$packages" ] || exit 0

# apt works in a folder of its own. Only the packages are kept.
. /etc/os-release
[ "$ID" = debian ] && command -v apt-get >/dev/null || stop "$packages: missing, and this is not Debian with apt-get"
work=$(mktemp -d "$folder/apt.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"

# The mirror, as apt reads its own configuration. A fresh machine has no lists yet; then they are fetched, but not kept.
mirror() {
    apt-get "$@" indextargets --format '$(CODENAME) $(ORIGIN) $(COMPONENT) $(CREATED_BY) $(REPO_URI)' |
        awk -v name="$VERSION_CODENAME" '$1 == name && $2 == "Debian" && $3 == "main" && $4 == "Packages" { print $5; exit }'
}
mirror=$(mirror)
if [ -z "$mirror" ]; then
    set -- -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)"
    apt-get -q "$@" update || true # another source of this machine may fail
    mirror=$(mirror "$@")
fi
[ -n "$mirror" ] || stop "$packages: missing, and apt has no source of Debian $VERSION_CODENAME main"

# The packages. Debian 12 and older have none of ONNX Runtime; the headers of 13 serve.
suite=$VERSION_CODENAME
case $suite in bullseye | bookworm) suite=trixie ;; esac
key=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f "$key" ] && option="[signed-by=$key]" || option="" # without it, apt takes the keys that it trusts anyway
echo "deb $option $mirror $suite main" >"$work/sources.list"
private_apt() {
    apt-get -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)" "$@"
}
echo "getting $packages of Debian $suite"
private_apt update
# shellcheck disable=SC2086  # a list
(cd "$work" && private_apt download $packages)
for package in "$work"/*.deb; do dpkg -x "$package" "$folder"; done
