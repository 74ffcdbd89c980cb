# A pool's life: files put and compared, clients and owner killed, the pool opened again.
place_up

bytes 5000000 /tmp/one
bytes 3145728 /tmp/two
serve $POOL
must pgmap -q put /tmp/one one
must pgmap -q put /tmp/two two
holds one /tmp/one
must pgmap -q punch two 1048576 1048576
dd if=/dev/zero of=/tmp/two bs=1048576 seek=1 count=1 conv=notrunc 2>/dev/null
holds two /tmp/two
must pgmap -q truncate one 2000000
truncate -s 2000000 /tmp/one
holds one /tmp/one

# Clients that die in the middle of a put leave nothing.
bytes 67108864 /tmp/large
for count in 1 2 3; do
    pgmap -q put /tmp/large "large$count" &
    client=$!
    usleep "${count}00000"
    kill -9 $client 2>/dev/null
    wait $client 2>/dev/null
done
must pgmap ls
for count in 1 2 3; do
    if pgmap ls | grep -q "large$count"; then holds "large$count" /tmp/large; fi
done

# So does an owner that dies in the middle of one.
pgmap -q put /tmp/large last &
client=$!
sleep 0.2
kill_owner
wait $client 2>/dev/null
serve $POOL
holds one /tmp/one
holds two /tmp/two
if pgmap ls | grep -q last; then holds last /tmp/large; fi
must pgmap -q rm two
stop_owner
serve $POOL
holds one /tmp/one
pgmap ls | grep -q two && die "a file that was removed is back"
stop_owner
OWNER=
must pgmap check "$DATA" --data
