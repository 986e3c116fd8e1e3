package config

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

func load(t *testing.T, file string, args ...string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	fs := pflag.NewFlagSet("crishim", pflag.ContinueOnError)
	Flags(fs)
	if err := fs.Parse(append([]string{"--config", path}, args...)); err != nil {
		t.Fatal(err)
	}
	return Load(fs)
}

func TestAnEmptyFileIsTheDefaults(t *testing.T) {
	c, err := load(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("got %+v", c)
	}
}

// Some editors begin a file with a mark that nobody sees.
func TestAByteOrderMarkIsPassedOver(t *testing.T) {
	if c, err := load(t, "\ufeffroot_dir = \"/file\"\n"); err != nil || c.RootDir != "/file" {
		t.Errorf("%v", err)
	}
	if errs := Default().decode("f", []byte("\ufeffroot_dir = 1\n")); len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "f:1: root_dir: ") {
		t.Errorf("%v", errs)
	}
	if _, err := load(t, "\ufeff[log]\nlevel = 99\n"); err == nil || !strings.Contains(err.Error(), ":2: log.level: ") {
		t.Errorf("the line is not told: %v", err)
	}
}

func TestFlagsWinOverTheFileAndTheFileOverDefaults(t *testing.T) {
	c, err := load(t, `
root_dir = "/file"
run_dir = "/file-run"
[docker]
log_max_size = "1MiB"
[network]
bin_dirs = ["/a", "/b"]
[images]
pull_no_progress = "90s"
`, "--root-dir=/flag", "--docker-log-max-files=7", "--network-bin-dirs=/c,/d", "--network-gc", "--network=docker-bridge", "--streaming-idle-timeout=1m")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.RootDir, want.RunDir = "/flag", "/file-run"
	want.Docker.LogMaxSize, want.Docker.LogMaxFiles = 1<<20, 7
	want.Network.BinDirs, want.Network.GC, want.Network.Mode = []string{"/c", "/d"}, true, NetworkBridge
	want.Images.PullNoProgress = Duration(90 * time.Second)
	want.Streaming.IdleTimeout = Duration(time.Minute)
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestEverythingWrongIsReportedAtOnce(t *testing.T) {
	_, err := load(t, "engine = \"podman\"\nroot_dir = \"relative\"\n[docker]\nendpoint = \"tcp://10.0.0.1:2375\"\n[log]\nlevel = 11\n[images]\ntoken_servers = [\"auth.example.com:443\", \"https://auth.example.com\"]\n", "--metrics-listen=0.0.0.0:1")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`engine: "podman"`, `root_dir: "relative"`, "must run on this host", "log.level: 11", `metrics.listen: "0.0.0.0:1"`, `images.token_servers: "https://auth.example.com"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
}

func TestUnknownKeysAndWrongTypesNameTheirLine(t *testing.T) {
	for _, row := range []struct{ file, want string }{
		{"\nengin = \"auto\"\n[docker]\nsocket = 1\n", ":2: unknown key engin"},
		{"\nengin = \"auto\"\n[docker]\nsocket = 1\n", ":4: unknown key docker.socket"},
		{"\nDrain_Timeout = 5\n", ":2: unknown key Drain_Timeout: keys are in small letters"},
		{"[Docker]\nendpoint = \"unix:///d.sock\"\n", ":1: unknown key Docker: keys are in small letters"},
		{"[handlers.Kata]\nEngine = \"docker\"\n", ":2: unknown key handlers.Kata.Engine: keys are in small letters"},
		{"[log]\nlevel = \"high\"\n", ":2: "},
		{"[images]\npull_no_progress = \"soon\"\n", ":2: "},
		{"engine = \n", ":1: "},
		{"engine = \"auto\"\nengine = \"docker\"\n", ":2: "},
		{"[streaming]\naddress = \"127.0.0.1:http\"\n", ":2: streaming.address: "},
		{"root_dir = \"/srv/crishim\"\nrun_dir = \"/srv/./crishim/\"\n", `:2: run_dir: "/srv/./crishim/" is root_dir too`},
	} {
		if _, err := load(t, row.file); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: got %v, want %q", row.file, err, row.want)
		}
	}
}

func TestNumbersWithoutAUnitAreRefused(t *testing.T) {
	for _, row := range []struct{ file, want string }{
		{"\ndrain_timeout = 10\n", `:2: drain_timeout: 10 has no unit; write it as in "10s"`},
		{"[images]\n\npull_no_progress = 1.5\n", `:3: images.pull_no_progress: 1.5 has no unit; write it as in "10s"`},
		{"images.pull_no_progress = 300\n", `:1: images.pull_no_progress: 300 has no unit`},
		{"\nimages = {pull_no_progress = 300}\n", `:2: images.pull_no_progress: 300 has no unit`},
		{"[docker]\nlog_max_size = 50\n", `:2: docker.log_max_size: 50 has no unit; write it as in "50MiB"`},
		{"[nri]\nplugin_request_timeout = 0\n", `:2: nri.plugin_request_timeout: 0 has no unit`},
	} {
		if _, err := load(t, row.file); err == nil || !strings.HasSuffix(err.Error(), row.want) && !strings.Contains(err.Error(), row.want+";") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want %q alone", row.file, err, row.want)
		}
	}
}

func TestWrongTypesAreToldInTheFilesWords(t *testing.T) {
	for _, row := range []struct{ file, want string }{
		{"listen = \"unix:///a\"\n", `:1: listen: it is a list of texts, as in listen = ["unix:///run/crishim/crishim.sock"]`},
		{"engines = [1]\n", `:1: engines: it is a list of texts, as in engines = ["one", "two"]`},
		{"[log]\nlevel = \"3\"\n", ":2: log.level: it is a whole number without quotes"},
		{"log = 3\n", ":1: log: it is a section, [log]"},
		{"[[docker]]\n", ":1: docker: it is a section, [docker]"},
		{"checkpoint = \"yes\"\n", ":1: checkpoint: it is true or false, without quotes"},
		{"engine = docker\n", "at start of value; texts need quotes"},
		{"engine = native\n", "; texts need quotes"},
		{"engine = 1\n", ":1: engine: it is a text in quotes"},
		{"drain_timeout = [\"10s\"]\n", `:1: drain_timeout: it is a duration with its unit, in quotes, as in "90s"`},
		{"[docker]\nlog_max_size = true\n", `:2: docker.log_max_size: it is a size with its unit, in quotes, as in "50MiB"`},
		{"[handlers]\nkata = 1\n", ":2: handlers.kata: it is a section, [handlers.kata]"},
		{"[handlers.kata]\nengine = \"docker\"\nruntime = 1\n", ":3: handlers.kata.runtime: it is a text in quotes"},
		{"[network]\npod_cidrs = [\"10.1.2\"]\n", `:2: network.pod_cidrs: "10.1.2" is no range such as 10.244.0.0/24`},
	} {
		if _, err := load(t, row.file); err == nil || !strings.HasSuffix(err.Error(), row.want) {
			t.Errorf("%q: got %v, want %q", row.file, err, row.want)
		}
	}
}

func TestAllFaultsOfAFileComeAtOnceWithTheirLines(t *testing.T) {
	_, err := load(t, `engine = 1
listen = [
  "unix:///a",
  2,
]
colour = "blue"
root_dir = "relative"
[log]
level = "high"
[streaming]
cert = "/absent"
[images]
pull_no_progress = "soon"
`, "--docker-log-max-size=7", "--run-dir=x")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		":1: engine: ", ":4: listen: ", ":6: unknown key colour", ":7: root_dir: ", ":9: log.level: ", ":10: streaming: ", ":13: images.pull_no_progress: ",
		"--docker-log-max-size: ", "--run-dir: run_dir: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
	if lines := strings.Count(err.Error(), "\n") + 1; lines != 9 {
		t.Errorf("%d faults:\n%v", lines, err)
	}
}

func TestARemovedKeySaysWhatToDo(t *testing.T) {
	removed["docker.socket"] = "use docker.endpoint"
	defer delete(removed, "docker.socket")
	_, err := load(t, "[docker]\nsocket = \"x\"\n")
	if err == nil || !strings.Contains(err.Error(), ":2: unknown key docker.socket: it was removed; use docker.endpoint") {
		t.Errorf("got %v", err)
	}
}

func TestAMissingFileIsAnErrorOnlyWhereItWasNamed(t *testing.T) {
	fs := pflag.NewFlagSet("crishim", pflag.ContinueOnError)
	Flags(fs)
	if err := fs.Parse([]string{"--config", filepath.Join(t.TempDir(), "absent")}); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(fs); err == nil {
		t.Error("accepted")
	}
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	want := Default()
	want.Images.Pinned = []string{"docker.io/library/busybox:1"}
	var b strings.Builder
	if err := want.Write(&b, false); err != nil {
		t.Fatal(err)
	}
	got, err := load(t, b.String())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	b.Reset()
	if err := want.Write(&b, true); err != nil {
		t.Fatal(err)
	}
	if got, err := load(t, b.String()); err != nil || !reflect.DeepEqual(got, Default()) {
		t.Errorf("the sample changes something: %+v, %v", got, err)
	}
	if got, err := load(t, strings.ReplaceAll(b.String(), "\n#", "\n")); err == nil {
		t.Errorf("comments are no settings, yet accepted: %+v", got)
	}
	for _, s := range settings(want) {
		if s.help == "" {
			t.Errorf("%s has no help", s.key)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"0B": 0, "1B": 1, "50MiB": 50 << 20, "2GiB": 2 << 30, "3KiB": 3 << 10} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want || s.String() != text {
			t.Errorf("%s: %d (%s), %v", text, s, s, err)
		}
	}
	for _, text := range []string{"", "1", "-1B", "1MB", "99999999999GiB", "x MiB"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was accepted as %d", text, s)
		}
	}
}

func TestThePackagedSampleIsCurrent(t *testing.T) {
	packaged, err := os.ReadFile("../packaging/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := Default().Write(&b, true); err != nil {
		t.Fatal(err)
	}
	if string(packaged) != b.String() {
		t.Error("packaging/config.toml is stale: bin/crishim config --sample > packaging/config.toml")
	}
}

// A value in the place of a section is one mistake, and is told in the section's words.
func TestAValueInPlaceOfASectionIsOneMistake(t *testing.T) {
	for text, want := range map[string]string{
		"docker = 5\n":       "f:1: docker: it is a section, [docker]",
		"streaming = true\n": "f:1: streaming: it is a section, [streaming]",
		"handlers = 5\n":     "f:1: handlers: it has a section for each handler, [handlers.NAME]",
	} {
		if errs := Default().decode("f", []byte(text)); len(errs) != 1 || errs[0].Error() != want {
			t.Errorf("%q: %v", text, errs)
		}
	}
}

// The group of the socket may run crishim check, and need not see where the key of streams is.
func TestWhoMayNotSeeTheKeyIsToldNoFault(t *testing.T) {
	dir := t.TempDir()
	s := Streaming{Cert: filepath.Join(dir, "closed", "cert.pem"), Key: filepath.Join(dir, "closed", "key.pem")}
	if err := os.Mkdir(filepath.Join(dir, "closed"), 0); err != nil {
		t.Fatal(err)
	}
	if err := certificate(s); os.Geteuid() == 0 && err == nil {
		t.Error("files that are not there are taken")
	}
	if os.Geteuid() == 0 {
		runtime.LockOSThread() // whose alone it is
		defer runtime.UnlockOSThread()
		if err := unix.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Setfsuid(0) }()
	}
	if err := certificate(s); err != nil {
		t.Error(err)
	}
}
