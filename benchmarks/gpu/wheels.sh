#!/bin/sh
# Collect the wheels that a machine with torch, torchvision, lightning, transformers, accelerate and peft lacks, for a
# run without a network: sh benchmarks/gpu/wheels.sh [FOLDER]. They go into an ignored folder, which the run unpacks;
# what is installed there is left as it is. Wheels of pure Python alone, so they fit any machine, and without their
# dependencies, under 60 MB in all.
set -eu
cd "$(dirname "$0")"
PYTHON="${PYTHON:-$(if [ -x ../../.venv/bin/python ]; then echo ../../.venv/bin/python; else echo python3; fi)}"
FOLDER="${1:-wheels}"
MOST_KB=61440
mkdir -p "$FOLDER"
# In lines: diffusers and what it needs, the command line of training, the console, the tests.
"$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --implementation py --abi none --platform any \
    --dest "$FOLDER" \
    "diffusers>=0.37" importlib-metadata zipp requests urllib3 certifi charset-normalizer idna \
    "jsonargparse>=4.40" docstring-parser typeshed-client importlib-resources \
    rich markdown-it-py mdurl pygments \
    pytest pluggy iniconfig pytest-timeout
size_kb=$(du -sk "$FOLDER" | cut -f1)
if [ "$size_kb" -gt "$MOST_KB" ]; then
    echo "wheels are $size_kb KB, more than $MOST_KB: leave one out" >&2
    exit 1
fi
echo "$(ls "$FOLDER" | wc -l) wheels, $size_kb KB, in $FOLDER"
