package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ShimOptions say how the daemon is built and configured. The zero value is the daemon as it ships.
type ShimOptions struct {
	// Race builds it with the race detector (E2E_RACE=1 does for all), Failpoints with the failpoint tag.
	Race, Failpoints bool
	// Binary is the daemon to start with, in place of one that is built; see Use.
	Binary string
	// Settings are merged over the harness's own, section by section.
	Settings map[string]any
	// Env is added to the daemon's environment.
	Env []string
	// Both turns the native engine on beside the Docker Engine, which is the default one.
	Both bool
	// NotReady starts it without waiting for RuntimeReady and NetworkReady.
	NotReady bool
	// Clock is what it takes for the time of day in place of the machine's, Limits what can be made to lack it.
	Clock  *Clock
	Limits *Limits
}

// Shim is the daemon as a subprocess, with clients connected to its socket.
type Shim struct {
	*Process
	Socket     string
	ConfigFile string
	// RootDir is what it keeps over a reboot, RunDir what it does not, PodLogs a folder for the pods' log directories.
	RootDir, RunDir, PodLogs string
	Client

	t       T
	dir     string
	binary  string
	command []string // what starts the daemon
	options ShimOptions
	docker  *Docker
	cni     *CNI
	pulled  map[string]string
}

// StartShim writes a configuration for the engine (the daemon's own where docker is nil) and network, starts the daemon and
// waits until it is ready for pods.
func StartShim(t T, docker *Docker, network *CNI, options ShimOptions) *Shim {
	t.Helper()
	dir := WorkDir(t, "s")
	s := &Shim{
		t: t, dir: dir, options: options, docker: docker, cni: network, pulled: map[string]string{},
		Socket: filepath.Join(dir, "crishim.sock"), ConfigFile: filepath.Join(dir, "config.toml"),
		RootDir: filepath.Join(dir, "root"), RunDir: filepath.Join(dir, "run"), PodLogs: filepath.Join(dir, "pods"),
	}
	if dir, own := options.Settings["root_dir"].(string); own {
		s.RootDir = dir
	}
	if dir, own := options.Settings["run_dir"].(string); own {
		s.RunDir = dir
	}
	s.options.Both = docker != nil && (options.Both || os.Getenv(engineVariable) == EngineBoth)
	s.binary = options.Binary
	if s.binary == "" {
		s.binary = s.Current()
	}
	s.command = []string{s.binary, "serve", "--config", s.ConfigFile}
	if err := os.Mkdir(s.PodLogs, 0o755); err != nil {
		t.Fatalf("making the pod log folder: %v", err)
	}
	s.writeConfig()
	t.Cleanup(s.cleanup)
	if docker == nil {
		makeCgroup(t, s.cgroupParent())
	}
	s.launch()
	s.connect(t, s.Socket)
	s.WaitReady()
	return s
}

// Current is the daemon of this checkout, as the options want it built.
func (s *Shim) Current() string {
	s.t.Helper()
	return crishim(s.t, s.options.Race || os.Getenv("E2E_RACE") != "", s.options.Failpoints)
}

// Use lets it be started from now on from another binary.
func (s *Shim) Use(binary string) {
	s.binary, s.command[0] = binary, binary
}

// Both says that the native engine is on beside the Docker Engine.
func (s *Shim) Both() bool { return s.options.Both }

// cgroupParent is where the pods of the harness are when there is no Docker Engine that has one.
func (s *Shim) cgroupParent() string { return "/" + filepath.Base(s.dir) }

// Settings are the daemon's configuration as the harness would write it.
func (s *Shim) Settings() map[string]any {
	settings := map[string]any{
		"engine":   EngineNative,
		"listen":   []string{"unix://" + s.Socket},
		"root_dir": s.RootDir,
		"run_dir":  s.RunDir,
		"network":  map[string]any{"conf_dir": s.cni.ConfDir, "bin_dirs": []string{s.cni.PluginDir, s.cni.BinDir}},
		"metrics":  map[string]any{"listen": "unix://" + s.MetricsSocket(), "pprof": "unix://" + s.pprofSocket()},
		// Nothing of this machine's own settings counts, and the pause image comes from loopback.
		"seccomp_dir": filepath.Join(s.kubeletDir(), "seccomp"),
		"images": map[string]any{
			"pause": SharedRegistry(s.t).Ref(Pause), "pinned": []string{SharedRegistry(s.t).Ref(Pinned)}, "registry_dirs": []string{filepath.Join(s.dir, "certs.d")},
			"credentials": filepath.Join(s.dir, "docker-config.json"),
		},
		"log": map[string]any{"level": 4},
	}
	if s.docker != nil {
		settings["engine"], settings["docker"] = "docker", map[string]any{"endpoint": s.docker.Endpoint()}
	}
	if s.options.Both {
		settings["engines"] = []string{"docker", EngineNative}
	}
	merge(settings, s.options.Settings)
	return settings
}

