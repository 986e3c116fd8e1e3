package native

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/monitor"
)

// followPod reads the monitor's events until the pod's end.
func (e *Engine) followPod(p *pod) {
	ctx, stop := context.WithCancel(e.life)
	e.mu.Lock()
	p.follow = stop
	client := p.client
	e.mu.Unlock()
	e.inBackground(func(context.Context) {
		defer stop()
		for ctx.Err() == nil {
			err := client.Subscribe(ctx, func(ev monitor.Event) { e.monitorSays(p, &ev) })
			select {
			case <-ctx.Done():
				return
			case <-client.Done():
				if ctx.Err() == nil { // else it was to end
					e.monitorLost(p, client)
				}
				return
			case <-time.After(20 * time.Millisecond):
				klog.V(4).InfoS("The events of a monitor broke off; subscribing again", "id", p.ID, "err", err)
			}
		}
	})
}

func (e *Engine) monitorSays(p *pod, ev *monitor.Event) {
	if ev.State.ID == pauseID(p.ID) {
		if ev.State.Exit != nil {
			e.podFailed(p)
		}
		return
	}
	c, err := e.container(engine.ContainerID(ev.State.ID))
	if err != nil {
		return
	}
	if !e.concerns(c, &ev.State) {
		return
	}
	switch {
	case ev.State.Exit != nil:
		e.exited(c, &ev.State)
	case ev.Type == monitor.EventState && (ev.State.Status == monitor.StatusRunning || ev.State.Status == monitor.StatusPaused):
		e.noteRunning(c, &ev.State)
	}
}

// concerns says whether a state is to be told: not that of a process which was taken back, and not yet that of one which is
// being started.
func (e *Engine) concerns(c *container, st *monitor.State) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.starting {
		if st.Exit != nil {
			c.early = st
		}
		return false
	}
	return c.born.Equal(st.CreatedAt)
}

// exited tells the end, and takes away in the background what the process had.
func (e *Engine) exited(c *container, st *monitor.State) {
	e.noteStart(c, st)
	e.mu.Lock()
	known := c.exit != nil
	e.mu.Unlock()
	if known {
		return
	}
	e.noteExit(c, endingOf(st.Exit), false)
	e.tidyLater(c)
}

// noteStart takes over when the process was started. It says whether that was not known.
func (e *Engine) noteStart(c *container, st *monitor.State) (news bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !c.StartedAt.IsZero() {
		return false
	}
	c.StartedAt = st.StartedAt
	return !c.StartedAt.IsZero()
}

// podFailed: without the process that is its pid 1 nothing can run in the pod any more.
func (e *Engine) podFailed(p *pod) {
	e.mu.Lock()
	was := p.Stopped
	p.Stopped, p.pause, p.pauseTicks = true, 0, 0
	e.mu.Unlock()
	if !was {
		klog.InfoS("The process that held a pod's PID namespace ended, and so did the pod", "id", p.ID)
		quiet(e.savePod(p), "record the end of a pod sandbox", p.ID)
		e.podChanged(p)
	}
}

// monitorLost ends a pod whose monitor was killed.
func (e *Engine) monitorLost(p *pod, client *monitor.Client) {
	e.mu.Lock()
	mine := p.client == client
	if mine {
		p.client = nil
	}
	e.mu.Unlock()
	if !mine {
		return
	}
	e.counts.monitorsLost.Add(1)
	klog.InfoS("The monitor of a pod sandbox ended; what runs in the pod is killed", "id", p.ID, "monitor", client.PID())
	client.Close()
	quiet(e.lose(e.life, p, e.containersOf(p.ID)), "end a pod sandbox without a monitor", p.ID)
}
