/*
 * Records what a process does to the files below one directory, so that a test can tell what a
 * power cut would leave of them. Preloaded (LD_PRELOAD) into `livebridge`.
 *
 * Every call that changes the directory, every call that makes a change durable, and every HTTP
 * response 200 becomes one record of the trace, in the one order in which they happened: a call and
 * its record are made under a lock. Calls go to the kernel by syscall(), not to the next library.
 *
 * POWER_DIR      the directory
 * POWER_TRACE    the file that records are appended to
 * POWER_LOCK     a file that is locked (flock) during each record: while the test holds the lock, it can
 *                kill the process, and the trace and the directory agree
 * POWER_SWALLOW  "fdatasync", or "files" or "directories": that call, or every sync of those, does
 *                nothing and is not recorded, which is a bug that the test must find
 * POWER_KILL_AT  the process kills itself right after this many records
 * POWER_GATE     a TCP port of 127.0.0.1 where the test is asked before a segment is removed
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "offsets are passed to syscall() as they are");

/* Keep in step with trace.rs. */
enum kind {
    START = 1, CREATE, MKDIR, WRITE, SIZE, RENAME, UNLINK, RMDIR, SYNC, FLUSH_RANGE, RESPONSE,
    UNMODELLED
};

struct header {
    uint32_t magic, kind, pid, length;
    uint64_t a, b;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1, lock_fd = -1, gate = -1;
static int swallow_fdatasync, swallow_files, swallow_directories;
static uint64_t kill_at, records;
static dev_t device;
/* Inodes below the directory, itself included. There are few at a time. */
static ino_t known[65536];
static size_t known_count;

static void die(const char *what) {
    dprintf(2, "shim: %s: %s\n", what, strerror(errno));
    abort();
}

/* ---- the set of inodes ---- */

static int is_known(ino_t inode) {
    for (size_t i = known_count; i-- > 0;)
        if (known[i] == inode) return 1;
    return 0;
}

static void learn(ino_t inode) {
    if (is_known(inode)) return;
    if (known_count == sizeof known / sizeof *known) die("too many files");
    known[known_count++] = inode;
}

static void forget(ino_t inode) {
    for (size_t i = 0; i < known_count; i++)
        if (known[i] == inode) { known[i] = known[--known_count]; return; }
}

static void learn_tree(const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0) die(path);
    learn(st.st_ino);
    if (!S_ISDIR(st.st_mode)) return;
    DIR *dir = opendir(path);
    if (dir == NULL) die(path);
    struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        char child[4096];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
        learn_tree(child);
    }
    closedir(dir);
}

/* ---- the trace ---- */

