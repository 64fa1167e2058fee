"""Write a file so that it appears complete or not at all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from roundwise.errors import RoundwiseError


@contextlib.contextmanager
def replacing(path: Path, refusal: type[RoundwiseError], also: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """Give a temporary file in the folder of `path`; rename it to `path` at the end, or delete it after an exception.

    Args:
        path: the file to write; an existing file is replaced.
        refusal: the class of the error that is raised if the file cannot be written.
        also: exceptions besides OSError that mean that the file cannot be written.
    """
    if path.is_dir():
        raise refusal(f"cannot write '{path}': it is a folder; give the name of a file.")
    temporary = path.with_name(f".roundwise-{secrets.token_hex(8)}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make the file readable for its owner only
        temporary.replace(path)
    except FileNotFoundError as error:
        reason = f"there is no folder '{path.parent}'. Create it first."
        if path.parent.is_dir():
            reason = f"no file can be created in the folder '{path.parent}'. Choose another folder."
        raise refusal(f"cannot write {path}: {reason}") from error
    except Exception as error:
        if not isinstance(error, (OSError, *also)):
            raise
        raise refusal(
            f"cannot write {path}: {error}. Check the folder's permissions and the space on its disk."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
