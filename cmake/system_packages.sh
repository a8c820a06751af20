#!/usr/bin/env bash
# Installs the Debian packages that the build needs and the machine lacks; prints the command where it may not.
set -euo pipefail
needed=(g++ python3-venv python3-dev libhdf5-dev libfmt-dev doctest-dev nlohmann-json3-dev libtomlplusplus-dev hdf5-tools ccache)
command -v dpkg-query >/dev/null || { echo "Not a Debian system: install the equivalents of ${needed[*]} yourself."; exit 0; }
missing=()
for package in "${needed[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "These Debian packages are missing; install them, then run make again:"
  echo "  sudo apt-get install ${missing[*]}"
  exit 1
fi
echo "==> Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
