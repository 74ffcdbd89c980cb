# The demo on what the place is: its processes, its kills, its drain. On a file system, its transfers read from there.
place_up
case $PLACE in
devdax-* | cxl-*) on="--on $DEVICE" ;;
hugetlbfs) on="--on $DIR" ;;
*-dax) on="--on $DIR/data --scratch $DIR" ;;
*) on="--scratch $DIR" ;;
esac
# A second time: nothing is left of the first.
for seconds in 3 2; do must within 100 pgmap demo --seconds $seconds $on; done
grep -m 1 '^memory' /tmp/must.out > /tmp/seen
grep -m 1 '^dma' /tmp/must.out >> /tmp/seen
note "demo on $(tr -s ' \n' ' ' < /tmp/seen)"
rm -f /tmp/seen
