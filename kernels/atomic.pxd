"""C11 atomics on int64 words in shared memory: acquire loads, release stores, and the fences of a sequence lock."""

cdef extern from *:
    """
    #include <stdint.h>
    static inline long long dz_load(const long long* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline long long dz_peek(const long long* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void dz_store(long long* p, long long v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void dz_poke(long long* p, long long v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void dz_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
    static inline void dz_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    """
    long long dz_load(const long long*) noexcept nogil
    long long dz_peek(const long long*) noexcept nogil
    void dz_store(long long*, long long) noexcept nogil
    void dz_poke(long long*, long long) noexcept nogil
    void dz_fence_release() noexcept nogil
    void dz_fence_acquire() noexcept nogil
