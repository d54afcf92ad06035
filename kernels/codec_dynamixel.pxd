"""Dynamixel Protocol 2.0 frames: the contract of codec_dynamixel.py. No GIL, no allocation, no exceptions."""

cimport cython

cpdef int crc(const unsigned char[::1] data, int start, int end, int seed) noexcept nogil
cpdef int word(const unsigned char[::1] data, int at) noexcept nogil
cpdef int signed_word(const unsigned char[::1] data, int at) noexcept nogil
cpdef int long_word(const unsigned char[::1] data, int at) noexcept nogil
cpdef void put_word(unsigned char[::1] out, int at, int raw) noexcept nogil
cpdef void put_long(unsigned char[::1] out, int at, int raw) noexcept nogil
cpdef int seal(unsigned char[::1] out, int servo, int code, int parameters) noexcept nogil
cpdef int frame(unsigned char[::1] out, int servo, int code, const unsigned char[::1] data) noexcept nogil
cpdef int status(unsigned char[::1] out, int servo, int error, const unsigned char[::1] data) noexcept nogil
cpdef int ping(unsigned char[::1] out, int servo) noexcept nogil
cpdef int read(unsigned char[::1] out, int servo, int address, int count) noexcept nogil
cpdef int write(unsigned char[::1] out, int servo, int address, const unsigned char[::1] data) noexcept nogil
cpdef int reg_write(unsigned char[::1] out, int servo, int address,
                    const unsigned char[::1] data) noexcept nogil
cpdef int sync_read(unsigned char[::1] out, int address, int count,
                    const unsigned char[::1] ids) noexcept nogil
cpdef int fast_sync_read(unsigned char[::1] out, int address, int count,
                         const unsigned char[::1] ids) noexcept nogil
cpdef int sync_write(unsigned char[::1] out, int address, const unsigned char[::1] ids,
                     const unsigned char[:, ::1] data) noexcept nogil
cpdef int scan(const unsigned char[::1] data, int start, int end, int longest, bint final,
               int[::1] found) noexcept nogil
cpdef int unstuff(const unsigned char[::1] data, int start, int end, unsigned char[::1] out) noexcept nogil
cpdef int fast_slots(const unsigned char[::1] data, int start, int end, int count) noexcept nogil
