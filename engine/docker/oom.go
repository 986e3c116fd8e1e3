package docker

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"sync"

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

// watch reads the kernel's log until ctx ends. Where it may not be read Docker's word stands.
func (k *oomKills) watch(ctx context.Context) {
	file, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		klog.InfoS("The kernel's log cannot be read: OOM kills are only known where Docker sees them", "err", err)
		return
	}
	defer context.AfterFunc(ctx, func() { _ = file.Close() })()
	defer func() { _ = file.Close() }()
	// One record a read; none is longer than this.
	record := make([]byte, 8192)
	for ctx.Err() == nil {
		n, err := file.Read(record)
		switch {
		case err == nil:
			if _, text, ok := strings.Cut(string(record[:n]), ";"); ok {
				k.note(text)
			}
		case errors.Is(err, unix.EPIPE): // records were overwritten before they were read
		default:
			return
		}
	}
}
