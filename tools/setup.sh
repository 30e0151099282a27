#!/bin/sh
# Makes .venv with dsprov (editable) and every development tool, pinned by uv.lock. About a minute on a new machine.
set -eu
cd "$(dirname "$0")/.."
UV_VERSION=0.13.9

find_python() {
  for name in python3.13 python3.12 python3.11 python3; do
    path=$(command -v "$name") || continue
    "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    "$path" -c 'import sys; print(sys.executable)'
    return
  done
  echo "missing: Python 3.11 or later; install it (Debian 12, Ubuntu 24.04: apt-get install python3 python3-venv)" >&2
  return 1
}

if ! [ -x .venv/bin/uv ]; then
  python=$(find_python)
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "setup: installing python3-venv"
      apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    else
      echo "missing: Python's venv; install it (sudo apt-get install python3-venv)" >&2
      exit 1
    fi
  fi
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  echo "setup: uv $UV_VERSION"
  .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip -q
  .venv/bin/python -m pip install -q --disable-pip-version-check "uv==$UV_VERSION"
fi
echo "setup: the packages of uv.lock"
.venv/bin/uv sync --quiet --locked --python .venv/bin/python
touch .venv/.ready
