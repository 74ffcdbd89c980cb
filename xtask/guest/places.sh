# Places that a pool can be at. `place_up` makes $PLACE usable: $DIR is a directory on it, or $DEVICE a
# character device of device-dax. `place_down` takes it away again.
DIR=
DEVICE=
IS_BOUND=

# region BYTES: the number of the NVDIMM region of that size.
region() {
    for region in /sys/bus/nd/devices/region[0-9]*; do
        [ "$(cat "$region/size")" = "$1" ] && echo "${region##*region}"
    done
}

# namespace BYTES MODE ALIGN: makes a namespace of all of the region of that size.
namespace() {
    number=$(region "$1")
    [ -n "$number" ] || skip "there is no NVDIMM of $1 bytes"
    must within 120 ndctl create-namespace -f -e "namespace$number.0" -m "$2" -a "$3" -M mem
    sleep 0.3
}

DEVICE_BYTES=4294967296
DAX_BYTES=1073741824

place_up() {
    case $PLACE in
    tmpfs)
        DIR=/mnt/pool
        mkdir -p $DIR
        must mount -t tmpfs -o size=1200M none $DIR
        ;;
    ext4 | xfs)
        mkdir -p /mnt/pool
        DIR=/mnt/pool
        make_fs "$PLACE" /dev/vda
        must mount -t "$PLACE" /dev/vda $DIR
        ;;
    ext4-dax | xfs-dax)
        mkdir -p /mnt/pool
        DIR=/mnt/pool
        fs=${PLACE%-dax}
        namespace $DAX_BYTES fsdax 2M
        make_fs "$fs" "/dev/pmem$number" "-d su=2m,sw=1"
        must mount -t "$fs" -o dax=always "/dev/pmem$number" $DIR
        ;;
    devdax-4K | devdax-2M | devdax-1G)
        namespace $DEVICE_BYTES devdax "${PLACE#devdax-}"
        DEVICE=/dev/dax$number.0
        [ -c "$DEVICE" ] || die "ndctl made no $DEVICE"
        ;;
    *) die "there is no place $PLACE" ;;
    esac
}

# make_fs ext4|xfs DEVICE [OPTIONS]: file systems whose files can lie on pages of 2 MiB.
make_fs() {
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
    exit $code
}
