#!/bin/busybox sh
# The first program of a Linux guest of `hypctl linux`: a shell on the console, or a script and its verdict.
#
# With a file /hyp/mark, lines `\x1e<mark>{JSON}` tell hypctl what happened when (hypctl/src/linux/marks.rs):
# `init` is the first thing that this program does, `up` comes before the shell or the script, `end` after the script.
PATH=/bin
mark=
[ ! -e /hyp/mark ] || read -r mark < /hyp/mark
tell() { [ -z "$mark" ] || printf '\036%s{%s}\n' "$mark" "$1"; }

if [ -n "$mark" ]; then
    set -- $(counter)
    tell "\"init\":{\"counter\":$1,\"frequency\":$2}"
fi
echo "init: started"
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
busybox mount -t tmpfs tmpfs /tmp
busybox --install -s /bin
release=$(uname -r) cpus=$(nproc)
tell "\"up\":{\"release\":\"$release\",\"cpus\":$cpus}"
echo "init: Linux $release, $cpus CPUs"

# What a kernel says when something is wrong with it or with the machine.
complaints='BUG:|WARNING:|Oops|Call trace:|Internal error|Unable to handle|Kernel panic|rcu.*stall|lockup|hung_task|blocked for more than|nobody cared|SError|Bad mode|Unexpected'

if [ -e /hyp/script ]; then
    sh /hyp/script < /dev/null
    status=$?
    dmesg | grep -E "$complaints"
    tell "\"end\":{\"status\":$status,\"complaints\":$(dmesg | grep -cE "$complaints")}"
    poweroff -f
fi

echo "init: this is a shell; Ctrl-D or \`poweroff\` ends the machine"
# busybox's init has the shell alone at its terminal, so that Ctrl-C reaches what the shell runs: what a script like this one puts into
# the background ignores it. It is whom `poweroff` and `reboot` ask.
busybox mkdir -p /etc
echo 'ttyAMA0::once:/hyp/shell' > /etc/inittab
printf '#!/bin/sh\nsh -i\nexec poweroff\n' > /hyp/shell
chmod +x /hyp/shell
exec busybox init
