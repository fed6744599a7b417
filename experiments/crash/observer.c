// Reports what a process does to files, and lets one of these calls fail: a library for LD_PRELOAD.
//
//   gcc -shared -fPIC -O2 -o observer.so observer.c -ldl
//
// CRASH_ROOTS   folders, separated by ':'; what happens elsewhere is left alone
// CRASH_FD      descriptor of a pipe to which a line is written for each call:
//               "<kind> <b|e> <errno> <nanoseconds> <path>", b: about to begin (renames), e: done
// CRASH_FAIL    "<kind> <n> <errno> <text>": of the calls of that kind on paths that contain the
//               text, the n-th, counted from 1, fails with errno; reported as "<kind> f ..."

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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char roots[8][PATH_MAX];
static int root_count, report_fd = -1, fail_at, fail_errno;
static char fail_kind[16], fail_text[256];
static atomic_int matched;

__attribute__((constructor)) static void begin(void) {
  const char *text = getenv("CRASH_ROOTS");
  while (text && *text && root_count < 8) {
    size_t length = strcspn(text, ":");
    snprintf(roots[root_count++], PATH_MAX, "%.*s", (int)length, text);
    text += length + (text[length] == ':');
  }
  if (getenv("CRASH_FD")) report_fd = atoi(getenv("CRASH_FD"));
  if (getenv("CRASH_FAIL"))
    sscanf(getenv("CRASH_FAIL"), "%15s %d %d %255s", fail_kind, &fail_at, &fail_errno, fail_text);
}

static int watched(const char *path) {
  for (int i = 0; i < root_count; i++) {
    size_t length = strlen(roots[i]);
    if (!strncmp(path, roots[i], length) && (path[length] == '/' || !path[length])) return 1;
  }
  return 0;
}

static void report(const char *kind, char what, int error, const char *path) {
  if (report_fd < 0) return;
  char line[PATH_MAX + 64];
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  int length = snprintf(line, sizeof line, "%s %c %d %lld %s\n", kind, what, error,
                        now.tv_sec * 1000000000LL + now.tv_nsec, path);
  syscall(SYS_write, report_fd, line, length);
}

// Whether this call is the one to fail.
static int fails(const char *kind, const char *path) {
  if (!fail_at || strcmp(kind, fail_kind) || !strstr(path, fail_text) ||
      atomic_fetch_add(&matched, 1) + 1 != fail_at) return 0;
  report(kind, 'f', fail_errno, path);
  return 1;
}

// The absolute path of `path` seen from the folder `fd`; 0 where it is none of ours.
static int absolute(int fd, const char *path, char *into) {
  if (!path) return 0;
  if (path[0] == '/') {
    snprintf(into, PATH_MAX, "%s", path);
  } else {
    char link[64] = "/proc/self/cwd", folder[PATH_MAX];
    if (fd != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, folder, sizeof folder - 1);
    if (length < 0) return 0;
    folder[length] = 0;
    snprintf(into, PATH_MAX, "%.2000s/%.2000s", folder, path);
  }
  return watched(into);
}

static int opened(int fd, char *into) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, into, PATH_MAX - 1);
  if (length < 0) return 0;
  into[length] = 0;
  return watched(into);
}

// The library's own function of this name.
#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

