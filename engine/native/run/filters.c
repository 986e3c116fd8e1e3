//go:build cgo && seccomp

// See filters.go. Everything here runs in one thread at a time: an init makes one filter, and so does a compiler.

#include "filters.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// What the linker leaves of libseccomp's functions under their own names (--wrap).
scmp_filter_ctx __real_seccomp_init(uint32_t action);
int __real_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch);
int __real_seccomp_arch_remove(scmp_filter_ctx ctx, uint32_t arch);
int __real_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
int __real_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int count, const struct scmp_arg_cmp *args);
int __real_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd);

// A file is this, the calls, the program.
struct header {
	char magic[16];
	uint32_t calls, program;
};
static const char magic[16] = "crishim filter1";

// A call is recorded as this, and its arguments' conditions.
struct call {
	uint32_t kind, a, b, count;
};
enum { INIT = 1, ARCH_ADD, ARCH_REMOVE, ATTRIBUTE, RULE };

_Static_assert(sizeof(struct scmp_arg_cmp) == 24, "conditions are compared byte by byte: there must be no padding");

enum { MAX_FILTERS = 8, MAX_FILE = 1 << 20 };

static struct header *filters[MAX_FILTERS];
static int filters_count;

static struct {
	scmp_filter_ctx ctx; // whose calls these are
	char *data;
	size_t size, room;
	bool failed;
} calls;

static int capture_fd = -1;
static bool captured;

// read_filter reads one file whole; what is no filter is left out.
static void read_filter(const char *path)
{
	struct stat st;
	struct header *f = NULL;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == 0 && st.st_size > (off_t)sizeof(*f) && st.st_size <= MAX_FILE) {
		f = malloc(st.st_size);
		if (f && (read(fd, f, st.st_size) != st.st_size || memcmp(f->magic, magic, sizeof(magic)) != 0 ||
			  (uint64_t)sizeof(*f) + f->calls + f->program != (uint64_t)st.st_size || f->program == 0 || f->program % 8 != 0)) {
			free(f);
			f = NULL;
		}
	}
	close(fd);
	if (f)
		filters[filters_count++] = f;
}

// Before libcontainer's own constructor, which enters the container's namespaces: the files are the host's.
__attribute__((constructor(101))) static void read_filters(int argc, char **argv)
{
	char *names, *name, *rest;

	if (argc != 2 || strcmp(argv[1], "init") != 0)
		return;
	names = strchr(argv[0], FILTER_SEPARATOR[0]);
	if (!names || !(names = strdup(names + 1)))
		return;
	for (name = strtok_r(names, FILTER_SEPARATOR, &rest); name && filters_count < MAX_FILTERS; name = strtok_r(NULL, FILTER_SEPARATOR, &rest))
		read_filter(name);
	free(names);
}

static void record(uint32_t kind, uint32_t a, uint32_t b, uint32_t count, const struct scmp_arg_cmp *args)
{
	struct call c = {kind, a, b, count};
	size_t need = sizeof(c) + count * sizeof(*args);

	if (calls.failed)
		return;
	if (calls.size + need > calls.room) {
		size_t room = 2 * (calls.size + need) + 4096;
		char *data = realloc(calls.data, room);
		if (!data) {
			calls.failed = true;
			return;
		}
		calls.data = data;
		calls.room = room;
	}
	memcpy(calls.data + calls.size, &c, sizeof(c));
	if (count)
		memcpy(calls.data + calls.size + sizeof(c), args, count * sizeof(*args));
	calls.size += need;
}

scmp_filter_ctx __wrap_seccomp_init(uint32_t action)
{
	scmp_filter_ctx ctx = __real_seccomp_init(action);

	calls.ctx = ctx;
	calls.size = 0;
	calls.failed = false;
	record(INIT, action, 0, 0, NULL);
	return ctx;
}

int __wrap_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch)
{
	if (ctx == calls.ctx)
		record(ARCH_ADD, arch, 0, 0, NULL);
	return __real_seccomp_arch_add(ctx, arch);
}

int __wrap_seccomp_arch_remove(scmp_filter_ctx ctx, uint32_t arch)
{
	if (ctx == calls.ctx)
		record(ARCH_REMOVE, arch, 0, 0, NULL);
	return __real_seccomp_arch_remove(ctx, arch);
}

int __wrap_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
	if (ctx == calls.ctx)
		record(ATTRIBUTE, attr, value, 0, NULL);
	return __real_seccomp_attr_set(ctx, attr, value);
}

// A rule costs libseccomp most. Where there are compiled filters it is only noted, until the export finds whether it is needed.
int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int count, const struct scmp_arg_cmp *args)
{
	if (ctx != calls.ctx)
		return __real_seccomp_rule_add_array(ctx, action, call, count, args);
	record(RULE, action, (uint32_t)call, count, args);
	if (filters_count)
		return calls.failed ? -ENOMEM : 0;
	return __real_seccomp_rule_add_array(ctx, action, call, count, args);
}

static int write_all(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t n = write(fd, data, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		data += n;
		size -= n;
	}
	return 0;
}

// add_rules makes up for the rules that were only noted.
static int add_rules(scmp_filter_ctx ctx)
{
	for (size_t at = 0; at < calls.size;) {
		struct call c;
		const struct scmp_arg_cmp *args;

		memcpy(&c, calls.data + at, sizeof(c));
		args = (const struct scmp_arg_cmp *)(calls.data + at + sizeof(c));
		at += sizeof(c) + c.count * sizeof(*args);
		if (c.kind == RULE) {
			int rc = __real_seccomp_rule_add_array(ctx, c.a, (int)c.b, c.count, args);
			if (rc < 0)
				return rc;
		}
	}
	return 0;
}

// write_capture writes the calls, and the program that libseccomp makes of them.
static int write_capture(const scmp_filter_ctx ctx)
{
	struct header h = {.calls = calls.size};
	off_t end;
	int rc;

	memcpy(h.magic, magic, sizeof(magic));
	if (calls.failed)
		return -ENOMEM;
	if ((rc = write_all(capture_fd, (char *)&h, sizeof(h))) < 0 || (rc = write_all(capture_fd, calls.data, calls.size)) < 0 ||
	    (rc = __real_seccomp_export_bpf(ctx, capture_fd)) < 0)
		return rc;
	if ((end = lseek(capture_fd, 0, SEEK_END)) < 0)
		return -errno;
	h.program = end - sizeof(h) - calls.size;
	if (pwrite(capture_fd, &h, sizeof(h), 0) != sizeof(h))
		return -EIO;
	captured = true;
	return -ECANCELED;
}

int __wrap_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd)
{
	if (ctx != calls.ctx)
		return __real_seccomp_export_bpf(ctx, fd);
	if (capture_fd >= 0)
		return write_capture(ctx);
	if (filters_count) {
		if (calls.failed)
			return -ENOMEM;
		for (int i = 0; i < filters_count; i++) {
			const struct header *f = filters[i];
			const char *data = (const char *)(f + 1);
			if (f->calls == calls.size && memcmp(data, calls.data, calls.size) == 0)
				return write_all(fd, data + f->calls, f->program);
		}
		int rc = add_rules(ctx);
		if (rc < 0)
			return rc;
	}
	return __real_seccomp_export_bpf(ctx, fd);
}

void filters_capture(int fd) { capture_fd = fd; }

int filters_captured(void) { return captured; }
