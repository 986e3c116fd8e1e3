package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"crishim/config"
)

// testFile is a configuration file of a node in a folder of its own.
func testFile(t *testing.T, more string) (path, dir string) {
	t.Helper()
	dir = t.TempDir()
	path = filepath.Join(dir, "config.toml")
	own := fmt.Sprintf("root_dir = %q\nrun_dir = %q\nlisten = [%q]\n", dir+"/root", dir+"/run", "unix://"+dir+"/cri.sock")
	if err := os.WriteFile(path, []byte(own+more), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

func TestExitStatusesDoNotCollide(t *testing.T) {
	for _, row := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{pflag.ErrHelp, 0, ""},
		{verdict(2), 2, ""},
		{noVerdict{fmt.Errorf("a flag: %w", errUsage)}, 3, "a flag: see crishim --help"},
		{fmt.Errorf("a flag: %w", errUsage), 2, "a flag: see crishim --help"},
		{errors.New("broken"), 1, "broken"},
	} {
		if code, text := status(row.err); code != row.code || text != row.text {
			t.Errorf("%v: %d, %q", row.err, code, text)
		}
	}
	// A verdict is not taken for a mistake, nor the other way round.
	broken, _ := testFile(t, "engine = \"podman\"\n")
	for _, args := range [][]string{{"preflight", "--no-such-flag"}, {"preflight", "--config", broken}, {"verify", "--config", broken}} {
		if code, text := status(run(t.Context(), args, io.Discard)); code != untold || text == "" {
			t.Errorf("%v: %d, %q", args, code, text)
		}
	}
	if code, _ := status(run(t.Context(), []string{"state", "--no-such-flag"}, io.Discard)); code != misused {
		t.Errorf("a wrong flag elsewhere: %d", code)
	}
}

func TestMessagesEndWithoutTheClassOfTheError(t *testing.T) {
	for err, want := range map[error]string{
		fmt.Errorf("no image x: %w", errdefs.ErrNotFound):                                               "no image x",
		fmt.Errorf("a: %w: %w", errdefs.ErrUnavailable, errdefs.ErrFailedPrecondition):                  "a",
		errors.Join(fmt.Errorf("a: %w", errdefs.ErrNotFound), fmt.Errorf("b: %w", errdefs.ErrNotFound)): "a\nb",
		fmt.Errorf("it is not found: look again"):                                                       "it is not found: look again",
		fmt.Errorf("a: %w; start it", errdefs.ErrUnavailable):                                           "a: unavailable; start it",
		fmt.Errorf("a: %w", errdefs.ErrPermissionDenied):                                                "a",
		fmt.Errorf("a: %w", errdefs.ErrInvalidArgument):                                                 "a",
		// The kernel's words are the reason.
		&fs.PathError{Op: "mkdir", Path: "/run/crishim", Err: unix.EACCES}:                                               "mkdir /run/crishim: permission denied",
		fmt.Errorf("a: %w: %w", &fs.PathError{Op: "mount", Path: "/x", Err: unix.EINVAL}, errdefs.ErrFailedPrecondition): "a: mount /x: invalid argument",
		relayed("open /x: permission denied"):                                                                            "open /x: permission denied",
		relayed("no image x: not found"):                                                                                 "no image x",
	} {
		if got := plain(err); got != want {
			t.Errorf("%q became %q", err, got)
		}
	}
}

func TestTheFormOfAReportIsAskedBeforeAnythingIsDone(t *testing.T) {
	file, _ := testFile(t, "")
	for _, command := range []string{"verify", "preflight"} {
		var out bytes.Buffer
		err := run(t.Context(), []string{command, "--config", file, "--output=yaml"}, &out)
		if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "--output=yaml: it is one of text, json") || out.Len() > 0 {
			t.Errorf("%s: %v, %q", command, err, &out)
		}
	}
	// verify has no third form.
	err := run(t.Context(), []string{"verify", "--fix", "--config", file, "--output=node"}, io.Discard)
	if !errors.Is(err, errUsage) {
		t.Error(err)
	}
}

