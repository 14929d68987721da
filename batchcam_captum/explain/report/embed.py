"""How values get into the page so that nothing in them can leave the place that they are put in."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

import numpy as np

#: What could end a ``<script>`` element or begin a comment in it; all else is ASCII as it comes from ``json.dumps``, which
#: escapes U+2028, surrogates and marks of direction, too.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def json_text(value: Any) -> str:
    """JSON for a ``<script type="application/json">``: ASCII without <, > and &."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def base64_text(array: np.ndarray[Any, Any]) -> str:
    """An array's bytes, little-endian, as base64."""
    return base64.b64encode(
        np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    ).decode("ascii")


def number(value: Any) -> float | None:
    """A float for JSON; None where it is not finite."""
    found = float(value)
    return found if math.isfinite(found) else None


def digest(text: str) -> str:
    """Of an inline script or style, as a Content-Security-Policy names it (CSP level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
