package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// plane is a control plane for one node: etcd and three daemons of this program, with everything that they write in one folder.
type plane struct {
	dir, logs        string
	address, podCIDR string
	node             string
	etcd             string
	port             int

	tokens   map[string]string // by user
	children []*child
	ended    chan *child
}

// child is a daemon of the plane; its output is in name.log.
type child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
}

// users are those whose tokens the API server knows, with their groups: the four whose kubeconfig files are written.
var users = map[string]struct{ file, group string }{
	"admin":                          {"admin.kubeconfig", "system:masters"},
	"system:kube-controller-manager": {"controller-manager.kubeconfig", ""},
	"system:kube-scheduler":          {"scheduler.kubeconfig", ""},
	"":                               {"kubelet.kubeconfig", "system:nodes"}, // the node's, see user
}

// up runs a control plane until it gets SIGTERM or SIGINT. When it answers, its folder has admin.kubeconfig for kubectl and
// kubelet.kubeconfig for the node, and "ready" is printed.
func up(args []string) error {
	runtime.LockOSThread() // the children end with the thread that started them
	p := &plane{tokens: map[string]string{}, ended: make(chan *child, 8)}
	flags := flag.NewFlagSet("cluster up", flag.ContinueOnError)
	flags.StringVar(&p.dir, "dir", "", "folder for everything; it must exist")
	flags.StringVar(&p.logs, "logs", "", "folder for the logs of the daemons, -dir unless it is given")
	flags.StringVar(&p.address, "address", "", "address of this machine that is not a loopback one, for the API server")
	flags.IntVar(&p.port, "port", 6443, "port of the API server")
	flags.StringVar(&p.podCIDR, "pod-cidr", "10.88.0.0/24", "addresses of the node's pods")
	flags.StringVar(&p.node, "node", "", "name of the node")
	flags.StringVar(&p.etcd, "etcd", "etcd", "the program etcd, 3.4 or newer")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if p.dir == "" || p.address == "" || p.node == "" {
		return errors.New("cluster up wants -dir, -address and -node")
	}
	if p.logs == "" {
		p.logs = p.dir
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	defer p.down()
	if err := p.start(stop); err != nil {
		return err
	}
	fmt.Println("ready")
	select {
	case <-stop:
		return nil
	case c := <-p.ended:
		return fmt.Errorf("%s ended: %v; its log is %s", c.name, c.cmd.ProcessState, p.log(c.name))
	}
}

func (p *plane) file(name string) string { return filepath.Join(p.dir, name) }

// log is a daemon's.
func (p *plane) log(name string) string { return filepath.Join(p.logs, name+".log") }

// user is the name that the API server knows.
func (p *plane) user(name string) string {
	if name == "" {
		return "system:node:" + p.node
	}
	return name
}

func (p *plane) start(stop <-chan os.Signal) error {
	if err := errors.Join(p.writeTokens(), p.writeKey()); err != nil {
		return err
	}
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	// What is lost with the power of this machine is a cluster of its own.
	if err := p.run("etcd", p.etcd, "--name=only", "--data-dir="+p.file("etcd"), "--unsafe-no-fsync", "--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=only="+peer); err != nil {
		return err
	}
	if err := p.runSelf("kube-apiserver", "--etcd-servers="+client, "--bind-address="+p.address, "--advertise-address="+p.address, fmt.Sprintf("--secure-port=%d", p.port),
		"--cert-dir="+p.file("certificates"), "--token-auth-file="+p.file("tokens.csv"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+p.file("accounts.key"),
		"--service-account-signing-key-file="+p.file("accounts.key"), "--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true", "--endpoint-reconciler-type=none"); err != nil {
		return err
	}
	if err := p.waitReady(stop); err != nil {
		return err
	}
	if err := p.writeKubeconfigs(); err != nil {
		return err
	}
	if err := p.runSelf("kube-controller-manager", "--kubeconfig="+p.file("controller-manager.kubeconfig"), "--service-account-private-key-file="+p.file("accounts.key"),
		"--root-ca-file="+p.certificate(), "--use-service-account-credentials", "--allocate-node-cidrs", "--cluster-cidr="+p.podCIDR, "--node-cidr-mask-size=24",
		"--leader-elect=false", "--secure-port=0"); err != nil {
		return err
	}
	return p.runSelf("kube-scheduler", "--kubeconfig="+p.file("scheduler.kubeconfig"), "--leader-elect=false", "--secure-port=0")
}

// certificate is what the API server signed for itself, with the authority that it made for that.
func (p *plane) certificate() string { return p.file("certificates/apiserver.crt") }

func (p *plane) writeTokens() error {
	var lines strings.Builder
	for name, user := range users {
		random := make([]byte, 16)
		_, _ = rand.Read(random) // never fails
		p.tokens[name] = hex.EncodeToString(random)
		fmt.Fprintf(&lines, "%s,%s,%s,%q\n", p.tokens[name], p.user(name), p.user(name), user.group)
	}
	return os.WriteFile(p.file("tokens.csv"), []byte(lines.String()), 0o600)
}

// writeKey makes the key that signs the tokens of service accounts.
func (p *plane) writeKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	data, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(p.file("accounts.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: data}), 0o600)
}

func (p *plane) url() string {
	return fmt.Sprintf("https://%s", net.JoinHostPort(p.address, fmt.Sprint(p.port)))
}

func (p *plane) writeKubeconfigs() error {
	for name, user := range users {
		config := clientcmdapi.NewConfig()
		config.Clusters["crishim"] = &clientcmdapi.Cluster{Server: p.url(), CertificateAuthority: p.certificate()}
		config.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: p.tokens[name]}
		config.Contexts["crishim"] = &clientcmdapi.Context{Cluster: "crishim", AuthInfo: "user"}
		config.CurrentContext = "crishim"
		if err := clientcmd.WriteToFile(*config, p.file(user.file)); err != nil {
			return err
		}
	}
	return nil
}

// waitReady polls until the API server says that it is ready.
func (p *plane) waitReady(stop <-chan os.Signal) error {
	for deadline := time.Now().Add(2 * time.Minute); ; {
		err := p.ready()
		if err == nil {
			return nil
		}
		select {
		case <-stop:
			return errors.New("told to end before the API server was ready")
		case c := <-p.ended:
			return fmt.Errorf("%s ended at its start: %v; its log is %s", c.name, c.cmd.ProcessState, p.log(c.name))
		case <-time.After(200 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the API server is not ready: %w; its log is %s", err, p.log("kube-apiserver"))
		}
	}
}

func (p *plane) ready() error {
	authority, err := os.ReadFile(p.certificate())
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	request, err := http.NewRequest(http.MethodGet, p.url()+"/readyz", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+p.tokens["admin"])
	reply, err := client.Do(request)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return errors.New(reply.Status)
	}
	return nil
}

// runSelf starts a daemon of this program.
func (p *plane) runSelf(name string, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return p.run(name, self, append([]string{name}, args...)...)
}

func (p *plane) run(name, program string, args ...string) error {
	log, err := os.OpenFile(p.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := &child{name: name, cmd: exec.Command(program, args...), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.Dir = log, log, p.dir
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // Ctrl-C is for this program alone
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	p.children = append(p.children, c)
	go func() {
		_ = c.cmd.Wait() // how it ended is asked of ProcessState
		close(c.done)
		p.ended <- c
	}()
	return nil
}

// down ends the daemons, the last one first.
func (p *plane) down() {
	for i := len(p.children) - 1; i >= 0; i-- {
		c := p.children[i]
		_ = c.cmd.Process.Signal(syscall.SIGTERM) // or it has ended
		limit := 10 * time.Second
		if c.name == "kube-apiserver" {
			limit = time.Second // it waits for watches, whose clients are gone
		}
		select {
		case <-c.done:
		case <-time.After(limit):
			_ = c.cmd.Process.Kill()
			<-c.done
		}
	}
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
