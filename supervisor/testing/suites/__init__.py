"""The checks, one file for each category; importing this registers them all."""

from . import cleanup as cleanup
from . import limits as limits
from . import memory as memory
from . import scenarios as scenarios
from . import stress as stress
from . import ttl as ttl

CATEGORIES = ("limits", "ttl", "memory", "cleanup", "stress", "scenarios")