// kubeletDir is the root folder of a kubelet on this node (/var/lib/kubelet elsewhere), in which seccomp profiles are.
func (s *Shim) kubeletDir() string { return filepath.Join(s.dir, "kubelet") }

// merge lays one tree of settings over another.
func merge(into, over map[string]any) {
	for key, value := range over {
		section, isSection := value.(map[string]any)
		existing, hasSection := into[key].(map[string]any)
		if isSection && hasSection {
			merge(existing, section)
			continue
		}
		into[key] = value
	}
}

// MetricsSocket serves /metrics and /healthz.
func (s *Shim) MetricsSocket() string { return filepath.Join(s.dir, "metrics.sock") }

func (s *Shim) pprofSocket() string { return filepath.Join(s.dir, "pprof.sock") }

// profile reads one of the daemon's Go profiles as text and the number after a word in it, 0 where it cannot be had.
func (s *Shim) profile(name, before string) (text string, number int) {
	text, err := getUnix(s.pprofSocket(), "/debug/pprof/"+name)
	if err != nil {
		return err.Error(), 0
	}
	if _, rest, found := strings.Cut(text, before); found {
		_, _ = fmt.Sscan(rest, &number) // 0 says that there is none
	}
	return text, number
}

// LogSize is how long the log is now.
func (s *Shim) LogSize() int64 {
	info, err := os.Stat(s.LogFile)
	if err != nil {
		return 0
	}
	return info.Size()
}

// LogFrom is the log after its first so many bytes, shortened.
func (s *Shim) LogFrom(offset int64) string {
	data := readString(s.LogFile)
	data = data[min(int(offset), len(data)):]
	return data[max(0, len(data)-20000):]
}

// Get asks the daemon's metrics and health server.
func (s *Shim) Get(path string) string {
	s.t.Helper()
	body, err := getUnix(s.MetricsSocket(), path)
	if err != nil {
		s.t.Fatalf("asking for %s: %v", path, err)
	}
	return body
}

func (s *Shim) writeConfig() {
	s.t.Helper()
	data, err := toml.Marshal(s.Settings())
	if err != nil {
		s.t.Fatalf("describing the daemon: %v", err)
	}
	if err := os.WriteFile(s.ConfigFile, data, 0o644); err != nil {
		s.t.Fatalf("writing the daemon's configuration: %v", err)
	}
}

func (s *Shim) launch() {
	s.t.Helper()
	if s.Process != nil && s.Running() {
		s.t.Fatalf("the daemon is to be started and still runs as process %d", s.PID())
	}
	begin := (*exec.Cmd).Start
	switch {
	case s.options.Clock != nil:
		begin = s.options.Clock.start
	case s.options.Limits != nil:
		begin = s.options.Limits.start
	}
	s.Process = startBy(s.t, begin, "crishim", filepath.Join(s.dir, "crishim.log"), s.options.Env, s.command[0], s.command[1:]...)
}

// RunAs lets it be started from now on under another name, with arguments of that name's own.
func (s *Shim) RunAs(name string, args ...string) {
	s.t.Helper()
	link := filepath.Join(s.dir, name)
	if err := os.Symlink(s.binary, link); err != nil {
		s.t.Fatalf("naming the daemon %s: %v", name, err)
	}
	s.command = append([]string{link}, args...)
}

