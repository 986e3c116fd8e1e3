package helper

import (
	"debug/elf"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// relocated says that read-only pages of this program are not as in its file: of one that is linked otherwise than ours is.
func relocated() bool {
	program, err := elf.Open("/proc/self/exe")
	if err != nil {
		return true
	}
	defer func() { _ = program.Close() }()
	return program.Type != elf.ET_EXEC || slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_GNU_RELRO })
}

// letGo gives back what reading the embedded helper made resident: as many clean pages of this program's file as the helper
// is large, which nobody reads again. Whatever else is let go with them comes back from the page cache when it is needed.
func letGo() {
	if relocated() {
		return
	}
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
