"""What a device's own shell does for us: POSIX sh, nothing that Debian, BusyBox or Android's toybox lacks.

Each script begins with its values as assignments (`filled`), quoted here. Everything lies below one folder, the root:

    lock                    a symbolic link; its text says who holds the device: PID.TOKEN.MACHINE.CLIENT.SINCE
    last                    token and process of the newest session
    session-TOKEN/          worker-N: process group of a running worker; tmp: its TMPDIR
    part-KEY                a push that was broken off
    KEY/NAME                a pushed file or folder, KEY = first 16 digits of its sha256; beside it .edgeslm-sums
                            (written last, so nothing half done passes for whole) and, where it is small and belongs
                            to one session, .edgeslm-passing

No backslash pairs and no csh: the login shell that first reads a script may be fish.
"""

from __future__ import annotations

import re
import shlex

ENDED = "edgeslm-ended"
READY, BUSY, LACKS = "edgeslm-ready", "edgeslm-busy", "edgeslm-lacks"
# exit codes of our own
NO_ROOT, CHANGED, CANNOT_WRITE, INCOMPLETE, DAMAGED, HELD, FULL, NOT_THERE = 70, 71, 72, 73, 74, 75, 28, 66


def filled(script: str, **values: str | int) -> str:
    """`script` with its values assigned before it."""
    return "; ".join([*(f"{key}={shlex.quote(str(value))}" for key, value in values.items()), script.strip()])


def wrapped(script: str) -> str:
    """A last line of stderr tells how it ended. Without that line the connection ended first: an exit code alone is
    ssh's own where a signal ended the command, and adb's where the phone is gone."""
    return f"({script}); printf '\\n{ENDED} %s\\n' \"$?\" >&2"


def unwrapped(stderr: str) -> tuple[int | None, str]:
    """-> (exit code, what the command itself wrote); None when its end was never told."""
    found = list(re.finditer(rf"\n?{ENDED} (\d+)\r?\n", stderr))
    if not found:
        return None, stderr
    last = found[-1]
    return int(last[1]), stderr[: last.start()] + stderr[last.end() :]


# The session's own process on the device. It holds the lock, waits for its stdin to say "bye" or to close, and then
# clears up: also when the cable was pulled or the program that started it was killed. After a cut the root stays for
# `grace` seconds, so that a broken push can go on.
ANCHOR = """
umask 077; trap '' HUP PIPE
for tool in sha256sum readlink grep tar df wc; do
  command -v "$tool" >/dev/null || { echo "edgeslm-lacks $tool"; exit 69; }
done
mkdir -p "$root" && cd "$root" || exit 70
root=$(pwd)
take() { mine="$$.$token.$owner"; ln -s "$mine" lock 2>/dev/null; }
named() { held=$(readlink "$1" 2>/dev/null); holder=${held%%.*}; of=${held#*.}; of=${of%%.*}; }
sweep() {
  for file in "session-$1"/worker-*; do
    [ -f "$file" ] || continue
    read -r pid <"$file"
    grep -q "$1" "/proc/$pid/cmdline" && { kill -9 "-$pid" || kill -9 "$pid"; }
  done 2>/dev/null
  rm -rf "session-$1"
}
passing() { for file in */.edgeslm-passing; do [ ! -f "$file" ] || rm -rf "${file%/*}"; done; }
release() { named lock; [ "$held" != "$mine" ] || rm -f lock; }
purge() {
  for file in *; do
    case $file in last|session-*|part-*|????????????????) rm -rf "$file";; esac
  done
  release; cd /; rmdir "$root" 2>/dev/null
}
if ! take; then
  named lock
  [ -n "$held" ] || exit 72
  if [ "$of" = "$broken" ]; then kill -9 "-$holder" 2>/dev/null || kill -9 "$holder" 2>/dev/null
  elif grep -q "$of" "/proc/$holder/cmdline" 2>/dev/null; then echo "edgeslm-busy $held"; exit 75
  fi
  seen=$held
  mv lock "session-stale-$$" 2>/dev/null; named "session-stale-$$"
  [ "$held" = "$seen" ] || mv "session-stale-$$" lock 2>/dev/null
  rm -f "session-stale-$$"
  take || { named lock; echo "edgeslm-busy $held"; exit 75; }
fi
for old in session-*; do [ ! -d "$old" ] || sweep "${old#session-}"; done
passing
read -r old pid <last 2>/dev/null && grep -q "$old" "/proc/$pid/cmdline" 2>/dev/null &&
  { kill -9 "-$pid" || kill -9 "$pid"; } 2>/dev/null
mkdir -p "session-$token/tmp" && echo "$token $$" >last || { release; exit 72; }
(
  trap 'kill -9 "$!"; exit' TERM
  while :; do sleep 60 >/dev/null & wait "$!"; echo || exit; done 2>/dev/null
) &
beat=$!
echo "edgeslm-ready $root"
clean=
while read -r word; do [ "$word" != bye ] || { clean=1; break; }; done
kill "$beat" 2>/dev/null; wait "$beat" 2>/dev/null
sweep "$token"
[ -z "$also" ] || rm -f "$also"
if [ "$keep" = 1 ]; then
  passing; [ -z "$clean" ] || rm -f part-*
  rm -f last; release; cd /; rmdir "$root" 2>/dev/null
elif [ -n "$clean" ] || [ "$grace" = 0 ]; then purge
else
  passing; release
  exec </dev/null >/dev/null 2>&1
  sleep "$grace"
  [ "$(cat last 2>/dev/null)" != "$token $$" ] || ! take || purge
fi
exit 0
"""

