# For `cargo vm run`, FORMAT replaced: a program whose calls on sockets socktrail writes in that form; see docs/events.md.
socktrail events --format FORMAT --duration 12s --where 'process.name == "python3"' & sleep 8
python3 -c '
import socket, os
tcp = socket.create_server(("127.0.0.1", 8080))
local = socket.socket(socket.AF_UNIX); local.bind("/tmp/foo"); local.listen(1)
for family, address in [(socket.AF_INET, ("127.0.0.1", 8080)), (socket.AF_INET6, ("::1", 53)), (socket.AF_UNIX, "/tmp/foo"), (socket.AF_UNIX, b"\0hidden")]:
    client = socket.socket(family, socket.SOCK_STREAM)
    try: client.connect(address)
    except OSError: pass
'
wait
