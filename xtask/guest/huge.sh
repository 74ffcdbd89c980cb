# A pool of the kernel's huge pages.
case $PLACE in
1G)
    # Kept when the kernel starts: hugepagesz=1G hugepages=2.
    pages=/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages
    [ "$(cat $pages 2>/dev/null)" = 2 ] || skip "the kernel keeps no 2 pages of 1 GiB"
    size=2G
    # Emulated, a page takes longer to clear than a client waits for its owner.
    populate=--populate
    ;;
*)
    echo 160 > /proc/sys/vm/nr_hugepages
    [ "$(cat /proc/sys/vm/nr_hugepages)" = 160 ] || skip "the kernel has no room for 160 huge pages"
    size=256M
    ;;
esac
bytes 5000000 /tmp/one
serve --huge "$PLACE" --size $size $populate
must pgmap -q put /tmp/one one
holds one /tmp/one
must pgmap -q rm one
must pgmap -q put /tmp/one one
holds one /tmp/one
stop_owner
if [ "$PLACE" = 1G ]; then
    # And in a file that outlives its owner.
    mkdir -p /mnt/huge
    must mount -t hugetlbfs -o pagesize=1G none /mnt/huge
    serve --on /mnt/huge --pool /tmp/pool --size 2G --populate
    must pgmap -q put /tmp/one one
    kill_owner
    serve --on /mnt/huge --pool /tmp/pool
    holds one /tmp/one
    stop_owner
    umount /mnt/huge
fi
OWNER=
echo 0 > /proc/sys/vm/nr_hugepages
