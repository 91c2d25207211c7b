// Preloaded into livebridge: makes the n-th call that changes something below a directory fail.
//
// FAIL_BELOW   the directory, absolute
// FAIL_COUNT   a file of 8 bytes that counts the calls; it outlives a kill
// FAIL_AT      the call that fails, from 1; 0 or absent: none, only count
// FAIL_ERRNO   the error number
// FAIL_FOR     how many calls fail from there on; 0: all of them, as on a permanently full disk
//
// And makes a range of one file unreadable:
// FAIL_READ    the file, absolute
// FAIL_FROM    where reading it fails, in bytes
// FAIL_LENGTH  for how many bytes; 0: opening it to read fails
// FAIL_WITH    the error number, EIO if absent
// FAIL_WHILE   only while this file exists, if given
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static const char *below;
static _Atomic unsigned long *count;
static unsigned long fail_at, fail_for;
static int fail_errno = EIO;
static const char *unreadable;
static unsigned long unreadable_from, unreadable_length;
static int unreadable_errno = EIO;
static const char *unreadable_while;

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static unsigned long number(const char *variable) {
    const char *text = getenv(variable);
    return text ? strtoul(text, NULL, 10) : 0;
}

__attribute__((constructor)) static void start(void) {
    unreadable = getenv("FAIL_READ");
    unreadable_from = number("FAIL_FROM");
    unreadable_length = number("FAIL_LENGTH");
    if (getenv("FAIL_WITH")) unreadable_errno = (int)number("FAIL_WITH");
    unreadable_while = getenv("FAIL_WHILE");
    const char *path = getenv("FAIL_COUNT");
    if (!path) return;
    __typeof__(&open) real = (__typeof__(&open))dlsym(RTLD_NEXT, "open");
    int fd = real(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *page = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) return;
    count = page;
    fail_at = number("FAIL_AT");
    fail_for = number("FAIL_FOR");
    if (getenv("FAIL_ERRNO")) fail_errno = (int)number("FAIL_ERRNO");
    below = getenv("FAIL_BELOW");
}

static int fails(const char *call, const char *path) {
    if (!below || !path || strncmp(path, below, strlen(below)) != 0) return 0;
    unsigned long nth = atomic_fetch_add(count, 1) + 1;
    if (!fail_at || nth < fail_at || (fail_for && nth >= fail_at + fail_for)) return 0;
    if (nth == fail_at) dprintf(2, "FAULT %s %s\n", call, path);
    errno = fail_errno;
    return 1;
}

static int fails_fd(const char *call, int fd) {
    if (!below) return 0;
    char link[40], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

static int is_now(void) {
    return !unreadable_while || access(unreadable_while, F_OK) == 0;
}

// How many bytes a read returns: all, those before the unreadable range, or none.
static size_t readable(int fd, size_t length, off64_t at) {
    if (!unreadable || !unreadable_length) return length;
    char link[40], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t found = readlink(link, path, sizeof path - 1);
    if (found < 0) return length;
    path[found] = 0;
    if (strcmp(path, unreadable) != 0 || !is_now()) return length;
    unsigned long from = at, to = at + length;
    unsigned long bad = unreadable_from, end = unreadable_from + unreadable_length;
    if (to <= bad || from >= end) return length;
    return from < bad ? bad - from : 0;
}

ssize_t pread64(int fd, void *bytes, size_t length, off64_t at) {
    REAL(pread64);
    size_t wanted = readable(fd, length, at);
    if (length && !wanted) return errno = unreadable_errno, -1;
    return real(fd, bytes, wanted, at);
}

ssize_t pread(int fd, void *bytes, size_t length, off_t at) {
    return pread64(fd, bytes, length, at);
}

ssize_t read(int fd, void *bytes, size_t length) {
    REAL(read);
    size_t wanted = unreadable ? readable(fd, length, lseek64(fd, 0, SEEK_CUR)) : length;
    if (length && !wanted) return errno = unreadable_errno, -1;
    return real(fd, bytes, wanted);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    return fails_fd("write", fd) ? -1 : real(fd, bytes, length);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    REAL(pwrite);
    return fails_fd("pwrite", fd) ? -1 : real(fd, bytes, length, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    REAL(pwrite64);
    return fails_fd("pwrite", fd) ? -1 : real(fd, bytes, length, at);
}

int fsync(int fd) {
    REAL(fsync);
    return fails_fd("fsync", fd) ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return fails_fd("fdatasync", fd) ? -1 : real(fd);
}

int sync_file_range(int fd, off64_t from, off64_t length, unsigned int flags) {
    REAL(sync_file_range);
    return fails_fd("sync_file_range", fd) ? -1 : real(fd, from, length, flags);
}

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    return fails_fd("ftruncate", fd) ? -1 : real(fd, length);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails("mkdir", path) ? -1 : real(path, mode);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return fails("rename", to) ? -1 : real(from, to);
}

#define OPEN(name)                                                         \
    int name(const char *path, int flags, ...) {                           \
        REAL(name);                                                        \
        mode_t mode = 0;                                                   \
        if (flags & O_CREAT) {                                             \
            va_list rest;                                                  \
            va_start(rest, flags);                                         \
            mode = va_arg(rest, mode_t);                                   \
            va_end(rest);                                                  \
            if (fails("open", path)) return -1;                            \
        }                                                                  \
        if (unreadable && !unreadable_length && !strcmp(path, unreadable)  \
            && is_now())                                                   \
            return errno = unreadable_errno, -1;                           \
        return real(path, flags, mode);                                    \
    }
OPEN(open)
OPEN(open64)
