"""Writes seeds for the fuzzers: python3 seeds.py DIRECTORY makes DIRECTORY/{entries,proc,replay,sensors} from the files in
tests/data and from this machine's /proc."""

import pathlib
import struct
import sys
import zlib

# The tags of entries, as in src/source/recording/entries.rs. All others have JSON.
HEADER, EVENT, SAMPLE, LOST, UNTIL, END, PACKET, LOST_SINCE, PACKETS_MISSED = 1, 2, 4, 5, 6, 9, 11, 12, 14
FILES = ["stat", "status", "cmdline", "cgroup", "net/tcp", "net/tcp6", "net/udp", "net/udp6"]
PIECE = 4000
data = pathlib.Path(__file__).parent / "../tests/data"
recordings = sorted(data.glob("recordings/*.strec"))
target = pathlib.Path(sys.argv[1])


def write(kind, seeds):
    folder = target / kind
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"{number:03}").write_bytes(seed)


def plain(recording):
    """The blocks of a recording, uncompressed."""
    at = 8
    while at < len(recording):
        packed, _, _ = struct.unpack_from("<III", recording, at)
        at += 12
        yield zlib.decompress(recording[at : at + packed], -15)
        at += packed


def entries(block):
    at = 0
    while at < len(block):
        tag = block[at]
        if tag == SAMPLE:
            size = 1 + 22 + 2 + struct.unpack_from("<H", block, at + 23)[0]
        elif tag == PACKET:
            size = 1 + 18 + 2 + struct.unpack_from("<H", block, at + 19)[0]
        elif tag == LOST:
            size = 1 + 20
        elif tag == LOST_SINCE:
            size = 1 + 28
        elif tag == PACKETS_MISSED:
            size = 1 + 16
        elif tag == UNTIL:
            size = 1 + 8
        elif tag == END:
            size = 1
        else:
            size = 1 + 4 + struct.unpack_from("<I", block, at + 1)[0]
        yield tag, block[at : at + size]
        at += size


def pieces():
    """The entries after the head of a recording, some at a time. The fuzz target puts a head before them."""
    for path in recordings:
        piece = b""
        for block in plain(path.read_bytes()):
            for tag, entry in entries(block):
                if tag in (HEADER, EVENT):
                    continue
                if len(piece) + len(entry) > PIECE:
                    yield piece
                    piece = b""
                piece += entry
        yield piece


def processes():
    for folder in list(pathlib.Path("/proc").glob("[0-9]*"))[:20]:
        seed = b""
        for number, name in enumerate(FILES):
            try:
                content = (folder / name).read_bytes()[:3000]
            except OSError:
                continue
            seed += struct.pack("<BH", number, len(content)) + content
        yield seed


write("entries", pieces())
write("proc", processes())
write("replay", (path.read_bytes() for path in recordings))
row = b"\0tcp6 [2001:db8::1]:40000 [2001:db8::2]:443 www.example.org ESTABLISHED"
sensors = [data / "net-socket.yaml", *sorted(data.glob("bad-sensors/*.yaml"))]
write("sensors", (path.read_bytes() + row for path in sensors))
