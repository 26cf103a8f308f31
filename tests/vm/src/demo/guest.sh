# What `cargo demo` runs in its guest, with the arguments for `socktrail`: a web server and its clients over IPv4,
# over IPv6 and by name, and a UDP exchange, while socktrail runs. The documents go to standard output, everything else
# to standard error.

set -eu
exec 3>&1 >&2

# fail MESSAGE: prints socktrail's log and the message, and ends.
fail() {
    cat /tmp/socktrail.log
    echo "demo: $1"
    exit 1
}

# await WHAT COMMAND...: waits up to 30 seconds for the command to succeed.
await() {
    what=$1
    shift
    tries=300
    until "$@"; do
        kill -0 "$socktrail" || fail "socktrail ended too early"
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "timed out, waiting for $what"
        sleep 0.1
    done
}

echo "demo: nc waits for a datagram before socktrail starts"
echo pong | nc.openbsd -u -l 127.0.0.1 9001 &
until grep -qi "0100007F:$(printf %04X 9001)" /proc/net/udp; do sleep 0.1; done

socktrail "$@" >&3 2>/tmp/socktrail.log &
socktrail=$!
await "socktrail to be ready" grep -q ready /tmp/socktrail.log

echo "demo: curl, as the user \`user\`, over IPv4"
mkdir -p /srv/www
echo "Hello from the guest." >/srv/www/index.html
httpd -p 8080 -h /srv/www
su user -c "curl -sS http://127.0.0.1:8080/"

echo "demo: curl, as root, over IPv6"
curl -sS "http://[::1]:8080/"

echo "demo: curl, by name; dnsmasq answers for it"
dnsmasq --conf-file=/dev/null --user=root --pid-file --no-resolv --no-hosts --listen-address=127.0.0.1 \
    --bind-interfaces --host-record=www.example.test,127.0.0.2,::1
echo "nameserver 127.0.0.1" >/etc/resolv.conf
su user -c "curl -sS http://www.example.test:8080/"

echo "demo: nc, one UDP datagram each way"
echo pong | nc.openbsd -u -l 127.0.0.1 9000 &
await "the UDP server" grep -qi "0100007F:$(printf %04X 9000)" /proc/net/udp
echo ping | nc.openbsd -u -w 1 127.0.0.1 9000

echo "demo: nc, the same to the server that is older than socktrail"
echo ping | nc.openbsd -u -w 1 127.0.0.1 9001

echo "demo: stopping socktrail"
kill -INT "$socktrail" || fail "socktrail ended too early"
wait "$socktrail" || fail "socktrail ended with status $?"
cat /tmp/socktrail.log
