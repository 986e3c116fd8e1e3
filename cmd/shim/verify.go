package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/cni"
	"crishim/config"
	"crishim/engine/docker/survey"
	"crishim/migrate/kubeletfiles"
	"crishim/migrate/verify"
	"crishim/state"
)

func verifyFlags(fs *pflag.FlagSet) {
	fs.Bool("fix", false, "mend what is proved to be a dead pod's")
	fs.String("output", outputText, "text or json")
	config.Flags(fs)
}

// runVerify changes nothing without --fix. The exit status is 1 while something is left over.
func runVerify(ctx context.Context, fs *pflag.FlagSet, out io.Writer) error {
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	form, err := outputForm(fs, outputText, outputJSON)
	if err != nil {
		return err
	}
	// What package cni logs for a daemon would stand in the report's way.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	places := verify.DefaultPlaces(append(slices.Clone(c.Adopt.CNICacheDirs), c.CNICacheDir())...)
	if files, err := kubeletfiles.Read(places.Root); err == nil {
		if f, ok := files.Flag("root-dir"); ok {
			places.PodDirs = filepath.Join(f.Value, "pods")
		}
	}
	conn, err := dialCRI(c.Listen[0])
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	runtime := runtimeapi.NewRuntimeServiceClient(conn)
	node, serving, err := gatherLeftovers(ctx, c, places, runtime)
	if err != nil {
		return err
	}
	problems := verify.Examine(node)
	if fix, err := fs.GetBool("fix"); err != nil {
		return err
	} else if fix {
		if err := mend(ctx, c, runtime, serving, problems); err != nil {
			return err
		}
	}
	if err := writeReport(form, out, problems, func(out io.Writer) error { return writeProblems(out, problems) }); err != nil {
		return err
	}
	for _, p := range problems {
		if !p.Mended {
			return verdict(1)
		}
	}
	return nil
}

// maxAnswer is what a kubelet's client accepts.
const maxAnswer = 16 << 20

func dialCRI(endpoint string) (*grpc.ClientConn, error) {
	return grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
}

// gatherLeftovers reads what may be left over first, then who lives: what is made meanwhile is known. serving says that
// crishim answers.
func gatherLeftovers(ctx context.Context, c *config.Config, places verify.Places, runtime runtimeapi.RuntimeServiceClient) (n *verify.Node, serving bool, err error) {
	if n, err = verify.Leftovers(places, time.Now()); err != nil {
		return nil, false, err
	}
	if n.NAT, err = cni.NAT(ctx); err != nil {
		return nil, false, err
	}
	if err := n.LookElsewhere(places.Root); err != nil {
		return nil, false, err
	}
	n.Network = cni.Look(c.Network.ConfDir, c.Network.BinDirs).Network
	n.Live, n.Named = map[string]bool{}, map[string]bool{}
	if err := liveInDocker(ctx, c, n); err != nil {
		return nil, false, err
	}
	if err := liveInRecords(c, n); err != nil {
		return nil, false, err
	}
	serving = liveInAnswers(ctx, n, runtime) == nil
	return n, serving, n.ReadPodDirs(places)
}

// liveInDocker must succeed where there is a Docker Engine: without it every pod of its would look dead.
func liveInDocker(ctx context.Context, c *config.Config, n *verify.Node) error {
	if name, why := detectEngine("/", c.Docker.Endpoint); name != config.EngineDocker {
		klog.InfoS("No Docker Engine is asked", "because", why)
		return nil
	}
	docker, err := survey.Read(ctx, c.Docker.Endpoint)
	if err != nil {
		return fmt.Errorf("what is left over cannot be told while Docker does not say what lives: %w", err)
	}
	n.Containers = docker.Containers
	for _, container := range docker.Containers {
		n.Live[container.ID] = true
		if name := container.Labels["io.kubernetes.pod.name"]; name != "" {
			n.Named[container.Labels["io.kubernetes.pod.namespace"]+"/"+name] = true
		}
	}
	return nil
}

func liveInRecords(c *config.Config, n *verify.Node) error {
	store, err := state.OpenReadOnly(stateDir(c))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("what is left over cannot be told without the records: %w", err)
	}
	defer func() { _ = store.Close() }()
	if bad := store.Quarantined(); len(bad) > 0 {
		return fmt.Errorf("what is left over cannot be told while %d records cannot be read, %s first: see crishim state", len(bad), bad[0].Path)
	}
	for _, pod := range store.Pods() {
		n.Live[string(pod.ID)] = true
		n.Named[pod.Spec.Key.Namespace+"/"+pod.Spec.Key.Name] = true
	}
	return nil
}

func liveInAnswers(ctx context.Context, n *verify.Node, runtime runtimeapi.RuntimeServiceClient) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	list, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, pod := range list.Items {
		n.Live[pod.Id] = true
		n.Named[pod.GetMetadata().GetNamespace()+"/"+pod.GetMetadata().GetName()] = true
	}
	return nil
}

func mend(ctx context.Context, c *config.Config, runtime runtimeapi.RuntimeServiceClient, serving bool, problems []verify.Problem) error {
	scratch, err := os.MkdirTemp("", "crishim-verify-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	network, err := cni.New(cni.Options{ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs, CacheDir: scratch, OwedDir: filepath.Join(scratch, "owed")})
	if err != nil {
		return err
	}
	fixer := &verify.Fixer{Network: network, ChangeNAT: cni.ChangeNAT}
	if serving {
		fixer.RemoveSandbox = func(ctx context.Context, id string) error {
			if _, err := runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
				return err
			}
			_, err := runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		}
	}
	fixer.Fix(ctx, problems)
	return nil
}

func writeProblems(out io.Writer, problems []verify.Problem) error {
	if len(problems) == 0 {
		_, err := fmt.Fprintln(out, "nothing is left over")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	rows := [][]string{{"KIND", "WHAT", "WHY", "MEND", "STATE"}}
	for _, p := range problems {
		condition := "proved"
		switch {
		case p.Mended:
			condition = "mended"
		case p.Failed != "":
			condition = "failed: " + p.Failed
		case !p.Proved:
			condition = "not proved, left alone"
		}
		rows = append(rows, []string{p.Kind, p.Subject, p.Message, p.Mend, condition})
	}
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}
