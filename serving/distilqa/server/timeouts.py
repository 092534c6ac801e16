"""How long a server waits for what, and how often it tells of itself."""

from __future__ import annotations

# How long a run that is under way may take to end, and a model that is being opened to open.
CLOSE_S = 5.0

# How long new calls are refused before connections are closed to them. gRPC's clients try again after 0.1 s at least.
REFUSE_S = 0.05

# How long the last replies may take to be sent, and, where there is time left, callers to take them.
SEND_S = 1.0
TAKE_S = 5.0

# How often the log tells how calls have ended.
TELL_S = 10.0

# How long a new connection may take until it can be used.
HANDSHAKE_S = 20

# After how long without a word a connection's other end is asked whether it is still there, and how long it may take
# to say so.
KEEPALIVE_S = 60
KEEPALIVE_ANSWER_S = 20

# How often a client may ask the same of us: once a second, give or take. Every ten seconds is usual.
LEAST_PING_S = 0.5

# How often a process says that it is alive, and after how many times of silence it is taken for dead; as it begins, and
# imports what it needs, it may be silent for longer.
ALIVE_S = 1.0
SILENCES = 10
FIRST_SILENCES = 60

# How long a process is waited for that takes the place of one that did not live long: at first, and at most. One that
# has lived for so long was none of these.
RESTART_S = 0.5
LONGEST_RESTART_S = 30.0
LONG_LIFE_S = 60.0
