#!/bin/sh
# quietly.sh LABEL COMMAND...: says LABEL, runs the command, and shows what it printed only if it fails.
label=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
printf '%s ...\n' "$label"
"$@" >"$log" 2>&1
code=$?
if [ "$code" -ne 0 ]; then
    grep -v '^WARNING: ' "$log" | tail -n 40 >&2
    printf 'error: %s failed with code %s; what it said last is above\n' "$label" "$code" >&2
fi
exit "$code"
