/**
 * Disks with a file system that a guest of the lab has as its root. One that GRUB boots from has a kernel, too, where
 * Debian's GRUB for Xen looks: /boot/grub/grub.cfg on any disk. xl shutdown ends its guest with a clean file system.
 */
import type { Lab } from "./lab.ts";

/** The kernel alone has 63. */
const DISK_MEBIBYTES = 128;

/**
 * Makes an image in dom0: ext4 with busybox, a kernel, and a GRUB configuration that boots it with the root on `device`.
 *
 * @param image - a file in dom0, where /tmp and /run are memory.
 * @param device - what the disk is called in the guest.
 */
export async function makeGuestDisk(lab: Lab, image: string, device: string): Promise<void> {
  await lab.check(`
    set -e
    tree=$(mktemp --directory)
    cd $tree
    mkdir -p bin boot/grub dev proc root run sbin sys tmp
    cp /usr/bin/busybox bin/
    cp /usr/lib/xen-lab/vmlinux /usr/lib/xen-lab/guest-initramfs boot/
    cat >boot/grub/grub.cfg <<'EOF'
linux /boot/vmlinux console=hvc0 quiet lab.root=${device}
initrd /boot/guest-initramfs
boot
EOF
    # What the kernel runs when the toolstack asks for a shutdown; an init would do no more.
    cat >sbin/poweroff <<'EOF'
#!/bin/busybox sh
/bin/busybox mount -o remount,ro /
exec /bin/busybox poweroff -f
EOF
    chmod +x sbin/poweroff
    mke2fs -q -t ext4 -b 4096 -d $tree ${image} ${DISK_MEBIBYTES}M
    rm -r $tree`);
}
