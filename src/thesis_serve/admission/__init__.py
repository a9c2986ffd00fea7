"""The sequencer in front of a service: a machine of events, asyncio, ASGI, a log.

from thesis_lib.sequencer import live

sequencer = live.LiveSequencer("bid-price", workers=4, slo_s=0.2)
app = live.SequencerMiddleware(app, live.AdmissionController(sequencer))
"""

from .asgi import SequencerMiddleware as SequencerMiddleware
from .controller import AdmissionController as AdmissionController
from .controller import Refused as Refused
from .estimator import OnlineEstimator as OnlineEstimator
from .log import DecisionLog as DecisionLog
from .log import replay as replay
from .log import what_if as what_if
from .machine import LiveSequencer as LiveSequencer
from .metrics import SequencerMetrics as SequencerMetrics