# Is it there, undamaged (`trust`: only whether it is there)? Whatever a worker left beside it goes.
LOOK = """
cd "$root" || exit 70
whole() { while read -r want file; do set -- $(sha256sum <"$file") none; [ "$1" = "$want" ] || return 1; done; }
if [ -e "$key/$name" ] && [ -f "$key/.edgeslm-sums" ] &&
  { [ "$trust" = 1 ] || (cd "$key" && whole <.edgeslm-sums) 2>/dev/null; }; then
  for file in "$key"/*; do [ "$file" = "$key/$name" ] || rm -rf "$file"; done
  echo have
elif [ -f "part-$key" ]; then
  size=$(wc -c <"part-$key"); set -- $(sha256sum <"part-$key"); echo part $size "$1"
else echo none
fi
"""

# Bytes `start` to `size` on stdin. Refuses before it reads when there is no room.
RECEIVE = """
cd "$root" || exit 70
part=part-$key
[ "$start" -gt 0 ] || : >"$part" || exit 72
[ "$(($(wc -c <"$part")))" -eq "$start" ] || exit 71
set -- $(df -Pk . | tail -n 1) none none none none
case $4 in
  *[!0-9]*) ;;
  *) [ "$4" -ge "$need" ] || { [ "$start" -gt 0 ] || rm -f "$part"; echo "$4"; exit 28; } ;;
esac
cat >>"$part" || { rm -f "$part"; exit 72; }
[ "$(($(wc -c <"$part")))" -ge "$size" ] || exit 73
set -- $(sha256sum <"$part") none
[ "$1" = "$sha" ] || { rm -f "$part"; exit 74; }
rm -rf "$key"
mkdir "$key" || exit 72
[ "$small" = 0 ] || : >"$key/.edgeslm-passing"
if [ "$folder" = 1 ]; then tar -xmf "$part" -C "$key" && rm -f "$part"
else mv "$part" "$key/$name" && chmod "$mode" "$key/$name" && echo "$sha  $name" >"$key/.edgeslm-sums"
fi || { rm -rf "$key" "$part"; exit 72; }
[ "$small" = 1 ] || sync
"""

# Its exit code is the command's, 128 + the number of the signal that ended it. It outlives its worker on purpose: while
# it lives the process group has a name. What programs leave in a cache of their own (onnxruntime does) goes with the
# session.
RUN = """
trap '' HUP; LC_ALL=C; export LC_ALL
cd "$root/session-$token/tmp" && echo $$ >"../worker-$n" || exit 70
TMPDIR=$PWD XDG_CACHE_HOME=$PWD; export TMPDIR XDG_CACHE_HOME
"$@"
code=$?
rm -f "$root/session-$token/worker-$n"
exit "$code"
"""

END = """
cd "$root/session-$token" 2>/dev/null || exit 0
read -r pid <"worker-$n" 2>/dev/null || exit 0
kill -9 "-$pid" 2>/dev/null || kill -9 "$pid" 2>/dev/null
rm -f "worker-$n"
exit 0
"""

PULL = """
[ -f "$file" ] || exit 66
sha256sum <"$file" >&2
cat "$file"
"""
