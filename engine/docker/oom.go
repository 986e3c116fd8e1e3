package docker

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// oomKills are the containers in which the kernel killed a process for memory, from the kernel's own log. Docker learns
// of it by an event that is lost where the container ends within milliseconds of its start, and then calls it an error.
// The log is read from its beginning, so kills while we were down are known too.
type oomKills struct {
	mu  sync.Mutex
	ids map[string]struct{}
}

// maxOOMKills bounds the memory for ids that nobody will ask for again.
const maxOOMKills = 10000

// killedIn finds the container's id in a line such as
// "oom-kill:constraint=CONSTRAINT_MEMCG,…,oom_memcg=/POD,task_memcg=/POD/ID,task=dd,pid=4,uid=0".
var killedIn = regexp.MustCompile(`[;,]?oom-kill:constraint=.*,task_memcg=[^,]*/(?:docker-)?([0-9a-f]{64})(?:\.scope)?[^,]*,task=`)

func (k *oomKills) note(line string) {
	match := killedIn.FindStringSubmatch(line)
	if match == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ids == nil || len(k.ids) >= maxOOMKills {
		k.ids = map[string]struct{}{}
	}
	k.ids[match[1]] = struct{}{}
}

func (k *oomKills) has(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.ids[id]
	return ok
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
		err := k.read(ctx, log)
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

func (k *oomKills) read(ctx context.Context, log string) error {
	file, err := os.OpenFile(log, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = file.Close() })()
	defer func() { _ = file.Close() }()
	record := make([]byte, maxKernelRecord)
	for {
		n, err := file.Read(record)
		switch {
		case err == nil:
			if _, text, ok := strings.Cut(string(record[:n]), ";"); ok {
				k.note(text)
			}
		case errors.Is(err, unix.EPIPE): // records were overwritten before they were read
		default:
			return err
		}
	}
}
