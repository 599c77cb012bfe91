"""The parameters that several routes share, with their bounds."""

from typing import Annotated, Final

from fastapi import Path, Query

from moulin.api.bounds import NAME

ID: Final = r"^[a-z]{2,8}_[0-9A-Z]{26}$"
_NAME: Final = f"^{NAME}$"

ProjectPath = Annotated[str, Path(pattern=_NAME, description="A project's name.")]
WorkloadPath = Annotated[str, Path(pattern=ID, description="A workload's id.")]
LeasePath = Annotated[str, Path(pattern=ID, description="A lease's id.")]
KeyPath = Annotated[str, Path(pattern=ID, description="A key's id.")]
ReceiptPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
ModelPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,199}$")]
ProjectQuery = Annotated[
    str, Query(pattern=f"^(?:{NAME})?$", description="Only this project; empty: all yours.")
]
WorkloadQuery = Annotated[str, Query(pattern=r"^(?:[a-z]{2,8}_[0-9A-Z]{26})?$")]
CursorQuery = Annotated[
    str,
    Query(pattern=r"^[A-Za-z0-9._-]{0,200}$", description="`next` of the page before this one."),
]
LimitQuery = Annotated[int, Query(ge=1, le=1000)]
SequenceQuery = Annotated[int, Query(ge=0, le=2**62)]
