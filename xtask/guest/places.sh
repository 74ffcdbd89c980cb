# Places that a pool can be at. `place_up` makes $PLACE usable: $POOL is what `pgmap serve` is told, $DIR a
# directory on it where there is one, $DEVICE its character device where it is one. `place_down` takes it away.
#
# ext4, xfs, tmpfs: a pool in a directory of that file system; -dax: mounted with dax on an NVDIMM.
# on-FS: a file of that file system is the pool. devdax-ALIGN: a device is the pool.
DIR=
DEVICE=
POOL=
IS_BOUND=
DEVICE_BYTES=4294967296
DAX_BYTES=1073741824

# region BYTES: the number of the NVDIMM region of that size.
region() {
    for region in /sys/bus/nd/devices/region[0-9]*; do
        [ "$(cat "$region/size")" = "$1" ] && echo "${region##*region}"
    done
}

# namespace BYTES MODE ALIGN: makes a namespace of all of the region of that size; its number is $number.
# With ROUND=next or last the namespace that is there is used.
namespace() {
    number=$(region "$1")
    [ -n "$number" ] || skip "there is no NVDIMM of $1 bytes"
    case $ROUND in
    next | last) return ;;
    esac
    # What an earlier scenario left would be a pool of other units: the places where heads lie are cleared.
    must within 60 ndctl create-namespace -f -e "namespace$number.0" -m raw
    for mib in 0 1024; do
        dd if=/dev/zero of="/dev/pmem$number" bs=1M seek=$mib count=8 conv=notrunc 2>/dev/null
    done
    must within 120 ndctl create-namespace -f -e "namespace$number.0" -m "$2" -a "$3" -M mem
    sleep 0.3
}

place_up() {
    fs=${PLACE#on-}
    case $PLACE in
    devdax-4K | devdax-2M | devdax-1G)
        namespace $DEVICE_BYTES devdax "${PLACE#devdax-}"
        for device in /dev/dax"$number".*; do DEVICE=$device; done
        [ -c "$DEVICE" ] || die "there is no device for region$number"
        POOL="--on $DEVICE --pool /tmp/pool"
        return
        ;;
    esac
    mkdir -p /mnt/pool
    DIR=/mnt/pool
    case $fs in
    tmpfs) must mount -t tmpfs -o size=1200M none $DIR ;;
    ext4 | xfs)
        make_fs "$fs" /dev/vda
        must mount -t "$fs" /dev/vda $DIR
        ;;
    ext4-dax | xfs-dax)
        namespace $DAX_BYTES fsdax 2M
        fs=${fs%-dax}
        make_fs "$fs" "/dev/pmem$number" "-d su=2m,sw=1"
        must mount -t "$fs" -o dax=always "/dev/pmem$number" $DIR
        ;;
    hugetlbfs)
        echo 256 > /proc/sys/vm/nr_hugepages
        [ "$(cat /proc/sys/vm/nr_hugepages)" = 256 ] || skip "there is no room for 256 huge pages"
        must mount -t hugetlbfs -o pagesize=2M none $DIR
        ;;
    *)
        DIR=
        die "there is no place $PLACE"
        ;;
    esac
    case $PLACE in
    on-hugetlbfs) POOL="--on $DIR --pool /tmp/pool --size 448M" ;;
    on-*) POOL="--on $DIR/data --pool /tmp/pool --size 512M" ;;
    *) POOL="--pool $DIR/pool --size 256M" ;;
    esac
}

# make_fs ext4|xfs DEVICE [OPTIONS]: file systems whose files can lie on pages of 2 MiB.
make_fs() {
    case $ROUND in
    next | last) return ;;
    esac
    case $1 in
    ext4) must mkfs.ext4 -q -F -b 4096 -E stride=512,stripe_width=512 "$2" ;;
    xfs) must mkfs.xfs -q -f -m reflink=0 $3 "$2" ;;
    esac
}

place_down() {
    code=$?
    [ -n "$OWNER" ] && kill -9 "$OWNER" 2>/dev/null && wait "$OWNER" 2>/dev/null
    # The directory is mounted once, or twice where tests want it at /dev/shm too.
    [ -n "$IS_BOUND" ] && umount /dev/shm
    [ -n "$DIR" ] && umount $DIR
    rm -rf /tmp/pool /tmp/one /tmp/two /tmp/large /tmp/got
    echo 0 > /proc/sys/vm/nr_hugepages
    exit $code
}
