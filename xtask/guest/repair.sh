# Memory that failed is written over, in a file and where no file is, and is used again.
place_up
bytes 300000 /tmp/one
serve $POOL
must pgmap -q put /tmp/one one
must pgmap -q poison one 8192
pgmap -q get one /tmp/got > /tmp/must.out 2>&1 && die "a page that failed was read"
must pgmap -q repair one 8192 --from /tmp/one
holds one /tmp/one
must pgmap -q poison one 0
must pgmap -q rm one
must pgmap -q repair
pgmap --json stat | grep -q '"poisoned_bytes": 0' || die "a page is still out of use after repair"
must pgmap -q put /tmp/one two
holds two /tmp/one
stop_owner
serve $POOL
holds two /tmp/one
stop_owner
OWNER=
