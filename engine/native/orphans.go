package native

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crishim/engine"
	"crishim/engine/native/monitor"
	"crishim/internal/atomicfile"
	"crishim/internal/mounttree"
	"crishim/internal/process"
)

// orphansLimit bounds the ending of what nobody owns: a process that hangs in the kernel must not keep the daemon from its work.
const orphansLimit = 20 * time.Second

// removeOrphans removes what is in our folders and no record names.
func (e *Engine) removeOrphans(ctx context.Context) {
	e.mu.Lock()
	owned := map[string]bool{}
	for id := range e.pods {
		owned[string(id)], owned[pauseID(id)] = true, true
	}
	for id := range e.containers {
		owned[string(id)] = true
	}
	for id := range e.foreign {
		owned[id], owned[pauseID(engine.PodID(id))] = true, true
	}
	e.mu.Unlock()
	o := orphans{Engine: e, owned: owned}
	ending, cancel := context.WithTimeout(ctx, orphansLimit)
	defer cancel()
	o.monitors(ending)
	o.cgroups(ending)
	o.files(ctx)
}

// orphans are what nobody owns.
type orphans struct {
	*Engine
	owned map[string]bool
	// lives says that a monitor which nobody owns could not be ended, and may write.
	lives bool
}

// in are the names in a folder that nobody owns. What was set aside stays.
func (o *orphans) in(dir string) []string {
	entries, err := os.ReadDir(dir)
	quiet(err, "list a folder", dir)
	var names []string
	for _, entry := range entries {
		if !o.owned[entry.Name()] && !strings.HasPrefix(entry.Name(), badPrefix) && !o.beingWritten(entry) {
			names = append(names, entry.Name())
		}
	}
	return names
}

// beingWritten says whether it is a file that a monitor may be writing at this moment.
func (o *orphans) beingWritten(entry os.DirEntry) bool {
	name, temporary := strings.CutPrefix(entry.Name(), atomicfile.TempPrefix)
	if !temporary || !o.lives && !o.ownsPrefixOf(name) {
		return false
	}
	info, err := entry.Info()
	return err != nil || time.Since(info.ModTime()).Abs() < time.Minute // a clock that was set back makes it no newer
}

func (o *orphans) ownsPrefixOf(name string) bool {
	for id := range o.owned {
		if strings.HasPrefix(name, id) {
			return true
		}
	}
	return false
}

// monitors ends those without a pod, and what they run.
func (o *orphans) monitors(ctx context.Context) {
	for _, id := range o.in(o.Engine.monitors()) {
		if err := o.killMonitorIn(ctx, o.monitorDir(engine.PodID(id))); err != nil {
			quiet(err, "end a monitor without a pod", id)
			o.owned[id], o.lives = true, true // by its folder alone it is known
		}
	}
}

func (o *orphans) killMonitorIn(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	client, err := monitor.Connect(ctx, dir)
	if process.Starved(err) {
		return err
	}
	if err == nil {
		defer client.Close()
		states, err := client.List(ctx)
		quiet(err, "list the containers of a monitor without a pod", dir)
		for _, st := range states {
			if !o.owned[st.ID] {
				quiet(deleteIn(ctx, client, st.ID), "remove a container that no record names", st.ID)
			}
		}
	}
	record, err := monitor.ReadRecord(dir)
	if process.Starved(err) {
		return err
	}
	if err != nil {
		return nil
	}
	if err := killProcess(ctx, record.PID, record.StartTicks); err != nil {
		return err
	}
	return o.killSession(ctx, record)
}

// cgroups ends what runs in the cgroups of pods and containers that are known from our folders alone: another engine's on
// this machine are named alike.
func (o *orphans) cgroups(ctx context.Context) {
	for _, id := range o.in(o.bundles()) {
		oci, err := o.readBundle(engine.ContainerID(id))
		if err != nil && !process.Starved(err) {
			continue
		}
		if err == nil {
			err = o.removeCgroup(ctx, oci.Linux.CgroupsPath)
		}
		if err != nil {
			quiet(err, "remove the cgroup of a container that no record names", id)
			o.owned[id] = true // by its bundle alone it is known
		}
	}
	pods, err := o.pins.List()
	quiet(err, "list the pins of pods", "")
	for _, name := range o.in(o.Engine.monitors()) {
		pods = append(pods, engine.PodID(name))
	}
	for _, id := range pods {
		if o.owned[string(id)] {
			continue
		}
		if cg, err := o.Engine.cgroups.Pod(id, ""); err == nil {
			if err := o.Engine.cgroups.RemovePod(ctx, cg); err != nil {
				quiet(err, "remove the cgroup of a pod that no record names", id)
				o.owned[string(id)] = true // by its pins and its monitor's folder alone it is known
			}
		}
	}
}

func (o *orphans) removeCgroup(ctx context.Context, cgroupsPath string) error {
	path, err := o.Engine.cgroups.Path(cgroupsPath)
	if err != nil {
		return nil // it names none of ours
	}
	return o.Engine.cgroups.Remove(ctx, path)
}

// files removes pins, mounts, writable layers and whatever else has a name of ours.
func (o *orphans) files(ctx context.Context) {
	pinned, err := o.pins.List()
	quiet(err, "list the pins of pods", "")
	for _, id := range pinned {
		if !o.owned[string(id)] {
			quiet(o.pins.Remove(id), "drop the pins of a pod that no record names", id)
		}
	}
	containers, pods, err := o.roots.Names()
	quiet(err, "list mounts", "")
	for _, id := range containers {
		if !o.owned[string(id)] {
			quiet(o.roots.Remove(ctx, id), "remove the files of a container that no record names", id)
		}
	}
	for _, id := range pods {
		if !o.owned[string(id)] {
			quiet(o.roots.RemovePod(ctx, id), "remove the files of a pod that no record names", id)
		}
	}
	for _, dir := range []string{
		o.Engine.monitors(), o.bundles(), o.exits(), o.checkpoints(), o.stateRoot(), o.podRecords.copies, o.containerRecords.copies,
	} {
		for _, name := range o.in(dir) {
			quiet(removeTree(filepath.Join(dir, name)), "remove a leftover", name)
		}
	}
	for _, name := range o.in(o.ociRoot()) {
		quiet(mounttree.RemoveAll(filepath.Join(o.ociRoot(), name)), "remove what an OCI runtime left", name)
	}
}
