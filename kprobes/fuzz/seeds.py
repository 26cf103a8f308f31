"""Writes seeds for the fuzzers: python3 seeds.py DIRECTORY makes DIRECTORY/format and DIRECTORY/rings."""

import pathlib
import struct
import sys

SAMPLE, LOST, DRAIN = 9, 2, 15
here = pathlib.Path(__file__).parent
target = pathlib.Path(sys.argv[1])


def write(kind, seeds):
    folder = target / kind
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"{number:02}").write_bytes(seed)


def formats():
    for path in sorted((here / "../src/formats").glob("*.txt")):
        for record in (0, 80, 600):
            yield struct.pack("<H", record) + bytes(record) + path.read_bytes()


def step(ring, kind, body):
    return bytes([ring << 4 | kind, len(body)]) + body


def sample(ring, time, raw):
    cpu = struct.pack("=II", 7, 0) if ring == 2 else b""
    return step(ring, SAMPLE, struct.pack("=IIQ", 21, 22, time) + cpu + struct.pack("=I", len(raw)) + raw)


def lost(ring, time):
    cpu = struct.pack("=II", 7, 0) if ring == 2 else b""
    return step(ring, LOST, struct.pack("=QQIIQ", 1, 3, 21, 22, time) + cpu)


def ring_inputs():
    for start in (0, 120, 127):
        steps = b"".join(sample(time % 3, time << 50, bytes([time] * 12)) + lost(time % 3, time << 50) for time in range(1, 20))
        yield struct.pack("<I", start) + steps + bytes([DRAIN, 9]) + steps


write("format", formats())
write("rings", ring_inputs())
