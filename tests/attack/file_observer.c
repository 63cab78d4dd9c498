/* Preloaded into a process, asks an observer before every operation that changes a file below one folder.
 *
 * Whoever writes - Python, torch, safetensors, TensorRT - calls the C library, and these functions stand before it. The observer
 * returns 0 to let the operation happen, or an errno with which it fails. Content that stdio buffers is flushed at each fwrite,
 * so that an operation that was seen has also happened. Reads are reported as well, for whoever wants to come in between.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

typedef int (*observer)(const char *operation, const char *path, const char *second, long long size);

static observer watching;
static char root[PATH_MAX];
static size_t root_length;
static __thread int inside;

/* Ask `callback` from now on about everything below `folder`, an absolute path without links; NULL ends it. */
void observe_files(const char *folder, observer callback) {
  strncpy(root, folder, sizeof root - 1);
  root_length = strlen(root);
  watching = callback;
}

static int below(const char *path) {
  return path && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static int ask(const char *operation, const char *path, const char *second, long long size) {
  if (!watching || inside || !(below(path) || below(second))) return 0;
  int before = errno;
  inside = 1;
  int refused = watching(operation, path, second ? second : "", size);
  inside = 0;
  errno = refused ? refused : before;
  return refused;
}

/* Where a descriptor leads; empty where it does not lead to a file. */
static const char *of(int descriptor, char *buffer) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, buffer, PATH_MAX - 1);
  buffer[length > 0 ? length : 0] = 0;
  return buffer;
}

