"""Feetech STS frames: the contract of codec.py. All functions: no GIL, no allocation, no exceptions."""

cimport cython

cpdef int checksum(const unsigned char[::1] data, int start, int end) noexcept nogil
cpdef int encode_signed(int value, int bit) noexcept nogil
cpdef int decode_signed(int raw, int bit) noexcept nogil
cpdef int word(const unsigned char[::1] data, int at) noexcept nogil
cpdef void put_word(unsigned char[::1] out, int at, int raw) noexcept nogil
cpdef void seal(unsigned char[::1] out, int start, int length) noexcept nogil
cpdef int ping(unsigned char[::1] out, int servo) noexcept nogil
cpdef int read(unsigned char[::1] out, int servo, int address, int count) noexcept nogil
cpdef int write(unsigned char[::1] out, int servo, int address, const unsigned char[::1] data) noexcept nogil
cpdef int status(unsigned char[::1] out, int servo, int error, const unsigned char[::1] data) noexcept nogil
cpdef int sync_read(unsigned char[::1] out, int address, int count,
                    const unsigned char[::1] ids) noexcept nogil
cpdef int sync_write(unsigned char[::1] out, int address, const unsigned char[::1] ids,
                     const unsigned char[:, ::1] data) noexcept nogil
cpdef int scan(const unsigned char[::1] data, int start, int end, int longest, bint final,
               int[::1] found) noexcept nogil
cpdef int echo_length(const unsigned char[::1] sent, int length, const unsigned char[::1] data,
                      int start, int end) noexcept nogil