static void record_vector(enum kind kind, uint64_t a, uint64_t b, const struct iovec *data,
                          int count, size_t length) {
    struct header header = {0x52575045, kind, (uint32_t)getpid(), (uint32_t)length, a, b};
    char joined[4096];
    char *buffer = sizeof header + length <= sizeof joined ? joined : malloc(sizeof header + length);
    if (buffer == NULL) die("memory");
    memcpy(buffer, &header, sizeof header);
    size_t at = sizeof header, end = sizeof header + length;
    for (int i = 0; i < count && at < end; i++) {
        size_t part = data[i].iov_len < end - at ? data[i].iov_len : end - at;
        memcpy(buffer + at, data[i].iov_base, part);
        at += part;
    }
    if (syscall(SYS_write, trace, buffer, end) != (long)end) die("trace");
    if (buffer != joined) free(buffer);
    if (kind != RESPONSE && ++records == kill_at) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

static void record(enum kind kind, uint64_t a, uint64_t b, const void *data, size_t length) {
    struct iovec vector = {(void *)data, length};
    record_vector(kind, a, b, &vector, 1, length);
}

static int begin(void) {
    pthread_mutex_lock(&lock);
    if (lock_fd >= 0 && flock(lock_fd, LOCK_EX) != 0) die("lock");
    return 0;
}

static void end(void) {
    int saved = errno;
    if (lock_fd >= 0) flock(lock_fd, LOCK_UN);
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void unmodelled(const char *call) { record(UNMODELLED, 0, 0, call, strlen(call)); }

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("POWER_DIR"), *path = getenv("POWER_TRACE");
    if (dir == NULL || path == NULL) return;
    const char *swallow = getenv("POWER_SWALLOW"), *at = getenv("POWER_KILL_AT");
    const char *lock_path = getenv("POWER_LOCK"), *port = getenv("POWER_GATE");
    swallow_fdatasync = swallow != NULL && strcmp(swallow, "fdatasync") == 0;
    swallow_files = swallow != NULL && strcmp(swallow, "files") == 0;
    swallow_directories = swallow != NULL && strcmp(swallow, "directories") == 0;
    if (at != NULL) kill_at = strtoull(at, NULL, 10);
    struct stat st;
    if (stat(dir, &st) != 0) die(dir);
    device = st.st_dev;
    learn_tree(dir);
    if (lock_path != NULL) {
        lock_fd = (int)syscall(SYS_openat, AT_FDCWD, lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (lock_fd < 0) die(lock_path);
    }
    if (port != NULL) {
        struct sockaddr_in to = {.sin_family = AF_INET,
                                 .sin_port = htons((uint16_t)atoi(port)),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        gate = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (gate < 0 || connect(gate, (struct sockaddr *)&to, sizeof to) != 0) die("gate");
    }
    int opened = (int)syscall(SYS_openat, AT_FDCWD, path,
                              O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (opened < 0) die(path);
    begin();
    trace = opened;
    record(START, st.st_ino, 0, "", 0);
    end();
}

/* ---- identifying files ---- */

/* The parent directory of `path`, if it is a recorded one, and the entry's name. */
static int our_parent(int at, const char *path, ino_t *parent, const char **name) {
    char directory[4096];
    if (trace < 0 || path == NULL || strlen(path) >= sizeof directory) return 0;
    strcpy(directory, path);
    size_t length = strlen(directory);
    while (length > 1 && directory[length - 1] == '/') directory[--length] = 0;
    char *slash = strrchr(directory, '/');
    static __thread char last[256];
    snprintf(last, sizeof last, "%s", slash == NULL ? directory : slash + 1);
    if (slash == NULL) strcpy(directory, ".");
    else if (slash == directory) directory[1] = 0;
    else *slash = 0;
    struct stat st;
    int saved = errno;
    int found = fstatat(at, directory, &st, 0) == 0 && st.st_dev == device && is_known(st.st_ino);
    errno = saved;
    *parent = st.st_ino;
    *name = last;
    return found;
}

/* The file behind `fd`, if it is recorded. */
static int our_file(int fd, struct stat *st) {
    int saved = errno;
    int ours = trace >= 0 && fstat(fd, st) == 0 && st->st_dev == device &&
               (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode));
    errno = saved;
    return ours;
}

/* ---- names ---- */

static int traced_open(int at, const char *path, int flags, mode_t mode) {
    ino_t parent;
    const char *name;
    if ((flags & O_TMPFILE) == O_TMPFILE || !(flags & (O_CREAT | O_TRUNC)) || trace < 0)
        return (int)syscall(SYS_openat, at, path, flags, mode);
    begin();
    struct stat before, after;
    int ours = our_parent(at, path, &parent, &name);
    int existed = ours && fstatat(at, path, &before, AT_SYMLINK_NOFOLLOW) == 0;
    int fd = (int)syscall(SYS_openat, at, path, flags, mode);
    if (ours && fd >= 0 && fstat(fd, &after) == 0) {
        if (!existed) {
            learn(after.st_ino);
            record(CREATE, parent, after.st_ino, name, strlen(name));
        } else if ((flags & O_TRUNC) && before.st_size > 0) {
            record(SIZE, after.st_ino, 0, "", 0);
        }
    }
    end();
    return fd;
}

#define OPEN_MODE(flags)                                          \
    mode_t mode = 0;                                              \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                        \
        va_list list;                                             \
        va_start(list, flags);                                    \
        mode = va_arg(list, mode_t);                              \
        va_end(list);                                             \
    }

int open(const char *path, int flags, ...) {
    OPEN_MODE(flags)
    return traced_open(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    OPEN_MODE(flags)
    return traced_open(AT_FDCWD, path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    OPEN_MODE(flags)
    return traced_open(at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    OPEN_MODE(flags)
    return traced_open(at, path, flags, mode);
}
int creat(const char *path, mode_t mode) {
    return traced_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int mkdirat(int at, const char *path, mode_t mode) {
    ino_t parent;
    const char *name;
    struct stat st;
    begin();
    int ours = our_parent(at, path, &parent, &name);
    int result = (int)syscall(SYS_mkdirat, at, path, mode);
    if (ours && result == 0 && fstatat(at, path, &st, 0) == 0) {
        learn(st.st_ino);
        record(MKDIR, parent, st.st_ino, name, strlen(name));
    }
    end();
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* Asks whether a segment may be removed, with the position of its removal in the trace. */
static void ask(const char *name) {
    size_t length = strlen(name);
    int removal = strcmp(name, "db") == 0 || (length > 5 && strcmp(name + length - 5, ".gone") == 0);
    if (gate < 0 || !removal) return;
    uint64_t place = (uint64_t)lseek(trace, 0, SEEK_END);
    char yes;
    if (syscall(SYS_write, gate, &place, sizeof place) != sizeof place ||
        syscall(SYS_read, gate, &yes, 1) != 1)
        die("gate");
}

int unlinkat(int at, const char *path, int flags) {
    ino_t parent;
    const char *name;
    struct stat st;
    begin();
    int ours = our_parent(at, path, &parent, &name) &&
               fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
    if (ours) ask(name);
    int result = (int)syscall(SYS_unlinkat, at, path, flags);
    if (ours && result == 0) {
        if (st.st_nlink <= 1 || S_ISDIR(st.st_mode)) forget(st.st_ino);
        record(S_ISDIR(st.st_mode) ? RMDIR : UNLINK, parent, st.st_ino, name, strlen(name));
    }
    end();
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    ino_t from_parent, to_parent;
    const char *name;
    char names[520];
    begin();
    int ours_from = our_parent(from_at, from, &from_parent, &name);
    size_t length = ours_from ? (size_t)snprintf(names, 256, "%s", name) + 1 : 0;
    int ours_to = our_parent(to_at, to, &to_parent, &name);
    if (ours_to) length += (size_t)snprintf(names + length, 256, "%s", name);
    if (ours_from && ours_to) ask(name);
    int result = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (result == 0 && ours_from && ours_to && flags == 0)
        record(RENAME, from_parent, to_parent, names, length);
    else if (result == 0 && (ours_from || ours_to))
        unmodelled("rename");
    end();
    return result;
}
int renameat(int from_at, const char *from, int to_at, const char *to) {
    return renameat2(from_at, from, to_at, to, 0);
}
int rename(const char *from, const char *to) {
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    ino_t parent;
    const char *name;
    begin();
    int ours = our_parent(to_at, to, &parent, &name);
    int result = (int)syscall(SYS_linkat, from_at, from, to_at, to, flags);
    if (ours && result == 0) unmodelled("link");
    end();
    return result;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
int symlinkat(const char *target, int at, const char *path) {
    ino_t parent;
    const char *name;
    begin();
    int ours = our_parent(at, path, &parent, &name);
    int result = (int)syscall(SYS_symlinkat, target, at, path);
    if (ours && result == 0) unmodelled("symlink");
    end();
    return result;
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

/* ---- contents ---- */

/* A call that writes `vector` to the file `fd` at `offset`, or at the file position if that is -1. */
static ssize_t traced_write(int fd, const struct iovec *vector, int count, off_t offset) {
    struct stat st;
    if (!our_file(fd, &st) || !S_ISREG(st.st_mode))
        return offset < 0 ? syscall(SYS_writev, fd, vector, count)
                          : syscall(SYS_pwritev, fd, vector, count, offset, 0L);
    begin();
    off_t at = offset;
    if (at < 0) {
        int flags = fcntl(fd, F_GETFL);
        at = (flags & O_APPEND) && fstat(fd, &st) == 0 ? st.st_size : lseek(fd, 0, SEEK_CUR);
    }
    ssize_t written = offset < 0 ? syscall(SYS_writev, fd, vector, count)
                                 : syscall(SYS_pwritev, fd, vector, count, offset, 0L);
    if (written > 0 && is_known(st.st_ino))
        record_vector(WRITE, st.st_ino, (uint64_t)at, vector, count, (size_t)written);
    end();
    return written;
}

static int is_response(const struct iovec *vector, size_t count) {
    static const char ok[] = "HTTP/1.1 200";
    return trace >= 0 && count > 0 && vector[0].iov_len >= sizeof ok - 1 &&
           memcmp(vector[0].iov_base, ok, sizeof ok - 1) == 0;
}

/* A response to the client of `fd`. The record is written first: data that is not durable at this
 * point is acknowledged too early. */
static ssize_t traced_response(int fd, const struct msghdr *message, int flags) {
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;
    begin();
    if (getpeername(fd, (struct sockaddr *)&peer, &length) == 0 && peer.ss_family == AF_INET)
        record(RESPONSE, ntohs(((struct sockaddr_in *)&peer)->sin_port), 0, "", 0);
    ssize_t sent = syscall(SYS_sendmsg, fd, message, flags);
    end();
    return sent;
}

static ssize_t any_write(int fd, const struct iovec *vector, int count) {
    struct stat st;
    if (is_response(vector, (size_t)count) && fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode)) {
        struct msghdr message = {.msg_iov = (struct iovec *)vector, .msg_iovlen = (size_t)count};
        return traced_response(fd, &message, 0);
    }
    return traced_write(fd, vector, count, -1);
}

ssize_t write(int fd, const void *data, size_t length) {
    struct iovec vector = {(void *)data, length};
    if (trace < 0) return syscall(SYS_write, fd, data, length);
    return any_write(fd, &vector, 1);
}
ssize_t writev(int fd, const struct iovec *vector, int count) {
    return any_write(fd, vector, count);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    struct iovec vector = {(void *)data, length};
    return traced_write(fd, &vector, 1, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) {
    return pwrite(fd, data, length, offset);
}
ssize_t pwritev(int fd, const struct iovec *vector, int count, off_t offset) {
    return traced_write(fd, vector, count, offset);
}
ssize_t pwritev64(int fd, const struct iovec *vector, int count, off_t offset) {
    return traced_write(fd, vector, count, offset);
}
ssize_t pwritev2(int fd, const struct iovec *vector, int count, off_t offset, int flags) {
    (void)flags; /* hints, and O_APPEND or O_DSYNC for one call: less durable, so no false safety */
    return traced_write(fd, vector, count, offset);
}
ssize_t pwritev64v2(int fd, const struct iovec *vector, int count, off_t offset, int flags) {
    return pwritev2(fd, vector, count, offset, flags);
}
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (is_response(message->msg_iov, message->msg_iovlen)) return traced_response(fd, message, flags);
    return syscall(SYS_sendmsg, fd, message, flags);
}
ssize_t sendto(int fd, const void *data, size_t length, int flags, const struct sockaddr *to,
               socklen_t to_length) {
    struct iovec vector = {(void *)data, length};
    if (to == NULL && is_response(&vector, 1)) {
        struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
        return traced_response(fd, &message, flags);
    }
    return syscall(SYS_sendto, fd, data, length, flags, to, to_length);
}
ssize_t send(int fd, const void *data, size_t length, int flags) {
    return sendto(fd, data, length, flags, NULL, 0);
}

int ftruncate(int fd, off_t size) {
    struct stat st;
    begin();
    int result = (int)syscall(SYS_ftruncate, fd, size);
    if (result == 0 && our_file(fd, &st) && is_known(st.st_ino))
        record(SIZE, st.st_ino, (uint64_t)size, "", 0);
    end();
    return result;
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int truncate(const char *path, off_t size) {
    struct stat st;
    begin();
    int result = (int)syscall(SYS_truncate, path, size);
    if (result == 0 && trace >= 0 && stat(path, &st) == 0 && st.st_dev == device &&
        is_known(st.st_ino))
        record(SIZE, st.st_ino, (uint64_t)size, "", 0);
    end();
    return result;
}
int truncate64(const char *path, off_t size) { return truncate(path, size); }
int fallocate(int fd, int mode, off_t offset, off_t length) {
    struct stat st;
    begin();
    int result = (int)syscall(SYS_fallocate, fd, mode, offset, length);
    if (result == 0 && our_file(fd, &st) && is_known(st.st_ino)) {
        if (mode == 0) record(SIZE, st.st_ino, (uint64_t)st.st_size, "", 0);
        else if (mode != FALLOC_FL_KEEP_SIZE) unmodelled("fallocate");
    }
    end();
    return result;
}
int fallocate64(int fd, int mode, off_t offset, off_t length) {
    return fallocate(fd, mode, offset, length);
}
int posix_fallocate(int fd, off_t offset, off_t length) {
    return fallocate(fd, 0, offset, length) == 0 ? 0 : errno;
}
int posix_fallocate64(int fd, off_t offset, off_t length) {
    return posix_fallocate(fd, offset, length);
}

/* ---- durability ---- */

/* No real sync is made: the model determines the effect of a sync, and the test need not wait for
 * the disk. */
static int traced_sync(int fd, long call) {
    struct stat st;
    if (!our_file(fd, &st)) return (int)syscall(call, fd);
    if (S_ISDIR(st.st_mode) ? swallow_directories : swallow_files) return 0;
    if (call == SYS_fdatasync && swallow_fdatasync) return 0;
    begin();
    if (is_known(st.st_ino)) record(SYNC, st.st_ino, 0, "", 0);
    end();
    return 0;
}
int fsync(int fd) { return traced_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return traced_sync(fd, SYS_fdatasync); }
int sync_file_range(int fd, off_t offset, off_t length, unsigned flags) {
    struct stat st;
    if (!our_file(fd, &st))
        return (int)syscall(SYS_sync_file_range, fd, offset, length, flags);
    begin();
    if (is_known(st.st_ino)) record(FLUSH_RANGE, st.st_ino, 0, "", 0);
    end();
    return 0;
}

/* Calls that the model does not support: on a recorded file, they end the test. */
static void must_not_be_ours(int fd, const char *call) {
    struct stat st;
    begin();
    if (our_file(fd, &st) && is_known(st.st_ino)) unmodelled(call);
    end();
}
int syncfs(int fd) {
    must_not_be_ours(fd, "syncfs");
    return (int)syscall(SYS_syncfs, fd);
}
void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && trace >= 0)
        must_not_be_ours(fd, "mmap");
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return mmap(address, length, protection, flags, fd, offset);
}
ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t length,
                        unsigned flags) {
    must_not_be_ours(out, "copy_file_range");
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, length, flags);
}
ssize_t sendfile(int out, int in, off_t *offset, size_t length) {
    must_not_be_ours(out, "sendfile");
    return syscall(SYS_sendfile, out, in, offset, length);
}
ssize_t sendfile64(int out, int in, off_t *offset, size_t length) {
    return sendfile(out, in, offset, length);
}
