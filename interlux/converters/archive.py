"""A bounded reader for zip archives that hold a model (.pt2, .keras).

The standard library's `zipfile` trusts the file: it reads a central directory of any size, keeps the last of two
members with one name, never compares the central directory with the local headers and inflates without a bound. A
model file can be an attack, so this reader takes the directory apart itself, refuses whatever two zip readers could
understand differently, and hands out members one at a time. Nothing is ever extracted: names are keys, not paths.

What is refused is decided when the archive is opened, before any member is read. The checksum of a member is checked
when the member is read.
"""

from __future__ import annotations

import itertools
import mmap
import os
import reprlib
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from interlux.ir.errors import InvalidModelError, ResourceLimitError, UnsafeInputError

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 0xFFFF
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # ordinary, strong, and masked local headers
_HAS_DESCRIPTOR = 0x0008
_STORED, _DEFLATED = 0, 8
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ArchiveLimits:
    """Bounds on an archive.

    Arguments:
        max_members: members in the archive, folders included.
        max_total_bytes: sum of the members' sizes after decompression.
        max_ratio: size after decompression over size in the file, for a member above `ratio_free_bytes`.
        ratio_free_bytes: a member up to this size may have any ratio; a short run of zeros deflates 1000 to 1.
        max_directory_bytes: size of the central directory, which is held in memory.
    """

    max_members: int = 100_000
    max_total_bytes: int = 64 << 30
    max_ratio: int = 200
    ratio_free_bytes: int = 1 << 20
    max_directory_bytes: int = 64 << 20


@dataclass(frozen=True)
class Member:
    """One file in an archive: where its bytes are and what they must be."""

    name: str
    size: int
    compressed_size: int
    crc: int
    deflated: bool
    data_offset: int


def shown(text: object, limit: int = 80) -> str:
    """A name or text from a file, escaped and shortened, so that it can stand in a one-line message.

    Arguments:
        text: whatever the file held; shown by its `ascii()` form (no line feeds, terminal codes or look-alikes).
        limit: the most characters returned.

    Returns:
        printable ASCII; the middle of a long text is replaced by an ellipsis.
    """
    # Cut first: escaping a text of many megabytes to throw it away again would be a way to use up memory.
    if isinstance(text, str):
        escaped = ascii(text[:limit] + "..." + text[-limit:] if len(text) > 2 * limit else text)
    else:
        escaped = reprlib.repr(text).encode("ascii", "backslashreplace").decode("ascii")
    if len(escaped) <= limit:
        return escaped
    head = (limit - 3) * 2 // 3
    return escaped[:head] + "..." + escaped[len(escaped) - (limit - 3 - head) :]


