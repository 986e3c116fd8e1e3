// Package survey reads what a Docker Engine holds, for reports about a node: what it is, every container (those of other
// people too) and every image.
//
// A caller calls Read once. Nothing but GET requests are made, and nothing is kept.
package survey

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"
)

// Engine is a Docker Engine and all that it holds.
type Engine struct {
	Socket        string   `json:"socket"`
	Version       string   `json:"version"`
	APIVersion    string   `json:"apiVersion"` // the newest it speaks
	MinAPIVersion string   `json:"minAPIVersion,omitempty"`
	OSType        string   `json:"osType,omitempty"`
	Kernel        string   `json:"kernel,omitempty"`
	CgroupDriver  string   `json:"cgroupDriver"`
	CgroupVersion string   `json:"cgroupVersion,omitempty"`
	RootDir       string   `json:"rootDir"`
	StorageDriver string   `json:"storageDriver"`
	LogDriver     string   `json:"logDriver"` // of new containers
	LiveRestore   bool     `json:"liveRestore"`
	Runtimes      []string `json:"runtimes,omitempty"` // OCI runtimes by name, sorted
	// DefaultRuntime is the one of Runtimes that containers get which name none.
	DefaultRuntime     string      `json:"defaultRuntime,omitempty"`
	Security           []string    `json:"security,omitempty"` // "rootless", "userns", "seccomp", …
	Swarm              string      `json:"swarm,omitempty"`    // state of the swarm node, "" or "inactive" where it is none
	Mirrors            []string    `json:"mirrors,omitempty"`  // of Docker Hub
	InsecureRegistries []string    `json:"insecureRegistries,omitempty"`
	Containers         []Container `json:"containers,omitempty"` // oldest first
	Images             []Image     `json:"images,omitempty"`     // by tag
}

// Container is one container, whoever made it.
type Container struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"` // without Docker's leading "/"
	Image       string            `json:"image"`
	ImageID     string            `json:"imageID"`
	Created     time.Time         `json:"created"`
	State       string            `json:"state"` // created, running, paused, restarting, removing, exited, dead
	Pid         int               `json:"pid,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"` // see keptLabels
	LogDriver   string            `json:"logDriver"`
	LogPath     string            `json:"logPath,omitempty"` // "" where the driver writes no file that Docker tells of
	NetworkMode string            `json:"networkMode"`
	// NetworkDisabled: Docker has no network for it, nor files for /etc.
	NetworkDisabled bool    `json:"networkDisabled,omitempty"`
	CgroupPath      string  `json:"cgroupParent,omitempty"`
	Runtime         string  `json:"runtime,omitempty"`
	Mounts          []Mount `json:"mounts,omitempty"`
	Ports           []Port  `json:"ports,omitempty"`
}

// Mount is a folder or file of the host in a container.
type Mount struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
}

// Port is one port binding.
type Port struct {
	Protocol      string `json:"protocol"` // tcp, udp, sctp
	ContainerPort int    `json:"containerPort"`
	HostIP        string `json:"hostIP,omitempty"`
	HostPort      int    `json:"hostPort"`
}

// Image is one image.
type Image struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags,omitempty"`
	Digests []string `json:"digests,omitempty"`
	Size    int64    `json:"size"` // bytes, shared layers included
}

// timeout bounds a whole survey: an engine that answers nothing is told, not waited for.
const timeout = time.Minute

// atOnce bounds the inspects in flight.
const atOnce = 8

// Read makes a survey of the engine at a unix:// address. A container that goes while it is read is left out.
func Read(ctx context.Context, socket string) (*Engine, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cli, err := client.NewClientWithOpts(client.WithHost(socket), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("docker engine at %s: %w", socket, err)
	}
	defer func() { _ = cli.Close() }()
	e, err := read(ctx, cli)
	if err != nil {
		return nil, fmt.Errorf("docker engine at %s: %w", socket, err)
	}
	e.Socket = socket
	return e, nil
}

func read(ctx context.Context, cli *client.Client) (*Engine, error) {
	version, err := cli.ServerVersion(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for its version: %w", err)
	}
	info, err := cli.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask what it is: %w", err)
	}
	e := describe(&info)
	e.APIVersion, e.MinAPIVersion = version.APIVersion, version.MinAPIVersion
	if e.Containers, err = containers(ctx, cli); err != nil {
		return nil, err
	}
	images, err := cli.ImageList(ctx, image.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list its images: %w", err)
	}
	for _, i := range images {
		e.Images = append(e.Images, Image{ID: i.ID, Tags: names(i.RepoTags, false), Digests: names(i.RepoDigests, true), Size: i.Size})
	}
	slices.SortFunc(e.Images, func(a, b Image) int {
		return cmp.Or(cmp.Compare(strings.Join(a.Tags, " "), strings.Join(b.Tags, " ")), cmp.Compare(a.ID, b.ID))
	})
	return e, nil
}

