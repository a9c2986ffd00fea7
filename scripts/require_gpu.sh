#!/bin/sh
# Stop with one sentence unless there is a CUDA device: a driver and, where a Python is
# named, a torch in it that sees one.
set -eu

if ! command -v nvidia-smi >/dev/null 2>&1; then
  why="nvidia-smi is not here"
elif [ $# != 0 ] && ! "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  why="the torch of $1 sees none"
else
  exit 0
fi
echo "no CUDA device: $why; run make gpu on a machine with an NVIDIA GPU, its driver and a CUDA build of torch" >&2
exit 1
