"""Files that are either complete or absent, and files inside files."""

import io
import os
import tempfile
from pathlib import Path


def write_atomically(path, content):
    """Write ``content`` (str or bytes) to ``path`` so that no reader sees half.

    The bytes go to a temporary file in the same folder, are flushed to the
    disk, and take the final name in one rename. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode("utf-8")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; results are meant to be shared.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class Window(io.RawIOBase):
    """Bytes ``offset`` to ``offset + size`` of a file, as a file for reading.

    Nothing outside of them can be read; every read is one of the file below.
    """

    def __init__(self, path, offset, size):
        super().__init__()
        self._offset, self._size, self._position = offset, size, 0
        self._file = open(path, "rb", buffering=0)

    def readable(self):
        """True."""
        return True

    def seekable(self):
        """True."""
        return True

    def tell(self):
        """Position within the window."""
        return self._position

    def seek(self, offset, whence=os.SEEK_SET):
        """Move as in any file, also behind the end; returns the new position."""
        origins = {os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        position = origins.get(whence, 0) + offset
        if position < 0:
            raise ValueError(f"a file has no position {position}")
        self._position = position
        return position

    def readinto(self, buffer):
        """Fill ``buffer`` as far as the window goes; returns the bytes read."""
        left = max(self._size - self._position, 0)
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(memoryview(buffer).cast("B")[:left])
        self._position += count
        return count

    def close(self):
        """Close the file below."""
        self._file.close()
        super().close()


def _umask():
    """The process's file mode mask (it can only be read by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
