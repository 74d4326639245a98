"""The lab: LBs, nodes, a client and a router as network namespaces on one machine.

`plan` names everything, `network` builds it, `files` configures it, `lab` runs it; `echo` and
`forwarder` are programs of their own. The services know nothing of it: they are started by the
shipped supervisor files and read ordinary configuration files.
"""

from e2e.lab.lab import SUPERVISORD, Lab, down, exclusive
from e2e.lab.network import ExtraFileError, LabError
from e2e.lab.plan import Plan

__all__ = ["SUPERVISORD", "ExtraFileError", "Lab", "LabError", "Plan", "down", "exclusive"]
