"""Texts: numpy arrays of Python's str, always concrete; and the counts of n-grams, of texts or integers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ....ir.errors import InvalidModelError, UnsupportedError
from .registry import Value, concrete, is_static, library, primitive


def texts_of(items: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """An array of texts of the given shape."""
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


def _texts(x: Value) -> np.ndarray:
    array = concrete(x, "a tensor of texts")
    return array if array.dtype == object else array.astype(str).astype(object)


@primitive
def StringConcat(x: Value, y: Value) -> Value:
    pairs = np.broadcast(_texts(x), _texts(y))
    return texts_of([a + b for a, b in pairs], pairs.shape)


@primitive
def StringSplit(x: Value, *, delimiter: str = "", maxsplit: int | None = None) -> Any:
    """An empty text has no parts; as onnxruntime has it, also where a delimiter is given."""
    limit = -1 if maxsplit is None else maxsplit
    x = _texts(x)

    def split(text: str) -> list[str]:
        if not delimiter:
            return text.strip().split(None, limit)
        return text.split(delimiter, limit) if text else []

    parts = [split(text) for text in x.reshape(-1)]
    width = max(map(len, parts), default=0)
    padded = [part for row in parts for part in row + [""] * (width - len(row))]
    return texts_of(padded, (*x.shape, width)), np.array([len(row) for row in parts], np.int64).reshape(x.shape)


# --- normalisation


def _upper(letter: str) -> str:
    """One letter's upper case if that is one letter; in place of two, its title case (ᾳ to ᾼ) if it has one."""
    upper = letter.upper()
    upper = upper if len(upper) == 1 else letter.title()
    return upper if len(upper) == 1 else letter


def _lower(letter: str) -> str:
    return "i" if letter == "İ" else letter.lower()  # the only letter whose lower case Python writes with two


def _cased(change: Callable[[str], str], locale: str) -> Callable[[str], str]:
    """How a locale changes the case of a text, letter by letter as C's towupper and towlower.

    Raises UnsupportedError for locales with rules of their own (Turkish, Azeri, Lithuanian).
    """
    language = re.split(r"[_.@-]", locale.lower())[0]
    if language in ("tr", "az", "lt"):
        raise UnsupportedError(f"StringNormalizer with the locale {locale!r}, whose upper and lower case are its own")
    if locale in ("C", "POSIX"):
        return lambda text: "".join(change(c) if c.isascii() else c for c in text)
    return lambda text: "".join(map(change, text))


@primitive
def StringNormalizer(
    x: Value,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "en_US",
    stopwords: Sequence[str] | None = None,
) -> Value:
    x = _texts(x)
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise InvalidModelError(f"StringNormalizer takes [C] or [1, C], not {list(x.shape)}")
    changes: dict[str, Callable[[str], str]] = {
        "UPPER": _cased(_upper, locale),
        "LOWER": _cased(_lower, locale),
        "NONE": lambda text: text,
    }
    if case_change_action not in changes:
        raise InvalidModelError(f"case_change_action {case_change_action!r} is not LOWER, UPPER or NONE")
    compared = changes["NONE" if is_case_sensitive else "LOWER"]
    dropped = {compared(word) for word in stopwords or ()}
    kept = [changes[case_change_action](text) for text in x.reshape(-1) if compared(text) not in dropped]
    kept = kept or [""]
    return texts_of(kept, (len(kept),) if x.ndim == 1 else (1, len(kept)))


# --- regular expressions

_WORD = "0-9A-Za-z_"
_PERL = {"d": "0-9", "s": r"\t\n\f\r ", "w": _WORD}
_NAMED = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": _WORD,
    "xdigit": "0-9A-Fa-f",
}
_SIMPLE = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_CODE = re.compile(r"x\{([0-9A-Fa-f]{1,6})\}|x([0-9A-Fa-f]{2})|(0[0-7]{0,2}|[1-7][0-7]{1,2})")
_REPEAT = re.compile(r"\{\d+(,\d*)?\}")
_GROUP = re.compile(r"\(\?(?:P?<(?P<name>\w+)>|(?P<on>[is]*)(?:-(?P<off>[is]+))?(?P<end>[:)]))")
_LARGEST_REPEAT = 1000


