#!/bin/busybox sh
# The guest's first process: mounts, modules, then each scenario that the kernel's command line names.
/bin/busybox mkdir -p /bin /sbin
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/shm /root /var/tmp
mount -t tmpfs none /tmp
mount -t tmpfs none /dev/shm
ip link set lo up 2>/dev/null
mkdir -p /etc
printf "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n" > /etc/passwd
ulimit -l unlimited
ulimit -n 65536
echo 1 > /proc/sys/kernel/printk
for module in virtio_pci virtio_blk nfit nd_pmem dax_pmem device_dax dax_hmem ext4 xfs \
    crc32c_generic crc32c_intel; do
    modprobe "$module" 2>/dev/null
done

names=$(sed 's/.*pgmap.scenarios=//; s/ .*//' /proc/cmdline)
if [ "$names" = shell ]; then
    echo "pgmap $(uname -r): the scripts are in /guest; poweroff -f ends this"
    setsid cttyhack sh
    poweroff -f
fi

# Lines for the host; what programs print goes to the console.
stty -F /dev/ttyS1 raw -echo 2>/dev/null
tell() { echo "$*" > /dev/ttyS1; }
tell "booted $(uname -r)"

for name in $(echo "$names" | tr , ' '); do
    echo "=== $name"
    tell "begin $name"
    rm -f /tmp/reason
    sh /guest/scenario.sh "$name" < /dev/null
    case $? in
    0) tell "ok $name" ;;
    77) tell "skipped $name $(cat /tmp/reason 2>/dev/null)" ;;
    *) tell "failed $name $(cat /tmp/reason 2>/dev/null || echo "see console.log")" ;;
    esac
done
tell end
poweroff -f