class Archive(Mapping[str, bytes]):
    """An opened archive: a mapping from member name to bytes that reads a member when it is asked for.

    Use it as a context manager. `archive[name]` and `read` return bytes; `read_into` fills a buffer that the caller
    owns (for weights: no second copy exists at any time); `view` maps a stored member without a copy.
    """

    def __init__(self, file: BinaryIO, path: str, members: dict[str, Member]):
        self.path = path
        self.members = members
        self._file = file
        self._map: mmap.mmap | None = None

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __contains__(self, name: object) -> bool:
        return name in self.members

    def __getitem__(self, name: str) -> bytes:
        return self.read(name)

    def close(self) -> None:
        """Closes the file. Views that are still alive keep the mapping, not the file, open."""
        self._file.close()
        self._map = None

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """One member's bytes.

        Arguments:
            name: the member.
            max_bytes: refuse a larger member.

        Returns:
            its bytes, decompressed.

        Raises:
            KeyError: no such member.
            ResourceLimitError: it is larger than `max_bytes`.
            InvalidModelError: it is damaged.
        """
        member = self.members[name]
        if max_bytes is not None and member.size > max_bytes:
            raise ResourceLimitError(
                f"{self.path}: member {shown(name)} has {member.size} bytes, more than the limit of {max_bytes}"
            )
        buffer = bytearray(member.size)
        self.read_into(name, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fills a buffer with one member's bytes.

        Arguments:
            name: the member.
            buffer: writable, contiguous bytes of exactly the member's size.

        Raises:
            KeyError: no such member.
            ValueError: the buffer has another size.
            InvalidModelError: the member is damaged (short, wrong checksum, not valid deflate data).
            UnsafeInputError: it decompresses to another size than the directory says.
        """
        member = self.members[name]
        target = buffer.cast("B") if buffer.nbytes else memoryview(bytearray())
        if target.nbytes != member.size:
            raise ValueError(f"a buffer of {target.nbytes} bytes for a member of {member.size} bytes")
        self._file.seek(member.data_offset)
        # Plain reads rather than a map: mapped pages would count against the process on top of the caller's buffer.
        crc = self._inflate(member, target) if member.deflated else self._copy(member, target)
        if crc != member.crc:
            raise InvalidModelError(f"{self.path}: member {shown(name)} is damaged (its checksum does not match)")

    def view(self, name: str) -> memoryview:
        """One member's bytes without a copy where that is possible.

        Arguments:
            name: the member.

        Returns:
            read-only bytes: a window on the mapped file for a stored member, decompressed bytes otherwise. The file
            must not be shortened while the window is in use.

        Raises:
            as `read`.
        """
        member = self.members[name]
        if member.deflated or not member.size:
            return memoryview(self.read(name))
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        if member.data_offset + member.size > len(self._map):
            raise InvalidModelError(f"{self.path} became shorter while it was read")
        window = memoryview(self._map)[member.data_offset : member.data_offset + member.size]
        if zlib.crc32(window) != member.crc:
            raise InvalidModelError(f"{self.path}: member {shown(name)} is damaged (its checksum does not match)")
        return window

    def _copy(self, member: Member, target: memoryview) -> int:
        crc = done = 0
        while done < member.size:
            part = target[done : done + _CHUNK]
            count = self._file.readinto(part)  # type: ignore[attr-defined]
            if not count:
                raise InvalidModelError(f"{self.path} ends in the middle of member {shown(member.name)}")
            crc = zlib.crc32(part[:count], crc)
            done += count
        return crc

    def _inflate(self, member: Member, target: memoryview) -> int:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        crc = done = 0
        left = member.compressed_size
        pending = b""
        while not inflater.eof:
            if not pending:
                pending = self._file.read(min(left, _CHUNK))
                left -= len(pending)
            try:
                # One byte more than is expected shows a member that lies about its size without inflating the rest.
                piece = inflater.decompress(pending, min(_CHUNK, member.size - done + 1))
            except zlib.error as error:
                raise InvalidModelError(
                    f"{self.path}: member {shown(member.name)} is damaged ({shown(str(error))})"
                ) from error
            stuck = not piece and not inflater.unconsumed_tail and not left
            pending = inflater.unconsumed_tail
            if done + len(piece) > member.size:
                raise UnsafeInputError(
                    f"{self.path}: member {shown(member.name)} inflates beyond the {member.size} bytes it declares"
                )
            target[done : done + len(piece)] = piece
            crc = zlib.crc32(piece, crc)
            done += len(piece)
            if stuck and not inflater.eof:
                break
        if done != member.size or not inflater.eof:
            raise InvalidModelError(f"{self.path}: member {shown(member.name)} is damaged (its data ends early)")
        return crc


def read_archive(
    path: str | os.PathLike[str], *, limits: ArchiveLimits = ArchiveLimits(), kind: str = "zip archive"
) -> Archive:
    """Opens a zip archive after checking its whole directory.

    Arguments:
        path: a regular file.
        limits: see `ArchiveLimits`.
        kind: what the file should be, for messages, such as ".pt2 archive".

    Returns:
        the opened archive; folders are left out of its members.

    Raises:
        InvalidModelError: no such file, not a zip file, truncated, or compressed otherwise than by deflate.
        UnsafeInputError: two members with one name, a name that is absolute or holds '..', a link, an encrypted member,
            too high a compression ratio, too many members or bytes, members that overlap, or a local header that
            disagrees with the central directory.
    """
    name = shown(os.fspath(path), 200)[1:-1]
    try:
        # The kind of file is checked before it is opened: opening a pipe would wait for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InvalidModelError(f"{name} is not a regular file; expected a {kind}")
        file = open(path, "rb")  # noqa: SIM115  the archive that is returned owns and closes it
    except FileNotFoundError as error:
        raise InvalidModelError(f"{name} was not found; expected a {kind}") from error
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"{name} cannot be read: {shown(str(error))}") from error
    try:
        return Archive(file, name, _Directory(file, name, limits, kind).members())
    except BaseException:
        file.close()
        raise


class _Directory:
    """Parses and checks an archive's directory; one use per archive."""

    def __init__(self, file: BinaryIO, name: str, limits: ArchiveLimits, kind: str):
        self.file = file
        self.name = name
        self.limits = limits
        self.kind = kind
        self.file_size = os.fstat(file.fileno()).st_size

    def members(self) -> dict[str, Member]:
        """All members by name, checked."""
        start, size, count = self._end()
        if count > self.limits.max_members:
            raise UnsafeInputError(f"{self.name} has {count} members, more than the limit of {self.limits.max_members}")
        if size > self.limits.max_directory_bytes:
            raise UnsafeInputError(
                f"{self.name}: its directory has {size} bytes, more than the limit of {self.limits.max_directory_bytes}"
            )
        raw = self._bytes(start, size)
        members: dict[str, Member] = {}
        seen: set[str] = set()
        spans: list[tuple[int, int, str]] = []
        position = total = 0
        for _ in range(count):
            member, span, position = self._entry(raw, position, start)
            if member.name in seen:
                raise UnsafeInputError(f"{self.name} has two members named {shown(member.name)}")
            seen.add(member.name)
            spans.append((*span, member.name))
            total += member.size
            if total > self.limits.max_total_bytes:
                raise UnsafeInputError(
                    f"{self.name} expands to more than the limit of {self.limits.max_total_bytes} bytes"
                )
            if not member.name.endswith("/"):
                members[member.name] = member
        if position != size:
            raise UnsafeInputError(f"{self.name}: its directory holds more than the {count} members it declares")
        spans.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            if begin < end:
                raise UnsafeInputError(f"{self.name}: members {shown(first)} and {shown(second)} overlap")
        return members

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset < 0 or offset + size > self.file_size:
            raise InvalidModelError(f"{self.name} is truncated: its directory points beyond the end of the file")
        self.file.seek(offset)
        data = self.file.read(size)
        if len(data) != size:
            raise InvalidModelError(f"{self.name} became shorter while it was read")
        return data

    def _end(self) -> tuple[int, int, int]:
        """Where the central directory starts, its size and its number of entries."""
        tail_size = min(self.file_size, _END.size + _MAX_COMMENT)
        tail = self._bytes(self.file_size - tail_size, tail_size)
        at = tail.rfind(b"PK\x05\x06")
        # The record counts only when its comment ends the file, or bytes in a comment could pass for a directory.
        while at >= 0 and not (
            at + _END.size <= tail_size and at + _END.size + _END.unpack_from(tail, at)[7] == tail_size
        ):
            at = tail.rfind(b"PK\x05\x06", 0, at)
        if at < 0:
            raise InvalidModelError(
                f"{self.name} is not a {self.kind} (no zip directory found): {self._impression()}; "
                "save or copy the file again"
            )
        _, disk, first_disk, here, count, size, start, _ = _END.unpack_from(tail, at)
        end = self.file_size - tail_size + at
        # torch writes the zip64 record even where the ordinary one suffices; then both must say the same.
        wide = self._end64(end)
        if wide is None and (0xFFFF in (here, count) or 0xFFFFFFFF in (size, start)):
            raise InvalidModelError(f"{self.name} is not a sound {self.kind}: its zip64 record is missing")
        if wide is not None:
            narrow = (disk, first_disk, here, count, size, start)
            overflow = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
            if any(value not in (limit, other) for value, limit, other in zip(narrow, overflow, wide[1:], strict=True)):
                raise UnsafeInputError(f"{self.name}: its two end records disagree")
            end, disk, first_disk, here, count, size, start = wide
        if disk or first_disk or here != count:
            raise InvalidModelError(f"{self.name} is one part of a split zip file; expected a {self.kind}")
        if start + size != end:
            raise InvalidModelError(
                f"{self.name} is not a sound {self.kind}: its directory is not where its end record says (truncated, "
                "or other data before it)"
            )
        return start, size, count

    def _end64(self, end: int) -> tuple[int, int, int, int, int, int, int] | None:
        """The zip64 end record: its position, then the fields of the ordinary one. None where there is none."""
        if end < _END64_LOCATOR.size + _END64.size:
            return None
        magic, _, position, _ = _END64_LOCATOR.unpack(self._bytes(end - _END64_LOCATOR.size, _END64_LOCATOR.size))
        if magic != b"PK\x06\x07":
            return None
        magic, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack(
            self._bytes(position, _END64.size)
        )
        if magic != b"PK\x06\x06" or position + 12 + length != end - _END64_LOCATOR.size:
            raise InvalidModelError(f"{self.name} is not a sound {self.kind}: its zip64 record is damaged")
        return position, disk, first_disk, here, count, size, start

    def _impression(self) -> str:
        """What a file that is no zip file looks like."""
        if not self.file_size:
            return "it is empty"
        head = self._bytes(0, min(64, self.file_size))
        if head.startswith(b"PK\x03\x04"):
            return "it begins like one, but its end is missing"
        if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
            return f"it is a text that begins with {shown(head.decode('ascii'), 40)}"
        return f"it begins with the bytes {head[:8].hex(' ')}"

    def _entry(self, raw: bytes, position: int, directory_start: int) -> tuple[Member, tuple[int, int], int]:
        """One central entry with its local header: the member, the bytes it takes up, the next entry's position."""
        if position + _CENTRAL.size > len(raw):
            raise InvalidModelError(f"{self.name}: its directory is truncated")
        fields = _CENTRAL.unpack_from(raw, position)
        magic, flags, method, crc, packed, size = fields[0], fields[3], fields[4], *fields[7:10]
        name_size, extra_size, note_size, mode, offset = *fields[10:13], *fields[15:17]
        body = position + _CENTRAL.size
        following = body + name_size + extra_size + note_size
        if magic != b"PK\x01\x02" or following > len(raw):
            raise InvalidModelError(f"{self.name}: its directory is damaged")
        raw_name = raw[body : body + name_size]
        name = self._checked_name(raw_name)
        extra = raw[body + name_size : body + name_size + extra_size]
        size, packed, offset = self._widened(name, extra, size, packed, offset)
        if flags & _ENCRYPTED:
            raise UnsafeInputError(f"{self.name}: member {shown(name)} is encrypted")
        # The upper half of the attributes is a Unix mode; writers that know no mode leave it 0.
        file_type = stat.S_IFMT(mode >> 16)
        if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsafeInputError(f"{self.name}: member {shown(name)} is a link or a special file")
        if method not in (_STORED, _DEFLATED):
            raise InvalidModelError(
                f"{self.name}: member {shown(name)} uses compression method {method}; only stored and deflate are read"
            )
        if method == _STORED and size != packed:
            raise UnsafeInputError(f"{self.name}: member {shown(name)} is stored with two sizes: {packed} and {size}")
        if name.endswith("/") and size:
            raise UnsafeInputError(f"{self.name}: the folder {shown(name)} has contents")
        if size > self.limits.ratio_free_bytes and size > packed * self.limits.max_ratio:
            raise UnsafeInputError(
                f"{self.name}: member {shown(name)} expands from {packed} to {size} bytes, more than the limit of "
                f"{self.limits.max_ratio} to 1"
            )
        data_offset, end = self._local(raw_name, name, offset, flags, method, crc, packed, size)
        if end > directory_start:
            raise UnsafeInputError(f"{self.name}: member {shown(name)} reaches into the directory")
        member = Member(name, size, packed, crc, method == _DEFLATED, data_offset)
        return member, (offset, end), following

    def _local(
        self, raw_name: bytes, name: str, offset: int, flags: int, method: int, crc: int, packed: int, size: int
    ) -> tuple[int, int]:
        """Compares a member's local header with the central directory; where its data starts and all of it ends."""
        magic, _, its_flags, its_method, _, _, its_crc, its_packed, its_size, name_size, extra_size = _LOCAL.unpack(
            self._bytes(offset, _LOCAL.size)
        )
        if magic != b"PK\x03\x04":
            raise InvalidModelError(f"{self.name}: the header of member {shown(name)} is damaged")
        variable = self._bytes(offset + _LOCAL.size, name_size + extra_size)
        if variable[:name_size] != raw_name:
            other = shown(variable[:name_size].decode("utf-8", "replace"))
            raise UnsafeInputError(f"{self.name}: member {shown(name)} is named {other} in its own header")
        if its_method != method or its_flags & _ENCRYPTED or (its_flags ^ flags) & _HAS_DESCRIPTOR:
            raise UnsafeInputError(f"{self.name}: the header of member {shown(name)} disagrees with the directory")
        its_size, its_packed, _ = self._widened(name, variable[name_size:], its_size, its_packed, 0)
        start = offset + _LOCAL.size + name_size + extra_size
        end = start + packed
        if end > self.file_size:
            raise InvalidModelError(f"{self.name} is truncated in member {shown(name)}")
        streamed = bool(flags & _HAS_DESCRIPTOR)
        # A streaming writer leaves zeros in the header and puts the numbers behind the data.
        if (its_size, its_packed, its_crc) != (size, packed, crc) and not (
            streamed and its_size in (0, size) and its_packed in (0, packed) and its_crc in (0, crc)
        ):
            raise UnsafeInputError(
                f"{self.name}: member {shown(name)} has {size} bytes in the directory and {its_size} in its own header"
            )
        if streamed:
            end += self._descriptor(name, end, crc, packed, size)
        return start, end

    def _descriptor(self, name: str, position: int, crc: int, packed: int, size: int) -> int:
        """The size of the record behind a streamed member's data, after comparing it with the directory."""
        found = self._bytes(position, min(24, self.file_size - position))
        for sizes in ("2Q", "2L"):  # the standard leaves open which is meant
            if sizes == "2L" and max(packed, size) > 0xFFFFFFFF:
                continue
            for magic in (b"PK\x07\x08", b""):
                record = magic + struct.pack("<L" + sizes, crc, packed, size)
                if found.startswith(record):
                    return len(record)
        raise UnsafeInputError(
            f"{self.name}: the record behind member {shown(name)} disagrees with the directory on its size or checksum"
        )

    def _widened(self, name: str, extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
        """Replaces the 32-bit values that say "see the zip64 field" by that field's."""
        values = [size, packed, offset]
        wanted = [index for index, value in enumerate(values) if value == 0xFFFFFFFF]
        position = 0
        while wanted and position + 4 <= len(extra):
            tag, length = struct.unpack_from("<2H", extra, position)
            if tag == 1:
                if length < 8 * len(wanted) or position + 4 + length > len(extra):
                    break
                for place, index in enumerate(wanted):
                    values[index] = struct.unpack_from("<Q", extra, position + 4 + 8 * place)[0]
                return values[0], values[1], values[2]
            position += 4 + length
        if wanted:
            raise InvalidModelError(f"{self.name}: the zip64 field of member {shown(name)} is missing or damaged")
        return size, packed, offset

    def _checked_name(self, raw_name: bytes) -> str:
        try:
            # Old writers mean code page 437 when flag 11 is off; model files use ASCII there, the common part of both.
            name = raw_name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnsafeInputError(f"{self.name}: a member's name is not UTF-8: {shown(raw_name)}") from error
        parts = name.removesuffix("/").split("/")
        if (
            not name
            or len(name) > 4096
            or "\\" in name
            or ":" in parts[0]
            or any(part in ("", ".", "..") for part in parts)
            or any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
        ):
            raise UnsafeInputError(
                f"{self.name}: a member is named {shown(name)}; only relative names without '..' and control "
                "characters are read"
            )
        return name