// Calls `real`, which is of `kind` and acts on `path` where `ours`, unless it is to fail.
#define ACT(type, kind, ours, path, before, call) \
  if (!(ours)) return call; \
  if (before) report(kind, 'b', 0, path); \
  if (fails(kind, path)) { errno = fail_errno; return -1; } \
  type result = call; \
  int error = errno; \
  report(kind, 'e', result < 0 ? error : 0, path); \
  errno = error; \
  return result

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
    char full[PATH_MAX]; \
    int ours = absolute(AT_FDCWD, path, full); \
    const char *kind = flags & O_CREAT ? "open" : flags & O_DIRECTORY ? "list" : "read"; \
    ACT(int, kind, ours, full, 0, real(path, flags, mode)); }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int fd, const char *path, int flags, ...) { \
    REAL(int, #name, int, const char *, int, ...); \
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
    char full[PATH_MAX]; \
    int ours = absolute(fd, path, full); \
    const char *kind = flags & O_CREAT ? "open" : flags & O_DIRECTORY ? "list" : "read"; \
    ACT(int, kind, ours, full, 0, real(fd, path, flags, mode)); }
OPENAT(openat)
OPENAT(openat64)

#define PATH_CALL(name, kind, parameters, types, call) \
  int name parameters { \
    REAL(int, #name, types); \
    char full[PATH_MAX]; \
    int ours = absolute(AT_FDCWD, path, full); \
    ACT(int, kind, ours, full, 0, call); }
#define T(...) __VA_ARGS__
PATH_CALL(creat, "open", (const char *path, mode_t mode), T(const char *, mode_t), real(path, mode))
PATH_CALL(mkdir, "mkdir", (const char *path, mode_t mode), T(const char *, mode_t),
          real(path, mode))
PATH_CALL(unlink, "remove", (const char *path), T(const char *), real(path))
PATH_CALL(rmdir, "remove", (const char *path), T(const char *), real(path))

int mkdirat(int fd, const char *path, mode_t mode) {
  REAL(int, "mkdirat", int, const char *, mode_t);
  char full[PATH_MAX];
  int ours = absolute(fd, path, full);
  ACT(int, "mkdir", ours, full, 0, real(fd, path, mode));
}

int unlinkat(int fd, const char *path, int flags) {
  REAL(int, "unlinkat", int, const char *, int);
  char full[PATH_MAX];
  int ours = absolute(fd, path, full);
  ACT(int, "remove", ours, full, 0, real(fd, path, flags));
}

// Python's os.utime.
int utimensat(int fd, const char *path, const struct timespec times[2], int flags) {
  REAL(int, "utimensat", int, const char *, const struct timespec[2], int);
  char full[PATH_MAX];
  int ours = absolute(fd, path, full);
  ACT(int, "touch", ours, full, 0, real(fd, path, times, flags));
}

// A rename is reported by where it comes from.
int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  char full[PATH_MAX];
  int ours = absolute(AT_FDCWD, from, full);
  ACT(int, "rename", ours, full, 1, real(from, to));
}

int renameat(int fd, const char *from, int to_fd, const char *to) {
  REAL(int, "renameat", int, const char *, int, const char *);
  char full[PATH_MAX];
  int ours = absolute(fd, from, full);
  ACT(int, "rename", ours, full, 1, real(fd, from, to_fd, to));
}

int renameat2(int fd, const char *from, int to_fd, const char *to, unsigned flags) {
  REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
  char full[PATH_MAX];
  int ours = absolute(fd, from, full);
  ACT(int, "rename", ours, full, 1, real(fd, from, to_fd, to, flags));
}

#define FD_CALL(type, name, kind, parameters, types, call) \
  type name parameters { \
    REAL(type, #name, types); \
    char full[PATH_MAX]; \
    int ours = opened(fd, full); \
    ACT(type, kind, ours, full, 0, call); }
FD_CALL(ssize_t, write, "write", (int fd, const void *data, size_t n), T(int, const void *, size_t),
        real(fd, data, n))
FD_CALL(ssize_t, pwrite, "write", (int fd, const void *data, size_t n, off_t at),
        T(int, const void *, size_t, off_t), real(fd, data, n, at))
FD_CALL(ssize_t, pwrite64, "write", (int fd, const void *data, size_t n, off64_t at),
        T(int, const void *, size_t, off64_t), real(fd, data, n, at))
FD_CALL(ssize_t, writev, "write", (int fd, const struct iovec *data, int n),
        T(int, const struct iovec *, int), real(fd, data, n))
FD_CALL(ssize_t, pwritev, "write", (int fd, const struct iovec *data, int n, off_t at),
        T(int, const struct iovec *, int, off_t), real(fd, data, n, at))
FD_CALL(ssize_t, pwritev64, "write", (int fd, const struct iovec *data, int n, off64_t at),
        T(int, const struct iovec *, int, off64_t), real(fd, data, n, at))
FD_CALL(int, fsync, "sync", (int fd), T(int), real(fd))
FD_CALL(int, fdatasync, "sync", (int fd), T(int), real(fd))
FD_CALL(int, ftruncate, "truncate", (int fd, off_t length), T(int, off_t), real(fd, length))
FD_CALL(int, ftruncate64, "truncate", (int fd, off64_t length), T(int, off64_t), real(fd, length))