// names leaves out Docker's "<none>:<none>", and with containerd's image store the digests among the tags, each of which is
// among the digests too, and digests without a name.
func names(all []string, digests bool) []string {
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool {
		return strings.HasPrefix(name, "<none>") || strings.Contains(name, "@") != digests
	})
}

func describe(info *system.Info) *Engine {
	e := &Engine{
		Version: info.ServerVersion, OSType: info.OSType, Kernel: info.KernelVersion, CgroupDriver: info.CgroupDriver,
		CgroupVersion: info.CgroupVersion, RootDir: info.DockerRootDir, StorageDriver: info.Driver, LogDriver: info.LoggingDriver,
		LiveRestore: info.LiveRestoreEnabled, Runtimes: slices.Sorted(maps.Keys(info.Runtimes)), DefaultRuntime: info.DefaultRuntime,
		Swarm: string(info.Swarm.LocalNodeState),
	}
	for _, option := range info.SecurityOptions {
		for field := range strings.SplitSeq(option, ",") {
			if name, ok := strings.CutPrefix(field, "name="); ok {
				e.Security = append(e.Security, name)
			}
		}
	}
	if info.RegistryConfig == nil {
		return e
	}
	e.Mirrors = info.RegistryConfig.Mirrors
	for _, cidr := range info.RegistryConfig.InsecureRegistryCIDRs {
		if text := cidr.String(); text != "127.0.0.0/8" && text != "::1/128" { // Docker's own
			e.InsecureRegistries = append(e.InsecureRegistries, text)
		}
	}
	for name, index := range info.RegistryConfig.IndexConfigs {
		if index != nil && !index.Secure {
			e.InsecureRegistries = append(e.InsecureRegistries, name)
		}
	}
	slices.Sort(e.InsecureRegistries)
	return e
}

func containers(ctx context.Context, cli *client.Client) ([]Container, error) {
	listed, err := cli.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("list its containers: %w", err)
	}
	var mu sync.Mutex
	var all []Container
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, summary := range listed {
		group.Go(func() error {
			in, err := cli.ContainerInspect(ctx, summary.ID)
			if errdefs.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("inspect container %s: %w", summary.ID, err)
			}
			c := fromInspect(&in)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, c)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b Container) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

func fromInspect(in *container.InspectResponse) Container {
	c := Container{ID: in.ID, Name: strings.TrimPrefix(in.Name, "/"), ImageID: in.Image, LogPath: in.LogPath}
	c.Created, _ = time.Parse(time.RFC3339Nano, in.Created)
	if in.State != nil {
		c.State, c.Pid = string(in.State.Status), in.State.Pid
	}
	if in.Config != nil {
		c.Image, c.Labels, c.NetworkDisabled = in.Config.Image, keptLabels(in.Config.Labels), in.Config.NetworkDisabled
	}
	if in.HostConfig != nil {
		c.LogDriver, c.NetworkMode = in.HostConfig.LogConfig.Type, string(in.HostConfig.NetworkMode)
		c.CgroupPath, c.Runtime = in.HostConfig.CgroupParent, in.HostConfig.Runtime
		for port, bindings := range in.HostConfig.PortBindings {
			for _, binding := range bindings {
				host, _ := strconv.Atoi(binding.HostPort)
				c.Ports = append(c.Ports, Port{Protocol: port.Proto(), ContainerPort: port.Int(), HostIP: binding.HostIP, HostPort: host})
			}
		}
		slices.SortFunc(c.Ports, func(a, b Port) int {
			return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.ContainerPort, b.ContainerPort), cmp.Compare(a.Protocol, b.Protocol))
		})
	}
	for _, m := range in.Mounts {
		c.Mounts = append(c.Mounts, Mount{Source: m.Source, Destination: m.Destination})
	}
	slices.SortFunc(c.Mounts, func(a, b Mount) int { return cmp.Compare(a.Destination, b.Destination) })
	return c
}

// keptLabels are those by which containers of pods are told apart. The others are everybody's, and the survey ends up in bug reports: of
// a pod that kubectl has applied one is the whole manifest, with the values of environment variables.
func keptLabels(all map[string]string) map[string]string {
	kept := map[string]string{}
	for name, value := range all {
		if strings.HasPrefix(name, "io.kubernetes.") || strings.HasPrefix(name, "io.crishim.") || name == "annotation.io.kubernetes.container.hash" || name == "annotation.io.kubernetes.container.restartCount" {
			kept[name] = value
		}
	}
	return kept
}
