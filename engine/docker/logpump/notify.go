package logpump

import (
	"encoding/binary"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// notifier wakes pumps when something in their folder changes: one inotify instance for all of them, one watch a folder.
type notifier struct {
	done chan struct{}

	mu      sync.Mutex
	fd      int
	file    *os.File // of fd; nil where inotify cannot be had, and everyone polls, and after close
	watches map[int]map[chan<- struct{}]struct{}
}

// settleTime gathers events of busy containers: at most so many wake-ups a second each.
const settleTime = 5 * time.Millisecond

func newNotifier() *notifier {
	n := &notifier{watches: map[int]map[chan<- struct{}]struct{}{}, done: make(chan struct{})}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		klog.ErrorS(err, "No inotify; container logs are polled (raise fs.inotify.max_user_instances)")
		close(n.done)
		return n
	}
	n.fd, n.file = fd, os.NewFile(uintptr(fd), "inotify")
	go n.run(n.file)
	return n
}

// watch wakes the channel from now on, never blocking on it. It returns what ends that, or nil where the folder must be polled.
func (n *notifier) watch(dir string, wake chan<- struct{}) (stop func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file == nil {
		return nil
	}
	wd, err := unix.InotifyAddWatch(n.fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
	if err != nil {
		return nil
	}
	if n.watches[wd] == nil {
		n.watches[wd] = map[chan<- struct{}]struct{}{}
	}
	n.watches[wd][wake] = struct{}{}
	return func() { n.unwatch(wd, wake) }
}

func (n *notifier) unwatch(wd int, wake chan<- struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.watches[wd], wake)
	if wakes, ok := n.watches[wd]; ok && len(wakes) == 0 {
		delete(n.watches, wd)
		_, _ = unix.InotifyRmWatch(n.fd, uint32(wd))
	}
}

func (n *notifier) run(file *os.File) {
	defer close(n.done)
	buf := make([]byte, 64<<10)
	for {
		got, err := file.Read(buf)
		if err != nil {
			return // closed
		}
		n.dispatch(buf[:got])
		time.Sleep(settleTime)
	}
}

// dispatch wakes the pumps of the events (inotify(7): wd, mask, cookie, length of name, name).
func (n *notifier) dispatch(events []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int(int32(binary.NativeEndian.Uint32(events)))
		mask := binary.NativeEndian.Uint32(events[4:])
		length := int(binary.NativeEndian.Uint32(events[12:]))
		events = events[unix.SizeofInotifyEvent+length:]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			for _, wakes := range n.watches {
				wakeAll(wakes)
			}
		case mask&unix.IN_IGNORED != 0: // the folder is gone
			delete(n.watches, wd)
		default:
			wakeAll(n.watches[wd])
		}
	}
}

func wakeAll(wakes map[chan<- struct{}]struct{}) {
	for wake := range wakes {
		select {
		case wake <- struct{}{}:
		default: // it has yet to look for an earlier reason
		}
	}
}

func (n *notifier) close() {
	n.mu.Lock()
	if n.file != nil {
		_ = n.file.Close()
		n.file = nil
	}
	n.watches = map[int]map[chan<- struct{}]struct{}{}
	n.mu.Unlock()
	<-n.done
}
