# SPDX-License-Identifier: Apache-2.0
"""`sendense credentials`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import key_service_pb2 as pb
from sendense.credentials.v1.key_service_pb2_grpc import KeyServiceStub
from sendense_cli import words
from sendense_cli.exits import Exit
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, console, table
from sendense_common.errors import SendenseError, invalid
from sendense_common.private_file import create_private_file

app = typer.Typer(no_args_is_help=True, help="The keys that all passwords are under.")
key_app = typer.Typer(no_args_is_help=True, help="Keys that encrypt all passwords: list, rotate, drop.")
app.add_typer(key_app, name="key")

_LOOK_EVERY_S = 0.2
_LONGEST_S = 600.0


@app.command()
def backup(
    output: Annotated[Path, typer.Option(metavar="F", help="A new file.")],
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Write a copy of the passwords' database to a file, while it is in use. It is useless without the keys.

    `sendense-credentials restore` puts it back. Keep the key file, or the server of keys, apart from it.

    Example: sendense credentials backup --output /backup/credentials-monday.sqlite
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        data, done = b"", False
        async with session.credentials() as channel:
            async for piece in KeyServiceStub(channel).BackUpDatabase(pb.BackUpDatabaseRequest()):
                data += piece.data
                done = piece.done
            keys = await KeyServiceStub(channel).ListKeys(pb.ListKeysRequest())
        _write(output, data, complete=done)
        needed = [key.key_id for key in keys.keys if key.credential_count] or ["none yet"]
        session.answer(
            {"output": str(output), "size_bytes": len(data), "key_ids": needed},
            f"wrote {output}; to be of use it needs these keys: {', '.join(needed)}",
        )

    session.run(work())


@key_app.command("list")
def list_(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List the keys, their states, and how many passwords are under each.

    Example: sendense credentials key list
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.credentials() as channel:
            answer = await KeyServiceStub(channel).ListKeys(pb.ListKeysRequest())
        session.answer(answer, _keys(answer))
        if not as_json:
            for line in _remarks(answer):
                console.print(line, soft_wrap=True, highlight=False)

    session.run(work())


@key_app.command()
def rotate(
    wait: Annotated[bool, typer.Option(help="Wait until every password is under the new key.")] = True,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Make a new key, and bring every password under it while backups go on.

    It goes on in the service when this is interrupted, and at its next start when the service is. Where a
    rotation is not finished yet, that one is gone on with, and no further key is made.

    Example: sendense credentials key rotate
    """
    session = Session(state, as_json=as_json)

    async def work() -> Exit:
        async with session.credentials() as channel:
            stub = KeyServiceStub(channel)
            made = await stub.RotateKey(pb.RotateKeyRequest())
            if not as_json:
                _say_begun(made)
            found = await stub.ListKeys(pb.ListKeysRequest())
            deadline = time.monotonic() + _LONGEST_S
            while wait and _goes_on(found) and time.monotonic() < deadline:
                await asyncio.sleep(_LOOK_EVERY_S)
                found = await stub.ListKeys(pb.ListKeysRequest())
        session.answer(found, None)
        if not as_json:
            _say_end(found)
        for failure in (found.failure, found.rewrap_failure):
            if failure.message:
                raise SendenseError.from_failure(failure)
        return Exit.FAILED if found.unreadable_count else Exit.OK

    session.run(work())


@key_app.command()
def drop(
    key: Annotated[str, typer.Argument(metavar="KEY", help="ID of a retired key.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; backups made under this key are lost.")] = False,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Forget a retired key for good. What was backed up under it does not open any more.

    Example: sendense credentials key drop kek-1a2b3c4d --yes
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        if not yes:
            raise invalid(
                "--yes",
                f"backups of the database that were made under {key} will be of no use",
                remedy="Say --yes if that is meant.",
            )
        async with session.credentials() as channel:
            answer = await KeyServiceStub(channel).DropKey(pb.DropKeyRequest(key_id=key))
        session.answer(answer, f"dropped {key}; back up the key file anew, and remove older copies of it")

    session.run(work())


def _write(output: Path, data: bytes, *, complete: bool) -> None:
    if not complete:
        raise SendenseError(Reason.REASON_SERVICE_UNAVAILABLE, "the backup broke off", remedy="Try again.")
    try:
        made = create_private_file(output, data)
    except OSError as error:
        raise SendenseError(
            Reason.REASON_OUTPUT_UNWRITABLE, f"{output} cannot be written: {error.strerror}"
        ) from error
    if not made:
        raise SendenseError(
            Reason.REASON_OUTPUT_EXISTS, f"{output} exists already", remedy="Name another file, or remove it."
        )


def state_word(state: pb.KeyState.ValueType) -> str:
    """As "decrypt-only"."""
    word = pb.KeyState.Name(state).removeprefix("KEY_STATE_").lower().replace("_", "-")
    return "unknown" if word == "unspecified" else word


def _keys(answer: pb.ListKeysResponse) -> Table:
    rows = [
        [each.key_id, state_word(each.state), words.moment(each.create_time), str(each.credential_count)]
        for each in answer.keys
    ]
    return table(["KEY", "STATE", "MADE", "PASSWORDS"], rows, right=["PASSWORDS"])


def _remarks(answer: pb.ListKeysResponse) -> list[str]:
    lines = [f"{answer.provider}: {answer.place}"]
    if answer.HasField("token_end_time"):
        lines.append(f"its token ends at {words.moment(answer.token_end_time)}, and cannot be renewed")
    if answer.pending_count:
        lines.append(f"{_passwords(answer.pending_count)} still to be brought under the active key")
    if answer.unreadable_count:
        lines.append(
            f"[red]{_passwords(answer.unreadable_count)} under keys that are missing or do not fit[/red]: "
            "restore the key, or give them anew: "
            "`sendense vcenter password NAME --username USER --password-file FILE`; "
            "the service's log names them"
        )
    for failure in (answer.failure, answer.rewrap_failure):
        if failure.message and failure.message not in "\n".join(lines):
            lines.append(f"[red]{failure.message}[/red]. {failure.remedy}")
    return lines


def _say_begun(made: pb.RotateKeyResponse) -> None:
    if made.made_new_key:
        console.print(f"made {made.active_key_id}, which is active now", soft_wrap=True, highlight=False)
    else:
        console.print(
            f"going on with bringing passwords under {made.active_key_id}; no new key was made",
            soft_wrap=True,
            highlight=False,
        )


def _say_end(found: pb.ListKeysResponse) -> None:
    console.print(_keys(found), highlight=False)
    for line in _remarks(found):
        console.print(line, soft_wrap=True, highlight=False)
    if found.provider == "local":
        console.print(f"back up {found.place} now, apart from the database", soft_wrap=True, highlight=False)


def _goes_on(found: pb.ListKeysResponse) -> bool:
    return bool(found.pending_count) and not found.failure.message and not found.rewrap_failure.message


def _passwords(count: int) -> str:
    return "1 password is" if count == 1 else f"{count} passwords are"
