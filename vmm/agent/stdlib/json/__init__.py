"""loads and dumps by the interpreter's C module, and raw_decode. Left out: hooks, indentation, files."""

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner
from json.decoder import JSONDecodeError

_WHITESPACE = " \t\n\r"
_CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class JSONDecoder:
    """Decodes the usual way."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = _CONSTANTS.__getitem__

    def __init__(self):
        self.memo = {}
        self._scan = make_scanner(self)

    def raw_decode(self, text, position=0):
        """Decode one document, and tell where it ends."""
        try:
            return self._scan(text, position)
        except StopIteration as stop:
            raise JSONDecodeError("Expecting value", text, stop.value) from None

    def decode(self, text):
        """Decode all of a text."""
        start = len(text) - len(text.lstrip(_WHITESPACE))
        document, end = self.raw_decode(text, start)
        if text[end:].strip(_WHITESPACE):
            raise JSONDecodeError("Extra data", text, end)
        return document


def loads(text):
    """Decode a text, or bytes in UTF-8."""
    if isinstance(text, str):
        if text.startswith("\ufeff"):
            raise JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
    else:
        text = bytes(text).decode(
            "utf-8-sig" if text.startswith(b"\xef\xbb\xbf") else "utf-8", "surrogatepass"
        )
    return _decoder.decode(text)


def dumps(document, *, ensure_ascii=True, separators=(", ", ": "), default=None, sort_keys=False):
    """Encode a document."""
    item, key = separators
    text = encode_basestring_ascii if ensure_ascii else encode_basestring
    if isinstance(document, str):
        return text(document)
    encode = make_encoder({}, default or _refuse, text, None, key, item, sort_keys, False, True)
    return "".join(encode(document, 0))


def _refuse(value):
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_decoder = JSONDecoder()
