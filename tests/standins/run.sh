#!/bin/sh
# Runs one stand-in until its stdin closes: run.sh pi ROOT PORT, or run.sh phone ROOT PORT. Its mounts and processes are
# in namespaces of their own and go with it. The phone also has a network of its own, since adbd listens everywhere;
# `nsenter` reaches it by the process whose number is printed first.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
what=$1 root=$2 port=$3
if [ -z "${EDGESLM_INSIDE:-}" ]; then
  [ "$what" = phone ] && net=--net || net=
  EDGESLM_INSIDE=1 unshare --mount --pid --fork --kill-child $net "$0" "$@" </dev/null &
  outer=$!
  echo "$outer"
  cat >/dev/null
  # the first process of the namespace takes all others with it; it has changed its user, so that nothing else ends it
  kill -9 $(cat "/proc/$outer/task/$outer/children") "$outer" 2>/dev/null
  wait
  exit 0
fi
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --bind "$here/cpuinfo" "$root/proc/cpuinfo"
case $what in
pi)
  mount -t devpts devpts "$root/dev/pts"
  # the CPU model must be in the environment of every emulated process: sshd hands it on only when told to
  QEMU_CPU=cortex-a76 exec chroot "$root" /usr/sbin/sshd -D -e -f /dev/null -h /etc/ssh/ssh_host_ed25519_key -p "$port" -o ListenAddress=127.0.0.1 -o UsePAM=no \
    -o PasswordAuthentication=no -o PidFile=none -o SetEnv=QEMU_CPU=cortex-a76
  ;;
phone)
  ip link set lo up
  QEMU_CPU=cortex-a76 PATH=/system/bin ADBD_PORT=$port exec /usr/sbin/chroot --userspec=2000:2000 "$root" /usr/sbin/adbd
  ;;
esac
