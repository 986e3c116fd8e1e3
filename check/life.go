package check

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is the test pod and what is learnt on the way.
type pod struct {
	Options
	reference string
	logDir    string
	config    *runtimeapi.PodSandboxConfig

	imageID     string
	podID       string
	containerID string
	ip          string
}

const logName = "check_0.log"

func newPod(opts Options, reference string) (*pod, error) {
	logDir, err := os.MkdirTemp("", "crishim-check-")
	if err != nil {
		return nil, err
	}
	uid := fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano())
	return &pod{Options: opts, reference: reference, logDir: logDir, config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "crishim-check", Namespace: "default", Uid: uid},
		Hostname:     "crishim-check",
		LogDirectory: logDir,
		Labels:       map[string]string{"io.kubernetes.pod.name": "crishim-check", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}}, nil
}

func (p *pod) removeFiles() { _ = os.RemoveAll(p.logDir) }

func (p *pod) life() []step {
	return []step{
		{"version", true, p.version},
		{"runtime and network ready", true, p.ready},
		{"pull image", true, p.pull},
		{"image status", false, p.imageStatus},
		{"run pod", true, p.runPod},
		{"pod address", false, p.address},
		{"create container", true, p.create},
		{"start container", true, p.start},
		{"container running", true, p.running},
		{"log", false, p.log},
		{"HTTP to the pod", false, p.reach},
		{"exec", false, p.execSync},
		{"exec stream", false, p.execStream},
		{"port-forward", false, p.portForward},
		{"container statistics", false, p.containerStats},
		{"pod statistics", false, p.podStats},
		{"log rotation", false, p.rotate},
		{"stop container", false, p.stop},
		{"exit code", false, p.exitCode},
	}
}

func (p *pod) teardown() []step {
	return []step{
		{"remove container", false, p.removeContainer},
		{"stop pod", false, p.stopPod},
		{"remove pod", false, p.removePod},
		{"remove image", false, p.removeImage},
	}
}

// firstAnswer bounds the first call, which waits for no image and no container.
const firstAnswer = 20 * time.Second

func (p *pod) version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	v, err := p.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if status.Code(err) == codes.DeadlineExceeded {
		return "", fmt.Errorf("the socket takes connections and does not answer within %s: is it a CRI socket? %w", firstAnswer, err)
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s, runtime API %s", v.GetRuntimeName(), v.GetRuntimeVersion(), v.GetRuntimeApiVersion()), nil
}

// ready waits a little: right after its start a runtime looks for its engine and its CNI configuration.
func (p *pod) ready(ctx context.Context) (string, error) {
	return poll(ctx, 15*time.Second, func() (string, error) {
		st, err := p.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			return "", err
		}
		for _, c := range st.GetStatus().GetConditions() {
			if (c.GetType() == runtimeapi.RuntimeReady || c.GetType() == runtimeapi.NetworkReady) && !c.GetStatus() {
				return "", fmt.Errorf("%s=false: %s: %s", c.GetType(), c.GetReason(), c.GetMessage())
			}
		}
		return "", nil
	})
}

func (p *pod) pull(ctx context.Context) (string, error) {
	resp, err := p.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: p.reference}})
	if err != nil {
		return "", err
	}
	p.imageID = resp.GetImageRef()
	return p.imageID, nil
}

func (p *pod) imageStatus(ctx context.Context) (string, error) {
	resp, err := p.Image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: p.reference}})
	if err != nil {
		return "", err
	}
	if resp.GetImage().GetSize() == 0 {
		return "", fmt.Errorf("no image %s, or one of size 0", p.reference)
	}
	return fmt.Sprintf("%.1f MiB", float64(resp.GetImage().GetSize())/(1<<20)), nil
}

func (p *pod) runPod(ctx context.Context) (string, error) {
	resp, err := p.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: p.RuntimeHandler})
	if err != nil {
		return "", err
	}
	p.podID = resp.GetPodSandboxId()
	return short(p.podID), nil
}

