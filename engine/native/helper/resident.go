package helper

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// letGo gives back what reading the embedded helper made resident: as many clean pages of this program's file as the helper
// is large, which nobody reads again. Whatever else is let go with them comes back from the page cache when it is needed.
func letGo() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return // it is only memory
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line) // range, rights, offset, device, inode, path
		if len(fields) < 6 || fields[1] != "r--p" || fields[5] != program {
			continue
		}
		first, last, _ := strings.Cut(fields[0], "-")
		from, ferr := strconv.ParseUint(first, 16, 64)
		to, terr := strconv.ParseUint(last, 16, 64)
		if ferr == nil && terr == nil {
			// A private mapping that cannot be written to has nothing that is not in the file.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED)
		}
	}
}
