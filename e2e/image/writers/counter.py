"""Appends numbers, one a line, each in a file of its own turn and each made durable before the next: counter.py FILE...

With several files, number n goes to the first, then to the second and so on. Prints each number once all files have it.
"""

import os
import sys
import time

files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in sys.argv[1:]]
number = 0
while True:
    number += 1
    for file in files:
        os.write(file, b"%d\n" % number)
        os.fsync(file)
    print(number, flush=True)
    time.sleep(0.005)
