package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"crishim/engine"
	"crishim/internal/powercut"
)

// Wherever the power is cut in the lives of pods, the store opens, each record is whole and one that was written, and what
// SettlePod waited for is there: once a pod's networks are recorded, no cut forgets them before its record is deleted. A store
// that was closed has what it did not wait for, too.
//
// Rows: R22
func TestR22APowerCutLeavesWholeRecords(t *testing.T) {
	disk := powercut.New(t, 16<<20)
	root := filepath.Join(disk.Dir, "state")
	s := openStore(t, root)
	// step is one call in the life of a pod, by when the disk had first and last to do with it.
	type step struct {
		phase          Phase // "" for a deletion
		begun, durable int
	}
	lives := map[string][]step{}
	do := func(name string, phase Phase, call func() error) {
		t.Helper()
		one := step{phase: phase, begun: disk.Now()}
		must(t, call())
		one.durable = disk.Now()
		lives[name] = append(lives[name], one)
	}
	attachment := func(name string) string { return fmt.Sprintf("%q", "the network of "+name) }
	for i := range 6 {
		name := fmt.Sprintf("p%d", i)
		pod := samplePod(name)
		id := pod.ID
		pod.ID, pod.Phase, pod.Network = "", PhaseIntent, Network{}
		do(name, PhaseIntent, func() error { return s.PutPod(pod) })
		do(name, PhaseCreated, func() error {
			err := s.UpdatePodByKey(pod.Spec.Key, func(p *Pod) error {
				p.ID, p.Phase, p.Network.Attachments = id, PhaseCreated, []json.RawMessage{json.RawMessage(attachment(name))}
				return nil
			})
			return errors.Join(err, s.SettlePod(pod.Spec.Key))
		})
		for _, phase := range []Phase{PhaseRunning, PhaseStopping, PhaseStopped} {
			if i == 5 && phase != PhaseRunning {
				continue
			}
			do(name, phase, func() error {
				return s.UpdatePod(id, func(p *Pod) error { p.Phase = phase; return nil })
			})
		}
		if i%2 == 0 {
			do(name, "", func() error { return s.DeletePod(id) })
		}
	}

	must(t, s.Close())
	closed := disk.Now()

	moments := append(disk.Moments(30), closed)
	for _, at := range moments {
		for _, lossy := range []bool{false, true} {
			disk.Cut(at, lossy, func(dir string) {
				fail := func(format string, args ...any) {
					t.Errorf("cut after write %d of %d (lossy: %v): %s", at, disk.Now(), lossy, fmt.Sprintf(format, args...))
				}
				s, err := Open(filepath.Join(dir, "state"), t.TempDir())
				if err != nil {
					fail("%v", err)
					return
				}
				defer func() { must(t, s.Close()) }()
				for name, life := range lives {
					p, found := s.PodByKey(samplePod(name).Spec.Key)
					// Only SettlePod waits: else the older self may come back.
					known, going := false, false
					written := map[Phase]bool{}
					for _, one := range life {
						known = known || one.phase == PhaseCreated && one.durable <= at
						going = going || one.phase == "" && (one.begun < at || one.durable <= at)
						written[one.phase] = one.begun < at || one.durable <= at
					}
					switch {
					case at >= closed && life[len(life)-1].phase == PhaseRunning && (!found || p.Phase != PhaseRunning):
						fail("%s is %q, it was to be running: the store was closed since", name, p.Phase)
					case known && !found && !going:
						fail("the record of %s is lost", name)
					case !found:
					case !written[p.Phase]:
						fail("%s is %s before that was written", name, p.Phase)
					case known && p.Phase == PhaseIntent:
						fail("%s is %s, its networks are forgotten", name, p.Phase)
					case p.Phase != PhaseIntent && (p.ID != engine.PodID(samplePod(name).ID) || len(p.Network.Attachments) != 1 || string(p.Network.Attachments[0]) != attachment(name)):
						fail("%s is %+v", name, p.Pod)
					}
				}
			})
		}
	}
	t.Logf("%d cuts in %d writes", 2*len(moments), disk.Now())
}
