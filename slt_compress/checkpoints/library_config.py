"""What a library's model is built from: the one kind of mapping whose keys are not ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]
"""A configuration as transformers, timm or a reference net writes it, ready for JSON."""
