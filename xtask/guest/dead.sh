# Clients killed while a ring transfers into a device that cannot be punched: frames are free once
# the ring has ended, if the client promised that; else an operator says so.
place_up
bytes 2097152 /tmp/block
serve $POOL
pgmap --json stat > /tmp/stat.empty
free=$(sed -n 's/.*"free_bytes": *\([0-9]*\).*/\1/p' /tmp/stat.empty)

# die_reading ROLE: a client in that role is killed while it reads from an empty pipe.
die_reading() {
    must pgmap -q put /tmp/block block --folio 2M
    PGMAP_TEST_SOCKET=$PGMAP_SOCKET PGMAP_TEST_ROLE=$1 rings dead::child_entry --exact --nocapture > /tmp/child.out 2>&1 &
    child=$!
    count=0
    while ! grep -q '^reads' /tmp/child.out; do
        kill -0 $child 2>/dev/null || die "the client ended: $(tail -n 3 /tmp/child.out)"
        count=$((count + 1))
        [ $count -lt 200 ] || die "the client does not read within 20 s: $(tail -n 3 /tmp/child.out)"
        sleep 0.1
    done
    kill -9 $child
    wait $child 2>/dev/null
    must pgmap -q rm block
}

# is_free: whether all frames are free.
is_free() { pgmap --json stat | grep -q "\"free_bytes\": *$free,"; }

# is_free_after WHAT: all frames are free within seconds of WHAT.
is_free_after() {
    count=0
    until is_free; do
        count=$((count + 1))
        [ $count -lt 50 ] || die "frames are not free 5 s after the $1: $(pgmap --json stat | tr '\n' ' ')"
        sleep 0.1
    done
}

die_reading alone
is_free_after ring
pgmap --json quarantine ls | grep -q '"pid"' && die "a client is waited for whose ring has ended"

die_reading unpromised
sleep 1
is_free && die "frames are free although nobody knows what the ring does"
must pgmap quarantine ls
grep -q unknown /tmp/must.out || die "quarantine ls does not show the dead client"
kill_owner
serve $POOL
must pgmap quarantine ls
grep -q unknown /tmp/must.out || die "quarantine ls does not show the dead client after a restart"
must pgmap quarantine release --all
is_free_after release
must pgmap -q put /tmp/block block
holds block /tmp/block
stop_owner
OWNER=
