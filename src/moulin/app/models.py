"""The catalogue as the API and the control plane meet it: what there is, what is here, fetching.

Fetches run in threads of the control process and leave nothing half-made; a killed one is
continued by the next ask.
"""

import hmac
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.catalog.entries import CATALOGUE, find_model
from moulin.catalog.fit import memory_needed_bytes
from moulin.domain.control import FetchStatus, FetchWanted, ModelInfo, VariantInfo
from moulin.domain.errors import MoulinError, Refused, UnknownName
from moulin.domain.model import Model, Progress, SourcePreference, Variant
from moulin.domain.plan import StartStep
from moulin.domain.workload import EndpointSpec, TaskTemplate
from moulin.ports.launcher import ModelFacts
from moulin.sources.fetch import choose_source, fetch_variant, held_variants

FILE_PREFIX: Final = "file:"
ABSENT: Final = "absent"
FETCHING: Final = "fetching"
READY: Final = "ready"
FAILED: Final = "failed"
