#!/bin/sh
# Collect the wheels that a machine with torch, lightning, transformers, accelerate and peft lacks, for a run without a
# network: sh benchmarks/gpu/wheels.sh. They go into an ignored folder, which the run unpacks. Pure Python wheels only,
# without their dependencies, under 60 MB in all.
set -eu
cd "$(dirname "$0")"
PYTHON="${PYTHON:-$(if [ -x ../../.venv/bin/python ]; then echo ../../.venv/bin/python; else echo python3; fi)}"
MOST_KB=61440
mkdir -p wheels
"$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --dest wheels \
    "diffusers>=0.37" "jsonargparse>=4.40" docstring-parser typeshed-client importlib-resources \
    rich markdown-it-py mdurl pygments pytest pluggy iniconfig pytest-timeout
size_kb=$(du -sk wheels | cut -f1)
if [ "$size_kb" -gt "$MOST_KB" ]; then
    echo "wheels are $size_kb KB, more than $MOST_KB: leave one out" >&2
    exit 1
fi
echo "$(ls wheels | wc -l) wheels, $size_kb KB, in benchmarks/gpu/wheels"
