# One pool on a device that two guests have at once. The owner's guest puts and replaces files whose bytes are of one
# number each; the other guest reads it without the owner, and each file it reads must be of one number, whole.
ROLE=$(sed 's/.*pgmap.role=//; s/ .*//' /proc/cmdline)
[ "$ROLE" = reader ] && ROUND=next
place_up
tell() { echo "$*" > /dev/ttyS1; }

# content NUMBER: bytes that say which they are, of a length that follows from it.
content() { yes "the bytes of turn $1" | head -c $((300000 + $1 % 7 * 4099)); }

if [ "$ROLE" = owner ]; then
    serve $POOL
    number=0
    while :; do
        number=$((number + 1))
        content $number > /tmp/one
        must pgmap -q put /tmp/one changes --replace
        content $((number + 1000000)) > /tmp/one
        must pgmap -q put /tmp/one other --replace
        # Reports to the host that the pool is there, and that this goes on.
        tell "turn $number"
        [ $number -lt 100000 ] || break
    done
    exit 0
fi

last=
count=0
changes=0
while [ $count -lt 60 ]; do
    pgmap get changes --from "$DATA" > /tmp/got 2> /tmp/must.out || {
        code=$?
        # A file that is replaced all the time may change under each attempt.
        grep -q "changed again and again" /tmp/must.out || die "get --from ended with $code: $(tail -n 1 /tmp/must.out)"
        continue
    }
    number=$(head -n 1 /tmp/got | sed 's/.*turn //')
    content "$number" | cmp -s - /tmp/got || die "what was read of turn $number is no file that was put"
    [ "$number" = "$last" ] || changes=$((changes + 1))
    last=$number
    count=$((count + 1))
done
[ $changes -gt 2 ] || die "the other guest's files did not change while they were read"
pgmap ls --from "$DATA" | grep -q other || die "ls --from does not show what is there"
pgmap -q put /tmp/got mine > /tmp/must.out 2>&1 && die "a put went well without an owner"
note "read $count files of another guest's pool, $changes of them new"
exit 0