func TestConfigRefusesWhatTheDaemonWould(t *testing.T) {
	for settings, want := range map[string]string{
		"[streaming]\naddress = \"0.0.0.0:0\"\n":                                             "set streaming.allow_remote = true, with streaming.cert and streaming.key",
		"engine = \"docker\"\n[nri]\nenable = true\n":                                        "nri.enable: Docker Engine has no NRI",
		"engine = \"native\"\n[nri]\nrequired_plugins = [\"guard\"]\n":                       "nri.required_plugins: NRI is off",
		"engine = \"native\"\n[network]\nmode = \"docker-bridge\"\n":                         "network: docker-bridge is Docker's",
		"engine = \"docker\"\nengines = [\"native\"]\n[network]\nmode = \"docker-bridge\"\n": "network: docker-bridge is Docker's",
		"[network]\ntemplate = \"/nonexistent/t\"\nconf_dir = \"/nonexistent/net.d\"\n":      "network.template: no network configuration can be made of /nonexistent/t",
		"socket_group = \"no-such-group\"\n":                                                 `socket group "no-such-group"`,
	} {
		file, dir := testFile(t, settings)
		var out bytes.Buffer
		if err := run(t.Context(), []string{"config", "--config", file}, &out); err == nil || !strings.Contains(err.Error(), want) || out.Len() > 0 {
			t.Errorf("%q: %v, %q", settings, err, &out)
		}
		if _, err := os.Stat(filepath.Join(dir, "root")); err == nil {
			t.Error("the check made the daemon's folder")
		}
	}
	// A template that is not used, as an add-on has made a configuration, is not asked for.
	netDir := t.TempDir()
	if err := os.WriteFile(filepath.Join(netDir, "05-addon.conflist"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	unused, _ := testFile(t, "[network]\ntemplate = \"/nonexistent/t\"\nconf_dir = \""+netDir+"\"\n")
	if err := run(t.Context(), []string{"config", "--config", unused}, io.Discard); err != nil {
		t.Error(err)
	}
	// A template for both families, whose ranges only the kubelet knows, is as good as one for either.
	both := filepath.Join(t.TempDir(), "template")
	if err := os.WriteFile(both, []byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","ipam":{"type":"host-local","ranges":[
[{"subnet":"{{index .PodCIDRRanges 0}}"}],[{"subnet":"{{index .PodCIDRRanges 1}}"}]]}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	dual, _ := testFile(t, "[network]\ntemplate = \""+both+"\"\nconf_dir = \"/nonexistent/net.d\"\n")
	if err := run(t.Context(), []string{"config", "--config", dual}, io.Discard); err != nil {
		t.Error(err)
	}
	// What the first start chose counts for auto.
	file, dir := testFile(t, "[network]\nmode = \"docker-bridge\"\n")
	if err := os.Mkdir(filepath.Join(dir, "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	for engine, refused := range map[string]bool{"docker": false, "native": true} {
		if err := os.WriteFile(filepath.Join(dir, "root", "node.json"), []byte(`{"engine": "`+engine+`", "runtimeName": "docker"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := run(t.Context(), []string{"config", "--config", file}, &out); (err != nil) != refused {
			t.Errorf("bridge on %s: %v", engine, err)
		}
		if told := strings.Contains(out.String(), "# The default engine of this node is docker (it was chosen"); told == refused {
			t.Errorf("of the engine %s is said:\n%s", engine, &out)
		}
	}
}

func TestCheckSaysWhereNobodyAnswers(t *testing.T) {
	file, dir := testFile(t, "")
	for _, args := range [][]string{nil, {"--endpoint", dir + "/cri.sock"}, {"--endpoint", "unix://" + dir + "/cri.sock"}} {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"check", "--config", file}, args...), &out)
		if err == nil || !strings.Contains(err.Error(), "nothing answers on unix://"+dir+"/cri.sock") || !strings.Contains(err.Error(), "is crishim.service running?") || out.Len() > 0 {
			t.Errorf("%v: %v, %q", args, err, &out)
		}
	}
}

func TestCheckRefusesWhatIsNoEndpoint(t *testing.T) {
	file, _ := testFile(t, "")
	if err := run(t.Context(), []string{"check", "--config", file, "--endpoint", "nonsense"}, io.Discard); err == nil || !strings.Contains(err.Error(), `"nonsense" is neither unix:///PATH nor a path`) {
		t.Errorf("%v", err)
	}
}

func TestStateBeforeTheFirstStart(t *testing.T) {
	file, dir := testFile(t, "")
	err := run(t.Context(), []string{"state", "--config", file}, io.Discard)
	if want := "no records in " + dir + "/root/state: crishim has not run here, or root_dir is another"; err == nil || err.Error() != want {
		t.Error(err)
	}
}

func TestATakenMetricsPortDoesNotEndTheDaemon(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := config.Default().Metrics
	c.Listen, c.Pprof = taken.Addr().String(), "unix://"+filepath.Join(t.TempDir(), "pprof.sock")
	pages := listenPages(c, nil, nil, nil)
	if len(pages) != 1 || pages[0].listener.Addr().Network() != "unix" {
		t.Fatalf("%d pages", len(pages))
	}
	_ = pages[0].listener.Close()
}

// metrics.listen or metrics.pprof at a socket that somebody answers on, the CRI socket by a slip, does not take it away.
func TestPagesTakeNobodysSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cri.sock")
	cri, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cri.Close() }()
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range listenPages(config.Metrics{Listen: "unix://" + path, Pprof: "unix://" + path}, nil, nil, nil) {
		t.Error("the socket was taken")
		_ = p.listener.Close()
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("another socket is there: %v", err)
	}
}
