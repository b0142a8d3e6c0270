"""How `_asyncio` shows a future."""


def _future_repr(future: object) -> str:
    return f"<{type(future).__name__} at {id(future):#x}>"
