//go:build failpoint

package failpoint

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// write replaces the file that says what happens.
func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTheNthHitSinceTheFileChangedActs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "steps")
	trace := file + ".trace"
	t.Setenv(EnvFile, file)
	for _, run := range []string{"# 1\n", "# 2\n"} {
		write(t, file, run+"step=error*2\ntrace="+trace+"\n")
		for i, want := range []bool{false, true, false} {
			if failed := Hit("step") != nil; failed != want {
				t.Errorf("hit %d failed: %v, want %v", i+1, failed, want)
			}
		}
	}
	if err := Hit("other"); err != nil {
		t.Error(err)
	}
	write(t, file, "any=error*2\n")
	if Hit("a") != nil || Hit("logpump/saved") != nil || Hit("b") == nil {
		t.Error("the second step of any name was not the one that failed")
	}
	if got, want := readFile(t, trace), "step\nstep\terror\nstep\nstep\nstep\terror\nstep\nother\n"; got != want {
		t.Errorf("trace %q, want %q", got, want)
	}
}

func TestAHeldStepGoesOnWhenTheFileChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "steps")
	t.Setenv(EnvFile, file)
	trace := file + ".trace"
	write(t, file, "a=hold\ntrace="+trace+"\n")
	done := make(chan error)
	go func() { done <- Hit("a") }()
	for data := []byte(nil); string(data) != "a\thold\n"; data, _ = os.ReadFile(trace) {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-done:
		t.Fatalf("a step that is held went on: %v", err)
	case <-time.After(4 * holdInterval):
	}
	write(t, file, "# goes on\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAStepThatFailedHasNoAfter(t *testing.T) {
	file := filepath.Join(t.TempDir(), "steps")
	t.Setenv(EnvFile, file)
	write(t, file, "a.before=error\nb.after=error\ntrace="+file+".trace\n")
	ran := 0
	if err := Around("a", func() error { ran++; return nil }); err == nil || ran != 0 {
		t.Errorf("error %v, ran %d times", err, ran)
	}
	if err := Around("b", func() error { ran++; return nil }); err == nil || ran != 1 {
		t.Errorf("error %v, ran %d times", err, ran)
	}
	broken := errors.New("broken")
	if err := Around("c", func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if got, want := readFile(t, file+".trace"), "a.before\terror\nb.before\nb.after\terror\nc.before\n"; got != want {
		t.Errorf("trace %q, want %q", got, want)
	}
}

func TestRequestsAreNamedByTheirFixedWords(t *testing.T) {
	for _, c := range []struct{ method, path, want string }{
		{http.MethodGet, "/v1.41/containers/json", ""},
		{http.MethodPost, "/v1.41/containers/0123/wait", ""},
		{http.MethodPost, "/v1.41/containers/create", "docker.POST.containers.create"},
		{http.MethodPost, "/v1.51/containers/0123/start", "docker.POST.containers.start"},
		{http.MethodDelete, "/containers/0123", "docker.DELETE.containers"},
		{http.MethodDelete, "/v1.41/images/sha256:0123", "docker.DELETE.images"},
	} {
		if got := requestName(c.method, c.path); got != c.want {
			t.Errorf("%s %s is %q, want %q", c.method, c.path, got, c.want)
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
