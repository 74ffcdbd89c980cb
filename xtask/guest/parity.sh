# The kernel's own device-dax or fsdax, then pgmap over the same device: what waits, errs, is lost. `note` lines
# are the material of docs/parity.md.
place_up
case $PLACE in
devdax-*)
    align=$(cat "/sys/bus/dax/devices/${DEVICE#/dev/}/align")
    within 60 kernel_dax devdax "$DEVICE" "$align" > /tmp/seen 2>&1 || die "kernel_dax: $(tail -n 1 /tmp/seen)"
    ;;
*) within 60 kernel_dax fsdax $DIR > /tmp/seen 2>&1 || die "kernel_dax: $(tail -n 1 /tmp/seen)" ;;
esac
cat /tmp/seen
while read -r line; do note "kernel ${line#seen }"; done < /tmp/seen
rm -f ${DIR:-/tmp}/kernel-*
# 60: a second holder, and a device that goes under the first.
case $PLACE in
*-dax)
    mkdir -p /mnt/second
    other=$([ "$fs" = ext4 ] && echo xfs || echo ext4)
    mount -t "$other" "/dev/pmem$number" /mnt/second > /tmp/call.out 2>&1
    note "kernel 60 mount of the device by a second file system: ends with $? $(tail -n 1 /tmp/call.out)"
    ndctl disable-namespace "namespace$number.0" > /tmp/call.out 2>&1
    note "kernel 60 ndctl disable-namespace under a mounted file system: ends with $? $(tail -n 1 /tmp/call.out)"
    ;;
esac

case $PLACE in
*-dax) POOL="--on $DIR/data --pool /tmp/pool --size 256M" ;;
esac
bytes 8388608 /tmp/one
serve $POOL
must pgmap -q put /tmp/one one
mkfifo /tmp/pipe

# under_hold ROW WHAT COMMAND...: COMMAND while a reader holds pins and is blocked.
under_hold() {
    row=$1 what=$2
    shift 2
    pgmap -q get one - > /tmp/pipe 2> /tmp/reader.err &
    reader=$!
    exec 8< /tmp/pipe
    head -c 4096 <&8 > /dev/null
    sleep 0.3
    within 20 "$@" > /tmp/call.out 2>&1
    code=$?
    note "pgmap $row $what: ends with $code $(tail -n 1 /tmp/call.out | cut -c 1-150)"
    cat <&8 > /tmp/rest
    exec 8<&-
    wait $reader || note "pgmap $row the reader ended with $?: $(tail -n 1 /tmp/reader.err)"
    [ "$(wc -c < /tmp/rest)" = $((8388608 - 4096)) ] || note "pgmap $row the reader was cut short"
    tail -c +4097 /tmp/one | cmp -s - /tmp/rest || note "pgmap $row the reader read other bytes"
}

pgmap serve $POOL --socket /tmp/other.sock > /tmp/call.out 2>&1
note "pgmap 60 a second owner: ends with $? $(tail -n 1 /tmp/call.out | cut -c 1-150)"
pgmap -q get one - > /dev/null || die "the first owner does not serve any more"
under_hold 52 "truncate under a reader, deadline 500 ms" pgmap truncate one 0 --deadline 500
pgmap -q stat one > /dev/null || must pgmap -q put /tmp/one one
under_hold 54 "truncate under a reader, deadline 0" pgmap truncate one 0 --deadline 0
under_hold 53 "hole of 4 KiB in what is read, deadline 500 ms" pgmap punch one 6291456 4096 --deadline 500
pgmap -q rm one
must pgmap -q put /tmp/one one
under_hold 55 "new contents under a reader" pgmap -q put /tmp/one one --replace
under_hold 51 "rm under a reader" pgmap rm one

# 56: an owner is stopped and started again under a reader. 59: memory fails, and is written again.
must pgmap -q put /tmp/one two
pgmap -q get two - > /tmp/pipe 2> /tmp/reader.err &
reader=$!
exec 8< /tmp/pipe
head -c 4096 <&8 > /dev/null
started=$(cut -d. -f1 /proc/uptime)
stop_owner
note "pgmap 56 stopping the owner under a reader: $(($(cut -d. -f1 /proc/uptime) - started)) s"
cat <&8 > /tmp/rest
exec 8<&-
wait $reader
note "pgmap 56 the reader ends with $?, $(wc -c < /tmp/rest) of $((8388608 - 4096)) bytes"
serve $POOL
holds two /tmp/one
must pgmap poison two 4096
pgmap -q get two /tmp/got > /tmp/call.out 2>&1
note "pgmap 59 get of a file with a failed page: ends with $? $(tail -n 1 /tmp/call.out | cut -c 1-150)"
pgmap -q repair two 4096 --from /tmp/one > /tmp/call.out 2>&1
code=$?
note "pgmap 59 repair: ends with $code $(tail -n 1 /tmp/call.out | cut -c 1-150)"
if [ $code = 0 ]; then holds two /tmp/one; fi
stop_owner
OWNER=
rm -f /tmp/pipe
