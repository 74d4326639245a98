"""`python -m tests.bpf.sequences`: campaign.py, by a name under which child processes find it."""

import sys

from tests.bpf.sequences.campaign import main

if __name__ == "__main__":
    sys.exit(main())
