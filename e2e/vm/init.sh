#!/bin/busybox sh
# The first process of the emulated machine: from its first file system to the host's own root.
# Whatever fails ends it, and a kernel without its first process panics, which ends qemu.
set -e
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /host /memory /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    insmod "$module"
done
for word in $(cat /proc/cmdline); do
    case $word in gale_checkout=*) checkout=${word#*=} ;; esac
done

mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro host /host
mount -t tmpfs -o size=2g tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /root
for directory in proc sys dev; do
    mount --move /$directory /root/$directory
done
for directory in run tmp; do
    mount -t tmpfs tmpfs /root/$directory
done
mkdir -p /root/dev/pts /root/dev/shm /root/lib/modules
mount -t devpts devpts /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t bpf bpf /root/sys/fs/bpf
mount --bind "/root$checkout/build/vm/kernel/lib/modules" /root/lib/modules
ip link set lo up

# From here on the kernel, too, finds its helpers (modprobe) in the new root. The result goes to the
# second serial line.
exec switch_root /root /bin/sh -c "
    cd '$checkout'
    .venv/bin/python -m e2e.vm.guest
    echo \$? > /dev/ttyS1
    exec /bin/busybox poweroff -f
"
