"""Objects of the API as they are in JSON."""

from typing import Any

ApiObject = dict[str, Any]