class _Translator:
    """Turns a pattern in the syntax of RE2 into one of Python that matches the same texts as a whole.

    Raises UnsupportedError for what Python has no equal of, or RE2 does not know.
    """

    def __init__(self, pattern: str):
        self._pattern = pattern
        self._at = 0
        self.folds = False  # whether upper and lower case are the same somewhere

    def result(self) -> str:
        parts = []
        after_repeat = True  # what cannot be repeated came before
        while self._at < len(self._pattern):
            rest = self._pattern[self._at :]
            letter = rest[0]
            repeat = _REPEAT.match(rest)
            if repeat or letter in "*+?":
                if after_repeat:
                    raise self._refused("a repetition of nothing or of a repetition")
                parts.append(self._repeat(repeat))
                after_repeat = True
                continue
            after_repeat = False
            if letter == "[":
                parts.append(self._set())
            elif letter == "\\":
                parts.append(self._escape())
            elif letter == "(":
                parts.append(self._group())
                after_repeat = True
            else:
                self._at += 1
                # RE2's $ is the end of the text, Python's also stands before a last newline
                parts.append(r"\Z" if letter == "$" else letter if letter in ".^|)" else re.escape(letter))
                after_repeat = letter in "|"
        return "".join(parts)

    def _refused(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"RegexFullMatch: {what} at {self._at} of the pattern {self._pattern!r}")

    def _repeat(self, counted: re.Match[str] | None) -> str:
        text = counted.group() if counted else self._pattern[self._at]
        if counted and max(int(n) for n in re.findall(r"\d+", text)) > _LARGEST_REPEAT:
            raise self._refused(f"more than {_LARGEST_REPEAT} repetitions")
        self._at += len(text)
        if self._pattern[self._at : self._at + 1] == "?":  # as few as possible: the same whole texts
            self._at += 1
        return text

    def _group(self) -> str:
        if not self._pattern.startswith("(?", self._at):
            self._at += 1
            return "(?:"
        found = _GROUP.match(self._pattern, self._at)
        if found is None:
            raise self._refused("a group of this kind")
        start, self._at = self._at, found.end()
        if found["name"]:
            return "(?:"
        on, off = found["on"], found["off"] or ""
        self.folds = self.folds or "i" in on
        if found["end"] == ")":
            if start or off:
                raise self._refused("flags that are not at the start")
            return f"(?{on})" if on else ""
        return f"(?{on}{'-' + off if off else ''}:"

    def _code(self) -> str | None:
        """A letter by its number, or one that is written with a letter; None if there is neither."""
        found = _CODE.match(self._pattern, self._at)
        if found:
            number = int(found[3], 8) if found[3] else int(found[1] or found[2], 16)
            if number > 0x10FFFF:
                raise self._refused("no letter has the number")
            self._at = found.end()
            return chr(number)
        letter = self._pattern[self._at : self._at + 1]
        if letter in _SIMPLE or (letter and letter.isascii() and not letter.isalnum()):
            self._at += 1
            return _SIMPLE.get(letter, letter)
        return None

    def _escape(self) -> str:
        self._at += 1
        letter = self._pattern[self._at : self._at + 1]
        if letter == "Q":
            end = self._pattern.find(r"\E", self._at)
            text = self._pattern[self._at + 1 : end if end >= 0 else None]
            self._at = end + 2 if end >= 0 else len(self._pattern)
            return "(?:" + "".join(map(re.escape, text)) + ")" if len(text) != 1 else re.escape(text)
        code = self._code()
        if code is not None:
            return re.escape(code)
        self._at += 1
        if letter.lower() in _PERL:
            return f"[{'^' if letter.isupper() else ''}{_PERL[letter.lower()]}]"
        before, after = f"(?<![{_WORD}])", f"(?![{_WORD}])"
        inside_before, inside_after = f"(?<=[{_WORD}])", f"(?=[{_WORD}])"
        special = {
            "A": r"\A",
            "z": r"\Z",
            "b": f"(?-i:{before}{inside_after}|{inside_before}{after})",
            "B": f"(?-i:{before}{after}|{inside_before}{inside_after})",
        }
        if letter not in special:
            self._at -= 2
            raise self._refused(f"the escape \\{letter}")
        return special[letter]

    def _set(self) -> str:
        self._at += 1
        text = self._pattern
        parts = ["["]
        if text.startswith("^", self._at):
            self._at += 1
            parts.append("^")
        first = True
        while first or not text.startswith("]", self._at):
            if self._at >= len(text):
                raise self._refused("a set of letters without end")
            parts.append(self._item())
            first = False
        self._at += 1
        return "".join(parts) + "]"

    def _item(self) -> str:
        text = self._pattern
        named = re.compile(r"\[:(\^?)(\w+):\]").match(text, self._at)
        if named:
            if named[2] not in _NAMED or named[1]:
                raise self._refused(f"the class {named[0]}")
            self._at = named.end()
            return _NAMED[named[2]]
        perl = re.compile(r"\\([dsw])").match(text, self._at)
        if perl:
            self._at = perl.end()
            return _PERL[perl[1]]
        low = self._letter()
        if text.startswith("-", self._at) and not text.startswith("-]", self._at):
            self._at += 1
            high = self._letter()
            if high < low:
                raise self._refused("a range that ends before it begins")
            return f"{re.escape(low)}-{re.escape(high)}"
        return _in_set(low)

    def _letter(self) -> str:
        if not self._pattern.startswith("\\", self._at):
            self._at += 1
            return self._pattern[self._at - 1 : self._at]
        self._at += 1
        code = self._code()
        if code is None:
            raise self._refused("an escape in a set of letters")
        return code


