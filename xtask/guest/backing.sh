# A device as a further backing of a pool in memory: added, filled, its owner killed, unplugged under readers and bound
# again, taken out. What lies elsewhere is served all the time.
place_up
POOL="--pool /tmp/pool --size 64M --room 8G"
bytes 5000000 /tmp/one
bytes 33554432 /tmp/large
name=${DEVICE#/dev/}
driver=/sys/bus/dax/drivers/device_dax
serve $POOL
must pgmap backing add "$DEVICE" --name far
must pgmap -q put /tmp/one one --only far
must pgmap -q put /tmp/large large --only far
must pgmap -q put /tmp/one near --only data
kill_owner
serve $POOL
must pgmap backing ls
holds one /tmp/one
holds large /tmp/large

# Taken away while it is read: the reader gets an error, and other readers are not affected.
read_slowly large
echo "$name" > $driver/unbind || die "unbind was refused"
holds near /tmp/one
soon sh -c "pgmap backing ls | grep -q 'went away'"
within 20 pgmap -q get one /tmp/got > /tmp/must.out 2>&1
by_error "get" $?
grep -q '"far"' /tmp/must.out || die "the error does not name the backing: $(tail -n 1 /tmp/must.out)"
within 20 pgmap -q put /tmp/one two --only far > /tmp/must.out 2>&1
by_error "put" $?
unused "the unbind"
cat <&8 > /dev/null
exec 8<&-
wait $reader
by_error "a get that was under way" $?
kill -0 $OWNER 2>/dev/null || die "the owner is gone: $(tail -n 1 /tmp/owner.err)"
echo "$name" > $driver/bind || die "the device cannot be bound again: someone has kept it"
soon pgmap -q get one /tmp/got
holds one /tmp/one
holds large /tmp/large
note "the owner took $name back"

# Taken away while a reader waits: it goes on where it was. Everybody must have given the device up before it is bound
# again: Linux 6.12 corrupts a list of its own when a descriptor is held over that.
read_slowly large
echo "$name" > $driver/unbind
unused "the unbind"
sleep 0.5
echo "$name" > $driver/bind || die "the device cannot be bound again: someone has kept it"
sleep 1
soon pgmap -q get one /tmp/got
read_on /tmp/large

# Drained: its holders are named and waited for, the rest is served, and nobody uses the device any more
# when daxctl removes it. It is in use again when it is back.
read_slowly large
within 20 pgmap drain far --deadline 500ms > /tmp/must.out 2>&1
code=$?
[ $code = 124 ] || die "a drain under a reader ended with $code: $(tail -n 1 /tmp/must.out)"
grep -q "(pid $reader)" /tmp/must.out || die "the drain does not name $reader: $(tail -n 1 /tmp/must.out)"
holds one /tmp/one
(sleep 1; cat <&8 > /dev/null) &
exec 8<&-
must within 60 pgmap drain far --deadline 30s
wait $reader || die "a reader was cut short by a drain: $(cat /tmp/reader.err)"
holds near /tmp/one
unused "the drain"
sleep 1
[ "$(pgmap --json backing ls | grep -c 'it was drained')" = 1 ] || die "what was drained was used again while it was there"
must daxctl disable-device "$name"
must daxctl enable-device "$name"
soon pgmap -q get one /tmp/got
holds one /tmp/one
holds large /tmp/large
note "$name was drained, removed by daxctl and used again"
# A part of it is taken out of use, and put into use again.
must pgmap drain far:2G.. --deadline 30s
pgmap backing ls | grep -q 'are drained' || die "a part that was drained is not listed"
holds one /tmp/one
must pgmap -q put /tmp/one two --only far
must pgmap -q rm two
must pgmap drain far --undo

# Taken out, while a client that has it mapped lives on.
must pgmap -q put /tmp/large stays --only data
read_slowly stays
must pgmap -q rm one large
must pgmap backing rm far --deadline 5000
unused "it was taken out"
must daxctl disable-device "$name"
must daxctl enable-device "$name"
sleep 0.3
read_on /tmp/large
must pgmap backing add "$DEVICE" --name far
must pgmap -q put /tmp/one one --only far
holds one /tmp/one
must pgmap -q rm one
must pgmap backing rm far
dmesg | grep -E 'Oops|BUG:|general protection' && die "the kernel found a bug"
stop_owner
OWNER=
exit 0
