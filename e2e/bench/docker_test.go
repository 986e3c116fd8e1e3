package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// dockerSide is the Docker API alone, doing what crishim has it do: the bodies are crishim's own, without labels, so that
// crishim does not take the containers for pods.
type dockerSide struct {
	b      *testing.B
	node   *harness.Node
	bodies map[string]createBody
	ctx    context.Context
	socket string
	client *http.Client
	// cni runs beside a pod, uncounted: after it Docker is slower for a while, under every shim.
	cni *cniSide
}

type dockerPod struct {
	pod, container string
	network        any // of cni
}

func newDockerSide(b *testing.B, node *harness.Node, bodies map[string]createBody, network *cniSide) *dockerSide {
	d := dockerAt(b.Context(), node.Docker.Socket)
	d.b, d.node, d.bodies, d.cni = b, node, bodies, network
	return d
}

// dockerAt asks the Docker Engine at a socket.
func dockerAt(ctx context.Context, socket string) *dockerSide {
	return &dockerSide{ctx: ctx, socket: socket, client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 64,
	}}}
}

// body is a creation of crishim's with other values for some strings in it.
func (d *dockerSide) body(kind string, replace ...string) ([]byte, error) {
	data, err := json.Marshal(d.bodies[kind])
	if err != nil {
		return nil, err
	}
	var body createBody
	if err := json.Unmarshal([]byte(strings.NewReplacer(replace...).Replace(string(data))), &body); err != nil {
		return nil, err
	}
	delete(body, "Labels")
	return json.Marshal(body)
}

func (b createBody) hostConfig(key string) string {
	host, _ := b["HostConfig"].(map[string]any)
	value, _ := host[key].(string)
	return value
}

func (d *dockerSide) ask(method, path string, body []byte, reply any) error {
	request, err := http.NewRequestWithContext(d.ctx, method, "http://docker"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := d.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, data)
	}
	if reply == nil {
		return nil
	}
	return json.Unmarshal(data, reply)
}

func (d *dockerSide) create(body []byte) (string, error) {
	var made struct{ ID string }
	err := d.ask(http.MethodPost, "/containers/create?name=bench-"+harness.ID(), body, &made)
	return made.ID, err
}

func (d *dockerSide) start(t times) (any, error) {
	parent := podConfig(d.b, d.node).Linux.CgroupParent
	sandbox, err := d.body("podsandbox", d.bodies["podsandbox"].hostConfig("CgroupParent"), parent)
	if err != nil {
		return nil, err
	}
	p := &dockerPod{}
	begin := time.Now()
	err = t.measure(opRunPod, func() (err error) {
		if p.pod, err = d.create(sandbox); err != nil {
			return err
		}
		return d.ask(http.MethodPost, "/containers/"+p.pod+"/start", nil, nil)
	})
	if err != nil {
		return nil, err
	}
	uncounted := time.Now()
	if p.network, err = d.cni.start(times{}); err != nil {
		return nil, err
	}
	if err := d.copyPodFiles(p.pod); err != nil {
		return nil, err
	}
	begin = begin.Add(time.Since(uncounted))
	_, old, _ := strings.Cut(d.bodies["container"].hostConfig("NetworkMode"), ":")
	container, err := d.body("container", d.bodies["container"].hostConfig("CgroupParent"), parent, old, p.pod)
	if err != nil {
		return nil, err
	}
	err = t.measure(opCreate, func() (err error) {
		p.container, err = d.create(container)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = t.measure(opStart, func() error { return d.ask(http.MethodPost, "/containers/"+p.container+"/start", nil, nil) })
	if err != nil {
		return nil, err
	}
	var state struct{ State struct{ Running bool } }
	if err := d.ask(http.MethodGet, "/containers/"+p.container+"/json", nil, &state); err != nil {
		return nil, err
	}
	t[opToRunning] = ms(time.Since(begin))
	if !state.State.Running {
		return nil, fmt.Errorf("container %s does not run", p.container)
	}
	return p, nil
}

// copyPodFiles makes the files that crishim mounts into a pod's containers: by their pod's id, which the bodies name.
func (d *dockerSide) copyPodFiles(pod string) error {
	dir := filepath.Join(d.node.Shim.RunDir, "docker", "pods", pod)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (d *dockerSide) exec(pod any, t times) error {
	return t.measure(opExec, func() error {
		id, stream, err := d.hijackExec(pod.(*dockerPod).container, "true")
		if err != nil {
			return err
		}
		defer stream.Close()
		if _, err := io.Copy(io.Discard, stream); err != nil {
			return err
		}
		var state struct{ ExitCode *int }
		if err := d.ask(http.MethodGet, "/exec/"+id+"/json", nil, &state); err != nil {
			return err
		}
		if state.ExitCode != nil && *state.ExitCode != 0 {
			return fmt.Errorf("exit status %d", *state.ExitCode)
		}
		return nil
	})
}

// hijackExec starts an exec and returns the connection with its multiplexed output.
func (d *dockerSide) hijackExec(container string, command ...string) (id string, output io.ReadCloser, err error) {
	body, err := json.Marshal(map[string]any{"Cmd": command, "AttachStdout": true, "AttachStderr": true})
	if err != nil {
		return "", nil, err
	}
	var made struct{ ID string }
	if err := d.ask(http.MethodPost, "/containers/"+container+"/exec", body, &made); err != nil {
		return "", nil, err
	}
	conn, err := net.Dial("unix", d.socket)
	if err != nil {
		return "", nil, err
	}
	request, err := http.NewRequest(http.MethodPost, "http://docker/exec/"+made.ID+"/start", strings.NewReader("{}"))
	if err != nil {
		return "", nil, err
	}
	request.Header = http.Header{"Content-Type": {"application/json"}, "Connection": {"Upgrade"}, "Upgrade": {"tcp"}}
	reader := bufio.NewReader(conn)
	err = request.Write(conn)
	if err == nil {
		var answer *http.Response
		if answer, err = http.ReadResponse(reader, request); err == nil && answer.StatusCode != http.StatusSwitchingProtocols {
			err = fmt.Errorf("starting an exec: %s", answer.Status)
		}
	}
	if err != nil {
		_ = conn.Close()
		return "", nil, err
	}
	return made.ID, struct {
		io.Reader
		io.Closer
	}{reader, conn}, nil
}

func (d *dockerSide) end(pod any, t times) error {
	p := pod.(*dockerPod)
	for _, step := range []struct{ operation, method, path string }{
		{opStop, http.MethodPost, "/containers/" + p.container + "/stop?t=0"},
		{opRemove, http.MethodDelete, "/containers/" + p.container},
		{opStopPod, http.MethodPost, "/containers/" + p.pod + "/stop?t=0"},
		{opRemovePod, http.MethodDelete, "/containers/" + p.pod},
	} {
		if err := t.measure(step.operation, func() error { return d.ask(step.method, step.path, nil, nil) }); err != nil {
			return err
		}
	}
	return d.cni.end(p.network, times{})
}
