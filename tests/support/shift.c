// Preloaded into livebridge: shifts the clocks for the process, also while it runs.
//
// CLOCK_SHIFT  a file of two signed numbers of 8 bytes: the shifts of the real-time clock and of the
//              monotonic clock in seconds
//
// Waits until a time of the real-time clock, as librdkafka makes them, follow the shift as they follow
// the kernel's clock when that is set: they are made in slices, and each slice looks at the clock
// again. Shifting the monotonic clock forward lets hours pass; waits that have begun are not shortened.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SLICE_NS 20000000

struct shifts {
    _Atomic long real, monotonic;
};

static const struct shifts *shifts;
static struct shifts none;

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("CLOCK_SHIFT");
    shifts = &none;
    if (!path) return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *shifts, PROT_READ, MAP_SHARED, fd, 0);
    // A test whose clock is not shifted would pass for the wrong reason.
    if (page == MAP_FAILED) abort();
    close(fd);
    shifts = page;
}

static long shift_of(clockid_t clock) {
    if (!shifts) return 0;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
        return atomic_load(&shifts->real);
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_BOOTTIME:
        return atomic_load(&shifts->monotonic);
    default:
        return 0;
    }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static __typeof__(&clock_gettime) cached;
    if (!cached) {
        REAL(clock_gettime);
        cached = real;
    }
    int outcome = cached(clock, now);
    if (outcome == 0) now->tv_sec += shift_of(clock);
    return outcome;
}

int timespec_get(struct timespec *now, int base) {
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, now) == 0 ? base : 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec time;
    int outcome = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return outcome;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

// The end of the next slice in unshifted time; whether it is the last one.
static int next_slice(const struct timespec *until, struct timespec *end) {
    struct timespec now;
    long by = shift_of(CLOCK_REALTIME);
    clock_gettime(CLOCK_REALTIME, &now);
    long long left = (until->tv_sec - now.tv_sec) * 1000000000LL + until->tv_nsec - now.tv_nsec;
    if (left <= SLICE_NS) {
        *end = *until;
        end->tv_sec -= by;
        return 1;
    }
    now.tv_sec -= by;
    now.tv_nsec += SLICE_NS;
    if (now.tv_nsec >= 1000000000) {
        now.tv_nsec -= 1000000000;
        now.tv_sec++;
    }
    *end = now;
    return 0;
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex,
                  const struct timespec *restrict until) {
    REAL(cnd_timedwait);
    struct timespec end;
    for (;;) {
        int last = next_slice(until, &end);
        int outcome = real(condition, mutex, &end);
        if (last || outcome != thrd_timedout) return outcome;
    }
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    REAL(pthread_cond_timedwait);
    // Those who wait by the monotonic clock give small times, which are not shifted.
    struct timespec monotonic, end;
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    if (until->tv_sec < monotonic.tv_sec + 100000000) return real(condition, mutex, until);
    for (;;) {
        int last = next_slice(until, &end);
        int outcome = real(condition, mutex, &end);
        if (last || outcome != ETIMEDOUT) return outcome;
    }
}

// Rust's waits with a time-out: until a time of the monotonic clock.
long syscall(long number, ...) {
    static __typeof__(&syscall) cached;
    if (!cached) {
        REAL(syscall);
        cached = real;
    }
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    struct timespec until;
    const struct timespec *given = (const struct timespec *)a[3];
    if (number == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && given) {
        until = *given;
        until.tv_sec -= shift_of(a[1] & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC);
        a[3] = (long)&until;
    }
    return cached(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
