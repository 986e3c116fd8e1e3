package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/check"
	"crishim/cni"
	"crishim/config"
)

func checkFlags(flags *pflag.FlagSet) {
	flags.String("endpoint", "", "CRI socket to check, unix:///PATH (default: the first one of the configuration)")
	flags.String("runtime-handler", "", "runtime handler of the test pod")
	config.Flags(flags)
}

func runCheck(ctx context.Context, flags *pflag.FlagSet, out io.Writer) error {
	c, err := config.Load(flags)
	if err != nil {
		return err
	}
	endpoint, err := flags.GetString("endpoint")
	if err != nil {
		return err
	}
	switch {
	case endpoint == "":
		endpoint = c.Listen[0]
	case strings.HasPrefix(endpoint, "/"):
		endpoint = "unix://" + endpoint
	case !strings.Contains(endpoint, ":"):
		return fmt.Errorf("--endpoint %q is neither unix:///PATH nor a path", endpoint)
	}
	if err := answers(ctx, endpoint); err != nil {
		return err
	}
	handler, err := flags.GetString("runtime-handler")
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	defer func() { _ = conn.Close() }()
	return check.Run(ctx, check.Options{
		Runtime: runtimeapi.NewRuntimeServiceClient(conn), Image: runtimeapi.NewImageServiceClient(conn),
		Program: program, RuntimeHandler: handler, PluginWarnings: pluginWarnings(ctx, c), Out: out,
	})
}

// answers says what is wrong where nobody takes connections on a unix socket.
func answers(ctx context.Context, endpoint string) error {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok {
		return nil // gRPC knows more kinds
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be used by this user: %w; run this as root", endpoint, err)
	case err != nil:
		return fmt.Errorf("nothing answers on %s: %w; is crishim.service running?", endpoint, err)
	}
	return conn.Close()
}

// pluginWarnings are about CNI plugins with known faults.
func pluginWarnings(ctx context.Context, c *config.Config) []string {
	if c.Network.Mode != config.NetworkCNI {
		return nil
	}
	// The table is what the command says; what package cni logs for a daemon would stand in its way.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	scratch, err := os.MkdirTemp("", "crishim-check-cni-")
	if err != nil {
		return []string{err.Error()}
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	network, err := cni.New(cni.Options{ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs, CacheDir: scratch, OwedDir: scratch})
	if err != nil {
		return []string{err.Error()}
	}
	plugins, err := network.PluginVersions(ctx)
	if err != nil {
		return []string{fmt.Sprintf("the versions of the plugins in %v cannot be asked: %v", c.Network.BinDirs, err)}
	}
	var warnings []string
	for _, p := range plugins {
		if p.Old {
			warnings = append(warnings, oldPlugin(p))
		}
	}
	return warnings
}

func oldPlugin(p cni.PluginVersion) string {
	is := "is version " + p.Version
	if p.Version == "" {
		is = "tells no version and is below 1.6, as it does not know CNI 1.1"
	}
	return fmt.Sprintf("%s %s; below 1.9 host port rules catch foreign traffic (CVE-2025-67499) and NAT rules leak, update it", p.Path, is)
}
