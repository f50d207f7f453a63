#!/usr/bin/env bash
# Installs with apt what a build needs and this machine lacks, saying what and why. Does nothing when nothing is missing.
#
#   scripts/install-dependencies.sh [GROUP...]     groups: build (the default), bench, format, tidy
set -euo pipefail

boost_versions="1.81 1.83 1.88 1.90" # the first one that this distribution packages is taken

missing=() # "package|why"

has_package() { [[ $(dpkg-query -W -f '${db:Status-Status} ' "$1" 2>/dev/null) == installed* ]]; }

need_program() { # program package why
  command -v "$1" >/dev/null || missing+=("$2|$3")
}

need_package() { # package why
  has_package "$1" || missing+=("$1|$2")
}

need_boost() { # package with VERSION in its name, why
  local version
  for version in $boost_versions; do
    if has_package "${1/VERSION/$version}"; then return; fi
  done
  missing+=("$1|$2")
}

fail() {
  echo "install-dependencies: $*" >&2
  exit 1
}

if [ -z "${*:-}" ]; then set -- build; fi
if ! command -v dpkg-query >/dev/null; then
  echo "install-dependencies: no dpkg on this system, so nothing is installed; CMake will name what it misses"
  exit 0
fi
for group in "$@"; do
  case $group in
    build)
      need_program g++ g++ "C++20 compiler"
      need_program cmake cmake "build configuration"
      need_program ninja ninja-build "runs the build"
      need_package libopenblas-openmp-dev "matrix products on the CPU (OpenBLAS on OpenMP threads)"
      need_boost libboostVERSION-dev "containers (Boost headers)"
      need_boost libboost-jsonVERSION-dev "configuration files"
      need_boost libboost-program-optionsVERSION-dev "command lines of the example programs"
      need_package libutf8proc-dev "tokenizers of imported models (Unicode's tables)"
      need_package libgtest-dev "test suite (GoogleTest)"
      need_package libgmock-dev "test suite (GoogleTest's matchers)"
      ;;
    bench) need_package libbenchmark-dev "benchmarks (Google Benchmark)" ;;
    format) need_program clang-format clang-format "make format" ;;
    tidy) need_program clang-tidy clang-tidy "make tidy" ;;
    *) fail "unknown group '$group': choose from build, bench, format, tidy" ;;
  esac
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

echo "Missing on this machine:"
for entry in "${missing[@]}"; do
  name=${entry%%|*}
  printf '  %-32s %s\n' "${name/VERSION/}" "${entry#*|}"
done
names=("${missing[@]%%|*}")
by_hand="apt-get install ${names[*]//VERSION/}"
if [[ ${names[*]} == *VERSION* ]]; then by_hand+="   (Boost 1.81 or newer: on Debian 12 libboost1.81-dev and so on)"; fi
command -v apt-get >/dev/null || fail "there is no apt-get here; install the packages above another way"

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || fail "installing needs root and there is no sudo; as root, run: $by_hand"
  as_root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run_apt() {
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    fail "'apt-get $1' failed (its last lines are above); once it can work, run: $by_hand"
  fi
}

echo "Fetching the package lists (apt-get update) ..."
run_apt update
packages=()
for name in "${names[@]}"; do
  if [[ $name == *VERSION* ]]; then
    for version in $boost_versions; do
      if [[ $(apt-cache policy "${name/VERSION/$version}") == *"Candidate: "[0-9]* ]]; then break; fi
    done
    name=${name/VERSION/$version}
  fi
  packages+=("$name")
done
echo "Installing (apt-get install): ${packages[*]} ..."
run_apt install -y --no-install-recommends "${packages[@]}"
echo "Installed."
