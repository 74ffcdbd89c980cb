# Places that a pool can be at. `place_up` makes $PLACE usable: $POOL is the argument of `pgmap serve`, $DATA
# that of `pgmap check`, $DIR a directory on it where there is one, $DEVICE its character device where it is one.
# `place_down` takes it away.
#
# ext4, xfs, tmpfs: a pool in a directory of that file system; -dax: mounted with dax on an NVDIMM.
# on-FS: a file of that file system is the pool. devdax-ALIGN: a device is the pool.
DIR=
DEVICE=
POOL=
DATA=
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
    devdax-1T)
        namespace 1099511627776 devdax 1G
        for device in /dev/dax"$number".*; do DEVICE=$device; done
        [ -c "$DEVICE" ] || die "there is no device for region$number"
        POOL="--on $DEVICE --pool /tmp/pool"
        DATA=$DEVICE
        return
        ;;
    devdax-4K | devdax-2M | devdax-1G)
        namespace $DEVICE_BYTES devdax "${PLACE#devdax-}"
        for device in /dev/dax"$number".*; do DEVICE=$device; done
        [ -c "$DEVICE" ] || die "there is no device for region$number"
        POOL="--on $DEVICE --pool /tmp/pool"
        DATA=$DEVICE
        return
        ;;
    esac
    case $PLACE in
    cxl-ram | cxl-pmem)
        cxl_device "${PLACE#cxl-}"
        POOL="--on $DEVICE --pool /tmp/pool"
        DATA=$DEVICE
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
    on-hugetlbfs)
        POOL="--on $DIR --pool /tmp/pool --size 448M"
        DATA=$DIR
        ;;
    on-*)
        POOL="--on $DIR/data --pool /tmp/pool --size 512M"
        DATA=$DIR/data
        ;;
    *)
        POOL="--pool $DIR/pool --size 256M"
        DATA=$DIR/pool
        ;;
    esac
}

# cxl_device ram|pmem: makes a region of the memory device that has such memory, and a dax device of that.
cxl_device() {
    for module in cxl_acpi cxl_pci cxl_port cxl_mem cxl_pmem dax_cxl; do modprobe $module 2>/dev/null; done
    sleep 1
    bus=/sys/bus/cxl/devices
    memory=
    for device in $bus/mem*; do
        [ "$(printf '%d' "$(cat "$device/$1/size")")" -gt 0 ] && memory=${device##*/}
    done
    [ -n "$memory" ] || die "there is no CXL memory device with $1"
    region=$(cat "$bus/decoder0.0/create_${1}_region")
    [ -d $bus/"$region" ] || echo "$region" > "$bus/decoder0.0/create_${1}_region" || die "no region $region"
    # The decoder of the device's end of the path.
    decoder=
    for candidate in $bus/decoder*; do
        [ -e "$candidate/dpa_size" ] || continue
        real=$(readlink -f "$candidate")
        [ "$(readlink -f "$real/../uport")" = "$(readlink -f "$bus/$memory")" ] || continue
        decoder=${decoder:-${candidate##*/}}
    done
    [ -n "$decoder" ] || die "no decoder of $memory"
    size=0x10000000
    region=$bus/$region
    if [ "$1" = pmem ]; then echo 12345678-1234-1234-1234-123456789012 > "$region/uuid"; fi
    cat $bus/decoder0.0/interleave_granularity > "$region/interleave_granularity"
    echo 1 > "$region/interleave_ways"
    echo $size > "$region/size" || die "${region##*/} cannot have $size bytes"
    echo "$1" > "$bus/$decoder/mode"
    echo $size > "$bus/$decoder/dpa_size" || die "$decoder has no $size bytes to give"
    echo "$decoder" > "$region/target0" || die "$decoder cannot be in ${region##*/}"
    echo 1 > "$region/commit" || die "${region##*/} cannot be committed"
    [ -e "$region/driver" ] || echo "${region##*/}" > /sys/bus/cxl/drivers/cxl_region/bind
    sleep 1
    if [ "$1" = pmem ]; then
        must within 60 ndctl create-namespace -f -m devdax -a 2M -M mem
        sleep 0.3
    fi
    for device in /sys/bus/dax/devices/dax*; do DEVICE=/dev/${device##*/}; done
    name=${DEVICE#/dev/}
    [ -n "$name" ] || die "there is no dax device on ${region##*/}"
    # A volatile region has no driver, or the one that makes it the system's memory. The node is there all the same.
    driver=$(readlink "/sys/bus/dax/devices/$name/driver")
    if [ "${driver##*/}" != device_dax ]; then
        [ -n "$driver" ] && echo "$name" > "/sys/bus/dax/devices/$name/driver/unbind"
        echo "$name" > /sys/bus/dax/drivers/device_dax/new_id
        [ -e "/sys/bus/dax/devices/$name/driver" ] || echo "$name" > /sys/bus/dax/drivers/device_dax/bind
    fi
    [ -c "$DEVICE" ] || die "$name has no character device"
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
