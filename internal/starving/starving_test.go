package starving

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnlyWhatIsMeantIsStarved(t *testing.T) {
	open := func(flags int) error {
		fd, err := unix.Open("/", flags|unix.O_CLOEXEC, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	}
	Opening(t, unix.O_NOFOLLOW, unix.O_DIRECTORY, func() {
		for flags, want := range map[int]error{
			unix.O_NOFOLLOW: unix.EMFILE, unix.O_NOFOLLOW | unix.O_NONBLOCK: unix.EMFILE, unix.O_DIRECTORY: nil, unix.O_NOFOLLOW | unix.O_DIRECTORY: nil, 0: nil,
		} {
			if err := open(flags); !errors.Is(err, want) {
				t.Errorf("flags %#x: %v, want %v", flags, err, want)
			}
		}
		beside := make(chan error)
		go func() { beside <- open(unix.O_NOFOLLOW) }()
		if err := <-beside; err != nil {
			t.Errorf("another goroutine: %v", err)
		}
	})
	if err := open(unix.O_NOFOLLOW); err != nil {
		t.Errorf("after it: %v", err)
	}
	given := Process(t)
	_, err := os.ReadFile("/proc/self/stat")
	given()
	if !errors.Is(err, unix.EMFILE) {
		t.Error(err)
	}
	if _, err := os.ReadFile("/proc/self/stat"); err != nil {
		t.Errorf("after it: %v", err)
	}
}
