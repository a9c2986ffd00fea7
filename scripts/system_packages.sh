#!/bin/sh
# Install what pip cannot bring, where this is root on Debian, or CI that may become
# root without a password; name it elsewhere.
set -eu

missing=""
python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
browser=""
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null 2>&1; then browser="$name"; fi
done
[ -n "$browser" ] || missing="$missing chromium"
fc-list 2>/dev/null | grep -qi 'noto.*cjk' || missing="$missing fonts-noto-cjk"
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" != 0 ] && [ -n "${CI:-}" ] && sudo -n true 2>/dev/null; then
  as_root="sudo -n"
fi
if { [ "$(id -u)" = 0 ] || [ -n "$as_root" ]; } && command -v apt-get >/dev/null 2>&1; then
  echo "installing system packages:$missing"
  log=$(mktemp)
  if ! { $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends fontconfig $missing; } \
      >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "could not install:$missing; install them by hand and run make again" >&2
    exit 1
  fi
  rm -f "$log"
else
  echo "system packages that are not here:$missing"
  echo "  Debian: apt-get install$missing. Without python3-venv there is no .venv;"
  echo "  without chromium the browser checks cannot run; without the fonts Chinese"
  echo "  text shows in whatever font the system has."
fi
