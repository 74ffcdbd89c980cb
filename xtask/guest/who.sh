# Who holds a device, without any pool: a process that maps it and has a buffer registered with a ring.
place_up
name=${DEVICE#/dev/}
align=$(cat "/sys/bus/dax/devices/$name/align")
must pgmap list --devices
grep "$name" /tmp/must.out | grep -q device_dax || die "list --devices does not show $name"
must pgmap --json who "$DEVICE"
grep -q '"pid"' /tmp/must.out && die "somebody uses $DEVICE before anybody does"

mkfifo /tmp/holder.in
kernel_dax hold "$DEVICE" "$align" < /tmp/holder.in > /tmp/holder.out &
holder=$!
exec 7> /tmp/holder.in
count=0
while ! grep -q holding /tmp/holder.out; do
    count=$((count + 1))
    [ $count -lt 100 ] || die "the holder does not hold within 10 s"
    sleep 0.1
done
must pgmap who "$DEVICE"
for use in open mapped; do
    grep "$holder" /tmp/must.out | grep -q "$use" || die "who does not say that $holder has it $use"
done
grep -q 'holding: succeeds' /tmp/holder.out || die "a long-term pin was refused: $(cat /tmp/holder.out)"
grep "$holder" /tmp/must.out | grep -q "ring-buffers *$align" || die "who does not show the ring's buffer"
must pgmap --json list --devices
grep -q "\"pid\": $holder" /tmp/must.out || die "list --devices does not name the holder"
# Without privileges, the answer says that it is incomplete.
su -s /bin/sh nobody -c "pgmap who $DEVICE" > /tmp/must.out 2>&1
cat /tmp/must.out
grep "not read" /tmp/must.out | grep -q "kernel_dax (pid $holder)" || die "what may not be read is not named"
exec 7>&-
wait $holder
must pgmap --json who "$DEVICE"
grep -q '"pid"' /tmp/must.out && die "somebody uses $DEVICE after everybody left"
rm -f /tmp/holder.in
exit 0
