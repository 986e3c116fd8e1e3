package e2e

import (
	"net"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// R49: the daemon hits each limit of its node in every call that changes something. The call says so, or does its work, nothing
// half made stays, and once there is more of it again the call succeeds, by the same daemon; another pod never notices.
// Where the daemon itself gets no memory or no thread, it ends, as any Go program: that is what kill -9 at every step is about.
//
// Rows: R49
func TestLimitsThatAreHit(t *testing.T) {
	harness.Require(t)
	limits := harness.NewLimits(t)
	f := newFaultsOf(t, harness.ShimOptions{Limits: limits})
	v := f.victim(t)
	daemon, hits := f.n.Shim.PID(), map[string]int{}
	for _, one := range v.life() {
		for _, limit := range limits.All() {
			done := limits.Hit(t, limit)
			waiting, failed := net.Dial("unix", f.n.Shim.Socket) // a client that comes now
			if failed != nil {
				t.Fatal(failed)
			}
			err := one.do(ctx(t))
			hits[limit.Name] += done()
			if err != nil {
				hits[limit.Name]++
			}
			if code := harness.Code(err); code != codes.OK && code != codes.ResourceExhausted {
				t.Errorf("%s without %s: %v", one.name, limit.Name, err)
			}
			if err := waiting.Close(); err != nil {
				t.Error(err)
			}
			f.ready(t, func() { t.Fatalf("%s without %s ended the daemon", one.name, limit.Name) })
			if err == nil {
				if err := one.check(ctx(t)); err != nil {
					t.Errorf("after %s without %s: %v", one.name, limit.Name, err)
				}
			}
		}
		v.succeed(one)
	}
	f.unharmed(t, true)
	if _, err := harness.Dial(t, f.n.Shim.Socket).Runtime.Version(ctx(t), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("a new client: %v", err)
	}
	if f.n.Shim.PID() != daemon {
		t.Errorf("process %d became %d", daemon, f.n.Shim.PID())
	}
	t.Logf("how often each limit was hit: %v", hits)
	for _, limit := range limits.All() {
		if hits[limit.Name] == 0 && limit.Name != "inotify" && limit.Name != "connections" { // what is kept from the start
			t.Errorf("no call came to the limit of %s", limit.Name)
		}
	}
	// The one that is hit as the daemon starts.
	for _, limit := range limits.All() {
		if limit.Name != "inotify" {
			continue
		}
		f.n.Shim.Stop()
		done := limits.Hit(t, limit)
		f.n.Shim.Start()
		v := f.victim(t)
		for _, one := range v.life() {
			v.succeed(one)
		}
		f.unharmed(t, true)
		if done() == 0 {
			t.Errorf("the daemon asked for no %s", limit.Name)
		}
	}
}
