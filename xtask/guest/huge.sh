# A pool of the kernel's huge pages.
echo 160 > /proc/sys/vm/nr_hugepages
[ "$(cat /proc/sys/vm/nr_hugepages)" = 160 ] || skip "the kernel has no room for 160 huge pages"
bytes 5000000 /tmp/one
serve --huge "$PLACE" --size 256M
must pgmap -q put /tmp/one one
holds one /tmp/one
must pgmap -q rm one
must pgmap -q put /tmp/one one
holds one /tmp/one
stop_owner
OWNER=
echo 0 > /proc/sys/vm/nr_hugepages
