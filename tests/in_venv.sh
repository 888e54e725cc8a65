#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# in_venv.sh SCRIPT [ARG...]: runs a Python script with the packages of tests/requirements.txt, or exits with 77 (the
# test skips) where `./dev test` could not install them.
python=$(dirname "${BASH_SOURCE[0]}")/../.cache/venv/bin/python3
if [ ! -x "$python" ]; then
  echo "skipped: no Python packages in .cache/venv; ./dev test installs them" >&2
  exit 77
fi
exec "$python" -B "$@"
