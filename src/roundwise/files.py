"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from roundwise.errors import RoundwiseError


@contextlib.contextmanager
def replacing(path: Path, refusal: type[RoundwiseError], also: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """A file beside `path` that takes its place at the end, or is gone if anything stops the writing.

    Args:
        path: where to; an earlier file is replaced.
        refusal: what is raised where it cannot be written.
        also: exceptions of whoever writes that mean the same as an OSError.
    """
    if path.is_dir():
        raise refusal(f"cannot write '{path}': it is a folder; give the name of a file.")
    temporary = path.with_name(f".roundwise-{secrets.token_hex(8)}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers let nobody but the owner read
        temporary.replace(path)
    except FileNotFoundError as error:
        reason = f"there is no folder '{path.parent}'. Create it first."
        if path.parent.is_dir():
            reason = f"the folder '{path.parent}' takes no new files. Choose another."
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
