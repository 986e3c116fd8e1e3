package native

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/native/monitor"
	"crishim/internal/atomicfile"
	"crishim/internal/seal"
)

// rewrite changes text in every record of a folder, none of which may lack it.
func (b *bench) rewrite(t *testing.T, dir, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		rewriteFile(t, filepath.Join(dir, entry.Name()), from, to)
	}
}

func rewriteFile(t *testing.T, path, from, to string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(data, []byte(from)) {
		t.Fatalf("%s has no %q: %v", path, from, err)
	}
	if err := os.WriteFile(path, reseal(bytes.ReplaceAll(data, []byte(from), []byte(to))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reseal gives a record that was changed a checksum that matches, where it has one.
func reseal(record []byte) []byte {
	content, _, sealed := bytes.Cut(record, []byte(`,"crc32c":`))
	if !sealed {
		return record
	}
	data, err := seal.Marshal(json.RawMessage(string(content) + "}"))
	if err != nil {
		panic(err)
	}
	return data
}

// damages are what may become of a record; nil removes it.
var damages = map[string]func(good []byte) []byte{
	"empty":        func([]byte) []byte { return []byte{} },
	"cut":          func(good []byte) []byte { return good[:len(good)/2] },
	"garbage":      func([]byte) []byte { return []byte("\x00\xff\x17garbage") },
	"another form": func([]byte) []byte { return []byte(`["no","record"]`) },
	"another type": func([]byte) []byte { return []byte(`{"version":"one","id":7}`) },
	"no version":   func([]byte) []byte { return []byte(`{}`) },
	"version zero": func(good []byte) []byte {
		return reseal(bytes.Replace(good, []byte(`"version":1`), []byte(`"version":0`), 1))
	},
	"of another": func(good []byte) []byte { return reseal(bytes.Replace(good, []byte(`"id":"`), []byte(`"id":"x`), 1)) },
	"a flipped bit": func(good []byte) []byte {
		return bytes.Replace(good, []byte(`"createdAt":"2`), []byte(`"createdAt":"3`), 1)
	},
	"a flipped version": func(good []byte) []byte { return bytes.Replace(good, []byte(`"version":1`), []byte(`"version":3`), 1) },
	"nothing it names":  func([]byte) []byte { return []byte(`{"version":1,"revision":99,"boot":"b"}`) },
	"lost":              func([]byte) []byte { return nil },
}

func damage(t *testing.T, path string, how func([]byte) []byte) {
	t.Helper()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := how(good)
	if bad == nil {
		err = os.Remove(path)
	} else {
		if bytes.Equal(bad, good) {
			t.Fatalf("%s is not damaged", path)
		}
		err = os.WriteFile(path, bad, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// forgetBad removes what was set aside, of which there has to be something where want is.
func (b *bench) forgetBad(t *testing.T, dir string, want bool) {
	t.Helper()
	bad, _ := filepath.Glob(filepath.Join(dir, badPrefix+"*"))
	if want && len(bad) == 0 {
		t.Errorf("nothing was set aside in %s", dir)
	}
	if count := b.Stats().Quarantined; count < len(bad) {
		t.Errorf("%d records are counted as set aside, %s alone has %d", count, dir, len(bad))
	}
	for _, path := range bad {
		_ = os.Remove(path)
	}
}

// A record of a pod or container that runs is damaged: its copy serves, and nothing is restarted.
//
// Rows: R21 (part), S69 (part)
func TestADamagedRecordIsServedFromItsCopy(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "trap 'exit 6' TERM; while :; do sleep 0.05; done")
	pid := b.status(t, id).PID
	for name, how := range damages {
		t.Run(name, func(t *testing.T) {
			pods, containers := b.podRecords.dir, b.containerRecords.dir
			b.die(t)
			damage(t, filepath.Join(pods, string(pod)), how)
			damage(t, filepath.Join(containers, string(id)), how)
			b.back(t)
			b.forgetBad(t, pods, name != "lost")
			b.forgetBad(t, containers, name != "lost")
			if state := b.podState(t, pod); state != engine.PodReady {
				t.Errorf("the pod is %s", state)
			}
			if st := b.status(t, id); st.State != engine.ContainerRunning || st.PID != pid {
				t.Errorf("%+v", st)
			}
			b.sh(t, id, "true")
		})
	}
	if err := b.StopContainer(t.Context(), id, 10*time.Second); err != nil {
		t.Error(err)
	}
	if st := b.status(t, id); st.ExitCode != 6 {
		t.Errorf("%+v", st)
	}
	b.removePod(t, pod)
}

// Neither record nor copy can be read: what they named is removed, everything else is served.
//
// Rows: R21 (part), R03 (part)
func TestWhatNoRecordNamesIsRemoved(t *testing.T) {
	b := serving(t)
	other, otherSpec := b.runPod(t)
	bystander := b.run(t, other, otherSpec, "c", "sleep 1000")
	kubelets, kubeletsSpec := b.runPod(t, sharedPIDs)
	ours, oursSpec := b.runPod(t, func(s *engine.PodSpec) { s.CgroupParent = "" })
	inOther := b.run(t, other, otherSpec, "lost", "sleep 1000")
	var pids []int
	var lostOne engine.ContainerID
	for _, p := range []struct {
		id   engine.PodID
		spec *engine.PodSpec
	}{{kubelets, kubeletsSpec}, {ours, oursSpec}} {
		c := b.run(t, p.id, p.spec, "c", "sleep 1000")
		lostOne = c
		pids = append(pids, b.status(t, c).PID, b.monitorPID(t, p.id))
		b.run(t, p.id, p.spec, "ended", "exit 0")
	}
	pids = append(pids, b.status(t, inOther).PID)
	cgroup := b.status(t, inOther).CgroupPath
	// One of the monitors is gone too.
	dead := b.monitorPID(t, ours)
	lost := map[engine.PodID]bool{kubelets: true, ours: true}
	var files []string
	for _, c := range b.allContainers() {
		if lost[c.Spec.Pod] || c.ID == inOther {
			for _, dir := range []string{b.containerRecords.dir, b.containerRecords.copies} {
				files = append(files, filepath.Join(dir, string(c.ID)))
			}
		}
	}
	for id := range lost {
		files = append(files, filepath.Join(b.podRecords.dir, string(id)), filepath.Join(b.podRecords.copies, string(id)))
	}
	records := []string{b.podRecords.dir, b.containerRecords.dir}
	b.die(t)
	kill(t, dead)
	// As a monitor leaves it that is killed while it records an end.
	torn := filepath.Join(b.opts.RootDir, "exits", atomicfile.TempPrefix+string(lostOne)+"-1")
	if err := os.WriteFile(torn, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		damage(t, file, damages["cut"])
	}
	b.back(t)
	for _, dir := range records {
		b.forgetBad(t, dir, true)
	}
	for _, copies := range []string{b.podRecords.copies, b.containerRecords.copies} {
		entries, _ := os.ReadDir(copies)
		if copies == b.podRecords.copies && len(entries) != 1 {
			t.Errorf("copies: %v", entries)
		}
	}
	for _, pid := range pids {
		eventually(t, 10*time.Second, "the processes are gone", func() bool { return !runs(pid) })
	}
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup/memory", cgroup)); !os.IsNotExist(err) {
		t.Errorf("the cgroup of a lost container: %v", err)
	}
	if st := b.status(t, bystander); st.State != engine.ContainerRunning {
		t.Errorf("%+v", st)
	}
	if pods := b.allPods(); len(pods) != 1 {
		t.Errorf("%d pods are known", len(pods))
	}
	b.removePod(t, other) // and the bench finds nothing left
}

// The record of an end is damaged: the monitor says how it was, or nobody does, but a wrong end is not told, nor that there was none.
//
// Rows: R21 (part), S69 (part)
func TestADamagedExitIsNotTold(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	bystander := b.run(t, pod, spec, "bystander", "sleep 1000")
	flipped := func(good []byte) []byte { return bytes.Replace(good, []byte(`"code":6`), []byte(`"code":7`), 1) }
	hows := map[string]func([]byte) []byte{"a flipped bit": flipped}
	for _, name := range []string{"empty", "of another"} {
		hows[name] = damages[name]
	}
	told := func(t *testing.T, id engine.ContainerID, how func([]byte) []byte, code int32) {
		t.Helper()
		damage(t, filepath.Join(b.opts.RootDir, "exits", string(id)), how)
		for _, when := range []string{"first", "second"} {
			b.back(t)
			st := b.status(t, id)
			if st.State != engine.ContainerExited || st.ExitCode != code || st.Reason != engine.ReasonError || st.FinishedAt.IsZero() || st.FinishedAt.Before(st.StartedAt) {
				t.Errorf("to the %s daemon after it: %+v", when, st)
			}
			b.die(t)
		}
		b.back(t)
		if st := b.status(t, bystander); st.State != engine.ContainerRunning {
			t.Errorf("the bystander: %+v", st)
		}
		b.forgetBad(t, b.exits(), true)
		if err := b.RemoveContainer(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	// endUnseen ends a container that no daemon sees end.
	endUnseen := func(t *testing.T, pod engine.PodID, spec *engine.PodSpec) engine.ContainerID {
		t.Helper()
		id := b.run(t, pod, spec, "c", "trap 'exit 6' TERM; while :; do sleep 0.05; done")
		pid, exit := b.status(t, id).PID, b.exitFile(id)
		b.die(t)
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the end is on record", func() bool { return exists(exit) })
		return id
	}
	for name, how := range hows {
		t.Run(name+", the monitor knows", func(t *testing.T) {
			id := endUnseen(t, pod, spec)
			told(t, id, how, 6)
		})
		t.Run(name+", the monitor has forgotten", func(t *testing.T) {
			id := b.run(t, pod, spec, "c", "exit 6")
			b.exited(t, id)
			if err := b.StopContainer(t.Context(), id, 0); err != nil { // all of it is taken away
				t.Fatal(err)
			}
			b.die(t)
			told(t, id, how, codeUnknown)
		})
		t.Run(name+", the monitor is dead", func(t *testing.T) {
			mine, mineSpec := b.runPod(t)
			monitor := b.monitorPID(t, mine)
			id := endUnseen(t, mine, mineSpec)
			kill(t, monitor)
			told(t, id, how, codeUnknown)
			b.removePod(t, mine)
		})
	}
	b.removePod(t, pod)
}

// An end that nobody wrote down, the disks being full or the monitor out of descriptors, or whose record is lost: the container has
// ended, and is none that was never started.
func TestAnEndThatIsNotOnRecordWasOne(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "exit 6")
	started := b.exited(t, id).StartedAt
	if err := b.StopContainer(t.Context(), id, 0); err != nil { // the monitor forgets it
		t.Fatal(err)
	}
	created, err := b.CreateContainer(t.Context(), b.containerSpec(t, pod, spec, "created", "exit 0"))
	if err != nil {
		t.Fatal(err)
	}
	exit := b.exitFile(id)
	b.die(t)
	if err := os.Remove(exit); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"first", "second"} {
		b.back(t)
		st := b.status(t, id)
		if st.State != engine.ContainerExited || st.ExitCode != codeUnknown || st.Reason != engine.ReasonError || !st.StartedAt.Equal(started) || st.FinishedAt.Before(started) {
			t.Errorf("to the %s daemon after it: %+v", when, st)
		}
		if st := b.status(t, created.ID); st.State != engine.ContainerCreated {
			t.Errorf("one that was not started, to the %s daemon after it: %+v", when, st)
		}
		b.die(t)
	}
	b.back(t)
	b.removePod(t, pod)
}

// A container whose OCI spec is damaged is not started, nor is anything in it, by what is left of the spec; it can be stopped and removed.
//
// Rows: R21 (part), S69 (part)
func TestADamagedBundleIsNotUsed(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	s := b.containerSpec(t, pod, spec, "c", "sleep 1000")
	created, err := b.CreateContainer(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	running := b.run(t, pod, spec, "running", "sleep 1000")
	for name, how := range map[string]func([]byte) []byte{
		"a flipped bit": func(good []byte) []byte { return bytes.Replace(good, []byte("sleep 1000"), []byte("sleep 1001"), 1) },
		"cut":           damages["cut"], "empty": damages["empty"],
	} {
		t.Run(name, func(t *testing.T) {
			for _, id := range []engine.ContainerID{created.ID, running} {
				path := filepath.Join(b.bundle(id), bundleConfig)
				good, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				damage(t, path, how)
				defer func() {
					if err := os.WriteFile(path, good, 0o600); err != nil {
						t.Error(err)
					}
				}()
			}
			if _, err := b.StartContainer(t.Context(), created.ID, s); !errdefs.IsDataLoss(err) {
				t.Errorf("the start: %v", err)
			}
			if err := b.UpdateContainer(t.Context(), created.ID, &engine.Resources{CPUShares: 7}); !errdefs.IsDataLoss(err) {
				t.Errorf("an update: %v", err)
			}
			if _, err := b.Exec(t.Context(), running, &engine.ExecSpec{Command: []string{"true"}}); !errdefs.IsDataLoss(err) {
				t.Errorf("an exec: %v", err)
			}
			b.die(t)
			b.back(t)
			if st := b.status(t, created.ID); st.State != engine.ContainerCreated {
				t.Errorf("%+v", st)
			}
			if st := b.status(t, running); st.State != engine.ContainerRunning {
				t.Errorf("%+v", st)
			}
		})
	}
	b.sh(t, running, "true")
	// One without a checksum, as an earlier version wrote it.
	damage(t, filepath.Join(b.bundle(created.ID), bundleConfig), func([]byte) []byte { return []byte(`{"process":{}}`) })
	if err := b.UpdateContainer(t.Context(), created.ID, &engine.Resources{CPUShares: 7}); !errdefs.IsDataLoss(err) {
		t.Errorf("an update: %v", err)
	}
	for _, id := range []engine.ContainerID{created.ID, running} {
		damage(t, filepath.Join(b.bundle(id), bundleConfig), damages["cut"])
		if err := errors.Join(b.StopContainer(t.Context(), id, 0), b.RemoveContainer(t.Context(), id)); err != nil {
			t.Error(err)
		}
	}
	b.removePod(t, pod)
}

// What a monitor recorded of itself is damaged: it is found by the pod's record, and what runs is not killed.
//
// Rows: R21 (part), S69 (part)
func TestAMonitorWhoseRecordIsDamagedIsJoined(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t, sharedPIDs)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	pid, record := b.status(t, id).PID, filepath.Join(b.monitorDir(pod), monitor.RecordName)
	for name, how := range map[string]func([]byte) []byte{
		"a flipped bit": func(good []byte) []byte { // of the process's number
			at := bytes.Index(good, []byte(`"pid":`)) + len(`"pid":`)
			good = bytes.Clone(good)
			good[at] = (good[at] - 1) ^ 1 + 1 // another digit, and no 0
			return good
		},
		"cut": damages["cut"], "empty": damages["empty"], "lost": damages["lost"],
	} {
		t.Run(name, func(t *testing.T) {
			good, err := os.ReadFile(record)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = os.WriteFile(record, good, 0o600) }()
			b.die(t)
			damage(t, record, how)
			b.back(t)
			if state := b.podState(t, pod); state != engine.PodReady {
				t.Errorf("the pod is %s", state)
			}
			if st := b.status(t, id); st.State != engine.ContainerRunning || st.PID != pid {
				t.Errorf("%+v", st)
			}
			b.sh(t, id, "true")
		})
	}
	damage(t, record, damages["cut"])
	b.removePod(t, pod)
}

// Records of a newer version are left alone, with everything that they name, and their images are not removed.
//
// Rows: R05 (part), R21 (part)
func TestRecordsOfANewerVersionAreLeftAlone(t *testing.T) {
	for name, newer := range map[string]struct{ pod, container bool }{
		"the pod's": {true, false}, "a container's": {false, true}, "both": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := serving(t)
			pod, spec := b.runPod(t, sharedPIDs)
			id := b.run(t, pod, spec, "c", "sleep 1000")
			second := b.run(t, pod, spec, "second", "sleep 1000")
			mine, mineSpec := b.runPod(t)
			other := b.run(t, mine, mineSpec, "c", "sleep 1000")
			pids := []int{b.status(t, id).PID, b.status(t, second).PID, b.monitorPID(t, pod)}
			podFile, containerFile := filepath.Join(b.podRecords.dir, string(pod)), filepath.Join(b.containerRecords.dir, string(id))
			b.die(t)
			// A later version may give a field another form.
			if newer.pod {
				rewriteFile(t, podFile, `"version":1,`, `"version":2,"cgroup":7,`)
			}
			if newer.container {
				rewriteFile(t, containerFile, `"version":1,`, `"version":2,"cgroup":7,`)
			}
			b.back(t)
			for _, pid := range pids {
				if !runs(pid) {
					t.Errorf("process %d of the newer version's pod was killed", pid)
				}
			}
			if _, err := b.PodStatus(t.Context(), pod); !errdefs.IsNotFound(err) {
				t.Errorf("the pod: %v", err)
			}
			for _, c := range []engine.ContainerID{id, second} {
				if _, err := b.ContainerStatus(t.Context(), c); !errdefs.IsNotFound(err) {
					t.Errorf("a container: %v", err)
				}
			}
			if st := b.status(t, other); st.State != engine.ContainerRunning {
				t.Errorf("%+v", st)
			}
			b.removePod(t, mine)
			image, err := b.Image(t.Context(), b.image)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.RemoveImage(t.Context(), image.ID); err == nil {
				t.Error("the image of a newer version's container was removed")
			}
			b.die(t)
			// The newer version comes back, or this one's records do.
			if newer.pod {
				rewriteFile(t, podFile, `"version":2,"cgroup":7,`, `"version":1,`)
			}
			if newer.container {
				rewriteFile(t, containerFile, `"version":2,"cgroup":7,`, `"version":1,`)
			}
			b.back(t)
			for _, c := range []engine.ContainerID{id, second} {
				if st := b.status(t, c); st.State != engine.ContainerRunning || !slices.Contains(pids, st.PID) {
					t.Errorf("%+v", st)
				}
			}
			b.removePod(t, pod)
		})
	}
}

// The disk did not take what happened: the copy in the run folder tells it.
//
// Rows: R19 (part), R20 (part)
func TestACopyThatIsNewerCounts(t *testing.T) {
	dir := t.TempDir()
	r := records{"pod", filepath.Join(dir, "root"), filepath.Join(dir, "run"), &quarantine{}}
	for _, dir := range []string{r.dir, r.copies} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write := func(dir string, revision uint64, boot string) {
		data, _ := json.Marshal(header{Version: 1, Revision: revision, Boot: boot})
		if err := replaceFile(dir, "a", data); err != nil {
			t.Fatal(err)
		}
	}
	loaded := func() (revisions []uint64) {
		err := r.load(t.Context(), func(_ string, data []byte) error {
			var h header
			err := json.Unmarshal(data, &h)
			revisions = append(revisions, h.Revision)
			return err
		}, func(string, []byte) error { t.Error("newer"); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return revisions
	}
	write(r.dir, 2, boot())
	write(r.copies, 3, boot())
	if got := loaded(); !slices.Equal(got, []uint64{3}) {
		t.Errorf("%v, want the copy", got)
	}
	write(r.dir, 5, boot())
	if got := loaded(); !slices.Equal(got, []uint64{5}) {
		t.Errorf("%v, want the record", got)
	}
	write(r.copies, 9, "another boot")
	if got := loaded(); !slices.Equal(got, []uint64{5}) {
		t.Errorf("%v, want the record: the copy is of another boot", got)
	}
	if err := r.save("a", header{Version: 1, Revision: 10, Boot: boot()}); err != nil {
		t.Fatal(err)
	}
	damage(t, filepath.Join(r.copies, "a"), func(good []byte) []byte { return bytes.Replace(good, []byte("10"), []byte("11"), 1) })
	if got := loaded(); !slices.Equal(got, []uint64{10}) {
		t.Errorf("%v, want the record: the copy is damaged", got)
	}
	damage(t, filepath.Join(r.dir, "a"), func(good []byte) []byte { return bytes.Replace(good, []byte("10"), []byte("12"), 1) })
	if got := loaded(); !slices.Equal(got, []uint64{10}) {
		t.Errorf("%v, want the copy, which was damaged and replaced", got)
	}
	if err := r.remove("a"); err != nil || len(loaded()) != 0 {
		t.Errorf("%v, %v", err, loaded())
	}
}

// What version 1 wrote stays readable, exactly.
//
// Rows: R05 (part)
func TestRecordsOfVersion1(t *testing.T) {
	golden := func(name string, into any) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join("testdata", "v1", name))
		if err != nil {
			t.Fatal(err)
		}
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.DisallowUnknownFields() // a field that was released keeps its name
		if err := decoder.Decode(into); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		again, err := json.MarshalIndent(into, "", "  ")
		if err != nil || string(again)+"\n" != string(data) {
			t.Errorf("%s is written as\n%s", name, again)
		}
	}
	var pod podRecord
	golden("pod.json", &pod)
	if pod.Version != 1 || pod.ID != "0123" || pod.Cgroup.Path != "/kubepods/podx" || pod.Files.Shm == "" || pod.Monitor.PID != 4242 || !pod.Stopped || pod.StartedAt.IsZero() {
		t.Errorf("%+v", pod)
	}
	var c containerRecord
	golden("container.json", &c)
	if c.ID != "4567" || c.Spec.Pod != "0123" || c.Cgroup.CgroupsPath == "" || !c.Started || c.Ended == nil || c.Ended.Code != 137 || c.User.UID != 1000 || c.Upper == "" {
		t.Errorf("%+v", c)
	}
	var m monitor.Record
	golden("monitor.json", &m)
	if m.PID != 4242 || m.StartTicks != 99 {
		t.Errorf("%+v", m)
	}
	var exit monitor.Exit
	golden("exit.json", &exit)
	if exit.Code != 137 || exit.Signal != 9 || !exit.OOMKilled || exit.FinishedAt.IsZero() {
		t.Errorf("%+v", exit)
	}
}
