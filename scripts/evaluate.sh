#!/bin/sh
# Artifact evaluation in three tiers, each of which ends in a table of verdicts.
set -eu
bin=.venv/bin
case "${1:-1}" in
1) # installed, and the claims of the worked batch
  "$bin/thesis" run 3 --profile smoke
  "$bin/thesis" compare build/chapters/smoke --strict
  ;;
2) # the published book, and every claim
  "$bin/thesis" run
  "$bin/thesis" book
  "$bin/thesis" compare build/chapters/default --strict
  ;;
3) # what needs hardware: peers in one limit, the claimed size, a GPU if there is one
  "$bin/python" -m pip install --quiet -e '.[peers]'
  "$bin/python" benchmarks/streaming.py
  "$bin/python" benchmarks/headline.py
  if sh scripts/require_gpu.sh "$bin/python"; then
    "$bin/python" benchmarks/gpu.py
  fi
  "$bin/thesis" run 6
  "$bin/thesis" compare build/chapters/default --strict
  ;;
*)
  echo "TIER=$1: expected 1 (minutes), 2 (the published book) or 3 (hardware)" >&2
  exit 2
  ;;
esac
