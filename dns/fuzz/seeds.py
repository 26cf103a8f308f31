"""Writes the recorded packets as seeds for the fuzzer: python3 seeds.py DIRECTORY."""

import pathlib
import sys

KINDS = {"800": 0, "86dd": 1}
here = pathlib.Path(__file__).parent
seeds, conversation = [], b""
for line in (here / "../tests/data/packets.txt").read_text().splitlines():
    if not line or line.startswith("#"):
        # The packets between two comments are one conversation.
        seeds, conversation = seeds + [conversation], b""
        continue
    ethertype, digits = line.split()
    packet = bytes.fromhex(digits)
    conversation += bytes([KINDS[ethertype]]) + len(packet).to_bytes(2, "big") + b"\0" + packet
target = pathlib.Path(sys.argv[1])
target.mkdir(parents=True, exist_ok=True)
for number, seed in enumerate(filter(None, seeds + [conversation])):
    (target / f"{number:02}").write_bytes(seed)
