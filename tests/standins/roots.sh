#!/bin/sh
# Builds the two roots of the stand-ins below $1: `pi` (Debian, aarch64, sshd) and `phone` (Debian's adbd with mksh and
# toybox, Android's own shell and tools). About 25 s and 300 MB. As root, on Debian 12, with qemu-user-static,
# binfmt-support, mmdebstrap and openssh-client installed. Packages come from where this machine's come from.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
debian=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | sed -n 's/ bookworm$//p' | head -n 1)
[ -n "$debian" ] || { echo "roots.sh: this machine has no source of Debian 12 packages" >&2; exit 1; }
mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
update-binfmts --enable qemu-aarch64

root() { # name, packages, further source lines
  name=$1 packages=$2
  shift 2
  rm -rf "$name" "$name.part"
  mmdebstrap --quiet --architectures=arm64 --variant=extract --mode=root --include="$packages" \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Default-Release "bookworm*"' \
    bookworm "$name.part" "deb $debian bookworm main" "$@"
  (cd "$name.part" && mkdir -p dev/pts proc sys run root tmp etc && chmod 1777 tmp)
  for device in null:3 zero:5 full:7 random:8 urandom:9; do
    [ -e "$name.part/dev/${device%:*}" ] || mknod -m 666 "$name.part/dev/${device%:*}" c 1 "${device#*:}"
  done
  [ -e "$name.part/dev/ptmx" ] || mknod -m 666 "$name.part/dev/ptmx" c 5 2
  cp -r "$here/$name/." "$name.part/"
}

pi() {
  root pi base-files,base-passwd,bash,dash,coreutils,libc-bin,util-linux,login,passwd,procps,grep,sed,mawk,findutils,tar,gzip,python3,openssh-server,openssh-sftp-server,libgomp1,libstdc++6,ca-certificates
  (
    cd pi.part
    # no post-install script has run: what they would have done for the packages that matter
    cp usr/share/base-passwd/passwd.master etc/passwd
    cp usr/share/base-passwd/group.master etc/group
    echo 'sshd:x:105:65534::/run/sshd:/usr/sbin/nologin' >>etc/passwd
    echo 'pi:x:1000:1000::/home/pi:/bin/bash' >>etc/passwd
    echo 'pi:x:1000:' >>etc/group
    sed 's/^\([^:]*\):.*/\1:*:19000:0:99999:7:::/' etc/passwd >etc/shadow
    ln -sf dash bin/sh
    ln -sf mawk usr/bin/awk
    mkdir -p run/sshd home/pi/.ssh etc/ssh
    ssh-keygen -q -t ed25519 -N '' -f etc/ssh/ssh_host_ed25519_key
    ssh-keygen -q -t ed25519 -N '' -C stand-in -f ../id
    cp ../id.pub home/pi/.ssh/authorized_keys
    chown -R 1000:1000 home/pi
    chmod 700 home/pi/.ssh
  )
  chroot pi.part /sbin/ldconfig
  mv pi.part pi
}

phone() {
  root phone adbd,mksh,toybox,libc-bin "deb $debian bookworm-backports main"
  for applet in $(chroot phone.part /bin/toybox); do
    [ -e "phone.part/system/bin/$applet" ] || ln -s /bin/toybox "phone.part/system/bin/$applet"
  done
  ln -sf /bin/mksh phone.part/system/bin/sh
  ln -sf /bin/mksh phone.part/bin/sh
  mkdir -p phone.part/data/local/tmp phone.part/data/fixtures phone.part/data/misc/perfetto-traces
  chown -R 2000:2000 phone.part/data
  chroot phone.part /sbin/ldconfig
  mv phone.part phone
}

rm -f id id.pub
pi
phone
