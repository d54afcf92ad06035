"""Camera image to model tensor: the C-level contract of `image.py`."""


cdef class ImagePlan:
    cdef readonly Py_ssize_t source_height, source_width, height, width
    cdef readonly tuple crop
    cdef readonly str order, source
    cdef Py_ssize_t _top, _left, _line
    cdef int _halvings, _bytes
    cdef bint _narrow, _yuyv
    cdef float _share
    cdef const int[:, ::1] _row_index, _row_weight, _column_weight, _pair_weight
    cdef const int[::1] _column_first, _pair_first, _channel
    cdef const float[::1] _scale, _bias
    cdef unsigned short[::1] _narrow_line
    cdef unsigned int[::1] _wide_line
    cdef float[:, ::1] _means

    # The caller answers for the shapes: src (source_height, source_width, 3 or for YUYV 2) whose pixels are packed
    # (strides (any, 3 or 2, 1)), dst (3, height, width). One plan serves one thread at a time: it owns its buffers.
    cdef void apply(self, const unsigned char[:, :, :] src, float[:, :, ::1] dst) noexcept nogil
    cdef void _from_yuyv(self, float[:, :, ::1] dst, Py_ssize_t y) noexcept nogil