func (p *pod) address(ctx context.Context) (string, error) {
	resp, err := p.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.podID})
	if err != nil {
		return "", err
	}
	if p.ip = resp.GetStatus().GetNetwork().GetIp(); p.ip == "" {
		return "", fmt.Errorf("the pod has no address")
	}
	return p.ip, nil
}

func (p *pod) create(ctx context.Context) (string, error) {
	resp, err := p.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.podID, SandboxConfig: p.config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "check"},
		Image:    &runtimeapi.ImageSpec{Image: p.imageID, UserSpecifiedImage: p.reference},
		Command:  []string{programPath, "workload", "serve"},
		LogPath:  logName,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 256 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NoNewPrivs:       true,
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}})
	if err != nil {
		return "", err
	}
	p.containerID = resp.GetContainerId()
	return short(p.containerID), nil
}

func (p *pod) start(ctx context.Context) (string, error) {
	_, err := p.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.containerID})
	return "", err
}

func (p *pod) status(ctx context.Context) (*runtimeapi.ContainerStatus, error) {
	resp, err := p.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.containerID})
	return resp.GetStatus(), err
}

func (p *pod) running(ctx context.Context) (string, error) {
	st, err := p.status(ctx)
	if err != nil {
		return "", err
	}
	if st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return "", fmt.Errorf("it is %s: exit code %d, %s %s", st.GetState(), st.GetExitCode(), st.GetReason(), st.GetMessage())
	}
	return "", nil
}

func (p *pod) log(ctx context.Context) (string, error) { return p.logHas(ctx, greeting) }

func (p *pod) logPath() string { return filepath.Join(p.logDir, logName) }

// dockersLog says that the log is a link to Docker's own file, as dockershim, cri-dockerd and, where it is told to, crishim make it.
func (p *pod) dockersLog() bool {
	info, err := os.Lstat(p.logPath())
	return err == nil && info.Mode()&os.ModeSymlink != 0
}

// logHas looks for a whole line with the text: of CRI's format, or of Docker's where the log is its file.
func (p *pod) logHas(ctx context.Context, text string) (string, error) {
	return poll(ctx, 10*time.Second, func() (string, error) {
		data, err := os.ReadFile(p.logPath())
		if err != nil {
			return "", err
		}
		kind, line, in := "CRI", " stdout F "+text+"\n", ""
		if p.dockersLog() {
			kind, line, in = "Docker", `{"log":"`+text+`\n","stream":"stdout",`, ", a link to Docker's file"
		}
		if !strings.Contains(string(data), line) {
			return "", fmt.Errorf("no %s log line %q in %q", kind, text, data)
		}
		return fmt.Sprintf("%q%s", text, in), nil
	})
}

func (p *pod) reach(ctx context.Context) (string, error) {
	if p.ip == "" {
		return "", fmt.Errorf("the pod has no address")
	}
	return poll(ctx, 10*time.Second, func() (string, error) {
		return get(ctx, directTransport, net.JoinHostPort(p.ip, fmt.Sprint(workloadPort)))
	})
}

// directTransport goes by no proxy of the environment: those know no pods.
var directTransport = &http.Transport{DisableKeepAlives: true}

func get(ctx context.Context, transport http.RoundTripper, address string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return "", err
	}
	if string(body) != greeting {
		return "", fmt.Errorf("%s answered %q", address, body)
	}
	return address, nil
}

func (p *pod) execSync(ctx context.Context) (string, error) {
	resp, err := p.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.containerID, Cmd: []string{programPath, "workload", "echo", "oops"}, Timeout: 20})
	if err != nil {
		return "", err
	}
	if resp.GetExitCode() != exitCode || string(resp.GetStderr()) != "oops" {
		return "", fmt.Errorf("exit code %d, stderr %q; want %d and %q", resp.GetExitCode(), resp.GetStderr(), exitCode, "oops")
	}
	return "", nil
}

