// See filters.go.

#include <seccomp.h>

// FILTER_SEPARATOR parts the names of files in an init's first argument.
#define FILTER_SEPARATOR "\n"

// filters_capture makes the next export end in ECANCELED, with the filter in fd, a regular file that is empty.
void filters_capture(int fd);

// filters_captured says whether it did.
int filters_captured(void);
