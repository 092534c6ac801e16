"""Version 1 of the native contract."""

from __future__ import annotations

from distilqa_protos.v1.question_answering_pb2 import DESCRIPTOR

# The service's name on the wire.
SERVICE: str = DESCRIPTOR.services_by_name["QuestionAnswering"].full_name
