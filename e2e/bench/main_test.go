package bench

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(bareVariable); what != "" {
		fmt.Fprintln(os.Stderr, serveBare(what))
		os.Exit(1)
	}
	harness.Main(m)
}

// bench is one run.
type bench struct {
	b    *testing.B
	node *harness.Node
	// image is busybox's id at crishim, files is what containers mount.
	image, files string
	sides        [sideCount]side
	// peer is nil without one; sameEngine says that it drives crishim's Docker Engine.
	peer       *criSide
	peerPIDs   []int
	peerDir    string // of a peer that was started here
	sameEngine bool
	// bodies are crishim's creations, calls and details what each operation asks of Docker.
	bodies  map[string]createBody
	calls   map[string]string
	details map[string]string
	// pods are there while other sides work.
	pods int
	rows []*row
}

// pause is the image of pause containers, for all sides.
const pause = "pause:bench"

// BenchmarkNode prints the table. It is run once, with -benchtime=1x.
func BenchmarkNode(b *testing.B) {
	harness.Require(b)
	wanted, err := regexp.Compile(os.Getenv("PARTS"))
	if err != nil {
		b.Fatalf("PARTS: %v", err)
	}
	// A pause that heeds SIGTERM, as the real one does: a server that asks it to end would wait for the harness's own.
	registry := harness.SharedRegistry(b)
	registry.Push(b, pause, harness.Build(b, v1.Config{Cmd: []string{"/bin/testserver", "on-term", "0"}}))
	node := harness.NewNode(b, harness.DockerOptions{}, harness.ShimOptions{Settings: map[string]any{
		"log": map[string]any{"level": 0}, "images": map[string]any{"pause": registry.Ref(pause)},
	}})
	n := &bench{b: b, node: node, files: mountedFiles(b), calls: map[string]string{}, details: map[string]string{}}
	n.image = node.Shim.PullOnce(b, node.Registry.Ref(harness.Busybox))
	network := newCNISide(b, node.CNI)
	n.sides = [sideCount]side{cni: network}
	if !harness.Native() {
		n.countCalls()
		n.sides[docker] = newDockerSide(b, node, n.bodies, network)
	}
	n.sides[ours] = n.cri(node.Shim.Client, n.image)
	if n.peerOf(); n.peer != nil {
		n.sides[peer] = n.peer
	}
	defer n.print()
	count, rounds := setting("COUNT", 6), setting("ROUNDS", 5)
	for _, part := range []struct {
		name string
		run  func()
	}{
		{"single", func() { n.lifecycle("one at a time", count, 1, rounds) }},
		{"parallel", func() { n.lifecycle("8 at once", max(16, 2*count), 8, rounds) }},
		{"streams", func() { n.streams(setting("MIB", 128), rounds) }},
		{"pull", func() { n.pull(rounds) }},
		{"dense", func() { n.density(setting("PODS", 100)) }},
	} {
		if wanted.MatchString(part.name) {
			part.run()
		}
	}
}

func (n *bench) print() {
	fmt.Printf("\n%s\n", table(n.rows))
	if harness.Native() {
		return
	}
	fmt.Printf("Requests to Docker, what follows an event in the background included:\n\n")
	for _, op := range operations {
		if requests := n.details[op]; requests != "" {
			fmt.Printf("* %s: %s\n", op, requests)
		}
	}
	fmt.Println()
}

// setting is a number from the environment.
func setting(name string, otherwise int) int {
	if value, err := strconv.Atoi(os.Getenv(name)); err == nil && value > 0 {
		return value
	}
	return otherwise
}

func (n *bench) cri(client harness.Client, image string) *criSide {
	return &criSide{b: n.b, node: n.node, client: &client, image: image, files: n.files}
}

// peerOf connects to the CRI server at PEER, or to one that PEER_START starts: a shell command that finds in its environment
// PEER_SOCKET (where to serve), PEER_DIR (a folder for it), DOCKER_ENDPOINT, CNI_CONF_DIR, CNI_BIN_DIR and PAUSE_IMAGE.
// PEER=containerd starts a current one, built here.
func (n *bench) peerOf() {
	n.b.Helper()
	socket := strings.TrimPrefix(os.Getenv("PEER"), "unix://")
	command := os.Getenv("PEER_START")
	var env []string
	if socket == "containerd" {
		binary, path := harness.Containerd(n.b)
		command, env = "sh containerd.sh", []string{"CONTAINERD=" + binary, "PATH=" + path + ":" + os.Getenv("PATH")}
	}
	if command != "" {
		socket = n.startPeer(command, env)
		n.sameEngine = strings.Contains(command, "$DOCKER_ENDPOINT")
	}
	if socket == "" {
		return
	}
	client := harness.Dial(n.b, socket)
	image := os.Getenv("PEER_IMAGE")
	if image == "" {
		reply, err := client.Images.PullImage(n.b.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.node.Registry.Ref(harness.Busybox)}})
		if err != nil {
			n.b.Fatalf("the peer cannot pull busybox, name an image that it has in PEER_IMAGE: %v", err)
		}
		image = reply.ImageRef
	}
	n.peer = n.cri(*client, image)
	if pid := serverOf(socket); pid > 0 {
		n.peerPIDs = []int{pid}
	}
}

func (n *bench) startPeer(command string, env []string) (socket string) {
	n.b.Helper()
	dir := harness.WorkDir(n.b, "p")
	n.peerDir = dir
	socket = filepath.Join(dir, "peer.sock")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		n.b.Fatalf("starting the peer: %v", err)
	}
	defer log.Close()
	peer := exec.Command("sh", "-c", "exec "+command)
	peer.Stdout, peer.Stderr = log, log
	peer.Env = append(os.Environ(), "PEER_SOCKET="+socket, "PEER_DIR="+dir, "CNI_CONF_DIR="+n.node.CNI.ConfDir, "CNI_BIN_DIR="+n.node.CNI.BinDir, "PAUSE_IMAGE="+n.node.Registry.Ref(pause))
	if !harness.Native() {
		peer.Env = append(peer.Env, "DOCKER_ENDPOINT="+n.node.Docker.Endpoint())
	}
	peer.Env = append(peer.Env, env...)
	if err := peer.Start(); err != nil {
		n.b.Fatalf("starting the peer: %v", err)
	}
	n.b.Cleanup(func() {
		_ = peer.Process.Signal(syscall.SIGTERM)
		_ = peer.Wait() // by the signal
	})
	harness.Eventually(n.b, 30*time.Second, "the peer to serve", func() error {
		if acceptsUnix(socket) {
			return nil
		}
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("it does not accept; its log:\n%s", text[max(0, len(text)-2000):])
	})
	return socket
}

// serverOf is the process that listens on a unix socket.
func serverOf(socket string) int {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if credentials, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(credentials.Pid)
		}
	})
	return pid
}
