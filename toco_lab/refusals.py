"""What the operating system refuses (a full disk, no rights, too many open files), as one line with its remedy."""

import errno
import re
from pathlib import Path

_PLACE = "or choose another place"
_REMEDIES = {
    errno.ENOSPC: f"Free some space on that disk, {_PLACE}",
    errno.EDQUOT: f"Your share of that disk is used up: delete something, {_PLACE}",
    errno.EFBIG: "A limit on the size of files is set: raise it (ulimit -f), or choose another disk",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or take fewer workers",
    errno.ENFILE: "The whole machine has too many open: end other programs",
    errno.EACCES: f"Change its permissions, {_PLACE}",
    errno.EPERM: f"Change its owner or its permissions, {_PLACE}",
    errno.EROFS: "That disk can only be read: choose a folder on another one",
    errno.EEXIST: f"A folder is needed there: move the file away, {_PLACE}",
    errno.ENOTDIR: f"A folder is needed there, and a part of the path is a file: move it away, {_PLACE}",
    errno.EISDIR: f"A file is needed there, and a folder has its name: move it away, {_PLACE}",
    errno.ENOENT: "Check the path",
    errno.ELOOP: "Links lead in a circle: mend them",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOMEM: "End other programs, or make the batch or the images smaller",
    errno.EIO: "The disk failed: check it and its cable or network",
    errno.ESTALE: "The network disk has gone: mount it again",
}
_REFUSAL = re.compile(
    r"\[Errno (?P<code>\d+)\] (?P<said>[^\n:]+)"  # as Python writes an OSError
    r"(?:: (?P<quote>['\"])(?P<file>[^\n]*?)(?P=quote)(?!\w))?"
)


def in_words(message: str) -> str:
    """The message of an error, in which what the system said has its file first and its remedy last.

    The text of an OSError is found wherever it stands, because it often arrives inside another error: of a process that
    loads images, of a notebook. Any other message is returned as it is.

    >>> in_words("[Errno 28] No space left on device: 'results/a/config.json'")
    'results/a/config.json: No space left on device. Free some space on that disk, or choose another place'
    """
    found = _REFUSAL.search(message)
    if found is None:
        return message
    code, file = int(found["code"]), found["file"]
    remedy = _REMEDIES.get(code, "")
    if file and code in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR) and _leads_nowhere(Path(file)):
        remedy = "It is a link that leads nowhere: mend it, or remove it"
    said = f"{file}: {found['said']}" if file else found["said"]
    return message[: found.start()] + said + (f". {remedy}" if remedy else "") + message[found.end() :]


def _leads_nowhere(path: Path) -> bool:
    try:
        return path.is_symlink() and not path.exists()
    except OSError:  # nobody may look
        return False