// WaitReady polls Status until the runtime and the network are ready.
func (s *Shim) WaitReady() {
	s.t.Helper()
	deadline := time.Now().Add(30 * time.Second * patience())
	for {
		err := s.ready()
		if !s.Running() {
			s.t.Fatalf("the daemon ended with status %d:\n%s", s.ExitCode(), s.LogTail())
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the daemon is not ready: %v\n%s", err, s.LogTail())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *Shim) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	reply, err := s.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	if s.options.NotReady {
		return nil
	}
	for _, condition := range reply.Status.Conditions {
		if !condition.Status {
			return fmt.Errorf("%s is false: %s: %s", condition.Type, condition.Reason, condition.Message)
		}
	}
	return nil
}

// Stop ends the daemon with SIGTERM and expects a clean exit.
func (s *Shim) Stop() {
	s.t.Helper()
	if err := s.Terminate(30 * time.Second); err != nil {
		s.t.Errorf("%v:\n%s", err, s.LogTail())
		return
	}
	if code := s.ExitCode(); code != 0 {
		s.t.Errorf("the daemon ended with status %d:\n%s", code, s.LogTail())
	}
}

// Kill ends the daemon with SIGKILL.
func (s *Shim) Kill() { s.Process.Kill() }

// Start starts it again after Stop or Kill and waits until it is ready.
func (s *Shim) Start() {
	s.t.Helper()
	s.launch()
	s.WaitReady()
}

// StartWithoutWaiting starts it again and returns at once.
func (s *Shim) StartWithoutWaiting() {
	s.t.Helper()
	s.launch()
}

// Restart is Stop and Start.
func (s *Shim) Restart() {
	s.t.Helper()
	s.Stop()
	s.Start()
}

// KillAndRestart is kill -9 and Start.
func (s *Shim) KillAndRestart() {
	s.t.Helper()
	s.Kill()
	s.Start()
}

// Forget removes all that a stopped daemon keeps: records, positions of logs, pins.
func (s *Shim) Forget() {
	s.t.Helper()
	unmountAll(s.RunDir)
	for _, dir := range []string{s.RootDir, s.RunDir} {
		if err := os.RemoveAll(dir); err != nil {
			s.t.Fatalf("having the daemon forget: %v", err)
		}
	}
}

// Command runs another sub-command of the same binary ("check", "version", "state") and returns its output and exit status.
func (s *Shim) Command(args ...string) (output string, code int) {
	s.t.Helper()
	return runStatus(s.t, s.binary, args...)
}

// Observe starts a daemon with the same settings that only observes; it ends with end, which checks that it ended well.
func (s *Shim) Observe(t T) (client *Client, end func()) {
	t.Helper()
	p := start(t, "crishim serve --observe", filepath.Join(s.dir, "observe.log"), s.options.Env, s.binary, "serve", "--observe", "--config", s.ConfigFile)
	t.Cleanup(p.Kill)
	client = Dial(t, filepath.Join(s.RunDir, "observe", "crishim.sock"))
	Eventually(t, 20*time.Second, "the observer to answer", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := client.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return err
	})
	return client, func() {
		t.Helper()
		if err := p.Terminate(30 * time.Second); err != nil || p.ExitCode() != 0 {
			t.Errorf("the observer: %v, status %d:\n%s", err, p.ExitCode(), p.LogTail())
		}
	}
}

// Reconfigure merges further settings into the configuration file; Restart makes them count.
func (s *Shim) Reconfigure(settings map[string]any) {
	s.t.Helper()
	if s.options.Settings == nil {
		s.options.Settings = map[string]any{}
	}
	merge(s.options.Settings, settings)
	s.writeConfig()
}

// PullOnce pulls an image unless this shim did before, and returns its id.
func (s *Shim) PullOnce(t T, ref string) string {
	t.Helper()
	if id := s.pulled[ref]; id != "" {
		if reply, err := s.Images.ImageStatus(within(t, time.Minute), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err == nil && reply.Image != nil {
			return id
		}
	}
	reply, err := s.Images.PullImage(within(t, 2*time.Minute), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("pulling %s: %v", ref, err)
	}
	s.pulled[ref] = reply.ImageRef
	return reply.ImageRef
}

// cleanup removes all pods, stops the daemon and reports a detected race.
func (s *Shim) cleanup() {
	s.t.Helper()
	running := s.Running()
	if running {
		s.removePods()
		if err := s.Terminate(30 * time.Second); err != nil {
			s.t.Errorf("%v:\n%s", err, s.LogTail())
		}
	}
	s.close()
	log, err := os.ReadFile(s.LogFile)
	if err != nil {
		s.t.Errorf("reading the daemon's log: %v", err)
	}
	for _, bad := range []string{"WARNING: DATA RACE", "panic:", "fatal error:"} {
		if at := bytes.Index(log, []byte(bad)); at >= 0 {
			s.t.Errorf("the daemon's log has %q:\n%s", bad, log[at:min(len(log), at+4000)])
		}
	}
	if s.docker == nil {
		native{s}.cleanup(s.t, s.cgroupParent(), running)
	} else if s.options.Both {
		native{s}.cleanup(s.t, s.docker.CgroupParent+"/kubepods", running)
	}
	unmountAll(s.dir)
	if left := mountsUnder(s.dir); len(left) > 0 {
		s.t.Errorf("mounts are left: %v", left)
	}
	for _, pid := range processesNaming(s.dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		s.t.Errorf("process %d of the daemon was left", pid)
	}
}

func (s *Shim) removePods() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	reply, err := s.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		s.t.Logf("listing pods at the end: %v", err)
		return
	}
	for _, pod := range reply.Items {
		_, err1 := s.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.Id})
		_, err2 := s.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.Id})
		if err := errors.Join(err1, err2); err != nil {
			s.t.Errorf("removing pod %s at the end: %v", pod.Id, err)
		}
	}
}

// Code is the gRPC code of an error.
func Code(err error) codes.Code { return status.Code(err) }