def _in_set(letter: str) -> str:
    return "\\" + letter if letter in r"\]^-[&|~" else letter


@primitive
def RegexFullMatch(x: Value, *, pattern: str) -> Value:
    x = _texts(x)
    translator = _Translator(pattern)
    try:
        expression = re.compile(translator.result())
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidModelError(f"RegexFullMatch: the pattern {pattern!r} is not valid: {error}") from None
    texts = x.reshape(-1)
    if translator.folds and any("İ" in text or "ı" in text for text in texts):
        raise UnsupportedError(
            "RegexFullMatch without case, of texts with İ or ı, which Python takes for i and RE2 not"
        )
    found = [expression.fullmatch(text) is not None for text in texts]
    return np.array(found, bool).reshape(x.shape)


# --- n-grams


class _Trie:
    """The n-grams of a pool as a machine that reads token by token.

    Arguments:
        keys: sorted, `state * tokens + token` of each transition; `follow` the state that it leads to.
        place: the n-gram that ends in a state, -1 if none does.
    """

    def __init__(self, grams: list[tuple[int, ...]], numbers: list[int], tokens: int):
        self.tokens = tokens
        transitions: dict[int, int] = {}
        place = [-1]
        for gram, number in zip(grams, numbers, strict=True):
            state = 0
            for token in gram:
                key = state * tokens + token
                if key not in transitions:
                    transitions[key] = len(place)
                    place.append(-1)
                state = transitions[key]
            if place[state] >= 0:
                raise InvalidModelError("TfIdfVectorizer has an n-gram twice")
            place[state] = number
        order = sorted(transitions)
        self.keys = np.array([*order, np.iinfo(np.int64).max], np.int64)
        self.follow = np.array([*(transitions[key] for key in order), -1], np.int64)
        self.place = np.array([*place, -1], np.int64)  # the last: of the state -1, where no n-gram leads

    def step(self, state: Value, token: Value) -> Value:
        xp = library(state, token)
        key = state * self.tokens + token
        index = xp.searchsorted(self.keys, key)
        known = (state >= 0) & (token >= 0) & (xp.asarray(self.keys)[index] == key)
        return xp.where(known, xp.asarray(self.follow)[index], -1)


def _grams(
    pool: Sequence[Any], starts: Sequence[int], shortest: int, longest: int
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """The n-grams of a pool and their numbers in it, those of the lengths that count."""
    grams, numbers = [], []
    number = 0
    for n, (start, end) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), 1):
        if (end - start) % n or end < start:
            raise InvalidModelError(f"TfIdfVectorizer: {end - start} items are no {n}-grams")
        for i in range(start, end, n):
            if shortest <= n <= longest:
                grams.append(tuple(pool[i : i + n]))
                numbers.append(number)
            number += 1
    return grams, numbers


