"""Camera image to model tensor: the C-level contract of `image.py`."""


cdef class ImagePlan:
    cdef readonly Py_ssize_t source_height, source_width, height, width
    cdef readonly tuple crop
    cdef readonly str order
    cdef Py_ssize_t _top, _left, _crop_height, _crop_width
    cdef bint _halving, _narrow
    cdef const int[::1] _row_first, _row_last, _column_first, _column_last
    cdef const unsigned short[:, ::1] _row_weight
    cdef const float[:, ::1] _column_weight
    cdef const float[::1] _scale, _bias
    cdef Py_ssize_t[::1] _channel
    cdef unsigned short[::1] _narrow_row
    cdef float[::1] _wide_row

    # The caller answers for the shapes: src (source_height, source_width, 3) whose pixels are packed (strides
    # (any, 3, 1)), dst (3, height, width). One plan serves one thread at a time: it owns its row buffers.
    cdef void apply(self, const unsigned char[:, :, :] src, float[:, :, ::1] dst) noexcept nogil
