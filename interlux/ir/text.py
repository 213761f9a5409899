"""Text from model files, made fit to be shown. Imports nothing, so that the command starts fast."""


def escaped(text: str) -> str:
    """Text from a model file without control characters, which could rewrite a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
