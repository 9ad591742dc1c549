"""The command line: each verb parses, calls one library function, and prints.

What needs torch is imported inside the verb that uses it, so that the planning verbs answer at once.
"""

from . import deploying, measuring, networks, planning, reporting
from .base import cli, main

__all__ = ["cli", "deploying", "main", "measuring", "networks", "planning", "reporting"]
