"""Blocks of 4 KiB on a raw device, in order, each of one number.

stamps.py write DEVICE goes round it for ever and prints the number it has written; stamps.py check DEVICE prints the newest,
if every block holds what it must when that one was the last.
"""

import mmap
import os
import sys

command, path = sys.argv[1:]
device = os.open(path, os.O_RDWR | os.O_DIRECT)
blocks = os.lseek(device, 0, os.SEEK_END) // 4096
page = mmap.mmap(-1, 4096)
if command == "write":
    number = 0
    while True:
        page[:] = number.to_bytes(8, "little") * 512
        os.pwritev(device, [page], number % blocks * 4096)
        number += 1
        if number % 16 == 0:
            print(number - 1, flush=True)
else:
    found = []
    for block in range(blocks):
        os.preadv(device, [page], block * 4096)
        words = page[:]
        assert words == words[:8] * 512, f"block {block} is torn"
        found.append(int.from_bytes(words[:8], "little"))
    newest = max(found)
    for block, number in enumerate(found):
        expected = newest - (newest - block) % blocks if newest >= block else 0
        assert number == expected, f"block {block} has {number}, and not {expected}"
    print(newest)
