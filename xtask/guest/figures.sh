# Puts and gets on that device beside copies into the same memory. The machine is emulated: what is copied by other
# instructions than its rival says nothing, a ratio to the same copy a little.
place_up
export PGMAP_BENCH_ON=$DEVICE
unset PGMAP_SOCKET
within 280 pgmap-bench --rows "kinds of memory" --rounds 3 --cell-ms 10 > /tmp/bench.out 2>&1
code=$?
cat /tmp/bench.out
[ $code = 0 ] || die "pgmap-bench ended with $code: $(tail -n 1 /tmp/bench.out)"
grep "$DEVICE" /tmp/bench.out | while read -r line; do note "emulated: $line"; done
exit 0
