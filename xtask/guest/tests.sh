# pgmap's own process tests, their pools on the place: it is mounted where they put pools.
place_up
must mount --bind $DIR /dev/shm
IS_BOUND=yes
export TMPDIR=/dev/shm PGMAP_SOAK_SECONDS="$(soak_seconds)"
unset PGMAP_SOCKET
for test in alone/kill_soak embedded/on_device processes/owner_restart; do
    echo "--- $test"
    within 200 "${test%/*}" "${test#*/}::" --test-threads=2 > /tmp/test.out 2>&1
    code=$?
    tail -n 60 /tmp/test.out
    [ $code = 0 ] || die "$test ended with $code: $(grep -m 3 'panicked\|FAILED\|failed' /tmp/test.out)"
    grep '^skipped:' /tmp/test.out | while read -r line; do note "$line"; done
done
