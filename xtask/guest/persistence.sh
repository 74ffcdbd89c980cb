# One boot of a guest that is killed at any moment. Files have numbers and bytes that follow from them; what was
# put and removed is reported to the host, which compares it with what the next boot has.
ROUND=$(sed 's/.*pgmap.round=//; s/ .*//' /proc/cmdline)

# content NUMBER: the bytes of that file.
content() { yes "the bytes of file $1" | head -c $((($1 * 7919 + 13) * 509 % 600000)); }

place_up
tell() { echo "$*" > /dev/ttyS1; }
tell opening
serve $POOL --durability power-failure
must pgmap --json ls
last=0
for number in $(sed -n 's/.*"name": "f\([0-9]*\)".*/\1/p' /tmp/must.out); do
    pgmap -q get "f$number" - | md5sum > /tmp/found || die "f$number cannot be read"
    content "$number" | md5sum | cmp -s - /tmp/found || die "f$number has other bytes than were put"
    tell "have $number"
    [ "$number" -gt $last ] && last=$number
done
tell ready
if [ "$ROUND" = last ]; then
    stop_owner
    OWNER=
    must pgmap check "$DATA" --data
    exit 0
fi

number=$last
while :; do
    number=$((number + 1))
    content $number > /tmp/one
    tell "putting $number"
    must pgmap -q put /tmp/one "f$number"
    tell "put $number"
    old=$((number - 5))
    [ $old -gt 0 ] || continue
    pgmap -q stat "f$old" > /dev/null 2>&1 || continue
    tell "removing $old"
    must pgmap -q rm "f$old"
    tell "removed $old"
done
