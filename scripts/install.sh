#!/bin/sh
# Install the book's environment from the locks. The arguments are the pip to use:
#   sh scripts/install.sh .venv/bin/pip
# A torch that is there already and inside the range is kept.
set -eu
cd "$(dirname "$0")/.."

if [ $# = 0 ]; then
  echo "no pip was named: say which, such as sh scripts/install.sh .venv/bin/pip" >&2
  exit 2
fi
"$@" install --quiet --no-deps -r requirements.lock
"$@" install --quiet 'torch>=2.9,<2.14'
"$@" install --quiet --no-deps -r requirements-nodeps.lock -e .
