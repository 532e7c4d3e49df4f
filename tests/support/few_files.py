"""The gateway's command, with few file descriptors to be had: as many as the variable `MOST_FILES` says, and fewer at
first where `FEWER_FILES` says so.

Run as `python -m tests.support.few_files serve ...`.
"""

from __future__ import annotations

import os
import resource
import sys

from proxy.__main__ import main

if __name__ == "__main__":
    most = int(os.environ["MOST_FILES"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(os.environ.get("FEWER_FILES", most)), most))
    sys.exit(main(sys.argv[1:]))
