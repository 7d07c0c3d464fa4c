#!/bin/sh
# link_runtimes.sh ENVIRONMENT RUNTIME...: makes $SAGE_HOME/runtimes/RUNTIME point to ENVIRONMENT.
# A real directory there is the user's own environment and is left alone.
set -eu
environment=$1
shift
home=${SAGE_HOME:-$HOME/.sage}
[ -d "$home" ] || mkdir -p -m 700 "$home"
mkdir -p "$home/runtimes"
for runtime in "$@"; do
    link=$home/runtimes/$runtime
    if [ -L "$link" ] || [ ! -e "$link" ]; then
        ln -sfn "$environment" "$link"
    else
        printf 'keeping %s: it is an environment of its own\n' "$link"
    fi
done
