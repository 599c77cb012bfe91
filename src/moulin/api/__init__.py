"""The control API's edge: HTTP in, commands and reads out; nothing is decided here."""

from moulin.api.app import create_app
from moulin.api.server import ApiServer
from moulin.api.services import ApiServices, Evidence, LogReader, ModelShelf

__all__ = ["ApiServer", "ApiServices", "Evidence", "LogReader", "ModelShelf", "create_app"]
