"""Policy: may this wait here at all? Pure; numbers arrive as values, refusals leave as values."""

from moulin.policy.admit import Admitted, Denied, admit

__all__ = ["Admitted", "Denied", "admit"]
