"""What clients and the server must agree on, beside the messages."""

from __future__ import annotations

import re

# Metadata of a call and of its end: an id that the caller may give it, who calls ("Bearer TOKEN", RFC 6750), and when
# to try again.
REQUEST_ID = "x-request-id"
REQUEST_ID_FORM = re.compile("[!-~]{1,128}")
AUTHORIZATION = "authorization"
RETRY_AFTER_MS = "grpc-retry-pushback-ms"

# gRPC refuses calls whose headers are longer than 8 to 16 KiB.
LONGEST_TOKEN = 4096
