package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"crishim/engine"
)

// dockersLog is a json-file with the lines.
func dockersLog(t *testing.T, root string, id engine.ContainerID, lines ...string) string {
	t.Helper()
	path := jsonPath(&facts{rootDir: root}, id)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i, line := range lines {
		fmt.Fprintf(&b, `{"log":"%s\n","stream":"stdout","time":"2026-01-02T03:04:%02d.5Z"}`+"\n", line, i)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhereNewLogsAreLinksABegunOneGoesOnAsAFile(t *testing.T) {
	dir := t.TempDir()
	e := &Engine{opts: Options{RootDir: dir, ContainerLog: ContainerLogCRI}}
	old, young := engine.ContainerID(strings.Repeat("1", 64)), engine.ContainerID(strings.Repeat("2", 64))
	oldPath, youngPath := filepath.Join(dir, "old", "0.log"), filepath.Join(dir, "young", "0.log")
	run := func(mode string, id engine.ContainerID, json, path string) *logs {
		t.Helper()
		e.opts.ContainerLog = mode
		l, err := newLogs(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		e.logs.Store(l)
		if err := l.start(t.Context(), id, json, path, dir, false); err != nil {
			t.Fatal(err)
		}
		return l
	}

	oldJSON := dockersLog(t, dir, old, "one")
	run(ContainerLogCRI, old, oldJSON, oldPath).close()
	dockersLog(t, dir, old, "one", "two")
	l := run(ContainerLogJSONFile, old, oldJSON, oldPath)
	defer l.close()
	if err := l.finish(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	const want = "2026-01-02T03:04:00.5Z stdout F one\n2026-01-02T03:04:01.5Z stdout F two\n"
	if got, err := os.ReadFile(oldPath); err != nil || strings.ReplaceAll(string(got), "00000000Z", "Z") != want {
		t.Errorf("the log that was begun as a file: %q, %v; want %q", got, err, want)
	}

	youngJSON := dockersLog(t, dir, young, "three")
	if err := l.start(t.Context(), young, youngJSON, youngPath, dir, false); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(youngPath); err != nil || target != youngJSON {
		t.Errorf("the new log links to %q, %v; want %q", target, err, youngJSON)
	}
	if err := e.ReopenLog(t.Context(), young); !errdefs.IsNotImplemented(err) {
		t.Errorf("reopening a link: %v", err)
	}
	if err := l.finish(t.Context(), young); err != nil || !l.complete(young) {
		t.Errorf("finishing a link: %v", err)
	}

	// Only a link to the container's own file goes with it.
	for _, row := range []struct{ path, json, want string }{
		{youngPath, youngJSON, youngPath}, {youngPath, oldJSON, ""}, {oldPath, oldJSON, ""}, {filepath.Join(dir, "absent"), oldJSON, ""},
	} {
		in := &container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{LogPath: row.json},
			Config: &container.Config{Labels: map[string]string{labelLogPath: row.path, labelLogDirectory: dir}}}
		if path, root := l.linkOf(in); path != row.want || (path != "" && root != dir) {
			t.Errorf("%s over %s: %q below %q", row.path, row.json, path, root)
		}
	}
}
