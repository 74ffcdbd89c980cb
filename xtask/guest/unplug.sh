# A device that goes away under a pool, under a reader and under load, and comes back. No process is ended
# by a signal, calls that do not need the device still answer, and the pool is whole when the device is back.
place_up
bytes 5000000 /tmp/one
bytes 33554432 /tmp/large
name=${DEVICE#/dev/}
driver=/sys/bus/dax/drivers/device_dax
[ -e "$driver/$name" ] || die "$name is not bound to device_dax"

serve $POOL
must pgmap -q put /tmp/one one
must pgmap -q put /tmp/large large
holds one /tmp/one

# A reader that holds pins and is blocked: its pipe is full.
mkfifo /tmp/pipe 2>/dev/null
(
    pgmap -q get large - > /tmp/pipe 2> /tmp/reader.err
    echo $? > /tmp/reader.code
) &
exec 8< /tmp/pipe
head -c 65536 <&8 > /dev/null
# And a writer that writes until it fails.
(
    while pgmap -q put /tmp/one load > /dev/null 2> /tmp/load.err && pgmap -q rm load; do :; done
    pgmap -q put /tmp/one load 2> /tmp/load.err
    echo $? > /tmp/load.code
) &
load=$!
sleep 1

echo "$name" > $driver/unbind || die "unbind was refused"
note "unbound $name under a reader and a writer"
for verb in ls stat who; do
    within 20 pgmap $verb > /tmp/must.out 2>&1
    code=$?
    [ $code = 0 ] || die "pgmap $verb ended with $code without the device: $(tail -n 1 /tmp/must.out)"
done
within 20 pgmap -q get one /tmp/got > /tmp/must.out 2>&1
by_error "get" $?
cat /tmp/must.out
within 20 pgmap -q put /tmp/one two > /tmp/must.out 2>&1
by_error "put" $?
cat /tmp/must.out
wait $load
cat /tmp/load.err
by_error "a put that was under way" "$(cat /tmp/load.code)"
# The reader goes on, and finds that nothing is left to read.
cat <&8 > /dev/null
exec 8<&-
sleep 0.5
cat /tmp/reader.err
by_error "a get that was under way" "$(cat /tmp/reader.code)"
kill -0 $OWNER 2>/dev/null || die "the owner is gone: $(tail -n 1 /tmp/owner.err)"
dmesg | grep -E 'Oops|BUG:|general protection' && die "the kernel found a bug"

echo "$name" > $driver/bind || die "the device cannot be bound again: someone has kept it"
note "bound $name again"
soon pgmap -q get one /tmp/got
holds one /tmp/one
holds large /tmp/large
must pgmap -q put /tmp/one again
holds again /tmp/one

# A reader that is still there when the device is back goes on where it was.
read_slowly large
echo "$name" > $driver/unbind
unused "the unbind"
sleep 0.5
echo "$name" > $driver/bind || die "the device cannot be bound again: someone has kept it"
soon pgmap -q get one /tmp/got
sleep 1
read_on /tmp/large
holds one /tmp/one
note "a reader went on when the device was back"

# An owner that is started while the device is away says so, and serves when it is back.
stop_owner
echo "$name" > $driver/unbind
pgmap serve $POOL > /tmp/owner.out 2> /tmp/owner.err && die "an owner serves a device that is away"
cat /tmp/owner.err
grep -q "$DEVICE" /tmp/owner.err || die "a device that is away is not named: $(tail -n 1 /tmp/owner.err)"
echo "$name" > $driver/bind
sleep 0.3
serve $POOL
holds one /tmp/one
stop_owner
OWNER=
