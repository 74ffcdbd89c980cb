# The demo on what the place is: its processes, its kills, its drain. On a file system, its transfers read from there.
place_up
case $PLACE in
devdax-* | cxl-*) on="--on $DEVICE" ;;
hugetlbfs) on="--on $DIR" ;;
*-dax) on="--on $DIR/data --scratch $DIR" ;;
*) on="--scratch $DIR" ;;
esac
must within 100 pgmap demo --seconds 3 $on
grep -m 1 '^memory' /tmp/must.out > /tmp/seen
grep -m 1 '^dma' /tmp/must.out >> /tmp/seen
note "demo on $(tr -s ' \n' ' ' < /tmp/seen)"
rm -f /tmp/seen
case $PLACE in
devdax-* | cxl-*) pgmap check "$DEVICE" > /tmp/must.out 2>&1 && die "the demo left a pool on $DEVICE" ;;
*-dax) [ -e $DIR/data ] && die "the demo left its file" ;;
esac
exit 0
