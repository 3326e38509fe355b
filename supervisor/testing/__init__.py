"""What this project tests itself with, for those who test handlers of their own. Needs the extra ``testing``.

From the ground up: a ``wire`` whose peer fails, a ``schedule`` that can be repeated, a ``model`` of who should be in,
and a random ``world`` and a Hypothesis ``machine`` that it judges; what is left behind (``memory``, ``leaks``,
``holders``); and ``suites`` of ``checks``, run by ``verify`` against any ``subject`` that one of the ``labs`` makes.
"""

from . import strategies as strategies
from .leaks import Baseline as Baseline
from .leaks import Evidence as Evidence
from .leaks import LeakTracker as LeakTracker
from .leaks import garbage as garbage
from .machine import SupervisorMachine as SupervisorMachine
from .memory import Growth as Growth
from .memory import MemoryProfiler as MemoryProfiler
from .memory import Sample as Sample
from .verify import Outcome as Outcome
from .verify import Report as Report
from .verify import Row as Row
from .verify import verify as verify
from .wire import Fault as Fault
from .wire import FaultWire as FaultWire
from .wire import Mishap as Mishap
from .wire import Peer as Peer
