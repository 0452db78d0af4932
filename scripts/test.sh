#!/usr/bin/env bash
# test.sh COMMAND…: runs the tests, then lists those that were skipped, with what this machine lacks for each.
# Its status is the command's.
set -euo pipefail

OBJM_SKIPPED=$(mktemp)
export OBJM_SKIPPED
trap 'rm -f "$OBJM_SKIPPED"' EXIT

status=0
"$@" || status=$?
skipped=$(wc -l <"$OBJM_SKIPPED")
if [ "$skipped" -gt 0 ]; then
    printf '\ntests: %s skipped on this machine:\n' "$skipped"
    sort "$OBJM_SKIPPED" | sed 's/^/  /'
else
    printf '\ntests: none skipped\n'
fi
exit "$status"
