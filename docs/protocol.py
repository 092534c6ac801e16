"""Writes the protocol's reference from its definition: ``python docs/protocol.py > docs/protocol.md``.

The words are the definition's own comments.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

_PROTOS = Path(__file__).parent.parent / "protos"
_DEFINITION = "distilqa_protos/v1/question_answering.proto"

# What a comment belongs to, by the numbers of descriptor.proto: a file's messages and services, and their members.
_MESSAGE, _SERVICE, _MEMBER = 4, 6, 2

_HEAD = """# Protocol

Generated from `protos/{definition}` by `make protos`. The service is `{package}.{service}`, over gRPC.
"""


def main() -> None:
    file = _read()
    comments = {tuple(one.path): one.leading_comments for one in file.source_code_info.location}
    (service,) = file.service
    print(_HEAD.format(definition=_DEFINITION, package=file.package, service=service.name))
    print(_words(comments.get((12,), "")), end="\n\n")  # the file's own stands before its first statement, the syntax
    print("## Methods")
    for number, method in enumerate(service.method):
        asked, given = (
            f"{'stream of ' if streams else ''}{_link(kind, file)}"
            for kind, streams in (
                (method.input_type, method.client_streaming), (method.output_type, method.server_streaming)
            )
        )  # fmt: skip
        print(f"\n### {method.name}\n\n{asked} → {given}\n")
        print(_words(comments.get((_SERVICE, 0, _MEMBER, number), "")))
    print("\n## Messages")
    for number, message in enumerate(file.message_type):
        print(f"\n### {message.name}\n")
        if said := _words(comments.get((_MESSAGE, number), "")):
            print(said, end="\n\n")
        print("| field | type | |\n|---|---|---|")
        for row in _rows(
            message, [comments.get((_MESSAGE, number, _MEMBER, n), "") for n in range(len(message.field))], file
        ):
            print(row)


def _read() -> FileDescriptorProto:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "descriptors"
        options = [
            f"-I{_PROTOS}",
            f"-I{_PROTOS / 'third_party'}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--descriptor_set_out={path}",
            "--include_source_info",
        ]
        if protoc.main(["protoc", *options, _DEFINITION]):
            raise SystemExit("the definition cannot be compiled")
        (file,) = FileDescriptorSet.FromString(path.read_bytes()).file
    return file


def _rows(message: DescriptorProto, comments: Sequence[str], file: FileDescriptorProto) -> Iterator[str]:
    for field, comment in zip(message.field, comments, strict=True):
        said = _words(comment)
        if field.HasField("oneof_index") and not field.proto3_optional:
            said = f"One of `{message.oneof_decl[field.oneof_index].name}`. {said}".rstrip()
        yield f"| `{field.name}` | {_type(field, file)} | {said} |"


def _type(field: FieldDescriptorProto, file: FileDescriptorProto) -> str:
    kinds = FieldDescriptorProto.Type
    name = kinds.Name(field.type).removeprefix("TYPE_").lower()
    shown = _link(field.type_name, file) if name == "message" else name
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {shown}"
    return f"optional {shown}" if field.proto3_optional else shown


def _link(kind: str, file: FileDescriptorProto) -> str:
    name = kind.removeprefix(f".{file.package}.")
    return f"`{kind.lstrip('.')}`" if name == kind else f"[{name}](#{name.lower()})"


def _words(comment: str) -> str:
    return " ".join(comment.split())


if __name__ == "__main__":
    main()
