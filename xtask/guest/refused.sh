# What cannot hold a pool is refused at the start, by name, and nothing is left behind.
mkdir -p /mnt/pool /srv/files /var/lib/nfs

# refused WORDS OPTIONS...: `pgmap serve OPTIONS` ends with an error that has all of WORDS in it, parted by `|`.
refused() {
    words=$1
    shift
    within 20 pgmap serve "$@" > /tmp/must.out 2>&1
    code=$?
    echo "\$ pgmap serve $*"
    cat /tmp/must.out
    by_error "serve $*" $code
    said=$(tail -n 1 /tmp/must.out)
    echo "$words" | tr '|' '\n' | while read -r word; do
        case $said in
        *"$word"*) ;;
        *) die "serve $*: no \"$word\" in: $said" ;;
        esac
    done || exit 1
    note "$said"
}

# nothing_in DIRECTORY
nothing_in() {
    left=$(ls -A "$1")
    [ -z "$left" ] || die "$1 holds $left"
}

# vfat has no holes; the whole disk is one.
dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=notrunc 2>/dev/null
must mkfs.vfat -I -n DATA /dev/vda
for module in vfat nls_cp437 nls_ascii nls_iso8859_1 nls_utf8; do modprobe $module 2>/dev/null; done
must mount -t vfat /dev/vda /mnt/pool
refused "/mnt/pool/pool|vfat" --pool /mnt/pool/pool --size 16M
refused "/mnt/pool/data|vfat" --on /mnt/pool/data --pool /tmp/pool --size 16M
nothing_in /mnt/pool
must umount /mnt/pool

# ramfs has no limit.
must mount -t ramfs none /mnt/pool
refused "/mnt/pool/pool|ramfs" --pool /mnt/pool/pool --size 16M
refused "/mnt/pool/data|ramfs" --on /mnt/pool/data --pool /tmp/pool --size 16M
must umount /mnt/pool

# A file system that is mounted read-only, and a pool that became one.
ROUND=first
make_fs ext4 /dev/vda
must mount -t ext4 /dev/vda /mnt/pool
serve --pool /mnt/pool/old --size 16M
stop_owner
OWNER=
must mount -o remount,ro /mnt/pool
refused "/mnt/pool/new|read-only" --pool /mnt/pool/new --size 16M
refused "/mnt/pool/data|read-only" --on /mnt/pool/data --pool /tmp/pool --size 16M
refused "/mnt/pool/old|read-only" --pool /mnt/pool/old
must mount -o remount,rw /mnt/pool
# Too short: a file that is there, a device, and a file system without room.
truncate -s 4096 /mnt/pool/short
refused "/mnt/pool/short|4096" --on /mnt/pool/short --pool /tmp/pool --size 16M
refused "/mnt/pool/large" --pool /mnt/pool/large --size 64T
rm -rf /mnt/pool/large
must umount /mnt/pool

# The same files over NFS, from this kernel to itself. Its caches are filled by hand: nobody answers for it here.
if modprobe nfsd && modprobe nfsv4; then
    mount -t nfsd nfsd /proc/fs/nfsd 2>/dev/null
    must mount -t tmpfs none /srv/files
    # Clients at this address are `here`. Their root is that directory: insecure ports, asynchronous, no check
    # of subtrees, and a number instead of a device (2 + 0x10 + 0x400 + 0x2000).
    far=2147483647
    echo "nfsd 127.0.0.1 $far here" > /proc/net/rpc/auth.unix.ip/channel
    echo "here /srv/files $far 9234 65534 65534 0" > /proc/net/rpc/nfsd.export/channel
    echo "here 1 \\x00000000 $far /srv/files" > /proc/net/rpc/nfsd.fh/channel
    echo "-2 -3 +4 +4.1 +4.2" > /proc/fs/nfsd/versions
    echo "tcp 2049" > /proc/fs/nfsd/portlist
    echo 1 > /proc/fs/nfsd/threads
    must within 20 mount -t nfs4 -o vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys 127.0.0.1:/ /mnt/pool
    refused "/mnt/pool/pool|NFS" --pool /mnt/pool/pool --size 16M
    refused "/mnt/pool/data|NFS" --on /mnt/pool/data --pool /tmp/pool --size 16M
    nothing_in /mnt/pool
    must umount /mnt/pool
    echo 0 > /proc/fs/nfsd/threads
    umount /srv/files
else
    note "this kernel has no NFS server: NFS is not tried"
fi

# device-dax: a size that it has not; a second owner.
PLACE=devdax-2M
place_up
refused "68719476736|the device has" $POOL --size 64G
[ ! -e /tmp/pool/catalog ] || die "a pool was left in /tmp/pool"
serve $POOL
refused "$DEVICE|it has an owner already, process $OWNER" --on "$DEVICE" --pool /tmp/second
stop_owner
OWNER=
rm -rf /tmp/second
DIR=