/* An absolute path. */
static const char *at(int folder, const char *path, char *buffer) {
  if (!path || path[0] == '/' || !watching || inside) return path;
  char start[PATH_MAX];
  if (folder == AT_FDCWD) {
    if (!getcwd(start, sizeof start)) return path;
  } else {
    of(folder, start);
  }
  if (snprintf(buffer, PATH_MAX, "%s/%s", start, path) >= PATH_MAX) return path;
  return buffer;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ACTIVE (watching && !inside)

static int ask_open(int folder, const char *path, int flags) {
  if (!ACTIVE) return 0;
  char buffer[PATH_MAX];
  struct stat found;
  const char *whole = at(folder, path, buffer);
  int exists = whole && stat(whole, &found) == 0;
  if ((flags & O_CREAT) && !exists) return ask("create", whole, NULL, 0);
  if ((flags & O_TRUNC) && exists && found.st_size) return ask("truncate", whole, NULL, 0);
  if ((flags & O_ACCMODE) == O_RDONLY && exists) return ask("read", whole, NULL, 0);
  return 0;
}

#define OPEN(name)                                             \
  int name(const char *path, int flags, ...) {                 \
    REAL(name);                                                \
    va_list rest;                                              \
    va_start(rest, flags);                                     \
    mode_t mode = va_arg(rest, mode_t);                        \
    va_end(rest);                                              \
    return ask_open(AT_FDCWD, path, flags) ? -1 : real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                           \
  int name(int folder, const char *path, int flags, ...) {     \
    REAL(name);                                                \
    va_list rest;                                              \
    va_start(rest, flags);                                     \
    mode_t mode = va_arg(rest, mode_t);                        \
    va_end(rest);                                              \
    return ask_open(folder, path, flags) ? -1 : real(folder, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(name)                                            \
  int name(const char *path, mode_t mode) {                    \
    REAL(name);                                                \
    return ask_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC) ? -1 : real(path, mode); \
  }
CREAT(creat)
CREAT(creat64)

static int stdio_flags(const char *mode) {
  return mode[0] == 'w' ? O_CREAT | O_TRUNC | O_WRONLY : mode[0] == 'a' ? O_CREAT | O_WRONLY : strchr(mode, '+') ? O_RDWR : O_RDONLY;
}

#define FOPEN(name)                                            \
  FILE *name(const char *path, const char *mode) {             \
    REAL(name);                                                \
    return ask_open(AT_FDCWD, path, stdio_flags(mode)) ? NULL : real(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
  REAL(fwrite);
  if (!ACTIVE) return real(data, size, count, stream);
  char buffer[PATH_MAX];
  const char *path = of(fileno(stream), buffer);
  if (!below(path)) return real(data, size, count, stream);
  if (ask("write", path, NULL, (long long)(size * count))) return 0;
  size_t written = real(data, size, count, stream);
  return fflush(stream) ? 0 : written;
}

static int ask_write(int descriptor, long long size) {
  if (!ACTIVE || size == 0) return 0;
  char buffer[PATH_MAX];
  return ask("write", of(descriptor, buffer), NULL, size);
}

ssize_t write(int descriptor, const void *data, size_t size) {
  REAL(write);
  return ask_write(descriptor, size) ? -1 : real(descriptor, data, size);
}

#define PWRITE(name, offset)                                   \
  ssize_t name(int descriptor, const void *data, size_t size, offset place) { \
    REAL(name);                                                \
    return ask_write(descriptor, size) ? -1 : real(descriptor, data, size, place); \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static long long total(const struct iovec *parts, int count) {
  long long size = 0;
  for (int i = 0; i < count; i++) size += parts[i].iov_len;
  return size;
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
  REAL(writev);
  return ask_write(descriptor, total(parts, count)) ? -1 : real(descriptor, parts, count);
}

ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t place) {
  REAL(pwritev);
  return ask_write(descriptor, total(parts, count)) ? -1 : real(descriptor, parts, count, place);
}

/* What is left of the source: callers ask for more than there is. */
static long long left(int source, size_t size) {
  struct stat found;
  if (fstat(source, &found)) return size;
  off_t place = lseek(source, 0, SEEK_CUR);
  long long rest = found.st_size - (place > 0 ? place : 0);
  return rest < (long long)size ? rest : (long long)size;
}

#define SENDFILE(name, offset)                                 \
  ssize_t name(int to, int from, offset *place, size_t size) { \
    REAL(name);                                                \
    long long rest = left(from, size) - (place ? *place : 0);  \
    return rest > 0 && ask_write(to, rest) ? -1 : real(to, from, place, size); \
  }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *in, int to, off64_t *out, size_t size, unsigned flags) {
  REAL(copy_file_range);
  long long rest = left(from, size);
  return rest > 0 && ask_write(to, rest) ? -1 : real(from, in, to, out, size, flags);
}

static int ask_descriptor(const char *operation, int descriptor, long long size) {
  if (!ACTIVE) return 0;
  char buffer[PATH_MAX];
  return ask(operation, of(descriptor, buffer), NULL, size);
}

#define FTRUNCATE(name, offset)                                \
  int name(int descriptor, offset size) {                      \
    REAL(name);                                                \
    return ask_descriptor("resize", descriptor, size) ? -1 : real(descriptor, size); \
  }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

#define FALLOCATE(name, offset)                                \
  int name(int descriptor, offset place, offset size) {        \
    REAL(name);                                                \
    int refused = ask_descriptor("resize", descriptor, place + size); \
    return refused ? refused : real(descriptor, place, size);  \
  }
FALLOCATE(posix_fallocate, off_t)
FALLOCATE(posix_fallocate64, off64_t)

int fsync(int descriptor) {
  REAL(fsync);
  return ask_descriptor("sync", descriptor, 0) ? -1 : real(descriptor);
}

int fdatasync(int descriptor) {
  REAL(fdatasync);
  return ask_descriptor("sync", descriptor, 0) ? -1 : real(descriptor);
}

static int ask_one(const char *operation, int folder, const char *path) {
  if (!ACTIVE) return 0;
  char buffer[PATH_MAX];
  struct stat found;
  const char *whole = at(folder, path, buffer);
  int exists = whole && lstat(whole, &found) == 0;
  int makes = strcmp(operation, "mkdir") == 0;
  return exists == makes ? 0 : ask(operation, whole, NULL, 0); /* what fails anyway is no operation */
}

#define ONE(name, operation)                                   \
  int name(const char *path) {                                 \
    REAL(name);                                                \
    return ask_one(operation, AT_FDCWD, path) ? -1 : real(path); \
  }
ONE(unlink, "unlink")
ONE(rmdir, "rmdir")
ONE(remove, "unlink")

int unlinkat(int folder, const char *path, int flags) {
  REAL(unlinkat);
  return ask_one(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path) ? -1 : real(folder, path, flags);
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  return ask_one("mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
  REAL(mkdirat);
  return ask_one("mkdir", folder, path) ? -1 : real(folder, path, mode);
}

int chmod(const char *path, mode_t mode) {
  REAL(chmod);
  return ask_one("chmod", AT_FDCWD, path) ? -1 : real(path, mode);
}

int fchmod(int descriptor, mode_t mode) {
  REAL(fchmod);
  return ask_descriptor("chmod", descriptor, 0) ? -1 : real(descriptor, mode);
}

static int ask_two(const char *operation, int from, const char *old, int to, const char *new) {
  if (!ACTIVE) return 0;
  char first[PATH_MAX], second[PATH_MAX];
  return ask(operation, at(from, old, first), at(to, new, second), 0);
}

int rename(const char *old, const char *new) {
  REAL(rename);
  return ask_two("rename", AT_FDCWD, old, AT_FDCWD, new) ? -1 : real(old, new);
}

int renameat(int from, const char *old, int to, const char *new) {
  REAL(renameat);
  return ask_two("rename", from, old, to, new) ? -1 : real(from, old, to, new);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
  REAL(renameat2);
  return ask_two(flags & 2 ? "exchange" : "rename", from, old, to, new) ? -1 : real(from, old, to, new, flags);
}

int link(const char *old, const char *new) {
  REAL(link);
  return ask_two("link", AT_FDCWD, old, AT_FDCWD, new) ? -1 : real(old, new);
}

int linkat(int from, const char *old, int to, const char *new, int flags) {
  REAL(linkat);
  return ask_two("link", from, old, to, new) ? -1 : real(from, old, to, new, flags);
}

int symlink(const char *target, const char *path) {
  REAL(symlink);
  return ask_two("link", AT_FDCWD, target, AT_FDCWD, path) ? -1 : real(target, path);
}
