"""`python -m driver.host.bound PARENT MODULE ARGUMENT…`: run a module as a program that dies with its parent."""

from __future__ import annotations

import runpy
import sys

from driver.host import kernel


def main() -> None:
    parent, module = int(sys.argv[1]), sys.argv[2]
    kernel.die_with_parent(parent)
    kernel.no_core_dump()
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
