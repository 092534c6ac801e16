from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AnswerRequest(_message.Message):
    __slots__ = ("model", "version", "question", "passages", "top_k", "max_answer_tokens", "doc_stride", "allow_no_answer", "align_to_words")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DOC_STRIDE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NO_ANSWER_FIELD_NUMBER: _ClassVar[int]
    ALIGN_TO_WORDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    question: str
    passages: _containers.RepeatedCompositeFieldContainer[Passage]
    top_k: int
    max_answer_tokens: int
    doc_stride: int
    allow_no_answer: bool
    align_to_words: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., question: _Optional[str] = ..., passages: _Optional[_Iterable[_Union[Passage, _Mapping]]] = ..., top_k: _Optional[int] = ..., max_answer_tokens: _Optional[int] = ..., doc_stride: _Optional[int] = ..., allow_no_answer: bool = ..., align_to_words: bool = ...) -> None: ...

class Passage(_message.Message):
    __slots__ = ("text", "id")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    text: str
    id: str
    def __init__(self, text: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class AnswerResponse(_message.Message):
    __slots__ = ("answers", "model", "version", "variant", "timings", "blank_passages")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    BLANK_PASSAGES_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    model: str
    version: str
    variant: str
    timings: Timings
    blank_passages: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., variant: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., blank_passages: _Optional[_Iterable[int]] = ...) -> None: ...

class AnswerStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: AnswerRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[AnswerRequest, _Mapping]] = ...) -> None: ...

class AnswerStreamResponse(_message.Message):
    __slots__ = ("id", "response", "status")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: AnswerResponse
    status: _status_pb2.Status
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[AnswerResponse, _Mapping]] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("text", "score", "passage", "passage_id", "start", "end", "start_byte", "end_byte", "no_answer")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    START_BYTE_FIELD_NUMBER: _ClassVar[int]
    END_BYTE_FIELD_NUMBER: _ClassVar[int]
    NO_ANSWER_FIELD_NUMBER: _ClassVar[int]
    text: str
    score: float
    passage: int
    passage_id: str
    start: int
    end: int
    start_byte: int
    end_byte: int
    no_answer: bool
    def __init__(self, text: _Optional[str] = ..., score: _Optional[float] = ..., passage: _Optional[int] = ..., passage_id: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., start_byte: _Optional[int] = ..., end_byte: _Optional[int] = ..., no_answer: bool = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("tokenize_seconds", "queue_seconds", "inference_seconds", "decode_seconds", "windows", "run_windows")
    TOKENIZE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    RUN_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    tokenize_seconds: float
    queue_seconds: float
    inference_seconds: float
    decode_seconds: float
    windows: int
    run_windows: int
    def __init__(self, tokenize_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., inference_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., windows: _Optional[int] = ..., run_windows: _Optional[int] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "version", "variant", "checkpoint", "revision", "architecture", "parameters", "limits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    variant: str
    checkpoint: str
    revision: str
    architecture: str
    parameters: int
    limits: Limits
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., variant: _Optional[str] = ..., checkpoint: _Optional[str] = ..., revision: _Optional[str] = ..., architecture: _Optional[str] = ..., parameters: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("question_tokens", "window_tokens", "windows", "passages", "top_k", "request_bytes", "question_characters", "passage_id_characters", "response_bytes", "stream_requests", "stream_id_characters")
    QUESTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUESTION_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_ID_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    question_tokens: int
    window_tokens: int
    windows: int
    passages: int
    top_k: int
    request_bytes: int
    question_characters: int
    passage_id_characters: int
    response_bytes: int
    stream_requests: int
    stream_id_characters: int
    def __init__(self, question_tokens: _Optional[int] = ..., window_tokens: _Optional[int] = ..., windows: _Optional[int] = ..., passages: _Optional[int] = ..., top_k: _Optional[int] = ..., request_bytes: _Optional[int] = ..., question_characters: _Optional[int] = ..., passage_id_characters: _Optional[int] = ..., response_bytes: _Optional[int] = ..., stream_requests: _Optional[int] = ..., stream_id_characters: _Optional[int] = ...) -> None: ...