@primitive
def TfIdfVectorizer(
    x: Value,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] | None = None,
    pool_strings: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Value:
    pool: tuple[Any, ...] = tuple(pool_strings or pool_int64s or ())
    grams, numbers = _grams(pool, ngram_counts, min_gram_length, max_gram_length)
    columns = np.asarray(ngram_indexes, np.int64)
    if mode not in ("TF", "IDF", "TFIDF") or x.ndim not in (1, 2):
        raise InvalidModelError(f"TfIdfVectorizer of mode {mode!r} for {x.ndim} dimensions")
    if numbers and numbers[-1] >= len(columns):
        raise InvalidModelError(f"TfIdfVectorizer has {len(columns)} ngram_indexes, too few for its pool")
    tokens = {token: i for i, token in enumerate(sorted(set(pool)))}
    trie = _Trie([tuple(tokens[t] for t in gram) for gram in grams], numbers, max(len(tokens), 1))
    rows = _numbered(x if x.ndim == 2 else x[None], tokens)
    counts = _counts(rows, trie, len(columns), min_gram_length, max_gram_length, max_skip_count)
    weight = np.ones(len(columns), np.float32) if not weights or mode == "TF" else np.asarray(weights, np.float32)
    if len(weight) != len(columns):
        raise InvalidModelError(f"TfIdfVectorizer has {len(weight)} weights for {len(columns)} n-grams")
    xp = library(counts)
    shares = xp.minimum(counts, 1) if mode == "IDF" else counts
    if mode == "IDF" and len(set(ngram_indexes)) < len(columns):
        raise UnsupportedError("TfIdfVectorizer of mode IDF with several n-grams in one column is left open by ONNX")
    scores = shares.astype(np.float32) * weight
    result = _added(xp, scores, columns, int(columns.max()) + 1)
    return result if x.ndim == 2 else result[0]


def _numbered(x: Value, tokens: dict[Any, int]) -> Value:
    """Each item of x by its number among the tokens, -1 for others."""
    if x.dtype == object or is_static(x):
        items = _texts(x) if x.dtype == object else x
        flat = [tokens.get(item, -1) for item in items.reshape(-1).tolist()]
        return np.array(flat, np.int64).reshape(x.shape)
    if not tokens:
        return jnp.full(x.shape, -1, np.int64)
    known = np.array(list(tokens), np.int64)
    index = jnp.minimum(jnp.searchsorted(known, x.astype(np.int64)), len(known) - 1)
    return jnp.where(jnp.asarray(known)[index] == x, index, -1)


def _counts(rows: Value, trie: _Trie, grams: int, shortest: int, longest: int, skips: int) -> Value:
    """How often each n-gram of the pool occurs in each row, with up to `skips` items left out between two of it."""
    xp = library(rows)
    count, length = rows.shape
    total = xp.zeros((count, grams), np.int64)
    for distance in range(1, min(skips, max(length - 1, 0)) + 2):
        state = xp.zeros((count, length), np.int64)
        for n in range(1, longest + 1):
            start = (n - 1) * distance
            if start >= length:
                break
            state = trie.step(state[:, : length - start], rows[:, start:])
            if n >= shortest and (n > 1 or distance == 1):  # single items have nothing between them
                place = xp.asarray(trie.place)[state]
                total = total + _added(xp, (place >= 0).astype(np.int64), xp.maximum(place, 0), grams)
    return total


def _added(xp: Any, values: Value, columns: Value, width: int) -> Value:
    """Adds values (n × count) up into columns (count, or n × count): n × width."""
    columns = xp.broadcast_to(xp.asarray(columns), values.shape)
    lines = np.arange(values.shape[0])[:, None]
    if xp is np:
        total = np.zeros((values.shape[0], width), values.dtype)
        np.add.at(total, (lines, columns), values)
        return total
    return jnp.zeros((values.shape[0], width), values.dtype).at[lines, columns].add(values)
