#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a machine's GPU does with this build: is it right, and how fast. --help explains.
set -euo pipefail
command -v python3 >/dev/null || { echo "gpu-acceptance.sh: needs python3" >&2; exit 2; }
exec python3 -B "$(dirname "${BASH_SOURCE[0]}")/gpu/acceptance.py" "$@"
