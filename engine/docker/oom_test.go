package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/atomicfile"
)

// oomKilled has the kernel's log say now that a process of the container was killed for memory.
func oomKilled(t *testing.T, e *Engine, pid int) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	e.oom.mu.Lock()
	defer e.oom.mu.Unlock()
	e.oom.note(fmt.Sprintf("6,1,%d,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/p,task_memcg=/p/%s,task=dd,pid=%d,uid=0", now.Nano()/1000, testContainer, pid))
}

// A container that lived on after a kill of another of its processes did not end of that one, although Docker says so from then on.
//
// Rows: R48 (part)
func TestAnOOMKillThatWasOutlivedIsNoReasonOfTheEnd(t *testing.T) {
	const another = 1 << 30 // no pid
	for name, tt := range map[string]struct {
		execs, first bool // who was killed for memory
		after        time.Duration
		stop         bool // who is killed is killed by us
		want         string
	}{
		"an exec, and the container is killed later":               {execs: true, after: time.Hour, want: engine.ReasonError},
		"an exec, and the container is killed at once on purpose":  {execs: true, stop: true, want: engine.ReasonError},
		"a child of which the container ends":                      {execs: true, want: engine.ReasonOOMKilled},
		"the first process, which takes its time to end":           {first: true, after: time.Hour, want: engine.ReasonOOMKilled},
		"the first process, which we kill too":                     {first: true, stop: true, want: engine.ReasonOOMKilled},
		"the first process after an exec":                          {execs: true, first: true, after: time.Hour, want: engine.ReasonOOMKilled},
		"somebody of whom only Docker knows, as before this start": {after: time.Hour, want: engine.ReasonOOMKilled},
	} {
		t.Run(name, func(t *testing.T) {
			e, f, cmd := watchedSleeper(t)
			f.mu.Lock()
			f.fail["/containers/"+testContainer+"/wait"] = func(w http.ResponseWriter) {
				_ = json.NewEncoder(w).Encode(container.WaitResponse{StatusCode: exitKilled})
			}
			f.mu.Unlock()
			killed := time.Now()
			if tt.execs {
				oomKilled(t, e, another)
			}
			if tt.first {
				oomKilled(t, e, cmd.Process.Pid)
			}
			if tt.stop {
				if err := e.StopContainer(t.Context(), testContainer, 0); err != nil {
					t.Fatal(err)
				}
			}
			f.put(testContainer, container.State{
				Status: "exited", ExitCode: exitKilled, OOMKilled: true, StartedAt: running.StartedAt,
				FinishedAt: killed.Add(tt.after).Format(time.RFC3339Nano),
			})
			if got, err := e.ContainerStatus(t.Context(), testContainer); err != nil || got.ExitCode != exitKilled || got.Reason != tt.want {
				t.Errorf("%d, %s, %v; want %s", got.ExitCode, got.Reason, err, tt.want)
			}
		})
	}
}

// Rows: R48 (part)
func TestKernelNamesTheContainer(t *testing.T) {
	var k oomKills
	for _, line := range []string{
		"6,1,20,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/pods/a,task_memcg=/pods/a/" + testPod + ",task=dd,pid=4,uid=0\n",
		"6,2,30,-,caller=T1;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),oom_memcg=/a,task_memcg=/kubepods.slice/docker-" + testContainer + ".scope,task=a,pid=1,uid=0,pid=5,uid=0",
		"6,3,40,-;a process called oom-kill:" + otherContainer,
		"6,4,50,-;oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/,task=/" + otherContainer + ",task=x,pid=6,uid=0",
	} {
		k.note(line)
	}
	if len(k.kills) != 2 || k.kills[testPod].pid != 4 || k.kills[testContainer].pid != 5 || k.kills[testContainer].uptime != 30*time.Microsecond {
		t.Errorf("%v", k.kills)
	}
}

// The kernel's log is not there for good where it could not be opened once, or a read of it failed.
func TestTheKernelsLogIsOpenedAgain(t *testing.T) {
	log := filepath.Join(t.TempDir(), "kmsg")
	var k oomKills
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { k.watch(ctx, log, time.Millisecond) })
	defer wg.Wait()
	defer cancel()
	for _, letter := range []string{"a", "b"} { // at its end a file fails a read, which the kernel's log does not
		id := strings.Repeat(letter, 64)
		if err := atomicfile.Write(log, []byte("4,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/p,task_memcg=/p/"+id+",task=dd,pid=4,uid=0\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "the kill is known", func() bool {
			_, known := k.ended(id, firstProcess{}, time.Now())
			return known
		})
	}
}

// A record that comes as the log is closed: the daemon hung at its end.
func TestTheKernelsLogIsClosedWhileARecordComes(t *testing.T) {
	log := filepath.Join(t.TempDir(), "kmsg")
	if err := unix.Mkfifo(log, 0o600); err != nil {
		t.Fatal(err)
	}
	kernel, err := os.OpenFile(log, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	var k oomKills
	conn, err := k.open(log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.follow(ctx, conn) }()
	time.Sleep(100 * time.Millisecond) // it reads
	k.mu.Lock()
	cancel()
	time.Sleep(100 * time.Millisecond) // close is the first to wait for mu
	if _, err := kernel.WriteString("4,1,2,-;anything\n"); err != nil {
		t.Error(err)
	}
	time.Sleep(100 * time.Millisecond)
	k.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("following the log does not end")
	}
}
