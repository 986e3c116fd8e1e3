package state

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"crishim/engine"
	"crishim/engine/enginetest"
)

// R47: whatever was lost on the way, the index is the engine's truth again after a gap.
//
// Rows: R47
func TestTheIndexAgreesWithTheEngineAfterGaps(t *testing.T) {
	m := enginetest.NewMemory(enginetest.Options{Name: "docker", Images: []engine.Image{enginetest.NewImage("test")}})
	t.Cleanup(m.Close)
	s := newTestStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- m.Watch(ctx, s.Sink("docker")) }()
	t.Cleanup(func() { cancel(); <-watched })
	must(t, s.WaitSynced(t.Context(), "docker"))

	life := &life{t: t, store: s, engine: m, image: enginetest.NewImage("test").ID, rand: rand.New(rand.NewPCG(1, 2))}
	for range 30 {
		for range 10 {
			life.step()
		}
		m.Gap(func() {
			for range 5 {
				life.step()
			}
		})
		eventually(t, "the index agrees with the engine", life.agrees)
	}
	must(t, s.Close())
	s = openStore(t, s.root)
	if len(s.Pods()) != len(life.pods) {
		t.Errorf("%d pods after a restart, want %d", len(s.Pods()), len(life.pods))
	}
}

// life does to pods what a server does, in random order, and some of it behind the server's back.
type life struct {
	t      *testing.T
	store  *Store
	engine *enginetest.Memory
	image  engine.ImageID
	rand   *rand.Rand
	made   int
	pods   []engine.PodID
	ctrs   []engine.ContainerID
}

func (l *life) step() {
	switch n := l.rand.IntN(10); {
	case len(l.pods) < 3 || n == 0:
		l.runPod()
	case len(l.ctrs) < 3 || n < 4:
		l.runContainer(l.pods[l.rand.IntN(len(l.pods))])
	case n < 6:
		l.engine.Exit(l.ctrs[l.rand.IntN(len(l.ctrs))], n)
	case n < 7:
		l.engine.Forget(string(l.ctrs[l.rand.IntN(len(l.ctrs))]))
	case n < 8:
		l.engine.KillPod(l.pods[l.rand.IntN(len(l.pods))])
	default:
		l.removeContainer(l.rand.IntN(len(l.ctrs)))
	}
}

func (l *life) runPod() {
	l.made++
	p := samplePod(fmt.Sprint(l.made))
	p.ID, p.Phase = "", PhaseIntent
	must(l.t, l.store.PutPod(p))
	id, err := l.engine.CreatePod(l.t.Context(), &p.Spec)
	must(l.t, err)
	must(l.t, l.store.UpdatePodByKey(p.Spec.Key, func(p *Pod) error { p.ID, p.Phase = id, PhaseCreated; return nil }))
	st, err := l.engine.StartPod(l.t.Context(), id, &p.Spec)
	must(l.t, err)
	l.store.ApplyPod(st)
	must(l.t, l.store.UpdatePod(id, func(p *Pod) error { p.Phase = PhaseRunning; return nil }))
	l.pods = append(l.pods, id)
}

func (l *life) runContainer(pod engine.PodID) {
	if st, err := l.engine.PodStatus(l.t.Context(), pod); err != nil || st.State != engine.PodReady {
		return
	}
	l.made++
	c := sampleContainer(pod, fmt.Sprint(l.made))
	c.ID, c.Phase = "", PhaseIntent
	c.Spec.Image.ID = l.image
	must(l.t, l.store.PutContainer(c))
	st, err := l.engine.CreateContainer(l.t.Context(), &c.Spec)
	must(l.t, err)
	must(l.t, l.store.UpdateContainerByKey(pod, c.Spec.Key, func(c *Container) error { c.ID, c.Phase = st.ID, PhaseCreated; return nil }))
	l.store.ApplyContainer(st)
	st, err = l.engine.StartContainer(l.t.Context(), st.ID, &c.Spec)
	must(l.t, err)
	l.store.ApplyContainer(st)
	must(l.t, l.store.UpdateContainer(st.ID, func(c *Container) error { c.Phase = PhaseRunning; return nil }))
	l.ctrs = append(l.ctrs, st.ID)
}

func (l *life) removeContainer(i int) {
	id := l.ctrs[i]
	must(l.t, l.store.UpdateContainer(id, func(c *Container) error { c.Phase = PhaseRemoving; return nil }))
	must(l.t, l.engine.RemoveContainer(l.t.Context(), id))
	must(l.t, l.store.DeleteContainer(id))
	l.ctrs = append(l.ctrs[:i:i], l.ctrs[i+1:]...)
}

func (l *life) agrees() bool {
	if len(l.store.Pods()) != len(l.pods) || len(l.store.Containers()) != len(l.ctrs) {
		return false
	}
	for _, p := range l.store.Pods() {
		st, err := l.engine.PodStatus(l.t.Context(), p.ID)
		if err != nil || st.State != p.State || !p.Recorded {
			return false
		}
	}
	for _, c := range l.store.Containers() {
		st, err := l.engine.ContainerStatus(l.t.Context(), c.ID)
		if err != nil {
			// Forgotten by the engine: still here, and over.
			st.State = engine.ContainerExited
		}
		if st.State != c.State || err == nil && c.State == engine.ContainerExited && c.ExitCode != st.ExitCode {
			return false
		}
	}
	return true
}
