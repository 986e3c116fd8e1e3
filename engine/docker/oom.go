package docker

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/internal/process"
)

// oomKills are the last kills for memory in containers, from the kernel's own log: whom it killed, and when. Docker only knows that there
// was one at some time, maybe of an exec that the container outlived, or in its pod; and it does not know of one in a container that ends
// within milliseconds of its start. The log is read from its beginning, so kills while we were down are known too.
type oomKills struct {
	mu    sync.Mutex
	kills map[string]oomKill // by container
	log   *os.File           // nil while it cannot be read
	conn  syscall.RawConn    // of log
}

type oomKill struct {
	pid    int
	uptime time.Duration // of the kernel, which tells kills apart
	// by is when it was, at the latest; zero where the container's first process is known to have lived on.
	by time.Time
}

// maxOOMKills bounds the memory for ids that nobody will ask for again.
const maxOOMKills = 10000

// outliveTime is how long after the last kill of another process a container may have ended of it: a shell exits with 137 once it has
// reaped its child. On a busy machine that is noted late, and within 5 s the kernel logs ten kills at most.
const outliveTime = 10 * time.Second

// killedIn finds the uptime, the container's id and the pid in a record such as
// "4,123,456789,-;oom-kill:constraint=CONSTRAINT_MEMCG,…,oom_memcg=/POD,task_memcg=/POD/ID,task=dd,pid=4,uid=0".
var killedIn = regexp.MustCompile(`^\d+,\d+,(\d+),[^;]*;oom-kill:constraint=.*,task_memcg=[^,]*/(?:docker-)?([0-9a-f]{64})(?:\.scope)?[^,]*,task=.*,pid=(\d+),uid=`)

// note is called with mu held.
func (k *oomKills) note(record string) {
	match := killedIn.FindStringSubmatch(record)
	if match == nil {
		return
	}
	micros, err1 := strconv.ParseInt(match[1], 10, 64)
	pid, err2 := strconv.Atoi(match[3])
	var now unix.Timespec
	if errors.Join(err1, err2, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)) != nil {
		return
	}
	kill := oomKill{pid: pid, uptime: time.Duration(micros) * time.Microsecond}
	if last, ok := k.kills[match[2]]; ok && kill.uptime <= last.uptime {
		return // the log was opened again
	}
	// The log has a clock that nobody sets: by now it may be ahead or behind by 1/10000.
	uptime := time.Duration(now.Nano())
	kill.by = time.Now().Add(-max(uptime-kill.uptime-uptime/10000, 0))
	if k.kills == nil || len(k.kills) >= maxOOMKills {
		k.kills = map[string]oomKill{}
	}
	k.kills[match[2]] = kill
}

// ended says whether a container that was ended by SIGKILL at that time was killed for memory. The kernel's log does not know where it
// has no kill in the container: maybe it cannot be read, or was overwritten.
func (k *oomKills) ended(id string, first firstProcess, at time.Time) (killed, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.catchUp()
	kill, known := k.kills[id]
	return known && (kill.pid == first.pid || at.Sub(kill.by) <= outliveTime), known
}

// outlived notes that the first process lives on after the last kill, before it is killed on purpose.
func (k *oomKills) outlived(id string, first firstProcess) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.catchUp() // first: one that ends it meanwhile is none that it outlives
	kill, known := k.kills[id]
	if known && kill.pid != first.pid && first.startTicks != 0 && !process.Gone(first.pid, first.startTicks) {
		kill.by = time.Time{}
		k.kills[id] = kill
	}
}

// kernelLog gives a record at each read, none of which is longer than maxKernelRecord.
const (
	kernelLog       = "/dev/kmsg"
	maxKernelRecord = 8192
)

// watch reads the log until ctx ends, anew each time that it could not be opened or was lost: a daemon without descriptors has some
// again later. Where it may not be read Docker's word stands.
func (k *oomKills) watch(ctx context.Context, log string, pause time.Duration) {
	for told := false; ; told = true {
		conn, err := k.open(log)
		if err == nil {
			err = k.follow(ctx, conn)
		}
		if ctx.Err() == nil && !told {
			klog.InfoS("The kernel's log cannot be read: until it can be, OOM kills are only known where Docker sees them", "err", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// open reads what the log has, and is for watch to call unless somebody wants that at once.
func (k *oomKills) open(log string) (syscall.RawConn, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.log != nil {
		return k.conn, nil
	}
	file, err := os.OpenFile(log, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	k.log, k.conn = file, conn
	k.catchUp()
	return conn, nil
}

// follow reads the open log until it is lost or ctx ends.
func (k *oomKills) follow(ctx context.Context, conn syscall.RawConn) error {
	defer k.close()
	defer context.AfterFunc(ctx, k.close)()
	var lost error
	err := conn.Read(func(fd uintptr) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		lost = k.read(int(fd))
		return lost != nil
	})
	return errors.Join(lost, err)
}

func (k *oomKills) close() {
	k.mu.Lock()
	log := k.log
	k.log, k.conn = nil, nil
	k.mu.Unlock()
	if log != nil {
		_ = log.Close() // without mu: it waits for the end of a read, which takes mu
	}
}

// catchUp reads what watch has not read yet: a kill is in the log before its container has ended. It is called with mu held.
func (k *oomKills) catchUp() {
	if k.conn != nil {
		_ = k.conn.Control(func(fd uintptr) { _ = k.read(int(fd)) }) // watch sees what failed
	}
}

// read reads to the end of what there is; it is called with mu held.
func (k *oomKills) read(fd int) error {
	record := make([]byte, maxKernelRecord)
	for {
		n, err := unix.Read(fd, record)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EPIPE): // records were overwritten before they were read
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			k.note(string(record[:n]))
		}
	}
}
