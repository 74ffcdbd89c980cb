# CXL memory that is taken away under a pool: the region disabled, and the whole memory device removed. No process
# is ended by a signal, calls that need no memory still answer, and the pool is served again when a region is back.
place_up
bytes 5000000 /tmp/one
bytes 33554432 /tmp/large
serve $POOL
must pgmap -q put /tmp/one one
must pgmap -q put /tmp/large large
region=${region##*/}

# without WHAT: the pool says what it knows, and everything that touches memory is an error.
without() {
    for verb in ls stat who; do
        within 20 pgmap $verb > /tmp/must.out 2>&1
        code=$?
        [ $code = 0 ] || die "pgmap $verb ended with $code after $1: $(tail -n 1 /tmp/must.out)"
    done
    within 20 pgmap -q get one /tmp/got > /tmp/must.out 2>&1
    by_error "get after $1" $?
    kill -0 $OWNER 2>/dev/null || die "the owner is gone after $1: $(tail -n 1 /tmp/owner.err)"
    unused "$1"
}

read_slowly large
how="cxl disable-region"
cxl disable-region -f "$region" > /tmp/must.out 2>&1 || {
    how="unbind of the region"
    echo "$region" > /sys/bus/cxl/drivers/cxl_region/unbind || die "$region cannot be disabled"
}
[ -e "/sys/bus/cxl/devices/$region/driver" ] && die "$region is still there after $how"
note "$how of $region under a reader"
without "$how"
cat <&8 > /dev/null
exec 8<&-
wait $reader
by_error "a get that was under way" $?

echo "$region" > /sys/bus/cxl/drivers/cxl_region/bind || die "$region cannot be enabled again"
sleep 1
name=${DEVICE#/dev/}
[ -e "/sys/bus/dax/devices/$name/driver" ] || echo "$name" > /sys/bus/dax/drivers/device_dax/bind
soon pgmap -q get one /tmp/got
holds one /tmp/one
holds large /tmp/large
note "the pool is served again after $region was enabled"

for device in /sys/bus/pci/drivers/cxl_pci/0*; do
    [ -e "$device/$memory" ] && echo 1 > "$device/remove"
done
[ -e "/sys/bus/cxl/devices/$memory" ] && die "$memory is still there"
note "the memory device $memory was removed under the pool"
without "the removal"
dmesg | grep -E 'Oops|BUG:|general protection' && die "the kernel found a bug"
stop_owner
OWNER=
exit 0
