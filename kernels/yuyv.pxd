"""C-level face of `yuyv.py`."""

# The caller answers for 2 * width bytes at source, width even, and 3 * width at target.
cdef void yuyv_row(const unsigned char* source, unsigned char* target, Py_ssize_t width) noexcept nogil
