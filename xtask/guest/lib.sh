# What scenarios share.

# die REASON: the scenario has failed.
die() {
    echo "failed: $*"
    echo "$*" | tr '\n' ' ' > /tmp/reason
    exit 1
}

# skip REASON: the scenario cannot run here.
skip() {
    echo "skipped: $*"
    echo "$*" | tr '\n' ' ' > /tmp/reason
    exit 77
}

# note TEXT: a line for the host.
note() { echo "note $*" > /dev/ttyS1; }

# must COMMAND...: runs it; its failure is the scenario's. The last line that it printed is the reason.
must() {
    echo "\$ $*"
    "$@" > /tmp/must.out 2>&1
    code=$?
    cat /tmp/must.out
    [ $code = 0 ] || die "$* ended with $code: $(tail -n 1 /tmp/must.out)"
}

# within SECONDS COMMAND...: COMMAND, killed after so long.
within() {
    seconds=$1
    shift
    timeout -s KILL "$seconds" "$@"
}

# serve OPTIONS...: starts an owner, returns when clients can attach. $OWNER is its process.
export PGMAP_SOCKET=/tmp/pgmap.sock
serve() {
    rm -f /tmp/owner.out
    echo "\$ pgmap serve $*"
    pgmap serve "$@" > /tmp/owner.out 2> /tmp/owner.err &
    OWNER=$!
    count=0
    while ! grep -q serving /tmp/owner.out 2>/dev/null; do
        kill -0 $OWNER 2>/dev/null || die "pgmap serve $*: $(tail -n 1 /tmp/owner.err)"
        count=$((count + 1))
        [ $count -lt 300 ] || die "pgmap serve $* did not begin to serve within 30 s"
        sleep 0.1
    done
    cat /tmp/owner.out
}

# stop_owner: ends the owner by SIGTERM, as an operator would.
stop_owner() {
    kill $OWNER
    wait $OWNER || die "the owner ended with $? after SIGTERM: $(tail -n 1 /tmp/owner.err)"
}

# kill_owner: ends it as a crash would.
kill_owner() {
    kill -9 $OWNER
    wait $OWNER 2>/dev/null
}

# by_error WHAT CODE: CODE is an error's exit code, and not success or a signal's.
by_error() {
    [ "$2" != 0 ] || die "$1 went well without the device"
    [ "$2" -lt 126 ] || die "$1 ended with $2: $(tail -n 1 /tmp/must.out)"
}

# read_slowly NAME: a reader $reader that holds pins of the pool's file NAME and is blocked: its pipe is full.
# read_on FILE: it goes on, and must read all that follows of FILE.
read_slowly() {
    [ -p /tmp/pipe ] || mkfifo /tmp/pipe
    pgmap -q get "$1" - > /tmp/pipe 2> /tmp/reader.err &
    reader=$!
    exec 8< /tmp/pipe
    head -c 65536 <&8 > /tmp/head
}
read_on() {
    cat /tmp/head - <&8 > /tmp/got
    exec 8<&-
    wait $reader || die "a reader was cut short: $(cat /tmp/reader.err)"
    cmp "$1" /tmp/got || die "a reader got other bytes than were put"
    rm -f /tmp/got
}

# unused WHAT: nobody has $DEVICE mapped or open soon after WHAT. Its node may be gone.
unused() {
    count=0
    while grep -qs "$DEVICE" /proc/[0-9]*/maps || ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q "$DEVICE"; do
        count=$((count + 1))
        [ $count -lt 100 ] || die "somebody has $DEVICE 10 s after $1: $(grep -ls "$DEVICE" /proc/[0-9]*/maps)"
        sleep 0.1
    done
}

# soon COMMAND...: COMMAND succeeds within 10 s.
soon() {
    count=0
    until "$@" > /tmp/must.out 2>&1; do
        count=$((count + 1))
        [ $count -lt 100 ] || die "$* does not go well within 10 s: $(tail -n 1 /tmp/must.out)"
        sleep 0.1
    done
}

# soak_seconds: how long a soak goes on.
soak_seconds() { sed -n 's/.*pgmap.soak=\([0-9]*\).*/\1/p' /proc/cmdline; }

# bytes SIZE FILE: a file of random bytes.
bytes() { head -c "$1" /dev/urandom > "$2"; }

# holds NAME FILE: the pool's file NAME has FILE's bytes.
holds() {
    must pgmap -q get "$1" /tmp/got
    cmp "$2" /tmp/got || die "$1 came back with other bytes than were put"
    rm -f /tmp/got
}
