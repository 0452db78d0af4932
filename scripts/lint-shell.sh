#!/usr/bin/env bash
# Every shell script of the repository parses, and passes shellcheck where that is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts=(scripts/*.sh scripts/lib/*.sh .ci/run)
for s in "${scripts[@]}"; do
    bash -n "$s"
    # What is in lib is sourced.
    case $s in scripts/lib/*) continue ;; esac
    [ -x "$s" ] || { echo "lint: $s is not executable" >&2; exit 1; }
done
if command -v shellcheck >/dev/null; then
    shellcheck -x -S warning "${scripts[@]}"
else
    echo "lint: shellcheck is not installed; the scripts were only parsed"
fi
