"""Flows as pairs of records, found by the place of either direction in the mapped table.

A record is half of a flow, and the other half stands anywhere. So a table is mapped as a whole
here, for as long as somebody has flows to tell of; `table.FlowTable` has the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.dataplane.flows.record import REQUEST, Records, take, where
from services.dataplane.flows.records import is_pair
from services.dataplane.flows.table import Places


def pairs_at(window: Records, places: Places) -> tuple[Records, Records, NDArray[np.bool_]]:
    """Requests and replies of the flows with a record at these places, one row for each, and
    whether it is a flow: both directions whole, and each other's.
    """
    there = take(window, np.minimum(places, len(window) - 1))
    is_request = there["key"]["direction"] == REQUEST
    others = np.minimum(there["other"], len(window) - 1).astype(np.intp)
    requests = take(window, np.where(is_request, places, others))
    replies = take(window, np.where(is_request, others, places))
    good = is_pair(requests, replies)
    good &= (requests["key"]["version"] | replies["key"]["version"]) & 1 == 0
    return requests, replies, good


def select(
    requests: Records, replies: Records, chosen: NDArray[np.bool_]
) -> tuple[Records, Records]:
    """Those of the pairs."""
    return where(requests, chosen), where(replies, chosen)
