"""hookbus: an event-bus runtime for PyTorch training.

Everything a user needs is here by name; what needs torch is loaded on first use.
"""

from __future__ import annotations

__version__ = "0.1.0"
