"""Notes: what was assumed, ignored or replaced, with a code for programs and a sentence for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


class Note(str):
    """A sentence about a result, and which sentence it is.

    It is a string, so that it prints, joins and compares as its text. Programs decide by `code`, never by words.

    Attributes:
        code: what it says, as an identifier: `does_not_fit`, `fallback`, `synthetic_outliers`.
        where: the layer, file or key that it is about; empty when it is about the whole.
    """

    code: str
    where: str

    def __new__(cls, code: str, text: str, where: str = "") -> Note:
        note = super().__new__(cls, text)
        note.__dict__.update(code=code, where=where)
        return note

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a note cannot be changed: got {name} = {value!r}")

    def __reduce__(self) -> tuple[type[Note], tuple[str, str, str]]:
        return Note, (self.code, str(self), self.where)

    def __repr__(self) -> str:
        return f"Note({self.code!r}, {str(self)!r}{f', where={self.where!r}' if self.where else ''})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As JSON a list of code, text and where, so that a note that was kept on disk still has its code."""
        from pydantic_core import core_schema

        def read(value: Any) -> Note:
            return value if isinstance(value, Note) else Note(*value)

        fields = core_schema.list_schema(core_schema.str_schema(), min_length=3, max_length=3)
        return core_schema.no_info_plain_validator_function(
            read,
            json_schema_input_schema=fields,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda n: [n.code, str(n), n.where]),
        )


def code_of(note: str) -> str:
    """The code of a note; empty for a sentence that has none."""
    return note.code if isinstance(note, Note) else ""


def without(notes: Iterable[str], *codes: str) -> list[str]:
    """The notes that have none of these codes, in order."""
    return [note for note in notes if code_of(note) not in codes]


def pick(notes: Iterable[str], code: str) -> str | None:
    """The first note with this code; None without one."""
    return next((note for note in notes if code_of(note) == code), None)
