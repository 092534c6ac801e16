"""How long a server waits for what, and how often it tells of itself."""

from __future__ import annotations

# How long a run that is under way may take to end, and a model that is being opened to open.
CLOSE_S = 5.0

# How long the last replies may take to be sent.
SEND_S = 1.0

# How often the log tells how calls have ended.
TELL_S = 10.0
