package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/registry/hosts"
)

// Entries for parts of a registry are for what lies in these parts, and the most special one counts, each time.
func TestEntriesForPartsOfARegistry(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.json")
	content := `{"auths":{
		"quay.io/team-a":{"username":"a"},"https://quay.io/team-a/deep/":{"username":"deep"},"quay.io/team-b":{"username":"b"},"quay.io/kept-by-a-helper":{},
		"whole.example":{"username":"whole"},"whole.example/team":{"username":"team"},"whole.example/team/helped":{},
		"https://old.example/v2/":{"username":"old"},"https://old.example/v1/team":{"username":"oldteam"},
		"docker.io/library":{"username":"library"},"https://index.docker.io/v1/":{"username":"hub"},
		"*.glob.example":{"username":"any"},"*.glob.example/team":{"username":"anyteam"},"one.glob.example":{"username":"one"},
		"k*.*.example:5000":{"username":"port"},"*":{"username":"single"},
		"twice.example":{"username":"one"},"https://twice.example":{"username":"other"}}}`
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ host, repository, want string }{
		{"quay.io", "team-a/app", "a"},
		{"quay.io", "team-a", "a"},
		{"quay.io", "team-a/deep/app", "deep"},
		{"quay.io", "team-a/deeper/app", "a"},
		{"quay.io", "team-b/app", "b"},
		{"quay.io", "team-ab/app", ""},
		{"quay.io", "team", ""},
		{"quay.io", "kept-by-a-helper/app", ""},
		{"whole.example", "team/app", "team"},
		{"whole.example", "team/helped/app", "team"},
		{"whole.example", "other/app", "whole"},
		{"old.example", "app", "old"},
		{"old.example", "team/app", "oldteam"},
		{"docker.io", "library/busybox", "library"},
		{"docker.io", "someone/app", "hub"},
		{"twice.example", "app", "other"},
		{"none.example", "team-a/app", ""},
		{"two.glob.example", "app", "any"},
		{"two.glob.example", "team/app", "anyteam"},
		{"one.glob.example", "team/app", "one"},
		{"glob.example", "app", ""},
		{"a.b.glob.example", "app", ""},
		{"two.glob.example:5000", "app", ""},
		{"two.glob.example.evil", "app", ""},
		{"k8s.glob.example:5000", "app", "port"},
		{"k8s.glob.example:5001", "app", ""},
		{"[::1]:5000", "app", ""},
		{"localhost", "app", "single"},
	} {
		for range 10 { // a map has no order
			if got, err := (NodeAuth{config}).Find(t.Context(), test.host, test.repository); err != nil || got.Username != test.want {
				t.Errorf("%s/%s is asked with the credentials of %q, want %q, %v", test.host, test.repository, got.Username, test.want, err)
				break
			}
		}
	}
}

func TestMirrored(t *testing.T) {
	for path, want := range map[string]string{
		"/v2": "team/app", "": "team/app", "/v2/cache": "cache/team/app", "/cache/v2": "cache/team/app", "/a/b": "a/b/team/app",
	} {
		if got := mirrored(&hosts.Endpoint{URL: &url.URL{Path: path}}, "team/app"); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

// The kubelet's own config.json is the default of [images] credentials, and the kubelet takes base64 without padding.
func TestAuthWithoutPadding(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(`{"auths":{"reg.example":{"auth":"dTpwYXNz"},"two.example":{"auth":"dTpwYXNzdw"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"reg.example": "pass", "two.example": "passw"} {
		if got, err := (NodeAuth{path}).Find(t.Context(), host, "app"); err != nil || got.Password != want {
			t.Errorf("%s: %v, %v", host, got.Password, err)
		}
	}
}

// A helper may start an agent that stays, and holds what the helper wrote to: its answer counts.
func TestAHelperThatLeavesAnAgentIsHeard(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\nsleep 30 &\necho $! >" + filepath.Join(dir, "pid") + `
echo '{"Username":"u","Secret":"s"}'
`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-agent"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	config := filepath.Join(dir, "config.json")
	if err := os.WriteFile(config, []byte(`{"credsStore":"agent"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := NodeAuth{config}.Find(t.Context(), "reg.example", "app")
	if err != nil || found != (Credentials{Username: "u", Password: "s"}) {
		t.Errorf("%v, %v", found, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	agent, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(agent, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// One that does not answer is no reason not to ask a registry either, unless the pull was given up meanwhile.
func TestAHelperThatDoesNotAnswerIsGivenUp(t *testing.T) {
	defer func(was time.Duration) { helperTimeout = was }(helperTimeout)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-slow"), []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	config := filepath.Join(dir, "config.json")
	if err := os.WriteFile(config, []byte(`{"credsStore":"slow"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	given, giveUp := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer giveUp()
	if _, err := (NodeAuth{config}).Find(given, "reg.example", "app"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
	helperTimeout = 10 * time.Millisecond
	if found, err := (NodeAuth{config}).Find(t.Context(), "reg.example", "app"); err != nil || !strings.Contains(found.Missing, "slow did not answer within 10ms") {
		t.Errorf("%+v, %v", found, err)
	}
}

// A helper that fails is no reason not to ask a registry that may want no credentials; where it does, its words say why there are none.
func TestAHelperThatFailsIsHeard(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"broken": "echo 'the token of the role has expired'; exit 1",
		"silent": "echo 'no keyring' >&2; exit 3",
		"none":   "echo 'credentials not found in native keychain'; exit 1",
		"odd":    "echo canary",
		"leaky":  `echo '{"Username":"u","Secret":"canary"}'; exit 1`,
	} {
		if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="reg"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer reg.Close()
	for helper, want := range map[string]string{
		"broken": "the token of the role has expired", "silent": "no keyring", "none": "", "odd": "helper odd", "leaky": "helper leaky",
		"not-installed": "docker-credential-not-installed",
	} {
		config := filepath.Join(dir, "config.json")
		if err := os.WriteFile(config, []byte(fmt.Sprintf(`{"credsStore":%q}`, helper)), 0o600); err != nil {
			t.Fatal(err)
		}
		found, err := NodeAuth{config, filepath.Join(dir, "absent")}.Find(t.Context(), "reg.example", "app")
		if err != nil || found.Some() {
			t.Errorf("%s: %v", helper, err)
		}
		parsed, err := hosts.Parse([]byte(fmt.Sprintf("server = %q\n", reg.URL)), "reg.example", dir, false)
		if err != nil {
			t.Fatal(err)
		}
		pull := Pull{Config: parsed, Repository: "app", Credentials: found}
		endpoint := pull.Open(DefaultStall)[0]
		_, err = endpoint.Get(t.Context(), http.MethodGet, Target{Kind: "manifests", Reference: "v1"}, nil)
		endpoint.Close()
		if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") || want == "" && strings.Contains(err.Error(), "helper") {
			t.Errorf("%s: %v", helper, err)
		}
	}
}
