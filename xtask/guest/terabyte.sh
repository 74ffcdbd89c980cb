# A pool on a device of 1 TiB, whose image takes no room on the host: made, opened again, and used at its far end.
place_up
bytes 5000000 /tmp/one
# up OPTIONS...: serves it, and notes how long that took.
up() {
    before=$(sed 's/ .*//' /proc/uptime)
    serve "$@"
    after=$(sed 's/ .*//' /proc/uptime)
    note "emulated: $(awk "BEGIN { print $after - $before }") s until a pool of 1 TiB is served, $what"
}
what="made"
up $POOL
must pgmap -q put /tmp/one one
must pgmap -q put /tmp/one two --folio 1G
stop_owner
what="opened again"
up $POOL
holds one /tmp/one
holds two /tmp/one
must pgmap stat
grep -i size /tmp/must.out
stop_owner
OWNER=
exit 0
