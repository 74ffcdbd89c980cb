# The kill soak with its pool on a device. Not on DAX files: it takes long-term pins without leases.
place_up
export PGMAP_TEST_ON=${DEVICE:-$DIR/data} PGMAP_SOAK_SECONDS="$(soak_seconds)"
unset PGMAP_SOCKET
within 150 alone kill_soak:: --test-threads=2 --nocapture > /tmp/test.out 2>&1
code=$?
tail -n 40 /tmp/test.out
[ $code = 0 ] || die "kill_soak ended with $code: $(grep -m 2 -A 2 panicked /tmp/test.out)"
note "$(grep -m 1 '^kills' /tmp/test.out)"