func (p *pod) execStream(ctx context.Context) (string, error) {
	resp, err := p.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: p.containerID, Cmd: []string{programPath, "workload", "echo", "oops"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return "", err
	}
	input := bytes.Repeat([]byte("crishim\n"), 64<<10)
	stdout, stderr, err := execOverSPDY(ctx, resp.GetUrl(), input)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(stdout, input) || string(stderr) != "oops" {
		return "", fmt.Errorf("%d of %d bytes came back, stderr %q", len(stdout), len(input), stderr)
	}
	return fmt.Sprintf("%d KiB there and back", len(input)>>10), nil
}

func (p *pod) portForward(ctx context.Context) (string, error) {
	resp, err := p.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.podID, Port: []int32{workloadPort}})
	if err != nil {
		return "", err
	}
	transport, closeAll, err := forwardOverSPDY(ctx, resp.GetUrl(), workloadPort)
	if err != nil {
		return "", err
	}
	defer closeAll()
	_, err = get(ctx, transport, fmt.Sprintf("localhost:%d", workloadPort))
	return "", err
}

func (p *pod) containerStats(ctx context.Context) (string, error) {
	return poll(ctx, 10*time.Second, func() (string, error) {
		resp, err := p.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: p.containerID})
		if err != nil {
			return "", err
		}
		st := resp.GetStats()
		cpu, memory := st.GetCpu().GetUsageCoreNanoSeconds().GetValue(), st.GetMemory().GetWorkingSetBytes().GetValue()
		if cpu == 0 || memory == 0 {
			return "", fmt.Errorf("cpu %d ns, working set %d bytes", cpu, memory)
		}
		return fmt.Sprintf("cpu %d ms, working set %.1f MiB", cpu/1e6, float64(memory)/(1<<20)), nil
	})
}

func (p *pod) podStats(ctx context.Context) (string, error) {
	resp, err := p.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.podID})
	if err != nil {
		return "", err
	}
	network := resp.GetStats().GetLinux().GetNetwork().GetDefaultInterface()
	if network.GetName() == "" {
		return "", fmt.Errorf("no network figures")
	}
	return fmt.Sprintf("%s received %d bytes", network.GetName(), network.GetRxBytes().GetValue()), nil
}

func (p *pod) rotate(ctx context.Context) (string, error) {
	if p.dockersLog() {
		return "Docker rotates its file itself", nil
	}
	path := p.logPath()
	if err := os.Rename(path, path+".1"); err != nil {
		return "", err
	}
	if _, err := p.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: p.containerID}); err != nil {
		return "", err
	}
	_, err := os.Stat(path)
	return "", err
}

func (p *pod) stop(ctx context.Context) (string, error) {
	if _, err := p.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.containerID, Timeout: 10}); err != nil {
		return "", err
	}
	return p.logHas(ctx, farewell)
}

func (p *pod) exitCode(ctx context.Context) (string, error) {
	st, err := p.status(ctx)
	if err != nil {
		return "", err
	}
	if st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetExitCode() != exitCode {
		return "", fmt.Errorf("%s with %d; want exited with %d", st.GetState(), st.GetExitCode(), exitCode)
	}
	return fmt.Sprint(exitCode), nil
}

func (p *pod) removeContainer(ctx context.Context) (string, error) {
	if p.containerID == "" {
		return "", errNothingToDo
	}
	_, err := p.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.containerID})
	return "", err
}

func (p *pod) stopPod(ctx context.Context) (string, error) {
	if p.podID == "" {
		return "", errNothingToDo
	}
	_, err := p.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.podID})
	return "", err
}

func (p *pod) removePod(ctx context.Context) (string, error) {
	if p.podID == "" {
		return "", errNothingToDo
	}
	_, err := p.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.podID})
	return "", err
}

func (p *pod) removeImage(ctx context.Context) (string, error) {
	if p.imageID == "" {
		return "", errNothingToDo
	}
	_, err := p.Image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: p.imageID}})
	return "", err
}

// poll tries until there is no error, for at most so long.
func poll(ctx context.Context, patience time.Duration, try func() (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		detail, err := try()
		if err == nil {
			return detail, nil
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func short(id string) string { return id[:min(12, len(id))] }
