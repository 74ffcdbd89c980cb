# A pool is drained, its device is taken away with daxctl, and comes back: nobody uses
# it any more when it is removed.
place_up
bytes 5000000 /tmp/one
bytes 33554432 /tmp/large
name=${DEVICE#/dev/}
serve $POOL
must pgmap -q put /tmp/one one
must pgmap -q put /tmp/large large

# A reader that holds pins and is blocked: its pipe is full.
mkfifo /tmp/pipe 2>/dev/null
pgmap -q get large - > /tmp/pipe 2> /tmp/reader.err &
reader=$!
exec 8< /tmp/pipe
head -c 65536 <&8 > /dev/null

within 20 pgmap drain --deadline 500ms > /tmp/must.out 2>&1
code=$?
cat /tmp/must.out
[ $code = 124 ] || die "a drain under a reader ended with $code: $(tail -n 1 /tmp/must.out)"
grep -q "(pid $reader)" /tmp/must.out || die "the drain does not name the reader $reader: $(tail -n 1 /tmp/must.out)"
holds one /tmp/one

# The reader goes on while the next drain waits.

(sleep 1; cat <&8 > /dev/null) &
exec 8<&-
must within 60 pgmap drain --deadline 30s
wait $OWNER
code=$?
[ $code = 0 ] || die "the owner ended with $code after the drain: $(tail -n 1 /tmp/owner.err)"
wait $reader || die "the reader was cut short: $(cat /tmp/reader.err)"
count=0
while pgmap --json who "$DEVICE" | grep -q '"pid"'; do
    count=$((count + 1))
    [ $count -lt 20 ] || die "somebody uses $DEVICE 2 s after the drain: $(pgmap who "$DEVICE")"
    sleep 0.1
done

must daxctl disable-device "$name"
[ -e "/sys/bus/dax/drivers/device_dax/$name" ] && die "$name is still bound"
note "daxctl disabled $name after a drain"
must daxctl enable-device "$name"
sleep 0.3
serve $POOL
holds one /tmp/one
holds large /tmp/large
stop_owner
OWNER=
