package host

import "golang.org/x/sys/unix"

// tryX32 calls getpid by its number of the x32 ABI, which most kernels are built or booted without.
func tryX32() bool {
	const x32 = 0x40000000
	_, _, errno := unix.RawSyscall(unix.SYS_GETPID|x32, 0, 0, 0)
	return errno == 0
}
