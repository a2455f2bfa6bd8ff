# cython: language_level=3, boundscheck=False, wraparound=False, nonecheck=False, binding=False, auto_pickle=False
"""Heads taken apart in one pass over their bytes: the compiled twin of `parts`, for heads as most are. It decides nothing:
whatever is not plainly right comes back as None, and `parts`, which says what a head may be, takes it apart instead.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport PyObject
from libc.string cimport memchr, memcmp, memcpy

from services.edge.http import fields as rules
from services.edge.http.lines import request_lines, response_lines
from services.edge.http.message import METHODS

cdef enum:
    SIZE_MAX = 8192
    LINES_MAX = 100
    NAME_MAX = 64
    CR = 13
    LF = 10
    BLANK = 32
    TAB = 9
    COLON = 58

cdef int PASS = rules.PASS, DROP = rules.DROP, LENGTH = rules.LENGTH, CONNECTION = rules.CONNECTION, HOST = rules.HOST
cdef int KEY = rules.KEY, REQUEST_ID = rules.REQUEST_ID, PLATFORM = rules.PLATFORM, DATE = rules.DATE, SECRET = rules.SECRET
cdef object request_kinds = rules.request_kinds, response_kinds = rules.response_kinds
cdef object request_known = request_lines, response_known = response_lines
cdef dict methods = {name.encode(): name for name in METHODS}

# What bytes a name, a value and a target may have.
cdef unsigned char IN_NAME[256]
cdef unsigned char IN_VALUE[256]
cdef unsigned char IN_TARGET[256]
# By length and first letter: whether a name may be any but one that passes. Of most it is known without asking.
cdef unsigned char TELLS_IN_REQUEST[NAME_MAX][256]
cdef unsigned char TELLS_IN_RESPONSE[NAME_MAX][256]


cdef void _prepare() except *:
    cdef int byte
    for byte in range(256):
        IN_NAME[byte] = byte < 128 and (chr(byte).isalnum() or chr(byte) in "!#$%&'*+-.^_`|~")
        IN_VALUE[byte] = byte == TAB or 0x20 <= byte <= 0x7E or byte >= 0x80
        IN_TARGET[byte] = 0x21 <= byte <= 0x7E
    _mark(TELLS_IN_REQUEST, rules.REQUEST_KINDS, rules.REQUEST_DROPPED)
    _mark(TELLS_IN_RESPONSE, rules.RESPONSE_KINDS, tuple(rules.RESPONSE_PREFIXES))


cdef void _mark(unsigned char (*tells)[256], dict kinds, tuple prefixes) except *:
    cdef int length
    for name in kinds:
        if len(name) >= NAME_MAX:
            raise AssertionError(name)
        for first in {name[0], name.upper()[0]}:
            tells[<int>len(name)][<int>first] = 1
    for prefix in prefixes:
        for first in {prefix[0], prefix.upper()[0]}:
            for length in range(NAME_MAX):
                tells[length][<int>first] = 1


_prepare()

cdef struct Line:
    # Where its name ends, its value begins and ends (at CR), and the next line begins.
    Py_ssize_t colon
    Py_ssize_t value
    Py_ssize_t end
    Py_ssize_t next


cdef inline bint _read(const unsigned char* head, Py_ssize_t at, Py_ssize_t size, Line* line) noexcept:
    cdef Py_ssize_t here = at
    while here < size and IN_NAME[head[here]]:
        here += 1
    if here == at or here >= size or head[here] != COLON:
        return False
    line.colon = here
    here += 1
    while here < size and (head[here] == BLANK or head[here] == TAB):
        here += 1
    line.value = here
    while here < size and IN_VALUE[head[here]]:
        here += 1
    if here + 1 >= size or head[here] != CR or head[here + 1] != LF:
        return False
    line.end = here
    line.next = here + 2
    return True


cdef inline bytes _piece(const unsigned char* head, Py_ssize_t start, Py_ssize_t end):
    return PyBytes_FromStringAndSize(<const char*>head + start, end - start)


cdef inline bytes _trimmed(const unsigned char* head, Line* line):
    cdef Py_ssize_t end = line.end
    while end > line.value and (head[end - 1] == BLANK or head[end - 1] == TAB):
        end -= 1
    return _piece(head, line.value, end)


cdef inline Py_ssize_t _write(char* out, const unsigned char* head, Py_ssize_t at, Line* line) noexcept:
    # The line written anew: name, colon, one blank, value, CR LF.
    cdef Py_ssize_t name = line.colon + 1 - at, value = line.next - line.value
    memcpy(out, head + at, name)
    out[name] = BLANK
    memcpy(out + name + 1, head + line.value, value)
    return name + 1 + value


cdef inline int _kind(
    unsigned char (*tells)[256], object kinds, const unsigned char* head, Py_ssize_t at, Py_ssize_t length
) except -100:
    if length < NAME_MAX and not tells[length][head[at]]:
        return PASS
    cdef bytes name = _piece(head, at, at + length)
    cdef PyObject* known = PyDict_GetItem(kinds, name)
    return <object>known if known is not NULL else kinds[name]


cdef tuple _known(object known, object lines, const unsigned char* head, Py_ssize_t at, Line* line):
    # A line whose value tells what kind it is.
    cdef bytes whole = _piece(head, at, line.end)
    cdef PyObject* found = PyDict_GetItem(known, whole)
    return <tuple>found if found is not NULL else lines.read(whole)


cdef dict _among(dict rare, int kind, bytes value):
    if rare is None:
        return {kind: [value]}
    rare.setdefault(kind, []).append(value)
    return rare


def request(bytes data):
    """As `parts.request`, or None."""
    cdef const unsigned char* head = <const unsigned char*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data), at, start, end, written = 0
    cdef int kind, count = 0
    cdef Line line
    cdef char out[SIZE_MAX + LINES_MAX]
    cdef const void* blank
    if size > SIZE_MAX:
        return None
    blank = memchr(head, BLANK, size)
    if blank is NULL:
        return None
    start = <const unsigned char*>blank - head
    cdef PyObject* method = PyDict_GetItem(methods, _piece(head, 0, start))
    start += 1
    if method is NULL or head[start] != b"/":
        return None
    end = start
    while end < size and IN_TARGET[head[end]]:
        end += 1
    # The version is the only thing that may follow; the line's end is the last of its bytes.
    at = end + 11
    if at >= size or memcmp(head + end, b" HTTP/1.", 8) or head[at - 2] != CR or head[at - 1] != LF:
        return None
    cdef int minor = head[at - 3] - 48
    if minor != 1 and minor != 0:
        return None
    cdef list keys = [], hosts = [], request_ids = []
    cdef dict rare = None
    while head[at] != CR:
        count += 1
        if count > LINES_MAX or not _read(head, at, size, &line):
            return None
        kind = _kind(TELLS_IN_REQUEST, request_kinds, head, at, line.colon - at)
        if kind == PASS or kind == SECRET:
            written += _write(out + written, head, at, &line)
        elif kind == KEY:
            keys.append(_trimmed(head, &line))
        elif kind == REQUEST_ID:
            request_ids.append(_trimmed(head, &line))
        elif kind == HOST or kind == CONNECTION:
            kind, value = _known(request_known, request_lines, head, at, &line)
            if kind == HOST:
                hosts.append(value)
            elif kind == CONNECTION:
                rare = _among(rare, kind, value)
            elif kind != DROP:
                return None
        elif kind != DROP:
            rare = _among(rare, kind, _trimmed(head, &line))
        at = line.next
    if at + 2 != size or head[at + 1] != LF:
        return None
    return <object>method, _piece(head, start, end), minor, PyBytes_FromStringAndSize(out, written), keys, hosts, request_ids, rare, None


def response(bytes data):
    """As `parts.response`, or None."""
    cdef const unsigned char* head = <const unsigned char*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data), at, written = 0
    cdef int kind, count = 0
    cdef Line line
    cdef char out[SIZE_MAX + LINES_MAX]
    if size > SIZE_MAX:
        return None
    cdef const void* end = memchr(head, CR, size)
    if end is NULL:
        return None
    at = <const unsigned char*>end - head + 2
    if at >= size or head[at - 1] != LF:
        return None
    cdef bytes first = _piece(head, 0, at - 2)
    cdef object date = None, length = None
    cdef dict rare = None
    while head[at] != CR:
        count += 1
        if count > LINES_MAX or not _read(head, at, size, &line):
            return None
        kind = _kind(TELLS_IN_RESPONSE, response_kinds, head, at, line.colon - at)
        if kind == PASS or kind == SECRET:
            written += _write(out + written, head, at, &line)
        elif kind == DATE:
            if date is None:
                date = _trimmed(head, &line)
        elif kind == LENGTH:
            if length is not None:
                return None
            length = _trimmed(head, &line)
        elif kind == CONNECTION:
            kind, value = _known(response_known, response_lines, head, at, &line)
            if kind != DROP:
                rare = _among(rare, kind, value)
        elif kind == PLATFORM:
            # Room for it is there: what is written here is overwritten by the next.
            rare = _among(rare, kind, PyBytes_FromStringAndSize(out + written, _write(out + written, head, at, &line)))
        elif kind != DROP:
            rare = _among(rare, kind, _trimmed(head, &line))
        at = line.next
    if at + 2 != size or head[at + 1] != LF:
        return None
    return first, PyBytes_FromStringAndSize(out, written), date, length, rare
