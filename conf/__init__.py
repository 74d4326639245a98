"""Reading and checking configuration: a file is used as a whole or refused with all its faults.

    from conf import ConfigError, load_lb

    try:
        config = load_lb(paths.lb_config)
    except ConfigError as error:
        for problem in error.problems:  # str(problem): FILE:LINE: key: what is wrong, ...
            log.error(str(problem))

What depends on the machine (an interface not yet up, a name not yet resolved) is no matter of the
file and never checked here: a process waits for it.
"""

from conf.lb import LbConfig
from conf.loading import load_either, load_lb, load_node
from conf.log import Log
from conf.node import NodeConfig
from conf.paths import Paths
from conf.reload import taken
from conf.source import ConfigError, Problem, Source
from conf.table import Endpoint

__all__ = [
    "ConfigError",
    "Endpoint",
    "LbConfig",
    "Log",
    "NodeConfig",
    "Paths",
    "Problem",
    "Source",
    "load_either",
    "load_lb",
    "load_node",
    "taken",
]
