"""Tracebacks as text, without the lines of sources that a guest does not have."""


def extract_stack(frame=None, limit=None):
    """Nobody asks where a task was made."""
    return []


def format_exception(error):
    """Return an exception and where it was raised."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}\n')
        trace = trace.tb_next
    return [*lines, f"{type(error).__name__}: {error}\n"]
