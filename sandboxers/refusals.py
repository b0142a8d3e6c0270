"""What was refused, for an operator whose engine keeps it to itself.

iSulad prints what a call was answered and goes on with a text of its own (iSulad contract, section 1.4).
"""

from __future__ import annotations

from common.errors import Code, status_of
from common.log import get_logger

log = get_logger()


def log_refusal(code: Code, text: str) -> None:
    """Write down an answer; that something is not there is no news to whoever asks whether it still is."""
    if code is not Code.NOT_FOUND:
        log.warning("call.refused", code=code.name, error=text)


def logged_status_of(error: BaseException) -> tuple[Code, str]:
    """Return what `status_of` returns, and write it down."""
    code, text = status_of(error)
    log_refusal(code, text)
    return code, text
